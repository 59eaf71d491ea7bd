//! What the node's tasks, its beat thread and the program's calls have in common.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::{
    Environment, Task,
    batcher::{OpRequest, Reply},
    gap_tracker::GapTracker,
    observe::{Observer, target},
    part::Part,
    settle::Then,
};
use crate::{
    Clock, Error, Instant, Key, NodeConfig, Op, Outcome, Revision, SessionId, Store, StoreError, Term, Token,
    leader::{Now, TokenAges},
    lease::Lease,
    member::{Member, Queue},
    source::SourceConfig,
};

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: NodeConfig,
    pub(crate) source: Option<SourceConfig>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) observer: Observer,
    state: Mutex<State>,
    /// Ops on their way to the store, in order. Read by the batcher, which ends when the node does.
    pub(crate) requests: mpsc::UnboundedSender<OpRequest>,
    /// The lease that the beat thread keeps up.
    pub(crate) lease: watch::Sender<Option<Arc<Lease>>>,
    /// Raised when the session is lost, the last loss has been read, or nothing is left to confirm.
    pub(crate) changed: watch::Sender<()>,
    /// Raised by the beat thread when it has found the session to be over.
    pub(crate) lease_died: Arc<Notify>,
    /// The holdings are to be read again, because a poll has shown that a message was lost.
    pub(crate) resync: Notify,
    /// A message may have been lost, and no poll says so.
    pub(crate) unsure: Notify,
    /// Leadership may have become free.
    pub(crate) leader_gone: Notify,
    /// True once the node has been cancelled or dropped. All tasks end then.
    pub(crate) ended: watch::Sender<bool>,
    /// Which part of the node has died, where that ended it.
    death: OnceLock<String>,
    /// The term in which this node leads.
    pub(crate) leading: watch::Sender<Option<Term>>,
    /// Up to which revision this node, leading, has found nothing more to do. `None` while it does not lead.
    pub(crate) rested: watch::Sender<Option<Revision>>,
    /// Revision of the last batch that this node's own ops have come to.
    pub(crate) applied: AtomicU64,
    pub(crate) token_ages: Mutex<TokenAges>,
    /// Number of the last message that the store had sent at the last poll.
    pub(crate) expected: AtomicU64,
    /// Whether the node hears what it is told.
    pub(crate) gaps: Mutex<GapTracker>,
    started: AtomicBool,
    /// Number of the last change of affinity under the current session. Changes under the lock of `state` alone.
    pub(crate) altered: AtomicU64,
    /// Number of the program's last wish for an affinity.
    wishes: AtomicU64,
}

/// An affinity that the program wants. It outlives the session: what has not been acknowledged is asked for again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    number: u64,
    affinity: u32,
}

/// What was noticed of the end of a session.
#[derive(Clone, Debug)]
pub(crate) enum Loss {
    /// No renewal has counted for a whole lease.
    Lapsed(Option<StoreError>),
    /// The store has said so, in answer to this: the leader expired it, or the store has begun anew.
    Ended(&'static str),
    /// The node could neither hear what it was told nor read it, for a whole lease.
    Deaf,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lapsed(None) => f.write_str("no renewal was answered in time"),
            Self::Lapsed(Some(error)) => write!(f, "its lease could not be renewed in time; the last try: {error}"),
            Self::Ended(call) => write!(f, "the store answered {call} with the news that it has ended"),
            Self::Deaf => f.write_str("the node could neither hear nor read what it was given"),
        }
    }
}

struct State {
    member: Member,
    lease: Option<Arc<Lease>>,
    /// What ended the last session, and until when others may still take its node for the owner of what it held.
    loss: Option<(Loss, Instant)>,
    /// Streams that wait for an event; one for each queue, since a queue has one reader.
    readers: Vec<(Queue, Waker)>,
}

