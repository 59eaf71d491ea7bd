//! Runs many seeds: `raft-simulate --seeds 1000 [--from 0] [--seconds 60] [--threads 2] [--violations 10] [--keep]`, or one
//! with its log: `SEED=7 raft-simulate`. Ends with 1 where a rule was broken. Since not every replay is exact, `--keep` writes
//! the log of each such seed into the working directory while it is there.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

#[derive(Default)]
struct Sum {
    seeds: u64,
    faults: BTreeMap<&'static str, u64>,
    simulated: Duration,
    calls: (u64, u64),
    revisions: u64,
    undecided: u64,
    expiries: u64,
    healed: u64,
    violations: Vec<u64>,
}

fn option(name: &str) -> Option<u64> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.next()?;
    Some(args.next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} wants a number")))
}

fn main() -> ExitCode {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    if let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
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
    let from = option("--from").unwrap_or(0);
    let seconds = option("--seconds");
    let seeds = option("--seeds").unwrap_or(if seconds.is_some() { u64::MAX - from } else { 100 });
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = option("--threads").unwrap_or(cores);
    let most = option("--violations").unwrap_or(10);
    let hashes = std::env::args().any(|arg| arg == "--hashes");
    let keep = std::env::args().any(|arg| arg == "--keep");
    let began = Instant::now();
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    let late = || seconds.is_some_and(|seconds| began.elapsed() >= Duration::from_secs(seconds));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && !late() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - from >= seeds {
                        return;
                    }
                    let report = divider_raft_sim::run(seed, keep);
                    let mut sum = sum.lock();
                    if hashes {
                        println!("seed {seed} hash {:016x}", report.hash);
                    }
                    sum.seeds += 1;
                    sum.simulated += report.simulated;
                    sum.calls.0 += report.calls.0;
                    sum.calls.1 += report.calls.1;
                    sum.revisions += report.verdict.revisions;
                    sum.undecided += report.verdict.undecided;
                    sum.expiries += report.expiries;
                    sum.healed = sum.healed.max(report.healed);
                    for (kind, count) in report.faults {
                        *sum.faults.entry(kind).or_default() += count;
                    }
                    if report.verdict.undecided > 0 {
                        println!("seed {seed}: {} groups undecided", report.verdict.undecided);
                    }
                    if let Some(violation) = report.violation {
                        println!("seed {seed}: {violation}");
                        if let Some(lines) = report.lines {
                            std::fs::write(format!("raft-seed-{seed}.txt"), lines).expect("the directory is writable");
                        }
                        sum.violations.push(seed);
                        if sum.violations.len() as u64 >= most {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let sum = sum.into_inner();
    let took = began.elapsed().as_secs_f64();
    println!("faults by kind:");
    for (kind, count) in &sum.faults {
        println!("  {count:>10}  {kind}");
    }
    println!(
        "{} calls answered and {} not, {} revisions compared, {} groups undecided, {} sessions expired, served within {} ms, {:.2} h simulated",
        sum.calls.0,
        sum.calls.1,
        sum.revisions,
        sum.undecided,
        sum.expiries,
        sum.healed,
        sum.simulated.as_secs_f64() / 3600.0
    );
    println!(
        "{} seeds in {took:.1} s on {threads} threads, {:.1} per second; {} faults of {} kinds; {} violations",
        sum.seeds,
        sum.seeds as f64 / took,
        sum.faults.values().sum::<u64>(),
        sum.faults.len(),
        sum.violations.len()
    );
    for seed in &sum.violations {
        println!("replay with SEED={seed}");
    }
    if sum.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
