//! The backend itself: one group of a Raft cluster, as a [`Store`].

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Group, HintStream, Holdings, InvalidInput, Key, Op, Page, PollReply, Record,
    Revision, SessionId, Stats, Store, StoreError, Term, Topic, limits,
};
use parking_lot::{Mutex, RwLock};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    cluster::{
        member::EndReason,
        router::Router,
        running::{Running, Threads},
        supervisor::{self, Cluster},
    },
    config::RaftConfig,
    consensus::state_machine::StateMachine,
    net::{pool::TrafficClass, wire},
    protocol::{
        messages::{Answer, Call, Owner, Query},
        peer::Peer,
    },
};

/// How often whoever opens a store looks whether a member that has ended was replaced.
const REPLACED: Duration = Duration::from_millis(20);

/// A handle to one group in a Raft cluster that lives in the programs themselves.
///
/// Each process is a *voter*, a *learner* or a *client* of the cluster (see [`Role`](crate::Role)); the store behaves the same on all
/// of them. Clones, and the handles that [`group`](Self::group) makes, share one member: it ends when the last of them is
/// closed or dropped.
///
/// For one machine, three lines are enough:
///
/// ```no_run
/// use divider_core::{Divider, Group, Node};
/// use divider_raft::RaftStore;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RaftStore::builder("/var/lib/me", Group::new("/process/me/")?).build()?;
/// let node = Node::builder(store).build()?;
/// node.start().await?;
/// # Ok(()) }
/// ```
///
/// That is one voter: what it acknowledges is on its disk, and lost with that disk. In production, run three or five
/// voters on machines of their own, each with
///
/// - a [`name`](crate::RaftBuilder::name), and a [directory](RaftStore::builder) on a disk of its own, which must keep
///   what it says it has written;
/// - [`listen`](crate::RaftBuilder::listen), and [`advertise`](RaftConfig::advertise) where the others reach it elsewhere;
/// - the same list of [`seeds`](crate::RaftBuilder::seeds), so that exactly one of them founds the cluster;
/// - TLS (`tls`, with the Cargo feature of that name), or a network that is closed to others;
///
/// and let all other processes be [clients](RaftStore::client) of those.
pub struct RaftStore {
    cluster: Arc<Cluster>,
    group: Group,
    /// Set by `close`, for this handle alone.
    closed: AtomicBool,
    /// Whether a member goes on for this handle.
    holds: bool,
    /// A member's own copy, once this handle has been asked of it: most often what runs stays the same while a handle is open.
    copy: OnceLock<Arc<StateMachine>>,
}

/// How this process takes part in its cluster at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// It has not been opened, or was closed.
    Closed,
    /// It is a client of the members, as it is configured.
    Client,
    /// It is a member.
    Member,
    /// It is a member whose Raft has stopped, for example because its disk was full. It is a client meanwhile, and is opened
    /// again by itself; the text says why it stopped.
    Stopped(String),
    /// It was a member and has been removed. It goes on as a client; when it starts again it joins again.
    Removed,
}

impl RaftStore {
    pub(crate) fn new(config: RaftConfig, group: Group) -> Self {
        let cluster = Cluster {
            config: Arc::new(config),
            starting: tokio::sync::Mutex::default(),
            running: RwLock::default(),
            ended: Mutex::default(),
            open: AtomicUsize::new(1),
        };
        let closed = AtomicBool::new(false);
        Self { cluster: Arc::new(cluster), group, closed, holds: true, copy: OnceLock::new() }
    }

    /// A handle to another group, through the same member.
    ///
    /// # Errors
    /// [`InvalidInput`] where the group's name is empty or too long.
    pub fn group(&self, group: impl AsRef<str>) -> Result<Self, InvalidInput> {
        Ok(self.handle(Group::new(group)?))
    }

    /// The settings.
    pub fn config(&self) -> &RaftConfig {
        &self.cluster.config
    }

    /// This process, if it is a member that has been opened.
    pub fn me(&self) -> Option<Peer> {
        self.cluster.running.read().as_ref()?.router.member.as_ref().map(|member| member.me().clone())
    }

