//! The Raft backend keeps every promise of the suite: on three voters in this process, asked through each of them and
//! through clients.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use divider_conformance::Backend;
use divider_core::Group;
use divider_raft::{Data, RaftConfig, RaftStore};
use divider_tests::raft::Cluster;
use tokio::sync::OnceCell;

/// The cluster of this process: its members have threads of their own, so every test's runtime can use it.
static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
/// Handles go round the members and a client.
static NEXT: AtomicUsize = AtomicUsize::new(0);

struct Raft(&'static Cluster);

impl Raft {
    async fn new() -> Self {
        // The suite keeps a machine busy, and some checks want the leader to stay. It asks what the store means, not
        // what survives.
        let patient = |config: &mut RaftConfig| {
            config.data = Data::Memory;
            config.election = (Duration::from_millis(600), Duration::from_millis(1200));
            config.call_time_limit = Duration::from_secs(5);
        };
        Self(CLUSTER.get_or_init(|| Cluster::start_with(3, patient)).await)
    }
}

impl Backend for Raft {
    type Store = RaftStore;

    async fn store(&self, group: &Group) -> RaftStore {
        match NEXT.fetch_add(1, Ordering::Relaxed) % 4 {
            3 => self.0.client().group(group.as_str()).unwrap(),
            at => self.0.store(at).group(group.as_str()).unwrap(),
        }
    }

    fn leads_by_lease(&self) -> bool {
        false
    }
}

divider_conformance::conformance!(Raft::new().await);
