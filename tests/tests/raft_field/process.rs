//! Real `worker` processes that are their own store: three voters, and clients of them, each entry on disk before it is
//! acknowledged.
//!
//! Each test prints what it measured on lines that begin with `figure:`.

use std::{sync::MutexGuard, time::Duration};

use divider_tests::{
    history::{ProcessId, quantile},
    process::{Fleet, alone, now},
    raft::free_addresses,
};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(3);
/// A leader's own lease in Raft, the longest time after it, and one more round where two stood at once.
const ELECTION: Duration = Duration::from_millis(1400);
const SLACK: Duration = Duration::from_millis(500);

/// Three voters and their directories.
struct Bed {
    fleet: Fleet,
    /// Which process each voter is.
    voters: [ProcessId; 3],
    addresses: Vec<String>,
    directories: Vec<TempDir>,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    fn new(args: &[&str]) -> Self {
        let alone = alone();
        let addresses = free_addresses(3);
        let directories = (0..3).map(|_| TempDir::new().unwrap()).collect();
        let fleet = Fleet::new("raft:", "/process/", args);
        let mut bed = Self { fleet, voters: [0; 3], addresses, directories, _alone: alone };
        for at in 0..3 {
            bed.start(at);
        }
        bed.fleet.wait_ready(&bed.voters);
        bed
    }

    /// Starts a voter, or starts it again from its directory.
    fn start(&mut self, at: usize) -> ProcessId {
        let directory = self.directories[at].path().display();
        let (address, seeds) = (&self.addresses[at], self.addresses.join(","));
        let url = format!("raft:{directory}?name=voter-{at}&listen={address}&seeds={seeds}&plaintext");
        self.voters[at] = self.fleet.spawn_at(&url, &[]);
        self.voters[at]
    }

    fn client(&mut self) -> ProcessId {
        let url = format!("raft:?role=client&seeds={}&plaintext", self.addresses.join(","));
        self.fleet.spawn_at(&url, &[])
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.fleet.check();
        }
    }
}

fn figure(what: &str, values: &mut [Duration]) {
    let [p50, p99, longest] = [0.5, 0.99, 1.0].map(|part| quantile(values, part).as_secs_f64() * 1e3);
    println!("figure: {what}: p50 {p50:.2} ms, p99 {p99:.2} ms, longest {longest:.2} ms ({} values)", values.len());
}

#[test]
fn keys_run_elsewhere_in_time_whichever_voter_is_killed_and_nothing_overlaps() {
    let mut bed = Bed::new(&["--tick-ms", "100", "--no-quarantine", "--lease-ms", "3000"]);
    let client = bed.client();
    bed.fleet.wait_ready(&[client]);
    bed.fleet.call(client, "keys 600");
    bed.fleet.wait_all_run(600, Duration::from_secs(20));
    let (mut of_leader, mut of_others) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let leader = bed.fleet.leader().expect("somebody leads");
        let victim = match bed.voters.iter().position(|id| *id == leader) {
            Some(at) if round % 2 == 0 => at,
            Some(at) => (at + 1) % 3,
            None => round % 3,
        };
        let id = bed.voters[victim];
        let at = bed.fleet.kill9(id);
        bed.fleet.wait_all_run(600, LEASE + ELECTION + Duration::from_secs(10));
        let said = bed.fleet.said();
        let taken = said.history.takeovers(id, at).into_iter();
        let times = taken.map(|(key, time)| time.unwrap_or_else(|| panic!("nobody has {key}")));
        if id == leader { &mut of_leader } else { &mut of_others }.extend(times);
        drop(said);
        let again = bed.start(victim);
        bed.fleet.wait_ready(&[again]);
        bed.fleet.wait("the voter to get its share again", Duration::from_secs(15), |fleet, said| {
            said.history.running(|id| fleet.lives(id)).into_values().flatten().any(|owner| owner == again)
        });
        bed.fleet.wait_all_run(600, Duration::from_secs(15));
    }
    figure("kill -9 of the leader to start elsewhere, lease 3 s", &mut of_leader);
    figure("kill -9 of another voter to start elsewhere, lease 3 s", &mut of_others);
    assert!(of_leader.iter().max().unwrap() <= &(LEASE + ELECTION + SLACK));
    assert!(of_others.iter().max().unwrap() <= &(LEASE + SLACK));
}

#[test]
fn all_are_killed_at_once_and_every_key_runs_again() {
    let mut bed = Bed::new(&["--tick-ms", "100", "--no-quarantine", "--lease-ms", "1000"]);
    bed.fleet.call(bed.voters[0], "keys 300");
    bed.fleet.wait_all_run(300, Duration::from_secs(20));
    for id in bed.voters {
        bed.fleet.kill9(id);
    }
    let began = now();
    for at in 0..3 {
        bed.start(at);
    }
    bed.fleet.wait_ready(&bed.voters);
    bed.fleet.wait_all_run(300, Duration::from_secs(20));
    println!(
        "figure: all three killed and started again: every key runs after {:?}",
        Duration::from_nanos(now() - began)
    );
}

#[test]
fn a_frozen_leader_loses_its_keys_to_others_and_knows_it() {
    let mut bed = Bed::new(&["--tick-ms", "20", "--lease-ms", "1000"]);
    bed.fleet.call(bed.voters[0], "keys 300");
    bed.fleet.wait_all_run(300, Duration::from_secs(20));
    let victim = bed.fleet.leader().expect("somebody leads");
    bed.fleet.pause(victim);
    let paused = now();
    std::thread::sleep(Duration::from_millis(4000));
    bed.fleet.resume(victim);
    bed.fleet.wait_all_run(300, Duration::from_secs(10));
    let said = bed.fleet.said();
    let taken = said.history.takeovers(victim, paused).into_iter();
    let mut times: Vec<Duration> = taken.filter_map(|(_, time)| time).collect();
    drop(said);
    assert!(!times.is_empty());
    figure("SIGSTOP of the leader to start elsewhere, lease 1 s", &mut times);
    assert!(times.iter().max().unwrap() <= &(Duration::from_secs(1) + ELECTION + SLACK));
}

#[test]
fn a_key_starts_within_milliseconds_of_its_declaration() {
    let mut bed = Bed::new(&["--lease-ms", "3000"]);
    bed.fleet.call(bed.voters[0], "add warm-up");
    bed.fleet.wait_all_run(1, Duration::from_secs(20));
    let mut times = Vec::new();
    for at in 0..300 {
        let (key, by) = (format!("one-{at}"), bed.voters[at % 3]);
        let before = bed.fleet.said().notes[by].len();
        bed.fleet.send(by, &format!("add {key}"));
        let began = std::time::Instant::now();
        let started = loop {
            if let Some(claim) = bed.fleet.said().history.claims(&key).next() {
                break claim.started;
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{key} was not started");
            std::thread::sleep(Duration::from_micros(500));
        };
        bed.fleet.wait("the add to be answered", Duration::from_secs(5), |_, said| said.notes[by].len() > before);
        let added = bed.fleet.said().notes[by][before].at_ns;
        times.push(Duration::from_nanos(started.saturating_sub(added)));
    }
    figure("add to start, 3 voters", &mut times);
}
