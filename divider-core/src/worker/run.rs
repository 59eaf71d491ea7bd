//! A worker that runs: the keys that it has, and the life of each.

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tracing::Instrument;

use super::{
    Next, TaskError,
    common::Common,
    job::{HandOver, Job, StopSignal},
    settle::{Ending, NOT_IN_TIME, Teller},
};
use crate::{
    caught,
    divider::{Assignment, Event, Events, Flushed, NotHandedOver, Stop},
    ids::{Key, SessionId, Token},
    node::target,
    record::StopReason,
};

/// Most bytes of an error's text.
const MAX_WORDS: usize = 1024;

pub(super) struct Run<F> {
    common: Arc<Common>,
    task: Arc<F>,
    /// Every key that has been started here and is not settled yet.
    keys: HashMap<Key, Running>,
    /// One for each key: its task, and then the calls that follow.
    lives: JoinSet<Settled>,
    /// The node's, as last seen.
    session: Option<SessionId>,
}

struct Running {
    job: Job,
    /// Asks the task to stop.
    stop: watch::Sender<Option<StopReason>>,
}

/// A key of which the store knows all that there is to say, as far as was known.
struct Settled {
    key: Key,
    token: Token,
    /// Whether a stop of it has been confirmed.
    confirmed: bool,
}

/// How a task has ended.
pub(super) enum How {
    Returned(Next),
    Failed(String),
    /// After its grace time, or because the session is lost.
    Cancelled,
    NeverBegan,
}

impl<F, Fut> Run<F>
where
    F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
{
    pub(super) fn new(common: Arc<Common>, task: F) -> Self {
        let session = common.divider.session();
        Self { common, task: Arc::new(task), keys: HashMap::new(), lives: JoinSet::new(), session }
    }

    /// Waits for one thing to happen, and deals with it. False once the stream has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn step(&mut self, events: &mut Events<Event>) -> bool {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::Start(assignment)) => self.start(assignment),
                Some(Event::Stop(stop)) => self.stop(stop),
                None => return false,
            },
            Some(settled) = self.lives.join_next() => self.settled(settled),
            () = self.common.divider.session_changed(self.session) => self.session_changed(),
        }
        true
    }

    /// The drain begins.
    pub(super) fn drains(&self) {
        self.common.draining.store(true, Ordering::SeqCst);
    }

    fn start(&mut self, assignment: Assignment) {
        let (stop, signal) = watch::channel(None);
        let job = Job::new(assignment, self.common.divider.clone());
        let (key, token) = (job.key.clone(), job.token);
        self.keys.insert(key.clone(), Running { job: job.clone(), stop });
        let span = tracing::info_span!(target: target::WORKER, "task", %key, %token);
        let teller = Teller { divider: self.common.divider.clone(), key, token, stop: StopSignal(signal) };
        let ending = Ending { common: self.common.clone(), job, teller };
        self.lives.spawn(live(self.task.clone(), ending).instrument(span));
    }

    fn stop(&mut self, stop: Stop) {
        match self.keys.get(&stop.key).filter(|running| running.job.token == stop.token) {
            Some(running) => drop(running.stop.send_replace(Some(stop.reason))),
            // Nothing of it is left here.
            None => self.confirm(stop),
        }
    }

    /// A key is stopped once, so whoever was asked to stop before its session was lost does not hear of that from the stream.
    fn session_changed(&mut self) {
        self.session = self.common.divider.session();
        for running in self.keys.values() {
            let asked = running.stop.borrow().is_some();
            if asked && !running.job.is_current() {
                running.stop.send_replace(Some(StopReason::Lost));
            }
        }
    }

    fn settled(&mut self, settled: Result<Settled, JoinError>) {
        let Settled { key, token, confirmed } = match settled {
            Ok(settled) => settled,
            // What the program does is caught, so this is a fault of the node, and no key is in good hands here any more.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        if self.keys.get(&key).is_some_and(|running| running.job.token == token)
            && let Some(running) = self.keys.remove(&key)
        {
            // It may have come when nobody looked any more.
            let asked = *running.stop.borrow();
            if let Some(reason) = asked.filter(|_| !confirmed) {
                self.confirm(Stop::new(key, token, reason));
            }
        }
    }

    /// Confirms a stop of a key whose task has ended.
    fn confirm(&mut self, stop: Stop) {
        let Stop { key, token, reason } = stop;
        let (_, signal) = watch::channel(Some(reason));
        let mut teller = Teller { divider: self.common.divider.clone(), key, token, stop: StopSignal(signal) };
        self.lives.spawn(async move {
            let confirmed = teller.confirm().await;
            Settled { key: teller.key, token, confirmed }
        });
    }

    /// What is left when the node has ended, or ends now.
    pub(super) fn left(&self) -> Flushed {
        self.completed(self.common.divider.flushed())
    }

    /// Adds what a node does not know.
    pub(super) fn completed(&self, mut flushed: Flushed) -> Flushed {
        let named = std::mem::take(&mut *self.common.not_handed_over.lock());
        let known: HashSet<Key> = named.iter().map(|missing| missing.key.clone()).collect();
        let pending = self.keys.values().filter(|running| matches!(running.job.handed_over(), HandOver::Pending(_)));
        let pending = pending.filter(|running| !known.contains(&running.job.key)).map(|running| NotHandedOver {
            key: running.job.key.clone(),
            token: running.job.token,
            why: NOT_IN_TIME.into(),
        });
        flushed.not_handed_over = named.into_iter().chain(pending).collect();
        flushed
    }

    /// Cancels what still runs where it waits.
    pub(super) fn abort(&mut self) {
        self.lives.abort_all();
    }

    /// Cancels what still runs, and waits until it has ended, unless it takes longer than the grace time.
    pub(super) async fn end(&mut self) {
        let grace = self.common.grace;
        let _ = tokio::time::timeout(grace, self.lives.shutdown()).await;
    }
}

