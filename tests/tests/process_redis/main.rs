//! Real `worker` processes on a real `redis-server`: what the README claims of Redis, shown.
//!
//! Each test prints what it measured on lines that begin with `figure:` (`cargo nextest run --release -p divider-tests
//! --test process_redis --no-capture`). The bounds asserted for times are the promised ones where a lease decides, and
//! several times the usual where the machine's speed does.

mod chaos;
mod cost;
mod deaths;
mod division;
mod drain;
mod latency;
mod outages;
mod partitions;

use std::{
    sync::MutexGuard,
    time::{Duration, Instant},
};

use divider_tests::{
    history::ProcessId,
    process::{Fleet, alone},
    redis::RedisServer,
};

/// A server, a fleet on it, and the machine for oneself.
struct Bed {
    fleet: Fleet,
    server: RedisServer,
    /// When the test began.
    began: Instant,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    fn new(args: &[&str]) -> Self {
        Self::on(RedisServer::start, args)
    }

    fn on(server: impl FnOnce() -> RedisServer, args: &[&str]) -> Self {
        let alone = alone();
        let server = server();
        Self { fleet: Fleet::new(&server.url(), "/process/", args), server, began: Instant::now(), _alone: alone }
    }

    /// As many nodes as arguments, in a group that has got over its beginning: grants are held back for the first lease
    /// of a group, since its store may be one that has forgotten it.
    fn nodes(&mut self, count: usize, args: &[&str]) -> Vec<ProcessId> {
        let ids = self.fleet.spawn_ready(count, args);
        self.settle(ids[0]);
        ids
    }

    fn settle(&mut self, by: ProcessId) {
        self.fleet.call(by, "add warm-up");
        self.fleet.wait_all_run(1, Duration::from_secs(20));
        self.fleet.call(by, "remove warm-up");
        self.fleet.wait("the first key to be gone", Duration::from_secs(5), |_, said| {
            said.history.claims("warm-up").all(|claim| claim.ended.is_some())
        });
    }

    /// Adds keys, and waits until each runs in one place beside the one that the group began with.
    fn add(&mut self, by: ProcessId, keys: usize, limit: Duration) {
        self.fleet.call(by, &format!("keys {keys}"));
        self.fleet.wait_all_run(keys, limit);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.fleet.check();
        }
        println!("figure: took {:.1} s", self.began.elapsed().as_secs_f64());
    }
}

/// Sleeps for some milliseconds.
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Prints what was measured.
fn figure(what: &str, values: &mut [Duration]) {
    use divider_tests::history::quantile;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "figure: {what}: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms ({} values)",
        ms(quantile(values, 0.5)),
        ms(quantile(values, 0.99)),
        ms(quantile(values, 1.0)),
        values.len()
    );
}
