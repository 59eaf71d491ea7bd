//! What a [`RedisStore`] is built from.

use std::{fmt, time::Duration};

use divider_core::{ConfigError, Group};
use redis::{Client, ConnectionAddr, IntoConnectionInfo, aio::ConnectionLike};

use crate::{
    RedisStore,
    link::{Conn, Limits, Target},
};

/// Everything that can be set, with its default.
///
/// `Debug` shows neither the URL nor a password.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisConfig {
    /// Where the server is: `redis://user:password@host:port/database`, `rediss://…` with the Cargo feature `tls`, or
    /// `redis+unix:///path`. More than one only for a Redis Cluster (Cargo feature `cluster`).
    pub urls: Vec<String>,
    /// The group.
    pub group: Group,
    /// The longest time that one attempt to connect may take. Default 1 s.
    pub connect_timeout: Duration,
    /// The longest time that the server may take to answer. Default 500 ms. Keep it well below a third of the lease: a
    /// renewal that is waited for is one that is not tried again.
    pub response_timeout: Duration,
    /// How often a subscription asks whether its server is still there. Default 1 s. An answer that takes longer than
    /// this is the end of the subscription, which the node then opens anew.
    pub ping_interval: Duration,
}

impl RedisConfig {
    fn new(urls: Vec<String>, group: Group) -> Self {
        Self {
            urls,
            group,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_millis(500),
            ping_interval: Duration::from_secs(1),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError`] that names the first field that cannot be used. It never quotes a URL.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.urls.is_empty() {
            return Err(ConfigError { field: "urls", problem: "at least one is needed".to_owned() });
        }
        for (field, value) in [
            ("connect_timeout", self.connect_timeout),
            ("response_timeout", self.response_timeout),
            ("ping_interval", self.ping_interval),
        ] {
            if value < Duration::from_millis(1) || value > Duration::from_secs(60) {
                let problem = format!("{value:?} is not between 1 ms and 60 s");
                return Err(ConfigError { field, problem });
            }
        }
        self.clients().map(drop)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { connect: self.connect_timeout, response: self.response_timeout }
    }

    fn clients(&self) -> Result<Vec<Client>, ConfigError> {
        self.urls.iter().map(|url| client(url)).collect()
    }
}

/// A client, which does not connect yet. The redis crate's own message may quote the URL, so it is not passed on.
fn client(url: &str) -> Result<Client, ConfigError> {
    let refused = |problem: &str| ConfigError { field: "urls", problem: problem.to_owned() };
    let info = url
        .into_connection_info()
        .map_err(|_| refused("one is not of the form redis://[user[:password]@]host[:port][/database]"))?;
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) && !cfg!(feature = "tls") {
        return Err(refused("rediss:// needs the Cargo feature `tls` of divider-redis"));
    }
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Client::open(info.set_tcp_settings(tcp)).map_err(|_| refused("one cannot be used by this build"))
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("urls", &format_args!("{} hidden", self.urls.len()))
            .field("group", &self.group)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("ping_interval", &self.ping_interval)
            .finish()
    }
}

/// Builds a [`RedisStore`]. Nothing is connected before the store is used.
///
/// ```
/// use divider_redis::RedisStore;
/// let group = divider_core::Group::new("/process/me/")?;
/// let store = RedisStore::builder("redis://127.0.0.1:6379", group).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct RedisBuilder {
    config: RedisConfig,
    commands: Option<Brought>,
    cluster: bool,
}

/// A connection of the program's own.
struct Brought(Conn);

impl fmt::Debug for Brought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("brought by the program")
    }
}

impl RedisBuilder {
    pub(crate) fn new(urls: Vec<String>, group: Group, cluster: bool) -> Self {
        Self { config: RedisConfig::new(urls, group), commands: None, cluster }
    }

    /// Changes any field of the configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut RedisConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Sets [`RedisConfig::connect_timeout`].
    pub fn connect_timeout(self, limit: Duration) -> Self {
        self.configure(|config| config.connect_timeout = limit)
    }

    /// Sets [`RedisConfig::response_timeout`].
    pub fn response_timeout(self, limit: Duration) -> Self {
        self.configure(|config| config.response_timeout = limit)
    }

    /// Sends the commands over a connection that the program has already: a `MultiplexedConnection`, a
    /// `ConnectionManager`, a `ClusterConnection` or any other that can be cloned. It must lead to the same server and
    /// database as the URL, which renewals and subscriptions still use: they need connections of their own, on which
    /// nobody else's slow command stands in the way.
    pub fn commands_over<C>(mut self, connection: C) -> Self
    where
        C: ConnectionLike + Clone + Send + Sync + 'static,
    {
        self.commands = Some(Brought(Conn::new(connection)));
        self
    }

    /// Sends the commands over a pool, as [`commands_over`](Self::commands_over).
    #[cfg(feature = "deadpool")]
    pub fn commands_over_pool(mut self, pool: deadpool_redis::Pool) -> Self {
        self.commands = Some(Brought(Conn::pooled(pool)));
        self
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// As [`RedisConfig::validate`].
    pub fn build(self) -> Result<RedisStore, ConfigError> {
        let Self { config, commands, cluster } = self;
        config.validate()?;
        let target = target(&config, cluster)?;
        Ok(RedisStore::new(config, target, commands.map(|brought| brought.0)))
    }
}

#[cfg(not(feature = "cluster"))]
fn target(config: &RedisConfig, _: bool) -> Result<Target, ConfigError> {
    match config.clients()?.as_slice() {
        [client] => Ok(Target::Server(Box::new(client.clone()))),
        _ => Err(ConfigError { field: "urls", problem: "several need RedisStore::cluster".to_owned() }),
    }
}

#[cfg(feature = "cluster")]
fn target(config: &RedisConfig, cluster: bool) -> Result<Target, ConfigError> {
    let nodes = config.clients()?;
    match nodes.as_slice() {
        _ if cluster => {
            let info = nodes.iter().map(|node| node.get_connection_info().clone());
            let client = redis::cluster::ClusterClientBuilder::new(info)
                .connection_timeout(config.connect_timeout)
                .response_timeout(config.response_timeout)
                // A batch whose fate is unknown must not be sent again behind our back.
                .retries(0)
                .build();
            let problem = "they differ in user, password or TLS, or name a database, which a cluster has not";
            let client = client.map_err(|_| ConfigError { field: "urls", problem: problem.to_owned() })?;
            Ok(Target::Cluster { client: Box::new(client), nodes })
        }
        [client] => Ok(Target::Server(Box::new(client.clone()))),
        _ => Err(ConfigError { field: "urls", problem: "several need RedisStore::cluster".to_owned() }),
    }
}
