//! What an open store consists of, and all that is read from the tables.

use std::{collections::HashMap, sync::Arc};

use divider_core::{
    Batch, Beat, Blob, Cursor, GroupView, Holdings, Key, Message, Notice, Op, Page, Record, Revision, SessionId, Stats,
    StoreError, Term, Topic,
};
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    beat::Beater,
    codec::{self, Encoded, Unread, corrupt, number, unsigned, used},
    error::store_error,
    link::Link,
    pool::Lanes,
    sql::Sql,
};

/// Keys in one page of a scan; the statement says so too.
const PAGE: usize = 4096;

/// Batches, or messages, that are read at once; the statements say so too.
pub(crate) const AT_ONCE: usize = 64;

/// An open store.
pub(crate) struct Inner {
    pub(crate) sql: Arc<Sql>,
    pub(crate) group: Arc<str>,
    pub(crate) lanes: Lanes,
    pub(crate) link: Link,
    pub(crate) beater: Beater,
}

/// Runs a query with `$fetch` within the time limit, on a connection of its own.
macro_rules! call {
    ($inner:expr, $query:expr, $fetch:ident) => {{
        let mut lane = $inner.lanes.take().await?;
        let query = $query;
        let result = timeout($inner.lanes.limit(), query.$fetch(lane.connection()?)).await;
        lane.finish(result)
    }};
}
pub(crate) use call;

/// The statement that applies a batch.
pub(crate) fn apply<'q>(sql: &Sql, group: &'q str, ops: &'q [Op]) -> Query<'q, Postgres, PgArguments> {
    let Encoded { starts, kinds, names, sessions, tokens, terms, a, b, c, blobs } = Encoded::new(ops);
    sqlx::query(sql.apply.safe())
        .bind(group)
        .bind(starts)
        .bind(kinds)
        .bind(used(names))
        .bind(used(sessions))
        .bind(used(tokens))
        .bind(used(terms))
        .bind(used(a))
        .bind(used(b))
        .bind(used(c))
        .bind(used(blobs))
}

