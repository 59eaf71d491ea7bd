//! The driver: the only code with tasks, timers and sockets. It implements [`Divider`] once, for every backend.
//!
//! # Who does what
//! - the *beat thread* renews the lease and nothing else, on a runtime of its own;
//! - the *session task* joins, notices a loss, and joins again; beside it run the *listener*, which feeds messages to the
//!   `Member`, and the *leadership task*, which looks out for leadership and drives the
//!   `Leader` while it has it;
//! - the *batcher* carries ops to the store and settles their outcomes;
//! - the program's calls and streams look into the member under a short lock, and never wait for one another.

mod absolve;
mod batcher;
mod beat;
mod builder;
mod drain;
mod duty;
mod environment;
mod feed;
mod gap_tracker;
mod health;
mod lead;
mod leader_watch;
mod observe;
mod part;
mod removals;
mod session;
mod settle;
mod shared;
mod source_reader;
mod stream;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc, oneshot};
use tracing::Instrument;

pub use builder::NodeBuilder;
pub use environment::{Environment, Task};
pub use health::Health;
pub(crate) use observe::target;

use crate::{
    config::NodeConfig,
    divider::{Assigned, Assignment, Divider, Event, Events, Flushed, Release, Stop},
    error::{Error, InvalidInput, StoreError},
    ids::{Key, NodeId, SessionId, Term, Token},
    limits,
    member::{Confirmation, Declared, Member, Queue},
    op::{Op, Outcome, affinity_in_range},
    record::{Blob, Record, Text, Work},
    store::{Stats, Store},
};
use batcher::{HandedIn, OpRequest, batches};
use session::Opening;
use settle::Then;
use shared::Shared;

/// A node of a group, over any [`Store`]. Clones are handles to the same node.
///
/// ```
/// # use divider_core as divider;
/// use divider::{Divider, MemoryStore, Node, Work};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder(MemoryStore::new()).build()?;
/// let (mut starts, mut stops) = (node.start_processing(), node.stop_processing());
/// node.start().await?;
/// node.add_work(vec![Work::new("tenant-17")?]).await?;
///
/// let work = starts.next().await.ok_or("the node was cancelled")?;
/// assert!(node.is_current(&work.key, work.token));
///
/// // At shutdown: every key is asked for, and free for the next node once it is confirmed.
/// let flush = tokio::spawn({ let node = node.clone(); async move { node.flush_and_cancel().await } });
/// let stop = stops.next().await.ok_or("the node was cancelled")?;
/// node.confirm_stop_processing(&stop.key, stop.token).await?;
/// assert!(flush.await??.is_clean());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    handle: Arc<Handle>,
}

/// Ends the node when the last handle and the last stream are gone.
struct Handle {
    shared: Arc<Shared>,
    /// What `start` needs, and whether it is done. Held while starting.
    starting: Mutex<Starting>,
    /// Who reads the streams.
    readers: stream::Readers,
}

struct Starting {
    requests: Option<mpsc::UnboundedReceiver<OpRequest>>,
    opened: bool,
    /// Whether there is a thread that renews the lease.
    beats: bool,
    opening: Option<Opening>,
    closed: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.shut_down();
    }
}

/// Ends the node when it is dropped.
struct EndsNode<'a>(&'a Shared);

impl Drop for EndsNode<'_> {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

/// How long to wait for a store that closes.
const CLOSE: Duration = Duration::from_secs(10);

impl Node {
    /// Begins to build a node over a store.
    pub fn builder<S: Store>(store: S) -> NodeBuilder<S> {
        NodeBuilder::new(store)
    }

    /// The node's settings.
    pub fn config(&self) -> &NodeConfig {
        &self.shared().config
    }

    /// The current session; `None` before the start, after the end, and between a loss and the next join.
    pub fn session(&self) -> Option<SessionId> {
        if self.shared().has_ended() {
            return None;
        }
        self.shared().with(|member| member.session())
    }

