//! Connections for commands: how they are opened, given up and opened again.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use divider_core::StoreError;
use futures_util::future::BoxFuture;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisResult, Value, aio::ConnectionLike};
use tokio::{
    runtime::{Handle, Id},
    sync::{Mutex, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::error::store_error;

/// The longest pause between two attempts to connect: a server that has come back is in use again at once.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What can carry a command. Each backend-specific kind of connection is hidden in a function.
#[derive(Clone)]
pub(crate) struct Conn(Arc<dyn Fn(Cmd) -> BoxFuture<'static, RedisResult<Value>> + Send + Sync>);

impl Conn {
    pub(crate) fn new<C: ConnectionLike + Clone + Send + Sync + 'static>(connection: C) -> Self {
        Self(Arc::new(move |cmd| {
            let mut connection = connection.clone();
            Box::pin(async move { cmd.query_async(&mut connection).await })
        }))
    }

    #[cfg(feature = "deadpool")]
    pub(crate) fn pooled(pool: deadpool_redis::Pool) -> Self {
        Self(Arc::new(move |cmd| {
            let pool = pool.clone();
            Box::pin(async move {
                let connection = pool.get().await;
                let mut connection = connection.map_err(|error| match error {
                    deadpool_redis::PoolError::Backend(error) => error,
                    other => redis::RedisError::from(std::io::Error::other(other.to_string())),
                })?;
                cmd.query_async(&mut connection).await
            })
        }))
    }

    pub(crate) async fn send(&self, cmd: Cmd) -> RedisResult<Value> {
        (self.0)(cmd).await
    }
}

/// Where connections are opened to.
#[derive(Clone)]
pub(crate) enum Target {
    Server(Box<Client>),
    #[cfg(feature = "cluster")]
    Cluster {
        client: Box<redis::cluster::ClusterClient>,
        nodes: Vec<Client>,
    },
}

impl Target {
    async fn connect(&self) -> RedisResult<Conn> {
        match self {
            Self::Server(client) => {
                // Time limits are kept around the whole call, in one place, and not by the connection as well.
                let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
                client.get_multiplexed_async_connection_with_config(&config).await.map(Conn::new)
            }
            #[cfg(feature = "cluster")]
            Self::Cluster { client, .. } => client.get_async_connection().await.map(Conn::new),
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        !matches!(self, Self::Server(_))
    }

    /// The servers that a subscription may be opened on. In a cluster any will do, since they pass on to each other what
    /// is published.
    pub(crate) fn servers(&self) -> &[Client] {
        match self {
            Self::Server(client) => std::slice::from_ref(&**client),
            #[cfg(feature = "cluster")]
            Self::Cluster { nodes, .. } => nodes,
        }
    }
}

/// The time limits of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connect: Duration,
    pub(crate) response: Duration,
}

/// One connection that is opened when it is needed, and opened anew after a failure.
///
/// It belongs to the runtime that it was opened on, since a task there reads from it. A call on another runtime opens its
/// own: whoever renews a session on a thread of its own must not depend on a runtime that may be blocked or gone.
pub(crate) struct Link {
    target: Target,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// Counts connections, so that a late failure of an old one does not close its successor.
    opened: u64,
    /// Failures in a row, and when the next attempt may be made.
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Clone)]
struct Open {
    conn: Conn,
    number: u64,
    runtime: Id,
}

impl Link {
    fn new(target: Target, limits: Limits) -> Self {
        Self { target, limits, state: Mutex::default() }
    }

    /// Sends one command. The second value says whether it may be sent again at once on a new connection: it failed on
    /// one that had been open before.
    async fn send(&self, cmd: Cmd) -> Result<RedisResult<Value>, (StoreError, bool)> {
        let (open, reused) = self.open().await.map_err(|error| (error, false))?;
        match timeout(self.limits.response, open.conn.send(cmd)).await {
            Ok(Err(error)) if error.is_unrecoverable_error() || error.is_io_error() => {
                self.give_up(&open).await;
                Err((store_error(error), reused))
            }
            Ok(result) => Ok(result),
            Err(_) => {
                // Nobody knows whether the other end is still there. A new connection will show.
                self.give_up(&open).await;
                Err((StoreError::Timeout { limit: self.limits.response }, false))
            }
        }
    }

    async fn open(&self) -> Result<(Open, bool), StoreError> {
        let runtime = Handle::current().id();
        let mut state = self.state.lock().await;
        if let Some(open) = state.open.as_ref().filter(|open| open.runtime == runtime) {
            return Ok((open.clone(), true));
        }
        state.open = None;
        if let Some(at) = state.not_before {
            sleep_until(at).await;
        }
        let limit = self.limits.connect;
        let connected = match timeout(limit, self.target.connect()).await {
            Ok(connected) => connected.map_err(store_error),
            Err(_) => Err(StoreError::Timeout { limit }),
        };
        match connected {
            Ok(conn) => {
                state.opened += 1;
                (state.failures, state.not_before) = (0, None);
                let open = Open { conn, number: state.opened, runtime };
                state.open = Some(open.clone());
                Ok((open, false))
            }
            Err(error) => {
                let pause = Duration::from_millis(10 << state.failures.min(5)).min(LONGEST_PAUSE);
                state.failures += 1;
                state.not_before = Some(Instant::now() + pause);
                Err(error)
            }
        }
    }

    async fn give_up(&self, failed: &Open) {
        let mut state = self.state.lock().await;
        if state.open.as_ref().is_some_and(|open| open.number == failed.number) {
            state.open = None;
        }
    }

    async fn close(&self) {
        self.state.lock().await.open = None;
    }
}

/// What carries the commands: a connection of our own, or one that the program brought.
pub(crate) enum Commands {
    Own(Box<Link>),
    Brought { conn: Conn, limits: Limits },
}

impl Commands {
    /// A connection of our own, not opened yet.
    pub(crate) fn own(target: Target, limits: Limits) -> Self {
        Self::Own(Box::new(Link::new(target, limits)))
    }

    /// Sends a command; an idempotent one is sent again if the connection turned out to have been closed meanwhile.
    pub(crate) async fn ask(&self, cmd: Cmd, repeat: Repeat) -> Result<RedisResult<Value>, StoreError> {
        let link = match self {
            Self::Own(link) => link,
            Self::Brought { conn, limits } => {
                // It may have to be opened first, which is the other side's business and part of the call.
                return within(limits.connect + limits.response, conn.send(cmd)).await;
            }
        };
        match link.send(cmd.clone()).await {
            Err((_, true)) if repeat == Repeat::Idempotent => link.send(cmd).await.map_err(|(error, _)| error),
            other => other.map_err(|(error, _)| error),
        }
    }

    pub(crate) async fn close(&self) {
        if let Self::Own(link) = self {
            link.close().await;
        }
    }
}

/// The result of a call, or that its time limit passed.
pub(crate) async fn within<T>(limit: Duration, call: impl Future<Output = T>) -> Result<T, StoreError> {
    timeout(limit, call).await.map_err(|_| StoreError::Timeout { limit })
}

/// Whether a call may be made twice where its first fate is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Once,
    Idempotent,
}

/// Set once, when the store is closed.
#[derive(Debug, Default)]
pub(crate) struct Closed(watch::Sender<bool>);

impl Closed {
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if *self.0.borrow() { Err(StoreError::Closed) } else { Ok(()) }
    }

    pub(crate) fn set(&self) {
        self.0.send_replace(true);
    }

    /// Returns when the store has been closed.
    pub(crate) async fn wait(&self) {
        // The sender lives as long as this does, so that the wait can only end well.
        _ = self.0.subscribe().wait_for(|closed| *closed).await;
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own Debug is not used: it belongs to another crate, and it knows the password.
        let servers: Vec<String> = self.servers().iter().map(|c| c.get_connection_info().addr().to_string()).collect();
        f.debug_tuple("Target").field(&servers).finish()
    }
}
