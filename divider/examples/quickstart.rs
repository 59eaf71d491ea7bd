//! cargo run -p divider --example quickstart
//!
//! Three nodes divide 120 keys by affinity. They are their own store: each keeps the group on its disk, and what two of
//! them have is decided. One is killed and the others take its keys over; a newcomer takes its place; one drains and
//! leaves; and in the end all stop, and go on from their disks. All in one process, which stands for several, and in a
//! temporary directory. With another store the code is the same: see
//! `divider::open`.

#[path = "support/show.rs"]
mod show;

use std::{net::TcpListener, path::Path, time::Duration};

use divider::{Divider, Event, Group, Node, NodeId, Store, Work, raft::RaftStore};
use show::Show;
use tokio::{task::JoinHandle, time::sleep};

const KEYS: usize = 120;
const LEASE: Duration = Duration::from_secs(1);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What stands for a process of yours.
struct Process {
    node: Node,
    store: RaftStore,
    program: JoinHandle<Result<(), divider::Error>>,
}

impl Process {
    /// Starts one that listens at its address, finds the others at `seeds`, and has a directory of its own in `disk`.
    async fn start(name: &str, affinity: u32, address: &str, seeds: &[String], disk: &Path) -> Result<Self, AnyError> {
        let store = RaftStore::builder(disk.join(name), Group::new("/quickstart/")?)
            .name(name)?
            .listen(address)
            .seeds(seeds)
            // Nothing leaves this machine. Elsewhere: TLS, as in the example `raft_tls`.
            .plaintext()
            .configure(|config| config.voters = 3)
            .build()?;
        let id = NodeId::new(name)?;
        let builder = Node::builder(store.clone()).configure(|config| {
            (config.node, config.affinity, config.lease) = (id, affinity, LEASE);
        });
        let node = builder.build()?;
        let program = tokio::spawn(program(node.clone()));
        node.start().await?;
        Ok(Self { node, store, program })
    }
}

/// What a program does with a node: it starts work when told to, and confirms when the work has stopped.
async fn program(node: Node) -> Result<(), divider::Error> {
    let mut events = node.events();
    while let Some(event) = events.next().await {
        match event {
            Event::Start(_start) => { /* begin to work on start.key; send start.token along with every write */ }
            Event::Stop(stop) => node.confirm_stop_processing(&stop.key, stop.token).await?,
            _ => {}
        }
    }
    Ok(())
}

/// Waits until these processes run all keys between them, and shows how many each has.
async fn show_all(show: Show, processes: &[&Process]) {
    let keys = |process: &Process| process.node.assigned().iter().filter(|key| key.started).count();
    while processes.iter().map(|process| keys(process)).sum::<usize>() < KEYS {
        sleep(Duration::from_millis(1)).await;
    }
    show.step(&format!("all {KEYS} keys run"));
    for process in processes {
        let config = process.node.config();
        let leads = if process.node.is_leader() { ", leads" } else { "" };
        show.bar(config.node.as_str(), keys(process), KEYS, &format!("affinity {}{leads}", process.node.affinity()));
    }
}

/// Addresses on this machine at which nobody listens.
fn free_addresses(count: usize) -> std::io::Result<Vec<String>> {
    let bound = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    bound.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let show = Show::new("Divider: who works on what");
    let disk = tempfile::tempdir()?;
    let addresses = free_addresses(4)?;
    let [first, second, third, fourth] = &addresses[..] else { return Err("four were asked for".into()) };
    let seeds = &addresses[..3];
    let start = |name, affinity, address| Process::start(name, affinity, address, seeds, disk.path());

    show.step("anna, bert and carl join; carl wants twice as much work");
    show.note(&format!("there is no server: they keep the group themselves, in {}", disk.path().display()));
    let (anna, bert, carl) =
        tokio::try_join!(start("anna", 1000, first), start("bert", 1000, second), start("carl", 2000, third))?;
    let keys = (0..KEYS).map(|k| Work::new(format!("tenant-{k}")));
    anna.node.add_work(keys.collect::<Result<_, _>>()?).await?;
    show_all(show, &[&anna, &bert, &carl]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("carl is killed: no goodbye, it just stops renewing its lease, and its disk is gone");
    show.note(&format!("its keys wait until its {LEASE:?} lease expires; until then it may still be working"));
    let lost = carl.store.me().map(|peer| peer.id);
    carl.program.abort();
    drop(carl);
    show_all(show, &[&anna, &bert]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("dora joins in carl's place, and is given her share at once");
    let dora = start("dora", 1000, fourth).await?;
    if let (Some(old), Some(new)) = (lost, dora.store.me()) {
        // One of three may be lost; with dora among the voters that is so again.
        dora.store.replace_voter(old, new.id).await?;
    }
    while dora.node.assigned().len() < KEYS / 3 {
        sleep(Duration::from_millis(1)).await;
    }
    show_all(show, &[&anna, &bert, &dora]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("anna shuts down gracefully: flush_and_cancel stops and confirms every key, and nobody has to wait");
    let left = anna.node.flush_and_cancel().await?;
    show.note(&format!("{} keys were left unconfirmed", left.unconfirmed.len()));
    // The node has closed its own handle; with the last one the member ends, and hands over if it leads.
    anna.store.close().await;
    show_all(show, &[&bert, &dora]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("bert and dora stop as well, and start again: everything is on their disks");
    for process in [bert, dora] {
        drop(process.node.flush().await?);
        process.program.abort();
    }
    let (bert, dora) = tokio::try_join!(start("bert", 1000, second), start("dora", 1000, fourth))?;
    show_all(show, &[&bert, &dora]).await;

    show.step("What to try next");
    show.note("a whole service     the first line of divider/examples/service.rs says how to run it");
    show.note("several processes   cargo run --release -p divider-examples --example worker -- --help");
    show.note("with certificates   cargo run --release -p divider-examples --example raft_tls");
    show.note("a task per key      cargo run --release -p divider-examples --example task_per_key");
    show.note("fencing tokens      cargo run --release -p divider-examples --example fencing");
    show.note("work follows load   cargo run --release -p divider-examples --example follow_load");
    show.note("your own program    the loop in `program` above is all of it: divider/examples/quickstart.rs");
    Ok(())
}
