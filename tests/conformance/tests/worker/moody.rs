//! A store that refuses what it is told to refuse, with the error that it is told.

use std::sync::Arc;

use async_trait::async_trait;
use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, HintStream, Holdings, Key, MemoryStore, Op, Page, PollReply, Record, Revision,
    SessionId, Stats, Store, StoreError, Term, Topic,
};
use parking_lot::Mutex;

type Mood = Box<dyn FnMut(&[Op]) -> Option<StoreError> + Send>;

/// Clones share the group and the mood.
#[derive(Clone)]
pub(crate) struct Moody {
    store: MemoryStore,
    mood: Arc<Mutex<Mood>>,
}

impl Moody {
    pub(crate) fn new(store: &MemoryStore) -> Self {
        Self { store: store.clone(), mood: Arc::new(Mutex::new(Box::new(|_| None))) }
    }

    /// Asked before every call, with the ops that it applies.
    pub(crate) fn mood(&self, mood: impl FnMut(&[Op]) -> Option<StoreError> + Send + 'static) {
        *self.mood.lock() = Box::new(mood);
    }

    fn ask(&self, ops: &[Op]) -> Result<(), StoreError> {
        (self.mood.lock())(ops).map_or(Ok(()), Err)
    }
}

#[async_trait]
impl Store for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }
    async fn open(&self) -> Result<(), StoreError> {
        self.ask(&[])?;
        self.store.open().await
    }
    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        self.ask(ops)?;
        self.store.apply(ops).await
    }
    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.ask(&[])?;
        self.store.renew(session).await
    }
    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        self.ask(&[])?;
        self.store.poll(session, claim).await
    }
    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        self.store.resign(session, term).await
    }
    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        self.store.beats().await
    }
    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        self.store.holdings(session).await
    }
    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        self.store.changes(since).await
    }
    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        self.store.scan(cursor).await
    }
    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.store.records(keys).await
    }
    async fn stats(&self) -> Result<Stats, StoreError> {
        self.store.stats().await
    }
    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.store.quarantined(limit).await
    }
    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        self.store.hints(topic).await
    }
    async fn close(&self) {
        self.store.close().await;
    }
}
