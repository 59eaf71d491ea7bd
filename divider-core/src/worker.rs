//! A task per key: the shortest way from a [`Divider`] to running work.
//!
//! # Why
//! Most programs do the same with the two streams: spawn a task on a start, tell it to end on a stop, confirm when it has.
//! The details are easy to get wrong: a task that ends by itself, panics, ends while it is asked to stop, or does not end
//! at all. They are dealt with here, once.
//!
//! # How a task ends
//! | the task | and | then |
//! | --- | --- | --- |
//! | returns [`Next::Complete`] | | the key ends for good |
//! | returns [`Next::Release`], or an error, or panics | nobody asked it to | the key is given up: it runs again elsewhere, after a backoff where it failed |
//! | returns anything, or panics | after it was asked to stop | the stop is confirmed |
//! | goes on after it was asked to stop | for the grace time | it is cancelled where it waits, and the stop is confirmed |
//! | runs | while its session is lost | it is cancelled where it waits, at once |

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{
    Assignment, Blob, ConfigError, Divider, Error, Event, Flushed, Key, Stop, StopReason, Token, node::target,
};

/// Any error of a task.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

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
/// use divider_core::{Divider, MemoryStore, Next, Node, Work, Worker};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let node = Node::builder(MemoryStore::new()).build()?;
/// node.start().await?;
/// node.add_work(vec![Work::new("report-7")?.payload(*b"monthly")]).await?;
///
/// let finished = Arc::new(tokio::sync::Notify::new());
/// let done = finished.clone();
/// Worker::new(Arc::new(node))
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
pub struct Worker {
    divider: Arc<dyn Divider>,
    concurrency: usize,
    grace: Duration,
    backoff: (Duration, Duration),
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
            .finish_non_exhaustive()
    }
}

/// A key that a task works on.
#[derive(Clone)]
pub struct Job {
    assignment: Assignment,
    divider: Arc<dyn Divider>,
}

impl Job {
    /// Whether the task may still act on the key; see [`Divider::is_current`].
    pub fn is_current(&self) -> bool {
        self.divider.is_current(&self.key, self.token)
    }

    /// Keeps bytes for the key's next owner.
    ///
    /// # Errors
    /// As [`Divider::checkpoint`].
    pub async fn checkpoint(&self, bytes: impl Into<Blob> + Send) -> Result<(), Error> {
        self.divider.checkpoint(&self.key, self.token, bytes.into()).await
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

/// Tells a task that it should end.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Option<StopReason>>);

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
}

impl Worker {
    /// A worker for a node, which it starts if need be.
    pub fn new(divider: Arc<dyn Divider>) -> Self {
        Self {
            divider,
            concurrency: Semaphore::MAX_PERMITS,
            grace: Duration::from_secs(10),
            backoff: (Duration::from_millis(500), Duration::from_secs(60)),
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
    /// that never waits cannot be cancelled.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How long a key rests after a failure: `first` after the first on this node, twice as long after each further one,
    /// at most `most`. Default: 500 ms and 60 s.
    #[must_use]
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.backoff = (first, most);
        self
    }

    /// Asks for the node's affinity at every interval, and sets it when it has changed.
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
        self.run_until(std::future::pending(), task).await
    }

