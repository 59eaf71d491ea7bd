//! Work from a source that the leader reads.

use std::{sync::Arc, time::Duration};

use divider_core::{FnSource, SourceConfig, SourceError, SourceMode, StopReason, Work};
use parking_lot::Mutex;

use super::{
    Backend, Trial,
    seat::{Played, Seat},
};

/// What the source says: work, or an error.
type Said = Arc<Mutex<Option<Vec<Work>>>>;

async fn node<B: Backend>(trial: &Trial<B>, said: &Said, mode: SourceMode) -> Played {
    let said = said.clone();
    let source = FnSource(move || {
        let said = said.lock().clone();
        async move { said.ok_or_else(|| SourceError::from("the source is out of order")) }
    });
    let source = SourceConfig::new(Arc::new(source), mode, Duration::from_millis(30));
    let lease = trial.short();
    let builder = trial.builder(trial.store().await).configure(|config| config.lease = lease).source(source);
    let seat = Seat::new(&trial.history, builder.build().unwrap());
    seat.start_node().await;
    seat.play()
}

fn work(names: &[&str]) -> Option<Vec<Work>> {
    Some(names.iter().map(|name| Work::new(name).unwrap()).collect())
}

async fn run_exactly<B: Backend>(trial: &Trial<B>, nodes: &[&Played], names: &[&str]) {
    let running = async || {
        let mut running: Vec<String> =
            nodes.iter().flat_map(|node| node.running()).map(|start| start.key.to_string()).collect();
        running.sort();
        running == names
    };
    trial.until(&format!("exactly {names:?} run"), running).await;
}

pub async fn an_authoritative_source_decides_what_there_is<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let said: Said = Arc::new(Mutex::new(work(&["a", "b", "c"])));
    let first = node(&trial, &said, SourceMode::Authoritative).await;
    let second = node(&trial, &said, SourceMode::Authoritative).await;
    run_exactly(&trial, &[&first, &second], &["a", "b", "c"]).await;
    first.add(["by hand".into()]).await;
    run_exactly(&trial, &[&first, &second], &["a", "b", "c"]).await;
    let gone = async || second.stats().await.unwrap().registered == 3;
    trial.until("what was added by hand is gone", gone).await;
    *said.lock() = work(&["b", "c", "d"]);
    run_exactly(&trial, &[&first, &second], &["b", "c", "d"]).await;
    assert!(first.stopped(StopReason::Removed) + second.stopped(StopReason::Removed) >= 1);
    // New fields are declared as well, and disturb nothing.
    let changed: Vec<Work> = work(&["b", "c", "d"]).unwrap().into_iter().map(|work| work.payload(*b"new")).collect();
    let b = changed[0].key.clone();
    *said.lock() = Some(changed);
    let new = async || first.record(&b).await.unwrap().is_some_and(|record| record.payload[..] == b"new"[..]);
    trial.until("the new payload is kept", new).await;
    // The next leader goes on with it.
    let (leader, other) = if first.inner.is_leader() { (first, second) } else { (second, first) };
    leader.kill().await;
    *said.lock() = work(&["c", "d", "e"]);
    run_exactly(&trial, &[&other], &["c", "d", "e"]).await;
    *said.lock() = work(&[]);
    run_exactly(&trial, &[&other], &[]).await;
}

pub async fn an_adding_source_removes_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let said: Said = Arc::new(Mutex::new(work(&["a", "b"])));
    let node = node(&trial, &said, SourceMode::AddOnly).await;
    run_exactly(&trial, &[&node], &["a", "b"]).await;
    node.add(["by hand".into()]).await;
    *said.lock() = work(&["b", "z"]);
    run_exactly(&trial, &[&node], &["a", "b", "by hand", "z"]).await;
    // What has been completed and is still named, is work again.
    let b = node.running().into_iter().find(|start| start.key.as_str() == "b").unwrap();
    assert!(node.finish(&b).await);
    run_exactly(&trial, &[&node], &["a", "b", "by hand", "z"]).await;
    assert!(node.runs(&b.key).unwrap().token > b.token);
}

pub async fn a_source_that_fails_or_names_bad_work_does_no_harm<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let said: Said = Arc::new(Mutex::new(work(&["a", "b"])));
            let node = node(&trial, &said, SourceMode::Authoritative).await;
            run_exactly(&trial, &[&node], &["a", "b"]).await;
            *said.lock() = None;
            tokio::time::sleep(Duration::from_millis(150)).await;
            run_exactly(&trial, &[&node], &["a", "b"]).await;
            let mut next = work(&["b", "b", "c"]).unwrap();
            next.push(Work::new("too light").unwrap().weight(0));
            *said.lock() = Some(next);
            run_exactly(&trial, &[&node], &["b", "c"]).await;
            assert_eq!(node.started(), 3, "nothing was disturbed by the failure");
        })
        .await;
}
