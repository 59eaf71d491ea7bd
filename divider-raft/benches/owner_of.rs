//! What it costs a member to say who owns a key: it answers from its own copy.
//!
//! `cargo bench -p divider-raft --bench owner_of`

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use divider_core::{Divider, Group, Key, Node, Work};
use divider_raft::{Data, RaftStore};
use tokio::runtime::{Builder, Runtime};

/// A member whose node has started so many keys, in the order in which they came.
fn member(runtime: &Runtime, keys: usize) -> (RaftStore, Node, Vec<Key>) {
    runtime.block_on(async {
        let store = RaftStore::builder(Data::Memory, Group::new("/owners/").expect("a name"))
            .build()
            .expect("the settings agree");
        let node = Node::builder(store.clone()).build().expect("the defaults agree");
        let mut starts = node.start_processing();
        node.start().await.expect("it starts");
        let work = |k| Work::new(format!("tenant-{k:09}")).expect("a name");
        node.add_work((0..keys).map(work).collect()).await.expect("it is added");
        let mut started = Vec::new();
        while started.len() < keys {
            started.push(starts.next().await.expect("it goes on").key);
        }
        (store, node, started)
    })
}

fn owner_of(c: &mut Criterion) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    for count in [10, 10_000, 1_000_000] {
        let (store, node, keys) = member(&runtime, count);
        let expected = node.session().expect("it lives");
        let mut measure = |name: String, step: usize| {
            let mut at = count / 2;
            c.bench_function(&name, |b| {
                b.iter_custom(|times| {
                    runtime.block_on(async {
                        let begin = Instant::now();
                        for _ in 0..times {
                            at = (at + step) % count;
                            let owner = store.owner_of(&keys[at]).await.expect("it is open").expect("it is owned");
                            assert_eq!(owner.session, expected);
                        }
                        begin.elapsed()
                    })
                });
            });
        };
        // A step that meets every key once before any twice, and is no neighbour in memory.
        measure(format!("owner_of, {count} keys"), 7_919);
        measure(format!("owner_of, the same of {count} keys"), 0);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = owner_of
}
criterion_main!(benches);
