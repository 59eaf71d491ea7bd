//! What a program asks of its own node again and again: none of it leaves the process.
//!
//! `cargo bench -p divider-core --bench local`

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use divider_core::{Assignment, Clock, Divider, MemoryStore, Node, SystemClock, Work};

use tokio::runtime::Runtime;

/// A node that holds and has started so many keys.
fn node(runtime: &Runtime, keys: usize) -> (Node, Vec<Assignment>) {
    runtime.block_on(async {
        let node = Node::builder(MemoryStore::new()).build().expect("the defaults agree");
        let mut starts = node.start_processing();
        node.start().await.expect("it starts");
        let work = |k| Work::new(format!("tenant-{k:09}")).expect("a name");
        node.add_work((0..keys).map(work).collect()).await.expect("it is added");
        let mut started = Vec::new();
        while started.len() < keys {
            started.push(starts.next().await.expect("it goes on"));
        }
        (node, started)
    })
}

fn local(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for keys in [10, 10_000] {
        let (node, started) = node(&runtime, keys);
        let mut next = started.iter().cycle();
        c.bench_function(&format!("is_current, {keys} keys held"), |b| {
            b.iter(|| {
                let start = next.next().expect("an endless one");
                assert!(node.is_current(&start.key, start.token));
            });
        });
        c.bench_function(&format!("is_current, the same of {keys} keys held"), |b| {
            let start = &started[keys / 2];
            b.iter(|| assert!(node.is_current(&start.key, start.token)));
        });
        c.bench_function(&format!("assigned, {keys} keys held"), |b| b.iter(|| black_box(node.assigned().len())));
    }
    c.bench_function("the clock alone", |b| b.iter(|| black_box(SystemClock.now())));
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = local
}
criterion_main!(benches);
