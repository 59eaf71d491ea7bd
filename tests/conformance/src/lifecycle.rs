//! Starting, cancelling and dropping a node.

use std::time::Duration;

use divider_core::{Error, Key, Node, StopReason, Token, Work};

use super::{Backend, Call, Fault, Trial, trial::soon};

pub async fn nothing_works_before_the_start<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let seat = trial.seat(trial.store().await, |config| config.affinity = 77);
    let key = Key::new("a").unwrap();
    let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::NotStarted)), "{result:?}");
    refused(seat.add_work(vec![Work::new("a").unwrap()]).await);
    refused(seat.remove_work(vec![key.clone()]).await);
    refused(seat.confirm_stop_processing(&key, Token(1)).await);
    refused(seat.send_stop_processing(&key, Token(1)).await);
    refused(seat.give_up(&key, Token(1), Duration::from_secs(1)).await);
    refused(seat.complete(&key, Token(1)).await);
    refused(seat.checkpoint(&key, Token(1), (*b"x").into()).await);
    refused(seat.set_affinity(5).await);
    refused(seat.alter_affinity(5).await.map(drop));
    refused(seat.flush().await.map(drop));
    refused(seat.retry(&key).await);
    refused(seat.quarantined(1).await.map(drop));
    refused(seat.rebalance().await);
    refused(seat.node.record(&key).await.map(drop));
    refused(seat.node.stats().await.map(drop));
    assert_eq!((seat.affinity(), seat.assigned().len()), (77, 0));
    assert!(!seat.is_current(&key, Token(1)));
    assert_eq!(seat.inner.session(), None);
    seat.start_node().await;
    assert_eq!(seat.stats().await.unwrap().registered, 0);
}

pub async fn starting_twice_is_starting_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.seat(trial.store().await, |_| {});
    let (one, two) = tokio::join!(seat.node.start(), seat.node.start());
    one.and(two).unwrap();
    let session = seat.session();
    seat.start_node().await;
    assert_eq!(seat.session(), session);
    seat.add(&["a"]).await;
    let start = seat.start().await;
    assert!(seat.is_current(&start.key, start.token));
    assert_eq!(seat.stats().await.unwrap().sessions, 1);
}

pub async fn a_start_that_failed_can_be_repeated<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let store = super::FaultyStore::new(trial.store().await);
    let faults = store.faults();
    let mut seat = trial.seat(store, |_| {});
    faults.order(Fault::Refuse, 1, |call| *call == Call::Open);
    assert!(matches!(seat.node.start().await, Err(Error::Store(_))));
    let joins = |call: &Call<'_>| matches!(call, Call::Apply(_));
    faults.order(Fault::Refuse, 1, joins);
    assert!(matches!(seat.node.start().await, Err(Error::Store(_))));
    faults.order(Fault::LoseReply, 1, joins);
    assert!(matches!(seat.node.start().await, Err(Error::Store(_))));
    assert!(matches!(seat.node.stats().await, Err(Error::NotStarted)));
    seat.start_node().await;
    // The one whose answer was lost has not left a second session behind.
    assert_eq!(seat.stats().await.unwrap().sessions, 1);
    seat.add(&["a"]).await;
    seat.start().await;
}

pub async fn a_start_whose_future_was_dropped_can_be_repeated<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let store = super::FaultyStore::new(trial.store().await);
    let faults = store.faults();
    let mut seat = trial.seat(store, |_| {});
    let slow = faults.order(Fault::DelayReply(Duration::from_secs(3)), 1, |call| matches!(call, Call::Apply(_)));
    let dropped = tokio::time::timeout(Duration::from_millis(100), seat.node.start()).await;
    assert!(dropped.is_err() && slow.hits() <= 1);
    slow.lift();
    seat.start_node().await;
    assert_eq!(seat.stats().await.unwrap().sessions, 1);
    seat.add(&["a"]).await;
    seat.start().await;
}

pub async fn nothing_works_after_the_cancel<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b"]).await;
    let start = seat.start().await;
    let mut events = seat.events();
    // Also with a reader that waits, and with an unread start.
    let mut stops = seat.stop_processing();
    let waiting = tokio::spawn(async move { stops.next().await });
    soon("the cancel", seat.cancel()).await.unwrap();
    assert_eq!(soon("the end of the stops", waiting).await.unwrap(), None);
    assert_eq!(events.next().await, None);
    assert_eq!(seat.start_processing().next().await, None);
    assert!(!seat.is_current(&start.key, start.token));
    assert_eq!(seat.inner.session(), None, "a cancelled node has no session");
    assert!(!seat.inner.is_leader());
    let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    refused(seat.node.start().await);
    refused(seat.add_work(vec![Work::new("c").unwrap()]).await);
    refused(seat.remove_work(vec![start.key.clone()]).await);
    refused(seat.confirm_stop_processing(&start.key, start.token).await);
    refused(seat.complete(&start.key, start.token).await);
    refused(seat.checkpoint(&start.key, start.token, (*b"x").into()).await);
    refused(seat.send_stop_processing(&start.key, start.token).await);
    refused(seat.set_affinity(5).await);
    refused(seat.alter_affinity(5).await.map(drop));
    refused(seat.flush().await.map(drop));
    refused(seat.flush_and_cancel().await.map(drop));
    refused(seat.node.stats().await.map(drop));
    soon("the second cancel", seat.cancel()).await.unwrap();
}

