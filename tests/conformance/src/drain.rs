//! Flushing: no new work, a stop for every key, and a return when all are confirmed.

use std::time::Duration;

use divider_core::{Error, Key, StopReason, Work};
use futures_util::FutureExt;

use super::{Backend, Trial, trial::soon};

pub async fn a_flush_stops_every_key_and_returns_when_all_are_confirmed<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut first = trial.node(|_| {}).await;
    first.add(&["a", "b", "c"]).await;
    let starts = first.starts(3).await;
    let second = trial.node(|config| config.affinity = 1).await.play();
    let flush = tokio::spawn({
        let node = first.node.clone();
        async move { node.flush().await }
    });
    for left in (0..starts.len()).rev() {
        let stop = first.stop().await;
        assert_eq!(stop.reason, StopReason::Flushed);
        assert!(first.is_current(&stop.key, stop.token));
        assert!(!flush.is_finished(), "{left} keys are not confirmed");
        first.confirm(&stop.key, stop.token).await;
    }
    let flushed = soon("the flush", flush).await.unwrap().unwrap();
    assert_eq!((flushed.unconfirmed, first.assigned().len()), (Vec::new(), 0));
    trial.until("they run elsewhere", async || second.count() == 3).await;
    // Nothing comes any more, though it is still there.
    second.add((0..10).map(|i| format!("new {i}"))).await;
    trial.until("the other takes all", async || second.count() == 13).await;
    assert_eq!((first.start_at_hand(), first.assigned().len()), (None, 0));
    first.add(&["by hand"]).await;
    trial.until("a drained node may still declare work", async || second.count() == 14).await;
}

pub async fn work_that_takes_long_to_stop_stops_side_by_side<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let work = (0..200).map(|i| Work::new(format!("key {i}")).unwrap()).collect();
    seat.add_work(work).await.unwrap();
    seat.starts(200).await;
    let node = seat.node.clone();
    let flush = tokio::spawn(async move { node.flush().await });
    // Nothing is confirmed before all have been told.
    let mut stops = Vec::new();
    while stops.len() < 200 {
        stops.push(seat.stop().await);
    }
    assert!(stops.iter().all(|stop| stop.reason == StopReason::Flushed) && !flush.is_finished());
    for stop in stops {
        seat.confirm(&stop.key, stop.token).await;
    }
    assert!(soon("the flush", flush).await.unwrap().unwrap().unconfirmed.is_empty());
}

pub async fn a_flush_gives_back_unread_starts_silently<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut first = trial.node(|_| {}).await;
    first.add(&["a", "b"]).await;
    trial.until("the keys are here", async || first.assigned().len() == 2).await;
    let flushed = soon("the flush", first.flush()).await.unwrap();
    assert!(flushed.unconfirmed.is_empty());
    assert_eq!((first.start_at_hand(), first.stop_at_hand()), (None, None));
    let mut second = trial.node(|_| {}).await;
    assert!(second.starts(2).await.iter().all(|start| start.attempts == 1));
}

pub async fn a_flush_ends_at_its_time_limit_and_names_what_is_left<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    // Long enough for both to be told on a busy machine.
    let mut seat = trial.node(|config| config.flush_time_limit = Duration::from_secs(1)).await;
    seat.add(&["a", "b"]).await;
    let starts = seat.starts(2).await;
    let flushed = soon("the flush", seat.flush()).await.unwrap();
    assert_eq!(flushed.unconfirmed.len(), 2);
    assert!(flushed.unconfirmed.iter().all(|held| held.started && held.stopping == Some(StopReason::Flushed)));
    // They are still this node's, and confirming late is as good.
    let stop = seat.stop().await;
    assert!(seat.is_current(&stop.key, stop.token));
    seat.confirm(&stop.key, stop.token).await;
    let left = soon("the second flush", seat.flush()).await.unwrap().unconfirmed;
    assert_eq!(left.len(), 1);
    assert_ne!(left[0].key, stop.key);
    assert!(starts.iter().any(|start| start.key == left[0].key));
    seat.stop_and_confirm().await;
    assert!(soon("the third flush", seat.flush()).await.unwrap().unconfirmed.is_empty());
}

