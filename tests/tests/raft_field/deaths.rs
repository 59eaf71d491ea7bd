//! Voters that die, hang, and come back. `DIVIDER_CHAOS_SECONDS=600` makes the first of these last longer.

use std::time::{Duration, Instant};

use divider_core::StopReason;
use divider_examples::line::Kind;
use divider_support::seeds::number;
use divider_tests::{history::quantile, process::now};

use super::bed::{Bed, ELECTION, SLACK, SOON, figure, pause};

const LEASE: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_secs(1);
const SHORT_ARGS: [&str; 5] = ["--tick-ms", "20", "--no-quarantine", "--lease-ms", "1000"];

#[test]
fn voters_are_killed_one_after_the_other_and_keys_run_elsewhere_in_time() {
    let seconds = number("DIVIDER_CHAOS_SECONDS").unwrap_or(20);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut bed = Bed::new(&["--tick-ms", "100", "--no-quarantine", "--lease-ms", "3000"]);
    let client = bed.client();
    let mut keys = 600;
    bed.add(client, keys);
    let (mut of_leader, mut of_others) = (Vec::new(), Vec::new());
    let mut round = 0;
    while Instant::now() < end || round < 3 {
        let leader = bed.leader();
        let victim = match round % 3 {
            0 => (leader + 1) % 3,
            1 => leader,
            // In turn, whoever leads.
            _ => (round / 3) % 3,
        };
        let id = bed.voters[victim];
        let at = bed.fleet.kill9(id);
        // What is acknowledged while one is missing is there as well.
        for _ in 0..3 {
            bed.insist(client, &format!("late-{keys}"));
            keys += 1;
        }
        bed.fleet.wait_all_run(keys, LEASE + ELECTION + SOON);
        let said = bed.fleet.said();
        let taken = said.history.takeovers(id, at).into_iter();
        let times = taken.map(|(key, time)| time.unwrap_or_else(|| panic!("nobody has {key}")));
        if victim == leader { &mut of_leader } else { &mut of_others }.extend(times);
        drop(said);
        bed.fleet.check();
        let (back, again) = (now(), bed.start(victim));
        bed.fleet.wait_ready(&[again]);
        bed.wait_share(again, back);
        bed.fleet.wait_all_run(keys, SOON);
        round += 1;
    }
    println!("figure: {round} voters killed in turn in {seconds} s, {keys} keys");
    figure("kill -9 of the leader to start elsewhere, lease 3 s", &mut of_leader);
    figure("kill -9 of another voter to start elsewhere, lease 3 s", &mut of_others);
    // An election costs nothing beside the lease: whoever wins it knows how long the others have been silent.
    assert!(quantile(&mut of_leader, 1.0) <= bed.fleet.allowing(LEASE + SLACK));
    assert!(quantile(&mut of_others, 1.0) <= bed.fleet.allowing(LEASE + SLACK));
}

#[test]
fn all_are_killed_at_once_and_nothing_acknowledged_is_gone() {
    let mut bed = Bed::new(&SHORT_ARGS);
    let client = bed.client();
    bed.add(client, 300);
    let mut acknowledged = 0;
    for (round, ms) in [5, 20, 60].into_iter().enumerate() {
        for at in 0..12 {
            bed.fleet.send(client, &format!("add late-{round}-{at}"));
        }
        pause(ms);
        for id in bed.voters {
            bed.fleet.kill9(id);
        }
        let began = now();
        for at in 0..3 {
            bed.start(at);
        }
        bed.fleet.wait_ready(&bed.voters);
        // Commands are carried out in order, so the answers to what was sent before are there.
        while bed.fleet.wait_call(client, "stats", SOON).event == Kind::Error {}
        let late = {
            let said = bed.fleet.said();
            let added = said.notes[client].iter().filter(|note| note.event == Kind::Done);
            let added = added.filter_map(|note| note.key.as_deref()).filter(|key| key.starts_with("late-"));
            added.map(str::to_owned).collect::<Vec<_>>()
        };
        bed.fleet.wait("all keys that were acknowledged to run", SOON, |fleet, said| {
            let running = said.history.running(|id| fleet.lives(id));
            let runs = |key: &str| running.get(key).is_some_and(|owners| owners.len() == 1);
            (0..300).all(|k| runs(&format!("key-{k}"))) && late.iter().all(|key| runs(key))
        });
        acknowledged = late.len();
        let took = Duration::from_nanos(now() - began);
        println!("figure: all three killed and started again: all keys run after {took:?} (lease {SHORT:?})");
    }
    println!("figure: {acknowledged} of 36 keys were acknowledged around 3 deaths of all voters");
    assert!(acknowledged > 0);
}

