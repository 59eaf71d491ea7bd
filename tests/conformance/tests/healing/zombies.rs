//! A node of which a part has died ends as a whole: it never renews and does nothing.

use divider_conformance::{Call, Fault};
use divider_core::Error;

use super::*;

/// A node whose key must run on another one after `end`, and whose program must be told.
async fn ends_as_a_whole(what: &str, end: impl AsyncFnOnce(&Node, &Faults)) {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let first = start(&mut events).await;
    end(&node, &faults).await;
    let over = async { while events.next().await.is_some() {} };
    soon(&format!("the end of the stream after {what}"), over).await;
    assert!(!node.is_current(&first.key, first.token), "{what}");
    assert_eq!(node.session(), None, "{what}");
    assert!(matches!(node.add_work(work(["more"])).await, Err(Error::Died { .. })), "{what}");
    let other = Program::over(super::node(store, |_| {}));
    other.node.start().await.unwrap();
    until(&format!("the key to run elsewhere after {what}"), async || other.running() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_store_ends_the_node() {
    type Condition = fn(&Call<'_>) -> bool;
    let calls: [(&str, Condition); 6] = [
        ("poll", |call| matches!(call, Call::Poll(_))),
        ("renew", |call| matches!(call, Call::Renew)),
        ("beats", |call| matches!(call, Call::Beats)),
        ("hints", |call| matches!(call, Call::Hints(_))),
        ("holdings", |call| matches!(call, Call::Holdings)),
        ("apply", |call| matches!(call, Call::Apply(_))),
    ];
    for (what, when) in calls {
        ends_as_a_whole(&format!("a panic in {what}"), async |node, faults| {
            faults.order(Fault::Panic, 1, when);
            faults.cut_hints();
            // It may be the one that meets the panic.
            let _ = node.checkpoint(&Key::new("k").unwrap(), divider_core::Token(1), (*b"1").into()).await;
        })
        .await;
    }
}

#[test]
fn a_node_whose_runtime_is_gone_ends() {
    let store = MemoryStore::new();
    let node = super::node(store.clone(), |_| {});
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let mut events = node.events();
    let started = first.block_on(async {
        node.start().await.unwrap();
        node.add_work(work(["k"])).await.unwrap();
        start(&mut events).await
    });
    first.shutdown_timeout(PATIENCE);
    second.block_on(async {
        soon("the end of the stream", async { while events.next().await.is_some() {} }).await;
        assert!(!node.is_current(&started.key, started.token));
        assert_eq!(node.session(), None);
        let other = Program::over(super::node(store, |_| {}));
        other.node.start().await.unwrap();
        until("the key to run elsewhere", async || other.running() == 1).await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_panics_ends_its_node() {
    let store = MemoryStore::new();
    let node = super::node(store.clone(), |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let reader = tokio::spawn(async move {
        start(&mut events).await;
        panic!("a deliberate panic");
    });
    reader.await.unwrap_err();
    assert_eq!(node.session(), None);
    let other = Program::over(super::node(store, |_| {}));
    other.node.start().await.unwrap();
    until("the key to run elsewhere", async || other.running() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_failed_leaves_no_session_behind_once_it_is_cancelled() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    faults.order(Fault::LoseReply, 1, |call| matches!(call, Call::Apply(_)));
    node.start().await.unwrap_err();
    assert_eq!(store.stats().await.unwrap().sessions, 1);
    node.cancel().await.unwrap();
    assert_eq!(store.stats().await.unwrap().sessions, 0);
}
