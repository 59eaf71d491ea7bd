//! All that a session holds.
//!
//! # Why
//! It may be more than the way to it carries within the time limit of a call, so it is read page by page. On a busy group
//! it changes between any two pages; a reading that waited for a quiet moment would never end.
//!
//! # How
//! As a new leader reads the group: what has changed since the first page is asked for after each page. The keys that it
//! names are read once more in the end.

use std::collections::{BTreeMap, BTreeSet};

use divider_core::{Change, Holding, Holdings, Key, Revision, SessionId, Store, StoreError};
use redis::Value;

use crate::{
    RedisStore, codec,
    reply::{Reply, records},
    store::PAGE,
};

/// How often a reading begins again because the changes meanwhile are no longer kept.
const TRIES: usize = 10;

/// One that is on its way.
struct Reading<'a> {
    store: &'a RedisStore,
    session: SessionId,
    held: BTreeMap<Key, Holding>,
    /// Keys that were the session's, or became so, since they were read.
    touched: BTreeSet<Key>,
    /// What has changed is known up to here.
    known: Option<Revision>,
}

/// One page.
struct Page {
    seq: u64,
    revision: Revision,
    last: bool,
    /// The last key on it.
    end: Option<Key>,
}

pub(crate) async fn read(store: &RedisStore, session: SessionId) -> Result<Holdings, StoreError> {
    for _ in 0..TRIES {
        let reading = Reading { store, session, held: BTreeMap::new(), touched: BTreeSet::new(), known: None };
        if let Some(holdings) = reading.run().await? {
            return Ok(holdings);
        }
    }
    Err(StoreError::Unavailable {
        message: "the session's keys change faster than they can be read".into(),
        source: None,
    })
}

impl Reading<'_> {
    /// `None` where the changes are no longer kept.
    async fn run(mut self) -> Result<Option<Holdings>, StoreError> {
        let mut after = None;
        loop {
            let page = self.page(after.as_ref()).await?;
            let mut seq = page.seq;
            if *self.known.get_or_insert(page.revision) != page.revision {
                match self.catch_up().await? {
                    Some(now) => seq = now,
                    None => return Ok(None),
                }
            }
            if page.last {
                self.read_touched().await?;
                return Ok(Some(Holdings { seq, holdings: self.held.into_values().collect() }));
            }
            after = Some(page.end.ok_or_else(|| codec::corrupt("a page that goes on"))?);
        }
    }

    async fn page(&mut self, after: Option<&Key>) -> Result<Page, StoreError> {
        let (limit, after) = (PAGE.to_string(), after.map_or("", Key::as_str));
        let args = [b"holdings", &self.session.0.as_bytes()[..], after.as_bytes(), limit.as_bytes()];
        let reply = self.store.read(&args).await?;
        if reply.0 == Value::Int(0) {
            return Err(StoreError::SessionEnded);
        }
        let mut rows = reply.array()?.into_iter();
        let [seq, revision, more] = Reply::take(&mut rows)?;
        let (seq, revision, last) = (seq.number()?, Revision(revision.number()?), more.number()? == 0);
        let records = records(rows)?;
        let end = records.last().map(|(key, _)| key.clone());
        let holdings = records.into_iter().filter_map(|(_, record)| codec::holding(record?));
        self.held.extend(holdings.map(|holding| (holding.key.clone(), holding)));
        Ok(Page { seq, revision, last, end })
    }

    /// Hears of all changes up to a moment; the number of the last message to the session at that moment.
    async fn catch_up(&mut self) -> Result<Option<u64>, StoreError> {
        loop {
            let known = self.known.unwrap_or_default();
            let Some((seq, now, batches)) = self.store.changes_since(known, Some(self.session)).await? else {
                return Ok(None);
            };
            let seq = seq.ok_or(StoreError::SessionEnded)?;
            let known = batches.last().map_or(known, |batch| batch.revision);
            self.known = Some(known);
            batches.into_iter().flat_map(|batch| batch.changes).for_each(|change| self.touch(change));
            if known >= now {
                return Ok(Some(seq));
            }
        }
    }

    fn touch(&mut self, change: Change) {
        let (key, mine) = match change {
            Change::Key(view) => {
                let mine = view.state.owner().is_some_and(|(owner, _)| owner == self.session);
                (view.key, mine)
            }
            Change::KeyGone(key) => (key, false),
            _ => return,
        };
        if mine || self.held.contains_key(&key) {
            self.touched.insert(key);
        }
    }

    /// Reads what was touched as it is now. That is later than the number of the last message, which does no harm: what a
    /// later message says of an ownership that is known, or over, is known.
    async fn read_touched(&mut self) -> Result<(), StoreError> {
        let keys: Vec<Key> = std::mem::take(&mut self.touched).into_iter().collect();
        let records = self.store.records(&keys).await?;
        for (key, record) in keys.into_iter().zip(records) {
            let mine = |owner: Option<(SessionId, _)>| owner.is_some_and(|(owner, _)| owner == self.session);
            let record = record.filter(|record| mine(record.view.state.owner()));
            match record.and_then(codec::holding) {
                Some(holding) => _ = self.held.insert(key, holding),
                None => _ = self.held.remove(&key),
            }
        }
        Ok(())
    }
}
