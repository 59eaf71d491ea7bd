//! What every check is given: a fresh group of the backend, and means to wait.

use std::{
    io::{Seek, Write},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use divider_core::{Group, Node, NodeBuilder, NodeConfig, NodeId, Store};
use futures_util::FutureExt;

use super::{Backend, Clerk, Faults, FaultyStore, History, Seat};

/// How long a check waits for what must happen: far longer than it takes, so that only a hang or a bug runs into it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A lease that does not run out on a machine that is merely busy.
const LONG_LEASE: Duration = Duration::from_secs(10);

/// A fresh group of a backend.
#[derive(Debug)]
pub struct Trial<B> {
    pub(super) backend: Arc<B>,
    pub(super) group: Group,
    pub(super) history: History,
    /// What short leases are multiplied by.
    slower: u32,
}

impl<B> Clone for Trial<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            group: self.group.clone(),
            history: self.history.clone(),
            slower: self.slower,
        }
    }
}

impl<B: Backend> Trial<B> {
    pub(super) fn new(backend: Arc<B>) -> Self {
        let group = Group::new(format!("/conformance/{}/", uuid::Uuid::new_v4().simple())).unwrap();
        Self { backend, group, history: History::default(), slower: 1 }
    }

    /// The same backend, another group.
    pub(super) fn of(&self, group: Group) -> Self {
        Self { backend: self.backend.clone(), group, history: History::default(), slower: self.slower }
    }

    /// A short lease, for checks that wait for it to run out.
    pub(super) fn short(&self) -> Duration {
        self.backend.lease() * self.slower
    }

    /// Runs a check that can tell nothing if a short lease runs out by accident. Where it fails and the machine is known to
    /// have kept a thread or a write waiting for a good part of the lease, it is run once more, with longer leases. A broken rule of
    /// the history is a broken rule on any machine.
    pub(super) async fn unhurried(&self, check: impl AsyncFn(Trial<B>)) {
        for slower in [1, 3, 9] {
            let trial = Self { slower, ..Self::new(self.backend.clone()) };
            let metronome = Metronome::start();
            let result = AssertUnwindSafe(check(trial.clone())).catch_unwind().await;
            trial.history.check();
            match result {
                Ok(()) => return,
                Err(_) if slower < 9 && metronome.late() > trial.short() / 6 => {}
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }

    pub(super) async fn store(&self) -> B::Store {
        self.backend.store(&self.group).await
    }

    /// Ends the hold that a fresh group may begin with, so that checks need not wait for it.
    pub(super) async fn end_hold(&self) {
        let mut clerk = Clerk::join(self).await;
        clerk.lead().await;
        clerk.leave().await;
    }

    /// A started node.
    pub(super) async fn node(&self, configure: impl FnOnce(&mut NodeConfig)) -> Seat {
        let store = self.store().await;
        let seat = self.seat(store, configure);
        seat.start_node().await;
        seat
    }

    /// A started node, between which and its store things can go wrong.
    pub(super) async fn faulty_node(&self, configure: impl FnOnce(&mut NodeConfig)) -> (Seat, Faults) {
        let store = FaultyStore::new(self.store().await);
        let faults = store.faults();
        let seat = self.seat(store, configure);
        seat.start_node().await;
        (seat, faults)
    }

    /// A node that is not started yet.
    pub(super) fn seat<S: Store>(&self, store: S, configure: impl FnOnce(&mut NodeConfig)) -> Seat {
        Seat::new(&self.history, self.builder(store).configure(configure).build().unwrap())
    }

    /// The builder of a node with a lease that is long enough not to run out by accident.
    pub(super) fn builder<S: Store>(&self, store: S) -> NodeBuilder<S> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        Node::builder(store).config(NodeConfig::new(NodeId::new(&name[..8]).unwrap())).configure(|config| {
            config.lease = LONG_LEASE;
            config.resync = Duration::from_millis(500);
        })
    }

    /// Waits until no node is a newcomer any more, which may be given keys that others run.
    pub(super) async fn until_settled(&self) {
        let store = self.store().await;
        store.open().await.unwrap();
        let settled = async || store.scan(None).await.unwrap().sessions.iter().all(|view| view.settled);
        self.until("all nodes are settled", settled).await;
        store.close().await;
    }

    /// Waits until `holds` returns true.
    pub(super) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !holds().await {
            self.history.check();
            assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.history.check();
    }
}

/// A thread that notices how long the machine keeps threads waiting, and writes to the disk: a renewal may need one.
struct Metronome {
    late: Arc<AtomicU64>,
    /// Ends the thread when it is dropped.
    _until: mpsc::Sender<()>,
}

impl Metronome {
    fn start() -> Self {
        const BEAT: Duration = Duration::from_millis(10);
        let late = Arc::new(AtomicU64::new(0));
        let (until, ended) = mpsc::channel();
        let noted = late.clone();
        std::thread::spawn(move || {
            let path = std::env::temp_dir().join(format!("divider-metronome-{}", uuid::Uuid::new_v4().simple()));
            let mut file = std::fs::File::create(&path).ok();
            let mut last = Instant::now();
            while ended.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Without a place to write to, it says less, and that is all.
                let _ = file
                    .as_mut()
                    .map(|file| file.rewind().and_then(|()| file.write_all(b"tick")).and_then(|()| file.sync_data()));
                let over = last.elapsed().saturating_sub(BEAT);
                noted.fetch_max(u64::try_from(over.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
                last = Instant::now();
            }
            let _ = std::fs::remove_file(path);
        });
        Self { late, _until: until }
    }

    /// The longest that it was kept waiting.
    fn late(&self) -> Duration {
        Duration::from_millis(self.late.load(Ordering::Relaxed))
    }
}

/// Awaits what must come about.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}