    /// How this process takes part at the moment.
    pub fn condition(&self) -> Condition {
        let running = self.cluster.running.read();
        match (&*running, self.cluster.ended.lock().clone()) {
            (None, _) => Condition::Closed,
            (Some(_), Some(EndReason::Stopped(why))) => Condition::Stopped(why),
            (Some(_), Some(EndReason::Removed)) => Condition::Removed,
            (Some(running), None) if running.router.member.is_some() => Condition::Member,
            (Some(_), None) => Condition::Client,
        }
    }

    /// Whether this process leads Raft at the moment, as far as it knows.
    pub fn leads_raft(&self) -> bool {
        let running = self.cluster.running.read();
        running.as_ref().and_then(|running| running.router.member.as_ref()).is_some_and(|m| m.raft.view().leads)
    }

    #[cfg(test)]
    pub(crate) fn member(&self) -> Option<Arc<crate::cluster::member::Member>> {
        self.cluster.running.read().as_ref()?.router.member.clone()
    }

    /// Ends as a process does that is killed.
    #[cfg(test)]
    pub(crate) async fn die(&self) {
        let running = self.cluster.running.write().take();
        if let Some(running) = running {
            running.give_up().await;
        }
    }

    #[cfg(test)]
    pub(crate) fn distort(&self) {
        self.member().into_iter().for_each(|member| member.machine.distort());
    }

    #[cfg(test)]
    pub(crate) fn trip(&self, applying: bool) {
        let trip = |member: Arc<crate::cluster::member::Member>| {
            if applying { member.machine.trip() } else { member.log.trip() }
        };
        self.member().into_iter().for_each(trip);
    }

    #[cfg(test)]
    pub(crate) fn log_bytes(&self) -> u64 {
        self.member().map_or(0, |member| member.log.bytes())
    }

    #[cfg(test)]
    pub(crate) fn is_stopped(&self) -> bool {
        self.member().is_some_and(|member| member.raft.view().stopped)
    }

    #[cfg(test)]
    pub(crate) fn raft_term(&self) -> Option<u64> {
        Some(self.cluster.running.read().as_ref()?.router.member.as_ref()?.raft.view().term)
    }

    /// Who owns a key. A member answers from its own copy, at once, and may be a moment behind; a client asks the leader.
    /// Cancel safe.
    ///
    /// # Errors
    /// [`StoreError`] where a client cannot reach the cluster.
    pub async fn owner_of(&self, key: &Key) -> Result<Option<Owner>, StoreError> {
        if let Some(copy) = self.copy() {
            return Ok(copy.owner(&self.group, key));
        }
        // Another member has taken the place of the one that this handle knew.
        if let Some(copy) = self.machine() {
            return Ok(copy.owner(&self.group, key));
        }
        // In a box, so that whoever is answered at once carries no room for a question to others around.
        match Box::pin(self.read(Query::Owners(vec![key.clone()]))).await? {
            Answer::Owners(mut owners) => Ok(owners.pop().flatten()),
            _ => Err(unexpected()),
        }
    }

    /// The format that the cluster is written in, as far as this member has come. `None` on a client, and before anything was
    /// written.
    pub fn format(&self) -> Option<u64> {
        let running = self.cluster.running.read();
        let written = running.as_ref()?.router.member.as_ref()?.machine.written();
        Some(written.into()).filter(|written| *written > 0)
    }

    /// Writes a snapshot now, and forgets the log before it. Happens by itself every
    /// [`snapshot_every`](RaftConfig::snapshot_every) entries.
    pub async fn snapshot(&self) {
        let member = self.cluster.running.read().as_ref().and_then(|running| running.router.member.clone());
        if let Some(member) = member {
            member.raft.snapshot().await;
        }
    }

    /// What this member has applied: the index of the last entry, and the ledgers of all groups, encoded.
    #[doc(hidden)]
    pub fn replica(&self) -> Option<(u64, Vec<u8>)> {
        self.cluster.running.read().as_ref()?.router.member.as_ref()?.machine.encoded()
    }

