//! What a worker does while its store fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_conformance::{Call, Fault, FaultyStore};
use divider_core::{Divider, Error, MemoryStore, Next, Node, NodeConfig, Op, StoreError, Worker};
use tokio::time::timeout;

use crate::{PATIENCE, add, moody::Moody, until};

pub(crate) fn node(store: &Moody) -> Arc<Node> {
    node_with(store, |_| {})
}

pub(crate) fn node_with(store: &Moody, change: impl FnOnce(&mut NodeConfig)) -> Arc<Node> {
    let builder = Node::builder(store.clone()).configure(|config| config.lease = Duration::from_millis(600));
    Arc::new(builder.configure(change).build().unwrap())
}

/// Refuses so many calls that apply such an op.
pub(crate) fn refuses(store: &Moody, mut times: usize, is: impl Fn(&Op) -> bool + Send + 'static) {
    store.mood(move |ops| {
        let refused = times > 0 && ops.iter().any(&is);
        times -= usize::from(refused);
        refused.then(|| StoreError::Misconfigured("no right to, for a moment".into()))
    });
}

pub(crate) fn is_down(store: &Moody) {
    store.mood(|_| Some(StoreError::Unavailable { message: "down".into(), source: None }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_that_was_refused_for_a_moment_is_told_again() {
    let group = MemoryStore::new();
    let store = Moody::new(&group);
    let node = node(&store);
    refuses(&store, 3, |op| matches!(op, Op::Complete { .. }));
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
    let store = Moody::new(&MemoryStore::new());
    let node = node(&store);
    refuses(&store, 3, |op| matches!(op, Op::GiveUp { .. }));
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
    let store = Moody::new(&MemoryStore::new());
    let node = node(&store);
    is_down(&store);
    let worker = tokio::spawn(Worker::new(node.clone()).run(|_, _| async { Ok(Next::Complete) }));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!worker.is_finished(), "{:?}", worker.await);
    store.mood(|_| None);
    until("the node to have joined", async || node.stats().await.is_ok()).await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_heard_while_the_store_is_down_at_the_start() {
    let store = Moody::new(&MemoryStore::new());
    is_down(&store);
    let worker = Worker::new(node(&store))
        .run_until(tokio::time::sleep(Duration::from_millis(50)), |_, _| async { Ok(Next::Complete) });
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
    let store = Moody::new(&MemoryStore::new());
    store.mood(|_| Some(StoreError::Misconfigured("no such user".into())));
    let worker = Worker::new(node(&store)).run(|_, _| async { Ok(Next::Complete) });
    let error = timeout(PATIENCE, worker).await.expect("the worker ends").unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::Misconfigured(_))), "{error}");
}
