//! Answers and hints that are lost: what was asked for happens once, and is reported as it was.

use std::time::{Duration, Instant};

use divider_core::{Error, Key, Op, StopReason, Work};

use super::{Backend, Call, Fault, Trial, trial::soon};

/// How long the repair of a lost hint may take here: far more than the resync interval, far less than the lease.
const REPAIR: Duration = Duration::from_secs(6);

pub async fn a_confirmation_whose_answer_is_lost_frees_the_key_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (mut seat, faults) = trial.faulty_node(|_| {}).await;
    seat.add(&["a"]).await;
    for fault in [Fault::LoseReply, Fault::Refuse] {
        let start = seat.start().await;
        let ordered = faults.order(fault, 2, |call| call.applies(|op| matches!(op, Op::Confirm { .. })));
        seat.send_stop_processing(&start.key, start.token).await.unwrap();
        seat.stop_and_confirm().await;
        assert_eq!(ordered.hits(), 2);
    }
    let start = seat.start().await;
    assert_eq!(start.attempts, 3);
    assert_eq!((seat.start_at_hand(), seat.stop_at_hand()), (None, None));
    assert!(seat.is_current(&start.key, start.token));
}

pub async fn a_completion_whose_answer_is_lost_is_a_completion<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (mut seat, faults) = trial.faulty_node(|_| {}).await;
    for fault in [Fault::LoseReply, Fault::Refuse] {
        seat.add(&["a"]).await;
        let start = seat.start().await;
        assert_eq!(start.attempts, 1);
        let ordered = faults.order(fault, 2, |call| call.applies(|op| matches!(op, Op::Complete { .. })));
        seat.finish(&start).await;
        assert_eq!(ordered.hits(), 2);
        assert_eq!(seat.record(&start.key).await.unwrap(), None);
        assert_eq!((seat.assigned().len(), seat.stop_at_hand()), (0, None));
    }
}

pub async fn a_key_that_ended_on_its_way_is_told_of_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (mut seat, faults) = trial.faulty_node(|config| config.resync = Duration::from_millis(50)).await;
    seat.add(&["a"]).await;
    let start = seat.start().await;
    // The completion takes effect, its answer takes long, and meanwhile the truth is read and the key declared again.
    let slow = Fault::DelayReply(Duration::from_millis(300));
    faults.order(slow, 1, |call| call.applies(|op| matches!(op, Op::Complete { .. })));
    let other = trial.node(|config| config.affinity = 0).await;
    let again = async {
        let gone = async || other.record(&start.key).await.unwrap().is_none();
        trial.until("the completion has taken effect", gone).await;
        other.add(&["a"]).await;
    };
    tokio::join!(seat.finish(&start), again);
    let next = seat.start().await;
    assert!(next.attempts == 1 && next.token > start.token);
    assert_eq!(seat.stop_at_hand(), None);
}

pub async fn a_completion_answered_too_late_leaves_no_second_owner<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (mut seat, faults) = trial.faulty_node(|_| {}).await;
    seat.add(&["a"]).await;
    let start = seat.start().await;
    // The completion takes effect, its answer is lost; and before it is sent again, the key is declared anew and another
    // node has it.
    let completes = |call: &Call<'_>| call.applies(|op| matches!(op, Op::Complete { .. }));
    faults.order(Fault::LoseReply, 1, completes);
    faults.order(Fault::DelayCall(Duration::from_millis(500)), 1, completes);
    let mut other = trial.node(|_| {}).await;
    seat.set_affinity(0).await.unwrap();
    let elsewhere = async {
        let gone = async || other.record(&start.key).await.unwrap().is_none();
        trial.until("the completion has taken effect", gone).await;
        other.add(&["a"]).await;
        other.start().await
    };
    let (completed, next) = tokio::join!(seat.node.complete(&start.key, start.token), elsewhere);
    assert!(!seat.is_current(&start.key, start.token), "it knows now that it is not the owner: {completed:?}");
    assert!(other.is_current(&next.key, next.token));
    match completed {
        // Whatever it says, it must not say that nothing has happened.
        Ok(()) => {}
        Err(Error::Lost { .. }) => {
            seat.stop_of(&start, StopReason::Lost).await;
            seat.confirm(&start.key, start.token).await;
        }
        other => panic!("a completion that may have taken effect ends with {other:?}"),
    }
    assert_eq!((seat.assigned().len(), seat.stop_at_hand()), (0, None));
}

