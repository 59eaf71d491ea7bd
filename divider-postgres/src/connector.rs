//! How connections are opened: where to, as whom, how often, and what is asked of one before it is used.
//!
//! # Why
//! A name may have several addresses, and a set-up several servers, of which only one can write; which one that is changes
//! with each fail-over. So names are resolved anew for each connection, and what [`open`](divider_core::Store::open)
//! requires of a server is required of each connection.
//!
//! # How
//! All candidates are tried one after the other, each a little later than the one before and without waiting for its end;
//! the first that can write is taken. While none can be reached, one attempt at a time is made for all callers, after
//! pauses that grow with the outage.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use divider_core::StoreError;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sqlx::{
    Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};

use crate::{PostgresConfig, config::Credentials, error::store_error, pace::Pace};

/// How long an attempt is alone before the next candidate is tried beside it.
const STAGGER: Duration = Duration::from_millis(200);

/// The way to the server, for all connections of one runtime.
#[derive(Clone)]
pub(crate) struct Connector {
    /// One for each server.
    servers: Arc<[PgConnectOptions]>,
    credentials: Option<Credentials>,
    /// Time limit of every call, that of connecting included.
    pub(crate) limit: Duration,
    leader_timeout: Option<Duration>,
    pace: Arc<Pace>,
    /// A connection has been good enough once: from then on, one that cannot write is an outage and no mistake.
    proven: Arc<AtomicBool>,
}

impl Connector {
    pub(crate) fn new(config: &PostgresConfig) -> Self {
        let options = config
            .connect
            .clone()
            .application_name(&config.application_name)
            // Poolers in session mode refuse connections that set it, and nothing here prints a float.
            .extra_float_digits(None);
        let more = config.more_hosts.iter().map(|(host, port)| options.clone().host(host).port(*port));
        Self {
            servers: std::iter::once(options.clone()).chain(more).collect(),
            credentials: config.credentials.clone(),
            limit: config.call_time_limit,
            leader_timeout: config.leader_timeout,
            pace: Arc::default(),
            proven: Arc::default(),
        }
    }

    /// For callers on another runtime, who must not wait for an attempt that this one has stopped driving.
    pub(crate) fn apart(&self) -> Self {
        Self { pace: Arc::default(), ..self.clone() }
    }

    /// What a new connection is told: the server is to give up what this node has given up, and to find out soon that the
    /// node is gone. `idle` also closes a connection on which nothing is asked for too long.
    ///
    /// Each statement is planned once and not for each call; so that a plan which was made for empty tables is right for
    /// full ones as well, it never reads a whole table.
    fn settings(&self, idle: bool) -> String {
        let limit = self.limit.as_millis();
        // 0 is for ever; whoever then comes to lead gets its lease instead.
        let idle = self.leader_timeout.filter(|_| idle).map_or(0, |limit| limit.as_millis());
        format!(
            "SET statement_timeout = {limit}; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = {limit}; \
             SET idle_session_timeout = {idle}; SET tcp_keepalives_idle = 1; SET tcp_keepalives_interval = 1; \
             SET tcp_keepalives_count = 3; SET tcp_user_timeout = 3000; SET default_transaction_isolation = \
             'read committed'; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
             SET enable_bitmapscan = off; SET jit = off; {WRITES}"
        )
    }

    /// Gives a new connection its settings, and refuses one that cannot write.
    pub(crate) async fn settle(&self, connection: &mut PgConnection, idle: bool) -> Result<(), StoreError> {
        let read = |error| store_error(error, self.limit);
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(self.settings(idle))).fetch_all(connection).await.map_err(read)?;
        let row = rows.first().ok_or_else(|| crate::codec::corrupt("what the server can do"))?;
        let writes = writable(row.try_get(0).map_err(read)?, row.try_get(1).map_err(read)?);
        writes.map_err(|problem| match self.proven.load(Ordering::Relaxed) {
            // It was good once, so somebody is about to put it right, or another server takes over.
            true => StoreError::Unavailable { message: problem, source: None },
            false => StoreError::Misconfigured(problem),
        })
    }

    /// A connection for any use.
    pub(crate) async fn connect(&self, until: Instant) -> Result<PgConnection, StoreError> {
        self.open(until, |options| async move {
            let opened = PgConnection::connect_with(&options).await;
            let mut connection = opened.map_err(|error| store_error(error, self.limit))?;
            self.settle(&mut connection, false).await?;
            Ok(connection)
        })
        .await
    }

    /// Opens something in this way, at the first candidate where that succeeds.
    pub(crate) async fn open<T, F>(&self, until: Instant, way: impl Fn(PgConnectOptions) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let _turn = self.pace.turn(until).await?;
        let attempt = self.pace.attempt();
        let left = until.saturating_duration_since(Instant::now());
        let late = || StoreError::Unavailable {
            message: format!("no connection to {} within {:?}", self.places(), self.limit),
            source: None,
        };
        let result = timeout(left, self.first(way)).await.unwrap_or_else(|_| Err(late()));
        if result.is_ok() {
            self.proven.store(true, Ordering::Relaxed);
        }
        attempt.ended(result.as_ref().err());
        result
    }

    /// How long nobody is to try to connect.
    pub(crate) fn pause(&self) -> Duration {
        self.pace.pause()
    }

    fn places(&self) -> String {
        self.servers.iter().map(place).collect::<Vec<_>>().join(", ")
    }

    async fn first<T, F>(&self, way: impl Fn(PgConnectOptions) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut servers = self.servers.to_vec();
        if let Some(credentials) = &self.credentials {
            let (user, password) = credentials.ask().await?;
            servers = servers.into_iter().map(|server| server.username(&user).password(&password)).collect();
        }
        let stagger = STAGGER.min(self.limit / 5);
        let more = further(servers.clone());
        race(servers.into(), more, stagger, async |options| {
            let place = place(&options);
            way(options).await.map_err(|error| located(&place, error))
        })
        .await
    }
}

