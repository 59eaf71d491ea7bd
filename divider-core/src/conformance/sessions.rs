//! Sessions that are lost, in every way that one process can show.

use std::time::Instant;

use futures_util::FutureExt;
use tokio::runtime::{Builder, Runtime};

use super::{Backend, Call, Fault, Trial, seat::Seat, trial::soon};
use crate::{Error, NodeId, Op, Outcome, Refusal, SessionId, StopReason, Store, Token};

/// Ends a session behind its node's back, as a leader would that saw it silent.
async fn expire<B: Backend>(trial: &Trial<B>, session: SessionId) {
    let store = trial.store().await;
    store.open().await.unwrap();
    let expired = async {
        loop {
            let term = store.scan(None).await.unwrap().group.term;
            let beats = store.beats().await.unwrap();
            let beat = beats.iter().find(|(of, _)| *of == session).map(|(_, beat)| *beat).unwrap_or_default();
            let op = Op::Expire { term, session, beat, healthy_below: Token::ABOVE_ALL };
            match store.apply(&[op]).await.unwrap().outcomes[0] {
                Outcome::Done => return,
                Outcome::Refused(Refusal::StillBeating | Refusal::OldTerm) => {}
                other => panic!("could not expire the session: {other:?}"),
            }
        }
    };
    soon("the expiry", expired).await;
}

async fn with_keys<B: Backend>(trial: &Trial<B>, keys: &[&str]) -> (Seat, Vec<crate::Assignment>) {
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
    assert!(matches!(confirm(Token(last.token.0 + 1)).await, Err(Error::StaleToken { .. } | Error::NotStopping { .. })));
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
    let is_current = |start: &crate::Assignment| seat.node.is_current(&start.key, start.token);
    trial.until("the loss is known", async || !is_current(&running)).await;
    assert!(!is_current(&read) && !is_current(&unread));
    let mut told = vec![seat.stop().await, seat.stop().await];
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
    let tokens: Vec<Token> = seat.assigned().into_iter().map(|held| held.token).collect();
    expire(&trial, old).await;
    trial.until("the loss is known", async || seat.inner.session() != Some(old)).await;
    seat.stop_of(&read, StopReason::Lost).await;
    seat.confirm(&read.key, read.token).await;
    assert_eq!(seat.stop_at_hand(), None, "no stop for what was never started");
    assert!(seat.starts(2).await.iter().all(|start| !tokens.contains(&start.token)));
}

pub async fn a_node_that_cannot_renew_stops_by_its_own_deadline<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let (mut first, faults) = trial.faulty_node(|config| config.lease = lease).await;
    first.add(&["a", "b", "c"]).await;
    let starts = first.starts(3).await;
    let second = trial.node(|config| config.lease = lease).await.play();
    // The renewal on its way may still count; all that follow do not. No clock but this process's own is asked.
    let mute = faults.always(Fault::Refuse, |call| {
        *call == Call::Renew || call.applies(|op| matches!(op, Op::Join { .. }))
    });
    let began = Instant::now();
    let ended = async || {
        let over = began.elapsed() >= lease;
        let any = starts.iter().any(|start| first.node.is_current(&start.key, start.token));
        assert!(!(over && any), "it believes in its keys after its lease");
        !any
    };
    trial.until("it believes in none", ended).await;
    for _ in 0..3 {
        let stop = first.stop().await;
        assert_eq!(stop.reason, StopReason::Lost);
        first.confirm(&stop.key, stop.token).await;
    }
    trial.until("all run elsewhere", async || starts.iter().all(|start| second.runs(&start.key).is_some())).await;
    assert!(mute.hits() > 0);
    mute.lift();
    let first = first.play();
    trial.until("the first takes part again", async || first.inner.session().is_some()).await;
    second.add((0..20).map(|i| format!("more {i}"))).await;
    trial.until("both share all", async || first.count() + second.count() == 23 && first.count() > 0).await;
}

pub async fn a_node_cut_off_from_everything_is_replaced_and_comes_back<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let (first, faults) = trial.faulty_node(|config| config.lease = lease).await;
    let first = first.play();
    let second = trial.node(|config| config.lease = lease).await.play();
    first.add((0..10).map(|i| format!("key {i}"))).await;
    trial.until("all run", async || first.count() + second.count() == 10).await;
    let (mine, losses) = (first.count(), first.stopped(StopReason::Lost));
    faults.lose_hints(true);
    let cut = faults.always(Fault::Refuse, |_| true);
    trial.until("all run on the other", async || second.count() == 10).await;
    assert!(first.stopped(StopReason::Lost) >= losses + mine, "it was told of every loss before the other started");
    assert_eq!(first.count(), 0);
    faults.lose_hints(false);
    cut.lift();
    trial.until("they share again", async || first.count() == 5 && second.count() == 5).await;
}

