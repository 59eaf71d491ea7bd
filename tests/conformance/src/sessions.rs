//! Sessions that are lost, in every way that one process can show.

use std::time::Duration;

use divider_core::{Error, Op, Outcome, Refusal, SessionId, StopReason, Store, Token};
use futures_util::FutureExt;

use super::{Backend, Call, Fault, Trial, seat::Seat, trial::soon};

/// Ends a session behind its node's back, as a leader would that saw it silent.
async fn expire<B: Backend>(trial: &Trial<B>, session: SessionId) {
    let store = trial.store().await;
    store.open().await.unwrap();
    let expired = async {
        loop {
            let term = store.scan(None).await.unwrap().group.term;
            let beats = store.beats().await.unwrap();
            let beat = beats.iter().find(|(of, _)| *of == session).map(|(_, beat)| *beat).unwrap_or_default();
            let op = Op::Expire { term, session, beat, verdict: divider_core::Verdict::NONE };
            match store.apply(&[op]).await.unwrap().outcomes[0] {
                Outcome::Done => return,
                Outcome::Refused(Refusal::StillBeating | Refusal::OldTerm) => {}
                other => panic!("could not expire the session: {other:?}"),
            }
        }
    };
    soon("the expiry", expired).await;
}

async fn with_keys<B: Backend>(trial: &Trial<B>, keys: &[&str]) -> (Seat, Vec<divider_core::Assignment>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(keys).await;
    let starts = seat.starts(keys.len()).await;
    (seat, starts)
}

pub async fn every_loss_is_told_before_any_new_start<B: Backend>(trial: Trial<B>) {
    let (mut seat, starts) = with_keys(&trial, &["a", "b", "c", "d", "e"]).await;
    let old = seat.session();
    expire(&trial, old).await;
    let mut lost = Vec::new();
    for _ in &starts {
        assert_eq!(seat.start_at_hand(), None, "not before every loss is told");
        let stop = seat.stop().await;
        assert_eq!(stop.reason, StopReason::Lost);
        assert!(starts.iter().all(|start| !seat.is_current(&start.key, start.token)), "all are lost at once");
        lost.push(stop);
    }
    assert_eq!(seat.stop_at_hand(), None);
    // It joins by itself; but what has not been confirmed is not started again here.
    let last = lost.pop().unwrap();
    for stop in &lost {
        seat.confirm(&stop.key, stop.token).await;
    }
    let again = seat.starts(4).await;
    assert_ne!(seat.session(), old);
    assert!(again.iter().all(|start| start.attempts == 2 && start.key != last.key));
    trial.until("the last waits here", async || seat.assigned().len() == 5).await;
    assert_eq!(seat.start_at_hand(), None);
    let node = seat.node.clone();
    let confirm = async |token| node.confirm_stop_processing(&last.key, token).await;
    assert!(matches!(
        confirm(Token(last.token.0 + 1)).await,
        Err(Error::StaleToken { .. } | Error::NotStopping { .. })
    ));
    seat.confirm(&last.key, last.token).await;
    let start = seat.start().await;
    assert!(start.key == last.key && start.token > last.token);
    assert!(confirm(last.token).await.is_err(), "it was confirmed before");
    assert!(seat.is_current(&start.key, start.token));
}

pub async fn a_stop_under_way_is_not_told_twice<B: Backend>(trial: Trial<B>) {
    let (mut seat, starts) = with_keys(&trial, &["read", "unread", "running"]).await;
    let of = |name: &str| starts.iter().find(|start| start.key.as_str() == name).unwrap().clone();
    let (read, unread, running) = (of("read"), of("unread"), of("running"));
    seat.send_stop_processing(&read.key, read.token).await.unwrap();
    seat.stop_of(&read, StopReason::Rebalanced).await;
    seat.send_stop_processing(&unread.key, unread.token).await.unwrap();
    expire(&trial, seat.session()).await;
    let is_current = |start: &divider_core::Assignment| seat.node.is_current(&start.key, start.token);
    trial.until("the loss is known", async || !is_current(&running)).await;
    assert!(!is_current(&read) && !is_current(&unread));
    let mut told = [seat.stop().await, seat.stop().await];
    told.sort_by_key(|stop| stop.token);
    assert!(told.iter().all(|stop| stop.reason == StopReason::Lost));
    assert_eq!(seat.stop_at_hand(), None);
    for start in [&read, &unread, &running] {
        seat.confirm(&start.key, start.token).await;
    }
    seat.starts(3).await;
}