/// The last of the settings: an answer to look at.
const WRITES: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')";

/// Whether a connection can be used for writing.
pub(crate) fn writable(standby: bool, read_only: &str) -> Result<(), String> {
    if standby {
        return Err("this server is a standby, which cannot write; connect to the primary".to_owned());
    }
    if read_only == "on" {
        return Err("transactions are read only here; set default_transaction_read_only to off for this role, \
                    database and server"
            .to_owned());
    }
    Ok(())
}

/// Tries all candidates, each a little after the one before, or at once where all before it have failed; and those that
/// `more` finds after them.
async fn race<T, F>(
    mut waiting: VecDeque<PgConnectOptions>,
    more: impl Future<Output = Vec<PgConnectOptions>>,
    stagger: Duration,
    way: impl Fn(PgConnectOptions) -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    let (mut more, mut asked) = (pin!(more), false);
    let mut next = true;
    loop {
        if next && let Some(options) = waiting.pop_front() {
            running.push(way(options));
        }
        if running.is_empty() && waiting.is_empty() && asked {
            return Err(all_of(failed));
        }
        next = tokio::select! {
            Some(ended) = running.next() => match ended {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    failed.push(error);
                    true
                }
            },
            found = &mut more, if !asked => {
                asked = true;
                waiting.extend(found);
                running.is_empty()
            }
            () = sleep(stagger), if !waiting.is_empty() => true,
        };
    }
}

/// The further addresses of all names. The driver itself begins with the first of each, and stays with it for as long as
/// the system does. With `verify-full` it must be left to: the certificate is compared with what it connects to.
async fn further(servers: Vec<PgConnectOptions>) -> Vec<PgConnectOptions> {
    let mut all = Vec::new();
    for server in servers {
        let host = server.get_host();
        let by_name = server.get_socket().is_none() && !host.starts_with('/');
        if by_name && !matches!(server.get_ssl_mode(), PgSslMode::VerifyFull) {
            let found = lookup_host((host.trim_matches(['[', ']']), server.get_port())).await;
            let rest =
                found.into_iter().flatten().skip(1).map(|address| server.clone().host(&address.ip().to_string()));
            all.extend(rest);
        }
    }
    all
}

/// Where a connection leads to. No more than that is ever shown of it.
fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(path) => path.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// An error that says where it happened.
fn located(place: &str, error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable { message, source } => {
            StoreError::Unavailable { message: format!("{place}: {message}"), source }
        }
        StoreError::Timeout { limit } => {
            StoreError::Unavailable { message: format!("{place}: no answer within {limit:?}"), source: None }
        }
        StoreError::Misconfigured(message) => StoreError::Misconfigured(format!("{place}: {message}")),
        error => error,
    }
}

/// What several candidates have failed with. It is a wrong set-up only where it is one for each of them.
fn all_of(mut failed: Vec<StoreError>) -> StoreError {
    if failed.len() == 1 {
        return failed.remove(0);
    }
    let said = |error: &StoreError| match error {
        StoreError::Unavailable { message, .. } | StoreError::Misconfigured(message) => message.clone(),
        error => error.to_string(),
    };
    let message = failed.iter().map(said).collect::<Vec<_>>().join("; ");
    if !failed.is_empty() && failed.iter().all(|error| matches!(error, StoreError::Misconfigured(_))) {
        return StoreError::Misconfigured(message);
    }
    StoreError::Unavailable { message, source: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass().host(name).port(1)
    }

    async fn raced(first: &[&str], more: &[&str]) -> Result<String, StoreError> {
        let more: Vec<_> = more.iter().map(|name| host(name)).collect();
        let first = first.iter().map(|name| host(name)).collect();
        let way = |options: PgConnectOptions| async move {
            match options.get_host() {
                "silent" => std::future::pending().await,
                "refusing" => Err(StoreError::Unavailable { message: place(&options), source: None }),
                "standby" => Err(StoreError::Misconfigured(place(&options))),
                good => Ok(good.to_owned()),
            }
        };
        race(first, async { more }, Duration::from_millis(20), way).await
    }

    #[tokio::test]
    async fn a_dead_address_keeps_nobody_from_the_next_one() {
        assert_eq!(raced(&["good"], &[]).await.unwrap(), "good");
        assert_eq!(raced(&["silent"], &["good"]).await.unwrap(), "good");
        assert_eq!(raced(&["silent", "refusing", "silent"], &["standby", "good"]).await.unwrap(), "good");
    }

    #[tokio::test]
    async fn an_error_is_a_wrong_set_up_only_where_it_is_one_everywhere() {
        let refused = raced(&["standby", "refusing"], &[]).await.unwrap_err();
        assert!(refused.is_transient() && refused.to_string().contains("standby:1; refusing:1"), "{refused}");
        assert!(matches!(raced(&["standby"], &["standby"]).await, Err(StoreError::Misconfigured(_))));
    }
}
