//! Measures what a user would take or make instead of Divider, and prints a JSON object for each figure.
//!
//! Two ways to share keys out are made by hand as they usually are: a lock for each key, in Redis with a time to live, or
//! in PostgreSQL for as long as a connection lasts. Each node looks at all keys three times in a lease, keeps what it
//! holds, and takes what is free until it has its fair share, which it is told: they have neither a plan nor a stop that is
//! confirmed, and no tokens. The hashing crates only place keys; who lives has to come from elsewhere.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod hashing;
mod locks;
mod postgres;
mod redis_locks;

use clap::Parser;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    redis: String,
    #[arg(long)]
    postgres: String,
    #[arg(long)]
    quick: bool,
}

/// Prints a figure.
fn say(peer: &str, figure: &str, value: f64, unit: &str) {
    println!("{}", serde_json::json!({ "peer": peer, "figure": figure, "value": value, "unit": unit }));
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    hashing::run();
    locks::run(redis_locks::Redis::new(&options.redis), "a Redis lock for each key", options.quick).await;
    locks::run(postgres::Postgres::new(&options.postgres).await, "an advisory lock for each key", options.quick).await;
}