pub async fn cancelling_before_the_start_is_final<B: Backend>(trial: Trial<B>) {
    let seat = trial.seat(trial.store().await, |_| {});
    seat.cancel().await.unwrap();
    assert!(matches!(seat.node.start().await, Err(Error::Cancelled)));
    assert_eq!(seat.events().next().await, None);
    let other = trial.node(|_| {}).await;
    assert_eq!(other.stats().await.unwrap().sessions, 1);
}

pub async fn cancelling_an_idle_node_ends_its_session_at_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    // The lease is long: only a farewell can be noticed in time, and only it frees the leadership.
    let first = trial.node(|_| {}).await;
    let mut second = trial.node(|_| {}).await;
    soon("the cancel", first.cancel()).await.unwrap();
    assert_eq!(second.stats().await.unwrap().sessions, 1);
    second.add(&["a"]).await;
    second.start().await;
}

pub async fn keys_of_a_cancelled_node_wait_for_its_lease<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let mut first = trial.node(|config| config.lease = lease).await;
            first.add(&["a"]).await;
            let start = first.start().await;
            let second = trial.node(|config| config.lease = lease).await.play();
            let began = std::time::Instant::now();
            soon("the cancel", first.cancel()).await.unwrap();
            assert!(!first.is_current(&start.key, start.token));
            trial.until("the key runs elsewhere", async || second.runs(&start.key).is_some()).await;
            // Its work may have been running on. The last renewal was sent at most a beat before the cancel.
            let waited = began.elapsed();
            assert!(waited >= lease / 2, "the key was freed after {waited:?}");
            assert!(second.runs(&start.key).unwrap().attempts >= 2);
        })
        .await;
}

pub async fn unread_starts_of_a_cancelled_node_are_free_at_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = Duration::from_secs(20);
    let first = trial.node(|config| config.lease = lease).await;
    first.add(&["a", "b"]).await;
    trial.until("the keys are here", async || first.assigned().len() == 2).await;
    let mut second = trial.node(|config| config.lease = lease).await;
    let began = std::time::Instant::now();
    soon("the cancel", first.cancel()).await.unwrap();
    // Nobody acts on them, so nothing has to be waited for.
    second.starts(2).await;
    assert!(began.elapsed() < lease * 3 / 4, "the keys were freed after {:?}", began.elapsed());
}

pub async fn keys_of_a_dropped_node_move_when_its_lease_runs_out<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let first = trial.node(|config| config.lease = lease).await.play();
    let second = trial.node(|config| config.lease = lease).await.play();
    first.add((0..20).map(|i| format!("key {i}"))).await;
    trial.until("all keys run", async || first.count() + second.count() == 20).await;
    first.kill().await;
    trial.until("all keys run on the other node", async || second.count() == 20).await;
    trial.until("the session is gone", async || second.stats().await.unwrap().sessions == 1).await;
}

pub async fn a_fresh_group_gets_going_by_itself<B: Backend>(trial: Trial<B>) {
    // A store may begin by holding grants back for a lease.
    let lease = trial.short();
    let mut seat = trial.node(|config| config.lease = lease).await;
    seat.add(&["a"]).await;
    seat.start().await;
}

pub async fn keys_outlive_every_node<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let first = trial.node(|_| {}).await.play();
    first.add((0..10).map(|i| format!("key {i}"))).await;
    first.starts_soon(&trial, 10).await;
    first.leave().await;
    let mut second = trial.node(|_| {}).await;
    assert!(second.starts(10).await.iter().all(|start| start.attempts == 2));
    assert_eq!(second.stats().await.unwrap().sessions, 1);
}

pub async fn a_stream_keeps_its_node_going_and_a_dropped_one_loses_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    trial.until("the key is here", async || seat.assigned().len() == 1).await;
    let (mut starts, node) = (seat.start_processing(), seat.inner.clone());
    drop(seat.start_processing());
    drop(seat);
    drop(node);
    let start = soon("the start", starts.next()).await.expect("the node goes on");
    assert_eq!(start.key.as_str(), "a");
}

pub async fn a_configuration_that_contradicts_itself_is_refused<B: Backend>(trial: Trial<B>) {
    type Change = fn(&mut divider_core::NodeConfig);
    let bad: [(&str, Change); 12] = [
        ("affinity", |c| c.affinity = u32::MAX),
        ("capacity", |c| c.capacity = Some(0)),
        ("lease", |c| c.lease = Duration::from_millis(99)),
        ("lease", |c| c.lease = Duration::from_secs(3601)),
        ("beat", |c| c.beat = Some(c.lease / 3 + Duration::from_millis(1))),
        ("beat", |c| c.beat = Some(Duration::ZERO)),
        ("resync", |c| c.resync = Duration::ZERO),
        ("max_in_flight", |c| c.max_in_flight = divider_core::MaxInFlight::Percent(0)),
        ("balance", |c| c.balance = divider_core::Balance::Continuous { tolerance: f64::NAN }),
        ("flush_time_limit", |c| c.flush_time_limit = Duration::ZERO),
        ("stop_timeout", |c| c.stop_timeout = Some(c.lease / 2)),
        ("quarantine", |c| c.quarantine.insert(divider_core::Quarantine::default()).deaths = 0),
    ];
    for (field, change) in bad {
        let error = trial.builder(trial.store().await).configure(change).build().unwrap_err();
        assert_eq!(error.field, field);
    }
    assert!(Node::builder(trial.store().await).build().is_ok(), "the defaults are right");
    assert_ne!(StopReason::Lost.to_string(), "");
}