pub async fn two_nodes_of_one_name_never_share_a_key<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let name = NodeId::new("the same").unwrap();
    let node = async || {
        let configure = |config: &mut crate::NodeConfig| (config.node, config.lease) = (name.clone(), lease);
        trial.node(configure).await.play()
    };
    let (first, second) = (node().await, node().await);
    first.add((0..20).map(|i| format!("key {i}"))).await;
    trial.until("both run their half", async || first.count() == 10 && second.count() == 10).await;
    // A third comes under the same name while the first is dead but not yet noticed.
    first.kill().await;
    let third = node().await;
    trial.until("the two that live run all", async || second.count() + third.count() == 20).await;
    trial.until("evenly", async || second.count() == 10 && third.count() == 10).await;
}

pub async fn a_loss_during_a_flush_ends_the_flush<B: Backend>(trial: Trial<B>) {
    let (mut seat, starts) = with_keys(&trial, &["a", "b"]).await;
    let session = seat.session();
    let node = seat.node.clone();
    let flush = tokio::spawn(async move { node.flush().await });
    let stop = seat.stop().await;
    expire(&trial, session).await;
    let flushed = soon("the flush", flush).await.unwrap().unwrap();
    assert!(flushed.unconfirmed.iter().all(|held| held.key == stop.key || held.started));
    assert!(starts.iter().all(|start| !seat.is_current(&start.key, start.token)));
    let other = seat.stop().await;
    assert_ne!(other.key, stop.key);
    seat.confirm(&stop.key, stop.token).await;
    seat.confirm(&other.key, other.token).await;
    // A node that drains does not join again.
    let mut second = trial.node(|_| {}).await;
    second.starts(2).await;
    assert_eq!(seat.inner.session(), None);
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
    assert_eq!(first.assigned(), []);
    second.set_affinity(1).await.unwrap();
    second.play().starts_soon(&trial, 1).await;
}

async fn blocked<B: Backend>(trial: Trial<B>, workers: usize, build: fn() -> Runtime) {
    trial.end_hold().await;
    let lease = trial.short();
    // It leads, and would notice a silence.
    let watcher = trial.node(|config| config.lease = lease).await.play();
    trial.until("somebody leads", async || watcher.inner.is_leader()).await;
    watcher.add((0..10).map(|i| format!("key {i}"))).await;
    trial.until("all run", async || watcher.count() == 10).await;
    let inside = trial.clone();
    let blocked = std::thread::spawn(move || {
        let runtime = build();
        runtime.block_on(async {
            let mut seat = inside.node(|config| config.lease = lease).await;
            let starts = seat.starts(5).await;
            let session = seat.session();
            let began = Instant::now();
            let sleep = move || std::thread::sleep((lease * 2).saturating_sub(began.elapsed()));
            for _ in 0..workers * 2 {
                tokio::spawn(async move { sleep() });
            }
            sleep();
            assert_eq!(seat.inner.session(), Some(session), "the lease was lost while the runtime was blocked");
            assert!(starts.iter().all(|start| seat.is_current(&start.key, start.token)));
            tokio::time::sleep(lease / 4).await;
            assert_eq!(seat.inner.session(), Some(session));
            assert_eq!((seat.stop_at_hand(), seat.assigned().len()), (None, 5));
        });
        runtime.shutdown_background();
    });
    let joined = tokio::task::spawn_blocking(|| blocked.join());
    if let Err(panic) = soon("the blocked runtime", joined).await.unwrap() {
        std::panic::resume_unwind(panic);
    }
}

pub async fn a_blocked_multi_thread_runtime_keeps_its_lease<B: Backend>(trial: Trial<B>) {
    blocked(trial, 2, || Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()).await;
}

pub async fn a_blocked_current_thread_runtime_keeps_its_lease<B: Backend>(trial: Trial<B>) {
    blocked(trial, 1, || Builder::new_current_thread().enable_all().build().unwrap()).await;
}

pub async fn a_leader_that_is_stuck_loses_its_leadership_and_keeps_its_keys<B: Backend>(trial: Trial<B>) {
    if !trial.backend.leads_by_lease() {
        return;
    }
    trial.end_hold().await;
    let lease = trial.short();
    let (mut first, faults) = trial.faulty_node(|config| config.lease = lease).await;
    trial.until("the first leads", async || first.inner.is_leader()).await;
    first.add(&["a", "b"]).await;
    let starts = first.starts(2).await;
    let second = trial.node(|config| (config.lease, config.affinity) = (lease, 1)).await.play();
    let session = first.session();
    let stuck = faults.always(Fault::Refuse, |call| {
        matches!(call, Call::Poll(_) | Call::Changes | Call::Scan) || call.applies(|op| matches!(op, Op::Assign { .. }))
    });
    trial.until("the second leads", async || second.inner.is_leader()).await;
    // It can do what leaders do, and what the first still tries is refused.
    second.add(["c".into(), "d".into(), "e".into(), "f".into()]).await;
    let all = async || first.assigned().len() + second.count() == 6;
    trial.until("all are assigned", all).await;
    assert_eq!(first.inner.session(), Some(session));
    assert!(starts.iter().all(|start| first.is_current(&start.key, start.token)) && first.stop_at_hand().is_none());
    stuck.lift();
    trial.until("the first has noticed", async || !first.inner.is_leader()).await;
}
