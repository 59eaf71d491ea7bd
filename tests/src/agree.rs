//! Compares a store with the [`Ledger`], op for op.
//!
//! # Why
//! The ledger says in a few hundred lines what every backend must do. A backend that says the same in scripts or
//! statements is right if nobody can tell the two apart; so random batches go to both, and after each batch everything
//! that can be read or heard is compared.
//!
//! # How
//! Few keys and few sessions, so that batches meet in all states; wrong terms, stale tokens and ended sessions often
//! enough that every refusal is met. A store chooses its own tokens, terms and first revision. The ledger is told to
//! choose the same ones (`floor`), which succeeds only if they rise as they must.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use divider_core::{
    Applied, Batch, Beat, Blob, Change, Claim, Cursor, Effects, Hint, HintStream, Key, KeyView, Ledger, NodeId, Op,
    Outcome, Refusal, Revision, SessionId, SessionView, Store, StoreError, Term, Token, Topic, Work, limits,
};
use futures_util::StreamExt;
use tokio::time::timeout;
use uuid::Uuid;

/// What [`Seen`] counts the subscriptions under that the store ended by itself.
pub const ENDED: &str = "subscription ended";

/// How long a hint may take before it counts as lost.
const HINT: Duration = Duration::from_secs(5);
const SESSIONS: usize = 5;
const KEYS: usize = 12;

/// What may be expected of the store beyond what every store promises.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// Leadership is a lease that any session takes through [`Store::poll`], and takes over where it stood still.
    pub leases: bool,
    /// Hints are delivered as long as the connection stands; else only a [`Hint::Gap`], or nothing, is.
    pub hints: bool,
}

/// How often each kind of op had each outcome: a test that wants to be sure it met them all adds these up.
pub type Seen = BTreeMap<String, usize>;

/// Runs `ops` random ops against a store of a fresh group, in batches, and compares it with the ledger after each.
///
/// # Panics
/// Where they differ, with the seed.
pub async fn agree(store: &dyn Store, seed: u64, ops: usize) -> Seen {
    agree_with(store, seed, ops, Expect { leases: true, hints: true }).await
}

/// As [`agree`], for a store with less to expect of.
///
/// # Panics
/// Where they differ, with the seed.
pub async fn agree_with(store: &dyn Store, seed: u64, ops: usize, expect: Expect) -> Seen {
    let mut run = Run::begin(store, seed, expect).await;
    let mut done = 0;
    while done < ops {
        done += run.step().await;
        run.compare().await;
    }
    run.seen
}

/// The name of an enum's variant, without its fields.
fn variant(value: &impl Debug) -> String {
    format!("{value:?}").split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// Small, and the same everywhere for ever (splitmix64).
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or_default()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())].clone()
    }
}

struct Run<'a> {
    store: &'a dyn Store,
    expect: Expect,
    seed: u64,
    step: usize,
    dice: Dice,
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
    group_hints: HintStream,
    session_hints: Vec<HintStream>,
    /// How far the reader of changes has come, in the store's numbers.
    read: Revision,
    /// What the batches of this step were, in the store's numbers.
    batches: Vec<Batch>,
    seen: Seen,
}

impl<'a> Run<'a> {
    async fn begin(store: &'a dyn Store, seed: u64, expect: Expect) -> Self {
        let mut dice = Dice(seed);
        let id = |dice: &mut Dice| SessionId(Uuid::from_u64_pair(dice.next(), dice.next()));
        let sessions: Vec<SessionId> = (0..SESSIONS).map(|_| id(&mut dice)).collect();
        let long = "ключ".repeat(128);
        let keys = (0..KEYS).map(|i| match i {
            0 => long.clone(),
            1 => "{a}*[b]?\\ \n\"'%".to_owned(),
            _ => format!("key-{i}"),
        });
        let keys = keys.map(|key| Key::new(key).expect("a valid key")).collect();
        store.open().await.expect("the store opens");
        let empty = store.apply(&[]).await.expect("an empty batch is applied");
        let page = store.scan(None).await.expect("an empty group is read");
        assert!(page.keys.is_empty() && page.sessions.is_empty(), "the group must be fresh");
        let mut ledger = Ledger::new();
        if page.group.hold {
            ledger.new_lineage();
        }
        let mut session_hints = Vec::new();
        for &session in &sessions {
            session_hints.push(store.hints(Topic::Session(session)).await.expect("a subscription"));
        }
        Self {
            group_hints: store.hints(Topic::Group).await.expect("a subscription"),
            session_hints,
            ahead: empty.revision.0 - ledger.revision().0,
            read: empty.revision,
            store,
            expect,
            seed,
            step: 0,
            dice,
            ledger,
            beats: BTreeMap::new(),
            leader: None,
            leader_beat: Beat(0),
            sessions,
            keys,
            tokens: Vec::new(),
            alterations: 0,
            batches: Vec::new(),
            seen: Seen::new(),
        }
    }

