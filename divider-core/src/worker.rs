//! A task per key: the shortest way from a [`Divider`] to running work.
//!
//! # Why
//! Most programs do the same with the two streams: spawn a task on a start, tell it to end on a stop, confirm when it has.
//! The details are easy to get wrong: a task that ends by itself, panics, ends while it is asked to stop, or does not end
//! at all; a last checkpoint that is not kept; a call to the store that fails. They are dealt with here, once.
//!
//! # How a task ends
//! | the task | and | then |
//! | --- | --- | --- |
//! | returns [`Next::Complete`] | | the key ends for good |
//! | returns [`Next::Release`] | nobody asked it to | the key is given up, and runs again after a short pause, elsewhere if any other node takes it |
//! | returns an error, or panics | nobody asked it to | the same, after the pause that [`Retry`] says |
//! | returns anything else, or panics | after it was asked to stop | the stop is confirmed; an error or a panic is logged, and named by [`Flushed::not_handed_over`] |
//! | goes on after it was asked to stop | for the grace time | it is cancelled where it waits, the stop is confirmed, and the key is named likewise |
//! | runs, or is ending | while its session is lost | it is polled once more, and then cancelled where it waits |
//!
//! [`Worker`] says the same from the side of the task.
//!
//! Nothing of this is told to the store before the last [`Hold`] of the job is dropped and what it
//! [hands over](Job::hand_over) is kept. A call that fails is made again, after growing pauses, until the store has answered
//! or the session is lost.
//!
//! # How a worker ends
//! By its shutdown, with a drain. Where its future is dropped or panics instead, it takes the node with it: a node that
//! lives on without anybody to run its keys would keep them from the others for ever.

mod common;
mod guard;
mod job;
mod retry;
mod run;
mod settle;
mod shutdown;
mod tally;

use std::{
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::sync::Semaphore;

use self::{common::Common, guard::EndsNode, retry::Pause, run::Run};
pub use self::{
    job::{Hold, Job, StopSignal},
    retry::Retry,
    shutdown::{SecondSignal, shutdown_signal},
};
#[cfg(doc)]
use crate::record::StopReason;
use crate::{
    divider::{Divider, Event, Events, Flushed, IntoDivider},
    error::{ConfigError, Error, StoreError},
    node::target,
};

/// Any error of a task.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// The pauses between two tries to start.
const START: Pause = Pause::new(Duration::from_millis(100), Duration::from_secs(10));

/// How long a worker that cannot wait gives its node for a word to the store.
const FAREWELL: Duration = Duration::from_millis(100);

/// What is to become of a key whose task has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The work is done for good: the key ends.
    Complete,
    /// The work is not done, and should run again, on another node if any other takes it.
    Release,
}

