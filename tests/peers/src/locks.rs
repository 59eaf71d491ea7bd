//! Keys shared out by locks: what is the same whatever keeps the locks.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::sleep};

use crate::say;

/// How long a lock outlives its owner, where a time ends it.
pub const LEASE: Duration = Duration::from_secs(3);
const NODES: usize = 10;

/// Something that keeps locks.
pub trait Locks: Send + Sync + 'static {
    /// A node's own connection.
    type Node: LocksNode;
    fn node(&self, name: usize) -> impl Future<Output = Self::Node> + Send;
    fn add(&self, keys: Vec<String>) -> impl Future<Output = ()> + Send;
    /// How many requests the store has counted.
    fn asked(&self) -> impl Future<Output = f64> + Send;
}

pub trait LocksNode: Send + 'static {
    /// One look at all keys: renews those held, takes free ones until it has `share`, and returns what was taken.
    fn look(&mut self, held: &[String], share: usize) -> impl Future<Output = Vec<String>> + Send;
}

/// When each key was last started, by whom.
type Starts = Arc<Mutex<HashMap<String, Instant>>>;

struct Fleet<L> {
    locks: L,
    starts: Starts,
    nodes: Vec<JoinHandle<()>>,
    share: Arc<Mutex<usize>>,
}

impl<L: Locks> Fleet<L> {
    async fn start(locks: L) -> Self {
        let mut fleet = Self { locks, starts: Starts::default(), nodes: Vec::new(), share: Arc::default() };
        for name in 0..NODES {
            let (mut node, starts, share) = (fleet.locks.node(name).await, fleet.starts.clone(), fleet.share.clone());
            fleet.nodes.push(tokio::spawn(async move {
                let mut held: Vec<String> = Vec::new();
                // Not all at the same moment.
                sleep(LEASE / 3 / NODES as u32 * name as u32).await;
                loop {
                    let share = *share.lock().unwrap();
                    let taken = node.look(&held, share).await;
                    let now = Instant::now();
                    starts.lock().unwrap().extend(taken.iter().map(|key| (key.clone(), now)));
                    held.extend(taken);
                    sleep(LEASE / 3).await;
                }
            }));
        }
        fleet
    }

    /// Adds keys and waits for the start of the last: how long each took.
    async fn add(&self, prefix: &str, count: usize, share: usize) -> Vec<Duration> {
        *self.share.lock().unwrap() = share;
        let keys: Vec<String> = (0..count).map(|key| format!("{prefix}{key}")).collect();
        let began = Instant::now();
        self.locks.add(keys.clone()).await;
        let started = |key: &String| self.starts.lock().unwrap().get(key).copied();
        let deadline = began + Duration::from_secs(60);
        while !keys.iter().all(|key| started(key).is_some()) {
            assert!(Instant::now() < deadline, "not all keys are taken");
            sleep(Duration::from_millis(2)).await;
        }
        let mut times: Vec<_> = keys.iter().map(|key| started(key).unwrap() - began).collect();
        times.sort();
        times
    }
}

pub async fn run(locks: impl Locks, name: &str, quick: bool) {
    let fleet = Fleet::start(locks).await;
    let mut one: Vec<_> = Vec::new();
    for key in 0..if quick { 3 } else { 20 } {
        one.extend(fleet.add(&format!("one-{key}/"), 1, 1000).await);
    }
    one.sort();
    say(name, "add → start, p50", one[one.len() / 2].as_secs_f64(), "s");
    let burst = fleet.add("burst/", 900, 1000).await;
    say(name, "10 nodes, 900 keys more, all started", burst.last().unwrap().as_secs_f64(), "s");
    let many = fleet.add("many/", 9000, 1000).await;
    say(name, "10 nodes, 9000 keys more, all started", many.last().unwrap().as_secs_f64(), "s");
    let (before, began) = (fleet.locks.asked().await, Instant::now());
    sleep(LEASE * 2).await;
    let rate = (fleet.locks.asked().await - before) / began.elapsed().as_secs_f64();
    say(name, "requests while idle, 10 nodes and about 10,000 keys", rate, "/s");

    // The others may take what the dead node had.
    *fleet.share.lock().unwrap() = 2000;
    let killed = Instant::now();
    let before = fleet.starts.lock().unwrap().len();
    fleet.nodes[0].abort();
    let mut last = 0;
    loop {
        sleep(LEASE).await;
        let again = fleet.starts.lock().unwrap().values().filter(|at| **at > killed).count();
        if again > 0 && again == last {
            break;
        }
        last = again;
    }
    let starts = fleet.starts.lock().unwrap();
    assert_eq!(starts.len(), before);
    let latest = starts.values().max().unwrap();
    say(name, "a node dies, last of its keys started elsewhere, lease 3 s", (*latest - killed).as_secs_f64(), "s");
    fleet.nodes.iter().for_each(JoinHandle::abort);
}
