//! The leader's side of the protocol, as a pure state machine: it watches the group through its change feed, decides who
//! is dead and who gets what, and says so as ops.
//!
//! # Why decisions are data
//! A leader proposes single moves, and the ledger checks each against the term and the key's state. Nobody else repeats
//! the planning. So a leader that is wrong, late or deposed can do no harm, and two versions of the planner can work in
//! one group.
//!
//! # How it keeps up
//! Its picture of the group advances only by whole batches in order: what it proposes comes back to it through the feed
//! like everybody else's changes. Between proposal and feed the planner remembers what was proposed. A refusal says that
//! the picture was old; the key is looked at again once the picture has caught up.

mod index;
mod news;
mod suspects;
mod token_ages;
mod watch;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub(crate) use news::News;
pub use token_ages::TokenAges;

use crate::{
    clock::Instant,
    config::{NodeConfig, Quarantine},
    ids::{Beat, Key, NodeId, Revision, SessionId, Term, Token},
    limits,
    op::{Batch, Blame, Change, GroupView, Op, Outcome, Refusal, SessionView, Verdict},
    pace,
    planner::{KeyIx, NodeIx, Planner},
    record::{Deaths, KeyView},
    store::Page,
};
use index::{GroupIndex, Placement};
use news::Newsroom;
use suspects::SuspectTracker;
use watch::Watches;

/// How far ledger time may lag behind while a key rests.
const LAG: Duration = Duration::from_secs(1);

/// Two readings of the time, taken together.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines.
    pub mono: Instant,
    /// For scheduled work.
    pub unix_ms: u64,
}

/// What to do with a batch from the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedOutcome {
    /// It was the next one.
    Applied,
    /// It is known already.
    Known,
    /// Something before it is missing: read the changes.
    Gap,
}

/// A session of a leader before this one, as it was watched from outside.
#[derive(Clone, Copy, Debug)]
pub struct Deposed {
    /// The old leader's session.
    pub session: SessionId,
    /// Its beat, when it was seen last.
    pub beat: Beat,
    /// Since when the beat has not moved.
    pub since: Instant,
    /// Whether the store failed to answer meanwhile: then the silence may be the store's.
    pub unanswered: bool,
}

/// The leader's side of the protocol, as a pure state machine: fed with the group's changes, it proposes ops.
#[derive(Debug)]
pub struct Leader {
    config: NodeConfig,
    term: Term,
    revision: Revision,
    loaded: bool,
    group: GroupView,
    grants_held_since: Option<Instant>,
    /// The end of the hold has been proposed.
    resume_asked: bool,
    index: GroupIndex,
    watches: Watches,
    planner: Planner,
    /// Newcomers under the name of a node that may just have died: until when they are given nothing. A program that
    /// crashes on its start and is started again would otherwise be the emptiest node every time, get its own orphans
    /// back, and have them set aside for its own deaths.
    waiting: BTreeMap<SessionId, (SessionView, Instant)>,
    tracker: SuspectTracker,
    newsroom: Newsroom,
    /// Keys that were found free while the group was read, to be given out in the order in which they were declared.
    found: Vec<(u64, KeyIx)>,
    /// Up to when ledger time has been told of; `None` while no key rests.
    told_until: Option<Instant>,
    /// The format that all sessions read, where it is newer than the one that is written, and since when.
    newer: Option<(u16, Instant)>,
    /// Keys that await an op other than an assignment, or another look.
    chores: Vec<Chore>,
    /// Keys that are to move for the sake of balance, and are still to be revoked: part by part.
    moves: Vec<KeyIx>,
    /// How many are revoked at a time, and until when those of the last part are waited for.
    part: usize,
    part_until: Option<Instant>,
    /// Keys whose last op was refused or got no answer; they are looked at again when the picture has caught up.
    refused: Vec<KeyIx>,
    /// Of these, the ones that were refused twice running: they wait for the next tick.
    stubborn: BTreeSet<KeyIx>,
    /// Newcomers whose settling was proposed without an answer: it is proposed again after the next tick, since nothing else
    /// would do so.
    unsettled: Vec<SessionId>,
    catch_up_to: Revision,
    /// Room that is used again from one proposal to the next.
    assignments: Vec<(KeyIx, NodeIx)>,
    settled: Vec<NodeIx>,
}

/// A session that takes work, as a place for suspects.
struct Host {
    suspects: u64,
    affinity: u64,
    held: u32,
    session: SessionId,
    room: usize,
}

impl Host {
    /// The one with the fewest suspects for what it can take comes first.
    fn order(&self) -> (u64, u32, SessionId) {
        ((self.suspects + 1) * 1_000_000 / self.affinity.max(1), self.held, self.session)
    }
}

#[derive(Debug)]
enum Chore {
    Force(KeyIx),
    Settle(SessionId),
    Clear { k: KeyIx, blames_only: bool },
}

