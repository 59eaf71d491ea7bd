//! What an open store consists of, and all that is read from the tables.

use std::{collections::HashMap, sync::Arc};

use divider_core::{
    Batch, Beat, Blob, Cursor, GroupView, Key, Message, Notice, Op, Page, Record, Revision, SessionId, Stats,
    StoreError, Term, Text as Why, Topic, limits,
};
use sqlx::{
    Connection, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use uuid::Uuid;

use crate::{
    beat::Beater,
    codec::{self, Encoded, Unread, corrupt, number, unsigned, used},
    error::store_error,
    leader_connection::LeaderConnection,
    pool::Lanes,
    seen::Seen,
    sql::{Sql, Text},
};

/// Keys in one page of a scan or of holdings; the statements say so too.
pub(crate) const PAGE: usize = 4096;

/// Keys that are looked up by name at once.
const KEYS_AT_ONCE: usize = 256;

/// An open store.
pub(crate) struct Inner {
    pub(crate) sql: Arc<Sql>,
    pub(crate) group: Arc<str>,
    pub(crate) lanes: Lanes,
    pub(crate) leader_connection: LeaderConnection,
    pub(crate) beater: Beater,
    pub(crate) seen: Seen,
}

/// Runs a query with `$fetch` within the time limit, the wait for a connection of its own included.
macro_rules! call {
    ($inner:expr, $query:expr, $fetch:ident) => {{
        let mut lane = $inner.lanes.take().await?;
        let query = $query;
        let (begin, until) = (lane.beginning(), lane.until());
        let connection = lane.connection()?;
        let result = tokio::time::timeout_at(until.into(), async {
            let Some(begin) = begin else { return query.$fetch(connection).await };
            let mut transaction = connection.begin_with(begin).await?;
            let found = query.$fetch(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(found)
        });
        let result = result.await;
        lane.finish(result)
    }};
}
pub(crate) use call;

/// The statement that applies a batch. `seen` is the highest token that is known.
pub(crate) fn apply<'q>(sql: &Sql, group: &'q str, ops: &'q [Op], seen: i64) -> Query<'q, Postgres, PgArguments> {
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
        .bind(seen)
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
                let query = sqlx::query(self.sql.seq.safe()).bind(&*self.group).bind(session.0);
                call!(self, query.bind(self.seen.last()), fetch_optional)?
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

    /// The batches that follow `since`, and whether there are more than those.
    pub(crate) async fn changes(&self, since: Revision) -> Result<Option<(Vec<Batch>, bool)>, StoreError> {
        let query = sqlx::query(self.sql.changes.safe()).bind(&*self.group).bind(number(since.0));
        let rows = call!(self, query, fetch_all)?;
        let now = self.count(rows.first().ok_or_else(|| corrupt("the group"))?, 0)?;
        if since.0 >= now {
            return Ok((since.0 == now).then(|| (Vec::new(), false)));
        }
        let mut batches = Vec::with_capacity(rows.len());
        for (row, follows) in rows.iter().zip(since.0 + 1..) {
            let revision: Option<i64> = self.get(row, 1)?;
            if revision.map(unsigned).transpose()? != Some(follows) {
                return Ok(None);
            }
            batches.push(codec::batch(follows, self.get(row, 2)?)?);
        }
        let more = batches.last().is_some_and(|last| last.revision.0 < now);
        Ok(Some((batches, more)))
    }

    /// The messages that follow `since`, and whether there are more than those.
    pub(crate) async fn messages(&self, session: SessionId, since: u64) -> Result<(Vec<Message>, bool), StoreError> {
        let query = sqlx::query(self.sql.messages.safe()).bind(&*self.group).bind(session.0).bind(number(since));
        let rows = call!(self, query.bind(self.seen.last()), fetch_all)?;
        let last = self.count(rows.first().ok_or(StoreError::SessionEnded)?, 0)?;
        if last < since {
            return Err(corrupt("as many messages as there were"));
        }
        let (mut messages, mut with_blobs) = (Vec::new(), Vec::new());
        for row in &rows {
            // A session without news has one row, without a message.
            let Some(seq) = self.get::<Option<i64>>(row, 1)? else { continue };
            let notices = codec::notices(self.get(row, 2)?)?;
            for (notice, digest) in &notices {
                if let Notice::Granted(holding) = notice {
                    self.seen.note(holding.token);
                    with_blobs.extend(digest.as_ref().map(|_| holding.key.as_str().to_owned()));
                }
            }
            messages.push((seq, notices));
        }
        let blobs = self.blobs(&with_blobs).await?;
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
        let messages: Vec<Message> = messages.into_iter().map(message).collect::<Result<_, StoreError>>()?;
        let more = messages.last().is_some_and(|message| message.seq < last);
        Ok((messages, more))
    }

    /// Payloads and checkpoints, by key and digest.
    async fn blobs(&self, keys: &[String]) -> Result<HashMap<(Key, String), (Blob, Blob)>, StoreError> {
        let rows = self.by_keys(&self.sql.blobs, keys).await?;
        let mut blobs = HashMap::with_capacity(rows.len());
        for (at, row) in &rows {
            if let Some(digest) = self.get::<Option<String>>(row, 4)? {
                let key = Key::new(keys[*at].as_str()).map_err(|e| StoreError::Corrupt(e.to_string()))?;
                let bytes = (Blob::from(self.get::<&[u8]>(row, 2)?), Blob::from(self.get::<&[u8]>(row, 3)?));
                blobs.insert((key, digest), bytes);
            }
        }
        Ok(blobs)
    }

    /// Runs a statement that finds something of single keys, on as many at a time as can be expected to come in time. Its
    /// rows begin with the key's place, and how many rows there are. They are returned with the place in `keys`.
    async fn by_keys<K: AsRef<str>>(&self, text: &Text, keys: &[K]) -> Result<Vec<(usize, PgRow)>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut from = 0;
        while from < keys.len() {
            let names: Vec<&str> = keys.iter().skip(from).take(KEYS_AT_ONCE).map(AsRef::as_ref).collect();
            let to = from + names.len();
            let rows = call!(self, sqlx::query(text.safe()).bind(&*self.group).bind(names), fetch_all)?;
            let all = rows.first().map_or(Ok(0), |row| self.count(row, 1))?;
            let complete = u64::try_from(rows.len()).is_ok_and(|rows| rows >= all);
            let mut read = from;
            for row in rows {
                let place = usize::try_from(self.count(&row, 0)?).unwrap_or_default();
                read = from + place;
                // From outside, so it is not believed.
                if place == 0 || read > to {
                    return Err(corrupt("the place of a key"));
                }
                found.push((read - 1, row));
            }
            from = if complete { to } else { read };
        }
        Ok(found)
    }

    pub(crate) async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        let unread = |_| corrupt("a cursor of this store");
        let after = cursor.map(|Cursor(bytes)| String::from_utf8(bytes)).transpose().map_err(unread)?;
        let rows = call!(self, sqlx::query(self.sql.scan.safe()).bind(&*self.group).bind(after), fetch_all)?;
        let Some((head, runs)) = rows.split_first() else { return Err(corrupt("a group")) };
        let mut keys = Vec::with_capacity(PAGE);
        for row in runs {
            self.run(row)?.views(&mut keys)?;
        }
        // As the statement ends a page.
        let bytes: usize = keys.iter().map(|view| view.key.as_str().len() + 100).sum();
        let full = keys.len() == PAGE || bytes >= self.sql.at_once;
        let last = keys.iter().map(|view| &view.key).max().filter(|_| full);
        let next = last.map(|key| Cursor(key.as_str().as_bytes().to_vec()));
        Ok(Page {
            revision: Revision(self.count(head, 0)?),
            group: GroupView {
                term: Term(self.count(head, 1)?),
                leader: self.get::<Option<Uuid>>(head, 2)?.map(SessionId),
                grants_held: self.get(head, 3)?,
                time_ms: self.count(head, 4)?,
                format: u16::try_from(self.get::<i32>(head, 5)?).map_err(|_| corrupt("a format"))?,
            },
            sessions: codec::sessions(self.get(head, 6)?)?,
            keys,
            next,
        })
    }

    /// Keys of a page that stand in the same way.
    fn run(&self, row: &PgRow) -> Result<codec::Run, StoreError> {
        Ok(codec::Run {
            owner: self.get(row, 7)?,
            stopping: self.get(row, 8)?,
            aside: self.get(row, 9)?,
            avoid: self.get(row, 10)?,
            keys: self.get(row, 11)?,
            tokens: self.get(row, 12)?,
            weight: (self.get(row, 13)?, self.get(row, 14)?),
            priority: (self.get(row, 15)?, self.get(row, 16)?),
            not_before_ms: (self.get(row, 17)?, self.get(row, 18)?),
            generation: (self.get(row, 19)?, self.get(row, 20)?),
            attempts: (self.get(row, 21)?, self.get(row, 22)?),
            since: self.get(row, 23)?,
            past: match self.get(row, 24)? {
                Some(retry_at_ms) => Some(codec::Past {
                    retry_at_ms,
                    failures: self.get(row, 25)?,
                    deaths: self.get(row, 26)?,
                    alone: self.get(row, 27)?,
                    death: self.get(row, 28)?,
                }),
                None => None,
            },
        })
    }

    pub(crate) async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let mut records = vec![None; keys.len()];
        let names: Vec<&str> = keys.iter().map(Key::as_str).collect();
        for (at, row) in self.by_keys(&self.sql.records, &names).await? {
            let view = codec::views(Some(self.get(&row, 4)?))?.pop();
            let (Some(place), Some(view)) = (records.get_mut(at), view) else { return Err(corrupt("a record")) };
            let bytes = |at| self.get::<&[u8]>(&row, at).map(Blob::from);
            let why = Why::new(self.get(&row, 5)?);
            *place = Some(Record { view, why, payload: bytes(2)?, checkpoint: bytes(3)? });
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
        let mut keys: Vec<Key> = Vec::new();
        while keys.len() < limit {
            let most = (self.sql.at_once / limits::MAX_KEY_BYTES).min(limit - keys.len());
            let after = keys.last().map_or("", Key::as_str).to_owned();
            let query = sqlx::query(self.sql.quarantined.safe()).bind(&*self.group);
            let query = query.bind(i64::try_from(most).unwrap_or(i64::MAX)).bind(after);
            let rows = call!(self, query, fetch_all)?;
            let key = |row| Key::new(self.get::<&str>(row, 0)?).map_err(|e| StoreError::Corrupt(e.to_string()));
            keys.extend(rows.iter().map(key).collect::<Result<Vec<_>, _>>()?);
            if rows.len() < most {
                break;
            }
        }
        Ok(keys)
    }
}
