//! How a node reaches its group in PostgreSQL.

use std::{fmt, str::FromStr, time::Duration};

use divider_core::{ConfigError, Group};
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
    /// Which group.
    pub group: Group,
    /// The schema that [`migrate`](crate::migrate) has filled. Default `divider`.
    pub schema: String,
    /// A pool of yours for batches and reads. It needs a `synchronous_commit` of your choice and no settings else; a
    /// `statement_timeout` shorter than the [`call_timeout`](Self::call_timeout) is good for it. Default none: the node
    /// opens connections of its own.
    pub pool: Option<PgPool>,
    /// Most connections for batches and reads where there is no [`pool`](Self::pool). Default 4, at least 1.
    pub max_connections: u32,
    /// Time limit of every call, waiting for a connection included. Keep it below half of the lease. Default 1 s; 50 ms to
    /// 60 s.
    pub call_timeout: Duration,
    /// How long a leader's connection may be silent before the server closes it and so frees leadership: what ends the
    /// leadership of a process that hangs. 100 ms to 10 min. Default: the node's lease, but at least 500 ms.
    pub leader_timeout: Option<Duration>,
    /// What `pg_stat_activity` shows. Default `divider`.
    pub application_name: String,
}

impl PostgresConfig {
    /// Reads a URL such as `postgres://user:password@host:5432/database?sslmode=verify-full`.
    ///
    /// # Errors
    /// [`ConfigError`] where it is not one. The error does not repeat the URL, which may hold a password.
    pub fn new(url: &str, group: Group) -> Result<Self, ConfigError> {
        let wrong = |problem: &str| ConfigError { field: "url", problem: problem.to_owned() };
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(wrong("must begin with postgres:// or postgresql://"));
        }
        let connect = PgConnectOptions::from_str(url).map_err(|_| wrong("is not a PostgreSQL connection URL"))?;
        Ok(Self::with_options(connect, group))
    }

    /// Takes connection options that you have made yourself.
    pub fn with_options(connect: PgConnectOptions, group: Group) -> Self {
        Self {
            connect,
            group,
            schema: "divider".to_owned(),
            pool: None,
            max_connections: 4,
            call_timeout: Duration::from_secs(1),
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
        let wrong = |field, problem: &str| Err(ConfigError { field, problem: problem.to_owned() });
        if self.schema.is_empty() || self.schema.len() > 63 || self.schema.contains('\0') {
            return wrong("schema", "must have 1 to 63 bytes, without NUL");
        }
        if self.max_connections == 0 {
            return wrong("max_connections", "must be at least 1");
        }
        if !(Duration::from_millis(50)..=Duration::from_secs(60)).contains(&self.call_timeout) {
            return wrong("call_timeout", "must be between 50 ms and 60 s");
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
            .field("database", &self.connect.get_database())
            .field("user", &self.connect.get_username())
            .field("group", &self.group)
            .field("schema", &self.schema)
            .field("pool", &self.pool.is_some())
            .field("max_connections", &self.max_connections)
            .field("call_timeout", &self.call_timeout)
            .field("leader_timeout", &self.leader_timeout)
            .field("application_name", &self.application_name)
            .finish()
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

    /// Sets [`PostgresConfig::pool`].
    pub fn pool(self, pool: PgPool) -> Self {
        self.configure(|config| config.pool = Some(pool))
    }

    /// Sets [`PostgresConfig::call_timeout`].
    pub fn call_timeout(self, limit: Duration) -> Self {
        self.configure(|config| config.call_timeout = limit)
    }

    /// Makes the store.
    ///
    /// # Errors
    /// [`ConfigError`] that names the first field that cannot be used. It never quotes a URL.
    pub fn build(self) -> Result<PostgresStore, ConfigError> {
        self.config.and_then(PostgresStore::new)
    }
}
