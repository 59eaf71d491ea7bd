//! Nodes that die, and nodes that only seem to.

use std::time::{Duration, Instant};

use divider_core::StopReason;
use divider_examples::line::Kind;
use divider_support::seeds::number;
use divider_tests::process::now;

use super::{Bed, figure, outages::set_aside, pause};
use crate::backend::TestBackend;

/// After so long without a death nobody is about to die.
const QUIET: Duration = Duration::from_secs(6);
/// Keys that died with their owners again and again are given out batch by batch, after a time without deaths.
const SUSPECTS_RUN: Duration = Duration::from_secs(40);

/// Kills nodes one after the other, every second time the leader, and starts a new one for each. `DIVIDER_KILLS` says how
/// many, if not 6.
pub(crate) fn kill<B: TestBackend>(lease: Duration, keys: usize, bound: Duration, args: &[&str]) {
    let kills = number("DIVIDER_KILLS").unwrap_or(6);
    let lease_ms = lease.as_millis().to_string();
    // The keys' owners keep dying here, which is not the keys' fault.
    let args = [&["--tick-ms", "100", "--no-quarantine", "--lease-ms", &lease_ms], args].concat();
    let mut bed = Bed::<B>::new(&args);
    let ids = bed.nodes(5, &[]);
    bed.add(ids[0], keys, Duration::from_secs(20));
    let (mut of_leaders, mut of_others) = (Vec::new(), Vec::new());
    for round in 0..kills {
        let leader = bed.fleet.wait_leader();
        let others: Vec<_> = bed.fleet.living().into_iter().filter(|id| *id != leader).collect();
        let victim = if round % 2 == 0 { leader } else { others[round % others.len()] };
        let at = bed.fleet.kill9(victim);
        bed.fleet.wait_all_run(keys, bound + Duration::from_secs(10));
        // Where another leads now, there was an election, whoever was killed.
        let times = if bed.fleet.leader() == Some(leader) { &mut of_others } else { &mut of_leaders };
        let said = bed.fleet.said();
        let taken = said.history.takeovers(victim, at);
        assert!(!taken.is_empty(), "node {victim} had no keys");
        times.extend(taken.into_iter().map(|(key, time)| time.unwrap_or_else(|| panic!("nobody has {key}"))));
        drop(said);
        bed.spawn_ready(1, &[]);
        // Any one may be the next to die, and should have something to lose by then. Not the newcomer alone may have
        // nothing: where an election takes longer than the lease, all have lost their sessions.
        bed.fleet.wait("every node to get its share", Duration::from_secs(20), |fleet, said| {
            let running = said.history.running(|id| fleet.lives(id));
            let owners: std::collections::HashSet<_> = running.into_values().flatten().collect();
            fleet.living().iter().all(|id| owners.contains(id))
        });
        bed.fleet.wait_all_run(keys, Duration::from_secs(10));
    }
    for (who, times) in [("leader", &mut of_leaders), ("node that does not lead", &mut of_others)] {
        figure(
            &format!("{}: kill -9 of a {who} to start elsewhere, lease {lease:?}, {}", B::NAME, args.join(" ")),
            times,
        );
        let longest = times.last().copied().unwrap_or_default();
        let bound = bed.fleet.allowing(bound);
        assert!(longest <= bound, "a key of a {who} was without an owner for {longest:?}, and may be for {bound:?}");
    }
}

pub(crate) fn the_keys_of_a_killed_node_run_elsewhere_within_the_lease_and_half_a_second<B: TestBackend>() {
    let lease = Duration::from_secs(3);
    kill::<B>(lease, 1000, lease + Duration::from_millis(500), &[]);
}

pub(crate) fn with_a_lease_of_half_a_second_they_do_within_a_second<B: TestBackend>() {
    kill::<B>(Duration::from_millis(500), 500, Duration::from_secs(1), &[]);
}

