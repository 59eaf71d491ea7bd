//! Nodes that leave with a word.

use std::time::Duration;

use divider_tests::{history::quantile, process::now};

use super::{Bed, figure, pause};
use crate::backend::{Server, TestBackend};

fn drain<B: TestBackend>(of_leader: bool) {
    let mut bed = Bed::<B>::new(&["--tick-ms", "100"]);
    let ids = bed.nodes(5, &[]);
    bed.add(ids[0], 2500, Duration::from_secs(20));
    // Nodes that drain have been running for a while.
    pause(1000);
    let leader = bed.fleet.leader().expect("somebody leads");
    let leaver = if of_leader { leader } else { *ids.iter().find(|id| **id != leader).expect("there are five") };
    let asked = bed.fleet.terminate(leaver);
    bed.fleet.wait_all_run(2500, Duration::from_secs(10));

    let said = bed.fleet.said();
    let mut taken: Vec<_> = said.history.takeovers(leaver, asked).into_iter().filter_map(|(_, time)| time).collect();
    assert_eq!(taken.len(), 500);
    let stops = said.history.keys().flat_map(|(_, claims)| claims.values()).filter(|claim| claim.process == leaver);
    let mut stops: Vec<_> = stops
        .filter_map(|claim| Some(Duration::from_nanos(claim.stopped?.0.saturating_sub(asked))))
        .filter(|time| *time > Duration::ZERO)
        .collect();
    figure(&format!("{}: from the signal to the stop", B::NAME), &mut stops);
    let mut gaps = said.history.gaps(leaver, asked);
    assert_eq!(gaps.len(), 500, "every key was stopped, confirmed and started again");
    let role = if of_leader { "the leader" } else { "a node" };
    figure(&format!("{}: flush_and_cancel of {role} with 500 keys, confirmation to next start", B::NAME), &mut gaps);
    figure(&format!("{}: from the signal to the next start", B::NAME), &mut taken);
    // On an idle machine it is below 20 ms.
    assert!(quantile(&mut gaps, 0.99) <= Duration::from_millis(250));
}

pub(crate) fn a_node_that_drains_hands_500_keys_over_without_a_noticeable_gap<B: TestBackend>() {
    drain::<B>(false);
}

pub(crate) fn a_leader_that_drains_hands_500_keys_over_without_a_noticeable_gap<B: TestBackend>() {
    drain::<B>(true);
}

/// A supervisor kills what does not end by itself, so a node must end whatever its store does.
pub(crate) fn a_node_ends_when_told_to_even_if_the_store_is_gone<B: Server>() {
    let mut bed = Bed::<B>::new(&["--lease-ms", "1000", "--tick-ms", "50"]);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], 300, Duration::from_secs(20));
    bed.store.freeze();
    let frozen = now();
    bed.fleet.terminate(ids[0]);
    let from_frozen = Duration::from_nanos(now() - frozen);
    bed.store.kill9();
    let gone = now();
    bed.fleet.terminate(ids[1]);
    let from_gone = Duration::from_nanos(now() - gone);
    println!("figure: SIGTERM to exit: {from_frozen:?} with a frozen store, {from_gone:?} with none (lease 1 s)");
    let said = bed.fleet.said();
    for id in &ids[..2] {
        let stopped = said.history.keys().flat_map(|(_, claims)| claims.values());
        let mut claims = stopped.filter(|claim| claim.process == *id);
        assert!(claims.all(|claim| claim.ended.is_some()), "a key of {id} was not stopped before the end");
    }
    assert!(from_frozen.max(from_gone) <= Duration::from_millis(2500));
}

pub(crate) fn nodes_that_are_started_before_the_store_wait_for_it<B: Server>() {
    let mut bed = Bed::<B>::new(&["--lease-ms", "1000"]);
    bed.store.kill9();
    let ids: Vec<_> = (0..3).map(|_| bed.spawn(&[])).collect();
    std::thread::sleep(Duration::from_millis(700));
    bed.store.restart();
    bed.fleet.wait_ready(&ids);
    bed.add(ids[0], 100, Duration::from_secs(5));
}

pub(crate) fn twenty_thousand_keys_of_a_node_are_handed_over_or_taken_over_as_well<B: TestBackend>() {
    // A busy machine may need two seconds to elect somebody; if everybody lost the lease, all keys would change hands.
    let mut bed = Bed::<B>::new(&["--lease-ms", "3000"]);
    let ids = bed.nodes(5, &[]);
    let began = now();
    bed.add(ids[0], 100_000, Duration::from_secs(60));
    println!("figure: 100,000 keys run on 5 nodes {:?} after the add", Duration::from_nanos(now() - began));
    let leader = bed.fleet.leader().expect("somebody leads");
    let others: Vec<_> = ids.into_iter().filter(|id| *id != leader).collect();
    let asked = bed.fleet.terminate(others[0]);
    bed.fleet.wait_all_run(100_000, Duration::from_secs(30));
    let mut gaps = bed.fleet.said().history.gaps(others[0], asked);
    figure(&format!("{}: a node with 20,000 keys drains, confirmation to next start", B::NAME), &mut gaps);
    let mut taken: Vec<_> =
        bed.fleet.said().history.takeovers(others[0], asked).into_iter().filter_map(|(_, time)| time).collect();
    figure(&format!("{}: a node with 20,000 keys drains, signal to next start", B::NAME), &mut taken);
    // The newcomer makes up for the one that has left.
    bed.spawn_ready(1, &[]);
    bed.fleet.wait_all_run(100_000, Duration::from_secs(30));
    let killed = bed.fleet.kill9(leader);
    bed.fleet.wait_all_run(100_000, Duration::from_secs(30));
    let mut taken: Vec<_> =
        bed.fleet.said().history.takeovers(leader, killed).into_iter().filter_map(|(_, time)| time).collect();
    figure(&format!("{}: the leader with 25,000 keys is killed, lease 3 s, to start elsewhere", B::NAME), &mut taken);
}
