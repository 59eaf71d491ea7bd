//! A short share of the simulation with every run of the tests. `simulate` runs more, and `DIVIDER_SEED=7` replays one
//! with its log:
//!
//! ```text
//! DIVIDER_SEED=7 cargo run --release -p divider-sim
//! cargo run --release -p divider-sim -- --seconds 600
//! ```

use std::{ops::ControlFlow, sync::Mutex};

use divider_support::seeds::{Faults, cores, each, number};

/// Beginning here, so that it is not the seeds of the long runs over again.
const FIRST: u64 = 1_000_000_000;
/// So many that each kind of fault comes up, in a few seconds; a debug build is some ten times slower.
const SEEDS: u64 = if cfg!(debug_assertions) { 500 } else { 5000 };

/// Faults of which a share this short must have met some.
const KINDS: [&str; 49] = [
    "affinity changed",
    "answer late",
    "answer lost",
    "answered: misconfigured",
    "answered: no right",
    "answered: read only",
    "answered: unreadable, done",
    "answered: unreadable, not done",
    "call aborted",
    "crash",
    "crash between two steps",
    "cut off",
    "drained",
    "feeds cut",
    "feeds cut while the group is read",
    "hint doubled",
    "hint lost",
    "hint reordered",
    "leader deposed",
    "new lineage from a backup",
    "new lineage, everything lost",
    "new lineage, nothing lost",
    "newcomer",
    "one more reader",
    "one process is deaf and blind for good",
    "one process is deaf for good",
    "panic in a call to the store",
    "panic in a task of the node",
    "readers dropped and taken anew",
    "rebalance",
    "request doubled",
    "request late",
    "request lost",
    "restart",
    "runtime blocked",
    "runtime ended, a handle kept",
    "store down",
    "store down again and again",
    "store stalled",
    "store stalled again and again",
    "subscription to changes refused",
    "subscription to messages refused",
    "suspended",
    "wall clock jumps",
    "winding up after a loss",
    "work declared in a busy group",
    "work ordered again",
    "work removed",
    "work that nobody can wind up",
];

#[test]
fn no_rule_is_broken_whatever_fails() {
    if let Some(seed) = number("DIVIDER_SEED") {
        let report = divider_sim::run(seed, true);
        println!("{}", report.lines.unwrap_or_default());
        assert_eq!(report.violation, None, "seed {seed}");
        return;
    }
    let faults: Mutex<Faults> = Mutex::default();
    each(FIRST..FIRST + SEEDS, cores(), |seed| {
        let report = divider_sim::run(seed, false);
        if let Some(violation) = report.violation {
            panic!("replay with DIVIDER_SEED={seed}: {violation}");
        }
        let mut faults = faults.lock().unwrap();
        report.faults.into_iter().for_each(|(kind, count)| *faults.entry(kind).or_default() += count);
        ControlFlow::Continue(())
    });
    let faults = faults.into_inner().unwrap();
    println!("{SEEDS} seeds, {} faults: {faults:?}", faults.values().sum::<u64>());
    for kind in KINDS {
        assert!(faults.contains_key(kind), "no seed met the fault {kind:?}");
    }
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in 0..100 {
        let (first, second) = (divider_sim::run(seed, false), divider_sim::run(seed, true));
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "seed {seed}");
    }
}
