//! How a node reaches its group in PostgreSQL.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use divider_core::{ConfigError, Group, StoreError};
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPool};

use crate::PostgresStore;

/// How a node reaches its group in PostgreSQL. Every field may be changed before it is given to
/// [`PostgresStore::new`](crate::PostgresStore::new), which checks them all.
///
/// ```
/// use divider_postgres::PostgresConfig;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = PostgresConfig::new("postgres://app:secret@db.example/app", "/process/me/".parse()?)?;
/// config.schema = "work".to_owned();
/// assert!(!format!("{config:?}").contains("secret"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresConfig {
    /// Server, database, user and TLS. The node's own connections are opened with it: one for the lock of leadership and for
    /// listening, one for renewals, and, unless there is a [`pool`](Self::pool), some for the rest. It must lead to the
    /// server itself, or to a pooler in session mode.
    pub connect: PgConnectOptions,
    /// Further servers of the same cluster, by host and port. The one that can write is used, whichever that is; all of them
    /// are looked at anew for each connection. A URL may name them all, as `postgres://app@one:5432,two:5432/app`. Default
    /// none.
    pub more_hosts: Vec<(String, u16)>,
    /// Asked for user and password before each connection is opened, where they change while the program runs. Default
    /// none: those of [`connect`](Self::connect) hold.
    pub credentials: Option<Credentials>,
    /// Which group.
    pub group: Group,
    /// The schema that [`migrate`](crate::migrate) has filled. Default `divider`.
    pub schema: String,
    /// Whether the store migrates the schema by itself when it is opened, where something is missing; its role must be allowed
    /// to then. Default no.
    pub migrates: bool,
    /// A pool of yours for batches and reads. It needs a `synchronous_commit` of your choice and no settings else; where its
    /// default isolation is not `read committed`, each call begins a transaction that is, which takes two round trips more. A
    /// `statement_timeout` shorter than the [`call_time_limit`](Self::call_time_limit) is good for it. Default none: the node
    /// opens connections of its own.
    pub pool: Option<PgPool>,
    /// Most connections for batches and reads where there is no [`pool`](Self::pool). Up to two of them are opened soon
    /// after the start, and have the server plan every statement before it is needed. Default 4, at least 1.
    pub max_connections: u32,
    /// How long one of these connections may be of no use before it is closed. Default 1 min; 100 ms to 1 h.
    pub idle_timeout: Duration,
    /// Time limit of every call, waiting for a connection included. Keep it below half of the lease. Default 1 s; 50 ms to
    /// 60 s.
    pub call_time_limit: Duration,
    /// How long a leader's connection may be silent before the server closes it and so frees leadership: what ends the
    /// leadership of a process that hangs. 100 ms to 10 min. Default: the node's lease, but at least 500 ms.
    pub leader_timeout: Option<Duration>,
    /// What `pg_stat_activity` shows. Default `divider`.
    pub application_name: String,
}

impl PostgresConfig {
    /// Reads a URL such as `postgres://user:password@host:5432/database?sslmode=verify-full`, also with several hosts,
    /// separated by commas. `target_session_attrs` may be there; whatever it says, a server that can write is looked for.
    ///
    /// # Errors
    /// [`ConfigError`] where it is not one. The error does not repeat the URL, which may hold a password.
    pub fn new(url: &str, group: Group) -> Result<Self, ConfigError> {
        let wrong = |problem: &str| ConfigError::new("url", problem);
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if !["postgres", "postgresql"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
            return Err(wrong("must begin with postgres:// or postgresql://"));
        }
        let not_a_url = || wrong("is not a PostgreSQL connection URL");
        let (url, more) = first_host(url).ok_or_else(not_a_url)?;
        let url =
            without_target(&url).ok_or_else(|| wrong("asks for a server that cannot write (target_session_attrs)"))?;
        let connect = PgConnectOptions::from_str(&url).map_err(|_| not_a_url())?;
        Ok(Self { more_hosts: more, ..Self::with_options(connect, group) })
    }

    /// Takes connection options that you have made yourself.
    pub fn with_options(connect: PgConnectOptions, group: Group) -> Self {
        Self {
            connect,
            more_hosts: Vec::new(),
            credentials: None,
            group,
            schema: "divider".to_owned(),
            migrates: false,
            pool: None,
            max_connections: 4,
            idle_timeout: Duration::from_secs(60),
            call_time_limit: Duration::from_secs(1),
            leader_timeout: None,
            application_name: "divider".to_owned(),
        }
    }

