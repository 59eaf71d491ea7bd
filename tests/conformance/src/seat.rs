//! A program around one node, as the checks play it: it reads the streams, answers, and writes down both.

use std::{collections::HashMap, fmt, ops::Deref, sync::Arc, time::Duration};

use divider_core::{
    Assignment, Divider, Error, Event, Events, Key, Node, Record, SessionId, Stats, Stop, StopReason, Token, Work,
};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{Backend, History, Trial, trial::soon};

/// A node and what its program has read. Reads its streams by hand; see [`play`](Self::play) for a program that answers by
/// itself.
pub(super) struct Seat {
    /// The node as programs see it.
    pub(super) node: Arc<dyn Divider>,
    /// The same node, for what only tests ask.
    pub(super) inner: Node,
    pub(super) history: History,
    pub(super) player: usize,
    starts: Events<Assignment>,
    stops: Events<Stop>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("node", &self.inner).finish_non_exhaustive()
    }
}

impl Deref for Seat {
    type Target = dyn Divider;
    fn deref(&self) -> &Self::Target {
        &*self.node
    }
}

impl Seat {
    pub(super) fn new(history: &History, inner: Node) -> Self {
        let node: Arc<dyn Divider> = Arc::new(inner.clone());
        let player = history.player(&node);
        let (starts, stops) = (node.start_processing(), node.stop_processing());
        Self { node, inner, history: history.clone(), player, starts, stops }
    }

    pub(super) async fn start_node(&self) {
        // A store that is slow to answer may be asked again.
        patiently("the node to start", async || self.node.start().await).await;
    }

    pub(super) fn session(&self) -> SessionId {
        self.inner.session().expect("the node has a session")
    }

    // These two are tried again where the store is slow to answer, which a check should not have to think of.
    pub(super) async fn stats(&self) -> Result<Stats, Error> {
        Ok(patiently("the counts", async || self.node.stats().await).await)
    }

    pub(super) async fn record(&self, key: &Key) -> Result<Option<Record>, Error> {
        Ok(patiently("a record", async || self.node.record(key).await).await)
    }

    /// Declares keys without anything else to them.
    pub(super) async fn add(&self, keys: &[&str]) {
        let work = keys.iter().map(|key| Work::new(key).unwrap()).collect();
        self.node.add_work(work).await.unwrap();
    }

    /// The next start.
    pub(super) async fn start(&mut self) -> Assignment {
        let start = soon("a start", self.starts.next()).await.expect("the stream goes on");
        self.history.read(self.player, &Event::Start(start.clone()));
        self.history.check();
        start
    }

    /// The next `count` starts.
    pub(super) async fn starts(&mut self, count: usize) -> Vec<Assignment> {
        let mut starts = Vec::with_capacity(count);
        for _ in 0..count {
            starts.push(self.start().await);
        }
        starts
    }

    /// The next stop.
    pub(super) async fn stop(&mut self) -> Stop {
        let stop = soon("a stop", self.stops.next()).await.expect("the stream goes on");
        self.history.read(self.player, &Event::Stop(stop.clone()));
        self.history.check();
        stop
    }

    /// The next stop, which must be this one.
    pub(super) async fn stop_of(&mut self, start: &Assignment, reason: StopReason) {
        let stop = self.stop().await;
        assert_eq!((&stop.key, stop.token, stop.reason), (&start.key, start.token, reason));
    }

    /// Whether a start is there to be read at once; it is then read.
    pub(super) fn start_at_hand(&mut self) -> Option<Assignment> {
        let start = self.starts.next().now_or_never().flatten()?;
        self.history.read(self.player, &Event::Start(start.clone()));
        Some(start)
    }

    /// As [`start_at_hand`](Self::start_at_hand), for stops.
    pub(super) fn stop_at_hand(&mut self) -> Option<Stop> {
        let stop = self.stops.next().now_or_never().flatten()?;
        self.history.read(self.player, &Event::Stop(stop.clone()));
        Some(stop)
    }

    pub(super) async fn confirm(&self, key: &Key, token: Token) {
        self.history.let_go(self.player, key, token);
        soon("a confirmation", self.node.confirm_stop_processing(key, token)).await.unwrap();
    }

    /// Reads the next stop, and confirms it.
    pub(super) async fn stop_and_confirm(&mut self) -> Stop {
        let stop = self.stop().await;
        self.confirm(&stop.key, stop.token).await;
        stop
    }

    pub(super) async fn finish(&self, start: &Assignment) {
        self.history.completing(self.player, &start.key, start.token);
        soon("a completion", self.node.complete(&start.key, start.token)).await.unwrap();
        self.history.completed(self.player, &start.key, start.token);
    }

    /// Ends without a word, as a process that was killed does.
    pub(super) fn kill(self) {
        self.history.gone(self.player);
    }