    /// Runs until `shutdown` completes (such as [`shutdown_signal`]), then drains the node: no new work, every task is asked
    /// to stop, and the node leaves the group.
    ///
    /// # Errors
    /// Those of [`Divider::start`] and [`Divider::flush`], and [`Error::Store`] with the configuration's problem where the
    /// worker is set up wrongly.
    ///
    /// # Cancel safety
    /// Dropping the future cancels all tasks where they wait, and leaves the keys to the lease.
    pub async fn run_until<F, Fut>(self, shutdown: impl Future<Output = ()> + Send, task: F) -> Result<Flushed, Error>
    where
        F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
    {
        self.validate().map_err(|error| crate::StoreError::Misconfigured(error.to_string()))?;
        let mut events = self.divider.events();
        self.divider.start().await?;
        let mut run = Run {
            permits: Arc::new(Semaphore::new(self.concurrency)),
            keys: HashMap::new(),
            failures: HashMap::new(),
            tasks: JoinSet::new(),
            calls: JoinSet::new(),
            worker: &self,
            task: Arc::new(task),
        };
        let mut shutdown = pin!(shutdown.fuse());
        let mut drain = JoinSet::new();
        let mut looks =
            tokio::time::interval(self.load.as_ref().map_or(Duration::from_secs(3600), |load| load.interval));
        let mut flushed = Flushed::default();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Start(assignment)) => run.start(assignment),
                    Some(Event::Stop(stop)) => run.stop(stop),
                    None => break,
                },
                Some(ended) = run.tasks.join_next() => {
                    if let Ok(ended) = ended {
                        run.ended(ended);
                    }
                }
                Some(called) = run.calls.join_next() => {
                    if let Ok((key, token, free)) = called {
                        run.called(&key, token, free);
                    }
                }
                () = &mut shutdown => {
                    let divider = self.divider.clone();
                    drain.spawn(async move { divider.flush_and_cancel().await });
                }
                Some(drained) = drain.join_next() => {
                    if let Ok(drained) = drained {
                        flushed = drained?;
                    }
                    break;
                }
                _ = looks.tick() => run.look_at_load(),
            }
        }
        // The streams end when the node is cancelled, which a drain does last.
        if let Some(Ok(drained)) = drain.join_next().await {
            flushed = drained?;
        }
        Ok(flushed)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.concurrency == 0 || self.concurrency > Semaphore::MAX_PERMITS {
            let problem = format!("is {}; it must be between 1 and {}", self.concurrency, Semaphore::MAX_PERMITS);
            return Err(ConfigError { field: "concurrency", problem });
        }
        match &self.load {
            Some(load) if load.interval.is_zero() => {
                let problem = "has the interval 0; use at least 1 ms".into();
                Err(ConfigError { field: "affinity_from", problem })
            }
            _ => Ok(()),
        }
    }
}

/// Completes on SIGTERM or ctrl-c.
pub async fn shutdown_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = interrupt => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    // Without a way to listen for it, the signal keeps its usual effect.
    if interrupt.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A worker that runs.
struct Run<'a, F> {
    worker: &'a Worker,
    task: Arc<F>,
    permits: Arc<Semaphore>,
    /// Every key that has been started here and is not free yet.
    keys: HashMap<Key, Running>,
    /// Failures in a row of keys that failed here.
    failures: HashMap<Key, u32>,
    tasks: JoinSet<Ended>,
    /// Calls to the divider that follow the end of a task.
    calls: JoinSet<(Key, Token, bool)>,
}

struct Running {
    token: Token,
    /// Asks the task to stop.
    stop: watch::Sender<Option<StopReason>>,
    /// The task has ended.
    ended: bool,
    /// A call about the key is on its way.
    calling: bool,
}

struct Ended {
    key: Key,
    token: Token,
    how: How,
    ran: Duration,
}

enum How {
    Returned(Next),
    Failed(String),
    /// Cancelled, or never begun.
    Stopped,
}

