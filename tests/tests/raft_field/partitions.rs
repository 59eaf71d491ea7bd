//! Networks that fail in each way, without a word, and are healed.

use std::time::Duration;

use divider_core::StopReason;
use divider_tests::{netns::Netns, process::now};

use super::bed::{Bed, ELECTION, SLACK, SOON, figure, pause};

const KEYS: usize = 300;
const LEASE: Duration = Duration::from_secs(1);
const ARGS: [&str; 4] = ["--tick-ms", "10", "--lease-ms", "1000"];
/// How long a network stays cut.
const CUT: Duration = Duration::from_secs(5);

/// Cuts the network, which is given the places of the leader and of two others, and heals it again. Every key that runs
/// nowhere because of it runs elsewhere in time, and where `alone` says so the voter there has nothing left.
fn partition(what: &str, cut: impl Fn(&Netns, [usize; 3]), alone: impl Fn([usize; 3]) -> Option<usize>) {
    let mut bed = Bed::in_networks(&ARGS);
    let client = bed.client();
    bed.add(client, KEYS);
    let leader = bed.leader();
    let places = [leader, (leader + 1) % 3, (leader + 2) % 3];
    let victim = alone(places).map(|at| bed.voters[at]);
    let held = victim.map(|id| bed.fleet.loads()[&id]);
    let began = now();
    cut(bed.network.as_ref().unwrap(), places);
    let since = |began: u64| Duration::from_nanos(now() - began);
    // Until here a node that is cut off may believe.
    std::thread::sleep((LEASE + Duration::from_millis(50)).saturating_sub(since(began)));
    bed.fleet.wait_all_run(KEYS, (LEASE + ELECTION + SLACK).saturating_sub(since(began)));
    println!("figure: {what}: all {KEYS} keys run {:?} after the cut at the latest", since(began));
    if let (Some(victim), Some(held)) = (victim, held) {
        let said = bed.fleet.said();
        let claims = said.history.keys().flat_map(|(_, claims)| claims.values());
        let mut told: Vec<_> = claims
            .filter(|claim| claim.process == victim)
            .filter_map(|claim| claim.stopped.filter(|(at, reason)| *at > began && *reason == StopReason::Lost))
            .map(|(at, _)| Duration::from_nanos(at - began))
            .collect();
        let mut taken: Vec<_> =
            said.history.takeovers(victim, began).into_iter().filter_map(|(_, time)| time).collect();
        drop(said);
        assert_eq!((told.len(), taken.len()), (held, held), "all that it held was told to be lost, and taken over");
        figure(&format!("{what}: until the loss was told"), &mut told);
        figure(&format!("{what}: until the start elsewhere"), &mut taken);
        let bound = if victim == bed.voters[leader] { LEASE + ELECTION + SLACK } else { LEASE + SLACK };
        assert!(taken.last() <= Some(&bed.fleet.allowing(bound)), "{taken:?}");
    }
    // The rest goes on meanwhile.
    bed.insist(client, "meanwhile");
    bed.fleet.wait_all_run(KEYS + 1, LEASE + ELECTION + SLACK);
    std::thread::sleep(CUT.saturating_sub(since(began)));
    bed.fleet.wait_all_run(KEYS + 1, LEASE + ELECTION + SLACK);

    bed.network.as_ref().unwrap().heal();
    let healed = now();
    // Whatever the heal upsets, such as a leader that finds a higher term, has happened by then.
    pause(500);
    bed.fleet.wait_all_run(KEYS + 1, (LEASE + ELECTION + SLACK).saturating_sub(since(healed)));
    println!("figure: {what}: all keys run {:?} after the heal", since(healed));
    if let Some(victim) = victim {
        bed.wait_share(victim, healed);
    }
    bed.fleet.wait_all_run(KEYS + 1, SOON);
    let stats = bed.fleet.call(client, "stats").detail.unwrap_or_default();
    assert_eq!((&stats["registered"], &stats["quarantined"]), (&(KEYS + 1).into(), &0.into()), "{stats}");
}

#[test]
fn a_leader_that_is_alone_is_replaced_and_its_keys_run_elsewhere() {
    partition("the leader alone", |network, [leader, ..]| network.isolate(leader), |[leader, ..]| Some(leader));
}

#[test]
fn a_voter_that_is_alone_loses_its_keys_and_comes_back() {
    partition("another voter alone", |network, [_, other, _]| network.isolate(other), |[_, other, _]| Some(other));
}

#[test]
fn a_voter_that_does_not_hear_the_leader_harms_nobody() {
    partition(
        "a voter does not hear the leader",
        |network, [leader, other, _]| network.cut_one_way(leader, other),
        |_| None,
    );
}

#[test]
fn a_voter_that_the_leader_does_not_hear_harms_nobody() {
    partition(
        "the leader does not hear a voter",
        |network, [leader, other, _]| network.cut_one_way(other, leader),
        |_| None,
    );
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    let cut = |network: &Netns, [leader, one, other]: [usize; 3]| {
        [one, other, network.hub()].into_iter().for_each(|to| network.cut_one_way(leader, to));
    };
    partition("nobody hears the leader", cut, |[leader, ..]| Some(leader));
}

#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    let cut = |network: &Netns, [leader, one, other]: [usize; 3]| {
        [one, other, network.hub()].into_iter().for_each(|from| network.cut_one_way(from, leader));
    };
    partition("the leader hears nobody", cut, |[leader, ..]| Some(leader));
}
