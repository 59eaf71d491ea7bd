//! On what the figures were taken.

use std::{
    fs,
    io::{Seek as _, Write as _},
    process::Command,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use divider_tests::{history::quantile, postgres};

/// What it is, and what it says of itself.
pub(crate) fn describe() -> Vec<(&'static str, String)> {
    vec![
        ("processor", format!("{}, {} cores", processor(), available_parallelism().map_or(0, usize::from))),
        ("system", first_line("/proc/sys/kernel/osrelease")),
        ("load when it began", first_line("/proc/loadavg")),
        ("disk", format!("{:.2?} for an `fdatasync` of 4 KiB (median)", sync())),
        ("redis", format!("{}, keeps nothing on disk", says(Command::new("redis-server").arg("--version")))),
        ("postgres", format!("{}, commits are on disk before they count", says(&mut postgres::version()))),
        ("raft", "three voters, an entry is on two disks before it counts".to_owned()),
    ]
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    model.unwrap_or("unknown").to_owned()
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
}

fn says(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "not installed".to_owned())
}

/// How long the disk takes to have a little for good.
fn sync() -> Duration {
    let mut file = tempfile::tempfile().unwrap();
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let began = Instant::now();
            file.rewind().and_then(|()| file.write_all(&[0; 4096])).and_then(|()| file.sync_data()).unwrap();
            began.elapsed()
        })
        .collect();
    quantile(&mut times, 0.5)
}
