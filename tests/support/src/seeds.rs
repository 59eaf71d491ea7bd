//! Running what a seed repeats, with many seeds.

use std::{
    collections::BTreeMap,
    ops::{ControlFlow, Range},
    process::ExitCode,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// The number that a variable of the environment gives, such as `DIVIDER_SEED`.
pub fn number<N: FromStr>(variable: &str) -> Option<N> {
    std::env::var(variable).ok()?.parse().ok()
}

/// How often each kind of fault was met.
pub type Faults = BTreeMap<&'static str, u64>;

/// How many threads this machine can run at a time.
pub fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// Runs each seed once, in their order, on so many threads, until one says that this is enough.
///
/// # Panics
/// Where one of them does.
pub fn each(seeds: Range<u64>, threads: u64, run: impl Fn(u64) -> ControlFlow<()> + Sync) {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                return;
            }
            if run(seed).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
}

/// What a program that runs many seeds is told: `--seeds 1000 --from 0 --seconds 60 --threads 2 --violations 10`.
#[derive(Debug)]
pub struct Options {
    seeds: Range<u64>,
    seconds: Option<u64>,
    threads: u64,
    /// After so many it ends.
    violations: usize,
}

fn option(name: &str) -> Option<u64> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.next()?;
    Some(args.next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} wants a number")))
}

impl Options {
    /// From the command line. Where that says neither how many nor how long, so many seeds are run.
    ///
    /// # Panics
    /// Where an option has no number.
    pub fn told(usual: u64) -> Self {
        let (from, seconds) = (option("--from").unwrap_or(0), option("--seconds"));
        let most = u64::MAX - from;
        let count = option("--seeds").unwrap_or(if seconds.is_some() { most } else { usual });
        Self {
            seeds: from..from + count.min(most),
            seconds,
            threads: option("--threads").unwrap_or_else(cores),
            violations: option("--violations").map_or(10, |most| usize::try_from(most).unwrap_or(usize::MAX)),
        }
    }

    /// Runs the seeds, each of which says what faults it met and what rule was broken, and prints the sums; `more` is what the
    /// program adds to them. One is replayed by setting the variable to it.
    ///
    /// # Panics
    /// Where a seed does.
    pub fn run(
        self,
        variable: &str,
        run: impl Fn(u64) -> (Faults, Option<String>) + Sync,
        more: impl FnOnce(),
    ) -> ExitCode {
        let Self { seeds, seconds, threads, violations: most } = self;
        let began = Instant::now();
        let late = || seconds.is_some_and(|seconds| began.elapsed() >= Duration::from_secs(seconds));
        let sum: Mutex<(u64, Faults, Vec<u64>)> = Mutex::default();
        each(seeds, threads, |seed| {
            let (faults, violation) = run(seed);
            let mut sum = sum.lock();
            let (count, all, violations) = &mut *sum;
            *count += 1;
            faults.into_iter().for_each(|(kind, met)| *all.entry(kind).or_default() += met);
            if let Some(violation) = violation {
                println!("seed {seed}: {violation}");
                violations.push(seed);
            }
            if *count % 10_000 == 0 {
                let rate = *count as f64 / began.elapsed().as_secs_f64();
                println!("{count} seeds, {rate:.0} per second, {} violations", violations.len());
            }
            if late() || violations.len() >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let (count, faults, violations) = sum.into_inner();
        let took = began.elapsed().as_secs_f64();
        println!("faults by kind:");
        for (kind, met) in &faults {
            println!("  {met:>10}  {kind}");
        }
        more();
        println!(
            "{count} seeds in {took:.1} s on {threads} threads, {:.1} per second; {} faults of {} kinds; {} violations",
            count as f64 / took,
            faults.values().sum::<u64>(),
            faults.len(),
            violations.len()
        );
        violations.iter().for_each(|seed| println!("replay with {variable}={seed}"));
        if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
