//! The Raft backend against the ledger, and against what can happen to a cluster.

use std::time::{Duration, Instant};

use divider_core::{Group, Store, StoreError};
use divider_raft::{RaftConfig, RaftStore};
use divider_tests::{
    agree::{Expect, agree_with, kept, sequences},
    raft::Cluster,
};
use tempfile::TempDir;

const EXPECT: Expect = Expect { leases: false, hints: true };

fn alone(directory: &TempDir) -> RaftStore {
    // The machine may be busy.
    let patience = |config: &mut RaftConfig| config.call_time_limit = Duration::from_secs(10);
    RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).configure(patience).build().unwrap()
}

/// The files are in memory, where the system has such a place: what is compared here is none of how long a disk takes.
fn directory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_the_ledger_does() {
    let directory = directory();
    let store = alone(&directory);
    store.open().await.unwrap();
    sequences(240, EXPECT, async |name: String| store.group(name).unwrap()).await;
    store.close().await;
    assert!(matches!(store.stats().await, Err(StoreError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_the_ledger_does_where_a_store_once_did_not() {
    let directory = directory();
    let store = alone(&directory);
    store.open().await.unwrap();
    kept(EXPECT, async |name: String| store.group(name).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_and_a_client_agree_with_the_ledger() {
    let cluster = Cluster::start(3).await;
    let began = Instant::now();
    for at in 0..3 {
        let store = cluster.store(at).group(format!("/member-{at}/")).unwrap();
        agree_with(&store, at as u64 + 10, 375, EXPECT).await;
    }
    let client = cluster.client().group("/client/").unwrap();
    agree_with(&client, 20, 375, EXPECT).await;
    println!("1500 steps in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_restart() {
    use divider_core::{Op, Work};
    let directory = TempDir::new().unwrap();
    for round in 0..3_u64 {
        let store = alone(&directory);
        store.open().await.unwrap();
        assert_eq!(store.stats().await.unwrap().registered, round * 100);
        for at in 0..100 {
            store.apply(&[Op::Add(Work::new(format!("{round}/{at}")).unwrap())]).await.unwrap();
        }
        if round == 1 {
            store.snapshot().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        match round {
            0 => store.close().await,
            _ => drop(store),
        }
    }
}
