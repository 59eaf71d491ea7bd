//! How much work a node wants, wished for while it has no session.

use divider_conformance::{Call, Fault};
use divider_core::Op;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_affinity_that_is_set_without_a_session_is_that_of_the_next() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let first = start(&mut events).await;
    faults.always(Fault::Refuse, |call| *call == Call::Renew || matches!(call, Call::Apply(_)));
    stop(&mut events).await;
    node.confirm_stop_processing(&first.key, first.token).await.unwrap();
    node.set_affinity(7).await.unwrap();
    assert_eq!(node.alter_affinity(-7).await.unwrap(), 0);
    node.alter_affinity(-1).await.unwrap_err();
    faults.lift();
    until("the node to join again", async || node.session().is_some()).await;
    assert_eq!(node.affinity(), 0);
    let sessions = store.scan(None).await.unwrap().sessions;
    assert_eq!(sessions.iter().filter(|s| s.ended.is_none()).map(|s| s.affinity).collect::<Vec<_>>(), [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_affinity_that_is_set_while_a_join_is_on_its_way_is_kept() {
    for fault in [Fault::LoseReply, Fault::DelayReply(Duration::from_millis(300))] {
        let store = MemoryStore::new();
        let (node, faults) = faulty(&store, |_| {});
        node.start().await.unwrap();
        let session = node.session();
        let joins = faults.order(fault, 1, |call| call.applies(|op| matches!(op, Op::Join { .. })));
        let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
        until("the join", async || joins.hits() == 1).await;
        renewals.lift();
        soon("the wish", node.set_affinity(3)).await.unwrap();
        until("the node to join again", async || node.session().is_some_and(|s| Some(s) != session)).await;
        let wanted = async || {
            let sessions = store.scan(None).await.unwrap().sessions;
            sessions.iter().any(|s| Some(s.session) == node.session() && s.affinity == 3)
        };
        until("the store to know", wanted).await;
        assert_eq!(node.affinity(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_affinity_that_was_on_its_way_when_the_session_was_lost_is_kept() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    node.start().await.unwrap();
    let session = node.session();
    faults
        .always(Fault::Refuse, |call| *call == Call::Renew || call.applies(|op| matches!(op, Op::SetAffinity { .. })));
    let set = tokio::spawn({
        let node = node.clone();
        async move { node.set_affinity(5).await }
    });
    until("the loss", async || node.session() != session).await;
    faults.lift();
    soon("the wish", set).await.unwrap().unwrap();
    let wanted = async || {
        let sessions = store.scan(None).await.unwrap().sessions;
        sessions.iter().any(|s| Some(s.session) == node.session() && s.affinity == 5)
    };
    until("the store to know", wanted).await;
}

/// The store took it for the old session, and its answer comes when there is a new one.
#[tokio::test(flavor = "multi_thread")]
async fn an_affinity_that_is_acknowledged_when_its_session_is_over_is_that_of_the_next() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |config| config.lease = Duration::from_millis(200));
    node.start().await.unwrap();
    let session = node.session();
    let sets = |call: &Call<'_>| call.applies(|op| matches!(op, Op::SetAffinity { .. }));
    let late = faults.order(Fault::DelayReply(Duration::from_millis(500)), 1, sets);
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    let set = tokio::spawn({
        let node = node.clone();
        async move { node.set_affinity(0).await }
    });
    until("the wish to be on its way", async || late.hits() == 1).await;
    until("the loss", async || node.session() != session).await;
    renewals.lift();
    soon("the wish", set).await.unwrap().unwrap();
    until("the store to know", async || {
        let sessions = store.scan(None).await.unwrap().sessions;
        sessions.iter().any(|s| Some(s.session) == node.session() && s.affinity == 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_affinity_that_is_acknowledged_when_its_session_is_over_changes_nothing() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |config| config.lease = Duration::from_millis(200));
    node.start().await.unwrap();
    let session = node.session();
    let alters = |call: &Call<'_>| call.applies(|op| matches!(op, Op::AlterAffinity { .. }));
    let late = faults.order(Fault::DelayReply(Duration::from_millis(500)), 1, alters);
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    let altered = tokio::spawn({
        let node = node.clone();
        async move { node.alter_affinity(-1000).await }
    });
    until("the change to be on its way", async || late.hits() == 1).await;
    until("the loss", async || node.session() != session).await;
    renewals.lift();
    until("the next session", async || node.session().is_some()).await;
    let answer = soon("the change", altered).await.unwrap();
    let known = store.scan(None).await.unwrap().sessions;
    let known = known.iter().find(|s| Some(s.session) == node.session()).unwrap().affinity;
    assert_eq!((node.affinity(), known), (1000, 1000), "{answer:?}");
    assert!(matches!(answer, Err(divider_core::Error::NoSession)), "{answer:?}");
}
