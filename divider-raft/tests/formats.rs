//! Members of the version before beside members of the next one.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, path::Path, time::Duration};

use divider_core::{Group, Op, Store, StoreError, Work};
use divider_raft::{Data, RaftBuilder, RaftStore};
use tempfile::TempDir;

/// The newest format that programs of before read.
const OLD: u8 = 1;
const NEW: u8 = 2;

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Where a member lives, whichever program runs there.
struct Home {
    name: &'static str,
    address: String,
    directory: TempDir,
    seed: String,
}

impl Home {
    fn new(name: &'static str, seed: Option<&Home>) -> Self {
        let address = free_address();
        let seed = seed.map_or_else(|| address.clone(), |home| home.address.clone());
        Self { name, address, directory: TempDir::new().unwrap(), seed }
    }

    fn builder(&self, reads: u8) -> RaftBuilder {
        let builder = RaftStore::builder(self.directory.path(), Group::new("/test/").unwrap()).name(self.name).unwrap();
        let builder = builder.listen(&self.address).seeds([&self.seed]).plaintext();
        quick(builder, reads)
    }

    /// Starts a program there. Only the first one votes, so that the others can be away.
    async fn try_start(&self, reads: u8) -> Result<RaftStore, StoreError> {
        let builder = self.builder(reads);
        let builder = if self.address == self.seed { builder } else { builder.learner() };
        let store = builder.build().unwrap();
        match store.open().await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    async fn start(&self, reads: u8) -> RaftStore {
        self.try_start(reads).await.unwrap()
    }
}

fn quick(builder: RaftBuilder, reads: u8) -> RaftBuilder {
    builder.configure(|config| {
        config.heartbeat = Duration::from_millis(30);
        config.election = (Duration::from_millis(100), Duration::from_millis(150));
        config.open_time_limit = Duration::from_secs(20);
        config.reads = reads;
    })
}

async fn add(store: &RaftStore, key: &str) {
    store.apply(&[Op::Add(Work::new(key).unwrap())]).await.unwrap();
}

async fn keys(store: &RaftStore) -> u64 {
    store.stats().await.unwrap().registered
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_steps_up_when_all_members_read_more_and_can_be_rolled_back_before() {
    let voter = Home::new("voter", None);
    let learner = Home::new("learner", Some(&voter));
    let (one, two) = (voter.start(OLD).await, learner.start(OLD).await);
    add(&one, "a").await;
    assert_eq!(one.format(), Some(1));
    two.close().await;
    one.close().await;

    // The voter reads more, and the learner is away.
    let one = voter.start(NEW).await;
    add(&one, "b").await;
    assert_eq!(one.step_up().await.unwrap(), 1, "a member that is away reads no more than that");
    let two = learner.start(NEW).await;
    one.snapshot().await;
    two.snapshot().await;

    // The way back, with what was written meanwhile.
    two.close().await;
    let two = learner.start(OLD).await;
    one.close().await;
    let one = voter.start(OLD).await;
    add(&one, "c").await;
    assert_eq!((keys(&one).await, keys(&two).await), (3, 3));
    assert_eq!(two.step_up().await.unwrap(), 1);
    one.close().await;
    two.close().await;

    // And forward.
    let (one, two) = (voter.start(NEW).await, learner.start(NEW).await);
    assert_eq!(one.format(), Some(1), "a day has not passed");
    two.close().await;
    assert_eq!(one.step_up().await.unwrap(), 2, "the member that is away has said that it reads that");
    assert_eq!((one.step_up().await.unwrap(), one.format()), (2, Some(2)));
    add(&one, "d").await;
    one.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_too_old_for_what_is_written_is_told_so_and_keeps_its_disk() {
    let voter = Home::new("voter", None);
    let learner = Home::new("learner", Some(&voter));
    let one = voter.start(OLD).await;
    learner.start(OLD).await.close().await;
    one.close().await;
    let one = voter.start(NEW).await;
    add(&one, "a").await;
    learner.start(NEW).await.close().await;
    assert_eq!(one.step_up().await.unwrap(), 2);
    add(&one, "b").await;

    let impatient = |home: &Home, reads| {
        home.builder(reads).learner().configure(|config| config.open_time_limit = Duration::from_secs(2)).build()
    };
    // It was away while the others stepped up; or it has never been there.
    for home in [&learner, &Home::new("newcomer", Some(&voter))] {
        let late = impatient(home, OLD).unwrap();
        match late.open().await {
            Err(StoreError::TooOld { needs: 2, reads: 1 }) => {}
            other => panic!("{} was not told that it is too old: {other:?}", home.name),
        }
        late.close().await;
    }
    // A client reads nothing of what is written.
    let client = RaftStore::client([&voter.address], Group::new("/test/").unwrap()).plaintext();
    let client = quick(client, OLD).build().unwrap();
    client.open().await.unwrap();
    assert_eq!(keys(&client).await, 2);

    let two = learner.start(NEW).await;
    assert_eq!((keys(&two).await, two.format()), (2, Some(2)));
    two.close().await;
    // What it has on its disk now says so by itself.
    let error = learner.try_start(OLD).await.unwrap_err().to_string();
    assert!(error.contains("newer version") && error.contains("Nothing is damaged"), "{error}");
    let two = learner.start(NEW).await;
    assert_eq!(keys(&two).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_on_its_own_steps_up_by_itself() {
    let directory = TempDir::new().unwrap();
    let start = async |reads| {
        let builder =
            RaftStore::builder(Path::new(directory.path()), Group::new("/test/").unwrap()).name("alone").unwrap();
        let builder = quick(builder, reads).configure(|config| config.step_after = Duration::ZERO);
        let store = builder.build().unwrap();
        store.open().await.unwrap();
        add(&store, "a").await;
        store
    };
    let store = start(OLD).await;
    assert_eq!(store.format(), Some(1));
    store.close().await;
    let store = start(NEW).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.format() != Some(2) {
        assert!(std::time::Instant::now() < deadline, "it is still written in {:?}", store.format());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One that is new begins in what it reads.
    let other = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).build().unwrap();
    other.open().await.unwrap();
    add(&other, "a").await;
    assert_eq!(other.format(), Some(2));
}