    /// From now on a task reads both streams as one and confirms every stop after `delay`.
    pub(super) fn play_after(self, delay: Duration) -> Played {
        let Self { node, inner, history, player, starts, stops } = self;
        drop((starts, stops));
        let told = Arc::new(Told::default());
        let task = {
            let (mut events, node, history, told) = (node.events(), node.clone(), history.clone(), told.clone());
            tokio::spawn(async move {
                while let Some(event) = events.next().await {
                    history.read(player, &event);
                    match event {
                        Event::Start(start) => told.start(start),
                        Event::Stop(stop) => {
                            told.stop(&stop);
                            let (node, history) = (node.clone(), history.clone());
                            let confirm = async move {
                                tokio::time::sleep(delay).await;
                                history.let_go(player, &stop.key, stop.token);
                                // A node that is being cancelled answers so; everything else is found by the history.
                                let _ = node.confirm_stop_processing(&stop.key, stop.token).await;
                            };
                            if delay.is_zero() { confirm.await } else { drop(tokio::spawn(confirm)) }
                        }
                        other => panic!("neither a start nor a stop: {other:?}"),
                    }
                }
            })
        };
        Played { node, inner, history, player, told, task }
    }

    /// From now on a task reads both streams as one and confirms every stop at once.
    pub(super) fn play(self) -> Played {
        self.play_after(Duration::ZERO)
    }
}

/// Repeats a call while the store does not answer in time.
async fn patiently<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let answer = async {
        loop {
            match call().await {
                Err(Error::Store(error)) if error.is_transient() => tokio::time::sleep(Duration::from_millis(20)).await,
                result => return result.unwrap(),
            }
        }
    };
    soon(what, answer).await
}

/// A program that answers by itself.
pub(super) struct Played {
    pub(super) node: Arc<dyn Divider>,
    pub(super) inner: Node,
    history: History,
    player: usize,
    told: Arc<Told>,
    /// Reads the streams. Ends when they do, or when the program is killed.
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Told {
    running: Mutex<HashMap<Key, Assignment>>,
    stops: Mutex<HashMap<StopReason, usize>>,
    starts: Mutex<usize>,
}

impl Told {
    fn start(&self, start: Assignment) {
        *self.starts.lock() += 1;
        self.running.lock().insert(start.key.clone(), start);
    }

    fn stop(&self, stop: &Stop) {
        *self.stops.lock().entry(stop.reason).or_default() += 1;
        self.end(&stop.key, stop.token);
    }

    fn end(&self, key: &Key, token: Token) {
        let mut running = self.running.lock();
        if running.get(key).is_some_and(|start| start.token == token) {
            running.remove(key);
        }
    }
}

impl Deref for Played {
    type Target = dyn Divider;
    fn deref(&self) -> &Self::Target {
        &*self.node
    }
}

impl Played {
    pub(super) async fn stats(&self) -> Result<Stats, Error> {
        Ok(patiently("the counts", async || self.node.stats().await).await)
    }

    pub(super) async fn record(&self, key: &Key) -> Result<Option<Record>, Error> {
        Ok(patiently("a record", async || self.node.record(key).await).await)
    }

    /// What was started and not told to stop.
    pub(super) fn running(&self) -> Vec<Assignment> {
        self.told.running.lock().values().cloned().collect()
    }

    /// How many keys were started and not told to stop.
    pub(super) fn count(&self) -> usize {
        self.told.running.lock().len()
    }

    pub(super) fn runs(&self, key: &Key) -> Option<Assignment> {
        self.told.running.lock().get(key).cloned()
    }

    /// How many starts have been read, all told.
    pub(super) fn started(&self) -> usize {
        *self.told.starts.lock()
    }

    /// How many stops with this reason have been read.
    pub(super) fn stopped(&self, reason: StopReason) -> usize {
        self.told.stops.lock().get(&reason).copied().unwrap_or_default()
    }

    pub(super) async fn add(&self, keys: impl IntoIterator<Item = String>) {
        let work = keys.into_iter().map(|key| Work::new(key).unwrap()).collect();
        self.node.add_work(work).await.unwrap();
    }

    /// Waits until this many keys run here.
    pub(super) async fn starts_soon<B: Backend>(&self, trial: &Trial<B>, count: usize) {
        trial.until("the keys run", async || self.count() == count).await;
    }

    /// Completes a key that runs. False where the node refuses.
    pub(super) async fn finish(&self, start: &Assignment) -> bool {
        let (key, token) = (&start.key, start.token);
        self.history.completing(self.player, key, token);
        let done = self.node.complete(key, token).await.is_ok();
        if done {
            self.history.completed(self.player, key, token);
            self.told.end(key, token);
        } else {
            self.history.not_completed(self.player, key, token);
        }
        done
    }

    /// Ends without a word, as a process that was killed does.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.history.gone(self.player);
    }

    /// Drains the node and leaves the group.
    pub(super) async fn leave(self) {
        let flushed = soon("a flush", self.node.flush_and_cancel()).await.unwrap();
        assert!(flushed.unconfirmed.is_empty(), "{flushed:?}");
        self.history.gone(self.player);
    }
}