/// Runs a task for every key that a [`Divider`] is given.
///
/// ```
/// use std::sync::Arc;
/// # use divider_core as divider;
/// use divider::{Divider, MemoryStore, Next, Node, Work, Worker};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder(MemoryStore::new()).build()?;
/// node.start().await?;
/// node.add_work(vec![Work::new("report-7")?.payload(*b"monthly")]).await?;
///
/// let finished = Arc::new(tokio::sync::Notify::new());
/// let done = finished.clone();
/// Worker::new(node)
///     .run_until(finished.notified(), move |work, _stop| {
///         let done = done.clone();
///         async move {
///             assert_eq!((work.key.as_str(), &work.payload[..]), ("report-7", &b"monthly"[..]));
///             done.notify_one();
///             Ok(Next::Complete)
///         }
///     })
///     .await?;
/// # Ok(()) }
/// ```
///
/// # What a task lives through
/// | what happens | what the task sees | what becomes of it | what the next owner gets |
/// | --- | --- | --- | --- |
/// | the key moves or is removed | [`StopSignal`] says [`Rebalanced`](StopReason::Rebalanced) or [`Removed`](StopReason::Removed) | it has the [grace](Self::grace) time to end, and is cancelled where it waits after that | the last checkpoint and what was [handed over](Job::hand_over), when the task has ended and both are kept; nothing of a removed key |
/// | the program shuts down | [`Flushed`](StopReason::Flushed), at once, also while the store does not answer | the same | the same |
/// | the store does not answer | nothing; [`Job::checkpoint`] and [`Job::hand_over`] wait | it goes on, for as long as the lease holds | nothing yet: nobody else is given the key |
/// | the session is lost: the outage lasts longer than the lease, or the group took the node for dead | [`Lost`](StopReason::Lost), in one poll, also where it was asked to stop before; [`Job::is_current`] says no, and calls about the key fail | it is cancelled at the next `await` that has to wait | the last checkpoint that was kept; the next owner may be running already |
/// | both: the shutdown comes during the outage | `Flushed`, then `Lost` if the lease runs out first | as each says | as each says; [`run_until`](Self::run_until) returns the key in [`Flushed::lost`], and in [`Flushed::not_handed_over`] if it tried to hand something over |
/// | it returns an error, or panics | | the key rests, as [`retry`](Self::retry) says, and is set aside when it has failed too often in a row | the last checkpoint and what was handed over before; [`failures`](crate::Assignment::failures) counts |
/// | it returns [`Next::Release`] by itself | | the key rests, as [`release_pause`](Self::release_pause) says | the last checkpoint and what was handed over |
///
/// After `Lost` there is no time to wait for anything: an arm for it may drop what the task has, stop what works for it, and count,
/// up to its next `await`. It must write nothing, except with the token to a sink that refuses old ones.
///
/// # Settings
/// | setting | default |
/// | --- | --- |
/// | [`concurrency`](Self::concurrency) | no limit |
/// | [`grace`](Self::grace) | 10 s |
/// | [`retry`](Self::retry) | 1 s, doubling to 10 min, 20 failures |
/// | [`release_pause`](Self::release_pause) | 100 ms, doubling to 30 s |
/// | [`outage_limit`](Self::outage_limit) | none |
pub struct Worker {
    divider: Arc<dyn Divider>,
    concurrency: usize,
    grace: Duration,
    retry: Retry,
    release: Pause,
    outage_limit: Option<Duration>,
    load: Option<Load>,
}

/// Where the affinity comes from, and how often it is asked for.
struct Load {
    interval: Duration,
    affinity: Box<dyn Fn() -> u32 + Send + Sync>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("concurrency", &self.concurrency)
            .field("grace", &self.grace)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker for a node, which it starts if need be: a [`Node`](crate::Node), an `Arc` of one, or an `Arc<dyn Divider>`.
    /// A node has one worker at a time.
    pub fn new(divider: impl IntoDivider) -> Self {
        Self {
            divider: divider.into_divider(),
            concurrency: Semaphore::MAX_PERMITS,
            grace: Duration::from_secs(10),
            retry: Retry::default(),
            release: Pause::new(Duration::from_millis(100), Duration::from_secs(30)),
            outage_limit: None,
            load: None,
        }
    }

    /// Runs at most this many tasks at once; further keys wait their turn. Default: no limit. To be *given* no more keys
    /// than can run, set the node's [`capacity`](crate::NodeConfig::capacity) as well.
    #[must_use]
    pub fn concurrency(mut self, tasks: usize) -> Self {
        self.concurrency = tasks;
        self
    }

    /// How long a task may go on after it was asked to stop, before it is cancelled where it waits. Default: 10 s. A task
    /// that never waits cannot be cancelled. There is no grace after [`Lost`](crate::StopReason::Lost): the task is polled once
    /// more, so that it sees why, and then cancelled.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a key rests after a failure.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// How long a key rests after a [`Next::Release`] that nobody asked for: `first`, and twice as long each time in a row
    /// that this happens here, at most `most`, give or take a fifth. Default: 100 ms and 30 s; at least 1 ms.
    #[must_use]
    pub fn release_pause(mut self, first: Duration, most: Duration) -> Self {
        self.release = Pause::new(first, most);
        self
    }

    /// How long to go on without a session, at the start and later, before [`run_until`](Self::run_until) ends with the
    /// store's error. Default: for ever: the worker waits until the store is back, which is right for most programs.
    ///
    /// Set it where a supervisor, such as systemd or Kubernetes, restarts the program when it ends, and where a new
    /// process may reach the store although this one cannot, for example because it reads its configuration or its
    /// password anew. It is counted from the loss of the session, which comes up to a lease after the store went away.
    #[must_use]
    pub fn outage_limit(mut self, limit: Duration) -> Self {
        self.outage_limit = Some(limit);
        self
    }

