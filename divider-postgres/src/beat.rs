//! The connection that renews, apart from everything else.

use std::{sync::Arc, time::Duration};

use divider_core::{Beat, SessionId, StoreError};
use sqlx::{Connection, PgConnection};
use tokio::{sync::Mutex, time::timeout};

use crate::{codec::unsigned, error::store_error, pool::Door, sql::Sql};

/// Renews over a connection of its own, which is opened by the call that needs it, on that call's runtime. It also holds
/// the session's lock, whose end tells the others that the connection has ended.
pub(crate) struct Beater {
    door: Door,
    sql: Arc<Sql>,
    group: Arc<str>,
    /// The connection, and the session that its lock is for. Taken out for a call and put back after it, so that a call
    /// that is given up cuts it.
    connection: Mutex<Option<(PgConnection, SessionId)>>,
}

impl Beater {
    pub(crate) fn new(door: Door, sql: Arc<Sql>, group: Arc<str>) -> Self {
        Self { door, sql, group, connection: Mutex::new(None) }
    }

    pub(crate) async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        let limit = self.door.limit;
        let renewal = async {
            let mut kept = self.connection.lock().await;
            if let Some((mut connection, locked)) = kept.take()
                && locked == session
                // It may have been cut, or belong to a runtime that is gone: then a new one is opened at once. Twice
                // raised is no harm.
                && let Ok(beat) = self.raise(&mut connection, session, false).await
            {
                if beat.is_some() {
                    *kept = Some((connection, session));
                }
                return Ok(beat);
            }
            let mut connection = PgConnection::connect_with(&self.door.options).await?;
            sqlx::raw_sql(sqlx::AssertSqlSafe(self.door.settings(false))).execute(&mut connection).await?;
            let beat = self.raise(&mut connection, session, true).await?;
            if beat.is_some() {
                *kept = Some((connection, session));
            }
            Ok(beat)
        };
        let result = timeout(limit, renewal).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        let beat: Option<i64> = result.map_err(|error| store_error(error, limit))?;
        unsigned(beat.ok_or(StoreError::SessionEnded)?).map(Beat)
    }

    async fn raise(
        &self,
        connection: &mut PgConnection,
        session: SessionId,
        first: bool,
    ) -> Result<Option<i64>, sqlx::Error> {
        let query = sqlx::query_scalar(self.sql.renew.safe()).bind(&*self.group).bind(session.0).bind(first);
        query.fetch_one(connection).await
    }

    /// Cuts the connection, and so frees the session's lock.
    pub(crate) async fn close(&self) {
        // A renewal that is under way cuts it by itself, at its time limit.
        if let Ok(mut kept) = timeout(Duration::from_millis(10), self.connection.lock()).await {
            kept.take();
        }
    }
}
