//! Raft clusters in one process, over TCP on this machine, with data directories that vanish with them.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use divider_core::{Group, Store};
use divider_raft::{RaftBuilder, RaftConfig, RaftStore};
use tempfile::TempDir;

/// A cluster of voters.
#[derive(Debug)]
pub struct Cluster {
    /// The voters; `None` where one has been stopped.
    pub stores: Vec<Option<RaftStore>>,
    addresses: Vec<String>,
    directories: Vec<TempDir>,
    configure: fn(&mut RaftConfig),
}

/// Where three voters live that are processes: an address and a directory for each.
#[derive(Debug)]
pub struct Voters {
    addresses: Vec<String>,
    /// Where they are reached, which is elsewhere where something stands before them.
    reached: Vec<String>,
    directories: Vec<TempDir>,
}

impl Voters {
    /// All on this machine's own address.
    ///
    /// # Panics
    /// Where there are no free ports, or no room for directories.
    pub fn here() -> Self {
        Self::at(free_addresses(3))
    }

    /// One at each of these addresses.
    ///
    /// # Panics
    /// Where there is no room for directories.
    pub fn at(addresses: Vec<String>) -> Self {
        let places = vec![std::env::temp_dir(); addresses.len()];
        Self::behind(addresses.clone(), addresses, &places)
    }

    /// One at each of the first addresses, reached at the second, with its directory in one of these.
    ///
    /// # Panics
    /// Where there is no room for directories.
    pub fn behind(addresses: Vec<String>, reached: Vec<String>, places: &[PathBuf]) -> Self {
        let directories = places.iter().map(|place| TempDir::new_in(place).expect("a directory")).collect();
        Self { addresses, reached, directories }
    }

    /// What a voter is started with, for the first time or again from its directory.
    pub fn url(&self, at: usize) -> String {
        let (directory, address) = (self.directories[at].path().display(), &self.addresses[at]);
        let (reached, seeds) = (&self.reached[at], self.reached.join(","));
        format!("raft:{directory}?name=voter-{at}&listen={address}&advertise={reached}&seeds={seeds}&plaintext")
    }

    /// What a client of them is started with.
    pub fn client_url(&self) -> String {
        format!("raft:?role=client&seeds={}&plaintext", self.reached.join(","))
    }
}

/// Addresses on this machine that nobody listens at.
///
/// # Panics
/// Where there are none.
pub fn free_addresses(count: usize) -> Vec<String> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    bound.iter().map(|listener| listener.local_addr().expect("an address").to_string()).collect()
}

impl Cluster {
    /// Starts this many voters at the same time, and waits until all have joined. Their files are in memory, where the
    /// system has such a place: what dies here is a part of this process, so nothing depends on a disk, and a test of
    /// what the members do is none of how long the disk takes.
    ///
    /// # Panics
    /// Where they do not come together.
    pub async fn start(count: usize) -> Self {
        Self::start_with(count, |_| {}).await
    }

    /// As [`start`](Self::start), with settings of its own.
    ///
    /// # Panics
    /// Where they do not come together.
    pub async fn start_with(count: usize, configure: fn(&mut RaftConfig)) -> Self {
        let memory = Some(PathBuf::from("/dev/shm")).filter(|memory| memory.is_dir());
        Self::start_in(&memory.unwrap_or_else(std::env::temp_dir), count, configure).await
    }

    /// As [`start`](Self::start), on the disk.
    ///
    /// # Panics
    /// Where they do not come together.
    pub async fn on_disk(count: usize) -> Self {
        Self::start_in(&std::env::temp_dir(), count, |_| {}).await
    }

    async fn start_in(place: &Path, count: usize, configure: fn(&mut RaftConfig)) -> Self {
        let addresses = free_addresses(count);
        let directories = (0..count).map(|_| TempDir::new_in(place).expect("a directory")).collect();
        let mut cluster = Self { stores: Vec::new(), addresses, directories, configure };
        cluster.stores = (0..count).map(|at| Some(cluster.build(at))).collect();
        let opening: Vec<_> = cluster.stores.iter().flatten().map(|store| store.open()).collect();
        for opened in futures_util::future::join_all(opening).await {
            opened.expect("a voter joins");
        }
        cluster.wait_for_voters(count).await;
        cluster
    }

    fn builder(&self, at: usize) -> RaftBuilder {
        let builder = RaftStore::builder(self.directories[at].path(), Group::new("/test/").expect("a valid group"))
            .name(format!("node-{at}"));
        let builder = builder.expect("a valid name");
        let builder = builder.listen(&self.addresses[at]).seeds(&self.addresses).plaintext();
        builder.configure(self.configure)
    }

    /// A voter of the cluster, not yet opened.
    ///
    /// # Panics
    /// Never.
    pub fn build(&self, at: usize) -> RaftStore {
        self.builder(at).build().expect("a valid configuration")
    }

    /// A client of the cluster, not yet opened.
    ///
    /// # Panics
    /// Never.
    pub fn client(&self) -> RaftStore {
        let builder = RaftStore::client(&self.addresses, Group::new("/test/").expect("a valid group")).plaintext();
        builder.build().expect("a valid configuration")
    }

    /// The voter at a place.
    ///
    /// # Panics
    /// Where it has been stopped.
    pub fn store(&self, at: usize) -> &RaftStore {
        self.stores[at].as_ref().expect("a running voter")
    }

    /// Where the leader of Raft is.
    ///
    /// # Panics
    /// Where there is none after ten seconds.
    pub async fn leader(&self) -> usize {
        for _ in 0..500 {
            let leads = |store: &Option<RaftStore>| store.as_ref().is_some_and(RaftStore::leads_raft);
            if let Some(at) = self.stores.iter().position(leads) {
                return at;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody leads");
    }

    /// Waits until this many vote.
    ///
    /// # Panics
    /// Where they do not after ten seconds.
    pub async fn wait_for_voters(&self, count: usize) {
        let store = self.stores.iter().flatten().next().expect("a running voter");
        for _ in 0..500 {
            if store.members().await.is_ok_and(|members| members.iter().filter(|(_, votes)| *votes).count() == count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{count} voters do not come together: {:?}", store.members().await);
    }

    /// Drops a voter as it stands, without a word to the others.
    pub fn kill(&mut self, at: usize) {
        self.stores[at] = None;
    }

    /// Starts a voter again from its directory.
    ///
    /// # Panics
    /// Where it does not come back.
    pub async fn restart(&mut self, at: usize) {
        self.stores[at] = None;
        let store = self.build(at);
        store.open().await.expect("a voter comes back");
        self.stores[at] = Some(store);
    }

    /// The data directory of a voter.
    pub fn directory(&self, at: usize) -> &std::path::Path {
        self.directories[at].path()
    }

    /// Where a voter listens.
    pub fn address(&self, at: usize) -> &str {
        &self.addresses[at]
    }
}
