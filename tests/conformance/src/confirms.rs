//! What the program says of a key: confirming, giving up, completing, checkpointing; and saying it wrongly.

use std::time::Duration;

use divider_core::{Error, Key, StopReason, Token, Work};

use super::{Backend, Trial, trial::soon};

pub async fn a_confirmation_that_nobody_asked_for_is_refused<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let unknown = Key::new("nobody's").unwrap();
    let refused = seat.confirm_stop_processing(&unknown, Token(1)).await;
    assert!(matches!(refused, Err(Error::UnknownKey { key }) if key == unknown));
    seat.add(&["a"]).await;
    trial.until("the key is here", async || seat.assigned().len() == 1).await;
    let held = seat.assigned()[0].clone();
    let confirm = async |token| seat.node.confirm_stop_processing(&held.key, token).await;
    // Before the start was read, while it runs, and with tokens that are not its own.
    assert!(matches!(confirm(held.token).await, Err(Error::NotStopping { .. })));
    let start = seat.start().await;
    let confirm = async |token| seat.node.confirm_stop_processing(&start.key, token).await;
    assert!(matches!(confirm(start.token).await, Err(Error::NotStopping { .. })));
    for token in [Token(start.token.0 - 1), Token(start.token.0 + 1), Token(0), Token(u64::MAX)] {
        assert!(matches!(confirm(token).await, Err(Error::StaleToken { given, .. }) if given == token));
    }
    assert!(seat.is_current(&start.key, start.token));
    // Asked for, but not read yet.
    seat.send_stop_processing(&start.key, start.token).await.unwrap();
    assert!(matches!(confirm(start.token).await, Err(Error::NotStopping { .. })));
    let record = seat.record(&start.key).await.unwrap().unwrap();
    assert!(matches!(record.view.state, divider_core::State::Stopping { token, .. } if token == start.token));
    seat.stop_and_confirm().await;
    assert_eq!(seat.start().await.attempts, 2);
}

pub async fn a_second_confirmation_is_refused_and_frees_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    let first = seat.start().await;
    seat.send_stop_processing(&first.key, first.token).await.unwrap();
    seat.stop_and_confirm().await;
    let again = seat.confirm_stop_processing(&first.key, first.token).await;
    assert!(matches!(again, Err(Error::UnknownKey { .. } | Error::StaleToken { .. } | Error::NotStopping { .. })));
    let second = seat.start().await;
    let again = seat.confirm_stop_processing(&first.key, first.token).await;
    assert!(matches!(again, Err(Error::StaleToken { .. })));
    assert!(seat.is_current(&second.key, second.token));
}

pub async fn a_confirmation_whose_future_was_dropped_is_carried_out<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    let first = seat.start().await;
    seat.send_stop_processing(&first.key, first.token).await.unwrap();
    let stop = seat.stop().await;
    seat.history.let_go(seat.player, &stop.key, stop.token);
    {
        let mut confirm = seat.node.confirm_stop_processing(&stop.key, stop.token);
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(confirm.as_mut().poll(cx))).await;
        drop((polled, confirm));
    }
    assert_eq!(seat.start().await.attempts, 2);
}

pub async fn a_key_given_up_goes_elsewhere<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut first = trial.node(|_| {}).await;
    first.add(&["a"]).await;
    let start = first.start().await;
    let mut second = trial.node(|config| config.affinity = 1).await;
    first.send_stop_processing(&start.key, start.token).await.unwrap();
    first.stop_of(&start, StopReason::Rebalanced).await;
    assert_eq!(second.start_at_hand(), None, "not before it is confirmed");
    first.confirm(&start.key, start.token).await;
    let next = second.start().await;
    assert!(next.key == start.key && next.token > start.token && next.attempts == 2);
    // With nobody else to take it, it comes back.
    second.set_affinity(0).await.unwrap();
    first.set_affinity(0).await.unwrap();
    first.set_affinity(1000).await.unwrap();
    second.send_stop_processing(&next.key, next.token).await.unwrap();
    second.stop_and_confirm().await;
    assert_eq!(first.start().await.attempts, 3);
}

pub async fn a_key_given_up_with_backoff_waits<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let other = trial.node(|_| {}).await.play();
    seat.add(&["a", "b"]).await;
    let start = seat.start().await;
    let backoff = Duration::from_millis(700);
    let due = divider_core::clock::unix_ms(std::time::SystemTime::now() + backoff);
    seat.give_up(&start.key, start.token, backoff).await.unwrap();
    seat.stop_and_confirm().await;
    trial.until("it runs again", async || other.runs(&start.key).is_some()).await;
    // Both read the same wall clock here.
    assert!(divider_core::clock::unix_ms(std::time::SystemTime::now()) >= due, "it was started before it was due");
}

pub async fn a_key_given_up_comes_back_where_nobody_else_has_room<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut full = trial.node(|config| config.capacity = Some(1)).await;
    full.add(&["taken"]).await;
    full.start().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    for attempt in 1..=3 {
        let start = seat.start().await;
        assert_eq!((start.key.as_str(), start.attempts), ("a", attempt));
        seat.send_stop_processing(&start.key, start.token).await.unwrap();
        seat.stop_and_confirm().await;
    }
    assert_eq!((full.start_at_hand(), full.assigned().len()), (None, 1));
}

