//! A new leader gets to work however busy the group is.

use divider_conformance::{Call, Fault};
use divider_core::Op;

use super::*;

async fn fill(store: &MemoryStore, keys: usize) {
    for part in (0..keys).collect::<Vec<_>>().chunks(512) {
        let ops: Vec<Op> = part.iter().map(|key| Op::Add(Work::new(format!("k{key}")).unwrap())).collect();
        store.apply(&ops).await.unwrap();
    }
}

/// Changes all keys in turn, a thousand at once and ten thousand a second, until it is aborted.
fn keep_busy(store: &MemoryStore, keys: usize) -> tokio::task::JoinHandle<()> {
    let store = store.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for round in 0.. {
            ticks.tick().await;
            let change = |nth: usize| {
                let weight = u32::try_from(2 + nth / keys % 7).unwrap();
                Op::Add(Work::new(format!("k{}", nth % keys)).unwrap().weight(weight))
            };
            store.apply(&(round * 1000..(round + 1) * 1000).map(change).collect::<Vec<_>>()).await.unwrap();
        }
    })
}

/// In all, more changes happen while the group is read than a store remembers. `./bench` measures how long it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_of_a_busy_group_gets_to_work() {
    let keys = 40_000;
    let store = MemoryStore::new();
    fill(&store, keys).await;
    let busy = keep_busy(&store, keys);
    let (node, faults) = faulty(&store, |config| config.lease = Duration::from_secs(3));
    faults.always(Fault::DelayCall(Duration::from_millis(200)), |call| *call == Call::Scan);
    let pages = faults.always(Fault::Count, |call| *call == Call::Scan);
    let mut events = node.events();
    node.start().await.unwrap();
    start(&mut events).await;
    assert!(pages.hits() < 2 * keys / 1000, "read {} pages", pages.hits());
    busy.abort();
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
