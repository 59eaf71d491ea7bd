//! What every check is given: a fresh group of the backend, and means to wait.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Backend, Clerk, Faults, FaultyStore, History, Seat};
use crate::{Group, Node, NodeBuilder, NodeConfig, NodeId, Store};

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
}

impl<B> Clone for Trial<B> {
    fn clone(&self) -> Self {
        Self { backend: self.backend.clone(), group: self.group.clone(), history: self.history.clone() }
    }
}

impl<B: Backend> Trial<B> {
    pub(super) fn new(backend: Arc<B>) -> Self {
        let group = Group::new(format!("/conformance/{}/", uuid::Uuid::new_v4().simple())).unwrap();
        Self { backend, group, history: History::default() }
    }

    /// The same backend, another group.
    pub(super) fn of(&self, group: Group) -> Self {
        Self { backend: self.backend.clone(), group, history: History::default() }
    }

    /// A short lease, for checks that wait for it to run out.
    pub(super) fn short(&self) -> Duration {
        self.backend.lease()
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

/// Awaits what must come about.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Random numbers that a seed repeats (splitmix64).
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn seeded() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit as u64).unwrap_or_default()
    }
}
