//! That a mistake is found, and cut down to what shows it.

use async_trait::async_trait;
use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, GroupView, HintStream, Holdings, Key, MemoryStore, Op, Page, PollReply,
    Record, Revision, SessionId, Stats, Store, StoreError, Term, Topic,
};

use super::*;

/// A store that makes a mistake: it takes each op for another one, which may depend on the group and on the key.
struct Wrong {
    store: MemoryStore,
    takes: fn(&mut Op, GroupView, Option<Record>),
}

#[async_trait]
impl Store for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.store.open().await
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        let group = self.store.scan(None).await?.group;
        let mut taken = ops.to_vec();
        for op in &mut taken {
            let record = match op {
                Op::Confirm { key, .. } => self.store.records(std::slice::from_ref(key)).await?.pop().flatten(),
                _ => None,
            };
            (self.takes)(op, group, record);
        }
        self.store.apply(&taken).await
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.store.renew(session).await
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
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

/// Finds the mistake, cuts it down to so many acts at most, and has the script fail again as it would be kept; the right
/// store runs it well.
async fn finds(takes: fn(&mut Op, GroupView, Option<Record>), most: usize) {
    let wrong = async move |_: String| Wrong { store: MemoryStore::new(), takes };
    let Err(Found { seed, problem, steps, tries }) = find(0..2000, Expect::ALL, &wrong).await else {
        panic!("the mistake is not found");
    };
    let text = script::text(&steps);
    println!("seed {seed}, cut down in {tries} tries: {problem}\n{text}");
    let acts = |step: &Step| if let Step::Batch(acts) = step { acts.len() } else { 1 };
    let acts: usize = steps.iter().map(acts).sum();
    assert!(acts <= most, "{acts} acts are left:\n{text}");
    attempt(0, 0, Expect::ALL, &wrong, &script(&text)).await.unwrap_err();
    attempt(0, 0, Expect::ALL, &async |_: String| MemoryStore::new(), &script(&text)).await.unwrap();
}

#[tokio::test]
async fn a_store_that_does_not_look_at_the_token_of_a_confirmation_is_found_by_a_short_script() {
    let takes = |op: &mut Op, _, record: Option<Record>| {
        if let (Op::Confirm { token, .. }, Some((_, right))) = (op, record.and_then(|r| r.view.state.owner())) {
            *token = right;
        }
    };
    finds(takes, 6).await;
}

#[tokio::test]
async fn a_store_that_does_not_look_at_the_term_of_a_grant_is_found_by_a_short_script() {
    let takes = |op: &mut Op, group: GroupView, _| {
        if let Op::Assign { term, .. } = op {
            *term = group.term;
        }
    };
    finds(takes, 6).await;
}