    /// Uses your pool for batches and reads, and its options for the node's own connections.
    pub fn with_pool(pool: PgPool, group: Group) -> Self {
        let connect = pool.connect_options().as_ref().clone();
        Self { pool: Some(pool), ..Self::with_options(connect, group) }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError`] that names the first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |field, problem: &str| Err(ConfigError::new(field, problem));
        if self.schema.is_empty() || self.schema.len() > 63 || self.schema.contains('\0') {
            return wrong("schema", "must have 1 to 63 bytes, without NUL");
        }
        if self.max_connections == 0 {
            return wrong("max_connections", "must be at least 1");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.idle_timeout) {
            return wrong("idle_timeout", "must be between 100 ms and 1 h");
        }
        if !(Duration::from_millis(50)..=Duration::from_secs(60)).contains(&self.call_time_limit) {
            return wrong("call_time_limit", "must be between 50 ms and 60 s");
        }
        if self
            .leader_timeout
            .is_some_and(|limit| !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&limit))
        {
            return wrong("leader_timeout", "must be between 100 ms and 10 min");
        }
        Ok(())
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Field by field, since the connection options would print the password.
        f.debug_struct("PostgresConfig")
            .field("host", &self.connect.get_host())
            .field("port", &self.connect.get_port())
            .field("more_hosts", &self.more_hosts)
            .field("credentials", &self.credentials)
            .field("database", &self.connect.get_database())
            .field("user", &self.connect.get_username())
            .field("group", &self.group)
            .field("schema", &self.schema)
            .field("migrates", &self.migrates)
            .field("pool", &self.pool.is_some())
            .field("max_connections", &self.max_connections)
            .field("idle_timeout", &self.idle_timeout)
            .field("call_time_limit", &self.call_time_limit)
            .field("leader_timeout", &self.leader_timeout)
            .field("application_name", &self.application_name)
            .finish()
    }
}

/// Takes the further hosts out of a URL that names several. `None` where a port is not one.
fn first_host(url: &str) -> Option<(String, Vec<(String, u16)>)> {
    let begin = url.find("://")? + 3;
    let end = url[begin..].find(['/', '?']).map_or(url.len(), |at| begin + at);
    let begin = url[begin..end].rfind('@').map_or(begin, |at| begin + at + 1);
    let mut hosts = url[begin..end].split(',');
    let first = hosts.next().unwrap_or_default();
    let more = hosts.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => Some((name.to_owned(), port.parse().ok()?)),
        _ => Some((host.to_owned(), 5432)),
    });
    let more: Option<Vec<_>> = more.collect();
    Some((format!("{}{first}{}", &url[..begin], &url[end..]), more?))
}

/// Takes `target_session_attrs` out of a URL, which the driver does not know. `None` where it asks for a standby.
fn without_target(url: &str) -> Option<String> {
    let Some((url, query)) = url.split_once('?') else { return Some(url.to_owned()) };
    let target = |part: &&str| part.starts_with("target_session_attrs=");
    let writes = |part: &str| ["=any", "=read-write", "=primary"].iter().any(|value| part.ends_with(value));
    if !query.split('&').filter(target).all(writes) {
        return None;
    }
    let query: Vec<_> = query.split('&').filter(|part| !target(part)).collect();
    Some(format!("{url}?{}", query.join("&")))
}

/// Says with which user and password a connection is to be opened.
///
/// ```
/// use divider_postgres::{Credentials, PostgresConfig};
/// # async fn token() -> Result<String, divider_core::StoreError> { Ok(String::new()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = PostgresConfig::new("postgres://db.example/app", "/process/me/".parse()?)?;
/// config.credentials = Some(Credentials::new(async || Ok(("app".to_owned(), token().await?))));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Credentials(Arc<dyn Fn() -> Answer + Send + Sync>);

/// User and password, once they are known.
type Answer = BoxFuture<'static, Result<(String, String), StoreError>>;

impl Credentials {
    /// Calls this for each connection. It must return the user and the password well within the
    /// [`call_time_limit`](PostgresConfig::call_time_limit), and is dropped where it does not; it may be called on several
    /// runtimes at the same time. An error of it is reported like one of the server; it must not hold a secret.
    pub fn new<F>(ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(String, String), StoreError>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(ask())))
    }

    pub(crate) async fn ask(&self) -> Result<(String, String), StoreError> {
        (self.0)().await
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Builds a [`PostgresStore`]. Nothing is connected before the store is opened.
///
/// ```
/// use divider_postgres::PostgresStore;
/// let group = divider_core::Group::new("/process/me/")?;
/// let store = PostgresStore::builder("postgres://app@localhost/app", group).schema("work").build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct PostgresBuilder {
    config: Result<PostgresConfig, ConfigError>,
}

impl PostgresBuilder {
    pub(crate) fn new(config: Result<PostgresConfig, ConfigError>) -> Self {
        Self { config }
    }

    /// Changes any field of the configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut PostgresConfig)) -> Self {
        if let Ok(config) = &mut self.config {
            change(config);
        }
        self
    }

    /// Sets [`PostgresConfig::schema`].
    pub fn schema(self, schema: impl Into<String>) -> Self {
        self.configure(|config| config.schema = schema.into())
    }

    /// Sets [`PostgresConfig::migrates`].
    pub fn migrates(self, migrates: bool) -> Self {
        self.configure(|config| config.migrates = migrates)
    }

    /// Sets [`PostgresConfig::pool`].
    pub fn pool(self, pool: PgPool) -> Self {
        self.configure(|config| config.pool = Some(pool))
    }

    /// Sets [`PostgresConfig::call_time_limit`].
    pub fn call_time_limit(self, limit: Duration) -> Self {
        self.configure(|config| config.call_time_limit = limit)
    }

    /// Makes the store.
    ///
    /// # Errors
    /// [`ConfigError`] that names the first field that cannot be used. It never quotes a URL.
    pub fn build(self) -> Result<PostgresStore, ConfigError> {
        self.config.and_then(PostgresStore::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_several_hosts() {
        let read = |url: &str| {
            let config = PostgresConfig::new(url, Group::new("g").expect("a group"));
            config.map(|config| {
                let first = (config.connect.get_host().to_owned(), config.connect.get_port());
                std::iter::once(first).chain(config.more_hosts).map(|(host, port)| format!("{host} {port}")).collect()
            })
        };
        let hosts: Vec<String> =
            read("postgres://u:p%40@a:1,b,[::1]:3/db?target_session_attrs=primary").expect("a URL");
        assert_eq!(hosts, ["a 1", "b 5432", "[::1] 3"]);
        assert_eq!(read("postgres://u@a/db?sslmode=disable").expect("a URL"), ["a 5432"]);
        assert_eq!(read("Postgres://u@a/db").expect("a URL"), ["a 5432"], "a scheme may be written in capitals");
        for wrong in ["postgres://a:1,b:x/db", "postgres://a/db?target_session_attrs=standby"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
