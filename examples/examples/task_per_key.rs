//! cargo run --release -p divider-examples --example task_per_key
//!
//! A task for each key, and nothing else to write: `Worker` spawns it, stops it, confirms, tries again after a failure,
//! and drains at shutdown. Here every key is a film whose frames are rendered one after the other. One node dies in the
//! middle, and the other goes on from the last checkpoint.

use std::time::Duration;

use divider_core::{
    Divider, Error, Flushed, Job, MemoryStore, Next, Node, NodeId, StopSignal, TaskError, Work, Worker,
};
use divider_examples::{AnyError, show::Show};
use tokio::time::sleep;

const FRAMES: u8 = 50;
const FILMS: usize = 6;

fn node(name: &str, store: &MemoryStore) -> Result<Node, AnyError> {
    let id = NodeId::new(name)?;
    let builder = Node::builder(store.clone());
    let lease = Duration::from_millis(500);
    Ok(builder.configure(|config| (config.node, config.lease) = (id, lease)).build()?)
}

/// The whole of a program's own work.
async fn render(node: String, show: Show, film: Job, mut stop: StopSignal) -> Result<Next, TaskError> {
    let first = film.checkpoint.first().copied().unwrap_or(0);
    show.note(&format!("{node} renders {} from frame {first} (attempt {})", film.key, film.attempts));
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
    show.note(&format!("{node} has finished {}", film.key));
    Ok(Next::Complete)
}

fn worker(node: &Node, show: Show) -> impl Future<Output = Result<Flushed, Error>> + use<> {
    let name = node.config().node.to_string();
    Worker::new(node.clone()).concurrency(4).run(move |film, stop| render(name.clone(), show, film, stop))
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let show = Show::new("A task for each key");
    let store = MemoryStore::new();
    let (anna, bert) = (node("anna", &store)?, node("bert", &store)?);

    show.step(&format!("anna and bert render {FILMS} films of {FRAMES} frames; film-3 fails at first"));
    let rendering = tokio::spawn(worker(&anna, show));
    tokio::spawn(worker(&bert, show));
    bert.start().await?;
    bert.add_work((0..FILMS).map(|k| Work::new(format!("film-{k}"))).collect::<Result<_, _>>()?).await?;

    sleep(Duration::from_millis(600)).await;
    show.step("anna dies");
    rendering.abort();
    drop(anna);

    while bert.stats().await?.registered > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    show.step("all films are finished, and no frame that was kept was rendered again");
    // Ends bert's worker, too. A program gives `run_until` a signal instead: `divider_core::shutdown_signal()`.
    drop(bert.flush_and_cancel().await?);
    Ok(())
}