impl Inner {
    /// A value of a row.
    pub(crate) fn get<'r, T>(&self, row: &'r PgRow, at: usize) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        row.try_get(at).map_err(|error| store_error(error, self.lanes.limit()))
    }

    fn count(&self, row: &PgRow, at: usize) -> Result<u64, StoreError> {
        unsigned(self.get(row, at)?)
    }

    /// How far a topic has come: the group's revision, or the number of messages to the session; 0 before it begins.
    pub(crate) async fn number_of(&self, topic: Topic) -> Result<u64, StoreError> {
        let row = match topic {
            Topic::Group => call!(self, sqlx::query(self.sql.revision.safe()).bind(&*self.group), fetch_optional)?,
            Topic::Session(session) => {
                call!(self, sqlx::query(self.sql.seq.safe()).bind(&*self.group).bind(session.0), fetch_optional)?
            }
        };
        row.map_or(Ok(0), |row| self.count(&row, 0))
    }

    pub(crate) async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        let rows = call!(self, sqlx::query(self.sql.beats.safe()).bind(&*self.group), fetch_all)?;
        rows.iter().map(|row| Ok((SessionId(self.get(row, 0)?), Beat(self.count(row, 1)?)))).collect()
    }

    pub(crate) async fn gone(&self) -> Result<Vec<SessionId>, StoreError> {
        let rows = call!(self, sqlx::query(self.sql.gone.safe()).bind(&*self.group), fetch_all)?;
        rows.iter().map(|row| self.get(row, 0).map(SessionId)).collect()
    }

    pub(crate) async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        let query = sqlx::query(self.sql.holdings.safe()).bind(&*self.group).bind(session.0);
        let rows = call!(self, query, fetch_all)?;
        let seq = self.count(rows.first().ok_or(StoreError::SessionEnded)?, 0)?;
        let mut holdings = Vec::with_capacity(rows.len());
        for row in &rows {
            // A session that holds nothing has one row, without a key.
            let Some(key) = self.get(row, 1)? else { continue };
            holdings.push(codec::holding(codec::HoldingRow {
                key,
                token: self.get(row, 2)?,
                attempts: self.get(row, 3)?,
                weight: self.get(row, 4)?,
                priority: self.get(row, 5)?,
                payload: self.get(row, 6)?,
                checkpoint: self.get(row, 7)?,
                stopping: self.get(row, 8)?,
            })?);
        }
        Ok(Holdings { seq, holdings })
    }

    pub(crate) async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        let query = sqlx::query(self.sql.changes.safe()).bind(&*self.group).bind(number(since.0));
        let rows = call!(self, query, fetch_all)?;
        let now = self.count(rows.first().ok_or_else(|| corrupt("the group"))?, 0)?;
        if since.0 >= now {
            return Ok((since.0 == now).then(Vec::new));
        }
        let mut batches = Vec::with_capacity(rows.len());
        for (row, follows) in rows.iter().zip(since.0 + 1..) {
            let revision: Option<i64> = self.get(row, 1)?;
            if revision.map(unsigned).transpose()? != Some(follows) {
                return Ok(None);
            }
            batches.push(codec::batch(follows, self.get(row, 2)?)?);
        }
        Ok(Some(batches))
    }

    /// The messages that follow `since`, at most [`AT_ONCE`].
    pub(crate) async fn messages(&self, session: SessionId, since: u64) -> Result<Vec<Message>, StoreError> {
        let query = sqlx::query(self.sql.messages.safe()).bind(&*self.group).bind(session.0).bind(number(since));
        let rows = call!(self, query, fetch_all)?;
        if self.count(rows.first().ok_or(StoreError::SessionEnded)?, 0)? < since {
            return Err(corrupt("as many messages as there were"));
        }
        let (mut messages, mut with_blobs) = (Vec::new(), Vec::new());
        for row in &rows {
            // A session without news has one row, without a message.
            let Some(seq) = self.get::<Option<i64>>(row, 1)? else { continue };
            let notices = codec::notices(self.get(row, 2)?)?;
            for (notice, digest) in &notices {
                if let (Notice::Granted(holding), Some(_)) = (notice, digest) {
                    with_blobs.push(holding.key.as_str().to_owned());
                }
            }
            messages.push((seq, notices));
        }
        let blobs = self.blobs(with_blobs).await?;
        let complete = |(mut notice, digest): Unread| {
            if let (Notice::Granted(holding), Some(digest)) = (&mut notice, digest) {
                // What has changed since the grant must be read as a whole.
                let found =
                    blobs.get(&(holding.key.clone(), digest)).ok_or_else(|| corrupt("the blobs of the grant"))?;
                (holding.payload, holding.checkpoint) = found.clone();
            }
            Ok(notice)
        };
        let message = |(seq, notices): (i64, Vec<Unread>)| {
            let notices = notices.into_iter().map(complete).collect::<Result<_, StoreError>>()?;
            Ok(Message { seq: unsigned(seq)?, notices })
        };
        messages.into_iter().map(message).collect()
    }

    /// Payloads and checkpoints, by key and digest.
    async fn blobs(&self, keys: Vec<String>) -> Result<HashMap<(Key, String), (Blob, Blob)>, StoreError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let rows = call!(self, sqlx::query(self.sql.blobs.safe()).bind(&*self.group).bind(keys), fetch_all)?;
        let mut blobs = HashMap::with_capacity(rows.len());
        for row in &rows {
            if let Some(digest) = self.get::<Option<String>>(row, 3)? {
                let key = Key::new(self.get::<&str>(row, 0)?).map_err(|e| StoreError::Corrupt(e.to_string()))?;
                let bytes = (Blob::from(self.get::<&[u8]>(row, 1)?), Blob::from(self.get::<&[u8]>(row, 2)?));
                blobs.insert((key, digest), bytes);
            }
        }
        Ok(blobs)
    }

    pub(crate) async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        let unread = |_| corrupt("a cursor of this store");
        let after = cursor.map(|Cursor(bytes)| String::from_utf8(bytes)).transpose().map_err(unread)?;
        let rows = call!(self, sqlx::query(self.sql.scan.safe()).bind(&*self.group).bind(after), fetch_all)?;
        let Some((head, runs)) = rows.split_first() else { return Err(corrupt("a group")) };
        let mut keys = Vec::with_capacity(PAGE);
        for row in runs {
            let run = codec::Run {
                owner: self.get(row, 5)?,
                stopping: self.get(row, 6)?,
                quarantined: self.get(row, 7)?,
                avoid: self.get(row, 8)?,
                keys: self.get(row, 9)?,
                tokens: self.get(row, 10)?,
                weight: (self.get(row, 11)?, self.get(row, 12)?),
                priority: (self.get(row, 13)?, self.get(row, 14)?),
                not_before_ms: (self.get(row, 15)?, self.get(row, 16)?),
                attempts: (self.get(row, 17)?, self.get(row, 18)?),
                fates: (self.get(row, 19)?, self.get(row, 20)?),
            };
            run.views(&mut keys)?;
        }
        let last = keys.iter().map(|view| &view.key).max().filter(|_| keys.len() == PAGE);
        let next = last.map(|key| Cursor(key.as_str().as_bytes().to_vec()));
        Ok(Page {
            revision: Revision(self.count(head, 0)?),
            group: GroupView {
                term: Term(self.count(head, 1)?),
                leader: self.get::<Option<Uuid>>(head, 2)?.map(SessionId),
                hold: self.get(head, 3)?,
            },
            sessions: codec::sessions(self.get(head, 4)?)?,
            keys,
            next,
        })
    }

    pub(crate) async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let mut records = vec![None; keys.len()];
        let names: Vec<&str> = keys.iter().map(Key::as_str).collect();
        let rows = call!(self, sqlx::query(self.sql.records.safe()).bind(&*self.group).bind(names), fetch_all)?;
        for row in &rows {
            let at = usize::try_from(self.get::<i64>(row, 0)?).unwrap_or_default().wrapping_sub(1);
            let view = codec::views(Some(self.get(row, 1)?))?.pop();
            let (Some(place), Some(view)) = (records.get_mut(at), view) else { return Err(corrupt("a record")) };
            let payload = Blob::from(self.get::<&[u8]>(row, 2)?);
            *place = Some(Record { view, payload, checkpoint: Blob::from(self.get::<&[u8]>(row, 3)?) });
        }
        Ok(records)
    }

    pub(crate) async fn stats(&self) -> Result<Stats, StoreError> {
        let row = call!(self, sqlx::query(self.sql.stats.safe()).bind(&*self.group), fetch_one)?;
        let (registered, quarantined) = (self.count(&row, 0)?, self.count(&row, 1)?);
        let (held, stopping) = (self.count(&row, 3)?, self.count(&row, 4)?);
        Ok(Stats {
            sessions: self.count(&row, 2)?,
            registered,
            assigned: held.saturating_sub(stopping),
            pending: registered.saturating_sub(held).saturating_sub(quarantined),
            stopping,
            quarantined,
        })
    }

    pub(crate) async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = sqlx::query(self.sql.quarantined.safe()).bind(&*self.group).bind(limit);
        let rows = call!(self, query, fetch_all)?;
        let key = |row| Key::new(self.get::<&str>(row, 0)?).map_err(|e| StoreError::Corrupt(e.to_string()));
        rows.iter().map(key).collect()
    }
}
