//! What Divider's cases cost from end to end: real processes on private servers, measured and put into one table.
//!
//! `./bench` builds what is needed, runs the pure parts' benches first and then this; see docs/BENCHMARKS.md.

// Figures are for people, and a helper that fails ends the run.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod busy;
mod calls;
mod fleets;
mod machine;
mod memory;
mod million;
mod others;
mod raft;
mod report;

use std::{path::PathBuf, time::Instant};

use clap::Parser;
use divider_tests::{backend::TestBackend, postgres::PostgresServer, raft::Voters, redis::RedisServer};
use report::{Report, Store};

/// Measures Divider on private servers that it starts itself, and prints a table.
#[derive(Debug, Parser)]
struct Options {
    /// Fewer repetitions, and none of the cases with very many keys or of single calls.
    #[arg(long)]
    quick: bool,
    /// Only the cases with this in their names, such as `redis` or `take-over`.
    #[arg(long)]
    only: Option<String>,
    /// Writes the figures to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where criterion has left the figures of the pure parts.
    #[arg(long)]
    criterion: Option<PathBuf>,
    /// A program that measures others on the servers that it is given; see `tests/peers`.
    #[arg(long)]
    peers: Option<PathBuf>,
}

/// What a case is given.
pub(crate) struct Run<'a> {
    pub(crate) quick: bool,
    pub(crate) report: &'a mut Report,
}

type Case = (String, Box<dyn Fn(&mut Run<'_>)>);

fn case(cases: &mut Vec<Case>, store: Store, name: &str, run: impl Fn(&mut Run<'_>) + 'static) {
    cases.push((format!("{store}: {name}"), Box::new(run)));
}

/// What is measured on every store that several processes can share.
fn on<B: TestBackend>(cases: &mut Vec<Case>, store: Store, quick: bool) {
    case(cases, store, "add → start", move |run| fleets::add_to_start::<B>(run, store));
    case(cases, store, "bulk: 10 nodes, 900 keys more", move |run| fleets::burst::<B>(run, store));
    case(cases, store, "bulk: 100,000 keys", move |run| fleets::bulk::<B>(run, store));
    let leases: &[u64] = if quick { &[500] } else { &[3000, 500] };
    for &lease_ms in leases {
        let name = format!("take-over, lease {lease_ms} ms");
        case(cases, store, &name, move |run| fleets::take_over::<B>(run, store, lease_ms));
    }
    case(cases, store, "rolling restart", move |run| fleets::rolling_restart::<B>(run, store));
    if !quick {
        case(cases, store, "a million keys", move |run| million::run::<B>(run, store));
    }
}

/// How soon a new leader gets to work where much changes.
fn busy_group(cases: &mut Vec<Case>) {
    let name = "a busy group";
    case(cases, Store::Memory, name, busy::memory);
    case(cases, Store::Redis, name, busy::redis);
    case(cases, Store::Postgres, name, busy::postgres);
    case(cases, Store::Raft, name, busy::raft);
}

/// What is measured without processes, and on some stores alone.
fn single_calls(cases: &mut Vec<Case>) {
    case(cases, Store::Redis, "calls", calls::redis);
    case(cases, Store::Postgres, "calls", calls::postgres);
    case(cases, Store::Postgres, "nodes of one process", calls::postgres_nodes);
    case(cases, Store::Postgres, "idle nodes", calls::postgres_idle);
    case(cases, Store::Postgres, "vacuum", calls::postgres_vacuum);
    case(cases, Store::Raft, "calls", raft::callers);
    case(cases, Store::Raft, "calls of processes", raft::processes);
    case(cases, Store::Raft, "one member with a million keys", raft::a_million_keys);
    case(cases, Store::Raft, "away", raft::away);
}

fn main() {
    let options = Options::parse();
    let mut cases = Vec::new();
    case(&mut cases, Store::Memory, "add → start", memory::add_to_start);
    case(&mut cases, Store::Memory, "bulk", memory::bulk);
    on::<RedisServer>(&mut cases, Store::Redis, options.quick);
    on::<PostgresServer>(&mut cases, Store::Postgres, options.quick);
    on::<Voters>(&mut cases, Store::Raft, options.quick);
    if !options.quick {
        busy_group(&mut cases);
        single_calls(&mut cases);
    }
    if let Some(peers) = options.peers.clone() {
        case(&mut cases, Store::None, "others", move |run| others::run(run, &peers));
    }
    if let Some(only) = &options.only {
        cases.retain(|(name, _)| name.contains(only));
    }

    let mut report = Report::new(machine::describe());
    if let Some(directory) = &options.criterion {
        others::criterion(&mut report, directory);
    }
    let began = Instant::now();
    let count = cases.len();
    for (at, (name, run)) in cases.into_iter().enumerate() {
        eprintln!("[{:>2}/{count}, {:>4.0} s] {name}", at + 1, began.elapsed().as_secs_f64());
        run(&mut Run { quick: options.quick, report: &mut report });
    }
    eprintln!("took {:.0} s", began.elapsed().as_secs_f64());
    println!("{}", report.table());
    if let Some(path) = &options.json {
        let json = report.json(options.quick);
        if let Err(error) = std::fs::write(path, json) {
            eprintln!("{}: {error}", path.display());
            std::process::exit(1);
        }
    }
}
