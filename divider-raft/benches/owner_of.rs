//! What it costs a member to say who owns a key: it answers from its own copy.
//!
//! `cargo bench -p divider-raft --bench owner_of`

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use divider_core::{Divider, Key, Node, Work};
use divider_raft::RaftStore;
use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};

/// A member whose node has started so many keys, in the order in which they came.
fn member(runtime: &Runtime, keys: usize) -> (RaftStore, Node, Vec<Key>) {
    runtime.block_on(async {
        let store = RaftStore::builder("/owners/").expect("a name").in_memory().build().expect("the settings agree");
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
        // A member never waits.
        let owner =
            |key| store.owner_of(key).now_or_never().expect("at once").expect("it is open").expect("it is owned");
        let expected = node.session().expect("it lives");
        // A step that meets every key once before any twice, and is no neighbour in memory.
        let mut at = 0;
        c.bench_function(&format!("owner_of, {count} keys"), |b| {
            b.iter(|| {
                at = (at + 7_919) % count;
                assert_eq!(owner(&keys[at]).session, expected);
            });
        });
        c.bench_function(&format!("owner_of, the same of {count} keys"), |b| {
            b.iter(|| assert_eq!(owner(&keys[count / 2]).session, expected));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = owner_of
}
criterion_main!(benches);
