//! One task that carries the node's ops to the store: whatever has gathered while one batch was on its way goes with the
//! next, so that a thousand confirmations cost a handful of calls.
//!
//! What an answer means for the member is [settled](super::settle) here and not in the program's futures, so that a dropped
//! future loses nothing: once an op is in the queue, it is carried to its end. An op of a session is tried until the store has decided
//! it or the session is over, whatever the store says meanwhile: a store that has once been opened may refuse everything
//! for a moment, and an answer that cannot be read says nothing of the effect.
//!
//! A batch whose answer was lost may still be on its way, and so may a copy that the network has made of one that was
//! answered. Either may come after whatever was said and acknowledged since. The ledger knows stale words of owners and
//! leaders by their tokens and terms; for all others the batch names its [sender](Op::Sender) and a serial number, which
//! rises with each call. Batches go one after the other, so only a copy is ever refused for its number. Where the answer to
//! the copy is the one that came back, what became of the batch is as unknown as if none had come.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem::discriminant,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    observe::target,
    settle::Then,
    shared::{Loss, Shared},
};
use crate::{
    clock::Instant,
    error::{Error, StoreError},
    ids::{Key, SessionId, Token},
    limits,
    op::{Applied, Op, Outcome, Refusal},
};

/// Pauses after failures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// What fits into a batch beside its sender.
const MOST_OPS: usize = limits::MAX_BATCH_OPS - 1;
const MOST_BYTES: usize = limits::MAX_BATCH_BYTES - 64;
/// After so many refusals running of one kind of ops it is not one op that the store does not take.
const MOST_REFUSALS: usize = 8;

pub(crate) type Reply = oneshot::Sender<Result<Vec<Outcome>, Error>>;

/// Ops that go together, and who waits for them.
pub(crate) struct OpRequest {
    ops: Vec<Op>,
    /// The session that the ops speak for; without it they make no sense.
    pub(super) session: Option<SessionId>,
    pub(super) then: Then,
    /// How long to try while the store fails, and until when that is. Without it, for as long as the session lives.
    limit: Option<(Duration, Instant)>,
    /// The store has failed since this was asked for.
    failed: bool,
    /// An earlier try may have taken effect.
    pub(super) again: bool,
    pub(super) reply: Option<Reply>,
}

impl OpRequest {
    /// Ops that are tried for as long as the session lives.
    pub(crate) fn of(session: SessionId, ops: Vec<Op>, then: Then, reply: Option<Reply>) -> Self {
        Self { ops, session: Some(session), then, limit: None, failed: false, again: false, reply }
    }

    /// A confirmation that nobody waits for.
    pub(crate) fn decline(session: SessionId, key: Key, token: Token) -> Self {
        let op = Op::decline(session, key.clone(), token);
        Self::of(session, vec![op], Then::Confirmed { key, token }, None)
    }

    fn bytes(&self) -> usize {
        self.ops.iter().map(Op::bytes).sum()
    }

    /// Whether a late copy could undo something newer.
    fn ages(&self) -> bool {
        self.ops
            .iter()
            .any(|op| matches!(op, Op::Add(_) | Op::Remove { .. } | Op::Retry { .. } | Op::Checkpoint { .. }))
    }

    /// What the ops are about: ops about the same stay in order.
    fn subjects(&self) -> impl Iterator<Item = Option<Key>> {
        self.ops.iter().map(|op| subject(op).cloned())
    }

    /// To be tried again after this.
    fn after(mut self, error: &StoreError) -> Self {
        self.failed = true;
        self.again |= !error.has_no_effect();
        self
    }
}

/// Divides ops into batches that a store takes.
pub(crate) fn batches(ops: Vec<Op>) -> impl Iterator<Item = Vec<Op>> {
    let mut rest = ops.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = vec![rest.next()?];
        let mut bytes = batch[0].bytes();
        while let Some(op) = rest.next_if(|op| {
            bytes += op.bytes();
            batch.len() < MOST_OPS && bytes <= MOST_BYTES
        }) {
            batch.push(op);
        }
        Some(batch)
    })
}

