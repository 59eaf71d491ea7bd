//! What the Redis backend's calls cost. Run with
//! `cargo test -p divider-tests --release --test redis_figures -- --ignored --nocapture`.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use divider_core::{Claim, Group, Key, NodeId, Op, Outcome, SessionId, Store, Term, Token, Topic, Work};
use divider_redis::RedisStore;
use divider_tests::redis::RedisServer;

const KEYS: usize = 100_000;
const BATCH: usize = 256;
const NODES: usize = 10;

/// Applies ops in batches, and prints how many that were in a second, for the client and for the server alone.
async fn measure(name: &str, server: &RedisServer, store: &RedisStore, ops: &[Op]) -> Vec<Outcome> {
    server.cli(&["CONFIG", "RESETSTAT"]);
    let since = Instant::now();
    let mut outcomes = Vec::new();
    for batch in ops.chunks(BATCH) {
        outcomes.extend(store.apply(batch).await.unwrap().outcomes);
    }
    let took = since.elapsed();
    assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))));
    let (calls, busy) = evalsha(server);
    let per_second = |time: Duration| ops.len() as f64 / time.as_secs_f64();
    println!(
        "{name:<32} {:>8.0} ops/s, {:>8.0} on the server alone, {:>8.2?} a call",
        per_second(took),
        per_second(busy),
        busy / calls
    );
    outcomes
}

/// How often scripts were called by hash, and how long that took in all.
fn evalsha(server: &RedisServer) -> (u32, Duration) {
    let info = server.cli(&["INFO", "commandstats"]);
    let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    let field = |name: &str| line.split([':', ',']).find_map(|field| field.strip_prefix(name)).unwrap().to_owned();
    (field("calls=").parse().unwrap(), Duration::from_micros(field("usec=").parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; tells nothing on a busy machine"]
async fn figures() {
    let server = RedisServer::start();
    let store = RedisStore::builder(server.url(), Group::new("/figures/").unwrap()).build().unwrap();
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
    let Term(term) = store.poll(leader, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    let term = Term(term);
    store.apply(&[Op::ResumeGrants { term }]).await.unwrap();
    let _listener = store.hints(Topic::Group).await.unwrap();

    let keys: Vec<Key> = (0..KEYS).map(|i| Key::new(format!("tenant-{i:08}")).unwrap()).collect();
    let of = |i: usize| sessions[i % NODES];
    let ops =
        |make: &dyn Fn(usize, &Key) -> Op| keys.iter().enumerate().map(|(i, key)| make(i, key)).collect::<Vec<_>>();
    measure("Add", &server, &store, &ops(&|_, key| Op::Add(Work::from(key.clone())))).await;
    let assign = ops(&|i, key| Op::Assign { term, key: key.clone(), session: of(i) });
    let granted = measure("Assign", &server, &store, &assign).await;
    let tokens: Vec<Token> =
        granted.iter().map(|outcome| if let Outcome::Granted(token) = outcome { *token } else { Token(0) }).collect();
    let revoke = ops(&|i, key| Op::Revoke { term, key: key.clone(), token: tokens[i] });
    measure("Revoke", &server, &store, &revoke).await;
    let confirm = ops(&|i, key| Op::Confirm { session: of(i), key: key.clone(), token: tokens[i], started: true });
    measure("Confirm", &server, &store, &confirm).await;
    measure("Remove", &server, &store, &ops(&|_, key| Op::Remove { key: key.clone() })).await;
    let large = ops(&|_, key| Op::Add(Work::from(key.clone()).payload([7; 200])));
    measure("Add with 200 B of payload", &server, &store, &large).await;
    measure("Assign with 200 B of payload", &server, &store, &assign).await;

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

    const CALLS: u32 = 5000;
    for what in ["renew", "poll", "empty batch", "stats", "batch of one"] {
        server.cli(&["CONFIG", "RESETSTAT"]);
        let since = Instant::now();
        for i in 0..CALLS {
            match what {
                "renew" => _ = store.renew(leader).await.unwrap(),
                "poll" => _ = store.poll(leader, Claim::Lead { term }).await.unwrap(),
                "empty batch" => _ = store.apply(&[]).await.unwrap(),
                "stats" => _ = store.stats().await.unwrap(),
                _ => {
                    let key = Key::new(format!("one-{i}")).unwrap();
                    store.apply(&[Op::Add(Work::from(key))]).await.unwrap();
                }
            }
        }
        let took = since.elapsed() / CALLS;
        let (calls, busy) = evalsha(&server);
        println!("{what:<16} {took:>8.1?} a call, of which {:>8.1?} on the server", busy / calls);
    }
    let used = server.cli(&["INFO", "memory"]);
    println!("{}", used.lines().find(|line| line.starts_with("used_memory_human")).unwrap());
}
