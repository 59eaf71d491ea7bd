//! Nodes that cannot hear: they are given nothing before they can, and read while they cannot.

use divider_conformance::{Call, Fault};
use divider_core::{StoreError, Topic};

use super::*;

fn own_subscription(call: &Call<'_>) -> bool {
    matches!(call, Call::Hints(Topic::Session(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_subscribe_does_not_join() {
    for fault in [Fault::Refuse, Fault::Misconfigured] {
        let store = MemoryStore::new();
        let (deaf, faults) = faulty(&store, |_| {});
        faults.always(fault, own_subscription);
        let refused = deaf.start().await.unwrap_err();
        assert!(matches!(refused, divider_core::Error::Store(_)), "{refused}");
        assert_eq!(store.stats().await.unwrap().sessions, 0);
        faults.lift();
        let program = Program::over(deaf);
        program.node.start().await.unwrap();
        program.node.add_work(work(["a", "b"])).await.unwrap();
        until("both keys to run", async || program.running() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_subscription_is_gone_hears_by_reading() {
    for fault in [Fault::Refuse, Fault::Misconfigured, Fault::Hang] {
        let (node, faults) = faulty(&MemoryStore::new(), |_| {});
        let program = Program::over(node);
        program.node.start().await.unwrap();
        let refused = faults.always(fault, |call| matches!(call, Call::Hints(_)));
        faults.cut_hints();
        until("a refusal", async || refused.hits() > 0).await;
        program.node.add_work(work((0..20).map(|key| format!("k{key}")))).await.unwrap();
        until("all keys to run", async || program.running() == 20).await;
        assert_eq!(program.lost(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_can_neither_hear_nor_read_gives_its_session_up() {
    for fault in [Fault::Refuse, Fault::Misconfigured, Fault::Hang] {
        let store = MemoryStore::new();
        let other = Program::over(super::node(store.clone(), |_| {}));
        other.node.start().await.unwrap();
        until("the leader", async || other.node.is_leader()).await;
        let (node, faults) = faulty(&store, |_| {});
        let deaf = Program::over(node);
        deaf.node.start().await.unwrap();
        faults.always(fault, |call| own_subscription(call) || matches!(call, Call::Holdings));
        faults.cut_hints();
        other.node.add_work(work((0..20).map(|key| format!("k{key}")))).await.unwrap();
        until("all keys to run elsewhere", async || other.running() == 20).await;
        faults.lift();
        until("the node to join again", async || deaf.node.session().is_some()).await;
        other.node.rebalance().await.unwrap();
        until("its share to run there", async || deaf.running() == 10 && other.running() == 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_read_the_group_lets_another_lead() {
    for fault in [Fault::Refuse, Fault::Misconfigured, Fault::Corrupt] {
        let store = MemoryStore::new();
        let (node, faults) = faulty(&store, |_| {});
        faults.always(fault, |call| matches!(call, Call::Scan));
        let blind = Program::over(node);
        blind.node.start().await.unwrap();
        until("the leader", async || blind.node.is_leader()).await;
        let other = Program::over(super::node(store.clone(), |_| {}));
        other.node.start().await.unwrap();
        other.node.add_work(work((0..10).map(|key| format!("k{key}")))).await.unwrap();
        until("all keys to run", async || blind.running() + other.running() == 10).await;
        assert!(!blind.node.is_leader());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_nobody_lets_propose_lets_another_lead() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let proposes = |op: &divider_core::Op| matches!(op, divider_core::Op::Assign { .. });
    faults.always(Fault::Misconfigured, move |call| call.applies(proposes));
    let muted = Program::over(node);
    muted.node.start().await.unwrap();
    until("the leader", async || muted.node.is_leader()).await;
    let other = Program::over(super::node(store.clone(), |_| {}));
    other.node.start().await.unwrap();
    other.node.add_work(work((0..10).map(|key| format!("k{key}")))).await.unwrap();
    until("all keys to run", async || muted.running() + other.running() == 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hung_renewal_costs_no_session_at_the_longest_beat() {
    let (node, faults) = faulty(&MemoryStore::new(), |config| {
        config.lease = Duration::from_millis(1500);
        config.beat = Some(config.lease / 3);
    });
    let counted = faults.always(Fault::Count, |call| *call == Call::Renew);
    node.start().await.unwrap();
    let session = node.session();
    until("a renewal", async || counted.hits() > 0).await;
    let hung = faults.order(Fault::Hang, 1, |call| *call == Call::Renew);
    until("one that hangs", async || hung.hits() == 1).await;
    let renewed = counted.hits();
    until("three more", async || counted.hits() >= renewed + 3).await;
    assert_eq!(node.session(), session);
}

#[test]
fn only_an_error_that_says_so_has_no_effect() {
    let unknown = [
        StoreError::Unavailable { message: String::new(), source: None },
        StoreError::Timeout { limit: LEASE },
        StoreError::Corrupt(String::new()),
    ];
    assert!(unknown.iter().all(|error| !error.has_no_effect()));
    let none = [StoreError::SessionEnded, StoreError::Misconfigured(String::new()), StoreError::Closed];
    assert!(none.iter().all(StoreError::has_no_effect));
}

/// The subscription stands and brings nothing, and no poll says that something is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_polls_fail_reads_what_it_may_have_missed() {
    for fault in [Fault::Refuse, Fault::Misconfigured, Fault::Corrupt] {
        let store = MemoryStore::new();
        let leader = super::node(store.clone(), |config| config.affinity = 0);
        leader.start().await.unwrap();
        until("the leader", async || leader.is_leader()).await;
        let (node, faults) = faulty(&store, |_| {});
        let program = Program::over(node);
        program.node.start().await.unwrap();
        faults.lose_hints(true);
        faults.always(fault, |call| matches!(call, Call::Poll(_)));
        leader.add_work(work(["a", "b"])).await.unwrap();
        until("both keys to run", async || program.running() == 2).await;
        assert_eq!(program.lost(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_ends_again_and_again_is_no_reason_to_read_all_the_time() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let program = Program::over(node);
    program.node.start().await.unwrap();
    let reads = faults.always(Fault::Count, |call| matches!(call, Call::Holdings | Call::Changes));
    let subscriptions = faults.always(Fault::Count, |call| matches!(call, Call::Hints(_)));
    let cut = tokio::spawn({
        let faults = faults.clone();
        async move {
            loop {
                faults.cut_hints();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(subscriptions.hits() < 40 && reads.hits() < 60, "{} and {}", subscriptions.hits(), reads.hits());
    program.node.add_work(work(["a", "b"])).await.unwrap();
    until("both keys to run", async || program.running() == 2).await;
    cut.abort();
}

/// A store that now and then does not answer is not out of reach.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_nobody_lets_propose_lets_another_lead_though_some_polls_fail() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |config| config.lease = Duration::from_millis(300));
    let proposes = |op: &divider_core::Op| matches!(op, divider_core::Op::Assign { .. });
    faults.always(Fault::Misconfigured, move |call| call.applies(proposes));
    let polls = Mutex::new(0);
    faults.always(Fault::Refuse, move |call| {
        let leads = matches!(call, Call::Poll(divider_core::Claim::Lead { .. }));
        *polls.lock() += usize::from(leads);
        leads && (*polls.lock()).is_multiple_of(3)
    });
    let muted = Program::over(node);
    muted.node.start().await.unwrap();
    until("the leader", async || muted.node.is_leader()).await;
    let other = Program::over(super::node(store.clone(), |config| config.lease = Duration::from_millis(300)));
    other.node.start().await.unwrap();
    other.node.add_work(work((0..10).map(|key| format!("k{key}")))).await.unwrap();
    until("all keys to run", async || muted.running() + other.running() == 10).await;
}
