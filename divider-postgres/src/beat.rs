//! The connection that renews, apart from everything else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::{Beat, SessionId, StoreError};
use sqlx::PgConnection;
use tokio::{
    runtime::{Handle, Id},
    sync::Mutex,
    time::timeout,
};

use crate::{codec::unsigned, connector::Connector, error::store_error, sql::Sql};

/// Renews over a connection of its own, which is opened by the call that needs it, on that call's runtime. It also holds
/// the session's lock, whose end tells the others that the connection has ended.
pub(crate) struct Beater {
    connector: Connector,
    sql: Arc<Sql>,
    group: Arc<str>,
    /// Taken out for a call and put back after it, so that a call that is given up cuts it.
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    connection: PgConnection,
    /// Whose lock it holds.
    session: SessionId,
    /// The runtime that drives it: on another one, a call would wait for it in vain.
    runtime: Id,
}

impl Beater {
    pub(crate) fn new(connector: Connector, sql: Arc<Sql>, group: Arc<str>) -> Self {
        // It is used on a runtime of its own.
        Self { connector: connector.apart(), sql, group, kept: Mutex::new(None) }
    }

    pub(crate) async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        let limit = self.connector.limit;
        let until = Instant::now() + limit;
        let renewal = async {
            let mut kept = self.kept.lock().await;
            let runtime = Handle::current().id();
            let mut sent = false;
            if let Some(mut known) = kept.take()
                && (known.session, known.runtime) == (session, runtime)
            {
                sent = true;
                // It may have been cut meanwhile: then a new one is opened at once. Twice raised is no harm.
                if let Ok(beat) = self.raise(&mut known.connection, session, false).await {
                    *kept = beat.is_some().then_some(known);
                    return Ok(beat);
                }
            }
            let again = async {
                let mut connection = self.connector.connect(until).await?;
                let raised = self.raise(&mut connection, session, true).await;
                Ok((raised.map_err(|error| store_error(error, limit))?, connection))
            };
            let (beat, connection) = again.await.map_err(|error| match error {
                // What is wrong now says nothing of the first attempt.
                StoreError::Misconfigured(message) if sent => StoreError::Unavailable { message, source: None },
                error => error,
            })?;
            *kept = beat.is_some().then_some(Kept { connection, session, runtime });
            Ok(beat)
        };
        let beat: Option<i64> = timeout(limit, renewal).await.unwrap_or(Err(StoreError::Timeout { limit }))?;
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
        if let Ok(mut kept) = timeout(Duration::from_millis(10), self.kept.lock()).await {
            kept.take();
        }
    }
}
