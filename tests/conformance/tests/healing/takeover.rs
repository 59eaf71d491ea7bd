//! A new leader gets to work however busy the group is.

use std::time::Instant;

use divider_conformance::{Call, Fault};
use divider_core::Op;

use super::*;

async fn fill(store: &MemoryStore, keys: usize) {
    for part in (0..keys).collect::<Vec<_>>().chunks(512) {
        let ops: Vec<Op> = part.iter().map(|key| Op::Add(Work::new(format!("k{key}")).unwrap())).collect();
        store.apply(&ops).await.unwrap();
    }
}

/// Changes so many keys a second, `at_once` in a batch, until it is dropped.
fn keep_busy(store: &MemoryStore, keys: usize, per_second: usize, at_once: usize) -> tokio::task::JoinHandle<()> {
    let store = store.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(
            Duration::from_secs(1) * u32::try_from(at_once).unwrap() / u32::try_from(per_second).unwrap(),
        );
        for round in 0.. {
            ticks.tick().await;
            let change = |n: usize| {
                let nth = round * at_once + n;
                let weight = u32::try_from(2 + nth / keys % 7).unwrap();
                Op::Add(Work::new(format!("k{}", nth % keys)).unwrap().weight(weight))
            };
            store.apply(&(0..at_once).map(change).collect::<Vec<_>>()).await.unwrap();
        }
    })
}

/// How long a new leader needs to its first decision, and how often it began to read the whole group.
async fn first_decision(keys: usize, per_second: usize, at_once: usize, page: Duration) -> (Duration, usize) {
    let store = MemoryStore::new();
    fill(&store, keys).await;
    let busy = keep_busy(&store, keys, per_second, at_once);
    let (node, faults) = faulty(&store, |config| config.lease = Duration::from_secs(3));
    faults.always(Fault::DelayCall(page), |call| *call == Call::Scan);
    let scans = faults.always(Fault::Count, |call| *call == Call::Scan);
    let mut events = node.events();
    let began = Instant::now();
    node.start().await.unwrap();
    start(&mut events).await;
    let took = began.elapsed();
    busy.abort();
    (took, scans.hits())
}

/// In all, more changes happen while the group is read than a store remembers.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_of_a_busy_group_gets_to_work() {
    let keys = 40_000;
    let (_, pages) = first_decision(keys, 10_000, 1000, Duration::from_millis(200)).await;
    assert!(pages < 2 * keys / 1000, "read {pages} pages");
}

/// The figure: 200,000 keys and 10,000 changes a second; run it on its own, in a release build.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: cargo test --release -p divider-conformance --test healing -- --ignored --nocapture"]
async fn a_new_leader_of_a_large_busy_group_decides_within_3_s() {
    for (at_once, page) in [(100, Duration::ZERO), (1, Duration::ZERO), (100, Duration::from_millis(20))] {
        let (took, pages) = first_decision(200_000, 10_000, at_once, page).await;
        println!("batches of {at_once}, {page:?} a page: the first decision after {took:?}, {pages} pages read");
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_subscription_is_no_reason_to_read_the_whole_group() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let program = Program::over(node);
    program.node.start().await.unwrap();
    program.node.add_work(work((0..500).map(|key| format!("k{key}")))).await.unwrap();
    until("all keys to run", async || program.running() == 500).await;
    let scans = faults.always(Fault::Count, |call| *call == Call::Scan);
    let subscriptions = faults.always(Fault::Count, |call| *call == Call::Hints(divider_core::Topic::Group));
    for round in 1..=5 {
        faults.cut_hints();
        program.node.add_work(work([format!("more{round}")])).await.unwrap();
        until("a new subscription", async || subscriptions.hits() >= round).await;
        until("all keys to run", async || program.running() == 500 + round).await;
    }
    assert_eq!(scans.hits(), 0);
}
