//! How a worker and its node end together, and who else may read.

use divider_core::{Divider, Error, Next, Work, Worker};

use crate::{PATIENCE, add, node, until};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Another node starts the key, although a handle of the first lives.
async fn goes_elsewhere(store: &divider_core::MemoryStore, first: &divider_core::Node) {
    let second = node(store);
    let mut starts = second.start_processing();
    second.start().await.unwrap();
    let start = timeout(PATIENCE, starts.next()).await.expect("the key runs elsewhere").unwrap();
    assert!(!first.is_current(&start.key, start.token) && first.assigned().iter().all(|held| held.token < start.token));
    second.cancel().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_worker_ends_its_node_though_a_handle_lives() {
    let store = divider_core::MemoryStore::new();
    let node = node(&store);
    add(&node, &["a"]).await;
    let worker = tokio::spawn(Worker::new(node.clone()).run(|_, _| std::future::pending()));
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    worker.abort();
    goes_elsewhere(&store, &node).await;
    until("the node to say so", async || matches!(node.stats().await, Err(Error::Cancelled))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_panics_ends_its_node_though_a_handle_lives() {
    let store = divider_core::MemoryStore::new();
    let node = node(&store);
    add(&node, &["a"]).await;
    let (hurt, hurts) = tokio::sync::oneshot::channel::<()>();
    let shutdown = async {
        assert!(hurts.await.is_ok(), "a deliberate panic");
    };
    let worker = tokio::spawn(Worker::new(node.clone()).run_until(shutdown, |_, _| std::future::pending()));
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    drop(hurt);
    assert!(timeout(PATIENCE, worker).await.unwrap().unwrap_err().is_panic());
    goes_elsewhere(&store, &node).await;
}

#[test]
fn a_worker_whose_runtime_is_gone_ends_its_node_though_a_handle_lives() {
    let store = divider_core::MemoryStore::new();
    let node = node(&store);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (of_the_node, of_the_worker) = (runtime(), runtime());
    of_the_node.block_on(add(&node, &["a"]));
    of_the_worker.spawn(Worker::new(node.clone()).run(|_, _| std::future::pending()));
    of_the_node.block_on(until("the task to run", async || node.assigned().iter().any(|held| held.started)));
    drop(of_the_worker);
    of_the_node.block_on(goes_elsewhere(&store, &node));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_on_a_node_is_refused_and_the_first_goes_on() {
    let node = node(&divider_core::MemoryStore::new());
    add(&node, &["a"]).await;
    let first = tokio::spawn(Worker::new(node.clone()).run(|_, mut stop| async move {
        stop.requested().await;
        Ok(Next::Release)
    }));
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    let second = timeout(PATIENCE, Worker::new(node.clone()).run(|_, _| async { Ok(Next::Complete) })).await;
    let second = second.expect("the second ends at once");
    assert!(matches!(second, Err(Error::AlreadyRead)), "{second:?}");
    assert!(node.session().is_some() && node.assigned().len() == 1);
    let flushed = timeout(PATIENCE, node.flush_and_cancel()).await.unwrap().unwrap();
    assert!(flushed.unconfirmed.is_empty());
    drop(timeout(PATIENCE, first).await.unwrap().unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_has_one_reader_at_a_time_and_the_next_one_when_it_is_gone() {
    let node = node(&divider_core::MemoryStore::new());
    add(&node, &["a", "b"]).await;
    let mut starts = node.start_processing();
    timeout(PATIENCE, starts.next()).await.unwrap().unwrap();
    // Beside it: not the same queue, nor both; the other one is free.
    assert_eq!(timeout(PATIENCE, node.start_processing().next()).await.unwrap(), None);
    assert_eq!(timeout(PATIENCE, node.events().next()).await.unwrap(), None);
    assert!(matches!(node.take_events(), Err(Error::AlreadyRead)));
    let mut stops = node.stop_processing();
    assert!(timeout(Duration::from_millis(1), stops.next()).await.is_err(), "it waits for a stop");
    drop(starts);
    assert!(matches!(node.take_events(), Err(Error::AlreadyRead)));
    drop(stops);
    let mut events = node.take_events().unwrap();
    assert_eq!(timeout(PATIENCE, node.start_processing().next()).await.unwrap(), None);
    assert!(timeout(PATIENCE, events.next()).await.unwrap().is_some(), "nothing was lost meanwhile");
    assert_eq!(timeout(PATIENCE, node.stop_processing().next()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_a_node_as_well_as_a_handle_to_any_divider() {
    let node = node(&divider_core::MemoryStore::new());
    let any: Arc<dyn Divider> = node.clone();
    node.start().await.unwrap();
    for worker in [Worker::new((*node).clone()), Worker::new(any.clone()), Worker::new(node.clone())] {
        node.add_work(vec![Work::new("a").unwrap()]).await.unwrap();
        drop(worker);
    }
    until("the key to be here", async || node.assigned().len() == 1).await;
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a deliberate panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_panic_panics_ends_nobody_else() {
    let node = node(&divider_core::MemoryStore::new());
    add(&node, &["bad", "good"]).await;
    let worker = tokio::spawn(Worker::new(node.clone()).run(|job, mut stop| async move {
        if job.key.as_str() == "bad" {
            std::panic::panic_any(Bomb);
        }
        stop.requested().await;
        Ok(Next::Release)
    }));
    until("the failure", async || {
        let bad = node.record(&divider_core::Key::new("bad").unwrap()).await;
        bad.is_ok_and(|bad| bad.is_some_and(|bad| bad.view.failures == 1))
    })
    .await;
    assert!(!worker.is_finished());
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_node_has_died_says_so() {
    use divider_conformance::{Call, Fault, FaultyStore};
    let store = FaultyStore::new(divider_core::MemoryStore::new());
    let faults = store.faults();
    let node = divider_core::Node::builder(store).build().unwrap();
    let worker = tokio::spawn(Worker::new(node.clone()).run(|_, _| async { Ok(Next::Complete) }));
    until("the node to run", async || node.session().is_some()).await;
    faults.order(Fault::Panic, 1, |call| matches!(call, Call::Poll(_)));
    let ended = timeout(PATIENCE, worker).await.unwrap().unwrap();
    assert!(ended.is_err(), "a program that ends as if all were well is not started anew: {ended:?}");
}
