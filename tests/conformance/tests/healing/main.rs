//! What a node does while its store fails, and that everything runs again once the store is well, without anybody's help.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

mod absolution;
mod affinity;
mod answers;
mod drains;
mod ears;
mod endings;
mod everything;
mod losses;
mod takeover;
mod zombies;

use std::{collections::HashMap, sync::Arc, time::Duration};

use divider_conformance::{Faults, FaultyStore};
use divider_core::{Assignment, Divider, Event, Events, Key, MemoryStore, Node, NodeConfig, StopReason, Store, Work};
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

/// How long to wait for what must come about.
const PATIENCE: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_millis(600);

/// A node over a store that fails to order.
fn faulty(store: &MemoryStore, configure: impl FnOnce(&mut NodeConfig)) -> (Node, Faults) {
    let store = FaultyStore::new(store.clone());
    let faults = store.faults();
    (node(store, configure), faults)
}

fn node(store: impl Store, configure: impl FnOnce(&mut NodeConfig)) -> Node {
    let builder = Node::builder(store).configure(|config| {
        config.lease = LEASE;
        config.resync = Duration::from_millis(200);
        config.flush_time_limit = Duration::from_secs(5);
    });
    builder.configure(configure).build().unwrap()
}

fn work<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Vec<Work> {
    keys.into_iter().map(|key| Work::new(key.as_ref()).unwrap()).collect()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn start(events: &mut Events<Event>) -> Assignment {
    match soon("a start", events.next()).await {
        Some(Event::Start(start)) => start,
        other => panic!("instead of a start: {other:?}"),
    }
}

async fn stop(events: &mut Events<Event>) -> divider_core::Stop {
    match soon("a stop", events.next()).await {
        Some(Event::Stop(stop)) => stop,
        other => panic!("instead of a stop: {other:?}"),
    }
}

/// A program that starts what it is told to, and confirms each stop, at once unless it is [kept waiting](Self::winds_up).
struct Program {
    node: Node,
    winds_up: watch::Sender<bool>,
    /// Stops that it has read.
    stops: Arc<Mutex<usize>>,
    running: Arc<Mutex<HashMap<Key, Assignment>>>,
    lost: Arc<Mutex<usize>>,
    _reader: tokio::task::JoinHandle<()>,
}

impl Program {
    fn over(node: Node) -> Self {
        let running: Arc<Mutex<HashMap<Key, Assignment>>> = Arc::default();
        let (lost, stops) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let winds_up = watch::Sender::new(false);
        let mut events = node.events();
        let (of, from, count, read) = (running.clone(), node.clone(), lost.clone(), stops.clone());
        let waits = winds_up.subscribe();
        let reader = async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::Start(start) => drop(of.lock().insert(start.key.clone(), start)),
                    Event::Stop(stop) => {
                        *count.lock() += usize::from(stop.reason == StopReason::Lost);
                        of.lock().remove(&stop.key);
                        *read.lock() += 1;
                        let (node, mut waits) = (from.clone(), waits.clone());
                        tokio::spawn(async move {
                            let _ = waits.wait_for(|waits| !waits).await;
                            drop(node.confirm_stop_processing(&stop.key, stop.token).await);
                        });
                    }
                    other => panic!("neither a start nor a stop: {other:?}"),
                }
            }
        };
        Self { node, winds_up, stops, running, lost, _reader: tokio::spawn(reader) }
    }

    /// Makes every task that was asked to stop take until this is called again.
    fn winds_up(&self, winds_up: bool) {
        self.winds_up.send_replace(winds_up);
    }

    /// How many keys run here now, under a lease that holds.
    fn running(&self) -> usize {
        let running = self.running.lock();
        running.values().filter(|start| self.node.is_current(&start.key, start.token)).count()
    }

    fn lost(&self) -> usize {
        *self.lost.lock()
    }
}
