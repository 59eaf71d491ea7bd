//! cargo run --release -p divider-examples --example quickstart
//!
//! Three nodes divide 120 keys by affinity; one is killed and the others take its keys over; one drains and leaves. All
//! in one process and in memory, so it needs no server. With another store the code is the same: see `store.rs`.

use std::time::Duration;

use divider_core::{Divider, Event, MemoryStore, Node, NodeId, Work};
use divider_examples::{AnyError, show::Show};
use tokio::{task::JoinHandle, time::sleep};

const KEYS: usize = 120;
const LEASE: Duration = Duration::from_secs(1);

/// What stands for a process of yours.
struct Process {
    node: Node,
    program: JoinHandle<Result<(), divider_core::Error>>,
}

impl Process {
    async fn start(name: &str, affinity: u32, store: &MemoryStore) -> Result<Self, AnyError> {
        let id = NodeId::new(name)?;
        let builder = Node::builder(store.clone()).configure(|config| {
            (config.node, config.affinity, config.lease) = (id, affinity, LEASE);
        });
        let node = builder.build()?;
        let program = tokio::spawn(program(node.clone()));
        node.start().await?;
        Ok(Self { node, program })
    }
}

/// What a program does with a node: it starts work when told to, and confirms when the work has stopped.
async fn program(node: Node) -> Result<(), divider_core::Error> {
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

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let show = Show::new("Divider: who works on what");
    let store = MemoryStore::new();

    show.step("anna, bert and carl join; carl wants twice as much work");
    let anna = Process::start("anna", 1000, &store).await?;
    let bert = Process::start("bert", 1000, &store).await?;
    let carl = Process::start("carl", 2000, &store).await?;
    let keys = (0..KEYS).map(|k| Work::new(format!("tenant-{k}")));
    anna.node.add_work(keys.collect::<Result<_, _>>()?).await?;
    show_all(show, &[&anna, &bert, &carl]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("carl is killed: no goodbye, it just stops renewing its lease");
    show.note(&format!("its keys wait for {LEASE:?} from its last renewal: so long it might still be at work"));
    carl.program.abort();
    drop(carl);
    show_all(show, &[&anna, &bert]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("dora joins, and is given her share at once");
    let dora = Process::start("dora", 1000, &store).await?;
    while dora.node.assigned().len() < KEYS / 3 {
        sleep(Duration::from_millis(1)).await;
    }
    show_all(show, &[&anna, &bert, &dora]).await;

    sleep(Duration::from_secs(1)).await;
    show.step("anna shuts down gracefully: flush_and_cancel stops and confirms every key, and nobody has to wait");
    let left = anna.node.flush_and_cancel().await?;
    show.note(&format!("{} keys were left unconfirmed", left.unconfirmed.len()));
    show_all(show, &[&bert, &dora]).await;

    for process in [bert, dora] {
        // The last ones keep nothing either; the keys would wait for whoever comes next.
        drop(process.node.flush_and_cancel().await?);
    }
    show.step("What to try next");
    show.note("several processes   cargo run --release -p divider-examples --example worker -- --help");
    show.note("fencing tokens      cargo run --release -p divider-examples --example fencing");
    show.note("work follows load   cargo run --release -p divider-examples --example follow_load");
    show.note("your own program    the loop in `program` above is all of it: examples/examples/quickstart.rs");
    Ok(())
}
