//! Connections for batches and reads, and how every call over one of them ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::StoreError;
use parking_lot::Mutex;
use sqlx::{
    Connection, PgConnection, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPool},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{error::Elapsed, timeout},
};

use crate::{
    PostgresConfig,
    error::{keeps_connection, store_error},
};

/// How long one of the node's own connections may be of no use before it is closed.
const IDLE: Duration = Duration::from_secs(600);

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
    ///
    /// Each statement is planned once and not for each call; so that a plan which was made for empty tables is right for
    /// full ones as well, it never reads a whole table.
    pub(crate) fn settings(&self, idle: bool) -> String {
        let limit = self.limit.as_millis();
        // 0 is for ever; whoever then comes to lead gets its lease instead.
        let idle = self.leader_timeout.filter(|_| idle).map_or(0, |limit| limit.as_millis());
        format!(
            "SET statement_timeout = {limit}; SET idle_in_transaction_session_timeout = {limit}; \
             SET idle_session_timeout = {idle}; SET tcp_keepalives_idle = 1; SET tcp_keepalives_interval = 1; \
             SET tcp_keepalives_count = 3; SET tcp_user_timeout = 3000; SET default_transaction_isolation = \
             'read committed'; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
             SET enable_bitmapscan = off; SET jit = off"
        )
    }
}

/// The connections of a node for batches and reads: its own, or the program's.
#[derive(Clone)]
pub(crate) struct Lanes {
    source: Source,
    limit: Duration,
    /// When a connection last broke. One that is older is not used again: the server has probably gone away, and each of
    /// them would fail a call of its own to find that out.
    broken: Arc<Mutex<Option<Instant>>>,
}

/// Where the connections come from.
#[derive(Clone)]
enum Source {
    Own(Arc<Own>),
    Program(PgPool),
}

/// Connections that the node opens itself.
///
/// The one that was used last is taken first: the server plans each statement anew on each connection, so the fewer are
/// in use, the fewer calls wait for a plan. And nothing is asked of a connection that is given back, which a pool of the
/// driver's does after every call.
struct Own {
    door: Door,
    settings: Arc<str>,
    /// One for each connection that is in use. Closed with the store.
    permits: Arc<Semaphore>,
    /// The others, the one that was used last at the end.
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: PgConnection,
    opened: Instant,
    since: Instant,
}

impl Own {
    async fn open(&self) -> Result<Held, sqlx::Error> {
        let opened = Instant::now();
        let mut connection = PgConnection::connect_with(&self.door.options).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(Arc::clone(&self.settings))).execute(&mut connection).await?;
        Ok(Held::Own { connection, opened })
    }

    /// The newest that is still trusted.
    fn known(&self, broken: Option<Instant>) -> Option<Held> {
        let mut idle = self.idle.lock();
        idle.retain(|idle| broken.is_none_or(|broken| idle.opened > broken));
        idle.pop().map(|Idle { connection, opened, .. }| Held::Own { connection, opened })
    }

    fn give_back(&self, connection: PgConnection, opened: Instant) {
        let mut idle = self.idle.lock();
        if self.permits.is_closed() {
            return;
        }
        idle.push(Idle { connection, opened, since: Instant::now() });
        idle.retain(|idle| idle.since.elapsed() < IDLE);
    }
}

impl Lanes {
    pub(crate) fn new(config: &PostgresConfig, door: &Door) -> Self {
        let source = match &config.pool {
            Some(pool) => Source::Program(pool.clone()),
            None => Source::Own(Arc::new(Own {
                door: door.clone(),
                settings: door.settings(false).into(),
                permits: Arc::new(Semaphore::new(config.max_connections as usize)),
                idle: Mutex::default(),
            })),
        };
        Self { source, limit: config.call_timeout, broken: Arc::default() }
    }

    /// A connection, for one call.
    pub(crate) async fn take(&self) -> Result<Lane, StoreError> {
        let taken = timeout(self.limit, async {
            match &self.source {
                Source::Program(pool) => Ok((Held::Program(pool.acquire().await?), None)),
                Source::Own(own) => {
                    let permit = Arc::clone(&own.permits).acquire_owned().await;
                    let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
                    let known = own.known(*self.broken.lock());
                    let held = match known {
                        Some(held) => held,
                        None => own.open().await?,
                    };
                    Ok((held, Some(permit)))
                }
            }
        });
        match taken.await {
            Ok(Ok((held, permit))) => Ok(Lane { held: Some(held), lanes: self.clone(), _permit: permit }),
            Ok(Err(sqlx::Error::PoolClosed)) => Err(StoreError::Closed),
            Ok(Err(error)) => Err(store_error(error, self.limit)),
            Err(_) => Err(StoreError::Timeout { limit: self.limit }),
        }
    }

    /// How many of so many connections can be opened in advance. The program's own pool is its own business.
    pub(crate) fn ahead(&self, wanted: usize) -> usize {
        match &self.source {
            // One is left for whoever comes meanwhile.
            Source::Own(own) => wanted.min(own.permits.available_permits().saturating_sub(1)),
            Source::Program(_) => 0,
        }
    }

    /// Called where another connection has broken: these are probably no better.
    pub(crate) fn distrust(&self) {
        *self.broken.lock() = Some(Instant::now());
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Closes what is the node's own.
    pub(crate) async fn close(&self) {
        let Source::Own(own) = &self.source else { return };
        own.permits.close();
        let idle = std::mem::take(&mut *own.idle.lock());
        // A connection that hangs is not waited for.
        let closed = futures_util::future::join_all(idle.into_iter().map(|idle| idle.connection.close()));
        _ = timeout(self.limit, closed).await;
    }
}

enum Held {
    Own { connection: PgConnection, opened: Instant },
    Program(PoolConnection<Postgres>),
}

/// A connection, until [`finish`](Self::finish) says that the call on it has ended. One that is dropped before that is
/// in the middle of something, and is cut.
pub(crate) struct Lane {
    held: Option<Held>,
    lanes: Lanes,
    /// Given back after the connection, so that whoever waits for it finds that.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Lane {
    pub(crate) fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        match &mut self.held {
            Some(Held::Own { connection, .. }) => Ok(connection),
            Some(Held::Program(connection)) => Ok(connection),
            None => Err(StoreError::Closed),
        }
    }

    /// Takes the result of the call, and gives the connection back if it is still good.
    pub(crate) fn finish<T>(mut self, result: Result<Result<T, sqlx::Error>, Elapsed>) -> Result<T, StoreError> {
        let result = result.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if result.as_ref().err().is_none_or(keeps_connection) {
            match (self.held.take(), &self.lanes.source) {
                (Some(Held::Own { connection, opened }), Source::Own(own)) => own.give_back(connection, opened),
                (held, _) => drop(held),
            }
        } else {
            self.lanes.distrust();
        }
        result.map_err(|error| store_error(error, self.lanes.limit))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Not closed in good order: that would wait for what the call was waiting for.
        if let Some(Held::Program(connection)) = self.held.take() {
            drop(connection.detach());
        }
    }
}
