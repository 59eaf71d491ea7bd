//! A Redis and a PostgreSQL for all tests that do not stop their server, until the end of the standard input: `./test` starts
//! them once, which takes as long as two of some hundred tests.

use std::io::Read as _;

use divider_tests::{postgres::PostgresServer, redis::RedisServer};

fn main() {
    let redis = RedisServer::start();
    let postgres = PostgresServer::with(&["max_connections=500"]);
    println!("DIVIDER_REDIS_URL={} DIVIDER_POSTGRES_URL={}", redis.url(), postgres.url());
    // Also where whoever started this has been killed. An error is no reason to go on either.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
