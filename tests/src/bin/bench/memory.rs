//! Nodes of this process, on the store in its memory: what Divider itself costs, without any server.

use std::time::{Duration, Instant};

use divider_core::{Divider, MemoryStore, Node, NodeConfig, Work};
use tokio::sync::mpsc;

use crate::{
    Run,
    report::{Goal, Store, Unit},
};

/// Nodes that read their starts, and tell of each: when it was.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    starts: mpsc::UnboundedReceiver<Instant>,
}

impl Nodes {
    pub(crate) async fn start<S: divider_core::Store>(count: usize, store: impl Fn() -> S) -> Self {
        let (tell, starts) = mpsc::unbounded_channel();
        let mut nodes = Vec::new();
        for at in 0..count {
            let config = NodeConfig::new(divider_core::NodeId::new(format!("node-{at}")).unwrap());
            let node = Node::builder(store()).config(config).build().unwrap();
            node.start().await.unwrap();
            let (mut stream, tell) = (node.start_processing(), tell.clone());
            tokio::spawn(async move {
                while stream.next().await.is_some() {
                    _ = tell.send(Instant::now());
                }
            });
            nodes.push(node);
        }
        let mut nodes = Self { nodes, starts };
        // Grants may be held back for the first lease of a group.
        nodes.add(0, 1, "warm-up").await;
        nodes
    }

    /// Adds keys, and waits until all are started. From the moment before the call to the last start.
    pub(crate) async fn add(&mut self, by: usize, keys: usize, prefix: &str) -> Duration {
        let work = (0..keys).map(|key| Work::new(format!("{prefix}/{key}")).unwrap()).collect();
        let began = Instant::now();
        self.nodes[by].add_work(work).await.unwrap();
        let mut last = began;
        for _ in 0..keys {
            last = self.starts.recv().await.expect("the nodes live");
        }
        last - began
    }

    /// One key after the other, each by another node.
    pub(crate) async fn add_to_start(&mut self, count: usize) -> Vec<Duration> {
        let mut times = Vec::with_capacity(count);
        for at in 0..count {
            times.push(self.add(at % self.nodes.len(), 1, &format!("one-{at}")).await);
        }
        times
    }
}

pub(crate) fn on_a_runtime<R>(what: impl Future<Output = R>) -> R {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(what)
}

pub(crate) fn add_to_start(run: &mut Run<'_>) {
    let count = if run.quick { 1000 } else { 20_000 };
    let store = MemoryStore::new();
    let mut times = on_a_runtime(async { Nodes::start(3, || store.clone()).await.add_to_start(count).await });
    let wanted = [("p50", 0.5, Some(Duration::from_micros(50))), ("p99", 0.99, None)];
    run.report.times("add → start, 3 nodes", Store::Memory, &mut times, &wanted);
}

pub(crate) fn bulk(run: &mut Run<'_>) {
    const KEYS: usize = 100_000;
    let (burst, bulk) = on_a_runtime(async {
        let (few, many) = (MemoryStore::new(), MemoryStore::new());
        let mut nodes = Nodes::start(10, || few.clone()).await;
        nodes.add(0, 100, "before").await;
        let burst = nodes.add(1, 900, "burst").await;
        (burst, Nodes::start(5, || many.clone()).await.add(0, KEYS, "bulk").await)
    });
    let most = Some(Duration::from_millis(100));
    run.report.time("10 nodes, 900 keys more", Store::Memory, "all started", burst, most);
    let rate = KEYS as f64 / bulk.as_secs_f64();
    let goal = Some(Goal::AtLeast(50_000.0));
    run.report.add("100,000 keys added and started, 5 nodes", Store::Memory, "keys", rate, Unit::PerSecond, goal);
}