/// The key that an op of a node is about; `None` for the session itself.
fn subject(op: &Op) -> Option<&Key> {
    match op {
        Op::Add(work) => Some(&work.key),
        Op::Remove { key }
        | Op::Retry { key }
        | Op::Confirm { key, .. }
        | Op::GiveUp { key, .. }
        | Op::Complete { key, .. }
        | Op::SetAside { key, .. }
        | Op::Absolve { key, .. }
        | Op::Checkpoint { key, .. } => Some(key),
        _ => None,
    }
}

impl Shared {
    /// Hands ops to the batcher and waits for what became of them.
    pub(crate) async fn submit(
        &self,
        ops: Vec<Op>,
        session: Option<SessionId>,
        then: Then,
    ) -> Result<Vec<Outcome>, Error> {
        self.hand_in(ops, session, then)?.wait().await
    }

    /// Hands ops to the batcher, which takes them in the order in which they come here.
    pub(crate) fn hand_in(&self, ops: Vec<Op>, session: Option<SessionId>, then: Then) -> Result<HandedIn, Error> {
        let limit = session.is_none().then_some(self.config.call_time_limit);
        self.hand_in_for(ops, session, then, limit)
    }

    /// As [`hand_in`](Self::hand_in), with a limit of its own for how long it is tried.
    pub(crate) fn hand_in_for(
        &self,
        ops: Vec<Op>,
        session: Option<SessionId>,
        then: Then,
        limit: Option<Duration>,
    ) -> Result<HandedIn, Error> {
        let (reply, answer) = oneshot::channel();
        let limit = limit.map(|limit| (limit, self.clock.now() + limit));
        let request = OpRequest { ops, session, then, limit, failed: false, again: false, reply: Some(reply) };
        self.requests.send(request).map_err(|_| self.over())?;
        Ok(HandedIn(answer))
    }

    /// Applies a batch. An answer that does not say of each op what became of it cannot be read.
    pub(crate) async fn apply(&self, call: &'static str, ops: &[Op]) -> Result<Applied, StoreError> {
        let applied = self.observer.call(call, self.store.apply(ops)).await?;
        if applied.outcomes.len() == ops.len() {
            return Ok(applied);
        }
        let (said, of) = (applied.outcomes.len(), ops.len());
        Err(StoreError::Corrupt(format!("{said} outcomes of {of} ops")))
    }
}

/// Ops that the batcher has, and carries to their end whether anybody waits or not.
pub(crate) struct HandedIn(oneshot::Receiver<Result<Vec<Outcome>, Error>>);

impl HandedIn {
    pub(crate) fn new(answer: oneshot::Receiver<Result<Vec<Outcome>, Error>>) -> Self {
        Self(answer)
    }

    pub(crate) async fn wait(self) -> Result<Vec<Outcome>, Error> {
        // It may have been on its way.
        let ended = "the node ended before the store had answered";
        let unknown = |_| StoreError::Unavailable { message: ended.into(), source: None };
        self.0.await.map_err(unknown)?
    }
}

/// What the store does not take at present.
#[derive(Default)]
struct Apart {
    /// Not tried, because so many of their kind were refused.
    put_off: Vec<OpRequest>,
    /// Refused, or about the same as something before.
    kept: Vec<OpRequest>,
    about: HashSet<Option<Key>>,
}

impl Apart {
    fn concerns(&self, request: &OpRequest) -> bool {
        request.subjects().any(|subject| self.about.contains(&subject))
    }

    fn put_off(&mut self, request: OpRequest) {
        self.about.extend(request.subjects());
        self.put_off.push(request);
    }

    fn keep(&mut self, request: OpRequest) {
        self.about.extend(request.subjects());
        self.kept.push(request);
    }
}

struct Batcher {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<OpRequest>,
    /// What is to go next, in order.
    waiting: VecDeque<OpRequest>,
    /// How long to wait after the next failure.
    pause: Duration,
    /// Why the last round failed; `None` while all is well.
    trouble: Option<StoreError>,
    /// The serial number of the last batch that named its sender.
    serial: u64,
}

/// Runs until the node ends.
pub(crate) async fn run(shared: Arc<Shared>, requests: mpsc::UnboundedReceiver<OpRequest>) {
    let mut batcher = Batcher {
        shared: shared.clone(),
        requests,
        waiting: VecDeque::new(),
        pause: PAUSES.0,
        trouble: None,
        serial: 0,
    };
    tokio::select! {
        biased;
        () = shared.end() => {}
        () = async { while batcher.gather().await { batcher.round().await } } => {}
    }
}

