//! What was asked and answered, and whether one ledger could have given all those answers.
//!
//! A group's revision rises by one with each batch that changes something, and answers carry it. So the order in which
//! batches were applied is known, but for those whose callers were never told: they fill the gaps, or were not applied at
//! all, and the search tries each where it could have been. What else moves a group, the backend itself, is a leadership
//! that is taken or freed. At each revision everything that was read there must be what the ledger holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use divider_core::{
    Applied, Change, Effects, GroupView, Key, KeyView, Ledger, Op, Outcome, Page, Refusal, Revision, SessionId, State,
    Term, Token,
};

fn token(outcome: &Outcome) -> Option<Token> {
    match outcome {
        Outcome::Granted(token) => Some(*token),
        _ => None,
    }
}

/// What was asked.
#[derive(Clone, Debug)]
pub enum Call {
    /// A batch.
    Apply(Vec<Op>),
    /// All that the group holds, in one page.
    Scan,
    /// Leadership, for a session.
    Take(SessionId),
    /// A session's renewal.
    Renew(SessionId),
}

/// What was answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Nothing, or that nobody knows.
    Unknown,
    /// To a batch.
    Applied(Applied),
    /// To a scan.
    Page(Box<Page>),
    /// To a poll.
    PollReply,
    /// The session lives.
    Beat,
    /// It has ended.
    Ended,
}

/// A call, from when it was made until it was answered.
#[derive(Clone, Debug)]
pub struct Event {
    /// Of which group.
    pub group: usize,
    /// What was asked.
    pub call: Call,
    /// When, in an order of all calls and answers.
    pub from: u64,
    /// When it was answered; `u64::MAX` where it was not.
    pub until: u64,
    /// What was answered.
    pub answer: Answer,
}

impl Event {
    fn revision(&self) -> Option<u64> {
        match &self.answer {
            Answer::Applied(applied) => Some(applied.revision.0),
            Answer::Page(page) => Some(page.revision.0),
            _ => None,
        }
    }

    /// The terms that it names.
    fn terms(&self) -> Vec<Term> {
        let mut terms = Vec::new();
        if let Call::Apply(ops) = &self.call {
            terms.extend(ops.iter().filter_map(|op| match op {
                Op::Assign { term, .. } | Op::Expire { term, .. } => Some(*term),
                _ => None,
            }));
        }
        if let Answer::Page(page) = &self.answer {
            terms.extend((page.group.term > Term(0)).then_some(page.group.term));
        }
        terms
    }

    /// The tokens that it names.
    fn tokens(&self) -> Vec<Token> {
        match &self.answer {
            Answer::Applied(applied) => applied.outcomes.iter().filter_map(token).collect(),
            Answer::Page(page) => page.keys.iter().filter_map(|view| Some(view.state.owner()?.1)).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it made a revision. Checkpoints make none.
    fn changes(&self) -> bool {
        let (Call::Apply(ops), Answer::Applied(applied)) = (&self.call, &self.answer) else { return false };
        let shown = |op: &Op| !matches!(op, Op::Checkpoint { .. });
        let done = |outcome: &Outcome| matches!(outcome, Outcome::Done | Outcome::Granted(_));
        ops.iter().zip(&applied.outcomes).any(|(op, outcome)| shown(op) && done(outcome))
    }
}

/// All calls of a run.
#[derive(Debug, Default)]
pub struct CallHistory {
    clock: u64,
    /// In the order in which they were made.
    pub events: Vec<Event>,
}

/// What came of the search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Revisions that were gone through.
    pub revisions: u64,
    /// Groups whose search was given up, because too many answers were missing.
    pub undecided: u64,
}

/// Most terms before the first one that anybody named, and one.
const UNNAMED: u64 = 6;
/// Most steps of the search in a group.
const STEPS: usize = 20_000;

impl CallHistory {
    /// A call is made. The number is for [`answered`](Self::answered).
    pub fn asked(&mut self, group: usize, call: Call) -> usize {
        self.clock += 1;
        self.events.push(Event { group, call, from: self.clock, until: u64::MAX, answer: Answer::Unknown });
        self.events.len() - 1
    }

