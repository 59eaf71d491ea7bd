//! How a node is, for a probe.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Node;
use crate::ids::{NodeId, SessionId};

/// How a node is at the moment, as far as it knows itself. From [`Node::health`].
///
/// It can be shown as it is, such as by `serde_json`. A node is *ready* while it has a session. One that has none for
/// longer than a few leases cannot reach its store; to start it anew does not help against that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// The node's name.
    pub node: NodeId,
    /// The session; `None` before the start, after the end, and between a loss and the next join.
    pub session: Option<SessionId>,
    /// Whether it leads its group.
    pub leads: bool,
    /// How many keys it holds, those included that are being stopped.
    pub held: usize,
    /// Its affinity, as last acknowledged by the store.
    pub affinity: u32,
    /// How long ago the last renewal was sent that counted, in milliseconds: below the time between two beats in good
    /// times, and never more than the lease. `None` without a session.
    pub renewed_ms_ago: Option<u64>,
    /// Whether it takes no more work, because it is being flushed or cancelled.
    pub draining: bool,
}

impl Node {
    /// How the node is. No I/O, no waiting: from memory, for a probe that is asked often.
    pub fn health(&self) -> Health {
        let shared = self.shared();
        let (session, held, affinity, draining) =
            shared.with(|member| (member.session(), member.held(), member.affinity(), member.draining()));
        let ended = shared.has_ended();
        let session = session.filter(|_| !ended);
        let age = || {
            let believed = shared.config.lease - shared.config.drift_margin();
            Some(shared.clock.now().since(shared.lease_deadline()? - believed))
        };
        Health {
            node: shared.config.node.clone(),
            session,
            leads: self.is_leader(),
            held,
            affinity,
            renewed_ms_ago: session.and_then(|_| age()).map(milliseconds),
            draining: draining || ended,
        }
    }
}

fn milliseconds(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::{Clock, Divider, Event, Instant, InvalidInput, MemoryStore, Work};

    /// Moved by hand.
    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Instant {
            Instant(1_000_000_000 + self.0.load(Ordering::SeqCst) * 1_000_000)
        }

        fn unix_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn the_health_of_a_node_follows_its_life() {
        let hand = Arc::new(Hand::default());
        let builder = Node::builder(MemoryStore::new()).name("anna").unwrap().lease(Duration::from_secs(3600));
        let node = builder.clock(hand.clone()).build().unwrap();
        let before = node.health();
        assert_eq!((before.node.as_str(), before.session, before.renewed_ms_ago), ("anna", None, None));
        assert!(!before.leads && !before.draining);

        let mut events = node.events();
        node.start().await.unwrap();
        node.add_work(vec![Work::new("key").unwrap()]).await.unwrap();
        let Some(Event::Start(key)) = events.next().await else { panic!("nothing else can come first") };
        let well = node.health();
        assert_eq!((well.session, well.held, well.affinity), (node.session(), 1, 1000));
        assert!(well.session.is_some() && well.leads && !well.draining);
        assert_eq!(well.renewed_ms_ago, Some(0));
        hand.0.store(700, Ordering::SeqCst);
        // The first renewal on the thread of its own may come before or after this.
        assert!(matches!(node.health().renewed_ms_ago, Some(0 | 700)));

        let flush = tokio::spawn({
            let node = node.clone();
            async move { node.flush_and_cancel().await }
        });
        assert!(matches!(events.next().await, Some(Event::Stop(_))));
        let draining = node.health();
        assert!(draining.draining && draining.session.is_some() && draining.held == 1);
        node.confirm_stop_processing(&key.key, key.token).await.unwrap();
        assert!(flush.await.unwrap().unwrap().is_clean());
        let ended = node.health();
        assert_eq!((ended.session, ended.held, ended.leads, ended.renewed_ms_ago), (None, 0, false, None));
        assert!(ended.draining);
    }

    #[test]
    fn the_age_of_a_renewal_is_counted_from_its_sending() {
        let hand = Arc::new(Hand::default());
        let node = Node::builder(MemoryStore::new()).clock(hand.clone()).build().unwrap();
        let shared = node.shared();
        shared.joined(SessionId::fresh(), shared.deadline(hand.now()), 1000);
        hand.0.store(250, Ordering::SeqCst);
        assert_eq!(node.health().renewed_ms_ago, Some(250));
        hand.0.store(3000, Ordering::SeqCst);
        assert_eq!(node.health().session, None, "its lease has run out");
    }

    #[test]
    fn a_name_that_is_not_one_is_refused_where_it_is_given() {
        let refused = Node::builder(MemoryStore::new()).name("").err();
        assert_eq!(refused, Some(InvalidInput::Empty { what: "node" }));
    }

    #[tokio::test]
    async fn work_from_a_function_comes_and_goes_with_what_the_function_says() {
        let gone = Arc::new(AtomicU64::new(0));
        let said = gone.clone();
        let work = move || {
            let named = if said.load(Ordering::SeqCst) == 0 { vec!["one", "other"] } else { vec!["one"] };
            async move { Ok(named.into_iter().map(Work::new).collect::<Result<_, _>>()?) }
        };
        let node = Node::builder(MemoryStore::new()).work_from(Duration::from_millis(5), work).build().unwrap();
        let mut events = node.events();
        node.start().await.unwrap();
        for _ in 0..2 {
            assert!(matches!(events.next().await, Some(Event::Start(_))));
        }
        gone.store(1, Ordering::SeqCst);
        let Some(Event::Stop(stop)) = events.next().await else { panic!("what is gone is to be stopped") };
        assert_eq!((stop.key.as_str(), stop.reason), ("other", crate::StopReason::Removed));
    }
}
