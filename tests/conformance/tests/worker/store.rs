//! What a worker does while its store fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_conformance::{Call, Fault, Faults, FaultyStore, Ordered};
use divider_core::{Divider, Error, MemoryStore, Next, Node, NodeConfig, Op, StoreError, Worker};
use tokio::time::timeout;

use crate::{PATIENCE, add, until};

/// A node of a group of its own, over a store that fails to order.
pub(crate) fn faulty() -> (Arc<Node>, Faults) {
    faulty_with(&MemoryStore::new(), |_| {})
}

pub(crate) fn faulty_with(group: &MemoryStore, change: impl FnOnce(&mut NodeConfig)) -> (Arc<Node>, Faults) {
    let store = FaultyStore::new(group.clone());
    let faults = store.faults();
    let builder = Node::builder(store).configure(|config| config.lease = Duration::from_millis(600));
    (Arc::new(builder.configure(change).build().unwrap()), faults)
}

/// Refuses so many calls that apply such an op.
pub(crate) fn refuses(faults: &Faults, times: usize, is: impl Fn(&Op) -> bool + Send + Sync + 'static) -> Ordered {
    faults.order(Fault::Misconfigured, times, move |call| call.applies(&is))
}

pub(crate) fn is_down(faults: &Faults) {
    faults.always(Fault::Refuse, |_| true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_was_refused_for_a_moment_is_told_again() {
    let (node, faults) = faulty();
    refuses(&faults, 3, |op| matches!(op, Op::Complete { .. }));
    add(&node, &["a"]).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let worker = tokio::spawn(Worker::new(node.clone()).run({
        let runs = runs.clone();
        move |_, _| {
            runs.fetch_add(1, Ordering::SeqCst);
            async { Ok(Next::Complete) }
        }
    }));
    until("the key to end", async || node.stats().await.unwrap().registered == 0).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1, "and the task ran once");
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_was_refused_for_a_moment_is_told_again() {
    let (node, faults) = faulty();
    refuses(&faults, 3, |op| matches!(op, Op::GiveUp { .. }));
    add(&node, &["a"]).await;
    let worker = tokio::spawn(
        Worker::new(node.clone())
            .run(|work, _| async move { Ok(if work.attempts == 2 { Next::Complete } else { Next::Release }) }),
    );
    until("the key to run again", async || node.stats().await.unwrap().registered == 0).await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_down_at_the_start_is_waited_for() {
    let (node, faults) = faulty();
    is_down(&faults);
    let worker = tokio::spawn(Worker::new(node.clone()).run(|_, _| async { Ok(Next::Complete) }));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!worker.is_finished(), "{:?}", worker.await);
    faults.lift();
    until("the node to have joined", async || node.stats().await.is_ok()).await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_heard_while_the_store_is_down_at_the_start() {
    let (node, faults) = faulty();
    is_down(&faults);
    let worker =
        Worker::new(node).run_until(tokio::time::sleep(Duration::from_millis(50)), |_, _| async { Ok(Next::Complete) });
    drop(timeout(PATIENCE, worker).await.expect("the worker ends").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_heard_while_the_store_does_not_answer_at_the_start() {
    let store = FaultyStore::new(MemoryStore::new());
    store.faults().always(Fault::DelayCall(10 * PATIENCE), |call| *call == Call::Open);
    let node = Node::builder(store).build().unwrap();
    let worker = Worker::new(Arc::new(node))
        .run_until(tokio::time::sleep(Duration::from_millis(50)), |_, _| async { Ok(Next::Complete) });
    drop(timeout(PATIENCE, worker).await.expect("the worker ends").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_set_up_wrongly_ends_the_worker_at_its_start() {
    let (node, faults) = faulty();
    faults.always(Fault::Misconfigured, |_| true);
    let worker = Worker::new(node).run(|_, _| async { Ok(Next::Complete) });
    let error = timeout(PATIENCE, worker).await.expect("the worker ends").unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::Misconfigured(_))), "{error}");
}
