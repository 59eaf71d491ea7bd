//! All that a session holds.
//!
//! # Why
//! A node may hold more than the way to it carries within the time limit of a call, and would never get to hear of it.
//!
//! # How
//! One statement is enough for what is small. Else the keys are read page by page in one snapshot, and then their bytes, as
//! many at a time as can be expected to come in time; the time limit is one of each page.

use divider_core::{Blob, Holding, Holdings, SessionId, StoreError};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgRow, Postgres},
};
use tokio::time::timeout;

use crate::{
    codec::{self, unsigned},
    read::{AT_ONCE_BYTES, Inner, PAGE, call},
};

/// What is read in many steps must still be of one moment.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// As many keys as are read in one step.
const FETCH: &str = "FETCH FORWARD 4096 FROM held";

/// A holding, perhaps without its bytes, and how many these are.
type Part = (Holding, usize);

impl Inner {
    pub(crate) async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        let query = sqlx::query(self.sql.holdings.safe()).bind(&*self.group).bind(session.0).bind(self.seen.last());
        let rows = call!(self, query, fetch_all)?;
        let seq = unsigned(self.get(rows.first().ok_or(StoreError::SessionEnded)?, 0)?)?;
        let parts = self.parts(&rows)?;
        if rows.len() > PAGE || parts.iter().any(lacks) {
            return self.in_steps(session).await;
        }
        let holdings = parts.into_iter().map(|(holding, _)| holding).collect();
        self.all_seen(Holdings { seq, holdings })
    }

    async fn in_steps(&self, session: SessionId) -> Result<Holdings, StoreError> {
        let mut lane = self.lanes.take().await?;
        let read = self.steps(lane.connection()?, session).await;
        let holdings = lane.finish(Ok(read))??;
        self.all_seen(holdings)
    }

    async fn steps(
        &self,
        connection: &mut PgConnection,
        session: SessionId,
    ) -> Result<Result<Holdings, StoreError>, sqlx::Error> {
        let mut snapshot = self.step(connection.begin_with(SNAPSHOT)).await?;
        let seq = sqlx::query_scalar::<_, i64>(self.sql.seq.safe()).bind(&*self.group).bind(session.0);
        let seq = seq.bind(self.seen.last());
        let Some(seq) = self.step(seq.fetch_optional(&mut *snapshot)).await? else {
            return Ok(Err(StoreError::SessionEnded));
        };
        let cursor = sqlx::query::<Postgres>(self.sql.held.safe()).bind(&*self.group).bind(session.0);
        self.step(cursor.execute(&mut *snapshot)).await?;
        let mut holdings = Vec::new();
        loop {
            let rows = self.step(sqlx::query(FETCH).fetch_all(&mut *snapshot)).await?;
            let page = match self.parts(&rows) {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            let last = rows.len() < PAGE;
            for part in parts_at_once(page) {
                holdings.extend(self.with_bytes(&mut snapshot, part).await?);
            }
            if last {
                break;
            }
        }
        self.step(snapshot.commit()).await?;
        Ok(unsigned(seq).map(|seq| Holdings { seq, holdings }))
    }

    /// One step of many, within the time limit of a call.
    async fn step<T>(&self, step: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
        timeout(self.lanes.limit(), step).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// Holdings with the bytes that they lack.
    async fn with_bytes(&self, snapshot: &mut PgConnection, parts: Vec<Part>) -> Result<Vec<Holding>, sqlx::Error> {
        let lacking: Vec<&str> =
            parts.iter().filter(|part| lacks(part)).map(|(holding, _)| holding.key.as_str()).collect();
        let mut found = Vec::new();
        if !lacking.is_empty() {
            let query = sqlx::query_as::<_, (Vec<u8>, Vec<u8>)>(self.sql.bytes.safe()).bind(&*self.group).bind(lacking);
            found = self.step(query.fetch_all(snapshot)).await?;
        }
        let mut found = found.into_iter();
        let complete = |part: Part| {
            let lacks = lacks(&part);
            let (mut holding, _) = part;
            if lacks {
                // Of the same snapshot, so each is there, and in the same order.
                let (payload, checkpoint) = found.next().ok_or(sqlx::Error::RowNotFound)?;
                (holding.payload, holding.checkpoint) = (Blob::from(payload), Blob::from(checkpoint));
            }
            Ok(holding)
        };
        parts.into_iter().map(complete).collect()
    }

    fn parts(&self, rows: &[PgRow]) -> Result<Vec<Part>, StoreError> {
        let mut parts = Vec::with_capacity(rows.len());
        for row in rows {
            // A session that holds nothing has one row, without a key.
            let Some(key) = self.get(row, 1)? else { continue };
            let holding = codec::holding(codec::HoldingRow {
                key,
                token: self.get(row, 2)?,
                attempts: self.get(row, 3)?,
                generation: self.get(row, 4)?,
                failures: self.get(row, 5)?,
                weight: self.get(row, 6)?,
                priority: self.get(row, 7)?,
                stopping: self.get(row, 8)?,
                payload: self.get::<Option<_>>(row, 10)?.unwrap_or_default(),
                checkpoint: self.get::<Option<_>>(row, 11)?.unwrap_or_default(),
            })?;
            parts.push((holding, usize::try_from(self.get::<i32>(row, 9)?).unwrap_or_default()));
        }
        Ok(parts)
    }

    fn all_seen(&self, holdings: Holdings) -> Result<Holdings, StoreError> {
        holdings.holdings.iter().for_each(|holding| self.seen.note(holding.token));
        Ok(holdings)
    }
}

fn lacks((holding, size): &Part) -> bool {
    holding.payload.len() + holding.checkpoint.len() < *size
}

/// Cuts a page so that the bytes of each part come in time.
fn parts_at_once(page: Vec<Part>) -> Vec<Vec<Part>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for part in page {
        bytes += part.1;
        if bytes > AT_ONCE_BYTES {
            parts.push(Vec::new());
            bytes = part.1;
        }
        if let Some(last) = parts.last_mut() {
            last.push(part);
        }
    }
    parts
}