    /// It is answered.
    pub fn answered(&mut self, number: usize, answer: Answer) {
        self.clock += 1;
        if !matches!(answer, Answer::Unknown) {
            self.events[number].until = self.clock;
            self.events[number].answer = answer;
        }
    }

    /// The highest token and the highest term of a group.
    pub fn highest(&self, group: usize) -> (Token, Term) {
        let events = || self.events.iter().filter(|event| event.group == group);
        let token = events().flat_map(Event::tokens).max();
        (token.unwrap_or_default(), events().flat_map(Event::terms).max().unwrap_or_default())
    }

    /// Looks whether each group's answers are those of a ledger.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self, groups: usize) -> Result<Verdict, String> {
        let mut verdict = Verdict::default();
        for group in 0..groups {
            let events: Vec<&Event> = self.events.iter().filter(|event| event.group == group).collect();
            in_time(&events).map_err(|problem| format!("group {group}: {problem}"))?;
            lives(&events).map_err(|problem| format!("group {group}: {problem}"))?;
            match Search::new(&events).map_err(|problem| format!("group {group}: {problem}"))?.run() {
                Ok(Some(revisions)) => verdict.revisions += revisions,
                Ok(None) => verdict.undecided += 1,
                Err(problem) => return Err(format!("group {group}: {problem}")),
            }
        }
        Ok(verdict)
    }
}

/// Whoever asks after an answer sees all that it saw.
fn in_time(events: &[&Event]) -> Result<(), String> {
    let mut moments: Vec<(u64, &Event)> = Vec::new();
    for event in events {
        moments.push((event.from, event));
        if event.until != u64::MAX {
            moments.push((event.until, event));
        }
    }
    moments.sort_by_key(|(at, _)| *at);
    let mut seen = 0;
    let mut at_least = BTreeMap::new();
    for (at, event) in moments {
        if at == event.from {
            at_least.insert(event.from, seen);
        } else if let Some(revision) = event.revision() {
            let before = at_least[&event.from];
            if revision < before || (revision == before && event.changes()) {
                return Err(format!("revision {before} had been answered before a call that was answered {event:?}"));
            }
            seen = seen.max(revision);
        }
    }
    Ok(())
}