/// Stops a node in its tracks for two leases: it must not act on its word when it wakes up.
fn freeze<B: TestBackend>(of_leader: bool) {
    let mut bed = Bed::<B>::new(&["--tick-ms", "20", "--lease-ms", "1000"]);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], 300, Duration::from_secs(20));
    let leader = bed.fleet.wait_leader();
    let victim = if of_leader { leader } else { *ids.iter().find(|id| **id != leader).expect("there are three") };
    let held = bed.fleet.loads()[&victim];
    assert!(held > 0);

    bed.fleet.pause(victim);
    let paused = now();
    pause(2000);
    if of_leader {
        std::thread::sleep(B::ELECTION);
    }
    bed.fleet.record(victim);
    let resumed = now();
    bed.fleet.resume(victim);
    bed.fleet.wait("the loss of every key to be told", Duration::from_secs(5), |_, said| {
        let lost = |line: &&divider_examples::line::Line<'_>| line.reason == Some(StopReason::Lost);
        said.recorded[&victim].iter().filter(lost).count() == held
    });
    let said = bed.fleet.said();
    // What was stamped before the pause, and printed only now, is of before the pause.
    let awake: Vec<_> = said.recorded[&victim].iter().filter(|line| line.at_ns > paused).collect();
    let first = awake.first().expect("the losses");
    assert_eq!((first.event, first.reason), (Kind::Stop, Some(StopReason::Lost)), "{first:?}");
    println!(
        "figure: {}: SIGCONT to the first Lost: {:?}",
        B::NAME,
        Duration::from_nanos(first.at_ns.saturating_sub(resumed))
    );
    let early = awake.iter().take_while(|line| line.event != Kind::Start);
    let ticks = early.filter(|line| line.event == Kind::Tick).count();
    assert_eq!(ticks, 0, "it went on after it woke up");
    drop(said);
    let mut taken =
        bed.fleet.said().history.takeovers(victim, paused).into_iter().filter_map(|(_, time)| time).collect::<Vec<_>>();
    assert_eq!(taken.len(), held, "all went elsewhere");
    figure(&format!("{}: SIGSTOP to start elsewhere, lease 1 s", B::NAME), &mut taken);
    bed.fleet.wait_all_run(300, Duration::from_secs(5));
}

pub(crate) fn a_frozen_node_wakes_up_to_the_loss_of_its_keys_before_anything_else<B: TestBackend>() {
    freeze::<B>(false);
}

pub(crate) fn a_frozen_leader_wakes_up_to_the_loss_of_its_keys_before_anything_else<B: TestBackend>() {
    freeze::<B>(true);
}

pub(crate) fn a_handler_that_blocks_every_thread_for_two_leases_keeps_its_keys<B: TestBackend>() {
    let mut bed = Bed::<B>::new(&["--tick-ms", "50", "--lease-ms", "1500"]);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], 300, Duration::from_secs(20));
    let starts = bed.fleet.said().history.starts();
    // The leader, whose leading is then blocked, too: another one takes over, but not the keys.
    let leader = bed.fleet.wait_leader();
    let took = bed.fleet.call(leader, "block 3000").took_us.unwrap_or_default();
    println!("figure: every thread of the leader was blocked for {} ms", took / 1000);
    assert!((3_000_000..3_900_000).contains(&took), "not all threads were blocked at the same time: {took} µs");
    pause(1500);
    assert_eq!(bed.fleet.said().history.starts(), starts, "keys were moved");
    bed.fleet.wait_all_run(300, Duration::from_secs(1));
    let new = bed.fleet.wait_leader();
    assert_ne!(new, leader, "a leader that does not lead was not replaced");
    bed.add(new, 400, Duration::from_secs(5));
}

/// What a supervisor does with a program that crashes soon after its start: the keys are not to blame, and must not be
/// set aside for it.
pub(crate) fn a_node_in_a_crash_loop_does_not_get_keys_quarantined<B: TestBackend>() {
    let mut bed = Bed::<B>::new(&["--lease-ms", "600"]);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], 300, Duration::from_secs(20));
    for _ in 0..24 {
        let id = bed.spawn_ready(1, &["--node", "crasher"])[0];
        pause(250);
        bed.fleet.kill9(id);
    }
    pause(1200);
    let stats = bed.fleet.call(ids[0], "stats").detail.unwrap_or_default();
    println!("figure: after 24 crashes of one node of four: {stats}");
    assert_eq!(stats["quarantined"], 0, "{stats}");
    bed.fleet.wait_all_run(300, SUSPECTS_RUN);
}

