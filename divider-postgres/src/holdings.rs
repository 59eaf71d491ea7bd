//! All that a session holds.
//!
//! # Why
//! A node may hold more than the way to it carries within the time limit of a call, and would never get to hear of it.
//!
//! # How
//! One statement is enough for what is small. Else the keys are read in one snapshot, with two cursors: the first says how
//! many bytes each of the next keys has, and by that as many as can be expected to come in time are fetched from the second.
//! The time limit is one of each fetch. So the work follows what is read, and nothing is looked up or sent twice.

use divider_core::{Holding, Holdings, SessionId, StoreError};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    postgres::{PgRow, Postgres},
};
use tokio::time::timeout;

use crate::{
    codec::{self, unsigned},
    read::{Inner, PAGE, call},
    sql::Text,
};

/// What is read in many steps must still be of one moment.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// As many sizes as are read in one step.
const SIZES: &str = "FETCH FORWARD 4096 FROM sizes";

impl Inner {
    pub(crate) async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        let query = sqlx::query(self.sql.holdings.safe()).bind(&*self.group).bind(session.0).bind(self.seen.last());
        let rows = call!(self, query, fetch_all)?;
        let first = rows.first().ok_or(StoreError::SessionEnded)?;
        let (seq, held) = (unsigned(self.get(first, 0)?)?, unsigned(self.get(first, 1)?)?);
        let mut holdings = Vec::with_capacity(rows.len());
        for row in &rows {
            let Some(holding) = self.held(row)? else { break };
            holdings.push(holding);
        }
        if held > holdings.len() as u64 {
            return self.in_steps(session).await;
        }
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
        let open = |cursor: &Text| sqlx::query::<Postgres>(cursor.safe()).bind(&*self.group).bind(session.0);
        self.step(open(&self.sql.sizes).execute(&mut *snapshot)).await?;
        self.step(open(&self.sql.held).execute(&mut *snapshot)).await?;
        let mut holdings = Vec::new();
        loop {
            let sizes: Vec<i32> = self.step(sqlx::query_scalar(SIZES).fetch_all(&mut *snapshot)).await?;
            for count in at_once(&sizes, self.sql.at_once) {
                let fetch = AssertSqlSafe(format!("FETCH FORWARD {count} FROM held"));
                // Not kept, since the count is another one each time.
                let rows = self.step(sqlx::query(fetch).persistent(false).fetch_all(&mut *snapshot)).await?;
                for row in &rows {
                    match self.held(row) {
                        Ok(holding) => holdings.extend(holding),
                        Err(error) => return Ok(Err(error)),
                    }
                }
            }
            if sizes.len() < PAGE {
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

    /// `None` where a session has one row without a key: it holds nothing, or too much.
    fn held(&self, row: &PgRow) -> Result<Option<Holding>, StoreError> {
        let Some(key) = self.get(row, 2)? else { return Ok(None) };
        codec::holding(codec::HoldingRow {
            key,
            token: self.get(row, 3)?,
            attempts: self.get(row, 4)?,
            generation: self.get(row, 5)?,
            failures: self.get(row, 6)?,
            weight: self.get(row, 7)?,
            priority: self.get(row, 8)?,
            stopping: self.get(row, 9)?,
            payload: self.get(row, 10)?,
            checkpoint: self.get(row, 11)?,
        })
        .map(Some)
    }

    fn all_seen(&self, holdings: Holdings) -> Result<Holdings, StoreError> {
        holdings.holdings.iter().for_each(|holding| self.seen.note(holding.token));
        Ok(holdings)
    }
}

/// Cuts the next keys, of these sizes, into parts of so many bytes at most. Says how many keys each part has.
fn at_once(sizes: &[i32], most: usize) -> Vec<usize> {
    let mut counts = vec![0];
    let mut bytes = 0;
    for &size in sizes {
        let size = usize::try_from(size).unwrap_or_default();
        bytes += size;
        if bytes > most {
            counts.push(0);
            bytes = size;
        }
        if let Some(last) = counts.last_mut() {
            *last += 1;
        }
    }
    counts.retain(|count| *count > 0);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_cut_into_parts_that_come_in_time_and_one_that_is_too_large_stands_alone() {
        assert_eq!(at_once(&[], 10), [0; 0]);
        assert_eq!(at_once(&[0, 10, 0, 1, 11, 2], 10), [3, 1, 1, 1]);
        assert_eq!(at_once(&[-1; 3], 10), [3]);
    }
}
