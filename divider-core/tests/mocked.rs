//! A program's own tests can stand a [`Divider`] of their own in for a node: everything that one hands out can be made.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use divider_core::{
    Assigned, Assignment, Blob, Divider, Error, Event, Events, Flushed, Key, MemoryStore, Node, NodeId, NotHandedOver,
    Record, Release, SessionId, Stats, Stop, StopReason, StoreError, Token, Work,
};
use futures_util::stream;

/// Tells of one key that starts and stops, and is never anything but well.
struct Mock {
    node: NodeId,
    key: Key,
}

impl Mock {
    fn start(&self) -> Assignment {
        let mut start = Assignment::new(self.key.clone(), Token(7));
        start.attempts = 2;
        start
    }

    fn stop(&self) -> Stop {
        Stop::new(self.key.clone(), Token(7), StopReason::Rebalanced)
    }
}

#[async_trait]
impl Divider for Mock {
    async fn start(&self) -> Result<(), Error> {
        Ok(())
    }

    fn start_processing(&self) -> Events<Assignment> {
        Events::new(stream::iter([self.start()]))
    }

    fn stop_processing(&self) -> Events<Stop> {
        Events::new(stream::iter([self.stop()]))
    }

    fn events(&self) -> Events<Event> {
        Events::new(stream::iter([Event::Start(self.start()), Event::Stop(self.stop())]))
    }

    fn take_events(&self) -> Result<Events<Event>, Error> {
        Ok(self.events())
    }

    fn node(&self) -> &NodeId {
        &self.node
    }

    fn session(&self) -> Option<SessionId> {
        None
    }

    async fn confirm_stop_processing(&self, _: &Key, _: Token) -> Result<(), Error> {
        Ok(())
    }

    async fn release(&self, _: &Key, _: Token, _: Release) -> Result<(), Error> {
        Ok(())
    }

    async fn set_aside(&self, _: &Key, _: Token, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn complete(&self, _: &Key, _: Token) -> Result<(), Error> {
        Ok(())
    }

    async fn checkpoint(&self, _: &Key, _: Token, _: Blob) -> Result<(), Error> {
        Ok(())
    }

    fn assigned(&self) -> Arc<[Assigned]> {
        [Assigned::new(self.key.clone(), Token(7), true, None)].into()
    }

    fn is_current(&self, key: &Key, token: Token) -> bool {
        (key, token) == (&self.key, Token(7))
    }

    fn affinity(&self) -> u32 {
        1
    }

    async fn set_affinity(&self, _: i64) -> Result<(), Error> {
        Ok(())
    }

    async fn alter_affinity(&self, _: i64) -> Result<u32, Error> {
        Ok(1)
    }

    fn flushed(&self) -> Flushed {
        Flushed::new(self.assigned().to_vec(), Vec::new())
    }

    async fn session_changed(&self, _: Option<SessionId>) {
        std::future::pending().await
    }

    async fn flush(&self) -> Result<Flushed, Error> {
        let mut flushed = Flushed::new(self.assigned().to_vec(), Vec::new());
        flushed.not_handed_over.push(NotHandedOver::new(self.key.clone(), Token(7), "it hangs"));
        Ok(flushed)
    }

    async fn cancel(&self) -> Result<(), Error> {
        Ok(())
    }

    fn abandon(&self) {}

    async fn add_work(&self, _: Vec<Work>) -> Result<(), Error> {
        Ok(())
    }

    async fn remove_work(&self, _: Vec<Key>) -> Result<(), Error> {
        Ok(())
    }

    async fn retry(&self, _: &Key) -> Result<(), Error> {
        Ok(())
    }

    async fn quarantined(&self, _: usize) -> Result<Vec<Key>, Error> {
        Ok(Vec::new())
    }

    async fn rebalance(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn step_up(&self) -> Result<bool, Error> {
        Ok(false)
    }

    async fn record(&self, _: &Key) -> Result<Option<Record>, Error> {
        Ok(None)
    }

    async fn stats(&self) -> Result<Stats, Error> {
        Err(StoreError::Timeout { limit: Duration::ZERO }.into())
    }
}

/// A program: starts what it is told to, and confirms what it has stopped. Returns what it ran.
async fn program(divider: &dyn Divider) -> Vec<(Key, Token, u32)> {
    let (mut events, mut ran) = (divider.events(), Vec::new());
    while let Some(event) = events.next().await {
        match event {
            Event::Start(work) => ran.push((work.key, work.token, work.attempts)),
            Event::Stop(stop) => divider.confirm_stop_processing(&stop.key, stop.token).await.expect("it is taken"),
            _ => unreachable!("nothing else is sent"),
        }
    }
    ran
}

#[tokio::test]
async fn a_program_runs_against_a_divider_of_its_own() {
    let mock = Mock { node: NodeId::new("mock").unwrap(), key: Key::new("k").unwrap() };
    assert_eq!(program(&mock).await, [(mock.key.clone(), Token(7), 2)]);
    assert_eq!((mock.token(&mock.key), mock.is_leader()), (Some(Token(7)), false));
    assert_eq!(mock.token(&Key::new("another").unwrap()), None);
    assert_eq!(mock.flush().await.unwrap().not_handed_over[0].why, "it hangs");
}

#[tokio::test]
async fn a_node_says_who_it_is_whether_it_leads_and_under_which_token_it_runs_a_key() {
    let node = Node::builder(MemoryStore::new()).configure(|config| config.node = NodeId::new("n").unwrap());
    let node: Arc<dyn Divider> = Arc::new(node.build().unwrap());
    let key = Key::new("k").unwrap();
    assert_eq!((node.node().as_str(), node.is_leader(), node.token(&key)), ("n", false, None));

    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(vec![Work::from(key.clone())]).await.unwrap();
    let Some(Event::Start(work)) = events.next().await else { panic!("nothing else can come first") };
    assert!(node.is_leader());
    assert_eq!(node.token(&key), Some(work.token));
    node.abandon();
    assert_eq!((node.is_leader(), node.token(&key)), (false, None), "an ended node acts on nothing");
}

#[test]
fn only_what_may_pass_by_itself_is_worth_another_try() {
    let key = Key::new("k").unwrap();
    let passing = [Error::NoSession, StoreError::Timeout { limit: Duration::ZERO }.into()];
    assert!(passing.iter().all(Error::is_transient));
    let lasting = [
        Error::NotStarted,
        Error::AlreadyRead,
        Error::Cancelled,
        Error::UnknownKey { key },
        StoreError::Misconfigured("a table is missing".into()).into(),
        StoreError::SessionEnded.into(),
    ];
    assert!(!lasting.iter().any(Error::is_transient));
}
