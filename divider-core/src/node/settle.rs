//! What the store's answer to an op means for the node and its program.

use std::sync::Arc;

use super::{
    batcher::OpRequest,
    shared::{Loss, Shared, Wish},
};
use crate::{
    error::{Error, InvalidInput},
    ids::{Key, Token},
    limits,
    op::{Outcome, Refusal},
    record::StopReason,
};

/// What the answer means for this node.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Nothing,
    Confirmed {
        key: Key,
        token: Token,
    },
    Completed {
        key: Key,
        token: Token,
    },
    GaveUp {
        key: Key,
        token: Token,
    },
    Checkpointed {
        key: Key,
        token: Token,
    },
    /// With a wish, which outlives the session, or by a difference.
    Affinity {
        wish: Option<Wish>,
    },
    Retried {
        key: Key,
    },
}

impl OpRequest {
    /// Draws the consequences of an answer, and passes it on.
    pub(super) fn settle(self, shared: &Arc<Shared>, answer: Result<Vec<Outcome>, Error>) {
        let refusal = match answer.as_ref().map(|outcomes| outcomes.first()) {
            Ok(Some(Outcome::Refused(refusal))) => Some(*refusal),
            _ => None,
        };
        if refusal == Some(Refusal::SessionEnded)
            && let Some(session) = self.session
        {
            shared.session_ended(session, Loss::Ended("an op"));
        }
        let over = refusal == Some(Refusal::SessionEnded) || matches!(answer, Err(Error::NoSession));
        let answer = match self.then {
            Then::Affinity { wish } if over || !self.acknowledged(shared, &answer) => match wish {
                // It is not the session's wish but the program's.
                Some(wish) => return shared.wish(wish, self.reply),
                None => Err(Error::NoSession),
            },
            _ => answer,
        };
        let result = consequences(shared, &self.then, answer, refusal, self.again);
        if let Some(reply) = self.reply {
            // Whoever asked may have gone.
            let _ = reply.send(result);
        }
    }

    /// Takes up an affinity that the store has acknowledged. False where the session that it is of is over: the next one has
    /// another.
    fn acknowledged(&self, shared: &Shared, answer: &Result<Vec<Outcome>, Error>) -> bool {
        let Some(Outcome::Affinity(affinity)) = answer.as_ref().ok().and_then(|outcomes| outcomes.first()) else {
            return true;
        };
        shared.with(|member| {
            let current = member.session() == self.session;
            if current {
                member.set_affinity(*affinity);
            }
            current
        })
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
            match (&answer, refusal) {
                (Ok(_), None) => shared.with(|member| member.acknowledged(key, *token)),
                (Ok(_), Some(_)) => shared.with(|member| member.gone(key, *token)),
                (Err(_), _) => {}
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
                shared.with(|member| member.acknowledged(key, *token));
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
        Then::Affinity { .. } => match (answer, refusal) {
            (Ok(_), Some(Refusal::AffinityOutOfRange(value))) => Err(InvalidInput::OutOfRange {
                what: "affinity",
                value: value.into(),
                min: 0,
                max: limits::MAX_AFFINITY.into(),
            }
            .into()),
            (Ok(_), Some(_)) => Err(Error::NoSession),
            (answer, _) => answer,
        },
        Then::Retried { key } => match refusal {
            // Where it was sent twice, the first may have done it.
            Some(_) if !again => Err(Error::UnknownKey { key: key.clone() }),
            _ => answer,
        },
    }
}
