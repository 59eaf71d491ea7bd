//! Runs many seeds on all cores: `simulate --seeds 100000 [--from 0] [--seconds 60] [--threads 2]`, or one with its log:
//! `DIVIDER_SEED=7 simulate`. Ends with 1 where a rule was broken.

use std::{process::ExitCode, time::Duration};

use divider_support::seeds::{Options, number};
use parking_lot::Mutex;

#[derive(Default)]
struct Sum {
    simulated: Duration,
    steps: u64,
    grants: u64,
    writes: (u64, u64),
}

fn main() -> ExitCode {
    if let Some(seed) = number("DIVIDER_SEED") {
        let report = divider_sim::run(seed, true);
        println!("{}", report.lines.unwrap_or_default());
        println!(
            "seed {seed}: hash {:016x}, {:?} simulated, faults {:?}",
            report.hash, report.simulated, report.faults
        );
        return match report.violation {
            Some(violation) => {
                println!("VIOLATION: {violation}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        };
    }
    let sum = Mutex::new(Sum::default());
    let one = |seed| {
        let report = divider_sim::run(seed, false);
        let mut sum = sum.lock();
        sum.simulated += report.simulated;
        sum.steps += report.steps;
        sum.grants += report.grants;
        sum.writes.0 += report.writes.0;
        sum.writes.1 += report.writes.1;
        (report.faults, report.violation)
    };
    Options::told(10_000).run("DIVIDER_SEED", one, || {
        let Sum { simulated, steps, grants, writes: (writes, late) } = *sum.lock();
        println!("{steps} steps, {grants} grants, {:.0} h simulated", simulated.as_secs_f64() / 3600.0);
        println!("{writes} delayed writes, of which {late} came after a newer owner's and were refused");
    })
}
