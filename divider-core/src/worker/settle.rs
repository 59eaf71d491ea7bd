//! The end of a key: from the end of its task until the store has been told.
//!
//! Nothing is dropped on an error that leaves open who has the key: a call is made again, after a growing pause, until it
//! is known that the key is gone or not this node's any more.

use std::{sync::Arc, time::Duration};

use super::{
    Next,
    common::{Common, Rest},
    job::{HandOver, Job, StopSignal},
    retry::Pause,
    run::How,
};
use crate::{
    divider::{Divider, NotHandedOver},
    error::Error,
    ids::{Key, Token},
    node::target,
    record::StopReason,
};

/// The pauses between two tries of a call.
pub(super) const AGAIN: Pause = Pause::new(Duration::from_millis(50), Duration::from_secs(5));

/// Why something that was to be handed over is missing after a drain that ran out of time.
pub(super) const NOT_IN_TIME: &str = "the store did not keep it in time";

/// Whether the error says that the key, or the whole node, has nothing to do with the task any more.
pub(super) fn is_final(error: &Error) -> bool {
    use Error::{Cancelled, Died, Lost, NotStarted, StaleToken, UnknownKey};
    matches!(error, Cancelled | Died { .. } | Lost { .. } | NotStarted | StaleToken { .. } | UnknownKey { .. })
}

/// A key whose task has ended.
pub(super) struct Ending {
    pub(super) common: Arc<Common>,
    pub(super) job: Job,
    pub(super) teller: Teller,
}

impl Ending {
    /// Tells the store how the task has ended. Says whether a stop was confirmed; one that is read afterwards has still to be.
    pub(super) async fn settle(mut self, how: How, ran: Duration) -> bool {
        if let How::Returned(Next::Complete) = how {
            return self.complete().await;
        }
        self.keep().await;
        match self.teller.stop.reason() {
            Some(reason) => self.hand_back(&how, reason).await,
            None => self.give_up(how, ran).await,
        }
    }

    /// Keeps what is to be handed over. What became of it stands in the job.
    async fn keep(&mut self) {
        let kept = async { drop(self.job.keep().await) };
        tokio::select! {
            () = kept => {}
            () = self.teller.stop.lost() => {}
        }
    }

    async fn complete(&mut self) -> bool {
        self.common.forget(&self.job.key);
        !self.teller.tell(&Word::Complete).await && self.teller.confirm_if_asked().await
    }

    /// The task has ended because it was asked to, or at least after that.
    async fn hand_back(&mut self, how: &How, reason: StopReason) -> bool {
        let (key, token) = (&self.job.key, self.job.token);
        self.common.forget(key);
        if let How::Failed(why) = how {
            tracing::warn!(target: target::WORKER, %key, %token, why, "the task failed after its stop");
        }
        if let Some(why) = self.missing(how, reason) {
            self.common.not_handed_over(NotHandedOver { key: key.clone(), token, why });
        }
        self.teller.confirm().await
    }

    /// What the next owner may miss.
    fn missing(&self, how: &How, reason: StopReason) -> Option<String> {
        match (self.job.handed_over(), how) {
            // There is none.
            _ if reason == StopReason::Removed => None,
            (HandOver::Kept, _) => None,
            (HandOver::Failed(problem), _) => Some(problem),
            (HandOver::Pending(_), _) if reason == StopReason::Lost => {
                Some("the session was lost before the store had kept it".into())
            }
            (HandOver::Pending(_), _) => Some(NOT_IN_TIME.into()),
            // A task that loses its session cannot leave anything.
            _ if reason == StopReason::Lost => None,
            (_, How::Failed(problem)) => Some(problem.clone()),
            (_, How::Cancelled) => Some(format!("the task did not end within {:?} of its stop", self.common.grace)),
            (_, How::Returned(_) | How::NeverBegan) => None,
        }
    }

    /// The task has ended by itself, and its work is not done.
    async fn give_up(&mut self, how: How, ran: Duration) -> bool {
        let failed = match (how, self.job.handed_over()) {
            (How::Failed(problem), _) | (_, HandOver::Failed(problem)) => Some(problem),
            _ => None,
        };
        let rest = self.common.rest(&self.job, failed, ran);
        rest.log(&self.job.key, self.job.token);
        if rest.failed.as_ref().is_some_and(|failure| failure.is_last) {
            return !self.teller.tell(&Word::SetAside(rest)).await && self.teller.confirm_if_asked().await;
        }
        match self.teller.tell(&Word::GiveUp(rest)).await {
            // The stop is on its way, if it is not here.
            true => self.teller.confirm().await,
            false => self.teller.confirm_if_asked().await,
        }
    }
}

/// What the node is to be told of a key.
#[derive(Debug)]
enum Word {
    Complete,
    GiveUp(Rest),
    SetAside(Rest),
    Confirm,
}

impl Word {
    async fn say(&self, divider: &dyn Divider, key: &Key, token: Token) -> Result<(), Error> {
        match self {
            Self::Complete => divider.complete(key, token).await,
            Self::GiveUp(rest) => divider.release(key, token, rest.release()).await,
            Self::SetAside(rest) => divider.set_aside(key, token, rest.why()).await,
            Self::Confirm => divider.confirm_stop_processing(key, token).await,
        }
    }

    /// A key that is to be stopped needs no giving up.
    fn is_wanted(&self, stop: &StopSignal) -> bool {
        !matches!(self, Self::GiveUp(_) | Self::SetAside(_)) || stop.reason().is_none()
    }
}

/// Tells the node about a key, until it has understood.
pub(super) struct Teller {
    pub(super) divider: Arc<dyn Divider>,
    pub(super) key: Key,
    pub(super) token: Token,
    pub(super) stop: StopSignal,
}

impl Teller {
    async fn confirm_if_asked(&mut self) -> bool {
        self.stop.reason().is_some() && self.confirm().await
    }

    /// Waits for the stop, and confirms it.
    pub(super) async fn confirm(&mut self) -> bool {
        self.stop.requested().await;
        // Where it is not done, the key is not this node's any more.
        self.tell(&Word::Confirm).await;
        true
    }

    /// Says it again and again until it is known what became of it, or it is not wanted any more. Says whether it is done;
    /// otherwise the key is not this node's any more, or the word is not wanted.
    async fn tell(&mut self, word: &Word) -> bool {
        let mut pauses = AGAIN.each();
        while word.is_wanted(&self.stop) {
            match word.say(&*self.divider, &self.key, self.token).await {
                Ok(()) => return true,
                Err(error) if is_final(&error) => return false,
                Err(error) => {
                    let (key, token) = (&self.key, self.token);
                    tracing::warn!(target: target::WORKER, %key, %token, %error, ?word, "the node could not be told yet");
                }
            }
            let (pause, reason) = (pauses.next().unwrap_or(AGAIN.most), self.stop.reason());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.changed_from(reason) => {}
            }
        }
        false
    }
}