/// Every node in turn is killed soon after it was given keys, and started again at once: so every key has many owners that
/// died young. None of them is to blame. `DIVIDER_ROUNDS` says how many rounds, if not 4.
pub(crate) fn nodes_that_are_killed_in_turn_again_and_again_get_no_keys_set_aside<B: TestBackend>() {
    const KEYS: usize = 90;
    let rounds = number("DIVIDER_ROUNDS").unwrap_or(4);
    let mut bed = Bed::<B>::new(&["--lease-ms", "600"]);
    let mut ids = bed.nodes(3, &[]);
    bed.add(ids[0], KEYS, Duration::from_secs(20));
    for round in 1..=rounds {
        for id in &mut ids {
            bed.fleet.wait("the node to be given keys", SUSPECTS_RUN, |fleet, said| {
                said.history.running(|id| fleet.lives(id)).into_values().flatten().any(|owner| owner == *id)
            });
            pause(1000);
            let name = format!("node-{}", *id % 3);
            bed.fleet.kill9(*id);
            *id = bed.spawn(&["--node", &name]);
        }
        bed.fleet.wait_ready(&ids);
        let aside = set_aside(&mut bed, ids[0]);
        assert_eq!(aside, Vec::<String>::new(), "after round {round} healthy keys are set aside");
    }
    bed.fleet.wait_all_run(KEYS, SUSPECTS_RUN);
    println!(
        "figure: {}: {} nodes killed -9 in turn, each 1 s after its grants: nothing is set aside",
        B::NAME,
        rounds * 3
    );
}

/// Some of a hundred keys kill their processes, and a supervisor starts these again at once. Those keys, and no others, are
/// set aside, after so many deaths at most.
fn kill_by_keys<B: TestBackend>(killers: &[&str], most: usize) {
    const KEYS: usize = 100;
    let flags: Vec<&str> = killers.iter().flat_map(|killer| ["--killer", *killer]).collect();
    let mut bed = Bed::<B>::new(&[&["--lease-ms", "1000"], &flags[..]].concat());
    let mut ids = bed.nodes(3, &[]);
    // Is given nothing, and so lives to tell.
    let watcher = bed.spawn(&["--node", "watcher", "--affinity", "0"]);
    bed.fleet.call(watcher, &format!("keys {KEYS}"));
    let (mut deaths, mut last) = (0, Instant::now());
    let aside = loop {
        for (at, id) in ids.iter_mut().enumerate() {
            if !bed.fleet.lives(*id) {
                deaths += 1;
                last = Instant::now();
                *id = bed.spawn(&["--node", &format!("node-{at}")]);
            }
        }
        assert!(deaths <= most, "{deaths} deaths of {killers:?}, and they still run");
        pause(20);
        // Nobody has died for so long that nobody is about to.
        if last.elapsed() > QUIET {
            let aside = set_aside(&mut bed, watcher);
            if aside.len() >= killers.len() || last.elapsed() > QUIET * 10 {
                break aside;
            }
        }
    };
    println!(
        "figure: {}: {killers:?} among {KEYS} keys: set aside after {deaths} deaths, and with them {aside:?}",
        B::NAME
    );
    let mut listed: Vec<&str> = aside.iter().map(String::as_str).collect();
    listed.sort_unstable();
    assert_eq!(listed, killers, "what kills, and nothing else, is set aside");
    bed.fleet.wait_all_run(KEYS - killers.len(), Duration::from_secs(20));
}

pub(crate) fn a_key_that_kills_its_process_is_set_aside_within_8_deaths_and_no_other_is<B: TestBackend>() {
    kill_by_keys::<B>(&["key-7"], 8);
}

pub(crate) fn two_keys_that_kill_their_processes_are_set_aside_within_16_deaths_and_no_others_are<B: TestBackend>() {
    kill_by_keys::<B>(&["key-41", "key-7"], 16);
}
