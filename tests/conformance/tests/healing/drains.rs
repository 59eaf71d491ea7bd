//! A drain whose store does not answer: everything is asked to stop all the same, and what is lost is named.

use divider_conformance::{Call, Fault};
use divider_core::Op;

use super::*;

/// A node that runs keys, and has just renewed its lease.
async fn running(keys: usize) -> (Node, Faults, Events<Event>, Vec<Assignment>) {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work((0..keys).map(|key| format!("k{key}")))).await.unwrap();
    let mut starts = Vec::new();
    for _ in 0..keys {
        starts.push(start(&mut events).await);
    }
    (node, faults, events, starts)
}

fn flush(node: &Node) -> tokio::task::JoinHandle<divider_core::Flushed> {
    let node = node.clone();
    tokio::spawn(async move { node.flush_and_cancel().await.unwrap() })
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_asked_to_stop_at_once_while_the_store_is_away() {
    let (node, faults, mut events, starts) = running(3).await;
    faults.always(Fault::Refuse, |_| true);
    let flush = flush(&node);
    for _ in &starts {
        let stop = stop(&mut events).await;
        assert_eq!(stop.reason, StopReason::Flushed, "asked only when its lease had run out");
    }
    flush.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_with_the_session_in_a_drain_is_named() {
    let (node, faults, mut events, starts) = running(3).await;
    faults.always(Fault::Refuse, |_| true);
    let flush = flush(&node);
    // One is confirmed, and the store never hears of it; one is not confirmed before its loss, one not before it is read.
    let first = stop(&mut events).await;
    let confirmed = tokio::spawn({
        let node = node.clone();
        async move { node.confirm_stop_processing(&first.key, first.token).await }
    });
    let second = stop(&mut events).await;
    until("the loss", async || node.session().is_none()).await;
    assert_eq!(node.flushed().lost.len(), 3, "also while the drain goes on");
    let third = stop(&mut events).await;
    assert_eq!(third.reason, StopReason::Lost);
    for stop in [second, third] {
        node.confirm_stop_processing(&stop.key, stop.token).await.unwrap();
    }
    let flushed = soon("the flush", flush).await.unwrap();
    assert!(flushed.unconfirmed.is_empty() && !flushed.is_clean(), "{flushed:?}");
    let mut lost: Vec<_> = flushed.lost.iter().map(|lost| (&lost.key, lost.token, lost.stopping)).collect();
    lost.sort();
    let mut all: Vec<_> = starts.iter().map(|start| (&start.key, start.token, Some(StopReason::Lost))).collect();
    all.sort();
    assert_eq!(lost, all);
    soon("the answer", confirmed).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_the_store_hears_in_time_after_all_is_clean() {
    let (node, faults, mut events, starts) = running(3).await;
    let away = faults.always(Fault::Refuse, |call| matches!(call, Call::Apply(_)));
    let flush = flush(&node);
    let mut confirmed = Vec::new();
    for _ in &starts {
        let (node, stop) = (node.clone(), stop(&mut events).await);
        confirmed.push(tokio::spawn(async move { node.confirm_stop_processing(&stop.key, stop.token).await }));
    }
    assert!(!flush.is_finished());
    away.lift();
    assert!(soon("the flush", flush).await.unwrap().is_clean());
    for confirmed in confirmed {
        soon("the answer", confirmed).await.unwrap().unwrap();
    }
}

/// The store knows of the drain before any key comes free, or it would give it to the same node again.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_told_before_everything_that_comes_of_it() {
    let (node, faults, mut events, _) = running(1).await;
    node.add_work(work(["unread"])).await.unwrap();
    until("the unread key", async || node.assigned().len() == 2).await;
    let told: Arc<Mutex<Vec<Op>>> = Arc::default();
    let noted = told.clone();
    faults.always(Fault::Count, move |call| {
        if let Call::Apply(ops) = call {
            let of_the_drain = |op: &&Op| matches!(op, Op::Drain { .. } | Op::Confirm { .. });
            noted.lock().extend(ops.iter().filter(of_the_drain).cloned());
        }
        true
    });
    let flush = flush(&node);
    until("the unread key to go back", async || node.assigned().iter().all(|held| held.started)).await;
    let stop = stop(&mut events).await;
    node.confirm_stop_processing(&stop.key, stop.token).await.unwrap();
    drop(soon("the flush", flush).await.unwrap());
    let told = told.lock();
    assert!(told.len() == 3 && matches!(told[0], Op::Drain { .. }), "{told:?}");
}

/// Its keys would wait for the lease, and a leader that hears nothing takes the end for a death.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_session_in_a_drain_says_that_it_lived() {
    let (node, faults, mut events, _) = running(1).await;
    let session = node.session().unwrap();
    faults.always(Fault::Refuse, |call| *call == Call::Renew);
    let flush = flush(&node);
    assert_eq!(stop(&mut events).await.reason, StopReason::Flushed);
    until("the loss", async || node.session().is_none()).await;
    let told = faults.always(Fault::Count, move |call| call.applies(|op| *op == Op::End { session }));
    let lost = node.flushed().lost;
    node.confirm_stop_processing(&lost[0].key, lost[0].token).await.unwrap();
    drop(soon("the flush", flush).await.unwrap());
    assert_eq!(told.hits(), 1);
}
