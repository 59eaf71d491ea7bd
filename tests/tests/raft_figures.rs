//! What the Raft backend costs: three voters in one process, every entry on disk before it is acknowledged. Run with
//! `cargo test -p divider-tests --release --test raft_figures -- --ignored --nocapture`.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use divider_core::{Group, Op, SessionId, Store, Work};
use divider_raft::RaftStore;
use divider_tests::{
    process::Fleet,
    raft::{Cluster, Voters},
};
use futures_util::future::join_all;

/// Three voters that are processes, and callers in a fourth.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn figures_of_processes() {
    let voters = Voters::here();
    let mut fleet = Fleet::new("raft:", "/process/", &[]);
    let ids: Vec<_> = (0..3).map(|at| fleet.spawn_at(&voters.url(at), &[])).collect();
    fleet.wait_ready(&ids);
    // Not the workers' group: nobody divides what is added.
    let group = Group::new("/figures/").unwrap();
    let client = RaftStore::from_url(&voters.client_url(), group).unwrap().build().unwrap();
    client.open().await.unwrap();
    let client = std::slice::from_ref(&client);
    measure("processes: 1 caller at a client, one op", client, 1, 1).await;
    measure("processes: 64 callers at a client, one op", client, 64, 1).await;
    measure("processes: 64 callers at a client, 64 ops", client, 64, 64).await;
}

/// Lets callers apply batches for a while, and prints how many ops that was in a second.
async fn measure(what: &str, stores: &[RaftStore], callers: usize, batch: usize) {
    let time = Duration::from_secs(4);
    let began = Instant::now();
    let work = (0..callers).map(|caller| {
        let store = stores[caller % stores.len()].clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            for round in 0.. {
                if began.elapsed() > time {
                    break;
                }
                let work = |at| {
                    Op::Add(
                        Work::new(format!("{caller}/{}", (round * batch + at) % 5000))
                            .unwrap()
                            .weight(1 + (round as u32) % 9),
                    )
                };
                let ops: Vec<Op> = (0..batch).map(work).collect();
                let sent = Instant::now();
                store.apply(&ops).await.unwrap();
                took.push(sent.elapsed());
            }
            took
        })
    });
    let mut took: Vec<Duration> = join_all(work).await.into_iter().flat_map(|took| took.unwrap()).collect();
    let elapsed = began.elapsed();
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    println!(
        "{what:<44} {:>9.0} ops/s, a call p50 {:.2?}, p99 {:.2?}",
        (took.len() * batch) as f64 / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn figures() {
    let cluster = Cluster::on_disk(3).await;
    let leader = cluster.leader().await;
    let here = [cluster.store(leader).clone()];
    let there = [cluster.store((leader + 1) % 3).clone(), cluster.store((leader + 2) % 3).clone()];
    let client = cluster.client();
    client.open().await.unwrap();
    measure("1 caller at the leader, one op", &here, 1, 1).await;
    measure("64 callers at the leader, one op", &here, 64, 1).await;
    measure("64 callers at the followers, one op", &there, 64, 1).await;
    measure("64 callers at a client, one op", std::slice::from_ref(&client), 64, 1).await;
    measure("1 caller at the leader, 512 ops", &here, 1, 512).await;
    measure("64 callers at the leader, 64 ops", &here, 64, 64).await;

    let session = SessionId::fresh();
    let node = divider_core::NodeId::new("node").unwrap();
    let seen = client.apply(&[]).await.unwrap().revision;
    client
        .apply(&[Op::Join {
            session,
            node,
            affinity: 1,
            capacity: None,
            lease_ms: 3000,
            seen,
            reads: divider_core::format::NEWEST,
        }])
        .await
        .unwrap();
    let began = Instant::now();
    let renewals = (0..200).map(|_| async {
        for _ in 0..20 {
            client.renew(session).await.unwrap();
        }
    });
    join_all(renewals).await;
    println!("{:<44} {:>9.0} renewals/s", "200 sessions of a client", 4000.0 / began.elapsed().as_secs_f64());
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn a_million_keys() {
    let directory = tempfile::TempDir::new().unwrap();
    let build = || RaftStore::builder(directory.path(), Group::new("/figures/").unwrap()).build().unwrap();
    let store = build();
    store.open().await.unwrap();
    let before = resident();
    let began = Instant::now();
    let keys: Vec<usize> = (0..1_000_000).collect();
    let callers = keys.chunks(125_000).map(|keys| {
        let (store, keys) = (store.clone(), keys.to_vec());
        tokio::spawn(async move {
            for batch in keys.chunks(512) {
                let ops: Vec<Op> = batch.iter().map(|at| Op::Add(Work::new(format!("key-{at}")).unwrap())).collect();
                while store.apply(&ops).await.is_err() {}
            }
        })
    });
    join_all(callers).await;
    println!("1,000,000 keys added in {:?}", began.elapsed());
    println!("{} bytes of memory a key", (resident() - before) / 1_000_000);
    let began = Instant::now();
    store.snapshot().await;
    let snapshot = directory.path().join("snapshot");
    while !snapshot.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("snapshot in {:?}, {} MB", began.elapsed(), snapshot.metadata().unwrap().len() >> 20);
    tokio::time::sleep(Duration::from_secs(1)).await;
    store.close().await;
    let began = Instant::now();
    let store = build();
    store.open().await.unwrap();
    println!("started again in {:?}", began.elapsed());
    assert_eq!(store.stats().await.unwrap().registered, 1_000_000);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn how_long_a_cluster_is_away_when_its_leader_dies() {
    let mut cluster = Cluster::on_disk(3).await;
    let client = cluster.client();
    client.open().await.unwrap();
    let mut away = Vec::new();
    for _ in 0..20 {
        let leader = cluster.leader().await;
        client.apply(&[Op::Rebalance]).await.unwrap();
        cluster.kill(leader);
        let began = Instant::now();
        while client.apply(&[Op::Rebalance]).await.is_err() {}
        away.push(began.elapsed());
        cluster.restart(leader).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    away.sort();
    println!("away for {:?} at the least, {:?} in the middle, {:?} at the most", away[0], away[10], away[19]);
}
