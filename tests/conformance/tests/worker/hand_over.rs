//! What a task leaves to the next owner of its key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use divider_conformance::Fault;
use divider_core::{
    Divider, Error, Flushed, Job, Key, MemoryStore, Next, Node, NodeConfig, Op, SecondSignal, StopReason, StopSignal,
    TaskError, Worker, limits,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    PATIENCE, add, node,
    store::{self, faulty, faulty_with, refuses},
    until,
};

const TOO_LONG: usize = limits::MAX_CHECKPOINT_BYTES + 1;

/// Runs a worker over a node that holds one key, has it drain when the task runs, and says how that went.
async fn drained<F, Fut>(node: Arc<Node>, configure: impl FnOnce(Worker) -> Worker, task: F) -> Flushed
where
    F: Fn(Job, StopSignal) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, TaskError>> + Send + 'static,
{
    add(&node, &["a"]).await;
    let (ask, asked) = oneshot::channel::<()>();
    let worker = configure(Worker::new(node.clone())).run_until(async { drop(asked.await) }, task);
    let worker = tokio::spawn(worker);
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    drop(ask);
    timeout(PATIENCE, worker).await.expect("the drain ends").unwrap().unwrap()
}

/// What the key's next owner is given.
async fn left(group: &MemoryStore) -> Vec<u8> {
    let node = node(group);
    node.start().await.unwrap();
    node.record(&Key::new("a").unwrap()).await.unwrap().unwrap().checkpoint.to_vec()
}