/// Ops, and what each is about.
#[derive(Debug, Default)]
pub struct Proposal {
    /// To be applied as one batch.
    pub ops: Vec<Op>,
    subjects: Vec<Subject>,
}

impl Proposal {
    /// Its ops one by one, for a store that does not take them as a batch.
    pub(crate) fn parts(self) -> impl Iterator<Item = Self> {
        let part = |(op, subject)| Self { ops: vec![op], subjects: vec![subject] };
        self.ops.into_iter().zip(self.subjects).map(part)
    }
}

#[derive(Clone, Debug)]
enum Subject {
    Key(KeyIx, Key),
    Session(SessionId),
    Group,
}

/// How long a key was between owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timing {
    /// From the request to stop to the next grant.
    Handoff(Duration),
    /// From the last sign of life of the old owner to the next grant.
    Takeover(Duration),
}

/// How many keys stand where, and how far the picture goes, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// All keys.
    pub registered: usize,
    /// Without an owner, and due.
    pub pending: usize,
    /// Asked to stop.
    pub stopping: usize,
    /// Set aside.
    pub quarantined: usize,
    /// Not due yet.
    pub scheduled: usize,
    /// Without an owner, and held back for a while: their owners keep dying.
    pub held_back: usize,
}

impl Leader {
    /// A leader that knows nothing yet: feed it a whole scan, then the changes since its first page, then call
    /// [`loaded`](Self::loaded).
    pub fn new(config: NodeConfig, term: Term, deposed: Option<Deposed>) -> Self {
        let planner = Planner::new(config.balance, config.max_in_flight);
        Self {
            term,
            revision: Revision(0),
            loaded: false,
            group: GroupView::default(),
            grants_held_since: None,
            resume_asked: false,
            index: GroupIndex::default(),
            watches: Watches::new(deposed, config.lock_delay),
            planner,
            waiting: BTreeMap::new(),
            tracker: SuspectTracker::new(&config),
            newsroom: Newsroom::default(),
            found: Vec::new(),
            told_until: None,
            newer: None,
            chores: Vec::new(),
            moves: Vec::new(),
            part: 0,
            part_until: None,
            refused: Vec::new(),
            stubborn: BTreeSet::new(),
            unsettled: Vec::new(),
            catch_up_to: Revision(0),
            assignments: Vec::new(),
            settled: Vec::new(),
            config,
        }
    }

    /// The term it leads in.
    pub fn term(&self) -> Term {
        self.term
    }

    /// How far its picture goes.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether a read of the changes is due, because an answer said that there are newer ones.
    pub fn is_behind(&self) -> bool {
        self.revision < self.catch_up_to
    }

    /// Somebody has seen the group at `revision`.
    pub fn seen(&mut self, revision: Revision) {
        self.catch_up_to = self.catch_up_to.max(revision);
    }

    /// Takes in one page of a scan. The first sets the revision that the changes must follow on.
    pub fn page(&mut self, page: Page, now: Now, first: bool) {
        if first {
            self.revision = page.revision;
            self.set_group(page.group, now);
        }
        for session in page.sessions {
            self.change(Change::Session(session), now);
        }
        for key in page.keys {
            self.key(key, now);
        }
        self.catch_up_to = self.catch_up_to.max(page.revision);
    }

    /// The scan and the changes since are in: it may decide from now on.
    pub fn loaded(&mut self, now: Now) {
        self.loaded = true;
        // First come, first served, also where a leader does not know who came first.
        self.found.sort_unstable();
        for (_, k) in std::mem::take(&mut self.found) {
            self.place(k, now);
        }
    }

    /// Takes in a batch of the feed.
    pub fn feed(&mut self, batch: Batch, now: Now) -> FeedOutcome {
        if batch.revision <= self.revision {
            return FeedOutcome::Known;
        }
        if batch.revision.0 != self.revision.0 + 1 {
            self.seen(batch.revision);
            return FeedOutcome::Gap;
        }
        self.revision = batch.revision;
        for change in batch.changes {
            self.change(change, now);
        }
        self.look_again_at_refused(now);
        FeedOutcome::Applied
    }

    fn change(&mut self, change: Change, now: Now) {
        match change {
            Change::Key(view) => self.key(view, now),
            Change::KeyGone(key) => {
                if let Some(k) = self.index.remove_key(&key) {
                    self.stubborn.remove(&k);
                    self.tracker.forget(k);
                    self.planner.remove_key(k);
                }
            }
            Change::Session(view) => self.session(view, now),
            Change::SessionGone(session) => {
                self.newsroom.ended(session, 0);
                self.watches.forget(session);
                self.waiting.remove(&session);
                self.index.remove_session(session, &mut self.planner);
                self.review_waiting(now);
            }
            Change::Group(group) => self.set_group(group, now),
        }
    }

