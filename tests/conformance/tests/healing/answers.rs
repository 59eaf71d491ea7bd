//! Answers that say little: what was asked for is tried until it is known what became of it.

use divider_conformance::{Call, Fault};
use std::sync::atomic::{AtomicBool, Ordering};

use divider_core::{Error, Op, State, limits};

use super::*;

fn confirms(call: &Call<'_>) -> bool {
    call.applies(|op| matches!(op, Op::Confirm { .. }))
}

fn completes(call: &Call<'_>) -> bool {
    call.applies(|op| matches!(op, Op::Complete { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_is_tried_until_it_counts_whatever_the_store_says() {
    for fault in [Fault::Misconfigured, Fault::Corrupt, Fault::Refuse] {
        let store = MemoryStore::new();
        let (node, faults) = faulty(&store, |_| {});
        let mut events = node.events();
        node.start().await.unwrap();
        node.add_work(work(["k"])).await.unwrap();
        let first = start(&mut events).await;
        node.send_stop_processing(&first.key, first.token).await.unwrap();
        let stop = stop(&mut events).await;
        faults.order(fault, 3, confirms);
        soon("the confirmation", node.confirm_stop_processing(&stop.key, stop.token)).await.unwrap();
        let again = start(&mut events).await;
        assert!(again.token > first.token, "after {fault:?}");
    }
}

/// The second copy is refused, and its answer is all that the node hears.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_doubled_request_says_is_done_whichever_answer_comes_back() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    soon("the work", node.add_work(work(["k"]))).await.unwrap();
    let first = start(&mut events).await;
    let doubled = faults.order(Fault::Double, 1, |call| call.applies(|op| matches!(op, Op::Add(_))));
    // The completion may go with the declaration, and then is refused with it.
    let (declared, completed) = tokio::join!(node.add_work(work(["other"])), node.complete(&first.key, first.token));
    declared.unwrap();
    completed.unwrap();
    assert_eq!((doubled.hits(), store.records(&[first.key]).await.unwrap()), (1, vec![None]));
    assert_eq!(start(&mut events).await.key.as_str(), "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_tried_until_it_counts_whatever_the_store_says() {
    for fault in [Fault::Misconfigured, Fault::Corrupt, Fault::Refuse] {
        let store = MemoryStore::new();
        let (node, faults) = faulty(&store, |_| {});
        let mut events = node.events();
        node.start().await.unwrap();
        node.add_work(work(["k"])).await.unwrap();
        let first = start(&mut events).await;
        faults.order(fault, 3, completes);
        soon("the completion", node.complete(&first.key, first.token)).await.unwrap();
        assert!(!node.is_current(&first.key, first.token), "after {fault:?}");
        assert_eq!(store.stats().await.unwrap().registered, 0, "after {fault:?}");
    }
}

/// The completion takes effect, and no answer of the store can be read for as long as the session lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_whose_answer_cannot_be_read_leaves_no_second_owner() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let first = start(&mut events).await;
    faults.always(Fault::Corrupt, |call| matches!(call, Call::Apply(_)));
    let completion = tokio::spawn({
        let (node, first) = (node.clone(), first.clone());
        async move { node.complete(&first.key, first.token).await }
    });
    until("the completion to take effect", async || store.stats().await.unwrap().registered == 0).await;
    let other = super::node(store.clone(), |_| {});
    let mut at_other = other.events();
    other.start().await.unwrap();
    other.add_work(work(["k"])).await.unwrap();
    faults.lift();
    // The key may have another owner by now; then it is not known which try took effect.
    let completed = soon("the completion", completion).await.unwrap();
    assert!(matches!(completed, Ok(()) | Err(Error::Lost { .. })), "{completed:?}");
    assert!(!node.is_current(&first.key, first.token));
    let at_one = async {
        loop {
            match events.next().await {
                Some(Event::Start(second)) => return second,
                Some(Event::Stop(stop)) => drop(node.confirm_stop_processing(&stop.key, stop.token).await),
                other => panic!("neither a start nor a stop: {other:?}"),
            }
        }
    };
    let second = tokio::select! {
        second = start(&mut at_other) => second,
        second = soon("a start", at_one) => second,
    };
    assert!(second.token > first.token);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_op_that_the_store_never_takes_holds_nobody_else_up() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["bad", "good"])).await.unwrap();
    let mut starts = [start(&mut events).await, start(&mut events).await];
    starts.sort_by(|a, b| a.key.cmp(&b.key));
    let [bad, good] = starts;
    let key = bad.key.clone();
    let writes_bad = move |op: &Op| matches!(op, Op::Checkpoint { key: of, .. } if *of == key);
    let refused = faults.always(Fault::Misconfigured, move |call| call.applies(&writes_bad));
    let stuck = tokio::spawn({
        let (node, bad) = (node.clone(), bad.clone());
        async move { node.checkpoint(&bad.key, bad.token, (*b"1").into()).await }
    });
    until("a refusal", async || refused.hits() > 0).await;
    let (first, second) =
        tokio::join!(node.checkpoint(&good.key, good.token, (*b"1").into()), node.complete(&good.key, good.token));
    first.unwrap();
    second.unwrap();
    soon("work by hand", node.add_work(work(["more"]))).await.unwrap();
    refused.lift();
    soon("the bad checkpoint", stuck).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_no_session_is_told_at_once_that_the_store_is_not_set_up() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    node.start().await.unwrap();
    faults.order(Fault::Misconfigured, 1, |call| call.applies(|op| matches!(op, Op::Add(_))));
    let refused = node.add_work(work(["k"])).await.unwrap_err();
    assert!(matches!(&refused, Error::Store(error) if error.has_no_effect() && !error.is_transient()), "{refused}");
    node.add_work(work(["k"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_of_a_call_counts_from_the_asking() {
    const LIMIT: Duration = Duration::from_millis(300);
    let (node, faults) = faulty(&MemoryStore::new(), |config| config.call_time_limit = LIMIT);
    node.start().await.unwrap();
    faults.always(Fault::Refuse, |call| matches!(call, Call::Apply(_)));
    let began = std::time::Instant::now();
    // Each fills a batch of its own.
    let calls = (0..20).map(|call| {
        let node = node.clone();
        tokio::spawn(async move { node.add_work(work((0..400).map(|key| format!("{call}-{key}")))).await })
    });
    for call in calls.collect::<Vec<_>>() {
        soon("the call", call).await.unwrap().unwrap_err();
    }
    assert!(began.elapsed() < LIMIT * 10, "the last gave up after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_names_what_the_store_does_not_take_a_confirmation_of() {
    let (node, faults) = faulty(&MemoryStore::new(), |config| {
        config.lease = Duration::from_secs(30);
        config.flush_time_limit = Duration::from_millis(300);
    });
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let first = start(&mut events).await;
    faults.always(Fault::Misconfigured, confirms);
    let flush = tokio::spawn({
        let node = node.clone();
        async move { node.flush().await }
    });
    let stop = stop(&mut events).await;
    let confirm = node.confirm_stop_processing(&stop.key, stop.token);
    let (flushed, _) = tokio::join!(flush, timeout(Duration::from_millis(500), confirm));
    let unconfirmed = flushed.unwrap().unwrap().unconfirmed;
    assert_eq!(unconfirmed.iter().map(|key| key.token).collect::<Vec<_>>(), [first.token]);
}

/// As above, with more of what the store never takes than goes into one batch.
#[tokio::test(flavor = "multi_thread")]
async fn ops_that_the_store_never_takes_hold_nobody_else_up_however_many_they_are() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work((0..12).map(|key| format!("k{key}")))).await.unwrap();
    let mut keys = Vec::new();
    for _ in 0..12 {
        keys.push(start(&mut events).await);
    }
    let refused = faults.always(Fault::Misconfigured, |call| call.applies(|op| matches!(op, Op::Checkpoint { .. })));
    let good = keys.pop().unwrap();
    for _ in 0..limits::MAX_BATCH_OPS / 8 {
        for key in &keys {
            // Whoever asks does not wait for the answer.
            let call = node.checkpoint(&key.key, key.token, (*b"1").into());
            assert!(timeout(Duration::ZERO, call).await.is_err());
        }
    }
    until("a refusal", async || refused.hits() > 0).await;
    soon("the completion", node.complete(&good.key, good.token)).await.unwrap();
    soon("a flush that begins", async {
        drop(timeout(Duration::ZERO, node.flush()).await);
        stop(&mut events).await;
    })
    .await;
}

/// A program that does not wait for long asks again and again while the store refuses, each time with what is new.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_nobody_waits_for_is_replaced_by_the_next() {
    let (node, faults) = faulty(&MemoryStore::new(), |config| config.lease = Duration::from_secs(30));
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["a", "b"])).await.unwrap();
    let (a, b) = (start(&mut events).await, start(&mut events).await);
    let writes = |call: &Call<'_>| call.applies(|op| matches!(op, Op::Checkpoint { .. }));
    let refused = faults.always(Fault::Refuse, writes);
    let patient = tokio::spawn({
        let (node, a) = (node.clone(), a.clone());
        async move { node.checkpoint(&a.key, a.token, (*b"patient").into()).await }
    });
    until("the first", async || refused.hits() > 0).await;
    for number in 0..300_u32 {
        for key in [&a, &b] {
            let call = node.checkpoint(&key.key, key.token, number.to_be_bytes().into());
            assert!(timeout(Duration::ZERO, call).await.is_err());
        }
    }
    let before = refused.hits();
    until("they have been tried", async || refused.hits() > before + 1).await;
    let kept = Arc::new(Mutex::new(0));
    let count = kept.clone();
    faults.always(Fault::Count, move |call| {
        if let Call::Apply(ops) = call {
            *count.lock() += ops.iter().filter(|op| matches!(op, Op::Checkpoint { .. })).count();
        }
        true
    });
    refused.lift();
    soon("the first", patient).await.unwrap().unwrap();
    for key in [&a, &b] {
        until("the last", async || {
            node.record(&key.key).await.unwrap().unwrap().checkpoint[..] == 299_u32.to_be_bytes()[..]
        })
        .await;
    }
    assert!(*kept.lock() <= 6, "{} were kept", *kept.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_op_of_the_leader_that_the_store_never_takes_holds_nobody_else_up() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let bad = |op: &Op| matches!(op, Op::Assign { key, .. } if key.as_str() == "bad");
    faults.always(Fault::Misconfigured, move |call| call.applies(bad));
    let program = Program::over(node);
    program.node.start().await.unwrap();
    program.node.add_work(work(["a", "bad", "c", "d"])).await.unwrap();
    until("the others to run", async || program.running() == 3).await;
}

/// A call whose answer was lost may reach the store at any time later.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_copy_of_what_was_said_before_undoes_nothing() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    let lost = Arc::new(Mutex::new(Vec::new()));
    let lose_next = || {
        let (lost, first) = (lost.clone(), AtomicBool::new(true));
        let keep = move |call: &Call<'_>| {
            let Call::Apply(ops) = call else { return false };
            if !first.swap(false, Ordering::SeqCst) {
                return false;
            }
            lost.lock().push(ops.to_vec());
            true
        };
        faults.order(Fault::Refuse, 1, keep)
    };
    let arrive = async || {
        let copies = std::mem::take(&mut *lost.lock());
        assert!(!copies.is_empty());
        for ops in copies {
            store.apply(&ops).await.unwrap();
        }
    };
    let record = async |key: &str| store.records(&[key.parse().unwrap()]).await.unwrap().remove(0);
    let payload = |payload: &'static [u8]| vec![Work::new("payload").unwrap().payload(payload)];

    lose_next();
    node.add_work(payload(b"old")).await.unwrap();
    node.add_work(payload(b"new")).await.unwrap();
    arrive().await;
    assert_eq!(&record("payload").await.unwrap().payload[..], b"new");
    start(&mut events).await;

    node.add_work(work(["checkpoint"])).await.unwrap();
    let begun = start(&mut events).await;
    lose_next();
    node.checkpoint(&begun.key, begun.token, b"old".to_vec().into()).await.unwrap();
    node.checkpoint(&begun.key, begun.token, b"new".to_vec().into()).await.unwrap();
    arrive().await;
    assert_eq!(&record("checkpoint").await.unwrap().checkpoint[..], b"new");

    lose_next();
    node.add_work(work(["complete"])).await.unwrap();
    let begun = start(&mut events).await;
    node.complete(&begun.key, begun.token).await.unwrap();
    arrive().await;
    assert_eq!(record("complete").await, None, "what is complete is not begun again");

    node.add_work(work(["removed"])).await.unwrap();
    let begun = start(&mut events).await;
    lose_next();
    node.remove_work(vec![begun.key]).await.unwrap();
    node.add_work(work(["removed"])).await.unwrap();
    arrive().await;
    let state = record("removed").await.unwrap().view.state;
    assert!(!matches!(state, State::Stopping { reason: StopReason::Removed, .. }), "{state:?}");
}
