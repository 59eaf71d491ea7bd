//! Connections for batches and reads, and how every call over one of them ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::StoreError;
use parking_lot::Mutex;
use sqlx::{
    PgConnection, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use tokio::time::{error::Elapsed, timeout};

use crate::{
    PostgresConfig,
    error::{keeps_connection, store_error},
};

/// How the node's own connections are opened.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) options: PgConnectOptions,
    pub(crate) limit: Duration,
    leader_timeout: Option<Duration>,
}

impl Door {
    pub(crate) fn new(config: &PostgresConfig) -> Self {
        let options = config
            .connect
            .clone()
            .application_name(&config.application_name)
            // Poolers in session mode refuse connections that set it, and nothing here prints a float.
            .extra_float_digits(None);
        Self { options, limit: config.call_timeout, leader_timeout: config.leader_timeout }
    }

    /// What a new connection is told: the server is to give up what this node has given up, and to find out soon that the
    /// node is gone. `idle` also closes a connection on which nothing is asked for too long.
    pub(crate) fn settings(&self, idle: bool) -> String {
        let limit = self.limit.as_millis();
        // 0 is for ever; whoever then comes to lead gets its lease instead.
        let idle = self.leader_timeout.filter(|_| idle).map_or(0, |limit| limit.as_millis());
        format!(
            "SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {limit}; \
             SET idle_session_timeout = {idle}; SET tcp_keepalives_idle = 1; SET tcp_keepalives_interval = 1; \
             SET tcp_keepalives_count = 3; SET tcp_user_timeout = 3000; SET default_transaction_isolation = \
             'read committed'"
        )
    }
}

/// The connections of a node for batches and reads: its own, or the program's.
#[derive(Clone)]
pub(crate) struct Lanes {
    pool: PgPool,
    /// Whether they are the node's own, and so to be closed by it.
    own: bool,
    limit: Duration,
    /// When a connection last broke. One that is older is not used again: the server has probably gone away, and each of
    /// them would fail a call of its own to find that out.
    broken: Arc<Mutex<Option<Instant>>>,
}

impl Lanes {
    pub(crate) fn new(config: &PostgresConfig, door: &Door) -> Self {
        let limit = config.call_timeout;
        let broken = Arc::new(Mutex::new(None::<Instant>));
        if let Some(pool) = &config.pool {
            return Self { pool: pool.clone(), own: false, limit, broken };
        }
        let settings: Arc<str> = door.settings(false).into();
        let last = Arc::clone(&broken);
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(limit)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let settings = Arc::clone(&settings);
                Box::pin(async move {
                    sqlx::raw_sql(sqlx::AssertSqlSafe(settings)).execute(connection).await?;
                    Ok(())
                })
            })
            .before_acquire(move |_, meta| {
                let fresh = last.lock().is_none_or(|broken| meta.age < broken.elapsed());
                Box::pin(async move { Ok(fresh) })
            })
            .connect_lazy_with(door.options.clone());
        Self { pool, own: true, limit, broken }
    }

    /// A connection, for one call.
    pub(crate) async fn take(&self) -> Result<Lane, StoreError> {
        let connection = match timeout(self.limit, self.pool.acquire()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(sqlx::Error::PoolClosed)) => return Err(StoreError::Closed),
            Ok(Err(error)) => return Err(store_error(error, self.limit)),
            Err(_) => return Err(StoreError::Timeout { limit: self.limit }),
        };
        Ok(Lane { connection: Some(connection), limit: self.limit, broken: Arc::clone(&self.broken) })
    }

    /// Called where another connection has broken: these are probably no better.
    pub(crate) fn distrust(&self) {
        *self.broken.lock() = Some(Instant::now());
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    pub(crate) async fn close(&self) {
        if self.own {
            // A connection that hangs is not waited for.
            _ = timeout(self.limit, self.pool.close()).await;
        }
    }
}

/// A connection, until [`finish`](Self::finish) says that the call on it has ended. One that is dropped before that is
/// in the middle of something, and is cut.
pub(crate) struct Lane {
    connection: Option<PoolConnection<Postgres>>,
    limit: Duration,
    broken: Arc<Mutex<Option<Instant>>>,
}

impl Lane {
    pub(crate) fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        self.connection.as_deref_mut().ok_or(StoreError::Closed)
    }

    /// Takes the result of the call, and gives the connection back if it is still good.
    pub(crate) fn finish<T>(mut self, result: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T, StoreError> {
        let result = result.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if result.as_ref().err().is_none_or(keeps_connection) {
            drop(self.connection.take());
        } else {
            *self.broken.lock() = Some(Instant::now());
        }
        result.map_err(|error| store_error(error, self.limit))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Not closed in good order: that would wait for what the call was waiting for.
            drop(connection.detach());
        }
    }
}