    fn session(&mut self, view: SessionView, now: Now) {
        let (session, ended) = (view.session, view.ended.is_some());
        let held = self.index.node_of(session).map_or(0, |n| self.planner.held(n));
        self.newsroom.session(&view, held, self.loaded);
        if !ended {
            self.watches.watch(session, Duration::from_millis(view.lease_ms.into()), now.mono);
        }
        // Only a session that this leader has seen join is sure to hold nothing yet.
        let joins = self.loaded && !ended && !self.index.knows(session);
        if let Some((waiting, _)) = self.waiting.get_mut(&session).filter(|_| !ended) {
            *waiting = view;
        } else if joins && (self.index.has_node(&view.node) || self.waiting.values().any(|(w, _)| w.node == view.node))
        {
            let until = now.mono + Duration::from_millis(view.lease_ms.into()) * 2;
            self.waiting.insert(session, (view, until));
        } else {
            self.waiting.remove(&session);
            let silent_since = self.watches.since(session).unwrap_or(now.mono);
            self.index.set_session(view, silent_since, &mut self.planner);
        }
        if ended {
            self.watches.forget(session);
            self.tracker.ended(session, now.mono);
            for k in self.index.unwanted() {
                self.place(k, now);
            }
        }
        self.review_waiting(now);
    }

    /// Lets newcomers in whose time has come, or all of them where nobody else takes work.
    fn review_waiting(&mut self, now: Now) {
        let needed = !self.waiting.is_empty() && !self.index.takes_work();
        let ready = |(_, until): &(SessionView, Instant)| needed || *until <= now.mono;
        let over: Vec<SessionId> = self.waiting.iter().filter(|(_, w)| ready(w)).map(|(session, _)| *session).collect();
        for session in over {
            if let Some((view, _)) = self.waiting.remove(&session) {
                self.index.set_session(view, now.mono, &mut self.planner);
            }
        }
    }

    fn key(&mut self, view: KeyView, now: Now) {
        let since = view.since;
        let k = self.index.set_key(view, &mut self.planner, now.mono, self.group.time_ms);
        self.stubborn.remove(&k);
        self.tracker.note(k, self.index.deaths(k).count, now.mono);
        if self.loaded || !matches!(self.index.placement(k), Placement::Free { .. }) {
            self.place(k, now);
        } else {
            self.found.push((since, k));
        }
    }

    fn set_group(&mut self, group: GroupView, now: Now) {
        self.group = group;
        self.grants_held_since = group.grants_held.then(|| self.grants_held_since.unwrap_or(now.mono));
        self.resume_asked = false;
    }

    /// Tells the planner how a key stands.
    fn place(&mut self, k: KeyIx, now: Now) {
        // It waits for one thing at a time.
        self.tracker.waits_no_more(k);
        match self.index.placement(k) {
            Placement::Owned { node, stopping } => {
                // To be owned again by the same node would mean that the move was refused.
                if !stopping || self.planner.owner(k) != Some(node) {
                    self.planner.own(k, node);
                }
                if stopping {
                    self.planner.stopping(k);
                    self.index.stopping_since(k, now.mono);
                }
                // A suspect that is moved before it has lived or died there proves nothing.
                self.planner.pin(k, self.tracker.is_suspect(k));
                if let Some((session, _)) = self.index.owner(k) {
                    self.tracker.runs(k, session, self.index.deaths(k).count, now.mono);
                }
            }
            Placement::Free { .. } if self.index.is_unwanted(k) => {
                self.planner.park(k);
                // Nobody will confirm.
                self.chores.push(Chore::Force(k));
            }
            Placement::Free { due_ms, .. } if due_ms > now.unix_ms => {
                self.planner.park(k);
                self.index.schedule(k, due_ms);
            }
            Placement::Free { rests_until: Some(until), .. } if until > now.mono => {
                self.planner.park(k);
                self.index.rest(k, until);
                self.told_until.get_or_insert(now.mono);
            }
            Placement::Free { .. } if is_held_back(&self.tracker, &self.index, k, now.mono) => {
                self.planner.park(k);
                self.tracker.wait(k);
            }
            Placement::Free { avoid, .. } => self.planner.ready(k, avoid),
            Placement::Quarantined => {
                self.planner.park(k);
                self.tracker.forget(k);
            }
            Placement::Gone => {}
        }
    }

    /// Takes in the beats of all living sessions, which were read just before `now`.
    pub fn beats(&mut self, beats: &[(SessionId, Beat)], now: Now) {
        self.watches.beats(beats, now.mono);
    }

    /// Takes in how long sessions have been silent before this leader watched them, which was read just before `now` and
    /// after their beats.
    pub fn silences(&mut self, silences: &[(SessionId, Beat, Duration)], now: Now) {
        for (session, beat, silent) in silences {
            self.watches.silent_since(*session, *beat, now.mono - *silent);
        }
    }

