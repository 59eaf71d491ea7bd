//! The in-memory backend: the [`Ledger`] itself, behind a lock, for the nodes of one process.
//!
//! For programs with a single process, for trying things out, and for tests. Nothing survives the process.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    error::StoreError,
    ids::{Beat, Key, Revision, SessionId, Term, Token},
    ledger::{Effects, Ledger},
    op::{Applied, Batch, Op, Outcome, Refusal},
    record::Record,
    store::{Claim, Cursor, Hint, HintStream, Holdings, LeaderView, Page, PollReply, Stats, Store, Topic},
};

/// How many hints wait for a subscriber before it is cut off, which it takes for a gap.
const BACKLOG: usize = 1024;

/// A handle to a group in this process's memory. Clones are handles to the same group, one for each node.
///
/// ```
/// # use divider_core as divider;
/// use divider::MemoryStore;
/// let for_one_node = MemoryStore::new();
/// let for_another_node_of_the_same_group = for_one_node.clone();
/// ```
#[derive(Default)]
pub struct MemoryStore {
    group: Arc<Mutex<Inner>>,
    /// Set by `close`, for this handle alone.
    closed: AtomicBool,
}

#[derive(Default)]
struct Inner {
    ledger: Ledger,
    beats: SessionBeats,
    leader_beat: Beat,
    sessions: HashMap<SessionId, Vec<mpsc::Sender<Hint>>>,
    followers: Vec<mpsc::Sender<Hint>>,
}

/// The beats of living sessions, for backends that keep them in memory.
#[derive(Clone, Debug, Default)]
pub struct SessionBeats(BTreeMap<SessionId, Beat>);

impl SessionBeats {
    /// Raises a beat. The caller has checked that the session lives.
    pub fn renew(&mut self, session: SessionId) -> Beat {
        let beat = self.0.entry(session).or_default();
        beat.0 += 1;
        *beat
    }

    /// The beat of a session; 0 before its first renewal.
    pub fn get(&self, session: SessionId) -> Beat {
        self.0.get(&session).copied().unwrap_or_default()
    }

    /// Whether an op may go to the ledger as far as beats are concerned: an expiry is refused once the beat has moved.
    pub fn check(&self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::Expire { session, beat, .. } if self.get(*session) != *beat => Err(Refusal::StillBeating),
            _ => Ok(()),
        }
    }

    /// Forgets sessions that do not live any more.
    pub fn retain(&mut self, is_alive: impl Fn(SessionId) -> bool) {
        self.0.retain(|session, _| is_alive(*session));
    }
}

impl MemoryStore {
    /// A new, empty group.
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> Result<parking_lot::MutexGuard<'_, Inner>, StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        Ok(self.group.lock())
    }
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        Self { group: self.group.clone(), closed: AtomicBool::new(false) }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl Inner {
    fn tell(&mut self, effects: Effects) -> Vec<Outcome> {
        for (session, message) in effects.messages {
            if let Some(subscribers) = self.sessions.get_mut(&session) {
                send(subscribers, &Hint::Message(message));
            }
        }
        if let Some(batch) = effects.batch {
            send(&mut self.followers, &Hint::Batch(batch));
        }
        effects.outcomes
    }

    fn tell_leader_gone(&mut self) {
        for subscribers in self.sessions.values_mut() {
            send(subscribers, &Hint::LeaderGone);
        }
    }

    fn leader_view(&self) -> Option<LeaderView> {
        let group = self.ledger.group();
        let session = group.leader?;
        let session_beat = self.ledger.is_alive(session).then(|| self.beats.get(session));
        Some(LeaderView { term: group.term, session, beat: self.leader_beat, session_beat, watched: false })
    }
}

/// Sends to all who keep up; whoever does not loses the subscription, and so learns of the gap.
fn send(subscribers: &mut Vec<mpsc::Sender<Hint>>, hint: &Hint) {
    subscribers.retain(|subscriber| subscriber.try_send(hint.clone()).is_ok());
}

#[async_trait]
impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.inner().map(drop)
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        let mut inner = self.inner()?;
        let led = inner.ledger.group().leader;
        let Inner { ledger, beats, .. } = &mut *inner;
        let effects = ledger.apply_checked(ops, Token(0), |op| beats.check(op));
        let outcomes = inner.tell(effects);
        if led.is_some() && inner.ledger.group().leader.is_none() {
            inner.tell_leader_gone();
        }
        let Inner { ledger, beats, sessions, .. } = &mut *inner;
        if ops.iter().any(|op| matches!(op, Op::End { .. } | Op::Expire { .. })) {
            beats.retain(|session| ledger.is_alive(session));
            sessions.retain(|session, _| ledger.is_alive(*session));
        }
        Ok(Applied { outcomes, revision: inner.ledger.revision() })
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        let mut inner = self.inner()?;
        if !inner.ledger.is_alive(session) {
            return Err(StoreError::SessionEnded);
        }
        Ok(inner.beats.renew(session))
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        let mut inner = self.inner()?;
        let seq = inner.ledger.seq(session).ok_or(StoreError::SessionEnded)?;
        let seen = inner.leader_view();
        match claim {
            Claim::Take { stale } if seen.is_none_or(|seen| stale == Some((seen.term, seen.beat))) => {
                let (_, effects) = inner.ledger.lead(session, Term(0));
                inner.leader_beat = Beat(0);
                inner.tell(effects);
            }
            Claim::Lead { term } if seen.is_some_and(|seen| (seen.session, seen.term) == (session, term)) => {
                inner.leader_beat.0 += 1;
            }
            _ => {}
        }
        Ok(PollReply {
            leader: inner.leader_view(),
            revision: inner.ledger.revision(),
            token: inner.ledger.token(),
            seq,
        })
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        let mut inner = self.inner()?;
        let effects = inner.ledger.resign(session, term);
        let resigned = effects.batch.is_some();
        inner.tell(effects);
        if resigned {
            inner.tell_leader_gone();
        }
        Ok(())
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        Ok(self.inner()?.beats.0.iter().map(|(session, beat)| (*session, *beat)).collect())
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        self.inner()?.ledger.holdings(session)
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        Ok(self.inner()?.ledger.changes(since))
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        self.inner()?.ledger.scan(cursor.as_ref())
    }

    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let inner = self.inner()?;
        Ok(keys.iter().map(|key| inner.ledger.record(key)).collect())
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        Ok(self.inner()?.ledger.stats())
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        Ok(self.inner()?.ledger.quarantined(limit))
    }

    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut inner = self.inner()?;
        match topic {
            Topic::Session(session) => {
                let subscribers = inner.sessions.entry(session).or_default();
                subscribers.retain(|subscriber| !subscriber.is_closed());
                subscribers.push(sender);
            }
            Topic::Group => inner.followers.push(sender),
        }
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}
