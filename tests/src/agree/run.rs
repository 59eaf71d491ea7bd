//! A sequence on its way: what is done to the store and to the ledger, and what is compared after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use divider_core::{
    Applied, Batch, Beat, Blame, Blob, Change, Claim, Cursor, Effects, Hint, HintStream, Key, KeyView, Ledger, NodeId,
    Op, Outcome, Refusal, Revision, SessionId, SessionView, Store, StoreError, Term, Text, Token, Topic, Verdict, Work,
    format,
};
use futures_util::{
    StreamExt,
    future::{join_all, join4},
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    ENDED, Expect, Seen,
    script::{self, Absolved, Act, Asked, Bytes, Grant, Held, Issued, Step, When, Which, Who, Whose, Why},
};

/// How long a hint may take before it counts as lost.
const HINT: Duration = Duration::from_secs(5);
pub(super) const SESSIONS: usize = 5;
pub(super) const KEYS: usize = 12;
pub(super) const NODES: [&str; 3] = ["a", "node/1", "ünï\u{1f600}\n"];
/// Tokens that are remembered.
pub(super) const TOKENS: usize = 30;

/// Fails with a text that says what differs.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

/// Runs a sequence against a store of a fresh group and against the ledger, and compares them after each step. In the end
/// all sessions end and all keys are removed, so that a server can be used again.
///
/// # Errors
/// Where they differ, in which step and in what.
pub(super) async fn run(store: &dyn Store, id: u64, expect: Expect, steps: &[Step]) -> Result<Seen, String> {
    let mut run = Run::begin(store, id, expect).await?;
    for (at, step) in steps.iter().enumerate() {
        run.step = at;
        run.take(step).await.map_err(|problem| format!("step {at}: {problem}"))?;
    }
    run.sweep().await.map_err(|problem| format!("when all is removed: {problem}"))?;
    Ok(run.seen)
}

