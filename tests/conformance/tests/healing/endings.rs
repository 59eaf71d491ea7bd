//! How a node ends, whatever is under way: it ends for good, and what it says of its last calls is true.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use divider_conformance::{Call, Fault};
use divider_core::{
    Error, Op, SessionId,
    sim::{Environment, Task},
};

use super::*;

fn joins(call: &Call<'_>) -> bool {
    call.applies(|op| matches!(op, Op::Join { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_while_it_starts_renews_nothing() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let join = faults.order(Fault::DelayReply(Duration::from_millis(100)), 1, joins);
    let renewals = faults.always(Fault::Count, |call| *call == Call::Renew);
    let start = tokio::spawn({
        let node = node.clone();
        async move { node.start().await }
    });
    until("the join", async || join.hits() == 1).await;
    node.abandon();
    let started = soon("the start", start).await.unwrap();
    assert!(matches!(started, Err(Error::Cancelled)), "{started:?}");
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(renewals.hits(), 0);
}

/// The next session is opened at the very moment at which the node ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_while_it_joins_again_renews_nothing() {
    let (node, faults) = faulty(&MemoryStore::new(), |config| config.lease = Duration::from_millis(200));
    node.start().await.unwrap();
    let session = node.session();
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    let ends = node.clone();
    let join = faults.always(Fault::Count, move |call| {
        let again = joins(call);
        if again {
            ends.abandon();
        }
        again
    });
    until("the loss", async || node.session() != session).await;
    until("the join", async || join.hits() == 1).await;
    renewals.lift();
    let renewals = faults.always(Fault::Count, |call| *call == Call::Renew);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(renewals.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_is_dropped_ends_the_node_all_the_same() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    node.start().await.unwrap();
    until("the leader", async || node.is_leader()).await;
    // A leader that leaves gives out what is free first, if it is let.
    faults.always(Fault::Refuse, |call| call.applies(|op| matches!(op, Op::Assign { .. })));
    node.add_work(work(["k"])).await.unwrap();
    assert!(timeout(Duration::from_millis(30), node.cancel()).await.is_err(), "it was not dropped in time");
    assert_eq!(node.session(), None);
    assert!(matches!(node.stats().await, Err(Error::Cancelled)));
    let closed = faults.always(Fault::Count, |call| *call == Call::Close);
    node.cancel().await.unwrap();
    assert_eq!(closed.hits(), 1, "the next one ends what is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_does_not_wait_for_a_store_that_does_not_open() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let open = faults.always(Fault::Hang, |call| *call == Call::Open);
    let start = tokio::spawn({
        let node = node.clone();
        async move { node.start().await }
    });
    until("the start", async || open.hits() == 1).await;
    soon("the end", node.cancel()).await.unwrap();
    let started = soon("the start", start).await.unwrap();
    assert!(matches!(started, Err(Error::Cancelled)), "{started:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_does_not_wait_for_a_store_that_does_not_close() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    node.start().await.unwrap();
    faults.always(Fault::Hang, |call| *call == Call::Close);
    soon("the end", node.cancel()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_ended_by_itself_closes_its_store_when_it_is_cancelled() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let closed = faults.always(Fault::Count, |call| *call == Call::Close);
    node.start().await.unwrap();
    node.abandon();
    node.cancel().await.unwrap();
    node.cancel().await.unwrap();
    assert_eq!(closed.hits(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_under_way_when_the_node_ended_is_not_said_to_have_changed_nothing() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    node.start().await.unwrap();
    let adds = faults.always(Fault::DelayReply(PATIENCE), |call| call.applies(|op| matches!(op, Op::Add(_))));
    let added = tokio::spawn({
        let node = node.clone();
        async move { node.add_work(work(["k"])).await }
    });
    until("the call", async || adds.hits() == 1).await;
    node.cancel().await.unwrap();
    assert_eq!(store.stats().await.unwrap().registered, 1);
    let added = soon("the answer", added).await.unwrap().unwrap_err();
    assert!(matches!(&added, Error::Store(error) if !error.has_no_effect()), "{added:?}");
}

/// Panics beside a stream of events that somebody else reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_beside_a_stream_that_reads_nothing_ends_nothing() {
    let program = Program::over(node(MemoryStore::new(), |_| {}));
    program.node.start().await.unwrap();
    program.node.add_work(work(["a"])).await.unwrap();
    until("the key to run", async || program.running() == 1).await;
    let (unread, mut refused) = (program.node.start_processing(), program.node.events());
    assert_eq!(refused.next().await, None);
    let panics = tokio::spawn(async move {
        let _streams = (unread, refused);
        panic!("a deliberate panic");
    });
    panics.await.unwrap_err();
    assert_eq!(program.running(), 1);
}

/// Has no thread to spare at first.
#[derive(Debug, Default)]
struct Crowded(AtomicUsize);

impl Environment for Crowded {
    fn session(&self) -> SessionId {
        SessionId::fresh()
    }
    fn task(&self, task: Task) -> Task {
        task
    }
    fn beat(&self, beat: Task) -> io::Result<()> {
        if self.0.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        tokio::spawn(beat);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_found_no_thread_leaves_no_session_and_may_be_repeated() {
    let store = MemoryStore::new();
    let node = Node::builder(store.clone()).environment(Arc::new(Crowded::default())).build().unwrap();
    for _ in 0..2 {
        assert!(matches!(node.start().await, Err(Error::Store(_))));
        assert_eq!(store.stats().await.unwrap().sessions, 0);
    }
    node.start().await.unwrap();
    assert!(node.session().is_some());
}

struct Sleeper;

impl std::task::Wake for Sleeper {
    fn wake(self: Arc<Self>) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_remembers_only_who_waits_for_it_now() {
    use futures_util::StreamExt;
    let node = node(MemoryStore::new(), |_| {});
    node.start().await.unwrap();
    let mut events = node.events();
    let sleepers: Vec<Arc<Sleeper>> = (0..3).map(|_| Arc::new(Sleeper)).collect();
    for sleeper in &sleepers {
        let waker = sleeper.clone().into();
        assert!(events.poll_next_unpin(&mut std::task::Context::from_waker(&waker)).is_pending());
    }
    assert_eq!(sleepers.iter().map(Arc::strong_count).collect::<Vec<_>>(), [1, 1, 2]);
}
