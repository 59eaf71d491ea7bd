//! The rules of delivery.

use std::time::Duration;

use divider_core::{Error, Event, Key, StopReason, Token, Work};

use super::{Backend, Trial, trial::soon};

pub async fn a_start_carries_all_that_was_declared<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let payload: Vec<u8> = (0..=255).collect();
    let work = Work::new("a").unwrap().weight(7).priority(-3).payload(payload.clone());
    seat.add_work(vec![work]).await.unwrap();
    let start = seat.start().await;
    assert_eq!((start.key.as_str(), start.weight, start.priority, start.attempts), ("a", 7, -3, 1));
    assert_eq!((&start.payload[..], &start.checkpoint[..]), (&payload[..], &b""[..]));
    assert!(seat.is_current(&start.key, start.token));
    assert!(!seat.is_current(&start.key, Token(start.token.0 + 1)));
    assert!(!seat.is_current(&Key::new("b").unwrap(), start.token));
    let assigned = seat.assigned();
    assert_eq!(assigned.len(), 1);
    assert_eq!((assigned[0].token, assigned[0].started, assigned[0].stopping), (start.token, true, None));
}

pub async fn an_unread_start_is_held_but_not_current<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    trial.until("the key is here", async || seat.assigned().len() == 1).await;
    let held = seat.assigned()[0].clone();
    assert!(!held.started && held.stopping.is_none());
    assert!(!seat.is_current(&held.key, held.token));
    let start = seat.start().await;
    assert!(start.token == held.token && seat.is_current(&held.key, held.token));
}

pub async fn starts_and_stops_take_turns_with_rising_tokens<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    let mut last = Token(0);
    for attempt in 1..=5 {
        let start = seat.start().await;
        assert!(start.token > last && start.attempts == attempt, "{start:?}");
        seat.send_stop_processing(&start.key, start.token).await.unwrap();
        seat.stop_of(&start, StopReason::Rebalanced).await;
        // It is the program's until it says otherwise, and nothing follows before it has.
        assert!(seat.is_current(&start.key, start.token));
        assert_eq!(seat.assigned()[0].stopping, Some(StopReason::Rebalanced));
        assert_eq!(seat.start_at_hand(), None);
        seat.confirm(&start.key, start.token).await;
        assert!(!seat.is_current(&start.key, start.token));
        last = start.token;
    }
}

pub async fn both_kinds_come_in_order_in_one_stream<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let seat = trial.node(|_| {}).await;
    let mut events = seat.events();
    seat.add(&["a"]).await;
    for _ in 0..3 {
        let Some(Event::Start(start)) = soon("a start", events.next()).await else { panic!("a start comes first") };
        seat.send_stop_processing(&start.key, start.token).await.unwrap();
        let Some(Event::Stop(stop)) = soon("a stop", events.next()).await else { panic!("its stop follows") };
        assert_eq!((&stop.key, stop.token), (&start.key, start.token));
        seat.confirm_stop_processing(&stop.key, stop.token).await.unwrap();
    }
}

pub async fn a_queue_has_one_reader_and_a_second_is_refused<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b"]).await;
    seat.starts(2).await;
    // The seat reads starts; so nobody else does, and nobody reads both.
    assert_eq!(soon("the end of a second reader", seat.start_processing().next()).await, None);
    assert_eq!(soon("the end of a second reader", seat.events().next()).await, None);
    assert!(matches!(seat.take_events(), Err(Error::AlreadyRead)));
    let node = seat.node.clone();
    drop(seat);
    let mut events = node.take_events().expect("the reader before is gone");
    assert_eq!(soon("the end of a second reader", node.stop_processing().next()).await, None);
    node.remove_work(vec![Key::new("a").unwrap()]).await.unwrap();
    let event = soon("a stop", events.next()).await;
    assert!(matches!(&event, Some(Event::Stop(stop)) if stop.key.as_str() == "a"), "{event:?}");
}

pub async fn a_start_that_was_revoked_before_it_was_read_is_never_seen<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b"]).await;
    trial.until("the keys are here", async || seat.assigned().len() == 2).await;
    seat.remove_work(vec![Key::new("a").unwrap()]).await.unwrap();
    // Nobody has to read or confirm anything for the key to be gone.
    trial.until("the key is gone", async || seat.stats().await.unwrap().registered == 1).await;
    assert_eq!(seat.start().await.key.as_str(), "b");
    assert_eq!((seat.start_at_hand(), seat.stop_at_hand()), (None, None));
}

pub async fn a_slow_reader_has_at_most_one_event_per_key<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let key = Key::new("a").unwrap();
    // Five times over the key comes and goes while nobody reads.
    for round in 0..5 {
        seat.add(&["a"]).await;
        trial.until("the key is here", async || seat.assigned().len() == 1).await;
        if round < 4 {
            seat.remove_work(vec![key.clone()]).await.unwrap();
            trial.until("the key is gone", async || seat.record(&key).await.unwrap().is_none()).await;
        }
    }
    let start = seat.start().await;
    assert_eq!((&start.key, start.attempts), (&key, 1));
    assert_eq!((seat.start_at_hand(), seat.stop_at_hand()), (None, None));
}

pub async fn a_slow_reader_delays_nobody_and_keeps_its_lease<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let mut slow = trial.node(|config| config.lease = lease).await;
            let quick = trial.node(|config| config.lease = lease).await.play();
            quick.add((0..100).map(|i| format!("key {i}"))).await;
            trial.until("the other node runs its half", async || quick.count() == 50).await;
            let session = slow.session();
            tokio::time::sleep(lease * 2).await;
            assert_eq!(slow.inner.session(), Some(session), "nobody has to read for the lease to be kept");
            assert_eq!((quick.count(), slow.assigned().len()), (50, 50));
            let starts = slow.starts(50).await;
            assert!(starts.iter().all(|start| slow.is_current(&start.key, start.token) && start.attempts == 1));
        })
        .await;
}

pub async fn a_reader_that_gave_up_waiting_has_lost_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let seat = trial.node(|_| {}).await;
    let mut starts = seat.start_processing();
    for i in 0..20 {
        let _ = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
        let waited = tokio::time::timeout(Duration::from_micros(50), starts.next()).await;
        assert!(waited.is_err(), "nothing was added yet: {waited:?}");
        seat.add_work(vec![Work::new(format!("key {i}")).unwrap()]).await.unwrap();
        assert!(soon("the start", starts.next()).await.is_some());
    }
}