    /// Asks for the node's affinity at every interval, and sets it when it has changed.
    ///
    /// By itself this decides only about keys that become free: for running keys to follow the load, every node needs
    /// [`Balance::Continuous`](crate::Balance::Continuous), since the one that leads decides. See
    /// [`Divider::set_affinity`], also for 0. Round it, for example to whole hundreds: each change moves keys.
    #[must_use]
    pub fn affinity_from(mut self, interval: Duration, affinity: impl Fn() -> u32 + Send + Sync + 'static) -> Self {
        self.load = Some(Load { interval, affinity: Box::new(affinity) });
        self
    }

    /// Runs until the node is cancelled elsewhere.
    ///
    /// # Errors
    /// As [`run_until`](Self::run_until).
    pub async fn run<F, Fut>(self, task: F) -> Result<Flushed, Error>
    where
        F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
    {
        self.run_until(std::future::pending::<()>(), task).await
    }

    /// Runs until `shutdown` completes (such as [`shutdown_signal`]), then drains the node: no new work, every task is asked
    /// to stop, and the node leaves the group. Where `shutdown` gives a [`SecondSignal`], that ends the drain at once: tasks
    /// are cancelled where they wait, and the keys that are not confirmed move when the lease has run out.
    ///
    /// A drain that did not go as it should is no error: look at what is returned. [`Flushed::is_clean`] is false where a key was
    /// not confirmed, not handed over, or lost, as when the store is out of reach during the drain; a program that ends should
    /// then say so in its log and in its exit code.
    ///
    /// While the store is out of reach it is tried again, with growing pauses: at the start, and later as well. `shutdown` is
    /// watched all the time.
    ///
    /// # Errors
    /// [`Error::Config`] where the worker is set up wrongly, and [`Error::AlreadyRead`] where the node has another worker or
    /// reader: nothing has been done. Otherwise the node is cancelled when an error is returned:
    /// - [`Error::Store`] where the store says at the start that it is not set up for Divider, or has been out of reach for
    ///   longer than the [limit](Self::outage_limit);
    /// - [`Error::Died`] where a part of the node has died;
    /// - those of [`Divider::flush`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels all tasks where they wait and [cancels](Divider::cancel) the node, whoever else has a
    /// handle to it: the keys move when the lease has run out. So does a panic.
    pub async fn run_until<S, F, Fut>(self, shutdown: S, task: F) -> Result<Flushed, Error>
    where
        S: Future<Output: Into<SecondSignal>> + Send,
        F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
    {
        self.validate()?;
        let mut events = self.divider.take_events()?;
        let mut node = EndsNode::new(self.divider.clone());
        let mut shutdown = pin!(shutdown.map(Into::into));
        tokio::select! {
            biased;
            hurry = &mut shutdown => return self.leave(hurry).await,
            started = self.start() => started?,
        }
        let mut run = Run::new(self.common(), task);
        let hurry = tokio::select! {
            hurry = &mut shutdown => hurry,
            () = work(&mut run, &mut events) => {
                run.end().await;
                return self.ended(&run).await;
            }
            error = self.outage() => {
                run.abort();
                self.end_now(&mut node).await;
                return Err(error);
            }
            () = self.follow_load() => unreachable!("it is followed for ever"),
        };
        self.drain(&mut run, &mut events, hurry, &mut node).await
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.concurrency == 0 || self.concurrency > Semaphore::MAX_PERMITS {
            let problem = format!("is {}; it must be between 1 and {}", self.concurrency, Semaphore::MAX_PERMITS);
            return Err(ConfigError::new("concurrency", problem));
        }
        if self.load.as_ref().is_some_and(|load| load.interval < Duration::from_millis(1)) {
            let problem = "has an interval of less than 1 ms";
            return Err(ConfigError::new("affinity_from", problem));
        }
        self.retry.validate()?;
        self.release.validate("release_pause")
    }

    fn common(&self) -> Arc<Common> {
        Arc::new(Common {
            divider: self.divider.clone(),
            permits: Semaphore::new(self.concurrency),
            grace: self.grace,
            retry: self.retry,
            release: self.release,
            tally: Default::default(),
            draining: Default::default(),
            not_handed_over: Default::default(),
        })
    }