pub async fn confirmations_from_many_tasks_all_count<B: Backend>(trial: Trial<B>) {
    const KEYS: usize = 300;
    trial.end_hold().await;
    let seat = trial.node(|_| {}).await;
    let (mut starts, mut stops) = (seat.start_processing(), seat.stop_processing());
    let keys = (0..KEYS).map(|i| Work::new(format!("key {i}")).unwrap()).collect();
    seat.add_work(keys).await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..KEYS {
        let (start, node) = (soon("a start", starts.next()).await.unwrap(), seat.node.clone());
        tasks.push(tokio::spawn(async move { node.send_stop_processing(&start.key, start.token).await }));
    }
    for _ in 0..KEYS {
        let (stop, node) = (soon("a stop", stops.next()).await.unwrap(), seat.node.clone());
        tasks.push(tokio::spawn(async move { node.confirm_stop_processing(&stop.key, stop.token).await }));
    }
    for _ in 0..KEYS {
        assert_eq!(soon("the second start", starts.next()).await.unwrap().attempts, 2);
    }
    for task in tasks {
        soon("an answer", task).await.unwrap().unwrap();
    }
}

pub async fn a_completed_key_ends_for_good<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b", "c"]).await;
    let starts = seat.starts(3).await;
    // While it runs; while its stop waits to be read; and after it was read.
    seat.finish(&starts[0]).await;
    seat.send_stop_processing(&starts[1].key, starts[1].token).await.unwrap();
    seat.finish(&starts[1]).await;
    seat.send_stop_processing(&starts[2].key, starts[2].token).await.unwrap();
    seat.stop_of(&starts[2], StopReason::Rebalanced).await;
    seat.finish(&starts[2]).await;
    for start in &starts {
        assert_eq!(seat.record(&start.key).await.unwrap(), None);
        assert!(!seat.is_current(&start.key, start.token));
        let again = seat.complete(&start.key, start.token).await;
        assert!(matches!(again, Err(Error::UnknownKey { .. })));
    }
    assert_eq!((seat.assigned().len(), seat.stats().await.unwrap().registered), (0, 0));
    assert_eq!((seat.stop_at_hand(), seat.start_at_hand()), (None, None), "nothing needs to be stopped");
    // Declared again, it is new.
    seat.add(&["a"]).await;
    let again = seat.start().await;
    assert!(again.attempts == 1 && again.token > starts[0].token);
}

pub async fn only_the_owner_completes_and_checkpoints<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    let old = seat.start().await;
    seat.checkpoint(&old.key, old.token, (*b"of the old").into()).await.unwrap();
    seat.send_stop_processing(&old.key, old.token).await.unwrap();
    seat.stop_and_confirm().await;
    let start = seat.start().await;
    assert_eq!(&start.checkpoint[..], b"of the old");
    let stale = |result: Result<(), Error>| assert!(matches!(result, Err(Error::StaleToken { .. })), "{result:?}");
    for token in [old.token, Token(start.token.0 + 1)] {
        stale(seat.complete(&start.key, token).await);
        stale(seat.checkpoint(&start.key, token, (*b"x").into()).await);
        stale(seat.send_stop_processing(&start.key, token).await);
        stale(seat.give_up(&start.key, token, Duration::from_secs(1)).await);
    }
    let unknown = Key::new("nobody's").unwrap();
    assert!(matches!(seat.complete(&unknown, start.token).await, Err(Error::UnknownKey { .. })));
    assert!(matches!(seat.checkpoint(&unknown, start.token, (*b"").into()).await, Err(Error::UnknownKey { .. })));
    assert!(matches!(seat.send_stop_processing(&unknown, start.token).await, Err(Error::UnknownKey { .. })));
    let other = trial.node(|config| config.affinity = 0).await;
    assert!(matches!(other.complete(&start.key, start.token).await, Err(Error::UnknownKey { .. })));
    let record = seat.record(&start.key).await.unwrap().unwrap();
    assert_eq!(&record.checkpoint[..], b"of the old");
    assert!(seat.is_current(&start.key, start.token) && seat.stop_at_hand().is_none());
}

pub async fn a_checkpoint_reaches_the_owner_after_a_death<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let mut first = trial.node(|config| config.lease = lease).await;
            first.add(&["a"]).await;
            let start = first.start().await;
            for at in 0..5_u8 {
                first.checkpoint(&start.key, start.token, [at, 0, 255].into()).await.unwrap();
            }
            let second = trial.node(|config| config.lease = lease).await.play();
            first.kill();
            trial.until("it runs elsewhere", async || second.runs(&start.key).is_some()).await;
            let next = second.runs(&start.key).unwrap();
            assert_eq!(&next.checkpoint[..], [4, 0, 255]);
            assert!(next.attempts >= 2 && next.token > start.token);
        })
        .await;
}
