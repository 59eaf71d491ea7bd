//! Three voters that are processes, on this machine or each in a network of its own.

use std::{sync::MutexGuard, time::Duration};

use divider_examples::line::Kind;
use divider_tests::{
    history::{ProcessId, quantile},
    netns::Netns,
    process::{Fleet, alone},
    raft::Voters,
};

/// A leader's own lease in Raft, the longest time after it, and one more round where two stood at once.
pub(crate) const ELECTION: Duration = Duration::from_millis(1300);
/// What may be added to a lease.
pub(crate) const SLACK: Duration = Duration::from_millis(500);
/// How long something may take that has no bound of its own.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Three voters, and whoever else there is.
pub(crate) struct Bed {
    pub(crate) fleet: Fleet,
    /// Which process each voter is.
    pub(crate) voters: [ProcessId; 3],
    /// The places of the voters, in order, and the hub for clients.
    pub(crate) network: Option<Netns>,
    homes: Voters,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    /// All on this machine's own address.
    pub(crate) fn new(args: &[&str]) -> Self {
        let alone = alone();
        Self::start_all(None, Voters::here(), args, alone)
    }

    /// Each in a network of its own.
    pub(crate) fn in_networks(args: &[&str]) -> Self {
        let alone = alone();
        let network = Netns::new(3);
        let addresses = (0..3).map(|at| format!("{}:7400", network.address(at))).collect();
        Self::start_all(Some(network), Voters::at(addresses), args, alone)
    }

    fn start_all(network: Option<Netns>, homes: Voters, args: &[&str], alone: MutexGuard<'static, ()>) -> Self {
        let fleet = Fleet::new("raft:", "/process/", args);
        let mut bed = Self { fleet, voters: [0; 3], network, homes, _alone: alone };
        for at in 0..3 {
            bed.start(at);
        }
        bed.fleet.wait_ready(&bed.voters);
        bed
    }

    /// Starts a voter, or starts it again from its directory.
    pub(crate) fn start(&mut self, at: usize) -> ProcessId {
        self.voters[at] = self.spawn(&self.homes.url(at), at);
        self.voters[at]
    }

    /// Starts a client, and waits until it has joined.
    pub(crate) fn client(&mut self) -> ProcessId {
        let client = self.spawn(&self.homes.client_url(), 3);
        self.fleet.wait_ready(&[client]);
        client
    }

    fn spawn(&mut self, url: &str, place: usize) -> ProcessId {
        match &self.network {
            Some(network) => self.fleet.spawn_in(network.command(place), url, &[]),
            None => self.fleet.spawn_at(url, &[]),
        }
    }

    /// Adds keys, and waits until each runs.
    pub(crate) fn add(&mut self, by: ProcessId, keys: usize) {
        self.fleet.call(by, &format!("keys {keys}"));
        self.fleet.wait_all_run(keys, SOON);
    }

    /// Adds a key, however often that takes: it is there when this returns.
    pub(crate) fn insist(&mut self, by: ProcessId, key: &str) {
        let command = format!("add {key}");
        while self.fleet.wait_call(by, &command, SOON).event == Kind::Error {
            pause(50);
        }
    }

    /// Which voter leads the group.
    pub(crate) fn leader(&self) -> usize {
        let leads = || self.fleet.leader().and_then(|leader| self.voters.iter().position(|id| *id == leader));
        self.fleet.wait("a voter to lead", SOON, |_, _| true);
        for _ in 0..200 {
            match leads() {
                Some(at) => return at,
                None => pause(50),
            }
        }
        panic!("no voter leads: {:?}", self.fleet.leader());
    }

    /// Waits until a process has been given something after the time.
    pub(crate) fn wait_share(&self, id: ProcessId, since: u64) {
        self.fleet.wait("the process to have keys again", SOON, |_, said| {
            let mut claims = said.history.keys().flat_map(|(_, claims)| claims.values());
            claims.any(|claim| claim.process == id && claim.started > since && claim.stopped.is_none())
        });
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.fleet.check();
        }
    }
}

/// Sleeps for some milliseconds.
pub(crate) fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Prints what was measured.
pub(crate) fn figure(what: &str, values: &mut [Duration]) {
    let [p50, p99, longest] = [0.5, 0.99, 1.0].map(|part| quantile(values, part).as_secs_f64() * 1e3);
    println!("figure: {what}: p50 {p50:.2} ms, p99 {p99:.2} ms, longest {longest:.2} ms ({} values)", values.len());
}