    /// Takes in which sessions' connections the store has seen end, which was read just before `now`.
    pub fn gone(&mut self, gone: &[SessionId], now: Now) {
        self.watches.gone(gone, now.mono);
    }

    /// Time has passed: looks again at what waits for time.
    pub fn tick(&mut self, now: Now) {
        self.review_waiting(now);
        self.chores.extend(self.unsettled.drain(..).map(Chore::Settle));
        self.refused.extend(std::mem::take(&mut self.stubborn));
        self.look_again_at_refused(now);
        while let Some(k) = self.index.next_due(now.unix_ms, now.mono) {
            self.place(k, now);
        }
        let survivors = self.tracker.survivors(now.mono, |s| self.watches.since(s).unwrap_or(now.mono)).into_iter();
        self.chores.extend(survivors.map(|k| Chore::Clear { k, blames_only: false }));
        self.look_for_newer_format(now.mono);
        if let Some(limit) = self.config.stop_timeout {
            let overdue = self.index.stopping_longer_than(limit, now.mono);
            self.chores.extend(overdue.into_iter().map(Chore::Force));
        }
    }

    fn look_again_at_refused(&mut self, now: Now) {
        if self.refused.is_empty() || self.is_behind() {
            return;
        }
        for k in std::mem::take(&mut self.refused) {
            self.place(k, now);
        }
    }

    /// When something is due that no event announces. `None` where nothing is.
    pub fn next_wake(&self, now: Now) -> Option<Duration> {
        let waiting = self.waiting.values().map(|(_, until)| *until).min();
        let rested = self.index.rested_at();
        let tracker = self.tracker.next(now.mono);
        let mono = [
            self.watches.next_deadline(),
            self.grants_held_until(),
            waiting,
            self.next_part(now.mono),
            rested,
            tracker,
        ];
        let due = self.index.due_ms().map(|ms| Duration::from_millis(ms.saturating_sub(now.unix_ms)));
        mono.into_iter().flatten().map(|at| at.since(now.mono)).chain(due).min()
    }

    /// A lease after the hold began, everybody who held something before has either joined again or fenced itself.
    fn grants_held_until(&self) -> Option<Instant> {
        let lease = self.index.longest_lease().max(self.config.lease);
        self.grants_held_since.filter(|_| !self.resume_asked).map(|since| since + lease)
    }

    /// What is to be done now, at most `max` ops. Empty where there is nothing. Each proposal must come back through
    /// [`answered`](Self::answered) or [`unanswered`](Self::unanswered) before the next is asked for.
    pub fn propose(&mut self, now: Now, max: usize, token_ages: &TokenAges) -> Proposal {
        let mut proposal = Proposal::default();
        if !self.loaded {
            return proposal;
        }
        if self.grants_held_until().is_some_and(|until| until <= now.mono) {
            self.resume_asked = true;
            proposal.push(Op::ResumeGrants { term: self.term }, Subject::Group);
        }
        self.keep_time(&mut proposal, now.mono);
        self.step(&mut proposal, now.mono);
        let left = max.saturating_sub(proposal.ops.len());
        self.expire(&mut proposal, now, left, token_ages);
        // Keys without an owner come first; what they do not fill is left for balance.
        if !self.group.grants_held {
            self.assign(&mut proposal, max, now);
            self.try_suspects(&mut proposal, max, now);
            if proposal.ops.len() < max {
                let (held_back, until) = self.tracker.held_back();
                self.newsroom.held_back(held_back, until, now.mono);
            }
        }
        if proposal.ops.len() < max {
            self.do_chores(&mut proposal, max, now.mono);
        }
        proposal
    }

    fn expire(&mut self, proposal: &mut Proposal, now: Now, max: usize, token_ages: &TokenAges) {
        for (session, beat, since) in self.watches.silent(now.mono, max) {
            let verdict = self.verdict(session, since, now.mono, token_ages);
            self.newsroom.silent(session, now.mono.since(since));
            let op = Op::Expire { term: self.term, session, beat, verdict };
            proposal.push(op, Subject::Session(session));
        }
    }