    /// A number over all that this member has applied, at the newest index at which all members note it.
    #[doc(hidden)]
    pub fn sum(&self) -> Option<(u64, u64)> {
        self.cluster.running.read().as_ref()?.router.member.as_ref()?.machine.sum()
    }

    /// As [`sum`](Self::sum), at another index.
    #[doc(hidden)]
    pub fn sum_at(&self, index: u64) -> Option<u64> {
        self.cluster.running.read().as_ref()?.router.member.as_ref()?.machine.sum_at(index)
    }

    fn handle(&self, group: Group) -> Self {
        let closed = self.closed.load(Ordering::Relaxed);
        if !closed {
            self.cluster.open.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            cluster: self.cluster.clone(),
            group,
            closed: AtomicBool::new(closed),
            holds: true,
            copy: OnceLock::new(),
        }
    }

    /// A member's own copy. Asked of every request that is routed, so counts that all threads share are left alone.
    #[inline]
    fn copy(&self) -> Option<&StateMachine> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(copy) = self.copy.get() {
            return Some(&**copy).filter(|copy| !copy.subscribers.is_closed());
        }
        let machine = self.machine()?;
        Some(self.copy.get_or_init(|| machine))
    }

    fn machine(&self) -> Option<Arc<StateMachine>> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.cluster.running.read().as_ref()?.router.member.as_ref()?.machine.clone())
    }

    fn running(&self) -> Result<Arc<Running>, StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        let not_yet = || StoreError::Unavailable { message: "the store has not been opened".into(), source: None };
        self.cluster.running.read().clone().ok_or_else(not_yet)
    }

    /// Runs on the member's own threads, and so does not depend on the caller's.
    async fn inside<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Router>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let running = self.running()?;
        let task = running.threads.handle.spawn(work(running.router.clone()));
        task.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(crate) async fn call(&self, call: Call, class: TrafficClass, again: bool) -> Result<Answer, StoreError> {
        self.inside(|router| async move { router.call(call, class, again).await }).await
    }

    /// A linearizable read: a member asks the leader up to where it must have applied, and reads its own copy.
    async fn read(&self, query: Query) -> Result<Answer, StoreError> {
        let group = self.group.clone();
        self.inside(|router| async move {
            let Some(member) = router.member.clone() else {
                return router.call(Call::Read { group, query }, TrafficClass::Calls, true).await;
            };
            let Answer::Index(index) = router.call(Call::Confirm, TrafficClass::Calls, true).await? else {
                return Err(unexpected());
            };
            let limit = router.config.call_time_limit;
            let reached = tokio::time::timeout(limit, member.machine.reached(index)).await;
            reached.map_err(|_| StoreError::Timeout { limit })?;
            member.read(&group, query).map_err(|fault| match fault {
                crate::protocol::messages::Fault::SessionEnded => StoreError::SessionEnded,
                crate::protocol::messages::Fault::Busy(problem) => {
                    StoreError::Unavailable { message: problem, source: None }
                }
                other => StoreError::Corrupt(format!("{other:?}")),
            })
        })
        .await
    }
}

impl RaftStore {
    /// A handle that keeps no member running, beside those that are made from it.
    #[doc(hidden)]
    #[must_use]
    pub fn unheld(mut self) -> Self {
        if std::mem::take(&mut self.holds) && !self.closed.load(Ordering::Relaxed) {
            self.cluster.open.fetch_sub(1, Ordering::Relaxed);
        }
        self
    }
}

impl Clone for RaftStore {
    fn clone(&self) -> Self {
        self.handle(self.group.clone())
    }
}

impl Drop for RaftStore {
    fn drop(&mut self) {
        if self.holds && !self.closed.swap(true, Ordering::Relaxed) {
            self.cluster.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for RaftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftStore").field("group", &self.group).field("me", &self.me()).finish_non_exhaustive()
    }
}

pub(crate) fn unexpected() -> StoreError {
    StoreError::Corrupt("an answer to another question".into())
}

#[async_trait]
impl Store for RaftStore {
    fn name(&self) -> &'static str {
        "raft"
    }

