//! cargo run --release -p divider-examples --example follow_load
//!
//! Work that follows load: each node says how much work it wants from what it can spare at the moment, and the leader
//! moves keys where a node has too many by more than a tolerance. Here bert's machine is busy with something else for a
//! while.

#![allow(clippy::print_stdout, reason = "it shows something")]

use std::time::Duration;

use divider::{Balance, Divider, Event, MaxInFlight, MemoryStore, Node, Work};
use tokio::time::sleep;

/// What `main` returns: a message for a person.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

const KEYS: usize = 100;

async fn join(name: &str, store: &MemoryStore) -> Result<Node, AnyError> {
    let builder = Node::builder(store.clone()).name(name)?.configure(|config| {
        // Without this an affinity decides only about new keys: what runs is left in peace.
        config.balance = Balance::Continuous { tolerance: 0.1 };
        config.max_in_flight = MaxInFlight::Keys(5);
    });
    let node = builder.build()?;
    node.start().await?;
    tokio::spawn({
        let (node, mut events) = (node.clone(), node.events());
        async move {
            while let Some(event) = events.next().await {
                if let Event::Stop(stop) = event {
                    // Ending the work takes a little time; no more than five keys are without an owner meanwhile.
                    sleep(Duration::from_millis(20)).await;
                    node.confirm_stop_processing(&stop.key, stop.token).await?;
                }
            }
            Ok::<_, divider::Error>(())
        }
    });
    Ok(node)
}

/// What a node wants, from the part of its machine that is free. Whole steps of a tenth keep small changes from moving
/// anything.
fn affinity(free: f64) -> i64 {
    (free * 10.0).round() as i64 * 100
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    println!("Work that follows load");
    let store = MemoryStore::new();
    let nodes = [join("anna", &store).await?, join("bert", &store).await?, join("carl", &store).await?];
    let keys = (0..KEYS).map(|k| Work::new(format!("stream-{k}")));
    nodes[0].add_work(keys.collect::<Result<_, _>>()?).await?;

    for (free, what) in [
        (1.0, "three machines, all of them free"),
        (0.5, "something else takes half of bert's machine"),
        (0.12, "... and then nearly all of it"),
        (1.0, "bert is free again"),
    ] {
        nodes[1].set_affinity(affinity(free)).await?;
        println!("\n{what}");
        sleep(Duration::from_millis(1200)).await;
        for node in &nodes {
            let health = node.health();
            println!("    {}: {} keys, affinity {}", health.node, health.held, health.affinity);
        }
    }
    for node in nodes {
        drop(node.flush_and_cancel().await?);
    }
    Ok(())
}