impl<F, Fut> Run<'_, F>
where
    F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
{
    fn start(&mut self, assignment: Assignment) {
        let (key, token) = (assignment.key.clone(), assignment.token);
        let (stop, signal) = watch::channel(None);
        self.keys.insert(key.clone(), Running { token, stop, ended: false, calling: false });
        let (task, permits, grace) = (self.task.clone(), self.permits.clone(), self.worker.grace);
        let job = Job { assignment, divider: self.worker.divider.clone() };
        self.tasks.spawn(async move {
            let mut asked = StopSignal(signal.clone());
            let permit = tokio::select! {
                biased;
                _ = asked.requested() => None,
                permit = permits.acquire_owned() => permit.ok(),
            };
            let began = Instant::now();
            let how = match permit {
                None => How::Stopped,
                Some(_permit) => {
                    // The call itself may panic, before there is a future.
                    let run = async { task(job, StopSignal(signal)).await };
                    let run = AssertUnwindSafe(run).catch_unwind();
                    tokio::select! {
                        result = run => match result {
                            Ok(Ok(next)) => How::Returned(next),
                            Ok(Err(error)) => How::Failed(error.to_string()),
                            Err(_) => How::Failed("the task panicked".into()),
                        },
                        () = patience(asked, grace) => How::Stopped,
                    }
                }
            };
            Ended { key, token, how, ran: began.elapsed() }
        });
    }

    fn stop(&mut self, stop: Stop) {
        let Some(running) = self.keys.get_mut(&stop.key).filter(|running| running.token == stop.token) else {
            // Nothing of it is left here.
            self.confirm(stop.key, stop.token);
            return;
        };
        running.stop.send_replace(Some(stop.reason));
        if running.ended && !running.calling {
            self.confirm(stop.key, stop.token);
        }
    }

    fn ended(&mut self, ended: Ended) {
        let Ended { key, token, how, ran } = ended;
        let Some(running) = self.keys.get_mut(&key).filter(|running| running.token == token) else { return };
        running.ended = true;
        let asked = running.stop.borrow().is_some();
        let failed = match &how {
            How::Failed(problem) => {
                tracing::warn!(target: target::WORKER, %key, %token, problem, "the task failed");
                true
            }
            _ => false,
        };
        // A task that ran for long enough did not fail for the reason it failed for before.
        if !failed || ran > self.worker.backoff.1 {
            self.failures.remove(&key);
        }
        match how {
            How::Returned(Next::Complete) => {
                running.calling = true;
                let divider = self.worker.divider.clone();
                self.calls.spawn(async move {
                    let free = divider.complete(&key, token).await.is_ok();
                    (key, token, free)
                });
            }
            _ if asked => self.confirm(key, token),
            _ => {
                running.calling = true;
                let backoff = if failed { self.next_backoff(&key) } else { Duration::ZERO };
                let divider = self.worker.divider.clone();
                self.calls.spawn(async move {
                    // Where this fails the session is lost, and a stop says so.
                    let _ = divider.give_up(&key, token, backoff).await;
                    (key, token, false)
                });
            }
        }
    }

    fn next_backoff(&mut self, key: &Key) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        *failures = failures.saturating_add(1);
        let (first, most) = self.worker.backoff;
        first.saturating_mul(1 << (*failures - 1).min(31)).min(most)
    }

    fn confirm(&mut self, key: Key, token: Token) {
        if let Some(running) = self.keys.get_mut(&key).filter(|running| running.token == token) {
            running.calling = true;
        }
        let divider = self.worker.divider.clone();
        self.calls.spawn(async move {
            let free = divider.confirm_stop_processing(&key, token).await;
            if let Err(error) = &free {
                tracing::warn!(target: target::WORKER, %key, %token, %error, "could not confirm the stop");
            }
            (key, token, true)
        });
    }

    /// A call about a key whose task has ended is back.
    fn called(&mut self, key: &Key, token: Token, free: bool) {
        let Some(running) = self.keys.get_mut(key).filter(|running| running.token == token) else { return };
        running.calling = false;
        let asked = running.stop.borrow().is_some();
        if free {
            self.keys.remove(key);
        } else if asked {
            self.confirm(key.clone(), token);
        }
    }

    fn look_at_load(&mut self) {
        let Some(load) = &self.worker.load else { return };
        let affinity = (load.affinity)();
        if affinity != self.worker.divider.affinity() {
            let divider = self.worker.divider.clone();
            tokio::spawn(async move {
                if let Err(error) = divider.set_affinity(affinity.into()).await {
                    tracing::debug!(target: target::WORKER, affinity, %error, "could not set the affinity");
                }
            });
        }
    }
}

/// Completes when a task that was asked to stop has had its time.
async fn patience(mut asked: StopSignal, grace: Duration) {
    if asked.requested().await == StopReason::Lost {
        return;
    }
    let lost = async { drop(asked.0.wait_for(|reason| *reason == Some(StopReason::Lost)).await) };
    tokio::select! {
        () = tokio::time::sleep(grace) => {}
        () = lost => {}
    }
}
