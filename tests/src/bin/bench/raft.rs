//! What the Raft backend costs by itself: three voters, every entry on disk before it is acknowledged.

use std::time::{Duration, Instant};

use divider_core::{Group, Op, Store as _, Work};
use divider_raft::RaftStore;
use divider_support::ops::joined;
use divider_tests::{
    process::Fleet,
    raft::{Cluster, Voters},
};
use futures_util::future::join_all;

use crate::{
    Run,
    memory::on_a_runtime,
    report::{Store, Unit},
};

/// Three voters that are processes, and callers in a fourth.
pub(crate) fn processes(run: &mut Run<'_>) {
    on_a_runtime(async {
        let voters = Voters::here();
        let mut fleet = Fleet::new("raft:", "/process/", &[]);
        let ids: Vec<_> = (0..3).map(|at| fleet.spawn_at(&voters.url(at), &[])).collect();
        fleet.wait_ready(&ids);
        // Not the workers' group: nobody divides what is added.
        let group = Group::new("/figures/").unwrap();
        let client = RaftStore::from_url(&voters.client_url(), group).unwrap().build().unwrap();
        client.open().await.unwrap();
        let client = std::slice::from_ref(&client);
        measure(run, "voters are processes: 1 caller at a client, one op", client, 1, 1).await;
        measure(run, "voters are processes: 64 callers at a client, one op", client, 64, 1).await;
        measure(run, "voters are processes: 64 callers at a client, 64 ops", client, 64, 64).await;
    });
}

/// Lets callers apply batches for a while: how many ops that is in a second.
async fn measure(run: &mut Run<'_>, what: &str, stores: &[RaftStore], callers: usize, batch: usize) {
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
                    let work = Work::new(format!("{caller}/{}", (round * batch + at) % 5000)).unwrap();
                    Op::Add(work.weight(1 + (round as u32) % 9))
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
    let rate = (took.len() * batch) as f64 / began.elapsed().as_secs_f64();
    run.report.add(what, Store::Raft, "ops", rate, Unit::PerSecond, None);
    run.report.times(what, Store::Raft, &mut took, &[("a call, p50", 0.5, None), ("a call, p99", 0.99, None)]);
}

/// Three voters in this process.
pub(crate) fn callers(run: &mut Run<'_>) {
    on_a_runtime(async {
        let cluster = Cluster::on_disk(3).await;
        let leader = cluster.leader().await;
        let here = [cluster.store(leader).clone()];
        let there = [cluster.store((leader + 1) % 3).clone(), cluster.store((leader + 2) % 3).clone()];
        let client = cluster.client();
        client.open().await.unwrap();
        measure(run, "1 caller at the leader, one op", &here, 1, 1).await;
        measure(run, "64 callers at the leader, one op", &here, 64, 1).await;
        measure(run, "64 callers at the followers, one op", &there, 64, 1).await;
        measure(run, "64 callers at a client, one op", std::slice::from_ref(&client), 64, 1).await;
        measure(run, "1 caller at the leader, 512 ops", &here, 1, 512).await;
        measure(run, "64 callers at the leader, 64 ops", &here, 64, 64).await;

        let session = joined(&client).await;
        let began = Instant::now();
        let renewals = (0..200).map(|_| async {
            for _ in 0..20 {
                client.renew(session).await.unwrap();
            }
        });
        join_all(renewals).await;
        let rate = 4000.0 / began.elapsed().as_secs_f64();
        run.report.add("200 sessions of a client", Store::Raft, "renewals", rate, Unit::PerSecond, None);
    });
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

/// One member with a million keys, and its snapshot.
pub(crate) fn a_million_keys(run: &mut Run<'_>) {
    const CASE: &str = "one member, 1,000,000 keys";
    on_a_runtime(async {
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
                let add = |at: &usize| Op::Add(Work::new(format!("key-{at}")).unwrap());
                for batch in keys.chunks(512) {
                    let ops: Vec<Op> = batch.iter().map(add).collect();
                    while store.apply(&ops).await.is_err() {}
                }
            })
        });
        join_all(callers).await;
        run.report.time(CASE, Store::Raft, "added", began.elapsed(), None);
        run.report.add(CASE, Store::Raft, "memory of a key", (resident() - before) / 1e6, Unit::Bytes, None);
        let began = Instant::now();
        store.snapshot().await;
        let snapshot = directory.path().join("snapshot");
        while !snapshot.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        run.report.time(CASE, Store::Raft, "its snapshot", began.elapsed(), None);
        let size = snapshot.metadata().unwrap().len() as f64;
        run.report.add(CASE, Store::Raft, "size of the snapshot", size, Unit::Bytes, None);
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.close().await;
        let began = Instant::now();
        let store = build();
        store.open().await.unwrap();
        run.report.time(CASE, Store::Raft, "started again", began.elapsed(), None);
        assert_eq!(store.stats().await.unwrap().registered, 1_000_000);
    });
}

/// How long a cluster is away when its leader dies.
pub(crate) fn away(run: &mut Run<'_>) {
    let mut times = on_a_runtime(async {
        let mut cluster = Cluster::on_disk(3).await;
        let client = cluster.client();
        client.open().await.unwrap();
        let mut times = Vec::new();
        for _ in 0..20 {
            let leader = cluster.leader().await;
            client.apply(&[Op::Rebalance]).await.unwrap();
            cluster.kill(leader);
            let began = Instant::now();
            while client.apply(&[Op::Rebalance]).await.is_err() {}
            times.push(began.elapsed());
            cluster.restart(leader).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        times
    });
    let wanted = [("least", 0.0, None), ("median", 0.5, None), ("most", 1.0, None)];
    run.report.times("away when the leader dies", Store::Raft, &mut times, &wanted);
}
