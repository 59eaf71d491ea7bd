//! What the PostgreSQL backend's calls cost. Run with
//! `cargo test -p divider-tests --release --test postgres_figures -- --ignored --nocapture`.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::{Claim, Divider, Group, Key, Node, NodeId, Op, Outcome, SessionId, Store, Token, Topic, Work};
use divider_postgres::{PostgresStore, migrate};
use divider_tests::postgres::PostgresServer;
use futures_util::{StreamExt, stream::SelectAll};

const KEYS: usize = 100_000;
const BATCH: usize = 512;
const NODES: usize = 10;

async fn server() -> PostgresServer {
    let server = PostgresServer::with(&["max_connections=200"]);
    migrate(&server.url().parse().unwrap(), "divider").await.unwrap();
    server
}

fn store(server: &PostgresServer) -> PostgresStore {
    PostgresStore::builder(server.url(), Group::new("/figures/").unwrap()).build().unwrap()
}

/// Applies ops in batches, and prints how many that were in a second.
async fn measure(name: &str, store: &PostgresStore, ops: &[Op]) -> Vec<Outcome> {
    let since = Instant::now();
    let mut outcomes = Vec::new();
    for batch in ops.chunks(BATCH) {
        outcomes.extend(store.apply(batch).await.unwrap().outcomes);
    }
    let took = since.elapsed();
    assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))));
    let calls = u32::try_from(ops.len().div_ceil(BATCH)).unwrap();
    println!("{name:<32} {:>8.0} ops/s, {:>8.2?} a call", ops.len() as f64 / took.as_secs_f64(), took / calls);
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn calls() {
    let server = server().await;
    let store = store(&server);
    store.open().await.unwrap();
    let sessions: Vec<SessionId> = (0..NODES).map(|_| SessionId::fresh()).collect();
    for &session in &sessions {
        let node = NodeId::new("node").unwrap();
        let seen = store.apply(&[]).await.unwrap().revision;
        let join = Op::Join {
            session,
            node,
            affinity: 1000,
            capacity: None,
            lease_ms: 3000,
            seen,
            reads: divider_core::format::NEWEST,
        };
        store.apply(&[join]).await.unwrap();
    }
    let leader = sessions[0];
    let term = store.poll(leader, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    let _listener = store.hints(Topic::Group).await.unwrap();

    let keys: Vec<Key> = (0..KEYS).map(|i| Key::new(format!("tenant-{i:08}")).unwrap()).collect();
    let of = |i: usize| sessions[i % NODES];
    let ops =
        |make: &dyn Fn(usize, &Key) -> Op| keys.iter().enumerate().map(|(i, key)| make(i, key)).collect::<Vec<_>>();
    measure("Add", &store, &ops(&|_, key| Op::Add(Work::from(key.clone())))).await;
    let assign = ops(&|i, key| Op::Assign { term, key: key.clone(), session: of(i) });
    let granted = measure("Assign", &store, &assign).await;
    let tokens: Vec<Token> =
        granted.iter().map(|outcome| if let Outcome::Granted(token) = outcome { *token } else { Token(0) }).collect();
    let revoke = ops(&|i, key| Op::Revoke { term, key: key.clone(), token: tokens[i] });
    measure("Revoke", &store, &revoke).await;
    let confirm = ops(&|i, key| Op::Confirm { session: of(i), key: key.clone(), token: tokens[i], started: true });
    measure("Confirm", &store, &confirm).await;
    measure("Remove", &store, &ops(&|_, key| Op::Remove { key: key.clone() })).await;
    let large = ops(&|_, key| Op::Add(Work::from(key.clone()).payload([7; 200])));
    measure("Add with 200 B of payload", &store, &large).await;
    measure("Assign with 200 B of payload", &store, &assign).await;
    let alternate: Vec<Op> = keys[..2048].iter().flat_map(|key| [add(key), Op::Remove { key: key.clone() }]).collect();
    let since = Instant::now();
    for batch in alternate.chunks(BATCH) {
        store.apply(batch).await.unwrap();
    }
    println!("a batch of {BATCH} runs: {:.2?}", since.elapsed() / 8);

    let since = Instant::now();
    let (mut cursor, mut read) = (None, 0);
    loop {
        let page = store.scan(cursor.take()).await.unwrap();
        read += page.keys.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    println!("scan of {read} keys: {:.2?}", since.elapsed());
    let since = Instant::now();
    let held = store.holdings(of(0)).await.unwrap().holdings.len();
    println!("{held} holdings with payloads: {:.2?}", since.elapsed());

    const CALLS: u32 = 2000;
    for what in ["renew", "poll", "empty batch", "stats", "batch of one"] {
        let since = Instant::now();
        for i in 0..CALLS {
            match what {
                "renew" => _ = store.renew(leader).await.unwrap(),
                "poll" => _ = store.poll(leader, Claim::Lead { term }).await.unwrap(),
                "empty batch" => _ = store.apply(&[]).await.unwrap(),
                "stats" => _ = store.stats().await.unwrap(),
                _ => _ = store.apply(&[add(&Key::new(format!("one-{i}")).unwrap())]).await.unwrap(),
            }
        }
        println!("{what:<16} {:>8.1?} a call", since.elapsed() / CALLS);
    }
    println!("database: {}", server.psql("SELECT pg_size_pretty(pg_database_size('postgres'))"));
}

fn add(key: &Key) -> Op {
    Op::Add(Work::from(key.clone()))
}

async fn nodes(server: &PostgresServer, count: usize) -> Vec<Arc<Node>> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        let node = Arc::new(Node::builder(store(server)).build().unwrap());
        node.start().await.unwrap();
        nodes.push(node);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    nodes
}

/// From the call that adds a key to its start on one of five nodes; and the same for many keys.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn whole_nodes() {
    let server = server().await;
    println!("synchronous_commit: {}", server.psql("SHOW synchronous_commit"));
    let nodes = nodes(&server, 5).await;
    let mut starts: SelectAll<_> = nodes.iter().map(|node| node.start_processing()).collect();
    let mut times = Vec::new();
    for i in 0..500 {
        let since = Instant::now();
        nodes[i % 5].add_work(vec![Work::new(format!("one-{i}")).unwrap()]).await.unwrap();
        starts.next().await.unwrap();
        times.push(since.elapsed());
    }
    times.sort();
    println!("add to start: p50 {:.2?}, p99 {:.2?}", times[250], times[494]);

    let since = Instant::now();
    let work: Vec<Work> = (0..KEYS).map(|i| Work::new(format!("many-{i}")).unwrap()).collect();
    let adding = tokio::spawn({
        let node = nodes[0].clone();
        async move { node.add_work(work).await.unwrap() }
    });
    for _ in 0..KEYS {
        starts.next().await.unwrap();
    }
    let took = since.elapsed();
    adding.await.unwrap();
    println!("{KEYS} keys added and started on 5 nodes: {took:.2?}, {:.0} keys/s", KEYS as f64 / took.as_secs_f64());
}

/// What ten idle nodes ask of the server, with few keys and with many.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn idle() {
    let server = server().await;
    let nodes = nodes(&server, NODES).await;
    let transactions = || -> f64 {
        let count = server.psql("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'");
        count.parse().unwrap()
    };
    for keys in [0, 10_000] {
        let mut starts: SelectAll<_> = nodes.iter().map(|node| node.start_processing()).collect();
        nodes[0].add_work((0..keys).map(|i| Work::new(format!("k-{i}")).unwrap()).collect()).await.unwrap();
        for _ in 0..keys {
            starts.next().await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (before, since) = (transactions(), Instant::now());
        tokio::time::sleep(Duration::from_secs(20)).await;
        let per_second = (transactions() - before) / since.elapsed().as_secs_f64();
        println!("{NODES} idle nodes with {keys} keys: {per_second:.0} transactions/s");
    }
    println!("{}", server.psql("SELECT relname, n_tup_upd, n_tup_hot_upd, n_dead_tup FROM pg_stat_user_tables"));
    println!("locks: {}", server.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"));
}