pub async fn confirming_and_completing_after_the_flush_are_told_apart<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|config| config.flush_time_limit = Duration::from_millis(100)).await;
    seat.add(&["a", "b"]).await;
    let starts = seat.starts(2).await;
    assert_eq!(seat.flush().await.unwrap().unconfirmed.len(), 2);
    seat.finish(&starts[0]).await;
    assert_eq!(seat.record(&starts[0].key).await.unwrap(), None);
    let stop = seat.stop().await;
    assert_eq!(stop.key, starts[1].key, "the completed key is not stopped any more");
    seat.confirm(&stop.key, stop.token).await;
    let again = seat.confirm_stop_processing(&stop.key, stop.token).await;
    assert!(matches!(again, Err(Error::UnknownKey { .. })), "{again:?}");
}

pub async fn flushing_twice_at_once_ends_both<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    seat.start().await;
    let node = seat.node.clone();
    let both = tokio::spawn(async move { tokio::join!(node.flush(), node.flush()) });
    seat.stop_and_confirm().await;
    let (one, two) = soon("both flushes", both).await.unwrap();
    assert!(one.unwrap().unconfirmed.is_empty() && two.unwrap().unconfirmed.is_empty());
    assert_eq!(seat.stop_at_hand(), None, "a key is stopped once");
}

pub async fn an_empty_node_is_flushed_at_once<B: Backend>(trial: Trial<B>) {
    let seat = trial.node(|_| {}).await;
    assert!(soon("the flush", seat.flush_and_cancel()).await.unwrap().unconfirmed.is_empty());
    assert!(matches!(seat.flush().await, Err(Error::Cancelled)));
}

pub async fn a_flush_whose_future_was_dropped_goes_on<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    seat.start().await;
    assert!(seat.node.flush().now_or_never().is_none());
    assert_eq!(seat.stop_and_confirm().await.reason, StopReason::Flushed);
    assert!(soon("the flush", seat.flush()).await.unwrap().unconfirmed.is_empty());
}

pub async fn flush_and_cancel_hands_over_at_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    // The lease is long: whatever waited for it would take too long.
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(trial.node(|_| {}).await.play());
    }
    nodes[0].add((0..60).map(|i| format!("key {i}"))).await;
    for left in [3, 2] {
        let total = async || nodes.iter().map(super::seat::Played::count).sum::<usize>();
        trial.until("all keys run", async || total().await == 60).await;
        // The leader goes first, which is the harder case.
        let leads = async || nodes.iter().any(|node| node.inner.is_leader());
        trial.until("somebody leads", leads).await;
        let leader = nodes.iter().position(|node| node.inner.is_leader()).unwrap_or(0);
        nodes.remove(leader).leave().await;
        assert_eq!(nodes.len(), left - 1);
    }
    trial.until("the last runs all", async || nodes[0].count() == 60).await;
    assert_eq!(nodes[0].stats().await.unwrap().sessions, 1);
}

pub async fn removing_during_a_flush_ends_the_key<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b"]).await;
    let starts = seat.starts(2).await;
    let node = seat.node.clone();
    let flush = tokio::spawn(async move { node.flush().await });
    let stop = seat.stop().await;
    seat.remove_work(vec![stop.key.clone()]).await.unwrap();
    seat.confirm(&stop.key, stop.token).await;
    seat.stop_and_confirm().await;
    assert!(soon("the flush", flush).await.unwrap().unwrap().unconfirmed.is_empty());
    let left: Vec<Key> = starts.into_iter().map(|start| start.key).filter(|key| *key != stop.key).collect();
    assert_eq!(seat.record(&stop.key).await.unwrap(), None);
    assert!(seat.record(&left[0]).await.unwrap().is_some());
    seat.add_work(vec![Work::from(stop.key)]).await.unwrap();
    assert_eq!(seat.stats().await.unwrap().pending, 2);
}
