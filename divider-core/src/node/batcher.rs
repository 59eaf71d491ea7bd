//! One task that carries the node's ops to the store: whatever has gathered while one batch was on its way goes with the
//! next, so that a thousand confirmations cost a handful of calls.
//!
//! What an answer means for the member is settled here and not in the program's futures, so that a dropped future loses
//! nothing: once an op is in the queue, it is carried to its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{drain, shared::Shared};
use crate::{Error, InvalidInput, Key, Op, Outcome, Refusal, SessionId, StopReason, StoreError, Token, limits};

/// What the answer means for this node.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Nothing,
    Confirmed { key: Key, token: Token },
    Completed { key: Key, token: Token },
    GaveUp { key: Key, token: Token },
    Checkpointed { key: Key, token: Token },
    Affinity,
    Drained,
    Retried { key: Key },
}

/// Ops that go together, and who waits for them.
pub(crate) struct Request {
    pub(crate) ops: Vec<Op>,
    /// The session that the ops speak for; without it they make no sense.
    pub(crate) session: Option<SessionId>,
    pub(crate) then: Then,
    /// How long to try while the store is out of reach. Ops of a session are tried for as long as it lives.
    pub(crate) time_limit: Option<Duration>,
    pub(crate) reply: Option<oneshot::Sender<Result<Vec<Outcome>, Error>>>,
}

impl Request {
    /// A confirmation that nobody waits for.
    pub(crate) fn decline(op: Op) -> Self {
        let (session, then) = match &op {
            Op::Confirm { session, key, token, .. } => {
                (Some(*session), Then::Confirmed { key: key.clone(), token: *token })
            }
            _ => (None, Then::Nothing),
        };
        Self { ops: vec![op], session, then, time_limit: None, reply: None }
    }

    fn bytes(&self) -> usize {
        self.ops.iter().map(Op::bytes).sum()
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
        let (reply, answer) = oneshot::channel();
        let time_limit = session.is_none().then_some(self.config.call_time_limit);
        let request = Request { ops, session, then, time_limit, reply: Some(reply) };
        self.requests.send(request).map_err(|_| Error::Cancelled)?;
        Ok(HandedIn(answer))
    }
}

/// Ops that the batcher has, and carries to their end whether anybody waits or not.
pub(crate) struct HandedIn(oneshot::Receiver<Result<Vec<Outcome>, Error>>);

impl HandedIn {
    pub(crate) async fn wait(self) -> Result<Vec<Outcome>, Error> {
        self.0.await.map_err(|_| Error::Cancelled)?
    }
}

/// Runs until the node ends.
pub(crate) async fn run(shared: Arc<Shared>, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(request) => request,
            None => match tokio::select! { biased; () = shared.end() => None, request = requests.recv() => request } {
                Some(request) => request,
                None => return,
            },
        };
        // Whoever is about to ask at the same moment, such as a program that confirms many stops, goes along.
        tokio::task::yield_now().await;
        let (mut ops, mut bytes) = (first.ops.len(), first.bytes());
        let mut batch = vec![first];
        while let Ok(request) = requests.try_recv() {
            ops += request.ops.len();
            bytes += request.bytes();
            if ops > limits::MAX_BATCH_OPS || bytes > limits::MAX_BATCH_BYTES {
                next = Some(request);
                break;
            }
            batch.push(request);
        }
        tokio::select! {
            biased;
            () = shared.end() => return,
            () = carry(&shared, batch) => {}
        }
    }
}