impl Batcher {
    /// Waits until there is something to do; false where nothing can come any more.
    async fn gather(&mut self) -> bool {
        if self.waiting.is_empty() {
            let Some(first) = self.requests.recv().await else { return false };
            self.waiting.push_back(first);
            // Whoever is about to ask at the same moment, such as a program that confirms many stops, goes along.
            tokio::task::yield_now().await;
        }
        while let Ok(request) = self.requests.try_recv() {
            self.waiting.push_back(request);
        }
        true
    }

    /// One try with as much as goes into a batch.
    async fn round(&mut self) {
        let mut changed = self.shared.changed.subscribe();
        let session = self.shared.with(|member| member.session());
        if self.trouble.is_some() {
            // Whoever has waited for long enough does not wait for its turn as well.
            for request in std::mem::take(&mut self.waiting) {
                let request = self.still_wanted(OpRequest { failed: true, ..request }, session);
                self.waiting.extend(request);
            }
        }
        let batch = self.batch(session);
        if batch.is_empty() {
            if !self.waiting.is_empty() {
                // For a session, or for something that needs none. The sender lives as long as `shared`.
                _ = tokio::time::timeout(PAUSES.1, changed.changed()).await;
            }
            return;
        }
        match self.send(&batch, session).await {
            Ok(applied) => self.applied(batch, applied, session),
            Err(error) => {
                self.failed(batch, error, session).await;
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSES.1);
            }
        }
    }

    /// One call. Says who sends it where a late copy could undo something newer.
    async fn send(&mut self, batch: &[OpRequest], session: Option<SessionId>) -> Result<Applied, StoreError> {
        let sender = session.filter(|_| batch.iter().any(OpRequest::ages)).map(|session| {
            self.serial += 1;
            Op::Sender { session, serial: self.serial }
        });
        let names = usize::from(sender.is_some());
        let ops: Vec<Op> =
            sender.into_iter().chain(batch.iter().flat_map(|request| request.ops.iter().cloned())).collect();
        let mut applied = self.shared.apply("apply", &ops).await?;
        if applied.outcomes.drain(..names).any(|outcome| outcome == Outcome::Refused(Refusal::Superseded)) {
            let message = "this is the answer to a copy of the batch".into();
            return Err(StoreError::Unavailable { message, source: None });
        }
        Ok(applied)
    }

    /// The first that are waiting, as many as go into one batch.
    fn batch(&mut self, session: Option<SessionId>) -> Vec<OpRequest> {
        let (mut batch, mut ops, mut bytes) = (Vec::new(), 0, 0);
        let mut early = Vec::new();
        while let Some(request) = self.waiting.pop_front() {
            ops += request.ops.len();
            bytes += request.bytes();
            if !batch.is_empty() && (ops > MOST_OPS || bytes > MOST_BYTES) {
                self.waiting.push_front(request);
                break;
            }
            if session.is_none() && request.ages() {
                // Nobody would know a late copy of it.
                early.extend(self.still_wanted(OpRequest { failed: true, ..request }, session));
            } else {
                batch.extend(self.still_wanted(request, session));
            }
        }
        early.into_iter().rev().for_each(|request| self.waiting.push_front(request));
        batch
    }

    /// Settles what is over or late, and returns the others.
    fn still_wanted(&self, request: OpRequest, session: Option<SessionId>) -> Option<OpRequest> {
        let late = request.limit.filter(|(_, until)| request.failed && *until <= self.shared.clock.now());
        if request.session.is_some() && request.session != session {
            request.settle(&self.shared, Err(Error::NoSession));
        } else if let Some((limit, _)) = late {
            let error = match &self.trouble {
                Some(error) => error.clone().into(),
                None if session.is_none() && !request.again => Error::NoSession,
                None => StoreError::Timeout { limit }.into(),
            };
            request.settle(&self.shared, Err(error));
        } else {
            return Some(request);
        }
        None
    }

    fn applied(&mut self, batch: Vec<OpRequest>, applied: Applied, session: Option<SessionId>) {
        self.pause = PAUSES.0;
        self.trouble = None;
        self.shared.applied.fetch_max(applied.revision.0, Ordering::Relaxed);
        let (mut outcomes, mut unsent) = (applied.outcomes.into_iter(), Vec::new());
        for request in batch {
            let mine: Vec<Outcome> = outcomes.by_ref().take(request.ops.len()).collect();
            match (mine.first(), session) {
                // The sender was refused, and so this: it does not depend on the session, but was sent in its name.
                (Some(Outcome::Refused(Refusal::SessionEnded)), Some(session)) if request.session.is_none() => {
                    self.shared.session_ended(session, Loss::Ended("an op"));
                    unsent.push(request);
                }
                _ => request.settle(&self.shared, Ok(mine)),
            }
        }
        unsent.into_iter().rev().for_each(|request| self.waiting.push_front(request));
    }

    /// Puts back what is to be tried again.
    async fn failed(&mut self, batch: Vec<OpRequest>, error: StoreError, session: Option<SessionId>) {
        if !error.is_transient() && self.trouble.as_ref().is_none_or(StoreError::is_transient) {
            let node = &self.shared.config.node;
            tracing::warn!(target: target::STORE, %node, %error, "the store does not take ops; they are tried again");
        }
        let batch = batch.into_iter().map(|request| request.after(&error));
        if error.is_transient() {
            batch.rev().for_each(|request| self.waiting.push_front(request));
        } else if batch.len() == 1 {
            let mut apart = Apart::default();
            batch.filter_map(|request| self.refused(request, &error)).for_each(|request| apart.keep(request));
            self.set_apart(VecDeque::new(), apart);
        } else {
            let batch = batch.collect();
            self.one_by_one(batch, session).await;
        }
        self.trouble = Some(error);
        self.forget_what_was_replaced();
    }

    /// A checkpoint that nobody waits for any more, and that another one follows, need not be kept: there could be more of them
    /// than memory, as long as the store takes none.
    fn forget_what_was_replaced(&mut self) {
        let mut newer = HashSet::new();
        let waiting = std::mem::take(&mut self.waiting);
        for request in waiting.into_iter().rev() {
            let replaced = match &request.then {
                Then::Checkpointed { key, token } => !newer.insert((key.clone(), *token)),
                _ => false,
            };
            if !replaced || request.reply.as_ref().is_some_and(|reply| !reply.is_closed()) {
                self.waiting.push_front(request);
            }
        }
    }

    /// What the store does not take may be a single op, or one kind of ops, which must not hold up all others: each request is
    /// tried alone.
    async fn one_by_one(&mut self, batch: Vec<OpRequest>, session: Option<SessionId>) {
        let (mut untried, mut apart) = (VecDeque::new(), Apart::default());
        let mut refusals: HashMap<_, usize> = HashMap::new();
        let mut broken_off = false;
        for request in batch {
            let kind = request.ops.first().map(discriminant);
            if apart.concerns(&request) {
                apart.keep(request);
            } else if broken_off {
                untried.push_back(request);
            } else if refusals.get(&kind).is_some_and(|refusals| *refusals >= MOST_REFUSALS) {
                apart.put_off(request);
            } else {
                match self.send(std::slice::from_ref(&request), session).await {
                    Ok(applied) => {
                        refusals.remove(&kind);
                        self.applied(vec![request], applied, session);
                    }
                    Err(error) => {
                        broken_off = error.is_transient();
                        *refusals.entry(kind).or_default() += 1;
                        if let Some(request) = self.refused(request.after(&error), &error) {
                            apart.keep(request);
                        }
                    }
                }
            }
        }
        self.set_apart(untried, apart);
    }

    /// Puts what the store does not take behind all else but what is about the same.
    fn set_apart(&mut self, untried: VecDeque<OpRequest>, mut apart: Apart) {
        let waiting = std::mem::replace(&mut self.waiting, untried);
        for request in waiting {
            if apart.concerns(&request) { apart.keep(request) } else { self.waiting.push_back(request) }
        }
        self.waiting.extend(apart.put_off);
        self.waiting.extend(apart.kept);
    }

    /// A request alone that has failed: whether it is to be tried again.
    fn refused(&self, request: OpRequest, error: &StoreError) -> Option<OpRequest> {
        if error.is_transient() || request.limit.is_none() {
            return Some(request);
        }
        request.settle(&self.shared, Err(error.clone().into()));
        None
    }
}
