//! What differs between the stores that fleets run on.

use std::time::Duration;

use divider_core::{Group, Store};
use divider_postgres::PostgresStore;
use divider_raft::RaftStore;
use divider_redis::RedisStore;

use crate::{postgres::PostgresServer, raft::Voters, redis::RedisServer};

/// A place where a group can be kept, with all that a node needs to get there.
pub trait TestBackend: Send + Sized + 'static {
    /// How it is called in figures.
    const NAME: &'static str;
    /// How long it may take until somebody leads again, where a leader's machine or network has failed.
    const ELECTION: Duration = Duration::ZERO;
    /// Median and 99th percentile from an add to the start that are still usual on a busy machine.
    const LATENCY: (Duration, Duration);

    /// A new one, empty.
    fn start() -> Self;

    /// How much it has been asked for since it began, where it counts.
    fn asked(&self) -> Option<f64> {
        None
    }

    /// Where the node in this slot finds it. Two living nodes never share a slot, and the lowest that is free is taken.
    fn url(&self, slot: usize) -> String;

    /// The format that a group is written in.
    fn format(&self, group: &Group) -> u16;
}

/// The format of the group that the store is of.
fn format(store: &impl Store) -> u16 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        store.open().await.expect("the store is there");
        store.scan(None).await.expect("the store answers").group.format
    })
}

/// A store with a server of its own, which can fail by itself.
pub trait Server: TestBackend {
    /// One that comes back with everything that it has acknowledged.
    fn start_durable() -> Self;

    /// One that takes connections from other machines. Called on a thread in its network.
    fn start_for_others() -> Self;

    /// The port that it listens at.
    fn port(&self) -> u16;

    /// As [`url`](TestBackend::url), by way of another address.
    fn url_by(&self, host: &str, port: u16) -> String;

    /// Ends it at once.
    fn kill9(&mut self);

    /// Asks it to end, and waits until it has.
    fn stop(&mut self);

    /// Starts it again, after ending it if it still runs.
    fn restart(&mut self);

    /// Whether it takes requests.
    fn is_up(&self) -> bool;

    /// Stops it in its tracks.
    fn freeze(&self);

    /// Lets it go on.
    fn thaw(&self);

    /// Cuts the connections that hints come by, and returns how many there were.
    fn cut_hints(&self) -> u64;

    /// Cuts all connections, and returns how many there were.
    fn cut_all(&self) -> u64;

    /// Cuts one connection, whichever the number says, if there is any.
    fn cut_one(&self, which: u64) -> bool;
}

impl TestBackend for RedisServer {
    const NAME: &'static str = "redis";
    const LATENCY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(25));

    fn start() -> Self {
        Self::start()
    }

    fn asked(&self) -> Option<f64> {
        let info = self.cli(&["INFO", "stats"]);
        let count = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        Some(count.and_then(|count| count.trim().parse().ok()).expect("Redis counts its commands"))
    }

    fn url(&self, _: usize) -> String {
        Self::url(self)
    }

    fn format(&self, group: &Group) -> u16 {
        format(&RedisStore::builder(Self::url(self), group.clone()).build().expect("a valid URL"))
    }
}

