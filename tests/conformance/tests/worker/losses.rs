//! What a task sees of the loss of its session, and how a worker ends that cannot wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_conformance::Faults;
use divider_core::{Divider, Error, MemoryStore, Next, Node, SecondSignal, StopReason, Worker};
use tokio::{sync::oneshot, time::timeout};

use crate::{PATIENCE, add, store, until};

const TASKS: usize = 50;

async fn runs(node: &Node, tasks: usize) {
    let keys: Vec<String> = (0..tasks).map(|key| format!("k{key}")).collect();
    add(node, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    until("all to be here", async || node.assigned().len() == tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_sees_the_loss_of_its_session_and_gets_no_further_than_its_next_await() {
    let (node, faults) = store::faulty();
    runs(&node, TASKS).await;
    let (began, saw, went_on) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = Worker::new(node.clone()).run({
        let (began, saw, went_on) = (began.clone(), saw.clone(), went_on.clone());
        move |_, mut stop| {
            let (began, saw, went_on) = (began.clone(), saw.clone(), went_on.clone());
            async move {
                began.fetch_add(1, Ordering::SeqCst);
                if stop.requested().await == StopReason::Lost {
                    saw.fetch_add(1, Ordering::SeqCst);
                }
                tokio::task::yield_now().await;
                went_on.fetch_add(1, Ordering::SeqCst);
                Ok(Next::Release)
            }
        }
    });
    let worker = tokio::spawn(worker);
    until("all to run", async || began.load(Ordering::SeqCst) == TASKS).await;
    store::is_down(&faults);
    // Once all are confirmed, nothing is left of them.
    until("the loss", async || node.session().is_none()).await;
    faults.lift();
    until("all to run again", async || began.load(Ordering::SeqCst) == 2 * TASKS).await;
    assert_eq!((saw.load(Ordering::SeqCst), went_on.load(Ordering::SeqCst)), (TASKS, 0));
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_asked_to_stop_already_sees_the_loss_as_well() {
    let (node, faults) = store::faulty();
    runs(&node, TASKS).await;
    let (asked, saw) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (ask, shutdown) = oneshot::channel::<()>();
    let worker = Worker::new(node.clone()).run_until(async { drop(shutdown.await) }, {
        let (asked, saw) = (asked.clone(), saw.clone());
        move |_, mut stop| {
            let (asked, saw) = (asked.clone(), saw.clone());
            async move {
                assert_eq!(stop.requested().await, StopReason::Flushed);
                asked.fetch_add(1, Ordering::SeqCst);
                std::future::poll_fn(|cx| {
                    saw.fetch_add(usize::from(stop.reason() == Some(StopReason::Lost)), Ordering::SeqCst);
                    let _ = cx;
                    std::task::Poll::<()>::Pending
                })
                .await;
                Ok(Next::Release)
            }
        }
    });
    let worker = tokio::spawn(worker);
    until("all to run", async || node.assigned().iter().filter(|held| held.started).count() == TASKS).await;
    store::is_down(&faults);
    drop(ask);
    let flushed = timeout(PATIENCE, worker).await.expect("the drain ends").unwrap().unwrap();
    assert_eq!((asked.load(Ordering::SeqCst), flushed.lost.len()), (TASKS, TASKS));
    assert!(saw.load(Ordering::SeqCst) >= TASKS, "{saw:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_has_always_something_to_do_is_cancelled_all_the_same() {
    let node = crate::node(&MemoryStore::new());
    runs(&node, 1).await;
    let worker = Worker::new(node.clone()).grace(Duration::from_millis(20)).run(|_, _| async move {
        let (again, mut todo) = tokio::sync::mpsc::unbounded_channel();
        loop {
            again.send(())?;
            todo.recv().await;
        }
    });
    let worker = tokio::spawn(worker);
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    let flushed = timeout(PATIENCE, node.flush_and_cancel()).await.unwrap().unwrap();
    assert!(flushed.is_clean(), "{flushed:?}");
    drop(timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap());
}

/// The program returns from `main` at once, and its runtime is gone.
fn ends_with_its_runtime(worker: impl AsyncFnOnce(Arc<Node>, Faults)) {
    let (node, faults) = store::faulty();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        add(&node, &["a"]).await;
        worker(node.clone(), faults).await;
    });
    drop(runtime);
    let after = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let over = after.block_on(node.stats());
    assert!(matches!(over, Err(Error::Cancelled)), "a part of it has died: {over:?}");
}

#[test]
fn an_end_by_a_second_signal_is_the_death_of_nothing() {
    ends_with_its_runtime(async |node, faults| {
        let (ask, asked) = oneshot::channel::<()>();
        let (hurry, hurried) = oneshot::channel::<()>();
        let shutdown = async {
            drop(asked.await);
            SecondSignal::when(async { drop(hurried.await) })
        };
        let worker = Worker::new(node.clone()).run_until(shutdown, |_, _| std::future::pending());
        let worker = tokio::spawn(worker);
        until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
        store::is_down(&faults);
        drop(ask);
        until("the stop", async || node.assigned().iter().any(|held| held.stopping.is_some())).await;
        drop(hurry);
        let flushed = timeout(PATIENCE, worker).await.expect("it ends at once").unwrap().unwrap();
        assert_eq!(flushed.unconfirmed.len(), 1, "{flushed:?}");
    });
}

#[test]
fn an_end_because_of_an_outage_is_the_death_of_nothing() {
    ends_with_its_runtime(async |node, faults| {
        let worker = Worker::new(node.clone()).outage_limit(Duration::from_millis(20));
        let worker = tokio::spawn(worker.run(|_, _| std::future::pending()));
        until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
        store::is_down(&faults);
        timeout(PATIENCE, worker).await.expect("it ends").unwrap().unwrap_err();
    });
}