/// A session that was ended is not renewed any more, and no other one is said to have ended.
fn lives(events: &[&Event]) -> Result<(), String> {
    let mut ending: BTreeMap<SessionId, (u64, u64)> = BTreeMap::new();
    for event in events {
        if let Call::Apply(ops) = &event.call {
            for op in ops {
                if let Op::End { session } | Op::Expire { session, .. } = op
                    && !is_spared(event)
                {
                    let (asked, done) = ending.entry(*session).or_insert((u64::MAX, u64::MAX));
                    (*asked, *done) = ((*asked).min(event.from), (*done).min(event.until));
                }
            }
        }
    }
    for event in events {
        let Call::Renew(session) = event.call else { continue };
        let (asked, done) = ending.get(&session).copied().unwrap_or((u64::MAX, u64::MAX));
        match event.answer {
            Answer::Beat if done < event.from => {
                return Err(format!("{session:?} had ended and was renewed: {event:?}"));
            }
            Answer::Ended if event.until < asked => {
                return Err(format!("{session:?} was not ended by anybody: {event:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether an expiry was refused. Each goes in a batch of its own.
fn is_spared(event: &Event) -> bool {
    let (Call::Apply(ops), Answer::Applied(applied)) = (&event.call, &event.answer) else { return false };
    matches!((&ops[0], applied.outcomes[0]), (Op::Expire { .. }, Outcome::Refused(_)))
}

struct Search<'a> {
    /// Batches that changed something, by the revision that they made.
    known: BTreeMap<u64, &'a Event>,
    /// What was read, or changed nothing, by revision.
    seen: BTreeMap<u64, Vec<&'a Event>>,
    /// Batches without an answer, after which revision they were made, and which one they made at the latest.
    unknown: Vec<(u64, u64, &'a Event)>,
    /// Sessions that wanted to lead, and after which revision they first asked.
    leaders: BTreeMap<SessionId, u64>,
    /// Who leads, where a scan shows it.
    shown: BTreeMap<u64, GroupView>,
    /// The lowest term that anybody named. A group's first one is above a clock, and those after it follow one by one.
    term: Option<Term>,
    last: u64,
}

#[derive(Clone, Default)]
struct Place {
    ledger: Ledger,
    used: BTreeSet<usize>,
    /// Keys whose grant nobody was told, so that the ledger here has a token that is at most the true one; and the true
    /// one, once a scan has shown it.
    guessed: BTreeMap<Key, Option<Token>>,
    /// Keys of which a token was ever guessed: what is held against them may name it.
    blurred: BTreeSet<Key>,
    /// What sessions were shown to have joined after: where a token was guessed before, the ledger here has one that is at
    /// most the true one.
    joined: BTreeMap<SessionId, Token>,
    /// When keys were shown to have been declared: where an addition was tried that nobody was told of, the ledger here may
    /// count otherwise.
    since: BTreeMap<Key, u64>,
    /// The highest token that a scan has shown.
    least: Token,
    /// When a session last ended, which decides about joins.
    ended: u64,
    /// Whether something else than an addition was tried since the last revision of which anything is known.
    past_adding: bool,
}

impl<'a> Search<'a> {
    fn new(events: &[&'a Event]) -> Result<Self, String> {
        let mut search = Search {
            known: BTreeMap::new(),
            seen: BTreeMap::new(),
            unknown: Vec::new(),
            leaders: BTreeMap::new(),
            shown: BTreeMap::new(),
            term: events.iter().flat_map(|event| event.terms()).min(),
            last: 0,
        };
        let before = |event: &Event| {
            let before = events.iter().filter(|other| other.until < event.from).filter_map(|other| other.revision());
            before.max().unwrap_or(0)
        };
        for event in events {
            match (&event.call, event.revision()) {
                // Calls are in the order in which they were made, so the first one counts.
                (Call::Take(session), _) => _ = search.leaders.entry(*session).or_insert_with(|| before(event)),
                (Call::Apply(_), None) => {
                    if let Some((after, until)) = window(event, events) {
                        search.unknown.push((after.max(before(event)), until, event));
                    }
                }
                (_, Some(revision)) => {
                    search.last = search.last.max(revision);
                    if let Answer::Page(page) = &event.answer {
                        search.shown.insert(revision, page.group);
                    }
                    if !event.changes() {
                        search.seen.entry(revision).or_default().push(event);
                    } else if let Some(other) = search.known.insert(revision, event) {
                        return Err(format!("revision {revision} was made twice: by {other:?} and by {event:?}"));
                    }
                }
                _ => {}
            }
        }
        Ok(search)
    }

    /// How many revisions it went through, or `None` where it was given up.
    fn run(&self) -> Result<Option<u64>, String> {
        let mut stack = vec![Place::default()];
        let mut known = HashSet::new();
        let mut deepest = (0, "nothing fits".to_owned());
        let mut steps = 0;
        'places: while let Some(mut place) = stack.pop() {
            loop {
                steps += 1;
                if steps > STEPS + self.last as usize {
                    return Ok(None);
                }
                let revision = place.ledger.revision().0;
                if let Err(problem) = self.agrees(&mut place) {
                    if revision >= deepest.0 {
                        deepest = (revision, problem);
                    }
                    continue 'places;
                }
                if revision >= self.last {
                    return Ok(Some(revision));
                }
                if self.seen.contains_key(&revision) {
                    place.past_adding = false;
                }
                let Some(event) = self.known.get(&(revision + 1)) else { break };
                place.past_adding = false;
                if let Err(problem) = place.answered(event) {
                    if revision >= deepest.0 {
                        deepest = (revision, problem);
                    }
                    continue 'places;
                }
            }
            if known.insert(place.hash()) {
                let before = stack.len();
                self.gap(&place, &mut stack);
                let revision = place.ledger.revision().0;
                if stack.len() == before && revision >= deepest.0 {
                    deepest = (revision, "nobody can have made the next revision".into());
                }
            }
        }
        Err(format!("no ledger gives these answers: after revision {} of {}: {}", deepest.0, self.last, deepest.1))
    }

    /// All that may come next where no answer says it.
    ///
    /// An addition in its [`window`] changes nothing for anybody else, and between two revisions of which something is known
    /// nobody sees what comes first. So there additions are tried before all else, and whichever must be there first before
    /// other ones: every order that gives the answers is as good as one of those.
    fn gap(&self, place: &Place, stack: &mut Vec<Place>) {
        let revision = place.ledger.revision().0;
        let group = place.ledger.group();
        let shown = self.shown.range(revision + 1..).next().map(|(_, shown)| shown);
        let mut offer = |next: Place| {
            if next.ledger.revision().0 == revision + 1
                && shown.is_none_or(|shown| leads_to(next.ledger.group(), *shown))
            {
                stack.push(next);
            }
        };
        let asked = |(session, after): &(&SessionId, &u64)| group.leader != Some(**session) && **after <= revision;
        for (session, _) in self.leaders.iter().filter(asked) {
            for floor in self.floors(group.term) {
                let mut next = Place { past_adding: true, ..place.clone() };
                next.ledger.lead(*session, floor);
                offer(next);
            }
        }
        if let Some(leader) = group.leader {
            let mut next = Place { past_adding: true, ..place.clone() };
            next.ledger.resign(leader, group.term);
            offer(next);
        }
        let open = |(at, (after, until, _)): &(usize, &(u64, u64, &Event))| {
            (*after..*until).contains(&revision) && !place.used.contains(at)
        };
        let (adding, others): (Vec<_>, Vec<_>) =
            self.unknown.iter().enumerate().filter(open).partition(|(_, (_, _, event))| adds(event));
        let adding = adding.into_iter().min_by_key(|(_, (_, until, _))| *until).filter(|_| !place.past_adding);
        for (at, (_, _, event)) in others.into_iter().chain(adding) {
            if let Call::Apply(ops) = &event.call {
                let mut next = Place { past_adding: !adds(event), ..place.clone() };
                next.used.insert(at);
                let effects = next.apply(ops, Token(0));
                let granted = || granted(ops, &effects.outcomes).cloned();
                next.guessed.extend(granted().map(|key| (key, None)));
                next.blurred.extend(granted());
                offer(next);
            }
        }
    }

    /// Above which terms the next one may be. Nobody may have named the first ones.
    fn floors(&self, term: Term) -> Vec<Term> {
        match self.term {
            Some(Term(least)) if term == Term(0) => {
                (1..=UNNAMED.min(least)).map(|before| Term(least - before)).collect()
            }
            _ => vec![term],
        }
    }

    /// Whether what was read at this revision is what is there.
    fn agrees(&self, place: &mut Place) -> Result<(), String> {
        let seen = self.seen.get(&place.ledger.revision().0);
        seen.into_iter().flatten().try_for_each(|event| match &event.answer {
            Answer::Page(page) => place.holds(page),
            _ => place.clone().answered(event),
        })
    }
}

/// Where a batch without an answer can have been applied. What it adds is named once, and whoever ends that has seen it: in
/// a scan, or, where a session is expired, among the beats. So it was applied between a scan that does not show it and one
/// that does, and before an expiry of it; and not at all where there is neither.
fn window(event: &Event, events: &[&Event]) -> Option<(u64, u64)> {
    let Call::Apply(ops) = &event.call else { return None };
    let shows = |page: &Page| match &ops[0] {
        Op::Add(work) => Some(page.keys.iter().any(|view| view.key == work.key)),
        Op::Join { session, .. } => Some(page.sessions.iter().any(|view| view.session == *session)),
        _ => None,
    };
    let pages = || {
        events.iter().filter_map(|event| match &event.answer {
            Answer::Page(page) => shows(page).map(|shown| (page.revision.0, shown)),
            _ => None,
        })
    };
    if !matches!(ops[0], Op::Add(_) | Op::Join { .. }) {
        return Some((0, u64::MAX));
    }
    let expiries = events.iter().filter(|event| match (&event.call, &ops[0]) {
        (Call::Apply(others), Op::Join { session, .. }) => {
            matches!(&others[0], Op::Expire { session: expired, .. } if expired == session)
        }
        _ => false,
    });
    // Nobody knows when one without an answer was decided.
    let expiries = expiries.map(|event| event.revision().unwrap_or(u64::MAX));
    let first = pages().filter(|(_, shown)| *shown).map(|(revision, _)| revision).chain(expiries).min()?;
    if first == u64::MAX {
        return Some((0, first));
    }
    let last = pages().filter(|(revision, shown)| !shown && *revision < first).map(|(revision, _)| revision).max();
    Some((last.unwrap_or(0), first))
}

fn adds(event: &Event) -> bool {
    matches!(&event.call, Call::Apply(ops) if matches!(ops[0], Op::Add(_)))
}

/// Whether that can become what a later scan shows: terms rise, and whoever has lost a term does not get it back.
fn leads_to(group: GroupView, shown: GroupView) -> bool {
    group.term < shown.term || group.term == shown.term && (shown.leader.is_none() || group.leader == shown.leader)
}

/// The keys that were granted. A refused grant tells nothing of the token that the key has.
fn granted<'a>(ops: &'a [Op], outcomes: &'a [Outcome]) -> impl Iterator<Item = &'a Key> {
    ops.iter().zip(outcomes).filter_map(|(op, outcome)| match (op, outcome) {
        (Op::Assign { key, .. }, Outcome::Granted(_)) => Some(key),
        _ => None,
    })
}

impl Place {
    /// Of all that later answers can depend on, or two places would be taken for one that do not go on alike.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.page()).hash(&mut hasher);
        self.ledger.token().0.hash(&mut hasher);
        (self.ended, self.past_adding).hash(&mut hasher);
        format!("{:?} {:?} {:?} {:?}", self.guessed, self.blurred, self.joined, self.since).hash(&mut hasher);
        self.least.hash(&mut hasher);
        self.ledger.sessions().for_each(|view| view.joined.hash(&mut hasher));
        self.used.hash(&mut hasher);
        hasher.finish()
    }

    /// What a scan would show, but for tokens that were guessed.
    fn page(&self) -> Result<Page, String> {
        let page = self.ledger.scan(None).map_err(|error| error.to_string())?;
        Ok(self.comparable(page))
    }

    fn comparable(&self, mut page: Page) -> Page {
        // Their order is that of the places in which the ledger keeps them, and those are more than a scan shows.
        page.keys.sort_by(|one, other| one.key.cmp(&other.key));
        for view in &mut page.keys {
            view.since = 0;
            if let State::Assigned { token, .. } | State::Stopping { token, .. } = &mut view.state
                && self.guessed.contains_key(&view.key)
            {
                *token = Token(0);
            }
            if self.blurred.contains(&view.key) {
                view.deaths.token = Token(0);
            }
        }
        page.sessions.iter_mut().for_each(|view| view.joined = Token(0));
        page
    }

    fn apply(&mut self, ops: &[Op], floor: Token) -> Effects {
        // Whatever is granted has a higher one than what was shown.
        let effects = self.ledger.apply(ops, floor.max(self.least));
        let ends = |change: &Change| matches!(change, Change::Session(view) if view.ended.is_some());
        if effects.batch.as_ref().is_some_and(|batch| batch.changes.iter().any(ends)) {
            self.ended = self.ledger.revision().0;
        }
        effects
    }

    /// Applies what was answered, and compares.
    fn answered(&mut self, event: &Event) -> Result<(), String> {
        let (Call::Apply(ops), Answer::Applied(applied)) = (&event.call, &event.answer) else { return Ok(()) };
        if applied.outcomes == [Outcome::Refused(Refusal::StillBeating)] {
            // The ledger knows no beats.
            return Ok(());
        }
        let first = applied.outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Granted(token) => Some(Token(token.0 - 1)),
            _ => None,
        });
        let last = self.ledger.token().max(self.least);
        if first.is_some_and(|first| first < last) {
            return Err(format!("a token that is not higher than {last:?}: {event:?}"));
        }
        let effects = self.apply(ops, first.unwrap_or(Token(0)));
        granted(ops, &applied.outcomes).for_each(|key| _ = self.guessed.remove(key));
        if effects.outcomes != applied.outcomes || self.ledger.revision() != applied.revision {
            let Revision(revision) = self.ledger.revision();
            return Err(format!("the ledger says {:?} at revision {revision} of {event:?}", effects.outcomes));
        }
        Ok(())
    }

    /// Compares what a scan showed, and learns tokens from it.
    fn holds(&mut self, page: &Page) -> Result<(), String> {
        let (ours, theirs) = (self.page()?, self.comparable(page.clone()));
        if ours == theirs {
            page.sessions.iter().try_for_each(|view| self.joined_after(view.session, view.joined))?;
            page.keys.iter().try_for_each(|view| self.declared(view))?;
            return page.keys.iter().try_for_each(|view| self.learn(&view.key, view.state));
        }
        let only = |a: &Page, b: &Page| {
            let keys = a.keys.iter().filter(|view| !b.keys.contains(view)).map(|view| format!("{view:?}"));
            let sessions = a.sessions.iter().filter(|view| !b.sessions.contains(view)).map(|view| format!("{view:?}"));
            keys.chain(sessions).collect::<Vec<_>>().join(", ")
        };
        Err(format!(
            "a scan at revision {} shows [{}] and {:?} where the ledger has [{}] and {:?}",
            page.revision.0,
            only(&theirs, &ours),
            theirs.group,
            only(&ours, &theirs),
            ours.group
        ))
    }

    /// A scan showed a key: where its token was guessed, it is known from here on.
    fn learn(&mut self, key: &Key, shown: State) -> Result<(), String> {
        let (Some(known), Some((_, token))) = (self.guessed.get_mut(key), shown.owner()) else { return Ok(()) };
        let ours = self.ledger.record(key).and_then(|record| record.view.state.owner());
        let least = known.or(ours.map(|(_, token)| token)).unwrap_or_default();
        if token < least || known.is_some_and(|known| known != token) {
            return Err(format!("{key:?} is shown with {token:?} where {least:?} was shown or is the least"));
        }
        *known = Some(token);
        self.least = self.least.max(token);
        Ok(())
    }

    /// A scan showed as the how-manieth a key was declared. Each is named once, so it stays so.
    fn declared(&mut self, shown: &KeyView) -> Result<(), String> {
        let ours = || self.ledger.record(&shown.key).map(|record| record.view.since);
        let known = self.since.get(&shown.key).copied().or_else(|| ours().filter(|_| self.used.is_empty()));
        if known.is_some_and(|known| known != shown.since) {
            return Err(format!("{:?} is shown as number {} where it was {known:?}", shown.key, shown.since));
        }
        self.since.insert(shown.key.clone(), shown.since);
        Ok(())
    }

    /// A scan showed after which token a session has joined.
    fn joined_after(&mut self, session: SessionId, shown: Token) -> Result<(), String> {
        let ours = self.ledger.session(session).map_or(Token(0), |view| view.joined);
        let known = self.joined.get(&session).copied().or_else(|| self.blurred.is_empty().then_some(ours));
        if shown < ours || known.is_some_and(|known| known != shown) {
            return Err(format!(
                "{session:?} is shown after {shown:?} where {known:?} was shown, or {ours:?} is the least"
            ));
        }
        self.joined.insert(session, shown);
        self.least = self.least.max(shown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use divider_support::ops::{add, join};

    use super::*;

    /// What a true ledger answers to these batches, and to a scan after each.
    fn truth(batches: &[Vec<Op>]) -> (CallHistory, Ledger) {
        let (mut history, mut ledger) = (CallHistory::default(), Ledger::new());
        for ops in batches {
            apply(&mut history, &mut ledger, ops, 0, true);
            scan(&mut history, &ledger);
        }
        (history, ledger)
    }

    /// A batch is applied as the entry of this index, and its caller is told or is not.
    fn apply(history: &mut CallHistory, ledger: &mut Ledger, ops: &[Op], index: u64, told: bool) -> Vec<Outcome> {
        let number = history.asked(0, Call::Apply(ops.to_vec()));
        let outcomes = ledger.apply(ops, Token(index)).outcomes;
        let applied = Applied { outcomes: outcomes.clone(), revision: ledger.revision() };
        history.answered(number, if told { Answer::Applied(applied) } else { Answer::Unknown });
        outcomes
    }

    /// Two keys, and a session that leads.
    fn led() -> (CallHistory, Ledger, impl Fn(&str) -> Op) {
        let session = SessionId(uuid::Uuid::from_u128(1));
        let (mut history, mut ledger) = truth(&[vec![join(session, Revision(0))], vec![add("a"), add("b")]]);
        let number = history.asked(0, Call::Take(session));
        let (term, _) = ledger.lead(session, divider_core::Term(0));
        history.answered(number, Answer::PollReply);
        scan(&mut history, &ledger);
        let assign = move |key: &str| Op::Assign { term: term.unwrap(), key: Key::new(key).unwrap(), session };
        (history, ledger, assign)
    }

    fn scan(history: &mut CallHistory, ledger: &Ledger) {
        let number = history.asked(0, Call::Scan);
        history.answered(number, Answer::Page(Box::new(ledger.scan(None).unwrap())));
    }

    #[test]
    fn what_a_ledger_says_is_believed() {
        let (history, _) =
            truth(&[vec![add("a")], vec![add("b"), add("c")], vec![Op::Remove { key: Key::new("a").unwrap() }]]);
        assert_eq!(history.check(1), Ok(Verdict { revisions: 3, undecided: 0 }));
    }

    #[test]
    fn an_acknowledged_batch_that_is_not_there_any_more_is_noticed() {
        let (mut history, _) = truth(&[vec![add("a")], vec![add("b")]]);
        let (_, shorter) = truth(&[vec![add("a")]]);
        scan(&mut history, &shorter);
        assert!(history.check(1).unwrap_err().contains("had been answered before"));
    }

    #[test]
    fn one_acknowledged_batch_in_the_place_of_another_is_noticed() {
        let (mut history, _) = truth(&[vec![add("a")], vec![add("b")]]);
        let (_, other) = truth(&[vec![add("a")], vec![add("c")]]);
        scan(&mut history, &other);
        assert!(history.check(1).unwrap_err().contains("no ledger gives these answers"));
    }

    #[test]
    fn a_batch_without_an_answer_may_have_been_applied_and_may_not() {
        for applied in [false, true] {
            let (mut history, mut ledger) = truth(&[vec![add("a")]]);
            let number = history.asked(0, Call::Apply(vec![add("b")]));
            history.answered(number, Answer::Unknown);
            if applied {
                ledger.apply(&[add("b")], Token(0));
            }
            ledger.apply(&[add("c")], Token(0));
            let number = history.asked(0, Call::Apply(vec![add("c")]));
            let outcomes = vec![Outcome::Done];
            history.answered(number, Answer::Applied(Applied { outcomes, revision: ledger.revision() }));
            scan(&mut history, &ledger);
            assert_eq!(history.check(1), Ok(Verdict { revisions: 2 + u64::from(applied), undecided: 0 }));
            // It was not applied before it was asked.
            let (mut early, _) = truth(&[vec![add("b")]]);
            let number = early.asked(0, Call::Apply(vec![add("b")]));
            early.answered(number, Answer::Unknown);
            early.events.remove(0);
            assert!(early.check(1).unwrap_err().contains("nobody can have made the next revision"));
        }
    }

    /// Seeds 5910 and 6265: the checker took the token for known, since a batch with an answer had named the key.
    #[test]
    fn a_refused_grant_tells_nothing_of_the_token_that_the_key_was_granted_under() {
        let (mut history, mut ledger, assign) = led();
        apply(&mut history, &mut ledger, &[assign("a")], 20, false);
        let outcomes = apply(&mut history, &mut ledger, &[assign("a"), assign("b")], 24, true);
        assert!(matches!(outcomes[..], [Outcome::Refused(_), Outcome::Granted(Token(25))]));
        scan(&mut history, &ledger);
        assert_eq!(history.check(1), Ok(Verdict { revisions: 5, undecided: 0 }));
    }

    #[test]
    fn a_token_that_only_scans_show_is_the_same_in_each_and_is_not_granted_again() {
        for (shown, next, can_be) in [(21, 25, true), (22, 25, false), (21, 21, false)] {
            let (mut history, mut ledger, assign) = led();
            let mut other = ledger.clone();
            apply(&mut history, &mut ledger, &[assign("a")], 20, false);
            scan(&mut history, &ledger);
            // Another replica's turn.
            other.apply(&[assign("a")], Token(shown - 1));
            scan(&mut history, &other);
            let number = history.asked(0, Call::Apply(vec![assign("b")]));
            let (outcomes, revision) = (vec![Outcome::Granted(Token(next))], Revision(ledger.revision().0 + 1));
            history.answered(number, Answer::Applied(Applied { outcomes, revision }));
            match history.check(1) {
                Ok(verdict) => assert!(can_be && verdict == Verdict { revisions: 5, undecided: 0 }, "{verdict:?}"),
                Err(problem) => assert!(!can_be && problem.contains("no ledger gives these answers"), "{problem}"),
            }
        }
    }

    /// Both orders of what nobody was told of lead to the same scan, but not to the same answer to a join.
    #[test]
    fn orders_that_differ_only_in_when_a_session_ended_are_both_tried() {
        let session = |number| SessionId(uuid::Uuid::from_u128(number));
        let end = |number| Op::End { session: session(number) };
        for ended_first in [false, true] {
            let (mut history, mut ledger) =
                truth(&[vec![join(session(1), Revision(0)), join(session(2), Revision(0))], vec![end(1)]]);
            let asked: [Vec<Op>; 3] = [vec![end(2)], vec![add("a")], vec![add("b")]];
            let numbers = asked.clone().map(|ops| history.asked(0, Call::Apply(ops)));
            let [first, second] = if ended_first { [0, 1] } else { [1, 0] };
            ledger.apply(&asked[first], Token(0));
            // Refused, so it says which revision there is and nothing else.
            apply(&mut history, &mut ledger, &[join(session(4), Revision(0))], 0, true);
            ledger.apply(&asked[second], Token(0));
            apply(&mut history, &mut ledger, &[join(session(4), Revision(0))], 0, true);
            ledger.apply(&asked[2], Token(0));
            numbers.into_iter().for_each(|number| history.answered(number, Answer::Unknown));
            let outcomes = apply(&mut history, &mut ledger, &[join(session(4), Revision(3))], 0, true);
            assert_eq!(outcomes == [Outcome::Done], ended_first);
            scan(&mut history, &ledger);
            assert_eq!(history.check(1), Ok(Verdict { revisions: 5 + u64::from(ended_first), undecided: 0 }));
        }
    }

    #[test]
    fn a_join_that_nobody_was_told_of_is_known_by_the_expiry_of_its_session() {
        let session = SessionId(uuid::Uuid::from_u128(1));
        let leader = SessionId(uuid::Uuid::from_u128(2));
        let join = |session| join(session, Revision(0));
        let (mut history, mut ledger) = (CallHistory::default(), Ledger::new());
        apply(&mut history, &mut ledger, &[join(leader)], 1, true);
        apply(&mut history, &mut ledger, &[join(session)], 2, false);
        let number = history.asked(0, Call::Take(leader));
        let (term, _) = ledger.lead(leader, Default::default());
        history.answered(number, Answer::PollReply);
        let expire = Op::Expire {
            term: term.unwrap(),
            session,
            beat: divider_core::Beat(0),
            verdict: divider_core::Verdict::young(Token(0)),
        };
        assert_eq!(apply(&mut history, &mut ledger, &[expire], 3, true), [Outcome::Done]);
        scan(&mut history, &ledger);
        assert_eq!(history.check(1), Ok(Verdict { revisions: ledger.revision().0, undecided: 0 }));
    }

    #[test]
    fn a_session_that_has_ended_is_not_renewed() {
        let session = SessionId(uuid::Uuid::from_u128(1));
        let mut history = CallHistory::default();
        let end = history.asked(0, Call::Apply(vec![Op::End { session }]));
        history.answered(end, Answer::Applied(Applied { outcomes: vec![Outcome::Done], revision: Revision(1) }));
        let renew = history.asked(0, Call::Renew(session));
        history.answered(renew, Answer::Beat);
        assert!(history.check(1).unwrap_err().contains("was renewed"));
    }
}