/// One voter is left, which led or did not.
fn minority(led: bool) {
    let mut bed = Bed::new(&SHORT_ARGS);
    let first = bed.voters[0];
    bed.add(first, 300);
    let leader = bed.leader();
    let left = if led { leader } else { (leader + 1) % 3 };
    let survivor = bed.voters[left];
    let held = bed.fleet.loads()[&survivor];
    let others: Vec<usize> = (0..3).filter(|at| *at != left).collect();
    for at in &others {
        bed.fleet.kill9(bed.voters[*at]);
    }
    let cut = now();
    bed.fleet.send(survivor, "add not-now");
    pause(3000);
    let said = bed.fleet.said();
    let claims =
        || said.history.keys().flat_map(|(_, claims)| claims.values()).filter(|claim| claim.process == survivor);
    let started = claims().filter(|claim| claim.started > cut).count();
    let mut told: Vec<_> = claims()
        .filter_map(|claim| claim.stopped.filter(|(at, reason)| *at > cut && *reason == StopReason::Lost))
        .map(|(at, _)| Duration::from_nanos(at - cut))
        .collect();
    drop(said);
    assert_eq!((started, told.len()), (0, held), "a minority grants nothing, and keeps nothing");
    figure(
        &format!("two of three killed, {} left: until the loss was told", if led { "the leader" } else { "another" }),
        &mut told,
    );
    assert!(quantile(&mut told, 1.0) <= bed.fleet.allowing(SHORT + Duration::from_millis(100)));
    for at in others {
        bed.start(at);
    }
    bed.fleet.wait_ready(&bed.voters);
    let keys = bed.fleet.call(bed.voters[left], "stats").detail.unwrap_or_default()["registered"].as_u64().unwrap();
    assert!(keys == 300 || keys == 301, "an add that failed may have been done, and nothing is lost: {keys}");
    bed.fleet.wait("every key to run again", SOON, |fleet, said| {
        let running = said.history.running(|id| fleet.lives(id));
        (0..300).all(|k| running.get(&*format!("key-{k}")).is_some_and(|owners| owners.len() == 1))
    });
}

#[test]
fn a_minority_that_led_keeps_nothing_past_its_deadline_and_grants_nothing() {
    minority(true);
}

#[test]
fn a_minority_that_followed_keeps_nothing_past_its_deadline_and_grants_nothing() {
    minority(false);
}

#[test]
fn a_frozen_leader_loses_its_keys_to_others_and_knows_it() {
    let mut bed = Bed::new(&SHORT_ARGS);
    bed.add(bed.voters[0], 300);
    let victim = bed.voters[bed.leader()];
    bed.fleet.pause(victim);
    let paused = now();
    pause(4000);
    bed.fleet.resume(victim);
    bed.fleet.wait_all_run(300, SOON);
    let mut times: Vec<Duration> =
        bed.fleet.said().history.takeovers(victim, paused).into_iter().filter_map(|(_, time)| time).collect();
    figure("SIGSTOP of the leader to start elsewhere, lease 1 s", &mut times);
    assert!(quantile(&mut times, 1.0) <= bed.fleet.allowing(SHORT + ELECTION + SLACK));
}

/// A process that is frozen still has its connections: the system accepts for it, takes everything in, and says nothing.
#[test]
fn a_voter_that_accepts_and_never_answers_does_not_stall_the_rest() {
    let mut bed = Bed::new(&SHORT_ARGS);
    bed.add(bed.voters[0], 300);
    let leader = bed.leader();
    let (victim, witness) = (bed.voters[(leader + 1) % 3], bed.voters[(leader + 2) % 3]);
    bed.fleet.pause(victim);
    let paused = now();
    let mut took = Vec::new();
    for at in 0..100 {
        let by = if at % 2 == 0 { bed.voters[leader] } else { witness };
        let began = Instant::now();
        bed.fleet.call(by, &format!("add beside-{at}"));
        took.push(began.elapsed());
        pause(20);
    }
    figure("add beside a voter that never answers", &mut took);
    assert!(quantile(&mut took, 1.0) <= bed.fleet.allowing(Duration::from_secs(1)));
    let mut times: Vec<Duration> =
        bed.fleet.said().history.takeovers(victim, paused).into_iter().filter_map(|(_, time)| time).collect();
    figure("SIGSTOP of another voter to start elsewhere, lease 1 s", &mut times);
    assert!(quantile(&mut times, 1.0) <= bed.fleet.allowing(SHORT + SLACK));
    bed.fleet.resume(victim);
    bed.fleet.wait_all_run(400, SOON);
}
