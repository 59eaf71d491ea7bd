//! Whole nodes over Redis, while the server is restarted, flushed, frozen and cut off.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use divider_core::{Divider, Event, Group, Key, Next, Node, Token, Work, Worker};
use divider_redis::RedisStore;
use divider_tests::redis::RedisServer;

const PATIENCE: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(1);
const KEYS: usize = 60;

/// Which key runs under which token, over all nodes.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<Sink>>);

#[derive(Default)]
struct Sink {
    now: BTreeMap<Key, Token>,
    highest: BTreeMap<Key, Token>,
    /// What must never have been.
    wrong: Vec<String>,
}

/// One task's run; it ends when this is dropped, however that comes.
struct Run(Running, Key);

impl Running {
    fn begin(&self, key: &Key, token: Token) -> Run {
        let mut sink = self.0.lock().unwrap();
        if let Some(other) = sink.now.insert(key.clone(), token) {
            sink.wrong.push(format!("{key} runs under {other} and {token} at once"));
        }
        if let Some(highest) = sink.highest.insert(key.clone(), token).filter(|highest| *highest >= token) {
            sink.wrong.push(format!("{key} began under {token} after {highest}"));
        }
        Run(self.clone(), key.clone())
    }

    fn count(&self) -> usize {
        let sink = self.0.lock().unwrap();
        assert!(sink.wrong.is_empty(), "{:#?}", sink.wrong);
        sink.now.len()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().now.remove(&self.1);
    }
}

/// A node with a worker whose tasks run until they are asked to stop.
async fn node(server: &RedisServer, running: &Running) -> Arc<Node> {
    let store = RedisStore::builder(server.url(), Group::new("/nodes/").unwrap()).build().unwrap();
    let node = Arc::new(Node::builder(store).configure(|config| config.lease = LEASE).build().unwrap());
    node.start().await.unwrap();
    let running = running.clone();
    let worker = Worker::new(node.clone()).run(move |job, mut stop| {
        let run = running.begin(&job.key, job.token);
        async move {
            stop.requested().await;
            drop(run);
            Ok(Next::Release)
        }
    });
    tokio::spawn(worker);
    node
}

async fn until(what: &str, running: &Running, count: usize) {
    let since = Instant::now();
    while running.count() != count {
        assert!(since.elapsed() < PATIENCE, "{what}: {} of {count} keys run", running.count());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("{what}: {:.2?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_key_runs_once_whatever_happens_to_the_server() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let running = Running::default();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(node(&server, &running).await);
    }
    let work = || (0..KEYS).map(|i| Work::new(format!("key-{i}")).unwrap()).collect::<Vec<_>>();
    nodes[0].add_work(work()).await.unwrap();
    until("added and started", &running, KEYS).await;
    assert!(nodes.iter().all(|node| node.assigned().len() == KEYS / 3));

    for _ in 0..5 {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(running.count(), KEYS);
    nodes[1].add_work(vec![Work::new("one more").unwrap()]).await.unwrap();
    until("one more after cut connections", &running, KEYS + 1).await;

    server.restart();
    until("lost by a restart", &running, 0).await;
    until("running again after a restart", &running, KEYS + 1).await;

    server.freeze();
    until("lost by a frozen server", &running, 0).await;
    server.thaw();
    until("running again after a thaw", &running, KEYS + 1).await;

    server.cli(&["FLUSHALL"]);
    until("lost by a flush", &running, 0).await;
    nodes[2].add_work(work()).await.unwrap();
    until("running again after a flush", &running, KEYS).await;

    let flushed = nodes.remove(0).flush_and_cancel().await.unwrap();
    assert!(flushed.unconfirmed.is_empty());
    until("moved from a node that left", &running, KEYS).await;
    for node in nodes {
        node.cancel().await.unwrap();
    }
    running.count();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_takes_what_frees_it_although_something_that_needs_room_waits() {
    let server = RedisServer::start();
    let store = RedisStore::builder(server.url(), Group::new("/full/").unwrap()).build().unwrap();
    let lease = Duration::from_millis(600);
    let node = Arc::new(Node::builder(store).configure(|config| config.lease = lease).build().unwrap());
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(["large", "done"].map(|key| Work::new(key).unwrap()).to_vec()).await.unwrap();
    let mut starts = BTreeMap::new();
    while starts.len() < 2 {
        if let Some(Event::Start(start)) = events.next().await {
            starts.insert(start.key.as_str().to_owned(), start);
        }
    }
    let (large, done) = (starts["large"].clone(), starts["done"].clone());
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let checkpoint = tokio::spawn({
        let node = node.clone();
        async move { node.checkpoint(&large.key, large.token, (*b"much").into()).await }
    });
    while !server.cli(&["INFO", "errorstats"]).contains("errorstat_OOM") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let completed = tokio::time::timeout(PATIENCE, node.complete(&done.key, done.token)).await;
    completed.expect("it goes on").unwrap();
    let refused = node.add_work(vec![Work::new("more").unwrap()]).await.unwrap_err();
    assert!(refused.to_string().contains("maxmemory"), "{refused}");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    checkpoint.await.unwrap().unwrap();
}