    /// What the death of a session says about the keys that it had.
    fn verdict(&mut self, session: SessionId, since: Instant, now: Instant, token_ages: &TokenAges) -> Verdict {
        let Some(quarantine) = self.config.quarantine else { return Verdict::NONE };
        let healthy_below = token_ages.issued_by(since - quarantine.within);
        let nothing = self.watches.was_deaf(session, now) || self.is_shared(session, since, now);
        if let Some(name) = self.index.name(session).cloned().filter(|_| !nothing) {
            self.tracker.note_death(name, now);
        }
        let young = |k: KeyIx| Some((k, self.index.owner(k)?.1)).filter(|(_, token)| *token >= healthy_below);
        let aboard: Vec<(KeyIx, Token)> = self.tracker.aboard(session).filter_map(young).collect();
        let isolates = self.tracker.isolates(now);
        if isolates && !nothing && self.tracker.is_unexplained(session, since, now) {
            // Processes die without the suspects, too.
            let blamed = self.tracker.suspects().filter(|k| self.index.deaths(*k).alone > 0);
            self.chores.extend(blamed.map(|k| Chore::Clear { k, blames_only: true }));
        }
        let blame = match aboard[..] {
            _ if nothing => Blame::Nobody,
            _ if !isolates => Blame::Young,
            // Whether processes die without the suspect is known only where one was there before the grant, and lives.
            // It was given out without a time of quiet before.
            [(k, _)] if !is_to_be_tried(quarantine, self.index.deaths(k)) => Blame::Suspects(quarantine.suspect),
            [(k, only)] if self.index.has_witness(session, only) => {
                let given = self.tracker.given(k).unwrap_or(now);
                let deaths = self.index.deaths(k);
                let tells = !needs_lived(deaths) || self.has_lived(session, deaths, given);
                if tells { Blame::Only(only) } else { Blame::Suspects(quarantine.suspect) }
            }
            [_] => Blame::Nobody,
            [] => Blame::Young,
            _ => Blame::Suspects(quarantine.suspect),
        };
        Verdict { healthy_below, blame }
    }

    /// Whether most of the group fell silent at the same time. Whoever came back under a name of those counts once.
    fn is_shared(&mut self, session: SessionId, since: Instant, now: Instant) -> bool {
        let silent = self.watches.silent_with(session, since, now);
        let views = || self.index.sessions().chain(self.waiting.values().map(|(view, _)| view));
        let names: BTreeSet<&NodeId> = views().filter(|v| silent.contains(&v.session)).map(|v| &v.node).collect();
        let alive = |v: &&SessionView| v.ended.is_none() && !silent.contains(&v.session) && !names.contains(&v.node);
        let others = views().filter(alive).count();
        // Two of three may be two keys that kill.
        silent.len() >= 2 && others == 0 || silent.len() >= 3 && silent.len() > others
    }