    /// Does one thing to both, and returns how many ops that was.
    async fn step(&mut self) -> usize {
        self.step += 1;
        match self.dice.below(10) {
            0 => self.renew().await,
            1..=2 => self.poll().await,
            3 if self.dice.one_in(3) => self.resign().await,
            _ => return self.batch().await,
        }
        1
    }

    #[track_caller]
    fn same<T: Debug + PartialEq>(&self, what: &str, store: &T, ledger: &T) {
        assert!(
            store == ledger,
            "seed {} step {}: {what}\n store: {store:#?}\nledger: {ledger:#?}",
            self.seed,
            self.step
        );
    }

    async fn batch(&mut self) -> usize {
        let most = if self.dice.one_in(10) { 40 } else { 6 };
        let size = 1 + self.dice.below(most);
        let mut ops = Vec::new();
        let mut named = BTreeSet::new();
        while ops.len() < size {
            let op = self.op();
            op.validate().expect("only valid ops are made");
            // A session begins or ends at most once in a batch: nobody joins twice under one id, so that a store need
            // not know whose beat it would be.
            if let Op::Join { session, .. } | Op::End { session } | Op::Expire { session, .. } = op
                && !named.insert(session)
            {
                continue;
            }
            ops.push(op);
        }
        let Applied { outcomes, revision } = self.store.apply(&ops).await.expect("a batch is applied");
        assert_eq!(outcomes.len(), ops.len(), "seed {} step {}", self.seed, self.step);

        // The ledger does not know the beats: an Expire that comes too late never reaches it.
        let beats = self.beats.clone();
        let moved = |op: &Op| match op {
            Op::Expire { session, beat, .. } => *beat != beats.get(session).copied().unwrap_or_default(),
            _ => false,
        };
        let mut reach: Vec<Op> = ops.iter().filter(|op| !moved(op)).cloned().collect();
        for op in &mut reach {
            if let Op::Join { seen, .. } = op {
                seen.0 = seen.0.saturating_sub(self.ahead);
            }
        }
        let first = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Granted(token) => Some(Token(token.0 - 1)),
            _ => None,
        });
        let effects = self.ledger.apply(&reach, first.unwrap_or_default());
        let mut expected = effects.outcomes.iter();
        for (op, outcome) in ops.iter().zip(&outcomes) {
            let context = format!("outcome of {op:?} in {ops:#?}");
            if moved(op) {
                let late = [Refusal::StillBeating, Refusal::SessionEnded, Refusal::OldTerm].map(Outcome::Refused);
                assert!(late.contains(outcome), "seed {} step {}: {context}: {outcome:?}", self.seed, self.step);
            } else {
                self.same(&context, outcome, expected.next().expect("an outcome for each op"));
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
        self.tokens.drain(..self.tokens.len().saturating_sub(30));
        self.heard(effects).await;
        self.same("revision", &revision, &self.revision());
        let alive: BTreeSet<SessionId> =
            self.ledger.sessions().filter(|s| s.ended.is_none()).map(|s| s.session).collect();
        self.beats.retain(|session, _| alive.contains(session));
        for session in alive {
            self.beats.entry(session).or_default();
        }
        ops.len()
    }

    async fn renew(&mut self) {
        let session = self.dice.of(&self.sessions);
        let renewed = self.store.renew(session).await;
        match self.beats.get_mut(&session) {
            Some(beat) => {
                let raised = renewed.expect("a living session is renewed");
                assert!(raised > *beat, "seed {} step {}: the beat rises", self.seed, self.step);
                *beat = raised;
            }
            None => assert!(
                matches!(renewed, Err(StoreError::SessionEnded)),
                "seed {} step {}: {renewed:?} of an ended session",
                self.seed,
                self.step
            ),
        }
    }

    async fn poll(&mut self) {
        let session = self.dice.of(&self.sessions);
        let group = self.ledger.group();
        let stale = match self.dice.below(4) {
            0 => None,
            1 => Some((group.term, Beat(self.leader_beat.0 + 1))),
            2 => Some((Term(group.term.0.saturating_sub(1)), self.leader_beat)),
            _ => Some((group.term, self.leader_beat)),
        };
        let claim = match self.dice.below(4) {
            0 => Claim::Follow,
            1 => Claim::Lead { term: group.term },
            _ => Claim::Take { stale },
        };
        let polled = self.store.poll(session, claim).await;
        let Some(seq) = self.ledger.seq(session) else {
            assert!(
                matches!(polled, Err(StoreError::SessionEnded)),
                "seed {} step {}: {polled:?} of an ended session",
                self.seed,
                self.step
            );
            return;
        };
        let standing = polled.expect("a living session polls");
        let held = group.leader.map(|leader| (group.term, leader));
        let leads = standing.leader.map(|leader| (leader.term, leader.session));
        let free = match claim {
            Claim::Take { stale } => group.leader.is_none() || stale == Some((group.term, self.leader_beat)),
            _ => false,
        };
        if leads != held || (free && self.expect.leases) {
            let (term, leader) = leads.expect("a leader is not lost by a poll");
            assert!(
                free && leader == session,
                "seed {} step {}: {claim:?} of {session} gave {leads:?} after {held:?}",
                self.seed,
                self.step
            );
            let (took, effects) = self.ledger.lead(session, Term(term.0 - 1));
            self.same("term", &Some(term), &took);
            self.leader_beat = Beat(0);
            self.heard(effects).await;
        }
        if let Some(leader) = standing.leader {
            let renewed = claim == (Claim::Lead { term: leader.term }) && leader.session == session;
            if self.expect.leases {
                let beat = if renewed { Beat(self.leader_beat.0 + 1) } else { self.leader_beat };
                self.same("leader's beat", &leader.beat, &beat);
            }
            self.leader_beat = leader.beat;
            if let Some(beat) = leader.session_beat {
                self.same("beat of the leader's session", &Some(&beat), &self.beats.get(&leader.session));
            }
        }
        self.same("revision", &standing.revision, &self.revision());
        self.same("seq", &standing.seq, &seq);
        let issued = self.tokens.last().copied().unwrap_or_default();
        assert!(standing.token >= issued, "seed {} step {}: {} of {issued}", self.seed, self.step, standing.token);
    }

    async fn resign(&mut self) {
        let group = self.ledger.group();
        let session = group.leader.filter(|_| !self.dice.one_in(3)).unwrap_or_else(|| self.dice.of(&self.sessions));
        let term = if self.dice.one_in(4) { Term(group.term.0 + 1) } else { group.term };
        self.store.resign(session, term).await.expect("a leader may resign");
        let effects = self.ledger.resign(session, term);
        self.heard(effects).await;
    }

    /// Compares what was published with what the ledger says.
    async fn heard(&mut self, effects: Effects) {
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
                    self.same("published batch", &hint, &Some(Hint::Batch(batch.clone())));
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
                    Ok(Some(hint)) => self.same("published message", &Some(hint), &message.take()),
                    Ok(None) => {
                        // The end of a stream is a gap; a store may end it with the session.
                        let topic = Topic::Session(self.sessions[at]);
                        self.session_hints[at] = self.store.hints(topic).await.expect("a subscription");
                        *self.seen.entry(ENDED.to_owned()).or_default() += 1;
                        (message, gone) = (None, false);
                    }
                    Err(_) => panic!("seed {} step {}: no hint of {message:?}, gone {gone}", self.seed, self.step),
                }
            }
        }
        assert!(messages.is_empty(), "messages to sessions that were never opened: {messages:?}");
    }

    /// Compares all that can be read.
    async fn compare(&mut self) {
        let (mut keys, mut cursor, mut first) = (BTreeMap::new(), None::<Cursor>, None);
        loop {
            let page = self.store.scan(cursor.take()).await.expect("a page");
            keys.extend(page.keys.iter().map(|view| (view.key.clone(), view.clone())));
            cursor.clone_from(&page.next);
            let first = first.get_or_insert(page);
            self.same("revision of a page", &first.revision, &self.revision());
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
        self.same("group", &page.group, &expected.group);
        self.same("sessions", &by_id(&page.sessions), &by_id(&expected.sessions));
        self.same("keys", &keys, &by_key(expected.keys));
        self.same("stats", &self.store.stats().await.expect("stats"), &self.ledger.stats());

        let mut beats: BTreeMap<_, _> = self.store.beats().await.expect("beats").into_iter().collect();
        for session in self.beats.keys() {
            // A session that was never renewed may be left out.
            beats.entry(*session).or_default();
        }
        self.same("beats", &beats, &self.beats);
        let mut quarantined = self.store.quarantined(1000).await.expect("a list");
        quarantined.sort();
        self.same("quarantined", &quarantined, &self.ledger.quarantined(1000));
        let some = self.store.quarantined(1).await.expect("a list").len();
        self.same("some of the quarantined", &some, &quarantined.len().min(1));

        let records = self.store.records(&self.keys).await.expect("records");
        let expected = self.keys.iter().map(|key| self.ledger.record(key).cloned()).collect();
        self.same("records", &records, &expected);
        for session in self.sessions.clone() {
            let held = self.store.holdings(session).await;
            match (held, self.ledger.holdings(session)) {
                (Ok(mut held), Ok(expected)) => {
                    held.holdings.sort_by(|a, b| a.key.cmp(&b.key));
                    self.same("holdings", &held, &expected);
                }
                (Err(StoreError::SessionEnded), Err(_)) => {}
                (held, expected) => self.same("holdings", &held.is_ok(), &expected.is_ok()),
            }
        }
        self.compare_changes().await;
    }

    async fn compare_changes(&mut self) {
        let mut read = Vec::new();
        while self.read < self.revision() {
            let some = self.store.changes(self.read).await.expect("changes").expect("the newest changes are kept");
            self.read = some.last().expect("at least one batch").revision;
            read.extend(some);
        }
        let batches = std::mem::take(&mut self.batches);
        self.same("changes", &read, &batches);
        let now = self.revision();
        self.same("changes", &self.store.changes(now).await.expect("changes"), &Some(Vec::new()));
        self.same("changes", &self.store.changes(Revision(now.0 + 1)).await.expect("changes"), &None);
        // From somewhere in the past, both know the same.
        let back = self.dice.below(20) as u64;
        let since = Revision(self.ledger.revision().0.saturating_sub(back));
        let some = self.store.changes(Revision(since.0 + self.ahead)).await.expect("changes");
        if let (Some(some), Some(mut expected)) = (some, self.ledger.changes(since)) {
            expected.iter_mut().for_each(|batch| batch.revision.0 += self.ahead);
            expected.truncate(some.len());
            assert!(since == self.ledger.revision() || !some.is_empty(), "seed {}: no changes", self.seed);
            self.same("older changes", &some, &expected);
        }
    }

    /// Where the ledger stands, in the store's numbers.
    fn revision(&self) -> Revision {
        Revision(self.ledger.revision().0 + self.ahead)
    }

    fn term(&mut self) -> Term {
        let Term(term) = self.ledger.group().term;
        match self.dice.below(20) {
            0 => Term(term.saturating_sub(1)),
            1 => Term(term + 1),
            2 => Term(u64::MAX),
            _ => Term(term),
        }
    }

    /// A session, mostly a living one.
    fn session(&mut self) -> SessionId {
        let alive: Vec<SessionId> = self.beats.keys().copied().collect();
        if alive.is_empty() || self.dice.one_in(5) { self.dice.of(&self.sessions) } else { self.dice.of(&alive) }
    }

    /// A key with its owner and token: mostly one that has an owner, and mostly the right ones.
    fn owned(&mut self) -> (Key, SessionId, Token) {
        let is_owned = |key: &&Key| self.ledger.record(key).is_some_and(|record| record.view.state.owner().is_some());
        let owned: Vec<Key> = self.keys.iter().filter(is_owned).cloned().collect();
        let key = if owned.is_empty() || self.dice.one_in(8) { self.dice.of(&self.keys) } else { self.dice.of(&owned) };
        let (session, token) = self.owner(&key);
        (key, session, token)
    }

    fn owner(&mut self, key: &Key) -> (SessionId, Token) {
        let owner = self.ledger.record(key).and_then(|record| record.view.state.owner());
        let (mut session, mut token) = owner.unwrap_or((self.dice.of(&self.sessions), Token(1)));
        if self.dice.one_in(8) {
            session = self.dice.of(&self.sessions);
        }
        match self.dice.below(16) {
            0 => token.0 -= 1,
            1 => token.0 += 1,
            2 => token = Token(u64::MAX),
            3 if !self.tokens.is_empty() => token = self.dice.of(&self.tokens.clone()),
            _ => {}
        }
        (session, token)
    }

    fn blob(&mut self) -> Blob {
        let len = match self.dice.below(40) {
            0 => limits::MAX_PAYLOAD_BYTES,
            1 => 20_000,
            2..=9 => self.dice.below(300),
            10..=15 => 1,
            _ => 0,
        };
        let byte = self.dice.of(&[0_u8, 10, 200, 255]);
        Blob::from(vec![byte; len])
    }

    fn number(&mut self) -> u64 {
        self.dice.of(&[0, 1, 2, 1 << 33, limits::MAX_NOT_BEFORE_MS])
    }

    fn op(&mut self) -> Op {
        let key = self.dice.of(&self.keys);
        let session = self.session();
        match self.dice.below(64) {
            0..=9 => Op::Add(Work {
                key,
                weight: self.dice.of(&[1, 1, 1, 2, limits::MAX_WEIGHT]),
                priority: self.dice.of(&[0, 0, 0, -1, i32::MIN, i32::MAX]),
                not_before_ms: if self.dice.one_in(4) { self.number() } else { 0 },
                payload: self.blob(),
            }),
            10..=12 => Op::Remove { key },
            13..=14 => Op::Retry { key },
            15 => Op::Rebalance,
            16..=20 => Op::Join {
                session: self.dice.of(&self.sessions),
                node: NodeId::new(self.dice.of(&["a", "node/1", "ünï\u{1f600}\n"])).expect("a valid name"),
                affinity: self.dice.of(&[0, 1, 1000, 1000, 1000, limits::MAX_AFFINITY]),
                capacity: self.dice.of(&[None, None, None, Some(0), Some(2), Some(u32::MAX)]),
                lease_ms: self.dice.of(&[1, 3000, u32::MAX]),
                seen: Revision(match self.dice.below(8) {
                    0 => self.read.0.saturating_sub(1),
                    1 => self.read.0.saturating_sub(self.dice.next() % 10),
                    2 => self.read.0 + 1,
                    _ => self.read.0,
                }),
            },
            21..=23 => {
                let number = self.alterations.saturating_sub(self.dice.below(2) as u64) + 1;
                self.alterations += 1;
                let delta = self.dice.of(&[0, 1, -1, 100, -100, -5000, i64::MAX, i64::MIN, 1 << 60, i64::MAX - 77]);
                if self.dice.one_in(3) {
                    let affinity = self.dice.of(&[0, 1, 500, 500, limits::MAX_AFFINITY]);
                    return Op::SetAffinity { session, number, affinity };
                }
                Op::AlterAffinity { session, number, delta }
            }
            24 if self.dice.one_in(3) => Op::Drain { session },
            25 if self.dice.one_in(2) => Op::End { session },
            26..=28 => {
                let (key, session, token) = self.owned();
                Op::Confirm { session, key, token, started: !self.dice.one_in(3) }
            }
            29..=31 => {
                let (key, session, token) = self.owned();
                let not_before_ms = self.number();
                Op::GiveUp { session, key, token, not_before_ms }
            }
            32 => {
                let (key, session, token) = self.owned();
                Op::Complete { session, key, token }
            }
            33..=35 => {
                let (key, session, token) = self.owned();
                let bytes = self.blob();
                Op::Checkpoint { session, key, token, bytes }
            }
            36..=49 => Op::Assign { term: self.term(), key, session },
            50..=52 => {
                let (key, _, token) = self.owned();
                Op::Revoke { term: self.term(), key, token }
            }
            53..=54 => {
                let (key, _, token) = self.owned();
                Op::Force { term: self.term(), key, token }
            }
            55 => {
                let mut below = vec![Token(0), Token::ABOVE_ALL];
                below.extend(&self.tokens);
                let mut beat = self.beats.get(&session).copied().unwrap_or_default();
                beat.0 += u64::from(self.dice.one_in(4));
                Op::Expire { term: self.term(), session, beat, healthy_below: self.dice.of(&below) }
            }
            56..=57 => Op::Quarantine { term: self.term(), key },
            58..=59 => Op::Settle { term: self.term(), session },
            60..=61 => Op::EndHold { term: self.term() },
            _ => Op::Assign { term: self.term(), key, session: self.dice.of(&self.sessions) },
        }
    }
}

impl Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("seed", &self.seed).field("step", &self.step).finish_non_exhaustive()
    }
}
