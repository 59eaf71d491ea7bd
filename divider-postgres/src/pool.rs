//! Connections for batches and reads, and how every call over one of them ends.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use divider_core::StoreError;
use parking_lot::Mutex;
use sqlx::{Connection, PgConnection, Postgres, pool::PoolConnection, postgres::PgPool};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{error::Elapsed, sleep, timeout},
};

use crate::{
    PostgresConfig,
    connector::Connector,
    error::{keeps_connection, store_error},
};

/// The connections of a node for batches and reads: its own, or the program's.
#[derive(Clone)]
pub(crate) struct Lanes {
    source: Source,
    limit: Duration,
    /// Whether each call has to say of itself how it is isolated, since the program's pool says otherwise.
    explicit: Arc<AtomicBool>,
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
    connector: Connector,
    /// How long one of them may be of no use.
    rest: Duration,
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
    async fn open(&self, until: Instant) -> Result<Held, StoreError> {
        let opened = Instant::now();
        Ok(Held::Own { connection: self.connector.connect(until).await?, opened })
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
    }

    /// Closes what has not been needed for a while. A node that only follows would never give one back to notice it by.
    async fn tidy(this: Weak<Self>, rest: Duration) {
        loop {
            sleep(rest / 2).await;
            let Some(own) = this.upgrade() else { return };
            let old: Vec<Idle> = own.idle.lock().extract_if(.., |idle| idle.since.elapsed() >= own.rest).collect();
            let limit = own.connector.limit;
            drop(own);
            close(old, limit).await;
        }
    }
}

/// Closes connections in good order, but waits for none that hangs.
async fn close(idle: Vec<Idle>, limit: Duration) {
    let closed = futures_util::future::join_all(idle.into_iter().map(|idle| idle.connection.close()));
    _ = timeout(limit, closed).await;
}

impl Lanes {
    pub(crate) fn new(config: &PostgresConfig, connector: &Connector) -> Self {
        let source = match &config.pool {
            Some(pool) => Source::Program(pool.clone()),
            None => {
                let own = Arc::new(Own {
                    connector: connector.clone(),
                    rest: config.idle_timeout,
                    permits: Arc::new(Semaphore::new(config.max_connections as usize)),
                    idle: Mutex::default(),
                });
                tokio::spawn(Own::tidy(Arc::downgrade(&own), config.idle_timeout));
                Source::Own(own)
            }
        };
        Self { source, limit: config.call_time_limit, explicit: Arc::default(), broken: Arc::default() }
    }

    /// A connection, for one call. Whoever has waited for it for most of the call's time would only begin what it has to
    /// give up again, and would cut the connection for that: so it is not waited for so long.
    pub(crate) async fn take(&self) -> Result<Lane, StoreError> {
        let now = Instant::now();
        let (patience, until) = (self.limit * 3 / 4, now + self.limit);
        let late = || StoreError::Timeout { limit: self.limit };
        let (held, permit) = match &self.source {
            Source::Program(pool) => {
                let taken = timeout(patience, pool.acquire()).await.map_err(|_| late())?;
                let taken = taken.map_err(|error| match error {
                    sqlx::Error::PoolClosed => StoreError::Closed,
                    error => store_error(error, self.limit),
                })?;
                (Held::Program(taken), None)
            }
            Source::Own(own) => {
                let permit = timeout(patience, Arc::clone(&own.permits).acquire_owned()).await;
                let permit = permit.map_err(|_| late())?.map_err(|_| StoreError::Closed)?;
                let known = own.known(*self.broken.lock());
                let held = match known {
                    Some(held) => held,
                    None => own.open(now + patience).await?,
                };
                (held, Some(permit))
            }
        };
        Ok(Lane { held: Some(held), lanes: self.clone(), until, _permit: permit })
    }

    /// From now on, each call says of itself how it is isolated.
    pub(crate) fn isolate(&self) {
        self.explicit.store(true, Ordering::Relaxed);
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
        close(idle, self.limit).await;
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
    /// When the time of the call is over.
    until: Instant,
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

    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// The statement that begins a transaction, where one is needed around a single call.
    pub(crate) fn beginning(&self) -> Option<&'static str> {
        self.lanes.explicit.load(Ordering::Relaxed).then_some("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
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