    /// Lets ledger time follow this leader's clock while a key rests.
    fn keep_time(&mut self, proposal: &mut Proposal, now: Instant) {
        if self.index.rested_at().is_none() {
            self.told_until = None;
        }
        let Some(told) = self.told_until else { return };
        let elapsed = now.since(told);
        if elapsed >= LAG {
            self.told_until = Some(now);
            let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).min(limits::MAX_ADVANCE_MS);
            proposal.push(Op::Advance { term: self.term, elapsed_ms }, Subject::Group);
        }
    }

    /// How many keys have had a death alone that is still held against them. A single one beside another that has had more
    /// does not count: two keys that kill must not keep each other from being set aside.
    fn blamed(&self) -> u32 {
        let alone = self.tracker.suspects().map(|k| self.index.deaths(k).alone).filter(|alone| *alone > 0);
        let alone: Vec<_> = alone.collect();
        let blamed = if alone.len() == 2 && alone.contains(&1) { 1 } else { alone.len() };
        u32::try_from(blamed).unwrap_or(u32::MAX)
    }

    fn look_for_newer_format(&mut self, now: Instant) {
        let waiting = self.waiting.values().map(|(view, _)| view.reads);
        let newer = self.index.lowest_reads().into_iter().chain(waiting).min();
        let newer = newer.filter(|format| *format > self.group.format);
        if self.newer.map(|(format, _)| format) != newer {
            self.newer = newer.map(|format| (format, now));
        }
    }

    /// Lets the group be written in a newer format, once all have been able to read it for long enough.
    fn step(&mut self, proposal: &mut Proposal, now: Instant) {
        if let Some((format, since)) = self.newer
            && since + self.config.step_after <= now
        {
            // Proposed again after a tick, if nothing comes of it.
            self.newer = None;
            proposal.push(Op::Step { term: self.term, format }, Subject::Group);
        }
    }

    /// Gives out suspects, on at most half of the nodes, a batch to a node.
    fn try_suspects(&mut self, proposal: &mut Proposal, max: usize, now: Now) {
        for k in self.tracker.release(now.mono) {
            self.place(k, now);
        }
        self.deal(proposal, max, now);
        let hosts = self.hosts(now.mono);
        if hosts.is_empty() || !self.tracker.is_open(now.mono) {
            return;
        }
        let mut ready: Vec<(Deaths, KeyIx)> = self.tracker.waiting().map(|k| (self.index.deaths(k), k)).collect();
        let blamed = self.blamed();
        let convicted = ready.extract_if(.., |(deaths, _)| is_convicted(self.config.quarantine, *deaths, blamed));
        for (_, k) in convicted.collect::<Vec<_>>() {
            if let Some(key) = self.index.key(k).filter(|_| proposal.ops.len() < max) {
                self.tracker.forget(k);
                proposal.push(Op::Quarantine { term: self.term, key: key.clone() }, Subject::Key(k, key));
            }
        }
        let quarantine = self.config.quarantine;
        // The least likely first. Of those that have died alone the most likely: where two took turns, each would kill the
        // nodes that the other needs as witnesses.
        ready.sort_by_key(|(deaths, _)| (deaths.alone > 0, Reverse(deaths.alone), deaths.count));
        let tried = ready.iter().filter(|(deaths, _)| has_died_so(quarantine, *deaths)).count();
        let tried = if tried > suspects::FEW { 0 } else { tried };
        let apart = |deaths| tried > 0 && has_died_so(quarantine, deaths);
        // At most half of the group's, so that the others show what happens without.
        let mut most = (self.index.taking().count() / 2).max(1).saturating_sub(self.tracker.busy(now.mono).len());
        for (session, room) in hosts {
            let left = max.saturating_sub(proposal.ops.len());
            let Some(first_apart) = ready.first().map(|(deaths, _)| apart(*deaths)) else { break };
            let batch = self.tracker.batch(first_apart, tried);
            let take = if most > 0 { batch.min(room).min(left) } else { 0 };
            // What is tried apart goes where nothing else can explain the next death: the others have lived by then.
            let take = if first_apart && self.tracker.aboard(session).next().is_some() { 0 } else { take };
            let fits = |deaths, k| apart(deaths) == first_apart && self.may_try(k, session, batch, now.mono);
            let mine: Vec<_> = ready.extract_if(.., |(deaths, k)| fits(*deaths, *k)).take(take).collect();
            most -= usize::from(!mine.is_empty());
            for (deaths, k) in mine {
                let Some(key) = self.index.key(k) else { continue };
                self.tracker.runs(k, session, deaths.count, now.mono);
                proposal.push(Op::assign(self.term, key.clone(), session), Subject::Key(k, key));
            }
        }
    }

    /// Gives out at once what has just become suspect, spread over all nodes: if it is one of these that kills, the next death
    /// clears those that are elsewhere; and if it is none, nobody has waited.
    fn deal(&mut self, proposal: &mut Proposal, max: usize, now: Now) {
        let Some(quarantine) = self.config.quarantine else { return };
        let waiting = self.tracker.waiting().filter(|k| !is_to_be_tried(quarantine, self.index.deaths(*k)));
        let untried: Vec<KeyIx> = waiting.take(max.saturating_sub(proposal.ops.len())).collect();
        if untried.is_empty() {
            return;
        }
        let mut hosts: Vec<Host> = self.index.taking().map(|(n, view)| self.host(n, view)).collect();
        for k in untried {
            let open = hosts.iter_mut().filter(|host| host.room > 0);
            let (Some(host), Some(key)) = (open.min_by_key(|host| host.order()), self.index.key(k)) else { continue };
            host.suspects += 1;
            host.room -= 1;
            let session = host.session;
            self.tracker.deal(k, session, now.mono);
            proposal.push(Op::Assign { term: self.term, key: key.clone(), session }, Subject::Key(k, key));
        }
    }

    fn host(&self, n: NodeIx, view: &SessionView) -> Host {
        Host {
            suspects: self.tracker.aboard(view.session).count() as u64,
            affinity: u64::from(view.affinity),
            held: self.planner.held(n),
            session: view.session,
            room: self.room(n, view),
        }
    }

    /// Sessions that may be given suspects now, and for how many they have room.
    fn hosts(&self, now: Instant) -> Vec<(SessionId, usize)> {
        let busy = self.tracker.busy(now);
        let aboard = |session| self.tracker.aboard(session).count();
        let hosts = self.index.taking().filter(|(_, view)| !busy.contains(&view.session));
        let mut hosts: Vec<_> = hosts
            .map(|(n, view)| (aboard(view.session), self.planner.held(n), view.session, self.room(n, view)))
            .filter(|(.., room)| *room > 0)
            .collect();
        // Those with the fewest suspects, so that a death has as few explanations as possible.
        hosts.sort_unstable();
        hosts.into_iter().map(|(.., session, room)| (session, room)).collect()
    }

    fn room(&self, n: NodeIx, view: &SessionView) -> usize {
        view.capacity.map_or(u32::MAX, |capacity| capacity.saturating_sub(self.planner.held(n))) as usize
    }

    /// Whether a session had shown that it can live when it was given a suspect: it was there at the suspect's death before,
    /// or had run keys for a while.
    fn has_lived(&self, session: SessionId, deaths: Deaths, given: Instant) -> bool {
        self.index.was_there(session, deaths.token, given - self.tracker.long_enough())
    }

    /// Whether a suspect may be tried there: where that tells the most, of the nodes that have room.
    fn may_try(&self, k: KeyIx, session: SessionId, batch: usize, now: Instant) -> bool {
        let deaths = self.index.deaths(k);
        if batch > 1 || !needs_lived(deaths) {
            return true;
        }
        let tells = |view: &SessionView| {
            let lived = self.has_lived(view.session, deaths, now);
            (lived, lived && !self.tracker.has_died(&view.node, now))
        };
        let taking = || self.index.taking().filter(|(n, view)| self.room(*n, view) > 0).map(|(_, view)| view);
        let here = taking().find(|view| view.session == session).map(tells);
        here >= taking().map(tells).max()
    }

    fn do_chores(&mut self, proposal: &mut Proposal, max: usize, now: Instant) {
        if !self.group.grants_held {
            let before = self.moves.len();
            self.planner.moves(&mut self.moves);
            if self.moves.len() > before {
                self.part = pace::part(self.moves.len());
                // One owner after the other: what one node confirms, it confirms in one batch.
                self.moves.sort_by_key(|k| self.planner.owner(*k));
            }
        }
        self.settled.clear();
        self.planner.take_settled(&mut self.settled);
        for n in &self.settled {
            if let Some(session) = self.index.session_at(*n) {
                self.chores.push(Chore::Settle(session));
            }
        }
        let take = max.saturating_sub(proposal.ops.len()).min(self.chores.len());
        let term = self.term;
        for chore in self.chores.drain(..take) {
            match chore {
                Chore::Settle(session) => proposal.push(Op::Settle { term, session }, Subject::Session(session)),
                Chore::Force(k) => {
                    let Some((key, token)) = self.index.ownership(k) else { continue };
                    proposal.push(Op::Force { term, key: key.clone(), token }, Subject::Key(k, key));
                }
                Chore::Clear { k, blames_only } => {
                    let Some(key) = self.index.key(k) else { continue };
                    proposal.push(Op::Clear { term, key, blames_only }, Subject::Group);
                }
            }
        }
        self.revoke(proposal, max, now);
    }

    /// Takes keys from their owners for the sake of balance, part by part: the fewer are stopped, freed and given out
    /// together, the shorter is each without an owner.
    fn revoke(&mut self, proposal: &mut Proposal, max: usize, now: Instant) {
        let take = self.part.min(max.saturating_sub(proposal.ops.len())).min(self.moves.len());
        if take == 0 || self.group.grants_held || self.next_part(now).is_some() {
            return;
        }
        self.part_until = Some(now + pace::PATIENCE);
        let term = self.term;
        let (mut seen, mut asked) = (0, 0);
        while asked < take
            && let Some(&k) = self.moves.get(seen)
        {
            seen += 1;
            // It may have changed hands, or its number have gone to another key, while it waited for its turn.
            if let Some((key, token)) = self.index.ownership(k).filter(|_| self.planner.is_to_move(k)) {
                proposal.push(Op::Revoke { term, key: key.clone(), token }, Subject::Key(k, key));
                asked += 1;
            }
        }
        self.moves.drain(..seen);
    }

    /// From when on more keys may be revoked, where that is later than at once: most of the last part are not at their
    /// next owners yet.
    fn next_part(&self, now: Instant) -> Option<Instant> {
        let under_way = self.planner.counters().in_flight.saturating_sub(self.moves.len());
        self.part_until.filter(|until| *until > now && !self.moves.is_empty() && under_way > self.part / 2)
    }

    fn assign(&mut self, proposal: &mut Proposal, max: usize, now: Now) {
        let term = self.term;
        let blamed = self.blamed();
        let mut later = Vec::new();
        loop {
            self.assignments.clear();
            self.planner.assignments(max.saturating_sub(proposal.ops.len()), &mut self.assignments);
            if self.assignments.is_empty() {
                return;
            }
            for (k, n) in self.assignments.drain(..) {
                let (Some(key), Some(session)) = (self.index.key(k), self.index.session_at(n)) else { continue };
                let subject = Subject::Key(k, key.clone());
                // The keys of an ended owner come here as they stood: whether they may run again is looked at now.
                let deaths = self.index.deaths(k);
                self.tracker.note(k, deaths.count, now.mono);
                if is_convicted(self.config.quarantine, deaths, blamed) {
                    self.planner.park(k);
                    proposal.push(Op::Quarantine { term, key }, subject);
                } else if self.index.waits(k, now) || is_held_back(&self.tracker, &self.index, k, now.mono) {
                    later.push(k);
                } else {
                    proposal.push(Op::assign(term, key, session), subject);
                }
            }
            for k in later.drain(..) {
                self.place(k, now);
            }
        }
    }

    /// The proposal was applied. Returns whether this leader is still the leader.
    #[must_use]
    pub fn answered(&mut self, proposal: &Proposal, outcomes: &[Outcome], revision: Revision, now: Now) -> bool {
        self.seen(revision);
        for (subject, outcome) in proposal.subjects.iter().zip(outcomes) {
            let Outcome::Refused(refusal) = outcome else { continue };
            match (subject, refusal) {
                (_, Refusal::OldTerm) => return false,
                (Subject::Session(session), Refusal::StillBeating) => self.watches.moved(*session, now.mono),
                (Subject::Session(_) | Subject::Group, _) => {}
                (Subject::Key(k, key), _) => self.look_again(*k, key),
            }
        }
        self.look_again_at_refused(now);
        true
    }

    /// Nobody knows what became of the proposal: everything in it is looked at again after the next tick, before which the
    /// caller should have read the changes.
    pub fn unanswered(&mut self, proposal: &Proposal) {
        for (op, subject) in proposal.ops.iter().zip(&proposal.subjects) {
            match subject {
                Subject::Key(k, key) => self.look_again(*k, key),
                Subject::Session(session) if matches!(op, Op::Settle { .. }) => self.unsettled.push(*session),
                Subject::Session(session) => self.watches.ask_again(*session),
                // What else is about the group is proposed again by itself.
                Subject::Group => self.resume_asked = false,
            }
        }
        // These are not tried again before the next tick: the store is not well.
        let refused = self.refused.drain(..);
        self.stubborn.extend(refused);
    }

    fn look_again(&mut self, k: KeyIx, key: &Key) {
        // The index may have been given to another key meanwhile.
        if self.index.key(k).as_ref() != Some(key) {
            return;
        }
        if self.stubborn.contains(&k) {
            return;
        }
        if self.index.note_refusal(k) {
            self.stubborn.insert(k);
        } else {
            self.refused.push(k);
        }
    }

    /// The keys' states, for people.
    pub fn counts(&self) -> Counts {
        let (counts, (held_back, _)) = (self.index.counts(&self.planner), self.tracker.held_back());
        Counts { held_back, scheduled: counts.scheduled.saturating_sub(held_back), ..counts }
    }

    /// How long it took keys to get from one owner to the next, since the last call.
    pub fn take_timings(&mut self) -> Vec<Timing> {
        self.index.take_timings()
    }

    /// What there is for the log, since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        self.newsroom.take()
    }

    /// All keys that the group knows, for comparison with a source.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.index.keys()
    }

    /// Whether the group knows the key and wants it.
    pub fn wants(&self, key: &Key) -> bool {
        self.index.wants(key)
    }
}

