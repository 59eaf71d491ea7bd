//! Leases: kept while a node is merely slow, lost by its own clock when it is cut off.

use std::time::Instant;

use divider_core::{Beat, NodeId, Op, StopReason, Store};
use tokio::runtime::{Builder, Runtime};

use super::{Backend, Call, Clerk, Fault, FaultyStore, Trial, trial::soon};

pub async fn a_node_that_cannot_renew_stops_by_its_own_deadline<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let (mut first, faults) = trial.faulty_node(|config| config.lease = lease).await;
            first.add(&["a", "b", "c"]).await;
            let starts = first.starts(3).await;
            let second = trial.node(|config| config.lease = lease).await.play();
            // The renewal on its way may still count; all that follow do not. No clock but this process's own is asked.
            let mute = faults
                .always(Fault::Refuse, |call| *call == Call::Renew || call.applies(|op| matches!(op, Op::Join { .. })));
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
            trial
                .until("all run elsewhere", async || starts.iter().all(|start| second.runs(&start.key).is_some()))
                .await;
            assert!(mute.hits() > 0);
            mute.lift();
            let first = first.play();
            trial.until("the first takes part again", async || first.inner.session().is_some()).await;
            second.add((0..20).map(|i| format!("more {i}"))).await;
            trial.until("both share all", async || first.count() + second.count() == 23 && first.count() > 0).await;
        })
        .await;
}

pub async fn the_first_lease_counts_from_before_the_join_was_sent<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            let lease = trial.short();
            let store = FaultyStore::new(trial.store().await);
            let faults = store.faults();
            faults.always(Fault::Refuse, |call| *call == Call::Renew);
            let late = Fault::DelayReply(lease.mul_f64(0.6));
            let late = faults.always(late, |call| call.applies(|op| matches!(op, Op::Join { .. })));
            let seat = trial.seat(store, |config| config.lease = lease);
            seat.start_node().await;
            late.lift();
            // Its join was sent 0.6 leases ago, or more.
            let first = seat.inner.session();
            tokio::time::sleep(lease.mul_f64(0.65)).await;
            assert!(first.is_none() || seat.inner.session() != first, "it believes in a session of 1.25 leases ago");
        })
        .await;
}

pub async fn one_renewal_that_hangs_does_not_cost_the_lease<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short() * 3;
            let watcher = trial.node(|config| (config.lease, config.affinity) = (lease, 0)).await;
            let (mut seat, faults) = trial.faulty_node(|config| config.lease = lease).await;
            seat.add(&["a"]).await;
            let start = seat.start().await;
            let session = seat.session();
            let hangs = faults.order(Fault::DelayCall(lease * 2), 1, |call| *call == Call::Renew);
            trial.until("a renewal hangs", async || hangs.hits() == 1).await;
            tokio::time::sleep(lease).await;
            assert_eq!(seat.inner.session(), Some(session));
            assert!(seat.is_current(&start.key, start.token) && seat.stop_at_hand().is_none());
            assert_eq!(watcher.stats().await.unwrap().sessions, 2);
        })
        .await;
}

pub async fn a_node_cut_off_from_everything_is_replaced_and_comes_back<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let (first, faults) = trial.faulty_node(|config| config.lease = lease).await;
    let first = first.play();
    let second = trial.node(|config| config.lease = lease).await.play();
    first.add((0..10).map(|i| format!("key {i}"))).await;
    trial.until("all run", async || first.count() + second.count() == 10).await;
    faults.lose_hints(true);
    let cut = faults.always(Fault::Refuse, |_| true);
    trial.until("all run on the other", async || second.count() == 10).await;
    trial.until("it has been told of every loss", async || first.count() == 0).await;
    faults.lose_hints(false);
    cut.lift();
    trial.until("they share again", async || first.count() == 5 && second.count() == 5).await;
}

pub async fn two_nodes_of_one_name_never_share_a_key<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let name = NodeId::new("the same").unwrap();
    let node = async || {
        let configure = |config: &mut divider_core::NodeConfig| (config.node, config.lease) = (name.clone(), lease);
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

async fn blocked<B: Backend>(trial: Trial<B>, workers: usize, build: fn() -> Runtime) {
    trial
        .unhurried(async |trial| {
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
        })
        .await;
}

pub async fn a_blocked_multi_thread_runtime_keeps_its_lease<B: Backend>(trial: Trial<B>) {
    blocked(trial, 2, || Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()).await;
}

pub async fn a_blocked_current_thread_runtime_keeps_its_lease<B: Backend>(trial: Trial<B>) {
    blocked(trial, 1, || Builder::new_current_thread().enable_all().build().unwrap()).await;
}

pub async fn renewals_need_no_runtime_but_the_one_they_are_called_on<B: Backend>(trial: Trial<B>) {
    let renewed = tokio::task::spawn_blocking(move || {
        let current = || Builder::new_current_thread().enable_all().build().unwrap();
        let main = current();
        let clerk = main.block_on(Clerk::leading(&trial));
        // From here on nobody drives the main runtime, as when a handler blocks it.
        let renew = |times: usize| {
            let own = current();
            for _ in 0..times {
                own.block_on(soon("a renewal", clerk.store.renew(clerk.session))).unwrap();
            }
            // Still there, but at rest: the next one must not wait for it.
            own
        };
        let renew = |times| std::thread::scope(|scope| scope.spawn(|| renew(times)).join().unwrap());
        let resting = [renew(10), renew(10)];
        drop(resting);
        renew(10);
        assert!(main.block_on(clerk.beat()) > Beat(0));
    });
    renewed.await.unwrap();
}

pub async fn a_leader_that_is_stuck_loses_its_leadership_and_keeps_its_keys<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
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
                matches!(call, Call::Poll(_) | Call::Changes | Call::Scan)
                    || call.applies(|op| matches!(op, Op::Assign { .. }))
            });
            trial.until("the second leads", async || second.inner.is_leader()).await;
            // It can do what leaders do, and what the first still tries is refused.
            second.add(["c".into(), "d".into(), "e".into(), "f".into()]).await;
            let all = async || first.assigned().len() + second.count() == 6;
            trial.until("all are assigned", all).await;
            assert_eq!(first.inner.session(), Some(session));
            assert!(
                starts.iter().all(|start| first.is_current(&start.key, start.token)) && first.stop_at_hand().is_none()
            );
            stuck.lift();
            trial.until("the first has noticed", async || !first.inner.is_leader()).await;
        })
        .await;
}
