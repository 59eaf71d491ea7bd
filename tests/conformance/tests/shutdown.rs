//! The signals that end a program. In a file of its own, since signals are the whole process's.

#![allow(clippy::unwrap_used)] // Test support: a panic is the report.
use std::{sync::Arc, time::Duration};

use divider_conformance::{Fault, FaultyStore};
use divider_core::{Divider, Error, MemoryStore, Next, Node, Work, Worker, shutdown_signal};
use rustix::process::{Signal, getpid, kill_process};
use tokio::{sync::Mutex, time::timeout};

const PATIENCE: Duration = Duration::from_secs(20);
/// A signal is heard by all tests that run at the time.
static ALONE: Mutex<()> = Mutex::const_new(());

fn send(signal: Signal) {
    kill_process(getpid(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_between_the_call_and_the_first_await_is_not_missed() {
    let _alone = ALONE.lock().await;
    for signal in [Signal::TERM, Signal::INT] {
        let shutdown = shutdown_signal();
        send(signal);
        timeout(PATIENCE, shutdown).await.expect("the signal is heard");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_its_store_ends_on_a_signal() {
    let _alone = ALONE.lock().await;
    let store = FaultyStore::new(MemoryStore::new());
    let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
    store.faults().always(Fault::Refuse, move |_| {
        let _ = asked.send(());
        true
    });
    let node = Arc::new(Node::builder(store).build().unwrap());
    let worker = tokio::spawn(Worker::new(node).run_until(shutdown_signal(), |_, _| async { Ok(Next::Complete) }));
    asks.recv().await.unwrap();
    send(Signal::TERM);
    drop(timeout(PATIENCE, worker).await.expect("the worker ends").unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_gives_up_at_once() {
    let _alone = ALONE.lock().await;
    let node = Arc::new(Node::builder(MemoryStore::new()).build().unwrap());
    node.start().await.unwrap();
    node.add_work(vec![Work::new("deaf").unwrap()]).await.unwrap();
    let (asked, mut asks) = tokio::sync::mpsc::unbounded_channel();
    let worker = Worker::new(node.clone()).grace(10 * PATIENCE).run_until(shutdown_signal(), move |_, mut stop| {
        let asked = asked.clone();
        async move {
            let _ = asked.send(stop.requested().await);
            std::future::pending().await
        }
    });
    let worker = tokio::spawn(worker);
    timeout(PATIENCE, async {
        while !node.assigned().iter().any(|held| held.started) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    send(Signal::TERM);
    timeout(PATIENCE, asks.recv()).await.expect("the drain begins").unwrap();
    send(Signal::TERM);
    let flushed = timeout(PATIENCE, worker).await.expect("the worker gives up").unwrap().unwrap();
    assert_eq!(flushed.unconfirmed.len(), 1, "{flushed:?}");
    // The node has ended with it, although a handle lives.
    timeout(PATIENCE, async {
        while !matches!(node.stats().await, Err(Error::Cancelled)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}