/// Whether there is enough against a key to set it aside, where so many keys are `blamed` alone, itself included. Machines that
/// die by themselves put the blame on one after the other, so each other one raises the bar.
fn is_convicted(quarantine: Option<Quarantine>, deaths: Deaths, blamed: u32) -> bool {
    let enough = |q: Quarantine| q.deaths.saturating_add(blamed.saturating_sub(1));
    quarantine.is_some_and(|q| deaths.count >= q.suspect && deaths.alone >= enough(q))
}

/// Whether the key has had a death more than those that made it suspect: it is tried apart from then on.
fn is_to_be_tried(quarantine: Quarantine, deaths: Deaths) -> bool {
    deaths.count > quarantine.suspect
}

/// Whether a suspect's owner has died while it was tried apart.
fn has_died_so(quarantine: Option<Quarantine>, deaths: Deaths) -> bool {
    quarantine.is_some_and(|quarantine| deaths.count > quarantine.suspect.saturating_add(1))
}

/// Whether the next death alone counts only on a node that has shown that it can live. Every other one does: a machine that
/// kills whatever it runs begins anew each time, and would convict one healthy key after the other; and where nodes are killed
/// one after the other, it is the young ones that live.
fn needs_lived(deaths: Deaths) -> bool {
    deaths.alone % 2 == 1
}

/// Whether the key is suspect and its last owner has died. One that a living owner has let go, to move it or because it never
/// began, goes where it was to go: that says nothing about it.
fn is_held_back(tracker: &SuspectTracker, index: &GroupIndex, k: KeyIx, now: Instant) -> bool {
    tracker.holds(k, now) && index.is_orphan(k)
}

impl Proposal {
    fn push(&mut self, op: Op, subject: Subject) {
        self.ops.push(op);
        self.subjects.push(subject);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Reasons of moves, as metric labels.
pub(crate) fn move_reason(op: &Op) -> Option<&'static str> {
    match op {
        Op::Assign { .. } => Some("assign"),
        Op::Revoke { .. } => Some("balance"),
        Op::Force { .. } => Some("stop_timeout"),
        Op::Expire { .. } => Some("expire"),
        Op::Quarantine { .. } => Some("quarantine"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
