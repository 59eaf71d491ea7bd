//! What a [`RedisStore`] is built from.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use divider_core::{ConfigError, Group, StoreError};
use futures_util::future::BoxFuture;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, aio::ConnectionLike};

use crate::{
    RedisStore,
    connection::{Conn, Limits},
    target::{Cluster, Target},
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
    pub call_time_limit: Duration,
    /// How often a subscription asks whether its server is still there. Default 1 s. An answer that takes longer than
    /// this is the end of the subscription, which the node then opens anew.
    pub ping_interval: Duration,
    /// Asked for user and password before each connection is opened, where they change while the program runs. Default
    /// none: those of the URL.
    pub credentials: Option<Credentials>,
    /// The certificates, as PEM, of the authorities that the server's certificate may be from, in place of the system's.
    /// Needs `rediss://`. Default none.
    pub root_certificates: Option<Vec<u8>>,
    /// A certificate to show to the server, and its key, both as PEM. Needs `rediss://`. Default none.
    pub client_certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl RedisConfig {
    fn new(urls: Vec<String>, group: Group) -> Self {
        Self {
            urls,
            group,
            connect_timeout: Duration::from_secs(1),
            call_time_limit: Duration::from_millis(500),
            ping_interval: Duration::from_secs(1),
            credentials: None,
            root_certificates: None,
            client_certificate: None,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError`] that names the first field that cannot be used. It never quotes a URL.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.urls.is_empty() {
            return Err(ConfigError::new("urls", "at least one is needed"));
        }
        for (field, value) in [
            ("connect_timeout", self.connect_timeout),
            ("call_time_limit", self.call_time_limit),
            ("ping_interval", self.ping_interval),
        ] {
            if value < Duration::from_millis(1) || value > Duration::from_secs(60) {
                let problem = format!("{value:?} is not between 1 ms and 60 s");
                return Err(ConfigError::new(field, problem));
            }
        }
        self.servers().map(drop)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { connect: self.connect_timeout, response: self.call_time_limit }
    }

    fn servers(&self) -> Result<Vec<ConnectionInfo>, ConfigError> {
        self.urls.iter().map(|url| self.server(url)).collect()
    }

    /// What a URL says. The redis crate's own message may quote the URL, so it is not passed on.
    fn server(&self, url: &str) -> Result<ConnectionInfo, ConfigError> {
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
        let encrypted = ["rediss", "valkeys"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls));
        // Whoever has given one URL knows of no list.
        let (field, one) = if self.urls.len() == 1 { ("url", "") } else { ("urls", "one ") };
        if encrypted && !cfg!(feature = "tls") {
            return Err(refused(field, &format!("{one}begins with {scheme}:, which needs {TLS}")));
        }
        let form = format!("{one}is not of the form redis://[user[:password]@]host[:port][/database]");
        let info = url.into_connection_info().map_err(|_| refused(field, &form))?;
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        self.certified(info.set_tcp_settings(tcp))
    }

    /// The certificates that were configured, and for which field an error is.
    fn certificates(&self) -> Option<&'static str> {
        let root = self.root_certificates.as_ref().map(|_| "root_certificates");
        root.or(self.client_certificate.as_ref().map(|_| "client_certificate"))
    }

    /// Adds the certificates.
    fn certified(&self, info: ConnectionInfo) -> Result<ConnectionInfo, ConfigError> {
        match self.certificates() {
            None => Ok(info),
            Some(field) if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => {
                Err(refused(field, "certificates are used with rediss:// only, and a URL is of another form"))
            }
            #[cfg(feature = "tls")]
            Some(field) => redis::Client::build_with_tls(info, self.pem())
                .map(|client| client.get_connection_info().clone())
                .map_err(|_| refused(field, "the certificates or the key are not PEM that can be used")),
            #[cfg(not(feature = "tls"))]
            Some(field) => Err(refused(field, &format!("certificates need {TLS}"))),
        }
    }

    #[cfg(feature = "tls")]
    fn pem(&self) -> redis::TlsCertificates {
        let client_tls = self.client_certificate.clone();
        let client_tls = client_tls.map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
        redis::TlsCertificates { client_tls, root_cert: self.root_certificates.clone() }
    }

    fn target(&self, cluster: bool) -> Result<Target, ConfigError> {
        let servers = self.servers()?;
        if !cluster && servers.len() > 1 {
            return Err(refused("urls", "several need RedisStore::cluster"));
        }
        let cluster = if cluster { Some(self.cluster(&servers)?) } else { None };
        Ok(Target::new(self, servers, cluster))
    }

    #[cfg(not(feature = "cluster"))]
    fn cluster(&self, _: &[ConnectionInfo]) -> Result<Cluster, ConfigError> {
        let feature = "the Cargo feature `cluster` of divider-redis (`redis-cluster` of divider)";
        Err(refused("urls", &format!("a cluster needs {feature}")))
    }

    #[cfg(feature = "cluster")]
    fn cluster(&self, servers: &[ConnectionInfo]) -> Result<Cluster, ConfigError> {
        let problem = "they differ in user, password or TLS, or name a database, which a cluster has not";
        let client = redis::cluster::ClusterClientBuilder::new(servers.to_vec()).build();
        client.map_err(|_| refused("urls", problem))?;
        Ok(Cluster {
            #[cfg(feature = "tls")]
            certificates: self.certificates().map(|_| self.pem()),
            learned: Default::default(),
        })
    }
}

/// What has to be switched on for it.
const TLS: &str = "the Cargo feature `tls` of divider-redis (`redis-tls` of divider)";

fn refused(field: &'static str, problem: &str) -> ConfigError {
    ConfigError::new(field, problem)
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("urls", &format_args!("{} hidden", self.urls.len()))
            .field("group", &self.group)
            .field("connect_timeout", &self.connect_timeout)
            .field("call_time_limit", &self.call_time_limit)
            .field("ping_interval", &self.ping_interval)
            .field("credentials", &self.credentials)
            .field("certificates", &self.certificates())
            .finish()
    }
}

/// Says with which user and password a connection is to be opened.
///
/// ```
/// use divider_redis::{Credentials, RedisStore};
/// # async fn token() -> Result<String, divider_core::StoreError> { Ok(String::new()) }
/// let group = divider_core::Group::new("/process/me/")?;
/// let credentials = Credentials::new(async || Ok(("app".to_owned(), token().await?)));
/// let store = RedisStore::builder("redis://cache.example", group).credentials(credentials).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Credentials(Arc<dyn Fn() -> BoxFuture<'static, Login> + Send + Sync>);

/// User and password.
type Login = Result<(String, String), StoreError>;

impl Credentials {
    /// Calls this for each connection. It must return the user (`default` where there is none) and the password well within
    /// the [`connect_timeout`](RedisConfig::connect_timeout), and is dropped where it does not; it may be called on several
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

    /// Sets [`RedisConfig::call_time_limit`].
    pub fn call_time_limit(self, limit: Duration) -> Self {
        self.configure(|config| config.call_time_limit = limit)
    }

    /// Sets [`RedisConfig::credentials`].
    pub fn credentials(self, credentials: Credentials) -> Self {
        self.configure(|config| config.credentials = Some(credentials))
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
        let target = config.target(cluster)?;
        Ok(RedisStore::new(config, target, commands.map(|brought| brought.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(url: &str, change: impl FnOnce(&mut RedisConfig)) -> Result<RedisStore, ConfigError> {
        RedisStore::builder(url, Group::new("/group/").unwrap()).configure(change).build()
    }

    #[test]
    fn an_encrypted_url_names_the_feature_that_it_needs() {
        for url in ["rediss://cache.example:6380", "valkeys://cache.example", "REDISS://cache.example"] {
            let refused = built(url, |_| {}).err();
            let tls = cfg!(feature = "tls");
            assert_eq!(refused.is_none(), tls);
            assert!(tls || refused.is_some_and(|error| error.problem.contains("feature `tls`")));
        }
    }

    #[test]
    fn certificates_that_would_not_be_used_are_refused() {
        let error = built("redis://cache.example", |config| config.root_certificates = Some(Vec::new())).err().unwrap();
        assert_eq!(error.field, "root_certificates");
        let pair = Some((b"no".to_vec(), b"pem".to_vec()));
        let error = built("rediss://cache.example", |config| config.client_certificate = pair).err().unwrap();
        assert!(matches!(error.field, "client_certificate" | "url"), "{error}");
    }
}