    /// Whether this node leads its group at the moment, as far as it knows.
    pub fn is_leader(&self) -> bool {
        !self.shared().has_ended() && self.shared().leading.borrow().is_some()
    }

    /// Waits until [`is_leader`](Self::is_leader) is not `leads`: until this node begins to lead, or leads no more. A node that
    /// has ended never leads again.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn leadership_changed(&self, leads: bool) {
        // The sender lives as long as `self`.
        let _ = self.shared().leading.subscribe().wait_for(|leading| leading.is_some() != leads).await;
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// The node, if it has been started and has not ended.
    async fn running(&self) -> Result<&Shared, Error> {
        if self.shared().has_ended() {
            return Err(self.shared().over());
        }
        if self.shared().is_started() { Ok(self.shared()) } else { Err(Error::NotStarted) }
    }

    /// Applies ops that belong to no session, in batches.
    async fn declare(&self, ops: Vec<Op>) -> Result<(), Error> {
        let shared = self.running().await?;
        for batch in batches(ops) {
            shared.submit(batch, None, Then::Nothing).await?;
        }
        Ok(())
    }

    /// Sends one op about a key that this node acts on.
    async fn act(
        &self,
        key: &Key,
        token: Token,
        check: impl FnOnce(&mut Member) -> Result<SessionId, Error>,
        op: impl FnOnce(SessionId, Key, Declared) -> Op,
        then: impl FnOnce(Key, Token) -> Then,
    ) -> Result<(), Error> {
        let shared = self.running().await?;
        let (session, declared) = shared.with(|member| check(member).map(|session| (session, member.declared(key))))?;
        shared.submit(vec![op(session, key.clone(), declared)], Some(session), then(key.clone(), token)).await.map(drop)
    }

    /// What [`start`](Divider::start) does, unless the node ends meanwhile.
    async fn join(&self, starting: &mut Starting) -> Result<(), Error> {
        let shared = &self.handle.shared;
        if !starting.opened {
            shared.observer.unbounded("open", shared.store.open()).await?;
            starting.opened = true;
        }
        if !starting.beats {
            beat::spawn(shared).map_err(StoreError::unavailable)?;
            starting.beats = true;
        }
        let opening = starting.opening.get_or_insert_with(|| Opening::new(shared, Vec::new()));
        let (session, hints) = opening.join(shared).await?;
        // From here on nothing is awaited and nothing can fail, so a started node is started whole.
        if shared.has_ended() {
            return Err(shared.over());
        }
        let span = || tracing::info_span!(target: target::SESSION, "node", node = %shared.config.node);
        if let Some(requests) = starting.requests.take() {
            shared.spawn("the sending of ops", batcher::run(shared.clone(), requests).instrument(span()));
        }
        shared.spawn("the session", session::run(shared.clone(), session, hints).instrument(span()));
        shared.started();
        Ok(())
    }

    /// Says good-bye to the store, so that nobody has to wait for the lease more than necessary. Ends the node.
    async fn leave(&self, opening: Option<SessionId>) {
        let shared = self.shared();
        let (session, acting, former) = shared.with(|member| {
            // From here on no start is read, so the program acts on nothing but what it acts on now.
            member.drain();
            let former = member.former().filter(|_| member.session().is_none() && member.is_idle());
            let former = former.map(|former| (former, member.take_forfeited()));
            (member.session(), !member.assigned().is_empty(), former)
        });
        // A start that failed may have opened one all the same.
        let session = session.or(opening.filter(|_| !shared.is_started()));
        if !acting {
            drain::last_word(shared).await;
        }
        let leading = *shared.leading.borrow();
        shared.shut_down();
        if session.is_none() && former.is_none() {
            return;
        }
        let farewell = async {
            if let Some((former, had)) = former {
                absolve::farewell(shared, former, had).await?;
            }
            let Some(session) = session else { return Ok(()) };
            let op = if acting { Op::Drain { session } } else { Op::End { session } };
            shared.observer.call("leave", shared.store.apply(&[op])).await?;
            match leading {
                Some(term) if acting => shared.store.resign(session, term).await,
                _ => Ok(()),
            }
        };
        // Best effort: if the store does not hear of it, the lease runs out. One that let a whole lease run out may be away
        // still, and who ends a program does not wait for it as long again.
        let patience = if session.is_some() { self.patience() } else { self.patience() / 4 };
        if !matches!(tokio::time::timeout(patience, farewell).await, Ok(Ok(()))) {
            tracing::info!(target: target::SESSION, node = %shared.config.node, "left without a word to the store");
        }
    }

