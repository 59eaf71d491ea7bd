//! The PostgreSQL backend on a real server.

use std::time::Duration;

use divider_core::{Group, Store};
use divider_postgres::{PostgresConfig, PostgresStore, migrate};
use divider_tests::{
    agree::{Expect, Seen, agree_with},
    postgres::PostgresServer,
};

/// A group name that the store has to quote everywhere.
fn group(name: &str) -> Group {
    Group::new(format!("/{name}'\"%_\\/é\u{1f600}/")).expect("a valid group")
}

/// A server with the schema in it.
async fn server() -> PostgresServer {
    let server = PostgresServer::start();
    prepare(&server).await;
    server
}

async fn prepare(server: &PostgresServer) {
    migrate(&server.url().parse().expect("a URL"), "divider").await.expect("the schema is made");
}

fn store(server: &PostgresServer, name: &str) -> PostgresStore {
    PostgresStore::builder(server.url(), group(name)).build().expect("a valid configuration")
}

async fn open(server: &PostgresServer, name: &str) -> PostgresStore {
    let store = store(server, name);
    store.open().await.expect("the store opens");
    store
}

/// Random batches of every op, compared with the ledger after each. `DIVIDER_SEEDS` says how many seeds, beyond the ones
/// that are always run, and `DIVIDER_SEED` which one first.
#[tokio::test(flavor = "multi_thread")]
async fn agrees_with_the_ledger() {
    let server = server().await;
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let first = number("DIVIDER_SEED").unwrap_or(1);
    let mut seen = Seen::new();
    for seed in first..first + number("DIVIDER_SEEDS").unwrap_or(12) {
        // The runner polls only now and then, and a leader that does not loses its leadership.
        let config = |config: &mut PostgresConfig| config.leader_timeout = Duration::from_secs(600);
        let name = group(&format!("agree-{seed}"));
        let store = PostgresStore::builder(server.url(), name).configure(config).build().expect("a valid configuration");
        for (what, times) in agree_with(&store, seed, 400, Expect { leases: false, hints: true }).await {
            *seen.entry(what).or_default() += times;
        }
        store.close().await;
    }
    assert!(seen.len() > 60, "the seeds meet too little: {seen:#?}");
    println!("{} combinations of op and outcome", seen.len());
}