pub async fn work_whose_declaration_was_not_answered_starts_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (seat, faults) = trial.faulty_node(|_| {}).await;
    let other = trial.node(|_| {}).await.play();
    let ordered = faults.order(Fault::LoseReply, 3, |call| call.applies(|op| matches!(op, Op::Add(_))));
    let seat = seat.play();
    seat.add((0..30).map(|i| format!("key {i}"))).await;
    assert_eq!(ordered.hits(), 3);
    trial.until("all run", async || seat.count() + other.count() == 30).await;
    assert_eq!(seat.started() + other.started(), 30);
    let ordered = faults.order(Fault::LoseReply, 3, |call| call.applies(|op| matches!(op, Op::Remove { .. })));
    seat.remove_work((0..30).map(|i| Key::new(format!("key {i}")).unwrap()).collect()).await.unwrap();
    assert_eq!(ordered.hits(), 3);
    trial.until("all have ended", async || seat.stats().await.unwrap().registered == 0).await;
    assert_eq!((seat.count(), other.count()), (0, 0));
}

pub async fn a_call_gives_up_at_its_time_limit_and_can_be_repeated<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (mut seat, faults) = trial.faulty_node(|config| config.call_time_limit = Duration::from_millis(200)).await;
    let cut = faults.always(Fault::Refuse, |call| call.applies(|op| matches!(op, Op::Add(_))));
    let failed = soon("the failure", seat.add_work(vec![Work::new("a").unwrap()])).await;
    assert!(matches!(failed, Err(Error::Store(_))), "{failed:?}");
    assert!(cut.hits() > 1, "it was tried more than once");
    cut.lift();
    seat.add(&["a"]).await;
    seat.start().await;
}

pub async fn an_alteration_whose_answer_is_lost_is_done_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (seat, faults) = trial.faulty_node(|_| {}).await;
    let changes = |call: &Call<'_>| call.applies(|op| matches!(op, Op::AlterAffinity { .. } | Op::SetAffinity { .. }));
    for (fault, expected) in [(Fault::LoseReply, 1007), (Fault::Refuse, 1014), (Fault::LoseReply, 1021)] {
        let ordered = faults.order(fault, 2, changes);
        assert_eq!(seat.alter_affinity(7).await.unwrap(), expected);
        assert_eq!((ordered.hits(), seat.affinity()), (2, expected));
    }
    faults.order(Fault::LoseReply, 2, changes);
    seat.set_affinity(5).await.unwrap();
    assert_eq!(seat.alter_affinity(0).await.unwrap(), 5);
    // Also where it is refused.
    faults.order(Fault::LoseReply, 1, changes);
    assert!(matches!(seat.alter_affinity(-6).await, Err(Error::Invalid(_))));
    assert_eq!(seat.alter_affinity(1).await.unwrap(), 6);
}

pub async fn giving_up_and_checkpointing_survive_lost_answers<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (mut seat, faults) = trial.faulty_node(|_| {}).await;
    seat.add(&["a"]).await;
    let start = seat.start().await;
    faults.order(Fault::LoseReply, 2, |call| call.applies(|op| matches!(op, Op::Checkpoint { .. })));
    seat.checkpoint(&start.key, start.token, (*b"kept").into()).await.unwrap();
    faults.order(Fault::LoseReply, 2, |call| call.applies(|op| matches!(op, Op::GiveUp { .. })));
    seat.send_stop_processing(&start.key, start.token).await.unwrap();
    seat.stop_of(&start, StopReason::Rebalanced).await;
    assert_eq!(seat.stop_at_hand(), None);
    seat.confirm(&start.key, start.token).await;
    assert_eq!(&seat.start().await.checkpoint[..], b"kept");
}

