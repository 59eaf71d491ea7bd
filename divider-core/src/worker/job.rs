//! What a task is given: its key, and the word that it should end.

use std::{fmt, ops::Deref, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::settle;
use crate::{
    divider::{Assignment, Divider},
    error::Error,
    node::target,
    record::{Blob, StopReason},
};

/// What a task is given to work on: the key, its token, payload and checkpoint (all fields of [`Assignment`]), and the
/// calls that concern them. Clones are handles to the same task.
#[derive(Clone)]
pub struct Job {
    assignment: Assignment,
    divider: Arc<dyn Divider>,
    state: Arc<State>,
}

struct State {
    /// Counts the calls of `hand_over`, beside what became of the last one.
    hand_over: Mutex<(u64, HandOver)>,
    /// How many [`Hold`]s there are.
    holds: watch::Sender<usize>,
}

/// What the task wants the next owner to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum HandOver {
    /// Nothing in particular.
    #[default]
    None,
    /// These bytes, which are still to be kept.
    Pending(Blob),
    /// It has been kept.
    Kept,
    /// It cannot be kept.
    Failed(String),
}

impl Job {
    pub(super) fn new(assignment: Assignment, divider: Arc<dyn Divider>) -> Self {
        let state = State { hand_over: Mutex::default(), holds: watch::Sender::new(0) };
        Self { assignment, divider, state: Arc::new(state) }
    }

    /// Whether the task may still act on the key; see [`Divider::is_current`].
    pub fn is_current(&self) -> bool {
        self.divider.is_current(&self.key, self.token)
    }

    /// Keeps bytes for the key's next owner. It works until the stop is confirmed, so also after the task was asked to stop;
    /// for what *must* be there when the next owner starts, see [`hand_over`](Self::hand_over).
    ///
    /// Where the store does not answer it waits, until the store does or the session is lost: up to a lease, during which the
    /// task may go on with its key but waits here. A task that has other things to do meanwhile awaits it beside them, or drops
    /// the call: the bytes are kept all the same. The checkpoints of many keys that are asked for at about the same time go to
    /// the store in one call, so there is no need to gather them.
    ///
    /// # Errors
    /// As [`Divider::checkpoint`].
    pub async fn checkpoint(&self, bytes: impl Into<Blob> + Send) -> Result<(), Error> {
        self.divider.checkpoint(&self.key, self.token, bytes.into()).await
    }

    /// The last checkpoint, as a part of the hand-over: the key is not confirmed or given up before it is kept. Where the
    /// store fails it is tried again, with growing pauses, until the session is lost. A second call replaces the bytes of
    /// the first.
    ///
    /// Where it cannot be kept, the key moves all the same, and an error is logged; if that happens in a drain,
    /// [`Flushed::not_handed_over`](crate::Flushed::not_handed_over) names the key. That is so when the store is out of reach
    /// until the lease has run out. A task that keeps what it cannot afford to lose with [`checkpoint`](Self::checkpoint) from
    /// time to time leaves at least that.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the bytes are over [`MAX_CHECKPOINT_BYTES`](crate::limits::MAX_CHECKPOINT_BYTES): nothing
    /// has been kept, and the call may be repeated with fewer. [`Error::Lost`], [`Error::UnknownKey`],
    /// [`Error::StaleToken`], [`Error::Cancelled`], [`Error::Died`]: the key is not this task's any more.
    ///
    /// # Cancel safety
    /// Once polled, the bytes are kept even if the future is dropped, or the task is cancelled after its grace time.
    pub async fn hand_over(&self, bytes: impl Into<Blob> + Send) -> Result<(), Error> {
        let bytes = bytes.into();
        {
            let mut hand_over = self.state.hand_over.lock();
            *hand_over = (hand_over.0 + 1, HandOver::Pending(bytes));
        }
        self.keep().await
    }