impl Shared {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        config: NodeConfig,
        source: Option<SourceConfig>,
        clock: Arc<dyn Clock>,
        environment: Arc<dyn Environment>,
        requests: mpsc::UnboundedSender<OpRequest>,
    ) -> Self {
        let within = config.quarantine.map_or(Duration::from_secs(10), |quarantine| quarantine.within);
        let back = within.saturating_add(config.lease * 2);
        let state = State { member: Member::new(config.affinity), lease: None, loss: None, readers: Vec::new() };
        Self {
            observer: Observer::new(&config, store.name()),
            store,
            config,
            source,
            clock,
            environment,
            state: Mutex::new(state),
            requests,
            lease: watch::Sender::new(None),
            changed: watch::Sender::new(()),
            lease_died: Arc::new(Notify::new()),
            resync: Notify::new(),
            unsure: Notify::new(),
            leader_gone: Notify::new(),
            ended: watch::Sender::new(false),
            death: OnceLock::new(),
            leading: watch::Sender::new(None),
            rested: watch::Sender::new(None),
            applied: AtomicU64::new(0),
            token_ages: Mutex::new(TokenAges::new(back)),
            expected: AtomicU64::new(0),
            gaps: Mutex::new(GapTracker::default()),
            started: AtomicBool::new(false),
            altered: AtomicU64::new(0),
            wishes: AtomicU64::new(0),
        }
    }

    /// Spawns a task that nobody waits for, and without which the node cannot go on.
    pub(crate) fn spawn(self: &Arc<Self>, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let part = Part::of(Arc::downgrade(self), what);
        tokio::spawn(self.task(async move {
            task.await;
            part.done();
        }));
    }

    /// What is to be spawned so that `task` runs.
    pub(crate) fn task(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        self.environment.task(Box::pin(task))
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono: self.clock.now(), unix_ms: self.clock.unix_ms() }
    }

    /// Until when a lease holds whose renewal was sent at `sent`.
    pub(crate) fn deadline(&self, sent: Instant) -> Instant {
        sent + (self.config.lease - self.config.drift_margin())
    }

    pub(crate) fn is_started(&self) -> bool {
        self.started.load(Ordering::SeqCst)
    }

    pub(crate) fn started(&self) {
        self.started.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Completes when the node ends.
    pub(crate) async fn end(&self) {
        let mut ended = self.ended.subscribe();
        // An error says that the sender is gone, which is an end, too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Looks at or changes the member. Whatever it is, the node fences itself first if its lease has run out: nothing is
    /// ever decided on the word of a dead lease.
    pub(crate) fn with<R>(&self, act: impl FnOnce(&mut Member) -> R) -> R {
        let mut state = self.state.lock();
        let before = state.situation();
        state.fence(self.clock.now(), self.config.drift_margin());
        let result = act(&mut state.member);
        self.follow_up(state, before);
        result
    }

    /// What every change may entail: ops to send, readers to wake, tasks to tell.
    fn follow_up(&self, mut state: parking_lot::MutexGuard<'_, State>, before: Situation) {
        let outbox = state.member.take_outbox();
        let after = state.situation();
        let State { member, readers, .. } = &mut *state;
        let readers: Vec<_> = readers.extract_if(.., |(queue, _)| member.readable(*queue)).collect();
        drop(state);
        for op in outbox {
            if let Op::Confirm { session, key, token, .. } = op {
                // The batcher is gone only when the node has ended.
                let _ = self.requests.send(OpRequest::decline(session, key, token));
            }
        }
        readers.into_iter().for_each(|(_, reader)| reader.wake());
        if after.coarse() != before.coarse() {
            self.changed.send_replace(());
        }
        if before.held != after.held {
            self.observer.held(after.held);
        }
        if before.session.is_some() && after.session.is_none() && !self.has_ended() {
            self.observer.session_lost();
        }
    }

    /// Reads one event for a stream, or leaves its waker.
    pub(crate) fn read<T>(
        &self,
        queue: Queue,
        waker: &Waker,
        next: impl FnOnce(&mut Member) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state.lock();
        let before = state.situation();
        state.fence(self.clock.now(), self.config.drift_margin());
        let event = next(&mut state.member);
        let before_this = match state.readers.iter_mut().find(|(of, _)| *of == queue) {
            Some((_, reader)) if event.is_none() => Some(std::mem::replace(reader, waker.clone())),
            None if event.is_none() => {
                state.readers.push((queue, waker.clone()));
                None
            }
            _ => None,
        };
        self.follow_up(state, before);
        // Not under the lock: what goes with it is the program's.
        drop(before_this);
        event
    }

    /// Whether the program may act on the key at this moment.
    pub(crate) fn is_current(&self, key: &Key, token: Token) -> bool {
        let state = self.state.lock();
        state.member.is_current(key, token)
            && state.lease.as_ref().is_some_and(|lease| lease.is_valid(self.clock.now()))
    }

    /// Takes up a new session, which was opened with this affinity.
    pub(crate) fn joined(&self, session: SessionId, deadline: Instant, affinity: u32) {
        let lease = Arc::new(Lease::new(session, deadline));
        let mut state = self.state.lock();
        if self.has_ended() {
            return; // Nobody would ever end the lease.
        }
        state.member.joined(session);
        state.lease = Some(lease.clone());
        state.loss = None;
        // While nobody can see the new session: a change that was numbered before would put all that follow out of order.
        self.altered.store(0, Ordering::SeqCst);
        self.expected.store(0, Ordering::Relaxed);
        let wanted = state.member.affinity();
        if wanted != affinity {
            // It was changed while the join was on its way.
            let number = self.wishes.fetch_add(1, Ordering::SeqCst) + 1;
            self.ask_for(session, Wish { number, affinity: wanted }, None);
        }
        // Under the lock, so that it cannot follow the end of the node.
        self.lease.send_replace(Some(lease));
    }

    /// The program wants this affinity.
    pub(crate) fn want_affinity(&self, affinity: u32, reply: Reply) {
        let number = self.wishes.fetch_add(1, Ordering::SeqCst) + 1;
        self.wish(Wish { number, affinity }, Some(reply));
    }

    /// Asks for an affinity under the current session, or keeps it for the next one.
    pub(crate) fn wish(&self, wish: Wish, reply: Option<Reply>) {
        let kept = self.with(|member| {
            if wish.number != self.wishes.load(Ordering::SeqCst) {
                return reply; // Another one was asked for since.
            }
            match member.session() {
                Some(session) => {
                    self.ask_for(session, wish, reply);
                    None
                }
                None => {
                    member.set_affinity(wish.affinity);
                    reply
                }
            }
        });
        if let Some(reply) = kept {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(vec![Outcome::Affinity(wish.affinity)]));
        }
    }

    /// Numbered and handed in under the lock of the state: were two changes to overtake each other in between, the one with
    /// the lower number would be taken for a late copy, and lost.
    fn ask_for(&self, session: SessionId, wish: Wish, reply: Option<Reply>) {
        let number = self.altered.fetch_add(1, Ordering::SeqCst) + 1;
        let op = Op::SetAffinity { session, number, affinity: wish.affinity };
        // The batcher is gone only when the node has ended.
        let _ = self.requests.send(OpRequest::of(session, vec![op], Then::Affinity { wish: Some(wish) }, reply));
    }

    /// The session has turned out to be over.
    pub(crate) fn session_ended(&self, session: SessionId, loss: Loss) {
        let mut state = self.state.lock();
        let before = state.situation();
        if let Some(lease) = state.lease.clone().filter(|lease| lease.session() == session) {
            let (now, margin) = (self.clock.now(), self.config.drift_margin());
            let until = if matches!(loss, Loss::Deaf) { lease.deadline() + margin } else { now };
            lease.kill();
            state.loss.get_or_insert((loss, until));
        }
        state.fence(self.clock.now(), self.config.drift_margin());
        self.follow_up(state, before);
    }

    /// What ended the last session, and until when others may still take this node for the owner of what it held.
    pub(crate) fn loss(&self) -> (Loss, Instant) {
        let loss = self.state.lock().loss.clone();
        loss.unwrap_or_else(|| (Loss::Ended("nothing, but sent a message"), self.clock.now()))
    }

    /// The deadline of the current lease.
    pub(crate) fn lease_deadline(&self) -> Option<Instant> {
        self.state.lock().lease.as_ref().map(|lease| lease.deadline())
    }

    /// A part of the node has died, and the rest must not go on without it: it would renew, and do nothing.
    pub(crate) fn collapse(&self, what: &str) {
        if !self.has_ended() {
            let _ = self.death.set(what.into());
            let node = &self.config.node;
            tracing::error!(target: target::SESSION, %node, what, "a part of the node has died; the node ends");
            self.shut_down();
        }
    }

    /// Why an ended node does nothing any more.
    pub(crate) fn over(&self) -> Error {
        self.death.get().map_or(Error::Cancelled, |part| Error::Died { part: part.clone() })
    }

    /// Stops everything, without a word to the store.
    pub(crate) fn shut_down(&self) {
        self.ended.send_replace(true);
        let mut state = self.state.lock();
        self.lease.send_replace(None);
        if let Some(lease) = state.lease.take() {
            lease.kill();
        }
        let readers = std::mem::take(&mut state.readers);
        drop(state);
        readers.into_iter().for_each(|(_, reader)| reader.wake());
        self.changed.send_replace(());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Situation {
    session: Option<SessionId>,
    held: usize,
    idle: bool,
    unread_loss: bool,
}

impl Situation {
    /// What tasks wait for.
    fn coarse(self) -> (Option<SessionId>, bool, bool) {
        (self.session, self.idle, self.unread_loss)
    }
}

impl State {
    fn situation(&self) -> Situation {
        Situation {
            session: self.member.session(),
            held: self.member.held(),
            idle: self.member.is_idle(),
            unread_loss: self.member.has_unread_loss(),
        }
    }

    /// Ends a session whose lease has run out.
    fn fence(&mut self, now: Instant, margin: Duration) {
        if let Some(lease) = self.lease.take_if(|lease| !lease.is_valid(now)) {
            self.loss.get_or_insert_with(|| match lease.deadline() {
                Instant(0) => (Loss::Ended("a renewal"), now),
                deadline => (Loss::Lapsed(lease.trouble()), deadline + margin),
            });
            lease.kill();
            self.member.lose();
        }
    }
}