pub async fn grants_whose_answer_is_lost_are_granted_once<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (first, faults) = trial.faulty_node(|_| {}).await;
    let first = first.play();
    trial.until("the first leads", async || first.inner.is_leader()).await;
    let second = trial.node(|_| {}).await.play();
    for (fault, round) in [(Fault::LoseReply, 1), (Fault::Refuse, 2)] {
        let ordered = faults.order(fault, 2, |call| call.applies(|op| matches!(op, Op::Assign { .. })));
        first.add((0..20).map(|i| format!("key {round} {i}"))).await;
        let all = 20 * round;
        trial.until("all run", async || first.count() + second.count() == all).await;
        assert_eq!(first.started() + second.started(), all);
        assert!(ordered.hits() > 0);
        ordered.lift();
        assert_eq!(first.count(), second.count());
    }
}

pub async fn a_flush_survives_lost_answers<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let (seat, faults) = trial.faulty_node(|_| {}).await;
    let seat = seat.play();
    seat.add((0..10).map(|i| format!("key {i}"))).await;
    seat.starts_soon(&trial, 10).await;
    let other = trial.node(|_| {}).await.play();
    let ends = |op: &Op| matches!(op, Op::Drain { .. } | Op::Confirm { .. });
    let ordered = faults.order(Fault::LoseReply, 4, move |call| call.applies(ends));
    seat.leave().await;
    assert!(ordered.hits() > 0);
    other.starts_soon(&trial, 10).await;
}

/// A node that hears nothing, and another one that leads and hears all.
async fn deaf<B: Backend>(trial: &Trial<B>) -> (super::Seat, super::seat::Played) {
    trial.end_hold().await;
    let resync = Duration::from_millis(200);
    let leader = trial.node(|config| (config.resync, config.affinity) = (resync, 0)).await.play();
    trial.until("somebody leads", async || leader.inner.is_leader()).await;
    let (seat, faults) = trial.faulty_node(|config| config.resync = resync).await;
    faults.lose_hints(true);
    (seat, leader)
}

pub async fn a_lost_grant_or_stop_is_found_within_the_resync_interval<B: Backend>(trial: Trial<B>) {
    let (mut seat, leader) = deaf(&trial).await;
    for round in 0..3 {
        let began = Instant::now();
        leader.add([format!("key {round}")]).await;
        let start = seat.start().await;
        assert!(began.elapsed() < REPAIR, "a lost grant was found after {:?}", began.elapsed());
        let began = Instant::now();
        leader.remove_work(vec![start.key.clone()]).await.unwrap();
        seat.stop_of(&start, StopReason::Removed).await;
        assert!(began.elapsed() < REPAIR, "a lost stop was found after {:?}", began.elapsed());
        seat.confirm(&start.key, start.token).await;
    }
}

pub async fn lost_hints_are_found_while_more_are_being_lost<B: Backend>(trial: Trial<B>) {
    let (mut seat, leader) = deaf(&trial).await;
    let began = Instant::now();
    let more = async {
        for i in 0.. {
            leader.add([format!("key {i}")]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = seat.start() => {}
        () = more => {}
    }
    assert!(began.elapsed() < REPAIR, "the first grant was found after {:?}", began.elapsed());
}

pub async fn a_leader_that_hears_nothing_still_leads<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let resync = Duration::from_millis(200);
    let (leader, faults) = trial.faulty_node(|config| config.resync = resync).await;
    let leader = leader.play();
    trial.until("somebody leads", async || leader.inner.is_leader()).await;
    faults.lose_hints(true);
    let mut seat = trial.node(|config| config.affinity = 0).await;
    leader.set_affinity(0).await.unwrap();
    seat.set_affinity(1).await.unwrap();
    let began = Instant::now();
    seat.add(&["a"]).await;
    let start = seat.start().await;
    assert!(began.elapsed() < REPAIR, "the leader found the key after {:?}", began.elapsed());
    seat.send_stop_processing(&start.key, start.token).await.unwrap();
    seat.stop_and_confirm().await;
    seat.start().await;
    assert!(began.elapsed() < REPAIR * 2);
}