pub async fn writing_for_a_lost_key_says_that_it_is_lost<B: Backend>(trial: Trial<B>) {
    let (mut seat, starts) = with_keys(&trial, &["a"]).await;
    let start = &starts[0];
    expire(&trial, seat.session()).await;
    trial.until("the loss is known", async || !seat.node.is_current(&start.key, start.token)).await;
    let lost = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Lost { .. })), "{result:?}");
    lost(seat.complete(&start.key, start.token).await);
    lost(seat.checkpoint(&start.key, start.token, (*b"late").into()).await);
    lost(seat.send_stop_processing(&start.key, start.token).await);
    let early = seat.confirm_stop_processing(&start.key, start.token).await;
    assert!(matches!(early, Err(Error::NotStopping { .. })), "the stop has not been read: {early:?}");
    seat.stop_of(start, StopReason::Lost).await;
    lost(seat.complete(&start.key, start.token).await);
    seat.confirm(&start.key, start.token).await;
    let again = seat.start().await;
    assert_eq!(again.checkpoint.len(), 0);
    let stale = seat.complete(&start.key, start.token).await;
    assert!(matches!(stale, Err(Error::StaleToken { .. })), "{stale:?}");
}

pub async fn an_unread_start_of_a_lost_session_is_never_seen<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b"]).await;
    trial.until("the keys are here", async || seat.assigned().len() == 2).await;
    let read = seat.start().await;
    let old = seat.session();
    let tokens: Vec<Token> = seat.assigned().iter().map(|held| held.token).collect();
    expire(&trial, old).await;
    trial.until("the loss is known", async || seat.inner.session() != Some(old)).await;
    seat.stop_of(&read, StopReason::Lost).await;
    seat.confirm(&read.key, read.token).await;
    assert_eq!(seat.stop_at_hand(), None, "no stop for what was never started");
    assert!(seat.starts(2).await.iter().all(|start| !tokens.contains(&start.token)));
}

pub async fn a_flush_waits_until_losses_are_confirmed_too<B: Backend>(trial: Trial<B>) {
    let (mut seat, starts) = with_keys(&trial, &["a", "b"]).await;
    let session = seat.session();
    let node = seat.node.clone();
    let flush = tokio::spawn(async move { node.flush().await });
    let stop = seat.stop().await;
    expire(&trial, session).await;
    trial
        .until("the loss is known", async || starts.iter().all(|start| !seat.is_current(&start.key, start.token)))
        .await;
    let other = seat.stop().await;
    assert_ne!(other.key, stop.key);
    seat.confirm(&stop.key, stop.token).await;
    // The work of the last one may still be running here.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!flush.is_finished());
    seat.confirm(&other.key, other.token).await;
    let flushed = soon("the flush", flush).await.unwrap().unwrap();
    assert_eq!(flushed.unconfirmed, []);
    // A node that drains does not join again.
    let mut second = trial.node(|_| {}).await;
    second.starts(2).await;
    assert_eq!(seat.inner.session(), None);
}

pub async fn a_flush_names_losses_that_were_not_confirmed<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|config| config.flush_time_limit = Duration::from_millis(300)).await;
    seat.add(&["a"]).await;
    let start = seat.start().await;
    expire(&trial, seat.session()).await;
    trial.until("the loss is known", async || !seat.is_current(&start.key, start.token)).await;
    let left = soon("the flush", seat.flush()).await.unwrap().unconfirmed;
    assert_eq!(left.len(), 1);
    assert_eq!((&left[0].key, left[0].token, left[0].stopping), (&start.key, start.token, Some(StopReason::Lost)));
    seat.stop_of(&start, StopReason::Lost).await;
    seat.confirm(&start.key, start.token).await;
    assert_eq!(soon("the flush", seat.flush()).await.unwrap().unconfirmed, []);
}

pub async fn a_node_flushed_while_it_had_no_session_is_given_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (first, faults) = trial.faulty_node(|_| {}).await;
    let joins = |call: &Call<'_>| call.applies(|op| matches!(op, Op::Join { .. }));
    // The join is on its way, and its answer comes after the flush.
    let cut = faults.always(Fault::Refuse, joins);
    expire(&trial, first.session()).await;
    trial.until("it tries to join", async || cut.hits() > 0).await;
    let late = first.node.flush().now_or_never();
    assert!(late.is_none_or(|flushed| flushed.is_ok_and(|flushed| flushed.unconfirmed.is_empty())));
    cut.lift();
    let declined = faults.always(Fault::Count, |call| call.applies(|op| matches!(op, Op::Confirm { .. })));
    let second = trial.node(|config| config.affinity = 0).await;
    second.add(&["a"]).await;
    // Whatever it does now, it does not take the key and give it back for ever.
    tokio::time::sleep(trial.short()).await;
    assert!(declined.hits() < 5, "given and declined {} times", declined.hits());
    assert!(first.assigned().is_empty());
    second.set_affinity(1).await.unwrap();
    second.play().starts_soon(&trial, 1).await;
}
