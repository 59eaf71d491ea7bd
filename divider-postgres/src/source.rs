//! Work that a query finds.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use divider_core::{InvalidInput, Key, SourceError, StoreError, Work, WorkSource};
use sqlx::{
    AssertSqlSafe, Column, Row, TypeInfo,
    postgres::{PgPool, PgRow},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use crate::error::store_error;

/// How long a query may take unless you say otherwise.
const LIMIT: Duration = Duration::from_secs(30);

/// The longest that it may take.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// How much later than the server this side gives up.
const GRACE: Duration = Duration::from_secs(1);

/// Finds work by a query of yours: one key for each row.
///
/// The query's column `key` (text) is required. The columns `weight` (an integer of any size), `priority` (the same),
/// `payload` (bytea, text, varchar, or json, whose text is the payload) and `not_before_ms` (bigint: milliseconds since 1970) may be
/// there; where one is missing or null, its default holds. Other columns are ignored.
///
/// ```no_run
/// # async fn run(pool: divider_postgres::sqlx::PgPool) {
/// use divider_postgres::QuerySource;
/// let source = QuerySource::new(pool, "SELECT id::text AS key, size AS weight FROM tenant WHERE active");
/// # }
/// ```
#[derive(Clone)]
pub struct QuerySource {
    pool: PgPool,
    query: Arc<str>,
    limit: Duration,
    /// Held while a query runs at the server, also where nobody waits for it any more.
    one: Arc<Semaphore>,
}

impl QuerySource {
    /// Finds work by this query. It is run as it stands, so it must not be put together from what users say.
    pub fn new(pool: PgPool, query: impl Into<Arc<str>>) -> Self {
        Self { pool, query: query.into(), limit: LIMIT, one: Arc::new(Semaphore::new(1)) }
    }

    /// Sets how long the query may take, a day at most. Default 30 s.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit.min(LONGEST);
        self
    }

    /// Runs the query, in a transaction with a time limit that the server keeps, too. One at a time is run for this source
    /// and its clones, so that it never takes more than one connection of the pool.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`] where a row is not work: it has no key, or something is outside of its limits.
    ///
    /// # Cancel safety
    /// Cancel safe. A query that is under way goes on until its end or the time limit, and the next call waits for it.
    pub async fn fetch(&self) -> Result<Vec<Work>, StoreError> {
        let limit = self.limit;
        let late = || StoreError::Timeout { limit };
        let until = Instant::now() + limit;
        let one = timeout_at(until, Arc::clone(&self.one).acquire_owned()).await.map_err(|_| late())?;
        let run = self.clone();
        // A task of its own: a query that was dropped here would go on at the server, with nobody to count it.
        let query = tokio::spawn(async move {
            // The server is to give up first, so that the connection is good for others when this is over.
            let rows = timeout(limit + GRACE, run.rows()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
            drop(one);
            rows
        });
        let ended = |_| StoreError::Unavailable { message: "the query's task has ended".to_owned(), source: None };
        let rows = timeout_at(until, query).await.map_err(|_| late())?.map_err(ended)?;
        rows.map_err(|error| store_error(error, limit))?.iter().map(work).collect()
    }

    async fn rows(&self) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        let limit = format!("SET LOCAL statement_timeout = {}", self.limit.as_millis().max(1));
        sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *transaction).await?;
        // Prepared anew each time: a statement that was kept from before a table was altered would fail on its connection for
        // ever.
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.query))).persistent(false);
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}

#[async_trait]
impl WorkSource for QuerySource {
    async fn fetch(&self) -> Result<Vec<Work>, SourceError> {
        Ok(Self::fetch(self).await?)
    }
}

impl fmt::Debug for QuerySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuerySource").field("query", &self.query).field("limit", &self.limit).finish_non_exhaustive()
    }
}

fn work(row: &PgRow) -> Result<Work, StoreError> {
    let wrong = |error: InvalidInput| StoreError::Misconfigured(format!("the query's row is not work: {error}"));
    let key: Option<String> = row.try_get("key").map_err(|error| column("key", &error))?;
    let mut work = Work::from(Key::new(key.unwrap_or_default()).map_err(wrong)?);
    if let Some(weight) = integer(row, "weight")? {
        work.weight = u32::try_from(weight).unwrap_or(if weight < 0 { 0 } else { u32::MAX });
    }
    if let Some(priority) = integer(row, "priority")? {
        work.priority = i32::try_from(priority).unwrap_or(if priority < 0 { i32::MIN } else { i32::MAX });
    }
    if let Some(due) = integer(row, "not_before_ms")? {
        work.not_before_ms = u64::try_from(due).unwrap_or_default();
    }
    if let Some(payload) = bytes(row, "payload")? {
        work.payload = payload.into();
    }
    work.validate().map_err(wrong)?;
    Ok(work)
}

fn column(name: &str, error: &sqlx::Error) -> StoreError {
    StoreError::Misconfigured(format!("the query's column {name} cannot be read: {error}"))
}

/// The type of a column, where the query has it.
fn type_of(row: &PgRow, name: &str) -> Option<String> {
    let column = row.columns().iter().find(|column| column.name() == name)?;
    Some(column.type_info().name().to_owned())
}

fn integer(row: &PgRow, name: &str) -> Result<Option<i64>, StoreError> {
    let read = match type_of(row, name).as_deref() {
        None => return Ok(None),
        Some("INT2") => row.try_get::<Option<i16>, _>(name).map(|n| n.map(Into::into)),
        Some("INT4") => row.try_get::<Option<i32>, _>(name).map(|n| n.map(Into::into)),
        _ => row.try_get::<Option<i64>, _>(name),
    };
    read.map_err(|error| column(name, &error))
}

fn bytes(row: &PgRow, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let read = match type_of(row, name).as_deref() {
        None => return Ok(None),
        Some("BYTEA") => row.try_get::<Option<Vec<u8>>, _>(name),
        // Past the type check, since json goes over the wire as its text.
        Some("JSON") => row.try_get_unchecked::<Option<String>, _>(name).map(|text| text.map(String::into_bytes)),
        _ => row.try_get::<Option<String>, _>(name).map(|text| text.map(String::into_bytes)),
    };
    read.map_err(|error| column(name, &error))
}
