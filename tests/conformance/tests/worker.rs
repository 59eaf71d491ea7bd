//! The worker: how tasks end, and what becomes of their keys.

#![allow(clippy::unwrap_used)] // Test support: a panic is the report.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_core::{Divider, Key, MemoryStore, Next, Node, Retry, StopReason, Work, Worker};
use tokio::{sync::mpsc, time::timeout};

#[path = "worker/again.rs"]
mod again;
#[path = "worker/ends.rs"]
mod ends;
#[path = "worker/hand_over.rs"]
mod hand_over;
#[path = "worker/losses.rs"]
mod losses;
#[path = "worker/store.rs"]
mod store;

const PATIENCE: Duration = Duration::from_secs(20);

fn node(store: &MemoryStore) -> Arc<Node> {
    Arc::new(Node::builder(store.clone()).configure(|c| c.lease = Duration::from_millis(600)).build().unwrap())
}

async fn add(node: &Node, keys: &[&str]) {
    node.start().await.unwrap();
    node.add_work(keys.iter().map(|key| Work::new(key).unwrap()).collect()).await.unwrap();
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("waited too long for: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_task_ends_its_key() {
    let node = node(&MemoryStore::new());
    add(&node, &["a", "b"]).await;
    let worker = tokio::spawn(Worker::new(node.clone()).run(|_, _| async { Ok(Next::Complete) }));
    until("both keys to end", async || node.stats().await.unwrap().registered == 0).await;
    node.cancel().await.unwrap();
    drop(timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_or_panics_runs_again_after_a_backoff() {
    let node = node(&MemoryStore::new());
    add(&node, &["errs", "panics"]).await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let worker = Worker::new(node.clone())
        .retry(Retry::default().first(Duration::from_millis(50)).most(Duration::from_millis(200)));
    let worker = tokio::spawn(worker.run(move |work, _| {
        ran.send((work.key.clone(), work.attempts, std::time::Instant::now())).unwrap();
        async move {
            if work.attempts == 3 {
                return Ok(Next::Complete);
            }
            assert_ne!(work.key.as_str(), "panics", "a deliberate panic");
            Err("a deliberate error".into())
        }
    }));
    until("both keys to complete at the third attempt", async || node.stats().await.unwrap().registered == 0).await;
    let mut seen: Vec<_> = std::iter::from_fn(|| runs.try_recv().ok()).collect();
    seen.sort();
    let attempts: Vec<u32> = seen.iter().map(|(_, attempt, _)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 1, 2, 3]);
    for runs in seen.chunks(3) {
        let rests: Vec<Duration> = runs.windows(2).map(|pair| pair[1].2 - pair[0].2).collect();
        // A fifth may be taken off, and due times are whole milliseconds of the wall clock.
        assert!(rests[0] >= Duration::from_millis(39) && rests[1] >= Duration::from_millis(79), "{rests:?}");
    }
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_task_is_confirmed_when_it_has_ended_and_not_before() {
    let node = node(&MemoryStore::new());
    add(&node, &["a"]).await;
    let ended = Arc::new(AtomicBool::new(false));
    let (started, mut starts) = mpsc::unbounded_channel();
    let worker = tokio::spawn(Worker::new(node.clone()).run({
        let ended = ended.clone();
        move |_, mut stop| {
            let (ended, started) = (ended.clone(), started.clone());
            async move {
                started.send(()).unwrap();
                assert_eq!(stop.requested().await, StopReason::Removed);
                tokio::time::sleep(Duration::from_millis(200)).await;
                ended.store(true, Ordering::SeqCst);
                Ok(Next::Release)
            }
        }
    }));
    timeout(PATIENCE, starts.recv()).await.unwrap().unwrap();
    node.remove_work(vec![Key::new("a").unwrap()]).await.unwrap();
    until("the key to end", async || {
        let gone = node.stats().await.unwrap().registered == 0;
        assert!(!gone || ended.load(Ordering::SeqCst), "the key was free before its task had ended");
        gone
    })
    .await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ignores_its_stop_is_cancelled_after_the_grace_time() {
    let node = node(&MemoryStore::new());
    add(&node, &["deaf"]).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let worker = Worker::new(node.clone()).grace(Duration::from_millis(50));
    let worker = tokio::spawn(worker.run(move |_, _| {
        started.send(()).unwrap();
        std::future::pending()
    }));
    timeout(PATIENCE, starts.recv()).await.unwrap().unwrap();
    let flushed = timeout(PATIENCE, node.flush_and_cancel()).await.unwrap().unwrap();
    assert!(flushed.unconfirmed.is_empty());
    drop(timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_tasks_run_than_allowed_and_the_others_wait() {
    let node = node(&MemoryStore::new());
    let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    add(&node, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = Worker::new(node.clone()).concurrency(3);
    let worker = tokio::spawn(worker.run({
        let most = most.clone();
        move |_, _| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(Next::Complete)
            }
        }
    }));
    until("all keys to complete", async || node.stats().await.unwrap().registered == 0).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_hands_every_key_to_the_next_worker() {
    let store = MemoryStore::new();
    let (first, second) = (node(&store), node(&store));
    add(&first, &["a", "b", "c", "d"]).await;
    let (ask, asked) = tokio::sync::oneshot::channel::<()>();
    let one =
        tokio::spawn(Worker::new(first.clone()).run_until(async { drop(asked.await) }, |_, mut stop| async move {
            stop.requested().await;
            Ok(Next::Release)
        }));
    until("the first to hold all", async || first.assigned().iter().filter(|a| a.started).count() == 4).await;
    let two = tokio::spawn(Worker::new(second.clone()).run(|_, mut stop| async move {
        stop.requested().await;
        Ok(Next::Release)
    }));
    ask.send(()).unwrap();
    let flushed = timeout(PATIENCE, one).await.unwrap().unwrap().unwrap();
    assert!(flushed.unconfirmed.is_empty());
    until("the second to hold all", async || second.assigned().iter().filter(|a| a.started).count() == 4).await;
    two.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_affinity_follows_the_load() {
    let node = node(&MemoryStore::new());
    let wanted = Arc::new(AtomicUsize::new(10));
    let worker = Worker::new(node.clone()).affinity_from(Duration::from_millis(10), {
        let wanted = wanted.clone();
        move || u32::try_from(wanted.load(Ordering::SeqCst)).unwrap()
    });
    let worker = tokio::spawn(worker.run(|_, _| async { Ok(Next::Complete) }));
    until("affinity 10", async || node.affinity() == 10).await;
    wanted.store(77, Ordering::SeqCst);
    until("affinity 77", async || node.affinity() == 77).await;
    worker.abort();
}