    async fn open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        let mut running = {
            let _starting = self.cluster.starting.lock().await;
            let known = self.cluster.running.read().clone();
            match known {
                Some(running) => running,
                None => {
                    let config = self.cluster.config.clone();
                    let running = Running::start(config.clone(), Threads::start(&config)?).await?;
                    *self.cluster.running.write() = Some(running.clone());
                    running.threads.handle.spawn(supervisor::supervise(Arc::downgrade(&self.cluster)));
                    running
                }
            }
        };
        loop {
            tokio::select! {
                ready = running.ready() => return ready,
                // A client takes its place, and answers as well.
                Some(_) = running.ends() => tokio::time::sleep(REPLACED).await,
            }
            running = self.running()?;
        }
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        if let Some(problem) = wire::too_large(ops) {
            return Err(StoreError::Misconfigured(problem));
        }
        let call = Call::Apply { group: self.group.clone(), ops: ops.to_vec() };
        match self.call(call, TrafficClass::Calls, false).await? {
            Answer::Applied(applied) => Ok(applied),
            _ => Err(unexpected()),
        }
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        match self.call(Call::Renew { group: self.group.clone(), session }, TrafficClass::Beats, true).await? {
            Answer::Beat(beat) => Ok(beat),
            _ => Err(unexpected()),
        }
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        match self.call(Call::Poll { group: self.group.clone(), session, claim }, TrafficClass::Beats, true).await? {
            Answer::PollReply(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        self.call(Call::Resign { group: self.group.clone(), session, term }, TrafficClass::Calls, true).await.map(drop)
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        match self.call(Call::Beats { group: self.group.clone() }, TrafficClass::Beats, true).await? {
            Answer::Beats(beats) => Ok(beats),
            _ => Err(unexpected()),
        }
    }

    async fn silences(&self) -> Result<Vec<(SessionId, Beat, Duration)>, StoreError> {
        match self.call(Call::Silences { group: self.group.clone() }, TrafficClass::Beats, true).await? {
            Answer::Silences(silences) => Ok(silences),
            _ => Err(unexpected()),
        }
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        match self.read(Query::Holdings(session)).await? {
            Answer::Holdings(holdings) => Ok(holdings),
            _ => Err(unexpected()),
        }
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        match self.read(Query::Changes(since)).await? {
            Answer::Changes(changes) => Ok(changes),
            _ => Err(unexpected()),
        }
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        match self.read(Query::Scan(cursor)).await? {
            Answer::Page(page) => Ok(page),
            _ => Err(unexpected()),
        }
    }

    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let mut all = Vec::with_capacity(keys.len());
        for keys in keys.chunks(limits::MAX_BATCH_OPS) {
            match self.read(Query::Records(keys.to_vec())).await? {
                Answer::Records(records) => all.extend(records),
                _ => return Err(unexpected()),
            }
        }
        Ok(all)
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        match self.read(Query::Stats).await? {
            Answer::Stats(stats) => Ok(stats),
            _ => Err(unexpected()),
        }
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        match self.read(Query::Quarantined(limit as u64)).await? {
            Answer::Keys(keys) => Ok(keys),
            _ => Err(unexpected()),
        }
    }

    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        let group = self.group.clone();
        self.inside(|router| async move {
            if let Some(member) = &router.member {
                return Ok(Box::pin(ReceiverStream::new(member.subscribe(&group, topic))) as HintStream);
            }
            let begin = match topic {
                Topic::Session(session) => session.0.as_u64_pair().0,
                Topic::Group => 0,
            };
            let limit = Duration::from_millis(500).min(router.config.call_time_limit);
            let mut last = "no member is known".to_owned();
            for target in router.members(begin).await {
                match router.pool.subscribe(&target, group.clone(), topic, limit).await {
                    Ok(hints) => return Ok(Box::pin(hints) as HintStream),
                    Err(error) => last = error.to_string(),
                }
            }
            Err(StoreError::Unavailable { message: last, source: None })
        })
        .await
    }

    async fn close(&self) {
        if !self.holds || self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        if self.cluster.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            let running = self.cluster.running.write().take();
            *self.cluster.ended.lock() = None;
            if let Some(running) = running {
                running.stop().await;
            }
        }
    }
}
