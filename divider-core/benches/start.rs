//! How long it takes from `add_work` to the start of the key in the same program, on a node over the in-memory backend.
//!
//! `cargo bench -p divider-core --bench start`

#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use divider_core::{Divider, MemoryStore, Node, Work};
use tokio::runtime::{Builder, Runtime};

fn row(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_nanos() as f64 / 1e3;
    println!("| {name:<32} | {:>8.1} | {:>8.1} | {:>8.1} | {:>8.1} |", at(10), at(50), at(90), at(99));
}

/// One key after another, each added, started, completed.
async fn measure(keys: usize) -> (Vec<Duration>, Vec<Duration>, Vec<Duration>) {
    let node = Node::builder(MemoryStore::new()).build().expect("the defaults agree");
    let mut starts = node.start_processing();
    node.start().await.expect("it starts");
    let (mut added, mut started, mut completed) = (Vec::new(), Vec::new(), Vec::new());
    for k in 0..keys {
        let work = Work::new(format!("tenant-{k:09}")).expect("a name");
        let from = Instant::now();
        node.add_work(vec![work]).await.expect("it is added");
        added.push(from.elapsed());
        let start = starts.next().await.expect("it goes on");
        started.push(from.elapsed());
        let from = Instant::now();
        node.complete(&start.key, start.token).await.expect("it is ours");
        completed.push(from.elapsed());
    }
    node.cancel().await.expect("it ends");
    (added, started, completed)
}

fn main() {
    println!("| {:<32} | p10 µs   | p50 µs   | p90 µs   | p99 µs   |", "");
    println!("| {:-<32} | -------- | -------- | -------- | -------- |", "");
    let one = || Builder::new_current_thread().enable_all().build();
    let two = || Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtimes: [(&str, &dyn Fn() -> std::io::Result<Runtime>); 2] = [("one thread", &one), ("two threads", &two)];
    for (name, runtime) in runtimes {
        let (added, started, completed) = runtime().expect("a runtime").block_on(measure(10_000));
        row(&format!("add_work returns, {name}"), added);
        row(&format!("add_work to start, {name}"), started);
        row(&format!("complete returns, {name}"), completed);
    }
}