/// The life of a key, from the start to its end here.
async fn live<F, Fut>(task: Arc<F>, ending: Ending) -> Settled
where
    F: Fn(Job, StopSignal) -> Fut,
    Fut: Future<Output = Result<Next, TaskError>>,
{
    let (key, token) = (ending.job.key.clone(), ending.job.token);
    let (how, ran) = work(&*task, &ending).await;
    Settled { key, token, confirmed: ending.settle(how, ran).await }
}

/// Runs the task, when there is room for it, and says how it ended, and after how long.
async fn work<F, Fut>(task: &F, ending: &Ending) -> (How, Duration)
where
    F: Fn(Job, StopSignal) -> Fut,
    Fut: Future<Output = Result<Next, TaskError>>,
{
    let (job, mut stop) = (&ending.job, ending.teller.stop.clone());
    let permit = tokio::select! {
        biased;
        _ = stop.requested() => return (How::NeverBegan, Duration::ZERO),
        permit = ending.common.permits.acquire() => permit,
    };
    let began = Instant::now();
    // All that is the program's: the call, which may panic before there is a future, and the drop of what is cancelled.
    let attended = attend(task, job.clone(), stop, ending.common.grace);
    let how = AssertUnwindSafe(attended).catch_unwind().await.unwrap_or_else(|panic| How::Failed(words(panic)));
    job.released().await;
    drop(permit);
    (how, began.elapsed())
}

async fn attend<F, Fut>(task: &F, job: Job, stop: StopSignal, grace: Duration) -> How
where
    F: Fn(Job, StopSignal) -> Fut,
    Fut: Future<Output = Result<Next, TaskError>>,
{
    let mut task = pin!(async { task(job, stop.clone()).await });
    let result = tokio::select! {
        biased;
        () = patience(stop.clone(), grace) => None,
        result = &mut task => Some(result),
    };
    let result = match result {
        None => last_look(task.as_mut()).await,
        ended => ended,
    };
    match result {
        Some(Ok(next)) => How::Returned(next),
        Some(Err(error)) => How::Failed(shortened(error.to_string())),
        None => How::Cancelled,
    }
}

/// Polls a task that is about to be cancelled once more, so that each sees why: otherwise it would be chance which of them had
/// been polled since the signal. In a turn of its own, since nothing may be left of this one's budget, and then the task would
/// not see the signal; and within the budget, which ends the poll of a task that has always something to do.
async fn last_look<T>(task: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    tokio::task::yield_now().await;
    task.now_or_never()
}

/// Completes when a task that was asked to stop has had its time.
async fn patience(mut stop: StopSignal, grace: Duration) {
    if stop.requested().await == StopReason::Lost {
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(grace) => {}
        () = stop.lost() => {}
    }
}

/// What a panic said.
fn words(panic: Box<dyn std::any::Any + Send>) -> String {
    shortened(format!("the task {}", caught::words(panic)))
}

/// What is kept of a text that somebody else wrote.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_WORDS));
    text
}
