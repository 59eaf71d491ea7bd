//! The death of a node that lives is held against nothing that was given to it, whether it ever heard of it or not.

use divider_conformance::{Call, Fault, Ordered};
use divider_core::{KeyView, NodeId, State};

use super::*;

/// A leader that has no work of its own, and a node that is cut off as it is given a key: it never hears of that.
struct Unheard {
    store: MemoryStore,
    leader: Program,
    node: Node,
    faults: Faults,
    cut: Ordered,
}

impl Unheard {
    /// The leader has taken the node for dead, and the key runs on another one again.
    async fn given_again() -> Self {
        let store = MemoryStore::new();
        let leader = Program::over(node(store.clone(), |config| config.affinity = 0));
        leader.node.start().await.unwrap();
        until("the leader", async || leader.node.is_leader()).await;
        let (node, faults) = faulty(&store, |config| config.node = NodeId::new("cut-off").unwrap());
        node.start().await.unwrap();
        let session = node.session().unwrap();
        faults.lose_hints(true);
        let cut = faults.always(Fault::Refuse, |_| true);
        leader.node.add_work(work(["k"])).await.unwrap();
        let this = Self { store, leader, node, faults, cut };
        until("the grant", async || this.record().await.state.owner().is_some_and(|(owner, _)| owner == session)).await;
        this.leader.node.set_affinity(1000).await.unwrap();
        until("the key to run elsewhere", async || this.leader.running() == 1).await;
        assert_eq!(this.record().await.deaths.count, 1, "the node is taken for dead");
        this
    }

    async fn record(&self) -> KeyView {
        let records = self.store.records(&[Key::new("k").unwrap()]).await.unwrap();
        records.into_iter().next().flatten().unwrap().view
    }

    /// The node hears and is heard again.
    fn comes_back(&self) {
        self.faults.lose_hints(false);
        self.cut.lift();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_says_that_it_lived_also_for_what_it_never_heard_of() {
    let cut_off = Unheard::given_again().await;
    cut_off.comes_back();
    until("the death to be none", async || cut_off.record().await.deaths.count == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_tries_until_it_has_found_out_what_it_was_given() {
    let cut_off = Unheard::given_again().await;
    let tries = cut_off.faults.order(Fault::Refuse, 3, |call| matches!(call, Call::Changes));
    cut_off.comes_back();
    until("the death to be none", async || cut_off.record().await.deaths.count == 0).await;
    assert_eq!(tries.hits(), 3);
}

/// Nobody but the process knows its session, so nobody else speaks for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_of_a_name_does_not_speak_for_the_one_that_died() {
    let died = Unheard::given_again().await;
    died.node.abandon();
    let (next, faults) = faulty(&died.store, |config| config.node = NodeId::new("cut-off").unwrap());
    let polls = faults.always(Fault::Count, |call| matches!(call, Call::Poll(_)));
    next.start().await.unwrap();
    until("the next process to have settled down", async || polls.hits() > 3).await;
    let record = died.record().await;
    assert!(matches!(record.state, State::Assigned { .. } | State::Stopping { .. }));
    assert_eq!(record.deaths.count, 1);
}