    /// How long a node that leaves waits for what is only kinder to the others.
    fn patience(&self) -> Duration {
        self.config().lease.min(self.config().call_time_limit)
    }

    /// Without a session the difference is to what the next one is opened with.
    fn alter_without_session(member: &mut Member, by: i64) -> Result<u32, Error> {
        let affinity = i64::from(member.affinity()).saturating_add(by);
        affinity_in_range(affinity.into())?;
        let affinity = u32::try_from(affinity).unwrap_or(limits::MAX_AFFINITY);
        member.set_affinity(affinity);
        Ok(affinity)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("node", &self.config().node).finish_non_exhaustive()
    }
}

#[async_trait]
impl Divider for Node {
    async fn start(&self) -> Result<(), Error> {
        let shared = &self.handle.shared;
        let mut starting = self.handle.starting.lock().await;
        if shared.has_ended() {
            return Err(shared.over());
        }
        if shared.is_started() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = shared.end() => Err(shared.over()),
            joined = self.join(&mut starting) => joined,
        }
    }

    fn start_processing(&self) -> Events<Assignment> {
        stream::events(&self.handle, Queue::Starts, Member::next_start)
    }

    fn stop_processing(&self) -> Events<Stop> {
        stream::events(&self.handle, Queue::Stops, Member::next_stop)
    }

    fn events(&self) -> Events<Event> {
        stream::events(&self.handle, Queue::Both, Member::next_event)
    }

    fn take_events(&self) -> Result<Events<Event>, Error> {
        stream::take(&self.handle, Queue::Both, Member::next_event)
    }

    fn node(&self) -> &NodeId {
        &self.config().node
    }

    fn is_leader(&self) -> bool {
        Self::is_leader(self)
    }

    fn session(&self) -> Option<SessionId> {
        Self::session(self)
    }

    async fn session_changed(&self, from: Option<SessionId>) {
        let mut changed = self.shared().changed.subscribe();
        while Self::session(self) == from && !self.shared().has_ended() {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    async fn confirm_stop_processing(&self, key: &Key, token: Token) -> Result<(), Error> {
        let shared = self.running().await?;
        match shared.with(|member| member.confirm(key, token))? {
            Confirmation::Local => Ok(()),
            Confirmation::Send(op) => {
                let session = match &op {
                    Op::Confirm { session, .. } => Some(*session),
                    _ => None,
                };
                let then = Then::Confirmed { key: key.clone(), token };
                shared.submit(vec![op], session, then).await.map(drop)
            }
        }
    }

    async fn release(&self, key: &Key, token: Token, release: Release) -> Result<(), Error> {
        let pause_ms = u64::try_from(release.pause.as_millis()).unwrap_or(u64::MAX).min(limits::MAX_PAUSE_MS);
        let op = |session, key, declared: Declared| {
            let (failures, why) = release.failed.unwrap_or((declared.failures, String::new()));
            let (generation, why) = (declared.generation, Text::new(&why));
            Op::GiveUp { session, key, token, generation, pause_ms, failures, why }
        };
        let check = |member: &mut Member| member.acting(key, token);
        self.act(key, token, check, op, |key, token| Then::GaveUp { key, token }).await
    }

    async fn set_aside(&self, key: &Key, token: Token, why: &str) -> Result<(), Error> {
        let why = Text::new(why);
        let op = |session, key, Declared { generation, .. }| Op::SetAside { session, key, token, generation, why };
        let check = |member: &mut Member| member.completing(key, token);
        self.act(key, token, check, op, |key, token| Then::Completed { key, token }).await
    }

    async fn complete(&self, key: &Key, token: Token) -> Result<(), Error> {
        let op = |session, key, Declared { generation, .. }| Op::Complete { session, key, token, generation };
        let check = |member: &mut Member| member.completing(key, token);
        self.act(key, token, check, op, |key, token| Then::Completed { key, token }).await
    }

    async fn checkpoint(&self, key: &Key, token: Token, bytes: Blob) -> Result<(), Error> {
        crate::record::size("checkpoint", bytes.len(), limits::MAX_CHECKPOINT_BYTES)?;
        let op = |session, key, _| Op::Checkpoint { session, key, token, bytes };
        let check = |member: &mut Member| member.acting(key, token);
        self.act(key, token, check, op, |key, token| Then::Checkpointed { key, token }).await
    }

    fn assigned(&self) -> Arc<[Assigned]> {
        self.shared().with(|member| member.assigned())
    }

    fn is_current(&self, key: &Key, token: Token) -> bool {
        self.shared().is_current(key, token)
    }

    fn token(&self, key: &Key) -> Option<Token> {
        let token = self.shared().with(|member| member.token(key))?;
        self.is_current(key, token).then_some(token)
    }

    fn affinity(&self) -> u32 {
        self.shared().with(|member| member.affinity())
    }

    async fn set_affinity(&self, affinity: i64) -> Result<(), Error> {
        affinity_in_range(affinity.into())?;
        let affinity = u32::try_from(affinity).unwrap_or(limits::MAX_AFFINITY);
        let shared = self.running().await?;
        let (reply, answer) = oneshot::channel();
        shared.want_affinity(affinity, reply);
        HandedIn::new(answer).wait().await.map(drop)
    }

    async fn alter_affinity(&self, by: i64) -> Result<u32, Error> {
        let shared = self.running().await?;
        let handed_in = shared.with(|member| {
            let Some(session) = member.session() else { return Ok(Err(Self::alter_without_session(member, by)?)) };
            // Numbered and handed in under one lock; see `Shared::ask_for`.
            let number = shared.altered.fetch_add(1, Ordering::SeqCst) + 1;
            let op = Op::AlterAffinity { session, number, delta: by };
            shared.hand_in(vec![op], Some(session), Then::Affinity { wish: None }).map(Ok)
        })?;
        let handed_in = match handed_in {
            Ok(handed_in) => handed_in,
            Err(affinity) => return Ok(affinity),
        };
        match handed_in.wait().await?.first() {
            Some(Outcome::Affinity(affinity)) => Ok(*affinity),
            _ => Err(StoreError::Corrupt("an affinity was changed without a new one".into()).into()),
        }
    }

    async fn flush(&self) -> Result<Flushed, Error> {
        let shared = self.running().await?;
        let mut changed = shared.changed.subscribe();
        let limit = tokio::time::sleep(shared.config.flush_time_limit);
        tokio::pin!(limit);
        let drain = shared.with(|member| {
            // Under the lock: whatever is given back or confirmed from here on goes to the store after it.
            let drain = member
                .session()
                .map(|session| shared.hand_in(vec![Op::Drain { session }], Some(session), Then::Nothing));
            member.drain();
            drain.transpose()
        })?;
        self.handle.shared.spawn("the flush", drain::stop_all(self.handle.shared.clone()));
        let drained = async {
            if let Some(drain) = drain {
                // It is tried until the session is over, which is no error, or the node.
                match drain.wait().await {
                    Ok(_) | Err(Error::NoSession) => {}
                    Err(_) => return Err(shared.over()),
                }
            }
            // What was lost meanwhile may still be running here, so it is waited for as well.
            while !shared.with(|member| member.is_idle()) && !shared.has_ended() {
                // The sender lives as long as `shared`.
                let _ = changed.changed().await;
            }
            Ok::<(), Error>(())
        };
        tokio::select! {
            biased;
            drained = drained => drained?,
            () = &mut limit => {}
        }
        let flushed = self.flushed();
        if !flushed.is_clean() {
            let (node, unconfirmed, lost) = (&shared.config.node, flushed.unconfirmed.len(), flushed.lost.len());
            tracing::warn!(
                target: target::SESSION, %node, unconfirmed, lost,
                "the drain has ended, and the store has not heard of the end of every key"
            );
        }
        Ok(flushed)
    }

    fn flushed(&self) -> Flushed {
        self.shared().with(|member| Flushed::new(member.unconfirmed(), member.lost_in_flush()))
    }

    async fn cancel(&self) -> Result<(), Error> {
        let shared = self.shared();
        let over = shared.has_ended();
        // However this goes on: a node that was to leave and stayed would renew, and do nothing.
        let _ends = EndsNode(shared);
        // A start that is under way is waited for, so that it cannot leave a session behind; one that does not get on is ended.
        let mut starting = match tokio::time::timeout(self.patience(), self.handle.starting.lock()).await {
            Ok(starting) => starting,
            Err(_) => {
                if !shared.is_started() {
                    shared.shut_down();
                }
                self.handle.starting.lock().await
            }
        };
        if starting.closed {
            return Ok(());
        }
        if !over {
            self.leave(starting.opening.as_ref().map(Opening::session)).await;
        }
        if tokio::time::timeout(CLOSE, shared.store.close()).await.is_err() {
            tracing::warn!(target: target::SESSION, node = %shared.config.node, "the store did not close in time");
        }
        starting.closed = true;
        Ok(())
    }

    fn abandon(&self) {
        self.shared().shut_down();
    }

    async fn add_work(&self, work: Vec<Work>) -> Result<(), Error> {
        let mut named = HashSet::with_capacity(work.len());
        for work in &work {
            work.validate()?;
            if !named.insert(&work.key) {
                return Err(InvalidInput::Twice { key: work.key.clone() }.into());
            }
        }
        self.declare(work.into_iter().map(Op::Add).collect()).await
    }

    async fn remove_work(&self, keys: Vec<Key>) -> Result<(), Error> {
        self.declare(keys.into_iter().map(|key| Op::Remove { key }).collect()).await
    }

    async fn retry(&self, key: &Key) -> Result<(), Error> {
        let shared = self.running().await?;
        let then = Then::Retried { key: key.clone() };
        shared.submit(vec![Op::Retry { key: key.clone() }], None, then).await.map(drop)
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, Error> {
        let shared = self.running().await?;
        Ok(shared.observer.call("quarantined", shared.store.quarantined(limit)).await?)
    }

    async fn rebalance(&self) -> Result<(), Error> {
        self.declare(vec![Op::Rebalance]).await
    }

    async fn step_up(&self) -> Result<bool, Error> {
        let shared = self.running().await?;
        let step = Op::Step { term: Term(0), format: shared.config.reads };
        let outcomes = shared.submit(vec![step], None, Then::Nothing).await?;
        Ok(matches!(outcomes.first(), Some(Outcome::Done | Outcome::Unchanged)))
    }

    async fn record(&self, key: &Key) -> Result<Option<Record>, Error> {
        let shared = self.running().await?;
        let records = shared.observer.call("records", shared.store.records(std::slice::from_ref(key))).await?;
        Ok(records.into_iter().next().flatten())
    }

    async fn stats(&self) -> Result<Stats, Error> {
        let shared = self.running().await?;
        Ok(shared.observer.call("stats", shared.store.stats()).await?)
    }
}
