//! The life of a node's sessions: listen, join, and after a loss join again.

use std::{
    collections::BTreeSet,
    future::pending,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;

use super::{
    absolve::Absolution,
    lead,
    observe::target,
    settle::Then,
    shared::{Loss, Shared},
};
use crate::{
    clock::Instant,
    error::StoreError,
    ids::{Revision, SessionId},
    op::{Applied, Op, Outcome, Refusal},
    store::{Hint, HintStream, Topic},
};

/// Between two tries of a program that is too old for its group.
const TOO_OLD: Duration = Duration::from_secs(10);
/// Pauses between tries to subscribe: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How many sessions of before are named. Each but the last two took a try to join that lasted a lease.
const FORMER: usize = 64;
/// The first pause after a subscription has ended.
const RENEW: Duration = Duration::from_millis(5);

/// A session that is being opened. Kept from one try to the next, so that one whose answer was lost is not left behind.
pub(crate) struct Opening {
    session: SessionId,
    /// What is told to it. The subscription comes first: a node that cannot hear must not be given anything.
    hints: Option<HintStream>,
    /// When the first try was sent: the session may have begun then, and its lease with it.
    sent: Option<Instant>,
    /// What all tries ask for, since any of them may be the one that counts.
    affinity: u32,
    /// Sessions whose keys this node acts on no more: the one that it lost, and those that a try since then may have opened.
    former: Vec<SessionId>,
    /// The newest revision that this node has been told.
    seen: Revision,
    /// An earlier try may have opened the session.
    doubtful: bool,
}

impl Opening {
    pub(crate) fn new(shared: &Shared, former: Vec<SessionId>) -> Self {
        let seen = Revision(shared.applied.load(Ordering::Relaxed));
        let affinity = shared.with(|member| member.affinity());
        Self { session: shared.environment.session(), hints: None, sent: None, affinity, former, seen, doubtful: false }
    }

    /// Another one instead of this, which may have come about, and is over.
    fn instead(&mut self, shared: &Shared) -> Self {
        let mut former = std::mem::take(&mut self.former);
        former.push(self.session);
        if former.len() > FORMER {
            former.remove(1);
        }
        Self::new(shared, former)
    }

    /// The session, which may have begun.
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// One try.
    pub(crate) async fn join(&mut self, shared: &Arc<Shared>) -> Result<(SessionId, HintStream), StoreError> {
        let config = &shared.config;
        loop {
            if self.sent.is_some_and(|sent| shared.deadline(sent) <= shared.clock.now()) {
                // An earlier try may have opened it, but it would be dead by now.
                *self = self.instead(shared);
            }
            if self.hints.is_none() {
                let topic = Topic::Session(self.session);
                self.hints = Some(shared.observer.call("subscribe", shared.store.hints(topic)).await?);
            }
            let sent = *self.sent.get_or_insert_with(|| shared.clock.now());
            let join = Op::join(self.session, config.node.clone())
                .affinity(self.affinity)
                .capacity(config.capacity)
                .lease_ms(u32::try_from(config.lease.as_millis()).unwrap_or(u32::MAX))
                .seen(self.seen)
                .reads(config.reads)
                .build();
            // The ends come second: the join is refused where any session has ended since `seen`. All are named each time: an
            // earlier try may have come to nothing, and a leader that hears nothing takes it for a death.
            let ends = self.former.iter().map(|session| Op::End { session: *session });
            let ops: Vec<Op> = [join].into_iter().chain(ends).collect();
            let applied =
                shared.apply("join", &ops).await.inspect_err(|error| self.doubtful |= !error.has_no_effect())?;
            shared.applied.store(applied.revision.0, Ordering::Relaxed);
            match applied.outcomes.first() {
                Some(Outcome::Done | Outcome::Unchanged) => {
                    let Some(hints) = self.hints.take() else { continue };
                    shared.joined(self.session, shared.deadline(sent), self.affinity);
                    tracing::info!(target: target::SESSION, node = %config.node, session = %self.session, "joined");
                    self.absolve(shared, &applied);
                    return Ok((self.session, hints));
                }
                // An earlier try may have opened it, and it has ended since: what was told to it may still be on the way, and
                // no session lives twice.
                Some(Outcome::Refused(Refusal::Late)) if self.doubtful => {
                    *self = Self { seen: applied.revision, ..self.instead(shared) };
                }
                // What a node that comes new to a group always hears if anybody was ever there before.
                Some(Outcome::Refused(Refusal::Late)) => {
                    self.seen = applied.revision;
                    if self.former.is_empty() {
                        shared.heard.store(applied.revision.0, Ordering::Relaxed);
                    }
                }
                Some(Outcome::Refused(Refusal::TooOld { needs })) => {
                    return Err(StoreError::TooOld { needs: *needs, reads: config.reads });
                }
                _ => {
                    *self = self.instead(shared);
                    return Err(StoreError::SessionEnded);
                }
            }
        }
    }

    /// The session has begun. Those before may have been ended by somebody who took this node for dead.
    fn absolve(&self, shared: &Arc<Shared>, joined: &Applied) {
        // An earlier try may have opened it, and it may have been given something since.
        let begun = if joined.outcomes[0] == Outcome::Done { joined.revision } else { self.seen };
        let since = Revision(shared.heard.swap(begun.0, Ordering::Relaxed));
        let known = shared.with(|member| member.take_forfeited());
        // What ended by its own node's word is not held against anybody.
        let expired = self.former.iter().zip(&joined.outcomes[1..]).filter(|(_, outcome)| **outcome != Outcome::Done);
        let former: BTreeSet<SessionId> = expired.map(|(session, _)| *session).collect();
        if !former.is_empty() {
            let absolution = Absolution { former, known, since, until: joined.revision };
            shared.spawn("the absolution of what it lost", absolution.run(shared.clone()));
        }
    }
}

/// Runs until the node ends.
pub(crate) async fn run(shared: Arc<Shared>, mut session: SessionId, mut hints: HintStream) {
    loop {
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.task(listen(shared.clone(), session, hints).in_current_span()));
        tasks.spawn(shared.task(lead::run(shared.clone(), session).in_current_span()));
        tokio::select! {
            biased;
            () = shared.end() => return,
            error = broken(&mut tasks) => return shared.collapse(&error.to_string()),
            () = until_lost(&shared, session) => {}
            () = until_deaf(&shared) => shared.session_ended(session, Loss::Deaf),
        }
        tasks.shutdown().await;
        let (why, until) = shared.loss();
        tracing::warn!(target: target::SESSION, node = %shared.config.node, %session, %why, "lost the session");
        tokio::select! {
            biased;
            () = shared.end() => return,
            next = join_again(&shared, session, until) => (session, hints) = next,
        }
    }
}

