//! What an idle group costs the server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Bed, pause};

const SECONDS: u64 = 6;

/// Commands per second while nothing happens, as the server counts them: all, and by name.
fn idle(keys: usize) -> (f64, BTreeMap<String, f64>) {
    let mut bed = Bed::new(&[]);
    let ids = bed.nodes(10, &[]);
    bed.add(ids[0], keys, Duration::from_secs(30));
    pause(1500);
    bed.server.cli(&["CONFIG", "RESETSTAT"]);
    let began = Instant::now();
    pause(SECONDS * 1000);
    let info = bed.server.cli(&["INFO", "everything"]);
    let seconds = began.elapsed().as_secs_f64();
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse::<f64>().ok())
    };
    let all = field("total_commands_processed").expect("Redis counts its commands") / seconds;
    let by_name = info.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse::<f64>().ok()? / seconds))
    });
    let by_name: BTreeMap<_, _> = by_name.collect();
    let used = field("used_cpu_user").zip(field("used_cpu_sys")).map_or(0.0, |(user, sys)| user + sys);
    println!(
        "figure: idle, 10 nodes and {keys} keys: {all:.1} commands/s ({used:.2} s of CPU since its start); {by_name:.1?}"
    );
    (all, by_name)
}

#[test]
fn an_idle_group_costs_the_same_with_10_keys_as_with_10000() {
    let (few, _) = idle(10);
    let (many, _) = idle(10_000);
    assert!((many / few - 1.0).abs() <= 0.05, "{few:.1} commands/s with 10 keys, {many:.1} with 10,000");
}
