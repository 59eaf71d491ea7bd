//! The life of a node's sessions: join, listen, and after a loss join again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{batcher::Then, lead, observe::target, shared::Shared};
use crate::{Hint, Instant, Op, Outcome, Refusal, Revision, SessionId, StoreError, Topic};

/// A session that is being opened. Kept from one try to the next, so that one whose answer was lost is not left behind.
pub(crate) struct Opening {
    session: SessionId,
    /// When the first try was sent: the session may have begun then, and its lease with it.
    sent: Instant,
    /// The session before, whose keys this node acts on no more.
    old: Option<SessionId>,
    /// The newest revision that this node has been told.
    seen: Revision,
}

impl Opening {
    pub(crate) fn new(shared: &Shared, old: Option<SessionId>) -> Self {
        let seen = Revision(shared.applied.load(Ordering::Relaxed));
        Self { session: shared.machine.session(), sent: shared.clock.now(), old, seen }
    }

    /// One try.
    pub(crate) async fn join(&mut self, shared: &Shared) -> Result<SessionId, StoreError> {
        let config = &shared.config;
        loop {
            if shared.deadline(self.sent) <= shared.clock.now() {
                // An earlier try may have opened it, but it would be dead by now.
                *self = Self { old: Some(self.session), ..Self::new(shared, None) };
            }
            let join = Op::Join {
                session: self.session,
                node: config.node.clone(),
                affinity: shared.with(|member| member.affinity()),
                capacity: config.capacity,
                lease_ms: u32::try_from(config.lease.as_millis()).unwrap_or(u32::MAX),
                seen: self.seen,
                reads: config.reads,
            };
            // The end comes second: the join is refused where any session has ended since `seen`.
            let ops: Vec<Op> = [join].into_iter().chain(self.old.map(|session| Op::End { session })).collect();
            let applied = shared.observer.call("join", shared.store.apply(&ops)).await?;
            shared.applied.store(applied.revision.0, Ordering::Relaxed);
            match applied.outcomes.first() {
                Some(Outcome::Done | Outcome::Unchanged) => {
                    shared.joined(self.session, shared.deadline(self.sent));
                    tracing::info!(target: target::SESSION, node = %config.node, session = %self.session, "joined");
                    return Ok(self.session);
                }
                // What a node that comes new to a group always hears if anybody was ever there before.
                Some(Outcome::Refused(Refusal::Late)) => self.seen = applied.revision,
                _ => {
                    *self = Self::new(shared, self.old);
                    return Err(StoreError::SessionEnded);
                }
            }
        }
    }
}

/// Runs until the node ends.
pub(crate) async fn run(shared: Arc<Shared>, mut session: SessionId) {
    loop {
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.task(listen(shared.clone(), session).in_current_span()));
        tasks.spawn(shared.task(lead::run(shared.clone(), session).in_current_span()));
        tokio::select! {
            biased;
            () = shared.end() => return,
            () = until_lost(&shared, session) => {}
        }
        tasks.shutdown().await;
        tracing::warn!(target: target::SESSION, node = %shared.config.node, %session, "lost the session");
        tokio::select! {
            biased;
            () = shared.end() => return,
            next = join_again(&shared, session) => session = next,
        }
    }
}

/// Watches the deadline of the lease, and what the beat thread finds.
async fn until_lost(shared: &Shared, session: SessionId) {
    let mut changed = shared.changed.subscribe();
    loop {
        if shared.with(|member| member.session()) != Some(session) {
            return;
        }
        let left = shared.lease_deadline().map(|deadline| deadline.since(shared.clock.now())).unwrap_or_default();
        tokio::select! {
            biased;
            () = tokio::time::sleep(left) => {}
            () = shared.lease_died.notified() => {}
            _ = changed.changed() => {}
        }
    }
}

/// Opens the next session, once the program has read of the loss of the last one: before, it could not start anything.
async fn join_again(shared: &Shared, lost: SessionId) -> SessionId {
    let mut changed = shared.changed.subscribe();
    let mut opening = None;
    let mut pause = Duration::from_millis(10);
    loop {
        // A flush may also begin between two tries; it is final.
        while shared.with(|member| member.has_unread_loss() || member.draining()) {
            // The sender lives as long as `shared`.
            let _ = changed.changed().await;
        }
        match opening.get_or_insert_with(|| Opening::new(shared, Some(lost))).join(shared).await {
            Ok(session) => {
                if shared.with(|member| member.draining()) {
                    // The flush began while the join was on its way, so it had no session to speak for. The answer is
                    // settled by the batcher, which is gone only when the node has ended.
                    let _ = shared.hand_in(vec![Op::Drain { session }], Some(session), Then::Drained);
                }
                return session;
            }
            Err(error) => {
                tracing::debug!(target: target::SESSION, node = %shared.config.node, %error, "could not join yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Follows the messages to the session.
async fn listen(shared: Arc<Shared>, session: SessionId) {
    loop {
        let hints = shared.observer.call("subscribe", shared.store.hints(Topic::Session(session))).await;
        let Ok(mut hints) = hints else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        resync(&shared, session).await;
        loop {
            let hint = tokio::select! {
                biased;
                () = shared.resync.notified() => Some(Hint::Gap),
                hint = hints.next() => hint,
            };
            match hint {
                Some(Hint::Message(message)) => {
                    let follows = shared.with(|member| member.session() != Some(session) || member.message(message));
                    if !follows {
                        shared.observer.hint_missed();
                        resync(&shared, session).await;
                    }
                }
                Some(Hint::Gap) => {
                    shared.observer.hint_missed();
                    resync(&shared, session).await;
                }
                Some(Hint::LeaderGone) => shared.leader_gone.notify_one(),
                Some(Hint::Batch(_)) => {}
                None => {
                    shared.observer.hint_missed();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    break;
                }
            }
        }
    }
}

/// Reads the truth, until that succeeds.
async fn resync(shared: &Shared, session: SessionId) {
    loop {
        shared.with(|member| member.reading());
        match shared.observer.call("holdings", shared.store.holdings(session)).await {
            Ok(truth) => {
                shared.with(|member| {
                    if member.session() == Some(session) {
                        member.read(truth);
                    }
                });
                return;
            }
            Err(StoreError::SessionEnded) => {
                shared.session_ended(session);
                return;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