/// Completes when a task of the session has died of a panic.
async fn broken(tasks: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            return error;
        }
    }
    pending().await
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

/// Completes when the node has not known for a lease what it was given. Until then, what it cannot start yet is offered to
/// others once in each lease.
async fn until_deaf(shared: &Shared) {
    let lease = shared.config.lease;
    for look in 1_u64.. {
        tokio::time::sleep(lease / 4).await;
        if shared.gaps.lock().deaf_for(shared.clock.now(), lease) {
            return;
        }
        if look.is_multiple_of(4) {
            shared.with(|member| member.offer_held_back());
        }
    }
}

/// Opens the next session, once the program has read of the loss of the last one: before, it could not start anything.
async fn join_again(shared: &Arc<Shared>, lost: SessionId, until: Instant) -> (SessionId, HintStream) {
    let mut opening = None;
    let mut pause = Duration::from_millis(10);
    loop {
        // A flush may also begin between two tries; it is final.
        wound_up(shared, until).await;
        match opening.get_or_insert_with(|| Opening::new(shared, vec![lost])).join(shared).await {
            Ok((session, hints)) => {
                if shared.with(|member| member.draining()) {
                    // The flush began while the join was on its way, so it had no session to speak for, and nothing that
                    // runs. The batcher is gone only when the node has ended.
                    let _ = shared.hand_in(vec![Op::Drain { session }], Some(session), Then::Nothing);
                }
                return (session, hints);
            }
            Err(error @ StoreError::TooOld { .. }) => {
                tracing::error!(target: target::SESSION, node = %shared.config.node, %error, "cannot join any more");
                pause = TOO_OLD;
            }
            Err(error) => {
                tracing::debug!(target: target::SESSION, node = %shared.config.node, %error, "could not join yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Waits until the last session may be ended and the next one makes sense: the program has read of every loss, and has
/// confirmed it, or the old lease is over for everybody. Ended earlier, its keys would be started elsewhere while their
/// work winds up here.
async fn wound_up(shared: &Shared, until: Instant) {
    let mut changed = shared.changed.subscribe();
    loop {
        let (waits, idle) = shared.with(|member| (member.has_unread_loss() || member.draining(), member.is_idle()));
        let left = until.since(shared.clock.now());
        if !waits && (idle || left.is_zero()) {
            return;
        }
        tokio::select! {
            biased;
            // The sender lives as long as `shared`.
            _ = changed.changed() => {}
            () = tokio::time::sleep(left), if !left.is_zero() => {}
        }
    }
}

/// Follows the messages to the session.
async fn listen(shared: Arc<Shared>, session: SessionId, mut hints: HintStream) {
    // Whatever the session before could hear.
    shared.gaps.lock().hears();
    let mut pause = Pause::new(shared.clock.now());
    loop {
        shared.gaps.lock().missed(shared.clock.now());
        resync(&shared, session).await;
        shared.gaps.lock().hears();
        follow(&shared, session, &mut hints).await;
        shared.observer.hint_missed();
        shared.gaps.lock().missed(shared.clock.now());
        let wait = pause.ended(shared.clock.now());
        hints = read_until_it_hears(&shared, session, wait).await;
        pause.begun(shared.clock.now());
    }
}

/// How long to wait after a subscription has ended. Each leads to a reading, so those that end at once must not follow on each
/// other without a break.
pub(super) struct Pause {
    begun: Instant,
    next: Duration,
}

impl Pause {
    /// The first subscription begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, next: RENEW }
    }

    /// The next one has begun.
    pub(super) fn begun(&mut self, now: Instant) {
        self.begun = now;
    }

    /// It has ended: how long to wait before the next.
    pub(super) fn ended(&mut self, now: Instant) -> Duration {
        let wait = if now.since(self.begun) < PAUSES.1 { self.next } else { RENEW };
        self.next = (wait * 2).min(PAUSES.1);
        wait
    }
}

/// Returns when the subscription has ended.
async fn follow(shared: &Shared, session: SessionId, hints: &mut HintStream) {
    loop {
        let hint = tokio::select! {
            biased;
            () = shared.resync.notified() => Some(Hint::Gap),
            () = shared.unsure.notified() => {
                // One try: what it hears is good as long as nothing says otherwise.
                let _ = read(shared, session).await;
                continue;
            }
            hint = hints.next() => hint,
        };
        let follows = match hint {
            Some(Hint::Message(message)) => {
                shared.with(|member| member.session() != Some(session) || member.message(message))
            }
            Some(Hint::Gap) => false,
            Some(Hint::LeaderGone) => {
                shared.leader_gone.notify_one();
                true
            }
            Some(Hint::Batch(_)) => true,
            None => return,
        };
        if !follows {
            shared.observer.hint_missed();
            shared.gaps.lock().missed(shared.clock.now());
            resync(shared, session).await;
            shared.gaps.lock().hears();
        }
    }
}

/// Subscribes anew, after a while. Until that succeeds, the truth is read whenever a poll shows that there is something to read.
async fn read_until_it_hears(shared: &Shared, session: SessionId, wait: Duration) -> HintStream {
    let mut subscription = pin!(async {
        tokio::time::sleep(wait).await;
        subscribe(shared, Topic::Session(session)).await
    });
    loop {
        tokio::select! {
            biased;
            () = shared.resync.notified() => resync(shared, session).await,
            () = shared.unsure.notified() => drop(read(shared, session).await),
            hints = &mut subscription => return hints,
        }
    }
}

/// Subscribes, again and again until that succeeds.
pub(crate) async fn subscribe(shared: &Shared, topic: Topic) -> HintStream {
    let mut pause = PAUSES.0;
    loop {
        if let Ok(hints) = shared.observer.call("subscribe", shared.store.hints(topic)).await {
            return hints;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Reads the truth, until that succeeds.
async fn resync(shared: &Shared, session: SessionId) {
    while let Err(error) = read(shared, session).await {
        if matches!(error, StoreError::SessionEnded) {
            return shared.session_ended(session, Loss::Ended("a reading of what it holds"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads the truth.
async fn read(shared: &Shared, session: SessionId) -> Result<(), StoreError> {
    shared.with(|member| member.reading());
    let asked = shared.clock.now();
    let truth = shared.observer.call("holdings", shared.store.holdings(session)).await?;
    shared.with(|member| {
        if member.session() == Some(session) {
            member.read(truth);
        }
    });
    shared.gaps.lock().knows_all(asked);
    Ok(())
}
