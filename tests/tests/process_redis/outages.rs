//! A Redis that goes away, comes back, forgets, or holds its breath.

use std::time::{Duration, Instant};

use divider_core::StopReason;
use divider_tests::{process::now, redis::RedisServer};

use super::{Bed, pause};

const KEYS: usize = 500;
const LEASE: Duration = Duration::from_secs(2);
const BACK: Duration = Duration::from_millis(3500);
const ARGS: [&str; 4] = ["--tick-ms", "50", "--lease-ms", "2000"];

fn bed(options: &'static [&'static str]) -> Bed {
    let mut bed = Bed::on(|| RedisServer::with(options), &ARGS);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], KEYS, Duration::from_secs(20));
    bed
}

impl Bed {
    /// Waits until every key has been started after the moment given, and says how long after the return that was.
    fn wait_all_back(&self, what: &str, gone: u64, back: u64) {
        self.fleet.wait("every key to run again", BACK + Duration::from_secs(10), |fleet, said| {
            let running = said.history.running(|id| fleet.lives(id));
            running
                .iter()
                .filter(|(key, owners)| {
                    owners.len() == 1 && said.history.claims(key).last().is_some_and(|claim| claim.started > gone)
                })
                .count()
                == KEYS
        });
        let said = self.fleet.said();
        let last = said.history.keys().flat_map(|(_, claims)| claims.values()).map(|claim| claim.started).max();
        let took = Duration::from_nanos(last.unwrap_or_default().saturating_sub(back));
        drop(said);
        println!(
            "figure: {what}: all {KEYS} keys run again {:.0} ms after its return (lease {LEASE:?})",
            took.as_secs_f64() * 1e3
        );
        self.fleet.check();
        assert!(took <= BACK, "it took {took:?}");
    }
}

#[test]
fn redis_is_killed_and_comes_back_at_once_with_its_data() {
    let mut bed = bed(&["--appendonly", "yes"]);
    // The append-only file is written once a second.
    pause(1200);
    let gone = now();
    bed.server.restart();
    bed.wait_all_back("Redis killed and restarted with its data", gone, now());
}

#[test]
fn redis_is_killed_and_comes_back_with_its_data_after_every_lease_has_run_out() {
    let mut bed = bed(&["--appendonly", "yes"]);
    pause(1200);
    let gone = now();
    bed.server.kill9();
    pause(3000);
    bed.server.restart();
    bed.wait_all_back("Redis gone for longer than a lease, back with its data", gone, now());
}

#[test]
fn redis_is_killed_and_comes_back_at_once_with_nothing() {
    let mut bed = bed(&[]);
    let gone = now();
    bed.server.restart();
    let back = now();
    bed.fleet.call(0, &format!("keys {KEYS}"));
    bed.wait_all_back("Redis killed and restarted empty, keys added again", gone, back);
}

#[test]
fn redis_is_flushed() {
    let mut bed = bed(&[]);
    let gone = now();
    bed.server.cli(&["FLUSHALL"]);
    let back = now();
    bed.fleet.call(1, &format!("keys {KEYS}"));
    bed.wait_all_back("FLUSHALL, keys added again", gone, back);
}

#[test]
fn redis_holds_its_breath_for_a_lease() {
    let bed = bed(&[]);
    let gone = now();
    bed.server.cli(&["CLIENT", "PAUSE", &LEASE.as_millis().to_string(), "ALL"]);
    pause(2000);
    // Redis wakes up by itself; whoever asks meanwhile is answered after.
    bed.server.cli(&["PING"]);
    bed.wait_all_back("CLIENT PAUSE for a lease", gone, now());
}

#[test]
fn redis_stalls_for_less_than_a_lease_and_nothing_moves() {
    let bed = bed(&[]);
    let starts = bed.fleet.said().history.starts();
    bed.server.freeze();
    pause(1000);
    bed.server.thaw();
    pause(3000);
    assert_eq!(bed.fleet.said().history.starts(), starts, "keys were moved");
}

#[test]
fn subscriptions_are_cut_again_and_again_and_nothing_is_lost() {
    let mut bed = bed(&[]);
    let mut added = Vec::new();
    for round in 0..10 {
        bed.server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let at = bed.fleet.call(round % 3, &format!("keys 20 round-{round}-")).at_ns;
        added.push((round, at));
        pause(100);
    }
    let began = Instant::now();
    bed.fleet.wait_all_run(KEYS + 200, Duration::from_secs(5));
    let said = bed.fleet.said();
    let mut slowest = 0;
    for (round, at) in added {
        for k in 0..20 {
            let key = format!("round-{round}-{k}");
            let started = said.history.claims(&key).map(|claim| claim.started).min();
            slowest = slowest.max(started.unwrap_or(u64::MAX) - at);
        }
    }
    println!(
        "figure: subscriptions cut 10 times: slowest start {:?} after its add; all ran {:?} after the last",
        Duration::from_nanos(slowest),
        began.elapsed()
    );
    let lost = said
        .history
        .keys()
        .flat_map(|(_, claims)| claims.values())
        .filter(|claim| claim.stopped.is_some_and(|(_, reason)| reason == StopReason::Lost))
        .count();
    assert_eq!(lost, 0, "sessions were lost");
    assert_eq!(said.history.starts(), KEYS + 200 + 1, "each key was started once");
}

/// A store that comes and goes is nobody's fault, least of all the keys'.
#[test]
fn a_redis_that_keeps_stalling_does_not_get_keys_quarantined() {
    let mut bed = Bed::new(&["--lease-ms", "600"]);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], 300, Duration::from_secs(20));
    for _ in 0..8 {
        bed.server.freeze();
        pause(900);
        bed.server.thaw();
        pause(800);
    }
    pause(1200);
    let stats = bed.fleet.call(ids[0], "stats").detail.unwrap_or_default();
    println!("figure: after 8 stalls of Redis: {stats}");
    assert_eq!(stats["quarantined"], 0, "{stats}");
    bed.fleet.wait_all_run(300, Duration::from_secs(5));
}