/// Applies a batch, again and again until it is known what became of it or nobody wants to know any more.
async fn carry(shared: &Arc<Shared>, mut batch: Vec<Request>) {
    let began = shared.clock.now();
    let mut pause = Duration::from_millis(5);
    let mut again = false;
    let mut last = None;
    loop {
        let session = shared.with(|member| member.session());
        let waited = shared.clock.now().since(began);
        batch = batch
            .into_iter()
            .filter_map(|request| {
                let over = request.session.is_some() && request.session != session;
                let late = request.time_limit.is_some_and(|limit| again && waited >= limit);
                if over {
                    request.settle(shared, Err(Error::NoSession), again);
                } else if late {
                    let limit = request.time_limit.unwrap_or_default();
                    let error = last.clone().unwrap_or(StoreError::Timeout { limit });
                    request.settle(shared, Err(error.into()), again);
                } else {
                    return Some(request);
                }
                None
            })
            .collect();
        if batch.is_empty() {
            return;
        }
        let ops: Vec<Op> = batch.iter().flat_map(|request| request.ops.iter().cloned()).collect();
        match shared.observer.call("apply", shared.store.apply(&ops)).await {
            Ok(applied) => {
                shared.applied.fetch_max(applied.revision.0, Ordering::Relaxed);
                let mut outcomes = applied.outcomes.into_iter();
                for request in batch {
                    let mine = outcomes.by_ref().take(request.ops.len()).collect();
                    request.settle(shared, Ok(mine), again);
                }
                return;
            }
            Err(error) if error.is_transient() => {
                again = true;
                last = Some(error);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(error) => {
                for request in batch {
                    request.settle(shared, Err(error.clone().into()), again);
                }
                return;
            }
        }
    }
}

impl Request {
    /// Draws the consequences of an answer, and passes it on. `again` says that the ops may have been applied before.
    fn settle(self, shared: &Arc<Shared>, answer: Result<Vec<Outcome>, Error>, again: bool) {
        let refusal = match answer.as_ref().map(|outcomes| outcomes.first()) {
            Ok(Some(Outcome::Refused(refusal))) => Some(*refusal),
            _ => None,
        };
        if refusal == Some(Refusal::SessionEnded)
            && let Some(session) = self.session
        {
            shared.session_ended(session);
        }
        let result = consequences(shared, &self.then, answer, refusal, again);
        if let Some(reply) = self.reply {
            // Whoever asked may have gone.
            let _ = reply.send(result);
        }
    }
}

fn consequences(
    shared: &Arc<Shared>,
    then: &Then,
    answer: Result<Vec<Outcome>, Error>,
    refusal: Option<Refusal>,
    again: bool,
) -> Result<Vec<Outcome>, Error> {
    let lost = |key: &Key| match &answer {
        Err(Error::NoSession) => Some(Error::Lost { key: key.clone() }),
        _ if refusal == Some(Refusal::SessionEnded) => Some(Error::Lost { key: key.clone() }),
        _ => None,
    };
    // The ledger refuses the ops of an owner only where it is none any more.
    let not_ours = |key: &Key, token: Token| {
        shared.with(|member| member.disowned(key, token));
        // Where it was sent twice, the first may have taken effect, and that may be why the second is refused.
        if again { Error::Lost { key: key.clone() } } else { Error::StaleToken { key: key.clone(), given: token } }
    };
    match then {
        Then::Nothing => answer,
        Then::Confirmed { key, token } => {
            // Whatever the store says, the program has stopped and the key is not this node's any more: done, taken, or
            // lost with the session. Only if it cannot be told does the key stay, until the session ends.
            if answer.is_ok() {
                shared.with(|member| member.gone(key, *token));
            }
            match &answer {
                Err(Error::NoSession) => Ok(Vec::new()),
                _ => answer,
            }
        }
        Then::Completed { key, token } => {
            let done = match (&answer, refusal) {
                (Ok(_), None) => true,
                (Ok(_), Some(Refusal::UnknownKey)) => again,
                _ => false,
            };
            if done {
                shared.with(|member| member.gone(key, *token));
                return Ok(Vec::new());
            }
            shared.with(|member| member.not_completed(key, *token));
            match (lost(key), refusal) {
                (Some(error), _) => Err(error),
                (None, Some(_)) => Err(not_ours(key, *token)),
                (None, None) => answer,
            }
        }
        Then::GaveUp { key, token } => match (lost(key), refusal) {
            (Some(error), _) => Err(error),
            (None, Some(_)) => Err(not_ours(key, *token)),
            (None, None) => {
                if answer.is_ok() {
                    shared.with(|member| member.told_to_stop(key, *token, StopReason::Rebalanced));
                }
                answer
            }
        },
        Then::Checkpointed { key, token } => match (lost(key), refusal) {
            (Some(error), _) => Err(error),
            (None, Some(_)) => Err(not_ours(key, *token)),
            (None, None) => answer,
        },
        Then::Affinity => match (answer, refusal) {
            (Ok(_), Some(Refusal::AffinityOutOfRange(value))) => Err(InvalidInput::OutOfRange {
                what: "affinity",
                value: value.into(),
                min: 0,
                max: limits::MAX_AFFINITY.into(),
            }
            .into()),
            (Ok(_), Some(_)) => Err(Error::NoSession),
            (Ok(outcomes), None) => {
                if let Some(Outcome::Affinity(affinity)) = outcomes.first() {
                    shared.with(|member| member.set_affinity(*affinity));
                }
                Ok(outcomes)
            }
            (Err(error), _) => Err(error),
        },
        Then::Drained => {
            // Without a session there is nothing to drain, and none will be opened any more.
            shared.spawn(drain::stop_all(shared.clone()));
            match answer {
                Err(Error::NoSession) => Ok(Vec::new()),
                answer => answer,
            }
        }
        Then::Retried { key } => match refusal {
            // Where it was sent twice, the first may have done it.
            Some(_) if !again => Err(Error::UnknownKey { key: key.clone() }),
            _ => answer,
        },
    }
}
