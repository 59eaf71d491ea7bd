//! When a key that is not finished runs again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use divider_core::{Aside, ConfigError, Divider, Error, Key, MemoryStore, Next, Retry, State, Worker};
use tokio::{sync::mpsc, time::timeout};

use crate::{PATIENCE, add, node, store, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_release_on_a_lone_node_rests_for_longer_each_time() {
    let node = node(&MemoryStore::new());
    add(&node, &["a"]).await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let worker = Worker::new(node.clone()).release_pause(Duration::from_millis(40), Duration::from_millis(160));
    let worker = tokio::spawn(worker.run(move |_, _| {
        ran.send(Instant::now()).unwrap();
        async { Ok(Next::Release) }
    }));
    let mut seen = Vec::new();
    while seen.len() < 6 {
        seen.push(timeout(PATIENCE, runs.recv()).await.unwrap().unwrap());
    }
    worker.abort();
    // A fifth may be taken off, and due times are whole milliseconds.
    for (pair, least) in seen.windows(2).zip([31, 63, 127, 127, 127]) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(least), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_rests_without_being_told_to() {
    let node = node(&MemoryStore::new());
    add(&node, &["a"]).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let worker = tokio::spawn(Worker::new(node.clone()).run({
        let runs = runs.clone();
        move |_, _| {
            runs.fetch_add(1, Ordering::SeqCst);
            async { Ok(Next::Release) }
        }
    }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // After 0, 80, 240 and 560 ms at the earliest.
    assert!((1..=4).contains(&runs.load(Ordering::SeqCst)), "{runs:?}");
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_always_fails_is_tried_no_more_after_so_many_failures() {
    let node = node(&MemoryStore::new());
    add(&node, &["a", "b"]).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let retry = Retry::default().first(Duration::from_millis(1)).most(Duration::from_secs(600)).failures(5);
    let worker = tokio::spawn(Worker::new(node.clone()).retry(retry).run({
        let runs = runs.clone();
        move |work, _| {
            let runs: Arc<AtomicUsize> = if work.key.as_str() == "a" { runs.clone() } else { Arc::default() };
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                Err("a deliberate error".into())
            }
        }
    }));
    until("five runs", async || runs.load(Ordering::SeqCst) == 5).await;
    let key = Key::new("a").unwrap();
    until("it is set aside", async || node.quarantined(9).await.unwrap().contains(&key)).await;
    assert_eq!(runs.load(Ordering::SeqCst), 5);
    let record = node.record(&key).await.unwrap().unwrap();
    assert_eq!((record.why.as_str(), record.view.state), ("a deliberate error", State::Quarantined(Aside::Failed)));
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_set_up_wrongly_says_what_is_wrong_with_it() {
    let node = node(&MemoryStore::new());
    let none = Duration::ZERO;
    let bad = [
        ("concurrency", Worker::new(node.clone()).concurrency(0)),
        ("retry", Worker::new(node.clone()).retry(Retry::default().first(none))),
        ("retry", Worker::new(node.clone()).retry(Retry::default().failures(0))),
        ("release_pause", Worker::new(node.clone()).release_pause(none, none)),
        ("affinity_from", Worker::new(node.clone()).affinity_from(none, || 1)),
    ];
    for (name, worker) in bad {
        let error = worker.run(|_, _| async { Ok(Next::Complete) }).await.unwrap_err();
        assert!(matches!(&error, Error::Config(ConfigError { field, .. }) if *field == name), "{error}");
    }
    node.start().await.expect("the node is as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_interval_and_no_grace_time_is_too_long() {
    let node = node(&MemoryStore::new());
    add(&node, &["a"]).await;
    let worker = Worker::new(node.clone()).grace(Duration::MAX).outage_limit(Duration::MAX);
    let worker = worker.affinity_from(Duration::MAX, || 7).retry(Retry::default().most(Duration::MAX));
    let worker = tokio::spawn(worker.run(|_, mut stop| async move {
        stop.requested().await;
        Ok(Next::Release)
    }));
    until("the affinity to be set", async || node.affinity() == 7).await;
    let flushed = timeout(PATIENCE, node.flush_and_cancel()).await.unwrap().unwrap();
    assert!(flushed.unconfirmed.is_empty());
    drop(timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stays_away_for_too_long_ends_the_worker_at_its_start_and_later() {
    let limit = Duration::from_millis(300);
    let (node, faults) = store::faulty();
    store::is_down(&faults);
    let began = Instant::now();
    let at_the_start = Worker::new(node).outage_limit(limit).run(|_, _| std::future::pending());
    let error = timeout(PATIENCE, at_the_start).await.expect("it ends").unwrap_err();
    assert!(matches!(error, Error::Store(_)) && began.elapsed() >= limit, "{error}");

    let (node, faults) = store::faulty();
    add(&node, &["a"]).await;
    let later = tokio::spawn(Worker::new(node.clone()).outage_limit(limit).run(|_, _| std::future::pending()));
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    store::is_down(&faults);
    let error = timeout(PATIENCE, later).await.expect("it ends").unwrap().unwrap_err();
    assert!(matches!(error, Error::Store(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_when_its_store_is_back() {
    let (node, faults) = store::faulty();
    add(&node, &["a"]).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let worker = tokio::spawn(Worker::new(node.clone()).run({
        let runs = runs.clone();
        move |_, _| {
            runs.fetch_add(1, Ordering::SeqCst);
            std::future::pending()
        }
    }));
    until("the task to run", async || runs.load(Ordering::SeqCst) == 1).await;
    store::is_down(&faults);
    until("the loss", async || node.session().is_none()).await;
    faults.lift();
    until("the task to run again", async || runs.load(Ordering::SeqCst) == 2).await;
    worker.abort();
}