impl Server for RedisServer {
    fn start_durable() -> Self {
        Self::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    fn start_for_others() -> Self {
        Self::with(&["--bind", "0.0.0.0", "--protected-mode", "no"])
    }

    fn port(&self) -> u16 {
        Self::port(self)
    }

    fn url_by(&self, host: &str, port: u16) -> String {
        format!("redis://{host}:{port}")
    }

    fn kill9(&mut self) {
        Self::kill9(self);
    }

    fn stop(&mut self) {
        Self::stop(self);
    }

    fn restart(&mut self) {
        Self::restart(self);
    }

    fn is_up(&self) -> bool {
        Self::is_up(self)
    }

    fn freeze(&self) {
        Self::freeze(self);
    }

    fn thaw(&self) {
        Self::thaw(self);
    }

    fn cut_hints(&self) -> u64 {
        self.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]).parse().expect("Redis counts whom it has cut")
    }

    fn cut_all(&self) -> u64 {
        let others = self.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        self.cut_hints() + others.parse::<u64>().expect("Redis counts whom it has cut")
    }

    fn cut_one(&self, which: u64) -> bool {
        let list = self.cli(&["CLIENT", "LIST"]);
        // One of them is who asks.
        let clients: Vec<_> = list.lines().filter(|line| !line.contains("cmd=client")).collect();
        let Some(at) = which.checked_rem(clients.len() as u64) else { return false };
        let client = clients[usize::try_from(at).expect("small")];
        let id = client.split(' ').find_map(|field| field.strip_prefix("id=")).expect("clients have ids");
        self.cli(&["CLIENT", "KILL", "ID", id]) == "1"
    }
}

impl TestBackend for PostgresServer {
    const NAME: &'static str = "postgres";
    const LATENCY: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(100));

    fn start() -> Self {
        Self::with(&["shared_preload_libraries=pg_stat_statements"])
    }

    // Each statement is counted here when it ends. The server's own count of transactions is up to 10 s behind.
    fn asked(&self) -> Option<f64> {
        self.psql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements");
        let count = self.psql("SELECT sum(calls) FROM pg_stat_statements WHERE toplevel");
        Some(count.parse().expect("PostgreSQL counts its statements"))
    }

    fn url(&self, _: usize) -> String {
        Self::url(self)
    }

    fn format(&self, group: &Group) -> u16 {
        format(&PostgresStore::builder(Self::url(self), group.clone()).build().expect("a valid URL"))
    }
}

/// Ends connections of nodes as an administrator would. Returns how many.
fn terminate(server: &PostgresServer, which: &str) -> u64 {
    let ended = server.psql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'divider%' AND {which}"
    ));
    ended.lines().filter(|line| *line == "t").count() as u64
}

impl Server for PostgresServer {
    fn start_durable() -> Self {
        Self::start()
    }

    fn start_for_others() -> Self {
        let server = Self::with(&["listen_addresses=*"]);
        server.trust("10.0.0.0/8");
        server
    }

    fn port(&self) -> u16 {
        Self::port(self)
    }

    fn url_by(&self, host: &str, port: u16) -> String {
        format!("postgres://postgres@{host}:{port}/postgres?sslmode=disable")
    }

    fn kill9(&mut self) {
        Self::kill9(self);
    }

    fn stop(&mut self) {
        Self::stop(self);
    }

    fn restart(&mut self) {
        Self::restart(self);
    }

    fn is_up(&self) -> bool {
        Self::is_up(self)
    }

    fn freeze(&self) {
        Self::freeze(self);
    }

    fn thaw(&self) {
        Self::thaw(self);
    }

    fn cut_hints(&self) -> u64 {
        // Whoever listens also leads, or would like to.
        terminate(self, "(query LIKE '%poll(%' OR query LIKE '%LISTEN%')")
    }

    fn cut_all(&self) -> u64 {
        terminate(self, "true")
    }

    fn cut_one(&self, which: u64) -> bool {
        terminate(self, &format!("true ORDER BY md5(pid::text || '{which}') LIMIT 1")) == 1
    }
}

/// The first three nodes are voters, each with its disk; the others are clients of them.
impl TestBackend for Voters {
    const NAME: &'static str = "raft";
    const ELECTION: Duration = Duration::from_millis(1300);
    const LATENCY: (Duration, Duration) = (Duration::from_millis(15), Duration::from_millis(100));

    fn start() -> Self {
        Self::here()
    }

    fn url(&self, slot: usize) -> String {
        if slot < 3 { Self::url(self, slot) } else { self.client_url() }
    }

    fn format(&self, group: &Group) -> u16 {
        let client = RaftStore::from_url(&self.client_url(), group.clone()).expect("a valid URL");
        format(&client.build().expect("a valid configuration"))
    }
}
