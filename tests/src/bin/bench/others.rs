//! Figures that other programs have taken: criterion's of the pure parts, and those of `tests/peers`.

use std::{fs, path::Path, process::Command, time::Duration};

use divider_tests::{postgres::PostgresServer, redis::RedisServer};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Run,
    report::{Goal, Report, Store, Unit},
};

/// How the benches that have a goal begin, with the longest that the median may be.
const GOALS: [(&str, Duration); 14] = [
    ("full 10k nodes 500k keys", Duration::from_millis(10)),
    ("full 10k uneven nodes 500k keys", Duration::from_millis(10)),
    ("full 50 nodes 10k keys", Duration::from_micros(300)),
    ("one joins 9,999 nodes 500k keys", Duration::from_micros(500)),
    ("one joins 10k uneven nodes 500k keys", Duration::from_micros(500)),
    ("one leaves 10k nodes 500k keys", Duration::from_micros(500)),
    ("one leaves 10k uneven nodes 500k keys", Duration::from_micros(500)),
    ("one leaves 1k nodes 1M keys", Duration::from_millis(1)),
    ("2 of 50 out and 2 in, 10k keys", Duration::from_micros(24)),
    ("add a key", Duration::from_micros(1)),
    ("is_current", Duration::from_nanos(50)),
    ("owner_of", Duration::from_nanos(50)),
    ("freeze 1M keys", Duration::from_millis(5)),
    ("512 changes among 1M keys, the first since they were frozen", Duration::from_millis(50)),
];
/// Benches that are held against another: mixed weights against equal ones.
const RATIOS: [(&str, &str, f64); 1] = [("full 10k nodes 500k mixed keys", "full 10k nodes 500k keys", 2.0)];

const CASE: &str = "pure parts, median";

/// The medians that criterion has left in its directory.
pub(crate) fn criterion(report: &mut Report, directory: &Path) {
    let mut found: Vec<(String, Duration)> = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let read = |file: &str| -> Option<Value> {
            serde_json::from_slice(&fs::read(entry.path().join("new").join(file)).ok()?).ok()
        };
        if let Some((bench, estimates)) = read("benchmark.json").zip(read("estimates.json"))
            && let Some((id, median)) = bench["full_id"].as_str().zip(estimates["median"]["point_estimate"].as_f64())
        {
            found.push((id.to_owned(), Duration::from_secs_f64(median / 1e9)));
        }
    }
    found.sort();
    let of = |name: &str| found.iter().find(|(id, _)| id == name).map(|(_, median)| *median);
    for (this, that, most) in RATIOS {
        if let Some((this_median, that_median)) = of(this).zip(of(that)) {
            let ratio = this_median.as_secs_f64() / that_median.as_secs_f64();
            let what = format!("{this} / {that}");
            report.add(CASE, Store::None, &what, ratio, Unit::Ratio, Some(Goal::AtMost(most)));
        }
    }
    for (id, median) in &found {
        let most = GOALS.iter().find(|(name, _)| id.starts_with(name)).map(|(_, most)| *most);
        report.time(CASE, Store::None, id, *median, most);
    }
}

/// A line of a peer's program.
#[derive(Deserialize)]
struct Line {
    peer: String,
    figure: String,
    value: f64,
    unit: String,
}

pub(crate) fn run(run: &mut Run<'_>, program: &Path) {
    let (redis, postgres) = (RedisServer::start(), PostgresServer::start());
    let mut command = Command::new(program);
    command.args(["--redis", &redis.url(), "--postgres", &postgres.url()]);
    if run.quick {
        command.arg("--quick");
    }
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Line { peer, figure, value, unit } = serde_json::from_slice(line).unwrap();
        let unit = match unit.as_str() {
            "s" => Unit::Seconds,
            "/s" => Unit::PerSecond,
            "B" => Unit::Bytes,
            "%" => Unit::Percent,
            _ => Unit::Ratio,
        };
        run.report.add(&peer, Store::None, &figure, value, unit, None);
    }
}
