//! Connections for commands: how they are opened, given up and opened again.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use divider_core::StoreError;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value, aio::ConnectionLike};
use tokio::{
    runtime::{Handle, Id},
    sync::watch,
    time::{sleep_until, timeout},
};

use crate::{
    error::{lacks_a_right, unavailable},
    pace::Pace,
    target::Target,
};

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
                    other => RedisError::from(std::io::Error::other(other.to_string())),
                })?;
                cmd.query_async(&mut connection).await
            })
        }))
    }

    pub(crate) async fn send(&self, cmd: Cmd) -> RedisResult<Value> {
        (self.0)(cmd).await
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
pub(crate) struct ManagedConnection(Arc<Inner>);

struct Inner {
    target: Target,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// The attempt that all calls of a runtime wait for. Its task goes on where none of them does any more.
    attempt: Option<(Id, Attempt)>,
    /// Counts connections, so that a late failure of an old one does not close its successor.
    opened: u64,
    pace: Pace,
    closed: bool,
}

type Attempt = Shared<BoxFuture<'static, Result<Open, StoreError>>>;

#[derive(Clone)]
struct Open {
    conn: Conn,
    number: u64,
    runtime: Id,
    /// Set with the first answer to a call. Before that only the check at the connect has been answered.
    of_use: Arc<AtomicBool>,
}

impl ManagedConnection {
    fn new(target: Target, limits: Limits) -> Self {
        Self(Arc::new(Inner { target, limits, state: Mutex::default() }))
    }

    /// Sends one command. The second value says whether it may be sent again at once on a new connection: it failed on
    /// one that had been open before.
    async fn send(&self, cmd: Cmd) -> Result<RedisResult<Value>, (StoreError, bool)> {
        let (open, reused) = self.open().await.map_err(|error| (error, false))?;
        match timeout(self.0.limits.response, open.conn.send(cmd)).await {
            Ok(Err(error)) if error.is_unrecoverable_error() || error.is_io_error() => {
                let error = self.0.target.error(error);
                self.0.give_up(&open, &error);
                Err((error, reused))
            }
            Ok(Err(error)) if led_astray(&error) => {
                self.0.give_up(&open, &self.0.target.error(error.clone()));
                Ok(Err(error))
            }
            Ok(result) => {
                open.of_use.store(true, Ordering::Relaxed);
                self.0.state().pace.well();
                self.0.target.learn(&open.conn);
                Ok(result)
            }
            Err(_) => {
                // Nobody knows whether the other end is still there. A new connection will show.
                let error = StoreError::Timeout { limit: self.0.limits.response };
                self.0.give_up(&open, &error);
                Err((error, false))
            }
        }
    }

    /// The connection, and whether it had been open before. Nobody waits longer than for one connect.
    async fn open(&self) -> Result<(Open, bool), StoreError> {
        let attempt = {
            let mut state = self.0.state();
            let runtime = Handle::current().id();
            match state.open.as_ref().filter(|open| open.runtime == runtime) {
                Some(open) => return Ok((open.clone(), true)),
                None => self.0.clone().attempt(&mut state, runtime),
            }
        };
        match timeout(self.0.limits.connect, attempt).await {
            Ok(opened) => opened.map(|open| (open, false)),
            Err(_) => Err(self.0.not_yet()),
        }
    }

    /// The next call opens another one.
    fn renew(&self) {
        self.0.state().open = None;
    }

    fn close(&self) {
        let mut state = self.0.state();
        (state.open, state.closed) = (None, true);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt that is under way on this runtime, or a new one.
    fn attempt(self: Arc<Self>, state: &mut State, runtime: Id) -> Attempt {
        if let Some((_, attempt)) = state.attempt.as_ref().filter(|(of, _)| *of == runtime) {
            return attempt.clone();
        }
        let task = tokio::spawn(self.clone().connect(runtime));
        let ended = move || unavailable(&self.target.address(), "the runtime that was connecting has ended");
        let attempt = async move { task.await.unwrap_or_else(|_| Err(ended())) }.boxed().shared();
        state.attempt = Some((runtime, attempt.clone()));
        attempt
    }

    async fn connect(self: Arc<Self>, runtime: Id) -> Result<Open, StoreError> {
        let waiting = self.state().pace.waiting();
        if let Some((next, _)) = waiting {
            sleep_until(next).await;
        }
        let connected = self.target.connect().await;
        let mut state = self.state();
        if state.attempt.as_ref().is_some_and(|(of, _)| *of == runtime) {
            state.attempt = None;
        }
        let conn = connected.inspect_err(|error| state.pace.failed(error))?;
        if state.closed {
            return Err(StoreError::Closed);
        }
        state.opened += 1;
        let open = Open { conn, number: state.opened, runtime, of_use: Arc::default() };
        state.open = Some(open.clone());
        Ok(open)
    }

    /// Why there is no connection after as long as one may take.
    fn not_yet(&self) -> StoreError {
        let late = || unavailable(&self.target.address(), format!("no connection within {:?}", self.limits.connect));
        self.state().pace.waiting().map_or_else(late, |(_, last)| last)
    }

    fn give_up(&self, failed: &Open, error: &StoreError) {
        let mut state = self.state();
        if state.open.as_ref().is_some_and(|open| open.number == failed.number) {
            state.open = None;
            // One that had not been of use before is followed by a pause, or a server that accepts and refuses would be
            // tried without end.
            if !failed.of_use.load(Ordering::Relaxed) {
                state.pace.failed(error);
            }
        }
    }
}

/// Whether the connection leads where nothing can be done: to a replica, to a server that is starting or has lost its
/// cluster, or in as a user who may not. Its address may lead elsewhere by the next time, and the user's rights be others.
fn led_astray(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, NoPerm, ReadOnly};
    matches!(error.kind(), ErrorKind::Server(ReadOnly | MasterDown | BusyLoading | ClusterDown | NoPerm))
        || matches!(error.code(), Some("NOAUTH" | "NOREPLICAS"))
        || lacks_a_right(error)
}

/// What carries the commands: a connection of our own, or one that the program brought.
pub(crate) enum Commands {
    Own(ManagedConnection),
    Brought { conn: Conn, limits: Limits },
}

impl Commands {
    /// A connection of our own, not opened yet.
    pub(crate) fn own(target: Target, limits: Limits) -> Self {
        Self::Own(ManagedConnection::new(target, limits))
    }

    /// Sends a command; an idempotent one is sent again if the connection turned out to have been closed meanwhile.
    pub(crate) async fn ask(&self, cmd: Cmd, repeat: Repeat) -> Result<RedisResult<Value>, StoreError> {
        let connection = match self {
            Self::Own(connection) => connection,
            Self::Brought { conn, limits } => {
                // It may have to be opened first, which is the other side's business and part of the call.
                return within(limits.connect + limits.response, conn.send(cmd)).await;
            }
        };
        match connection.send(cmd.clone()).await {
            Err((_, true)) if repeat == Repeat::Idempotent => connection.send(cmd).await.map_err(|(error, _)| error),
            other => other.map_err(|(error, _)| error),
        }
    }

    /// Checks the server that the commands go to. A connection of our own is checked whenever it is opened, so a new one
    /// is opened.
    pub(crate) async fn check(&self, target: &Target) -> Result<(), StoreError> {
        match self {
            Self::Own(connection) => {
                connection.renew();
                connection.open().await.map(drop)
            }
            Self::Brought { conn, limits } => within(limits.connect + limits.response, target.check(conn)).await?,
        }
    }

    pub(crate) fn close(&self) {
        if let Self::Own(connection) = self {
            connection.close();
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
