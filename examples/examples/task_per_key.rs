//! cargo run --release -p divider-examples --example task_per_key
//!
//! A task for each key, and nothing else to write: `Worker` spawns it, stops it, confirms, tries again after a failure,
//! and drains at shutdown. Here every key is a film whose frames are rendered one after the other. One node dies in the
//! middle, and the other goes on from the last checkpoint.

#![allow(clippy::print_stdout, reason = "it shows something")]

use std::time::Duration;

use divider::{Divider, Error, Flushed, Job, MemoryStore, Next, Node, StopSignal, TaskError, Work, Worker};
use tokio::time::sleep;

/// What `main` returns: a message for a person.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

const FRAMES: u8 = 50;
const FILMS: usize = 6;

fn node(name: &str, store: &MemoryStore) -> Result<Node, AnyError> {
    Ok(Node::builder(store.clone()).name(name)?.lease(Duration::from_millis(500)).build()?)
}

/// The whole of a program's own work.
async fn render(node: String, film: Job, mut stop: StopSignal) -> Result<Next, TaskError> {
    let first = film.checkpoint.first().copied().unwrap_or(0);
    println!("    {node} renders {} from frame {first} (attempt {})", film.key, film.attempts);
    if film.key.as_str() == "film-3" && film.attempts == 1 {
        return Err("the disk is full".into());
    }
    for frame in first..FRAMES {
        tokio::select! {
            () = sleep(Duration::from_millis(20)) => {}
            // Asked to stop: what has been done is kept, and somebody goes on from there.
            _ = stop.requested() => return Ok(Next::Release),
        }
        film.checkpoint([frame + 1]).await?;
    }
    println!("    {node} has finished {}", film.key);
    Ok(Next::Complete)
}

fn worker(node: &Node) -> impl Future<Output = Result<Flushed, Error>> + use<> {
    let name = node.config().node.to_string();
    Worker::new(node.clone()).concurrency(4).run(move |film, stop| render(name.clone(), film, stop))
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    println!("A task for each key");
    let store = MemoryStore::new();
    let (anna, bert) = (node("anna", &store)?, node("bert", &store)?);

    println!("\nanna and bert render {FILMS} films of {FRAMES} frames; film-3 fails at first");
    let rendering = tokio::spawn(worker(&anna));
    tokio::spawn(worker(&bert));
    bert.start().await?;
    bert.add_work((0..FILMS).map(|k| Work::new(format!("film-{k}"))).collect::<Result<_, _>>()?).await?;

    sleep(Duration::from_millis(600)).await;
    println!("\nanna dies");
    rendering.abort();
    drop(anna);

    while bert.stats().await?.registered > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    println!("\nall films are finished, and no frame that was kept was rendered again");
    // Ends bert's worker, too. A program gives `run_until` a signal instead: `divider::shutdown_signal()`.
    drop(bert.flush_and_cancel().await?);
    Ok(())
}