/// The name of an enum's variant, without its fields.
fn variant(value: &impl Debug) -> String {
    format!("{value:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// What the store answered, which is not to fail here.
fn good<T>(what: &str, answer: Result<T, StoreError>) -> Result<T, String> {
    answer.map_err(|error| format!("{what}: {error:?}"))
}

fn same<T: Debug + PartialEq>(what: &str, store: &T, ledger: &T) -> Result<(), String> {
    ensure!(store == ledger, "{what}\n store: {store:#?}\nledger: {ledger:#?}");
    Ok(())
}

fn of<T: Clone>(among: &[T], place: u8) -> T {
    among[usize::from(place) % among.len()].clone()
}

fn around(number: u64, when: When) -> u64 {
    match when {
        When::Now => number,
        When::Before => number.saturating_sub(1),
        When::After => number + 1,
        When::Never => u64::MAX,
    }
}

fn blob(Bytes(len, byte): Bytes) -> Blob {
    Blob::from(vec![byte; len])
}

struct Run<'a> {
    store: &'a dyn Store,
    expect: Expect,
    step: usize,
    ledger: Ledger,
    /// What the store's revisions are ahead of the ledger's by.
    ahead: u64,
    beats: BTreeMap<SessionId, Beat>,
    /// Who led when the last batch was heard of.
    leader: Option<SessionId>,
    leader_beat: Beat,
    sessions: Vec<SessionId>,
    keys: Vec<Key>,
    /// Tokens that were issued, the last ones only.
    tokens: Vec<Token>,
    alterations: u64,
    /// The highest serial number of each session's batches.
    serials: BTreeMap<SessionId, u64>,
    group_hints: HintStream,
    session_hints: Vec<HintStream>,
    /// How far the reader of changes has come, in the store's numbers.
    read: Revision,
    /// What the batches of this step were, in the store's numbers.
    batches: Vec<Batch>,
    seen: Seen,
}

impl<'a> Run<'a> {
    async fn begin(store: &'a dyn Store, id: u64, expect: Expect) -> Result<Self, String> {
        // In no order, and the same whenever the sequence is run again.
        let session = |at: u64| SessionId(Uuid::from_u64_pair((id ^ at << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15), at));
        let sessions: Vec<SessionId> = (1..=SESSIONS as u64).map(session).collect();
        let long = "ключ".repeat(128);
        let keys = (0..KEYS).map(|i| match i {
            0 => long.clone(),
            1 => "{a}*[b]?\\ \n\"'%".to_owned(),
            _ => format!("key-{i}"),
        });
        let keys = keys.map(|key| Key::new(key).expect("a valid key")).collect();
        good("the store opens", store.open().await)?;
        let empty = good("an empty batch is applied", store.apply(&[]).await)?;
        let page = good("an empty group is read", store.scan(None).await)?;
        ensure!(page.keys.is_empty() && page.sessions.is_empty(), "the group must be fresh");
        let mut ledger = Ledger::new();
        if page.group.grants_held {
            ledger.new_lineage();
        }
        let mut session_hints = Vec::new();
        for &session in &sessions {
            session_hints.push(good("a subscription", store.hints(Topic::Session(session)).await)?);
        }
        Ok(Self {
            group_hints: good("a subscription", store.hints(Topic::Group).await)?,
            session_hints,
            ahead: empty.revision.0 - ledger.revision().0,
            read: empty.revision,
            store,
            expect,
            step: 0,
            ledger,
            beats: BTreeMap::new(),
            leader: None,
            leader_beat: Beat(0),
            sessions,
            keys,
            tokens: Vec::new(),
            alterations: 0,
            serials: BTreeMap::new(),
            batches: Vec::new(),
            seen: Seen::new(),
        })
    }

    /// Does one thing to both, and compares.
    async fn take(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Renew(session) => self.renew(of(&self.sessions, *session)).await?,
            Step::Poll(session, asked) => self.poll(of(&self.sessions, *session), *asked).await?,
            Step::Resign(session, term) => self.resign(*session, *term).await?,
            Step::Batch(acts) => {
                let ops = self.ops(acts);
                self.apply(&ops).await?;
            }
            Step::Doubled(acts) => {
                let ops = self.ops(acts);
                self.apply(&ops).await?;
                self.apply(&ops).await?;
            }
        }
        self.compare().await
    }

    /// Ends all sessions and removes all keys: owners first, so that what they still hold is free and goes at once.
    async fn sweep(&mut self) -> Result<(), String> {
        let ends = self.living().into_iter().map(|session| Op::End { session });
        let here = |key: &&Key| self.ledger.record(key).is_some();
        let removes = self.keys.iter().filter(here).map(|key| Op::Remove { key: key.clone() });
        let ops: Vec<Op> = ends.chain(removes).collect();
        self.apply(&ops).await?;
        self.compare().await
    }

    /// The ops of a batch, as things stand.
    fn ops(&mut self, acts: &[Act]) -> Vec<Op> {
        let (mut joined, mut ops) = (BTreeSet::new(), Vec::new());
        for act in acts {
            let op = self.op(act);
            op.validate().expect("only valid ops are made");
            // Whoever expires a session has seen its beat, and so not in the batch that it joins in: a store need not know
            // whose beat it would be.
            match op {
                Op::Join { session, .. } => _ = joined.insert(session),
                Op::Expire { session, .. } if joined.contains(&session) => continue,
                _ => {}
            }
            ops.push(op);
        }
        self.keep_readable(&mut ops);
        ops
    }

    /// No program writes a group in a format that it does not read itself; a store may refuse the group from there on.
    fn keep_readable(&self, ops: &mut [Op]) {
        let mut living = self.ledger.sessions().filter(|view| view.ended.is_none());
        let ends = ops.iter().any(|op| matches!(op, Op::End { .. } | Op::Expire { .. }));
        let prevented = !ends && living.any(|view| view.reads <= format::NEWEST);
        let begun = self.ledger.group().format > 0;
        for op in ops {
            match op {
                Op::Join { reads: number, .. } if !begun => *number = format::NEWEST.min(*number),
                Op::Step { format: number, .. } if !prevented => *number = format::NEWEST.min(*number),
                _ => {}
            }
        }
    }

    async fn apply(&mut self, ops: &[Op]) -> Result<(), String> {
        let Applied { outcomes, revision } = good("a batch is applied", self.store.apply(ops).await)?;
        same("number of outcomes", &outcomes.len(), &ops.len())?;

        // The ledger does not know the beats: an Expire that comes too late never reaches it.
        let beats = self.beats.clone();
        let moved = |op: &Op| match op {
            Op::Expire { session, beat, .. } => *beat != beats.get(session).copied().unwrap_or_default(),
            _ => false,
        };
        let mut told = ops.to_vec();
        for op in &mut told {
            if let Op::Join { seen, .. } = op {
                // In the ledger's own numbers; before its time, nobody had seen anything.
                seen.0 = seen.0.saturating_sub(self.ahead);
            }
        }
        let first = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Granted(token) => Some(Token(token.0 - 1)),
            _ => None,
        });
        let check = |op: &Op| if moved(op) { Err(Refusal::StillBeating) } else { Ok(()) };
        let effects = self.ledger.apply_checked(&told, first.unwrap_or_default(), check);
        for ((op, outcome), expected) in ops.iter().zip(&outcomes).zip(&effects.outcomes) {
            if moved(op) {
                // A store may look at the beat before it looks at anything else, or after.
                let refusals = [Refusal::StillBeating, Refusal::SessionEnded, Refusal::OldTerm, Refusal::Superseded];
                ensure!(refusals.map(Outcome::Refused).contains(outcome), "outcome of {op:?} in {ops:#?}: {outcome:?}");
            } else {
                same("an outcome", outcome, expected).map_err(|problem| format!("{problem}\nof {op:?} in {ops:#?}"))?;
            }
            let kind = match outcome {
                Outcome::Refused(refusal) => variant(refusal),
                outcome => variant(outcome),
            };
            *self.seen.entry(format!("{} {kind}", variant(op))).or_default() += 1;
            if let Outcome::Granted(token) = outcome {
                self.tokens.push(*token);
            }
        }
        self.tokens.drain(..self.tokens.len().saturating_sub(TOKENS));
        self.heard(effects).await?;
        same("revision", &revision, &self.revision())?;
        let alive: BTreeSet<SessionId> =
            self.ledger.sessions().filter(|s| s.ended.is_none()).map(|s| s.session).collect();
        self.beats.retain(|session, _| alive.contains(session));
        for session in alive {
            self.beats.entry(session).or_default();
        }
        Ok(())
    }

    async fn renew(&mut self, session: SessionId) -> Result<(), String> {
        let renewed = self.store.renew(session).await;
        match self.beats.get_mut(&session) {
            Some(beat) => {
                let raised = good("a living session is renewed", renewed)?;
                ensure!(raised > *beat, "the beat rises: {raised} after {beat}");
                *beat = raised;
            }
            None => ensure!(matches!(renewed, Err(StoreError::SessionEnded)), "{renewed:?} of an ended session"),
        }
        Ok(())
    }

    async fn poll(&mut self, session: SessionId, asked: Asked) -> Result<(), String> {
        let group = self.ledger.group();
        let beat = self.leader_beat;
        let claim = match asked {
            Asked::Follow => Claim::Follow,
            Asked::Lead => Claim::Lead { term: group.term },
            Asked::Take => Claim::Take { stale: None },
            Asked::TakeOver => Claim::Take { stale: Some((group.term, beat)) },
            Asked::TakeOverAhead => Claim::Take { stale: Some((group.term, Beat(beat.0 + 1))) },
            Asked::TakeOverBehind => Claim::Take { stale: Some((Term(group.term.0.saturating_sub(1)), beat)) },
        };
        let polled = self.store.poll(session, claim).await;
        let Some(seq) = self.ledger.seq(session) else {
            ensure!(matches!(polled, Err(StoreError::SessionEnded)), "{polled:?} of an ended session");
            return Ok(());
        };
        let reply = good("a living session polls", polled)?;
        let held = group.leader.map(|leader| (group.term, leader));
        let leads = reply.leader.map(|leader| (leader.term, leader.session));
        let free = match claim {
            Claim::Take { stale } => group.leader.is_none() || stale == Some((group.term, beat)),
            _ => false,
        };
        if leads != held || (free && self.expect.leases) {
            let Some((term, leader)) = leads else { return Err("a leader is not lost by a poll".to_owned()) };
            ensure!(free && leader == session, "{claim:?} of {session} gave {leads:?} after {held:?}");
            let (took, effects) = self.ledger.lead(session, Term(term.0.saturating_sub(1)));
            same("term", &Some(term), &took)?;
            self.leader_beat = Beat(0);
            self.heard(effects).await?;
        }
        if let Some(leader) = reply.leader {
            let renewed = claim == (Claim::Lead { term: leader.term }) && leader.session == session;
            if self.expect.leases {
                let beat = if renewed { Beat(self.leader_beat.0 + 1) } else { self.leader_beat };
                same("leader's beat", &leader.beat, &beat)?;
            }
            self.leader_beat = leader.beat;
            if let Some(beat) = leader.session_beat {
                same("beat of the leader's session", &Some(&beat), &self.beats.get(&leader.session))?;
            }
        }
        same("revision", &reply.revision, &self.revision())?;
        same("seq", &reply.seq, &seq)?;
        let issued = self.tokens.last().copied().unwrap_or_default();
        ensure!(reply.token >= issued, "{} of {issued}", reply.token);
        Ok(())
    }

    async fn resign(&mut self, session: Whose, term: When) -> Result<(), String> {
        let group = self.ledger.group();
        let session = self.whose(group.leader, session);
        let term = Term(around(group.term.0, term));
        good("a leader may resign", self.store.resign(session, term).await)?;
        let effects = self.ledger.resign(session, term);
        self.heard(effects).await
    }

    /// Compares what was published with what the ledger says.
    async fn heard(&mut self, effects: Effects) -> Result<(), String> {
        let Effects { batch, messages, .. } = effects;
        let mut gone = false;
        for change in batch.iter().flat_map(|batch| &batch.changes) {
            if let Change::Group(group) = change {
                gone |= self.leader.is_some() && group.leader.is_none();
                self.leader = group.leader;
            }
        }
        if let Some(mut batch) = batch {
            batch.revision.0 += self.ahead;
            if self.expect.hints {
                let hint = timeout(HINT, self.group_hints.next()).await.ok().flatten();
                if hint != Some(Hint::Gap) {
                    same("published batch", &hint, &Some(Hint::Batch(batch.clone())))?;
                }
            }
            self.batches.push(batch);
        }
        let mut messages: BTreeMap<_, _> = messages.into_iter().collect();
        for at in 0..self.sessions.len() {
            let mut message = messages.remove(&self.sessions[at]).map(Hint::Message);
            let mut gone = gone;
            while self.expect.hints && (message.is_some() || gone) {
                match timeout(HINT, self.session_hints[at].next()).await {
                    Ok(Some(Hint::LeaderGone)) => gone = false,
                    Ok(Some(Hint::Gap)) => (message, gone) = (None, false),
                    Ok(Some(hint)) => same("published message", &Some(hint), &message.take())?,
                    Ok(None) => {
                        // The end of a stream is a gap; a store may end it with the session.
                        let topic = Topic::Session(self.sessions[at]);
                        self.session_hints[at] = good("a subscription", self.store.hints(topic).await)?;
                        *self.seen.entry(ENDED.to_owned()).or_default() += 1;
                        (message, gone) = (None, false);
                    }
                    Err(_) => return Err(format!("no hint of {message:?}, gone {gone}")),
                }
            }
        }
        ensure!(messages.is_empty(), "messages to sessions that were never opened: {messages:?}");
        Ok(())
    }

    /// Compares all that can be read. All is asked for at once, since nothing changes meanwhile.
    async fn compare(&mut self) -> Result<(), String> {
        let store = self.store;
        let now = self.revision();
        // From somewhere in the past, both know the same.
        let back = (self.step * 7 % 20) as u64;
        let since = Revision(self.ledger.revision().0.saturating_sub(back));
        let reads = join4(
            self.compare_group(),
            self.compare_keys(),
            join_all(self.sessions.iter().map(|&session| self.compare_holdings(session))),
            join4(
                self.newest(),
                store.changes(now),
                store.changes(Revision(now.0 + 1)),
                store.changes(Revision(since.0 + self.ahead)),
            ),
        );
        let (group, keys, holdings, (newest, none, never, some)) = reads.await;
        group?;
        keys?;
        holdings.into_iter().collect::<Result<(), String>>()?;
        same("changes", &newest?, &self.batches)?;
        self.batches.clear();
        self.read = now;
        same("changes", &good("changes", none)?, &Some(Vec::new()))?;
        same("changes", &good("changes", never)?, &None)?;
        if let (Some(some), Some(mut expected)) = (good("changes", some)?, self.ledger.changes(since)) {
            expected.iter_mut().for_each(|batch| batch.revision.0 += self.ahead);
            expected.truncate(some.len());
            ensure!(since == self.ledger.revision() || !some.is_empty(), "no changes after {since:?}");
            same("older changes", &some, &expected)?;
        }
        Ok(())
    }

    async fn compare_group(&self) -> Result<(), String> {
        let (mut keys, mut cursor, mut first) = (BTreeMap::new(), None::<Cursor>, None);
        loop {
            let page = good("a page", self.store.scan(cursor.take()).await)?;
            keys.extend(page.keys.iter().map(|view| (view.key.clone(), view.clone())));
            cursor.clone_from(&page.next);
            let first = first.get_or_insert(page);
            same("revision of a page", &first.revision, &self.revision())?;
            if cursor.is_none() {
                break;
            }
        }
        let page = first.expect("at least one page");
        let expected = self.ledger.scan(None).expect("a page");
        let by_key = |views: Vec<KeyView>| views.into_iter().map(|view| (view.key.clone(), view)).collect();
        let by_id = |views: &[SessionView]| -> BTreeMap<SessionId, SessionView> {
            views.iter().map(|view| (view.session, view.clone())).collect()
        };
        same("group", &page.group, &expected.group)?;
        same("sessions", &by_id(&page.sessions), &by_id(&expected.sessions))?;
        same("keys", &keys, &by_key(expected.keys))?;

        let mut beats: BTreeMap<_, _> = good("beats", self.store.beats().await)?.into_iter().collect();
        for session in self.beats.keys() {
            // A session that was never renewed may be left out.
            beats.entry(*session).or_default();
        }
        same("beats", &beats, &self.beats)
    }

    async fn compare_keys(&self) -> Result<(), String> {
        let store = self.store;
        let reads = join4(store.stats(), store.quarantined(1000), store.quarantined(1), store.records(&self.keys));
        let (stats, quarantined, some, records) = reads.await;
        same("stats", &good("stats", stats)?, &self.ledger.stats())?;
        let all = |keys: Vec<Key>| keys.into_iter().collect::<BTreeSet<_>>();
        let quarantined = all(good("a list", quarantined)?);
        same("quarantined", &quarantined, &all(self.ledger.quarantined(1000)))?;
        same("some of the quarantined", &good("a list", some)?.len(), &quarantined.len().min(1))?;
        let expected = self.keys.iter().map(|key| self.ledger.record(key)).collect();
        same("records", &good("records", records)?, &expected)
    }

    async fn compare_holdings(&self, session: SessionId) -> Result<(), String> {
        match (self.store.holdings(session).await, self.ledger.holdings(session)) {
            (Ok(mut held), Ok(mut expected)) => {
                for held in [&mut held, &mut expected] {
                    held.holdings.sort_by(|a, b| a.key.cmp(&b.key));
                }
                same("holdings", &held, &expected)
            }
            (Err(StoreError::SessionEnded), Err(_)) => Ok(()),
            (held, expected) => Err(format!("holdings of {session}\n store: {held:#?}\nledger: {expected:#?}")),
        }
    }

    /// The changes that were not read yet.
    async fn newest(&self) -> Result<Vec<Batch>, String> {
        let (mut all, mut read) = (Vec::new(), self.read);
        while read < self.revision() {
            let some = good("changes", self.store.changes(read).await)?;
            let some = some.filter(|some| !some.is_empty()).ok_or("the newest changes are kept")?;
            read = some[some.len() - 1].revision;
            all.extend(some);
        }
        Ok(all)
    }

    /// Where the ledger stands, in the store's numbers.
    fn revision(&self) -> Revision {
        Revision(self.ledger.revision().0 + self.ahead)
    }

    fn term(&self, when: When) -> Term {
        Term(around(self.ledger.group().term.0, when))
    }

    /// The living sessions, in the order of their places.
    fn living(&self) -> Vec<SessionId> {
        self.sessions.iter().copied().filter(|session| self.beats.contains_key(session)).collect()
    }

    fn who(&self, who: Who) -> SessionId {
        match (who, &*self.living()) {
            (Who::Living(place), living @ [_, ..]) => of(living, place),
            (Who::Living(place) | Who::Any(place), _) => of(&self.sessions, place),
        }
    }

    fn whose(&self, right: Option<SessionId>, whose: Whose) -> SessionId {
        match (whose, right) {
            (Whose::Right(_), Some(right)) => right,
            (Whose::Right(place) | Whose::Any(place), _) => of(&self.sessions, place),
        }
    }

    fn key(&self, place: u8) -> Key {
        of(&self.keys, place)
    }

    /// A key, and its owner and token if it has any.
    fn which(&self, which: Which) -> (Key, Option<(SessionId, Token)>) {
        let owner = |key: &Key| self.ledger.record(key).and_then(|record| record.view.state.owner());
        let owned: Vec<Key> = self.keys.iter().filter(|key| owner(key).is_some()).cloned().collect();
        let key = match which {
            Which::Owned(place) if !owned.is_empty() => of(&owned, place),
            Which::Owned(place) | Which::Any(place) => self.key(place),
        };
        let owner = owner(&key);
        (key, owner)
    }

    fn token(&self, right: Option<Token>, token: script::Token) -> Token {
        let right = right.unwrap_or(Token(1));
        match token {
            script::Token::Of(when) => Token(around(right.0, when)),
            script::Token::Late(_) if self.tokens.is_empty() => right,
            script::Token::Late(place) => of(&self.tokens, place),
        }
    }

    fn grant(&self, grant: Grant) -> (SessionId, Key, Token) {
        let (key, owner) = self.which(grant.key);
        let session = self.whose(owner.map(|(session, _)| session), grant.session);
        (session, key, self.token(owner.map(|(_, token)| token), grant.token))
    }

    fn of_key(&self, which: Which, token: script::Token) -> (Key, Token) {
        let (key, owner) = self.which(which);
        (key, self.token(owner.map(|(_, token)| token), token))
    }

    /// A generation, next to the one that the key has.
    fn generation(&self, key: &Key, when: When) -> u32 {
        let now = self.ledger.record(key).map_or(1, |record| record.view.generation);
        u32::try_from(around(now.into(), when)).unwrap_or(u32::MAX)
    }

    /// The next number of an alteration, or the last one again.
    fn number(&mut self, again: bool) -> u64 {
        let number = self.alterations.saturating_sub(u64::from(again)) + 1;
        self.alterations += 1;
        number
    }

    fn op(&mut self, act: &Act) -> Op {
        match *act {
            Act::Add { key, weight, priority, not_before_ms, payload, how } => {
                Op::Add(Work { key: self.key(key), weight, priority, not_before_ms, payload: blob(payload), how })
            }
            Act::Remove(key) => Op::Remove { key: self.key(key) },
            Act::Retry(key) => Op::Retry { key: self.key(key) },
            Act::Rebalance => Op::Rebalance,
            Act::Join { session, node, affinity, capacity, lease_ms, seen, reads } => {
                let node = NodeId::new(of(&NODES, node)).expect("a valid name");
                let seen = Revision(around(self.revision().0, seen));
                Op::Join { session: of(&self.sessions, session), node, affinity, capacity, lease_ms, seen, reads }
            }
            Act::SetAffinity { session, again, affinity } => {
                Op::SetAffinity { session: self.who(session), number: self.number(again), affinity }
            }
            Act::AlterAffinity { session, again, delta } => {
                Op::AlterAffinity { session: self.who(session), number: self.number(again), delta }
            }
            Act::Sender { session, serial } => {
                let session = self.who(session);
                let last = self.serials.entry(session).or_default();
                let serial = around(*last + 1, serial);
                *last = serial.max(*last);
                Op::Sender { session, serial }
            }
            Act::Drain(session) => Op::Drain { session: self.who(session) },
            Act::End(session) => Op::End { session: self.who(session) },
            Act::Confirm { grant, started } => {
                let (session, key, token) = self.grant(grant);
                Op::Confirm { session, key, token, started }
            }
            Act::GiveUp { grant, generation, pause_ms, failures, why } => {
                let (session, key, token) = self.grant(grant);
                let generation = self.generation(&key, generation);
                Op::GiveUp { session, key, token, generation, pause_ms, failures, why: text(why) }
            }
            Act::Complete { grant, generation } => {
                let (session, key, token) = self.grant(grant);
                let generation = self.generation(&key, generation);
                Op::Complete { session, key, token, generation }
            }
            Act::SetAside { grant, generation, why } => {
                let (session, key, token) = self.grant(grant);
                let generation = self.generation(&key, generation);
                Op::SetAside { session, key, token, generation, why: text(why) }
            }
            Act::Clear { term, key, blames_only } => {
                Op::Clear { term: self.term(term), key: self.key(key), blames_only }
            }
            Act::Absolve { key, token } => {
                let key = self.key(key);
                let view = self.ledger.record(&key).map(|record| record.view);
                let token = match token {
                    Absolved::Counted => view.map(|view| view.deaths.token),
                    Absolved::Current => view.and_then(|view| view.state.owner()).map(|(_, token)| token),
                    Absolved::Late(place) => (!self.tokens.is_empty()).then(|| of(&self.tokens, place)),
                };
                Op::Absolve { key, token: token.unwrap_or_default() }
            }
            Act::Advance { term, elapsed_ms } => Op::Advance { term: self.term(term), elapsed_ms },
            // The term after all others stands for an operator, who needs none.
            Act::Step { term: When::Never, format } => Op::Step { term: Term(0), format },
            Act::Step { term, format } => Op::Step { term: self.term(term), format },
            Act::Checkpoint { grant, bytes } => {
                let (session, key, token) = self.grant(grant);
                Op::Checkpoint { session, key, token, bytes: blob(bytes) }
            }
            Act::Assign { term, key, session } => {
                Op::Assign { term: self.term(term), key: self.key(key), session: self.who(session) }
            }
            Act::Revoke { term, key, token } => {
                let (key, token) = self.of_key(key, token);
                Op::Revoke { term: self.term(term), key, token }
            }
            Act::Force { term, key, token } => {
                let (key, token) = self.of_key(key, token);
                Op::Force { term: self.term(term), key, token }
            }
            Act::Expire { term, session, moved, healthy_below, blame } => {
                let session = self.who(session);
                let mut beat = self.beats.get(&session).copied().unwrap_or_default();
                beat.0 += u64::from(moved);
                let healthy_below = match healthy_below {
                    Issued::Late(place) if !self.tokens.is_empty() => of(&self.tokens, place),
                    Issued::None | Issued::Late(_) => Token(0),
                    Issued::All => Token::ABOVE_ALL,
                };
                let owner = |key| self.ledger.record(&self.key(key)).and_then(|record| record.view.state.owner());
                let blame = match blame {
                    Held::Nobody => Blame::Nobody,
                    Held::Young => Blame::Young,
                    Held::Suspects(from) => Blame::Suspects(from),
                    Held::Only(key) => Blame::Only(owner(key).map(|(_, token)| token).unwrap_or_default()),
                };
                let verdict = Verdict { healthy_below, blame };
                Op::Expire { term: self.term(term), session, beat, verdict }
            }
            Act::Quarantine { term, key } => Op::Quarantine { term: self.term(term), key: self.key(key) },
            Act::Settle { term, session } => Op::Settle { term: self.term(term), session: self.who(session) },
            Act::ResumeGrants(term) => Op::ResumeGrants { term: self.term(term) },
        }
    }
}

/// What went wrong, in letters of two bytes.
fn text(Why(len): Why) -> Text {
    Text::new(&"ж".repeat(len))
}
