//! Reading a work source that fails, hangs, lies and lags.

#![allow(clippy::unwrap_used, reason = "a panic is the report")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_conformance::{Call, Fault, FaultyStore};
use divider_core::{
    Divider, Event, FnSource, MemoryStore, Node, NodeBuilder, RemovalLimit, SourceConfig, SourceError, SourceMode, Work,
};
use parking_lot::Mutex;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

type Rows = Arc<Mutex<BTreeSet<String>>>;

fn rows(names: impl IntoIterator<Item = String>) -> Rows {
    Arc::new(Mutex::new(names.into_iter().collect()))
}

fn work(rows: &Rows) -> Vec<Work> {
    rows.lock().iter().map(|row| Work::new(row).unwrap()).collect()
}

fn builder(store: &MemoryStore) -> NodeBuilder<MemoryStore> {
    Node::builder(store.clone()).configure(|config| config.lease = Duration::from_millis(600))
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("waited too long for {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_panics_is_read_again() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = reads.clone();
    let source = FnSource(move || {
        let read = counted.fetch_add(1, Ordering::SeqCst);
        assert!(read > 2, "a deliberate panic");
        async move {
            assert!(read > 5, "a deliberate panic");
            Ok(vec![Work::new("a").unwrap()])
        }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_millis(20));
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    node.start().await.unwrap();
    until("the work", async || node.stats().await.unwrap().registered == 1).await;
    assert!(reads.load(Ordering::SeqCst) > 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_the_longest_interval_is_read_once() {
    let all = rows(["a".into()]);
    let source = FnSource(move || {
        let work = work(&all);
        async move { Ok(work) }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::MAX);
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    let mut events = node.events();
    node.start().await.unwrap();
    timeout(PATIENCE, events.next()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_empty_for_a_moment_stops_nothing() {
    let all = rows((0..300).map(|row| format!("feed{row}")));
    let reads = Arc::new(AtomicUsize::new(0));
    let source = FnSource({
        let (all, reads) = (all.clone(), reads.clone());
        move || {
            reads.fetch_add(1, Ordering::SeqCst);
            let work = work(&all);
            async move { Ok(work) }
        }
    });
    let mut config = SourceConfig::new(Arc::new(source), SourceMode::Authoritative, Duration::from_millis(10));
    config.removals = RemovalLimit { time: Duration::from_secs(2), ..RemovalLimit::default() };
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    node.start().await.unwrap();
    let registered = async || node.stats().await.unwrap().registered;
    until("all feeds", async || registered().await == 300).await;
    let kept = std::mem::take(&mut *all.lock());
    let read = reads.load(Ordering::SeqCst);
    until("ten empty readings", async || reads.load(Ordering::SeqCst) > read + 10).await;
    assert_eq!(registered().await, 300);
    // A little is believed at once, while there is more.
    *all.lock() = kept.into_iter().skip(20).collect();
    until("the removal of a few", async || registered().await == 280).await;
    // And everything once it has been said for long enough.
    all.lock().clear();
    until("the removal of all", async || registered().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_that_began_before_a_completion_does_not_add_the_key_again() {
    let all = rows(["row".into()]);
    let (began, mut readings) = tokio::sync::watch::channel(0_usize);
    let (go, gate) = tokio::sync::watch::channel(1_usize);
    let began = Arc::new(began);
    let source = FnSource({
        let all = all.clone();
        move || {
            let (work, began, mut gate) = (work(&all), began.clone(), gate.clone());
            async move {
                // A query that has seen the table, and takes its time.
                began.send_modify(|readings| *readings += 1);
                let reading = *began.borrow();
                gate.wait_for(|go| *go >= reading).await.map_err(SourceError::from)?;
                Ok(work)
            }
        }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_millis(2000));
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    let mut events = node.events();
    node.start().await.unwrap();
    let Some(Event::Start(start)) = timeout(PATIENCE, events.next()).await.unwrap() else { panic!("no start") };
    readings.wait_for(|began| *began == 2).await.unwrap();
    all.lock().clear();
    node.complete(&start.key, start.token).await.unwrap();
    // What the leader gives out after the end, it gives out knowing of the end.
    node.add_work(vec![Work::new("later").unwrap()]).await.unwrap();
    let Some(Event::Start(later)) = timeout(PATIENCE, events.next()).await.unwrap() else { panic!("no start") };
    assert_eq!(later.key.as_str(), "later");
    go.send_replace(2);
    readings.wait_for(|began| *began == 3).await.unwrap();
    assert_eq!(node.stats().await.unwrap().registered, 1, "the finished row is work again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_could_not_be_declared_is_declared_later() {
    let all = rows(["a".into()]);
    let payload = Arc::new(AtomicUsize::new(1));
    let source = FnSource({
        let (all, payload) = (all.clone(), payload.clone());
        move || {
            let payload = payload.load(Ordering::SeqCst).to_string();
            let work: Vec<Work> = work(&all).into_iter().map(|work| work.payload(payload.as_bytes())).collect();
            async move { Ok(work) }
        }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_millis(20));
    let store = FaultyStore::new(MemoryStore::new());
    let faults = store.faults();
    let node = Node::builder(store).source(config).build().unwrap();
    node.start().await.unwrap();
    until("the work", async || node.stats().await.unwrap().registered == 1).await;
    let adds = |call: &Call<'_>| call.applies(|op| matches!(op, divider_core::Op::Add(_)));
    let refused = faults.order(Fault::Misconfigured, 1, adds);
    payload.store(7, Ordering::SeqCst);
    until("a refusal", async || refused.hits() == 1).await;
    let key = divider_core::Key::new("a").unwrap();
    until("the new payload", async || {
        node.record(&key).await.unwrap().is_some_and(|record| record.payload[..] == b"7"[..])
    })
    .await;
}

#[test]
fn a_source_that_cannot_be_read_so_is_refused() {
    let refused = |change: fn(&mut SourceConfig)| {
        let source = FnSource(|| async { Ok(Vec::new()) });
        let mut config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_secs(1));
        change(&mut config);
        builder(&MemoryStore::new()).source(config).build().unwrap_err().field
    };
    assert_eq!(refused(|config| config.interval = Duration::ZERO), "source.interval");
    assert_eq!(refused(|config| config.removals.percent = 101), "source.removals");
    assert_eq!(refused(|config| config.removals.readings = 0), "source.removals");
    assert_eq!(refused(|config| config.removals.time = Duration::MAX), "source.removals");
}

#[test]
fn the_longest_durations_do_not_panic() {
    for refused in ["call_time_limit", "flush_time_limit", "quarantine.within"] {
        let built = builder(&MemoryStore::new()).configure(|config| match refused {
            "call_time_limit" => config.call_time_limit = Duration::MAX,
            "quarantine.within" => {
                let mut quarantine = config.quarantine.unwrap();
                quarantine.within = Duration::MAX;
                config.quarantine = Some(quarantine);
            }
            _ => config.flush_time_limit = Duration::MAX,
        });
        assert_eq!(built.build().unwrap_err().field, refused);
    }
}

/// Panics when it is dropped, as what holds a connection may.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a deliberate panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_panics_while_it_is_given_up_is_read_again() {
    let reads = AtomicUsize::new(0);
    let source = FnSource(move || {
        let hangs = reads.fetch_add(1, Ordering::SeqCst) < 2;
        async move {
            if hangs {
                let _bomb = Bomb;
                std::future::pending::<()>().await;
            }
            Ok(vec![Work::new("a").unwrap()])
        }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_millis(50));
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    node.start().await.unwrap();
    until("the work", async || node.stats().await.unwrap().registered == 1).await;
}

#[derive(Debug)]
struct Speechless(#[allow(dead_code, reason = "it is dropped")] Option<Bomb>);

impl std::fmt::Debug for Bomb {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("a deliberate panic")
    }
}

impl std::fmt::Display for Speechless {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        assert!(self.0.is_some(), "a deliberate panic");
        Ok(())
    }
}

impl std::error::Error for Speechless {}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_error_panics_is_read_again() {
    let reads = AtomicUsize::new(0);
    let source = FnSource(move || {
        let read = reads.fetch_add(1, Ordering::SeqCst);
        async move {
            match read {
                0 => Err(Speechless(None).into()),
                1 => Err(Speechless(Some(Bomb)).into()),
                _ => Ok(vec![Work::new("a").unwrap()]),
            }
        }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_millis(20));
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    node.start().await.unwrap();
    until("the work", async || node.stats().await.unwrap().registered == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_named_with_what_cannot_be_kept_is_not_removed() {
    let (reads, long) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let source = FnSource({
        let (reads, long) = (reads.clone(), long.clone());
        move || {
            reads.fetch_add(1, Ordering::SeqCst);
            let bytes = long.load(Ordering::SeqCst);
            async move { Ok(vec![Work::new("a").unwrap().payload(vec![0; bytes]), Work::new("b").unwrap()]) }
        }
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::Authoritative, Duration::from_millis(10));
    let node = builder(&MemoryStore::new()).source(config).build().unwrap();
    node.start().await.unwrap();
    until("the work", async || node.stats().await.unwrap().registered == 2).await;
    long.store(divider_core::limits::MAX_PAYLOAD_BYTES + 1, Ordering::SeqCst);
    let read = reads.load(Ordering::SeqCst);
    until("some readings", async || reads.load(Ordering::SeqCst) > read + 4).await;
    assert_eq!(node.stats().await.unwrap().registered, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_names_is_declared_in_batches_that_a_store_takes() {
    let source = FnSource(|| async {
        let payload = vec![0; divider_core::limits::MAX_PAYLOAD_BYTES];
        Ok((0..64).map(|key| Work::new(format!("k{key}")).unwrap().payload(payload.as_slice())).collect())
    });
    let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_secs(5));
    let store = FaultyStore::new(MemoryStore::new());
    let largest = Arc::new(AtomicUsize::new(0));
    let seen = largest.clone();
    store.faults().always(Fault::Count, move |call| {
        if let Call::Apply(ops) = call {
            seen.fetch_max(ops.iter().map(divider_core::Op::bytes).sum(), Ordering::SeqCst);
        }
        true
    });
    let node = Node::builder(store).source(config).build().unwrap();
    node.start().await.unwrap();
    until("the work", async || node.stats().await.unwrap().registered == 64).await;
    let largest = largest.load(Ordering::SeqCst);
    assert!(largest <= divider_core::limits::MAX_BATCH_BYTES, "{largest} bytes");
}
