//! Runs many seeds: `raft-simulate --seeds 1000 [--from 0] [--seconds 60] [--threads 2] [--violations 10] [--keep]`, or one
//! with its log: `SEED=7 raft-simulate`. Ends with 1 where a rule was broken. Since not every replay is exact, `--keep` writes
//! the log of each such seed into the working directory while it is there.

use std::{process::ExitCode, time::Duration};

use divider_support::seeds::{Options, number};
use parking_lot::Mutex;

#[derive(Default)]
struct Sum {
    simulated: Duration,
    calls: (u64, u64),
    revisions: u64,
    undecided: u64,
    expiries: u64,
    healed: u64,
}

fn main() -> ExitCode {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    if let Some(seed) = number("SEED") {
        let report = divider_raft_sim::run(seed, true);
        println!("{}", report.lines.unwrap_or_default());
        println!(
            "seed {seed}: hash {:016x}, {:?} simulated, faults {:?}",
            report.hash, report.simulated, report.faults
        );
        println!("{:?} calls, healed after {} ms, {:?}", report.calls, report.healed, report.verdict);
        return match report.violation {
            Some(violation) => {
                println!("VIOLATION: {violation}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        };
    }
    let hashes = std::env::args().any(|arg| arg == "--hashes");
    let keep = std::env::args().any(|arg| arg == "--keep");
    let sum = Mutex::new(Sum::default());
    let one = |seed| {
        let report = divider_raft_sim::run(seed, keep);
        let mut sum = sum.lock();
        if hashes {
            println!("seed {seed} hash {:016x}", report.hash);
        }
        sum.simulated += report.simulated;
        sum.calls.0 += report.calls.0;
        sum.calls.1 += report.calls.1;
        sum.revisions += report.verdict.revisions;
        sum.undecided += report.verdict.undecided;
        sum.expiries += report.expiries;
        sum.healed = sum.healed.max(report.healed);
        if report.verdict.undecided > 0 {
            println!("seed {seed}: {} groups undecided", report.verdict.undecided);
        }
        if let Some(lines) = report.lines.filter(|_| report.violation.is_some()) {
            std::fs::write(format!("raft-seed-{seed}.txt"), lines).expect("the directory is writable");
        }
        (report.faults, report.violation)
    };
    Options::told(100).run("SEED", one, || {
        let Sum { simulated, calls: (answered, not), revisions, undecided, expiries, healed } = *sum.lock();
        println!(
            "{answered} calls answered and {not} not, {revisions} revisions compared, {undecided} groups undecided, \
             {expiries} sessions expired, served within {healed} ms, {:.2} h simulated",
            simulated.as_secs_f64() / 3600.0
        );
    })
}