    /// Keeps the key until the guard is dropped: its end is not told to the store before, whatever becomes of the task. For
    /// work that goes on beside the task and does not end with it, such as [`tokio::task::spawn_blocking`] or a task of its
    /// own: move the guard into it.
    ///
    /// Take it while the task runs; afterwards the key may be gone already, which [`is_current`](Self::is_current) tells. A
    /// guard that is never dropped keeps the key until the node is cancelled, and makes a drain take its whole time limit.
    ///
    /// ```no_run
    /// # use divider_core::{Job, Next, StopSignal, TaskError};
    /// async fn task(job: Job, _stop: StopSignal) -> Result<Next, TaskError> {
    ///     let hold = job.hold();
    ///     tokio::task::spawn_blocking(move || {
    ///         let _hold = hold;
    ///         // What happens here happens before anybody else is given the key, also if the task is cancelled meanwhile.
    ///     })
    ///     .await?;
    ///     Ok(Next::Complete)
    /// }
    /// ```
    pub fn hold(&self) -> Hold {
        self.state.holds.send_modify(|holds| *holds += 1);
        Hold(self.state.clone())
    }

    /// Waits until no [`Hold`] is left.
    pub(super) async fn released(&self) {
        // The sender lives as long as `self`.
        let _ = self.state.holds.subscribe().wait_for(|holds| *holds == 0).await;
    }

    /// Keeps what is to be handed over, if there is anything, until it is kept or cannot be.
    pub(super) async fn keep(&self) -> Result<(), Error> {
        let mut pauses = settle::AGAIN.each();
        loop {
            let (number, HandOver::Pending(bytes)) = self.state.hand_over.lock().clone() else { return Ok(()) };
            let kept = self.divider.checkpoint(&self.key, self.token, bytes).await;
            match kept {
                Ok(()) => self.kept(number, HandOver::Kept),
                // The drain has run out of time: it stays pending, and is named for that.
                Err(error @ (Error::Cancelled | Error::Died { .. })) => return Err(error),
                Err(error) if settle::is_final(&error) || matches!(error, Error::Invalid(_)) => {
                    self.kept(number, HandOver::Failed(error.to_string()));
                    return Err(error);
                }
                Err(error) => {
                    let (key, token) = (&self.key, self.token);
                    tracing::warn!(target: target::WORKER, %key, %token, %error, "could not hand over yet");
                    tokio::time::sleep(pauses.next().unwrap_or(settle::AGAIN.most)).await;
                }
            }
        }
    }

    /// Notes what became of a call, unless another one followed.
    fn kept(&self, number: u64, outcome: HandOver) {
        let mut hand_over = self.state.hand_over.lock();
        if hand_over.0 == number {
            hand_over.1 = outcome;
        }
    }

    /// How the hand-over stands.
    pub(super) fn handed_over(&self) -> HandOver {
        self.state.hand_over.lock().1.clone()
    }
}

impl Deref for Job {
    type Target = Assignment;
    fn deref(&self) -> &Assignment {
        &self.assignment
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.assignment.fmt(f)
    }
}

/// Keeps a key from being confirmed; see [`Job::hold`].
#[must_use = "the key is held until this is dropped"]
pub struct Hold(Arc<State>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.send_modify(|holds| *holds -= 1);
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

/// Tells a task that it should end, and why; [`Worker`](crate::Worker) has a table of what follows.
///
/// The reason may change from another one to [`Lost`](StopReason::Lost) while the task is ending. Every task that has begun is
/// polled once with that reason, before it is cancelled where it waits.
#[derive(Clone, Debug)]
pub struct StopSignal(pub(super) watch::Receiver<Option<StopReason>>);

impl StopSignal {
    /// Why the task should end; `None` while it should not.
    pub fn reason(&self) -> Option<StopReason> {
        *self.0.borrow()
    }

    /// Waits until the task should end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn requested(&mut self) -> StopReason {
        match self.0.wait_for(Option::is_some).await.map(|reason| *reason) {
            Ok(Some(reason)) => reason,
            // The worker is gone, and with it whoever would confirm.
            _ => StopReason::Lost,
        }
    }

    /// Waits until the session is lost.
    pub(super) async fn lost(&mut self) {
        if self.0.wait_for(|reason| *reason == Some(StopReason::Lost)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the reason is another one.
    pub(super) async fn changed_from(&mut self, was: Option<StopReason>) {
        if self.0.wait_for(|reason| *reason != was).await.is_err() {
            // It will not change any more.
            std::future::pending::<()>().await;
        }
    }
}
