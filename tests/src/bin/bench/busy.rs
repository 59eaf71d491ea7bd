//! A new leader takes over a large group in which much changes all the time.

use std::time::{Duration, Instant};

use divider_core::{Divider, Group, MemoryStore, Node, Op, Work};
use divider_postgres::PostgresStore;
use divider_redis::RedisStore;
use divider_support::{ops::leading, wait::PATIENCE};
use divider_tests::{postgres::prepared, raft::Cluster, redis::RedisServer};

use crate::{
    Run,
    memory::on_a_runtime,
    report::{Store, Unit},
};

const KEYS: usize = 200_000;
const AT_ONCE: usize = 100;
/// How often so many change.
const EVERY: Duration = Duration::from_millis(10);

fn group() -> Group {
    Group::new("/busy/").unwrap()
}

/// Declares keys with another weight each time.
fn changes(from: usize, count: usize) -> Vec<Op> {
    let change = |at: usize| {
        let weight = u32::try_from(1 + at / KEYS % 7).unwrap();
        Op::Add(Work::new(format!("key-{}", at % KEYS)).unwrap().weight(weight))
    };
    (from..from + count).map(change).collect()
}

/// Makes changes, also where Raft elects another leader meanwhile.
async fn made(store: &impl divider_core::Store, ops: &[Op]) {
    let began = Instant::now();
    while let Err(error) = store.apply(ops).await {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
}

/// `other` is where the changes come from.
async fn first_decision<S: divider_core::Store>(run: &mut Run<'_>, of: Store, store: S, other: S) {
    // The hold that a new group begins with is none of the leader's work.
    let (session, term) = leading(&store).await;
    store.resign(session, term).await.unwrap();
    store.apply(&[Op::End { session }]).await.unwrap();
    other.open().await.unwrap();
    for from in (0..KEYS).step_by(500) {
        made(&other, &changes(from, 500)).await;
    }
    let (tell, mut seen) = tokio::sync::watch::channel(0);
    let busy = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        for round in 1.. {
            ticks.tick().await;
            made(&other, &changes(KEYS + round * AT_ONCE, AT_ONCE)).await;
            tell.send_replace(round * AT_ONCE);
        }
    });
    seen.changed().await.unwrap();

    let node = Node::builder(store).build().unwrap();
    let mut starts = node.start_processing();
    let leader = node.clone();
    let leads = tokio::spawn(async move {
        leader.leadership_changed(false).await;
        Instant::now()
    });
    let (began, before) = (Instant::now(), *seen.borrow());
    node.start().await.unwrap();
    starts.next().await.unwrap();
    let started = Instant::now();
    let rate = (*seen.borrow() - before) as f64 / began.elapsed().as_secs_f64();
    busy.abort();
    let case = "200,000 keys, 10,000 changes a second";
    let took = started - leads.await.unwrap();
    run.report.time(case, of, "a new leader's first decision", took, Some(Duration::from_secs(3)));
    run.report.add(case, of, "changes meanwhile", rate, Unit::PerSecond, None);
    node.cancel().await.unwrap();
}

pub(crate) fn memory(run: &mut Run<'_>) {
    let store = MemoryStore::new();
    on_a_runtime(first_decision(run, Store::Memory, store.clone(), store));
}

pub(crate) fn redis(run: &mut Run<'_>) {
    let server = RedisServer::start();
    let store = || RedisStore::builder(server.url(), group()).call_time_limit(PATIENCE).build().unwrap();
    on_a_runtime(first_decision(run, Store::Redis, store(), store()));
}

pub(crate) fn postgres(run: &mut Run<'_>) {
    on_a_runtime(async {
        let server = prepared(&[]).await;
        let store = || PostgresStore::builder(server.url(), group()).call_time_limit(PATIENCE).build().unwrap();
        first_decision(run, Store::Postgres, store(), store()).await;
    });
}

pub(crate) fn raft(run: &mut Run<'_>) {
    on_a_runtime(async {
        let cluster = Cluster::on_disk(3).await;
        // Where Raft is led, groups are led as well.
        let leader = cluster.leader().await;
        let (store, other) = (cluster.store(leader).clone(), cluster.store((leader + 1) % 3).clone());
        first_decision(run, Store::Raft, store, other).await;
    });
}
