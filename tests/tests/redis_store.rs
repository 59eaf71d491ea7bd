//! The Redis backend against real servers.

use divider_core::Group;
use divider_redis::RedisStore;
use divider_tests::{agree::agree, redis::RedisServer};

fn group(name: &str) -> Group {
    Group::new(name).unwrap()
}

#[tokio::test]
async fn it_does_what_the_ledger_does() {
    let server = RedisServer::start();
    let seeds = std::env::var("DIVIDER_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    for seed in 0..seeds {
        let store = RedisStore::builder(server.url(), group(&format!("/agree/{seed}/"))).build().unwrap();
        agree(&store, seed, 400).await;
    }
}