    /// Starts the node, however long its store is out of reach.
    async fn start(&self) -> Result<(), Error> {
        let began = Instant::now();
        let mut pauses = START.each();
        loop {
            let left = self.outage_limit.map(|limit| limit.saturating_sub(began.elapsed()));
            let error = match within(left, self.divider.start()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let over = self.outage_limit.is_some_and(|limit| began.elapsed() >= limit);
            if over || !may_pass(&error) {
                return Err(error);
            }
            tracing::warn!(target: target::WORKER, %error, "could not start yet");
            let pause = pauses.next().unwrap_or(START.most);
            tokio::time::sleep(left.map_or(pause, |left| pause.min(left))).await;
        }
    }

    /// Completes when the node has been without a session for too long.
    async fn outage(&self) -> Error {
        let Some(limit) = self.outage_limit else { return std::future::pending().await };
        let look = (limit / 4).clamp(Duration::from_millis(1), Duration::from_secs(1));
        let mut since = Instant::now();
        loop {
            tokio::time::sleep(look).await;
            if self.divider.session().is_some() {
                since = Instant::now();
            } else if since.elapsed() >= limit {
                let message = format!("the node has had no session for {limit:?}");
                return StoreError::Unavailable { message, source: None }.into();
            }
        }
    }

    /// Sets the affinity when it has changed. One call at a time, however long it takes.
    async fn follow_load(&self) {
        let Some(load) = &self.load else { return std::future::pending().await };
        loop {
            let affinity = (load.affinity)();
            if affinity != self.divider.affinity()
                && let Err(error) = self.divider.set_affinity(affinity.into()).await
            {
                tracing::debug!(target: target::WORKER, affinity, %error, "could not set the affinity");
            }
            tokio::time::sleep(load.interval).await;
        }
    }

    /// The node has ended by itself. A program that ended as if all were well would not be started anew.
    async fn ended<F, Fut>(&self, run: &Run<F>) -> Result<Flushed, Error>
    where
        F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
    {
        // There is nothing to flush: it says why.
        match self.divider.flush().await {
            Err(died @ Error::Died { .. }) => Err(died),
            _ => Ok(run.left()),
        }
    }

    /// Ends before the node was started, as far as is known.
    async fn leave(&self, hurry: SecondSignal) -> Result<Flushed, Error> {
        tokio::select! {
            left = self.divider.cancel() => left?,
            () = hurry.come() => {}
        }
        Ok(Flushed::default())
    }

    async fn drain<F, Fut>(
        &self,
        run: &mut Run<F>,
        events: &mut Events<Event>,
        hurry: SecondSignal,
        node: &mut EndsNode,
    ) -> Result<Flushed, Error>
    where
        F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
    {
        run.drains();
        let drained = tokio::select! {
            biased;
            drained = self.divider.flush_and_cancel() => Some(drained),
            () = hurry.come() => None,
            // The stream ends while the drain does.
            () = async { work(run, events).await; std::future::pending().await } => None,
        };
        match drained {
            Some(Ok(flushed)) => {
                node.disarm();
                Ok(run.completed(flushed))
            }
            // Somebody else has ended it.
            Some(Err(Error::Cancelled)) => Ok(run.left()),
            Some(Err(error)) => Err(error),
            None => {
                let left = run.left();
                let (unconfirmed, lost, not_handed_over) =
                    (left.unconfirmed.len(), left.lost.len(), left.not_handed_over.len());
                tracing::warn!(target: target::WORKER, unconfirmed, lost, not_handed_over, "the drain was cut short");
                run.abort();
                self.end_now(node).await;
                Ok(left)
            }
        }
    }

    /// Ends the node for a program that will not wait: what it says to the store in that time it has said. The runtime may be gone
    /// as soon as this worker has returned, so the node must have ended by then.
    async fn end_now(&self, node: &mut EndsNode) {
        if tokio::time::timeout(FAREWELL, self.divider.cancel()).await.is_ok() {
            node.disarm();
        }
    }
}

/// Does what there is to do until the stream ends.
async fn work<F, Fut>(run: &mut Run<F>, events: &mut Events<Event>)
where
    F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
{
    while run.step(events).await {}
}

/// Whether a start that failed with this may succeed later without anybody's doing.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Store(StoreError::Misconfigured(_) | StoreError::TooOld { .. } | StoreError::Closed) => false,
        Error::Store(_) | Error::NoSession => true,
        _ => false,
    }
}

/// Makes a call within a time limit.
async fn within(limit: Option<Duration>, call: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let Some(limit) = limit else { return call.await };
    let late = |_| Err(StoreError::Timeout { limit }.into());
    tokio::time::timeout(limit, call).await.unwrap_or_else(late)
}
