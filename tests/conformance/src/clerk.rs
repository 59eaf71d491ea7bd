//! A session at the store itself, without a node: for checks of single ops.

use divider_core::{
    Applied, Claim, Key, KeyView, NodeId, Op, Outcome, Page, PollReply, Record, SessionId, SessionView, State, Store,
    Term, Token, Work,
};

use super::{Backend, Trial, trial::soon};

/// One store handle and its session.
pub(super) struct Clerk<S> {
    pub(super) store: S,
    pub(super) session: SessionId,
    pub(super) term: Term,
}

impl<S: Store> Clerk<S> {
    /// Joins with affinity 1000 and without a capacity.
    pub(super) async fn join<B: Backend<Store = S>>(trial: &Trial<B>) -> Self {
        Self::join_as(trial, 1000, None).await
    }

    pub(super) async fn join_as<B: Backend<Store = S>>(trial: &Trial<B>, affinity: u32, capacity: Option<u32>) -> Self {
        let clerk = Self::opened(trial).await;
        assert_eq!(clerk.one(clerk.joining(affinity, capacity).await).await, Outcome::Done);
        clerk
    }

    /// Joins as a program that reads no newer format.
    pub(super) async fn reading<B: Backend<Store = S>>(trial: &Trial<B>, format: u16) -> Self {
        let clerk = Self::opened(trial).await;
        let mut join = clerk.joining(1000, None).await;
        if let Op::Join { reads, .. } = &mut join {
            *reads = format;
        }
        assert_eq!(clerk.one(join).await, Outcome::Done);
        clerk
    }

    async fn opened<B: Backend<Store = S>>(trial: &Trial<B>) -> Self {
        let store = trial.store().await;
        soon("the store to open", store.open()).await.unwrap();
        Self { store, session: SessionId::fresh(), term: Term(0) }
    }

    /// Joins and leads.
    pub(super) async fn leading<B: Backend<Store = S>>(trial: &Trial<B>) -> Self {
        let mut clerk = Self::join(trial).await;
        clerk.lead().await;
        clerk
    }

    /// A join of one who knows where the group stands.
    pub(super) async fn joining(&self, affinity: u32, capacity: Option<u32>) -> Op {
        let node = NodeId::new("clerk").unwrap();
        let seen = self.apply(&[]).await.revision;
        Op::join(self.session, node).affinity(affinity).capacity(capacity).lease_ms(10_000).seen(seen).build()
    }

    /// Takes the leadership, and ends the hold that a fresh group may begin with.
    pub(super) async fn lead(&mut self) {
        let lead = async {
            loop {
                let standing = self.poll(Claim::Take { stale: None }).await;
                match standing.leader {
                    Some(leader) if leader.session == self.session => return leader.term,
                    _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
                }
            }
        };
        self.term = soon("leadership", lead).await;
        let outcome = self.one(Op::ResumeGrants { term: self.term }).await;
        assert!(matches!(outcome, Outcome::Done | Outcome::Unchanged), "{outcome:?}");
    }

    /// Gives the leadership up, if it has it, and ends the session.
    pub(super) async fn leave(self) {
        self.store.resign(self.session, self.term).await.unwrap();
        assert_eq!(self.one(Op::End { session: self.session }).await, Outcome::Done);
        self.store.close().await;
    }

    pub(super) async fn poll(&self, claim: Claim) -> PollReply {
        soon("a poll", self.store.poll(self.session, claim)).await.unwrap()
    }

    pub(super) async fn apply(&self, ops: &[Op]) -> Applied {
        let applied = soon("a batch", self.store.apply(ops)).await.unwrap();
        assert_eq!(applied.outcomes.len(), ops.len(), "each op has its outcome");
        applied
    }

    pub(super) async fn one(&self, op: Op) -> Outcome {
        self.apply(&[op]).await.outcomes[0]
    }

    pub(super) async fn add(&self, name: &str) -> Key {
        let work = Work::new(name).unwrap();
        let key = work.key.clone();
        assert_eq!(self.one(Op::Add(work)).await, Outcome::Done);
        key
    }

    pub(super) async fn assign(&self, key: &Key, session: SessionId) -> Token {
        let op = Op::assign(self.term, key.clone(), session);
        match self.one(op).await {
            Outcome::Granted(token) => token,
            other => panic!("{key} should have been granted: {other:?}"),
        }
    }

    pub(super) async fn record(&self, key: &Key) -> Option<Record> {
        self.store.records(std::slice::from_ref(key)).await.unwrap().into_iter().next().flatten()
    }

    pub(super) async fn state(&self, key: &Key) -> Option<State> {
        self.record(key).await.map(|record| record.view.state)
    }

    pub(super) fn confirm(&self, key: &Key, token: Token) -> Op {
        Op::confirm(self.session, key.clone(), token)
    }

    /// Reads the whole group; the first page carries its revision.
    pub(super) async fn scan(&self) -> (Page, Vec<SessionView>, Vec<KeyView>) {
        let first = self.store.scan(None).await.unwrap();
        let (sessions, mut keys) = (first.sessions.clone(), first.keys.clone());
        let mut next = first.next.clone();
        while let Some(cursor) = next {
            let page = self.store.scan(Some(cursor)).await.unwrap();
            keys.extend(page.keys);
            next = page.next;
        }
        (first, sessions, keys)
    }

    /// This session's beat.
    pub(super) async fn beat(&self) -> divider_core::Beat {
        let beats = self.store.beats().await.unwrap();
        beats.iter().find(|(session, _)| *session == self.session).map(|(_, beat)| *beat).unwrap_or_default()
    }
}