fn named(flushed: &Flushed) -> Vec<(&str, &str)> {
    flushed.not_handed_over.iter().map(|missing| (missing.key.as_str(), missing.why.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_after_the_stop_is_there_for_the_next_owner() {
    let group = MemoryStore::new();
    let flushed = drained(
        node(&group),
        |worker| worker,
        |job, mut stop| async move {
            stop.requested().await;
            job.hand_over(*b"state").await?;
            Ok(Next::Release)
        },
    );
    let flushed = flushed.await;
    assert!(flushed.unconfirmed.is_empty() && flushed.not_handed_over.is_empty(), "{flushed:?}");
    assert_eq!(left(&group).await, b"state");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_checkpoint_between_the_stop_and_its_confirmation_is_kept() {
    let group = MemoryStore::new();
    let flushed = drained(
        node(&group),
        |worker| worker,
        |job, mut stop| async move {
            stop.requested().await;
            job.checkpoint(*b"state").await?;
            Ok(Next::Release)
        },
    );
    assert!(flushed.await.not_handed_over.is_empty());
    assert_eq!(left(&group).await, b"state");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_checkpoint_that_is_too_long_is_named_by_the_drain() {
    let flushed = drained(
        node(&MemoryStore::new()),
        |worker| worker,
        |job, mut stop| async move {
            stop.requested().await;
            job.checkpoint(vec![0; TOO_LONG]).await?;
            Ok(Next::Release)
        },
    );
    let flushed = flushed.await;
    assert!(flushed.unconfirmed.is_empty(), "the key moves all the same: {flushed:?}");
    assert!(matches!(named(&flushed)[..], [("a", why)] if why.contains("65536")), "{flushed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_too_long_is_named_even_if_the_task_does_not_care() {
    let flushed = drained(
        node(&MemoryStore::new()),
        |worker| worker,
        |job, mut stop| async move {
            stop.requested().await;
            assert!(matches!(job.hand_over(vec![0; TOO_LONG]).await, Err(Error::Invalid(_))));
            Ok(Next::Release)
        },
    );
    assert!(matches!(named(&flushed.await)[..], [("a", why)] if why.contains("65536")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_was_too_long_can_be_made_good_with_less() {
    let group = MemoryStore::new();
    let flushed = drained(
        node(&group),
        |worker| worker,
        |job, mut stop| async move {
            stop.requested().await;
            if job.hand_over(vec![0; TOO_LONG]).await.is_err() {
                job.hand_over(*b"less").await?;
            }
            Ok(Next::Release)
        },
    );
    assert!(flushed.await.not_handed_over.is_empty());
    assert_eq!(left(&group).await, b"less");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_after_the_stop_is_named_by_the_drain() {
    let flushed = drained(
        node(&MemoryStore::new()),
        |worker| worker,
        |_, mut stop| async move {
            stop.requested().await;
            panic!("a deliberate panic")
        },
    );
    assert_eq!(named(&flushed.await), [("a", "the task panicked: a deliberate panic")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_cancelled_after_its_grace_time_is_named_by_the_drain() {
    let deaf = |worker: Worker| worker.grace(Duration::from_millis(50));
    let flushed = drained(node(&MemoryStore::new()), deaf, |_, _| std::future::pending()).await;
    assert!(flushed.unconfirmed.is_empty());
    assert_eq!(named(&flushed), [("a", "the task did not end within 50ms of its stop")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_the_store_refuses_for_a_moment_is_kept_before_the_key_moves() {
    let group = MemoryStore::new();
    let (faulty, faults) = faulty_with(&group, |_| {});
    refuses(&faults, 2, |op| matches!(op, Op::Checkpoint { .. }));
    // Cancelled in the middle of it: the worker goes on with it.
    let hurried = |worker: Worker| worker.grace(Duration::from_millis(20));
    let flushed = drained(faulty, hurried, |job, mut stop| async move {
        stop.requested().await;
        job.hand_over(*b"state").await?;
        std::future::pending().await
    });
    let flushed = flushed.await;
    assert!(flushed.unconfirmed.is_empty() && flushed.not_handed_over.is_empty(), "{flushed:?}");
    assert_eq!(left(&group).await, b"state");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_the_store_never_takes_leaves_the_key_unconfirmed_and_named() {
    let brief = |config: &mut NodeConfig| config.flush_time_limit = Duration::from_millis(300);
    let (node, faults) = faulty_with(&MemoryStore::new(), brief);
    refuses(&faults, usize::MAX, |op| matches!(op, Op::Checkpoint { .. }));
    let flushed = drained(
        node,
        |worker| worker,
        |job, mut stop| async move {
            stop.requested().await;
            job.hand_over(*b"state").await?;
            Ok(Next::Release)
        },
    );
    let flushed = flushed.await;
    assert_eq!(flushed.unconfirmed.len(), 1, "{flushed:?}");
    assert_eq!(named(&flushed), [("a", "the store did not keep it in time")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_lost_with_the_session_is_named() {
    let (node, faults) = faulty();
    let flushed = drained(
        node,
        |worker| worker,
        move |job, mut stop| {
            let faults = faults.clone();
            async move {
                stop.requested().await;
                store::is_down(&faults);
                job.hand_over(*b"state").await?;
                Ok(Next::Release)
            }
        },
    );
    assert!(matches!(named(&flushed.await)[..], [("a", why)] if why.contains("lost")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_is_being_tried_again_does_not_hold_up_a_lost_session() {
    let (node, faults) = faulty();
    let flushed = drained(
        node,
        |worker| worker,
        move |job, mut stop| {
            let faults = faults.clone();
            async move {
                stop.requested().await;
                // Often enough for the pauses to be long.
                let refused = refuses(&faults, 4, |op| matches!(op, Op::Checkpoint { .. }));
                faults.always(Fault::Refuse, move |_| refused.hits() == 4);
                job.hand_over(*b"state").await?;
                Ok(Next::Release)
            }
        },
    );
    assert!(matches!(named(&flushed.await)[..], [("a", why)] if why.contains("lost")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_confirmed_only_after_its_last_hold_is_dropped() {
    let node = node(&MemoryStore::new());
    add(&node, &["a"]).await;
    let (held, mut holds) = mpsc::unbounded_channel();
    let blocking = Arc::new(AtomicBool::new(false));
    let worker = Worker::new(node.clone()).grace(Duration::from_millis(10)).run({
        let blocking = blocking.clone();
        move |job, mut stop| {
            let (held, blocking) = (held.clone(), blocking.clone());
            async move {
                let hold = job.hold();
                blocking.store(true, Ordering::SeqCst);
                let work = tokio::task::spawn_blocking(move || {
                    std::thread::sleep(Duration::from_millis(300));
                    blocking.store(false, Ordering::SeqCst);
                    drop(hold);
                });
                held.send(()).unwrap();
                assert_eq!(stop.requested().await, StopReason::Removed);
                // Cancelled here, after its grace time.
                work.await?;
                std::future::pending().await
            }
        }
    });
    let worker = tokio::spawn(worker);
    timeout(PATIENCE, holds.recv()).await.unwrap().unwrap();
    node.remove_work(vec![Key::new("a").unwrap()]).await.unwrap();
    until("the key to end", async || {
        let works = blocking.load(Ordering::SeqCst);
        let gone = node.stats().await.unwrap().registered == 0;
        assert!(!gone || !works, "the key was free while its work ran");
        gone
    })
    .await;
    worker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_key_is_held_as_well() {
    let node = node(&MemoryStore::new());
    add(&node, &["a"]).await;
    let (held, mut holds) = mpsc::unbounded_channel();
    let worker = tokio::spawn(Worker::new(node.clone()).run(move |job, _| {
        held.send(job.hold()).unwrap();
        async { Ok(Next::Complete) }
    }));
    let hold = timeout(PATIENCE, holds.recv()).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.stats().await.unwrap().registered, 1, "it is held");
    drop(hold);
    until("the key to end", async || node.stats().await.unwrap().registered == 0).await;
    worker.abort();
}

/// The store is away before the drain begins, and stays away.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_can_hand_nothing_over_while_the_store_is_away_and_is_named() {
    let (node, faults) = faulty();
    add(&node, &["a"]).await;
    let (ask, asked) = oneshot::channel::<()>();
    let worker = Worker::new(node.clone()).run_until(async { drop(asked.await) }, |job, mut stop| async move {
        assert_eq!(stop.requested().await, StopReason::Flushed);
        job.hand_over(*b"state").await?;
        Ok(Next::Release)
    });
    let worker = tokio::spawn(worker);
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    store::is_down(&faults);
    drop(ask);
    let flushed = timeout(PATIENCE, worker).await.expect("the drain ends").unwrap().unwrap();
    assert!(matches!(named(&flushed)[..], [("a", why)] if why.contains("lost")), "{flushed:?}");
    assert!(flushed.unconfirmed.is_empty() && flushed.lost.len() == 1 && !flushed.is_clean(), "{flushed:?}");
}

/// All tasks have ended, and the store has not heard of it when the drain is cut short.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_cut_short_names_what_the_store_has_not_heard_of() {
    let (node, faults) = faulty_with(&MemoryStore::new(), |config| config.lease = Duration::from_secs(20));
    add(&node, &["a"]).await;
    let (ask, asked) = oneshot::channel::<()>();
    let (hurry, hurried) = oneshot::channel::<()>();
    let shutdown = async {
        drop(asked.await);
        SecondSignal::when(async { drop(hurried.await) })
    };
    let worker = Worker::new(node.clone()).run_until(shutdown, |_, mut stop| async move {
        stop.requested().await;
        Ok(Next::Release)
    });
    let worker = tokio::spawn(worker);
    until("the task to run", async || node.assigned().iter().any(|held| held.started)).await;
    store::is_down(&faults);
    drop(ask);
    until("the task to have ended", async || node.assigned().is_empty()).await;
    drop(hurry);
    let flushed = timeout(PATIENCE, worker).await.expect("the drain ends").unwrap().unwrap();
    assert_eq!(flushed.unconfirmed.len(), 1, "{flushed:?}");
}
