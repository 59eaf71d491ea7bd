//! Where connections are opened to, as whom, and what is checked each time.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_core::StoreError;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisResult};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use crate::{
    RedisConfig,
    config::Credentials,
    connection::Conn,
    error::{store_error, unavailable},
    keys::Names,
    server::{self, Seen},
};

/// How often the nodes of a cluster are asked for.
const NEWS: Duration = Duration::from_secs(30);

/// One server, or a cluster.
#[derive(Clone)]
pub(crate) struct Target(Arc<Inner>);

struct Inner {
    /// The servers that the program named.
    seeds: Vec<ConnectionInfo>,
    cluster: Option<Cluster>,
    credentials: Option<Credentials>,
    connect: Duration,
    #[cfg_attr(not(feature = "cluster"), expect(dead_code))]
    response: Duration,
    names: Names,
    /// The server that was last connected to, for all who want to know when it is another one.
    seen: watch::Sender<Option<Seen>>,
    /// Which server a subscription is tried on first: the one after the last that failed.
    first: AtomicUsize,
}

/// What only a cluster needs.
pub(crate) struct Cluster {
    #[cfg(all(feature = "cluster", feature = "tls"))]
    pub(crate) certificates: Option<redis::TlsCertificates>,
    /// The nodes as the cluster last told them, and when it was asked: the seeds may all have gone meanwhile.
    pub(crate) learned: Mutex<(Vec<ConnectionInfo>, Option<Instant>)>,
}

impl Target {
    pub(crate) fn new(config: &RedisConfig, seeds: Vec<ConnectionInfo>, cluster: Option<Cluster>) -> Self {
        Self(Arc::new(Inner {
            seeds,
            cluster,
            credentials: config.credentials.clone(),
            connect: config.connect_timeout,
            response: config.call_time_limit,
            names: Names::new(&config.group),
            seen: watch::Sender::new(None),
            first: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.0.cluster.is_some()
    }

    /// Host and port, for errors. The password is never among it.
    pub(crate) fn address(&self) -> String {
        let servers: Vec<String> = self.0.seeds.iter().map(|info| info.addr().to_string()).collect();
        servers.join(", ")
    }

    /// What an error of a command means.
    pub(crate) fn error(&self, error: redis::RedisError) -> StoreError {
        store_error(&self.address(), error)
    }

    /// Opens a connection for commands and checks what it leads to. Nothing that could change anything is sent.
    pub(crate) async fn connect(&self) -> Result<Conn, StoreError> {
        let limit = self.0.connect;
        let late = || unavailable(&self.address(), format!("no connection within {limit:?}"));
        timeout(limit, self.try_connect()).await.unwrap_or_else(|_| Err(late()))
    }

    async fn try_connect(&self) -> Result<Conn, StoreError> {
        let servers = self.servers().await?;
        let conn = self.dial(servers).await.map_err(|error| self.error(error))?;
        self.check(&conn).await?;
        self.learn(&conn);
        Ok(conn)
    }

    /// Checks what a connection leads to.
    pub(crate) async fn check(&self, conn: &Conn) -> Result<(), StoreError> {
        let seen = server::check(conn, self, &self.0.names).await?;
        self.note(seen);
        Ok(())
    }

    async fn dial(&self, servers: Vec<ConnectionInfo>) -> RedisResult<Conn> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = &self.0.cluster {
            return self.dial_cluster(servers, cluster).await;
        }
        // There is exactly one; more are refused when the store is built.
        let server = servers.into_iter().next();
        let server = server.ok_or((redis::ErrorKind::InvalidClientConfig, "no server is named"))?;
        // Time limits are kept around the whole call, in one place, and not by the connection as well.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        Client::open(server)?.get_multiplexed_async_connection_with_config(&config).await.map(Conn::new)
    }

    #[cfg(feature = "cluster")]
    #[cfg_attr(not(feature = "tls"), expect(unused_variables))]
    async fn dial_cluster(&self, servers: Vec<ConnectionInfo>, cluster: &Cluster) -> RedisResult<Conn> {
        let builder = redis::cluster::ClusterClientBuilder::new(servers)
            // It waits for all nodes, first for the named and then for the others; a dead one must leave time for the rest.
            .connection_timeout(self.0.connect / 3)
            .response_timeout(self.0.response)
            // A batch whose fate is unknown must not be sent again behind our back.
            .retries(0);
        #[cfg(feature = "tls")]
        let builder = match &cluster.certificates {
            Some(certificates) => builder.certs(certificates.clone()),
            None => builder,
        };
        builder.build()?.get_async_connection().await.map(Conn::new)
    }

    /// The servers to connect to, with the user and password of this moment. In a cluster any will do for a subscription,
    /// since they pass on to each other what is published.
    pub(crate) async fn servers(&self) -> Result<Vec<ConnectionInfo>, StoreError> {
        let mut servers = self.0.seeds.clone();
        for server in self.learned() {
            if !servers.iter().any(|known| known.addr().to_string() == server.addr().to_string()) {
                servers.push(server);
            }
        }
        if let Some(credentials) = &self.0.credentials {
            let (user, password) = credentials.ask().await?;
            let login = |server: ConnectionInfo| {
                let settings = server.redis_settings().clone().set_username(&user).set_password(&password);
                server.set_redis_settings(settings)
            };
            servers = servers.into_iter().map(login).collect();
        }
        Ok(servers)
    }

    /// As [`servers`](Self::servers), beginning with the one that a subscription is to be tried on first.
    pub(crate) async fn servers_for_hints(&self) -> Result<Vec<ConnectionInfo>, StoreError> {
        let mut servers = self.servers().await?;
        let first = self.0.first.load(Ordering::Relaxed) % servers.len().max(1);
        servers.rotate_left(first);
        Ok(servers)
    }

    /// The server that came first could not be used for a subscription.
    pub(crate) fn try_the_next_first(&self) {
        self.0.first.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells of the server that was last connected to, whenever it is another one.
    pub(crate) fn seen(&self) -> watch::Receiver<Option<Seen>> {
        self.0.seen.subscribe()
    }

    /// Writes down what a connection leads to, and tells people where that is another server than before.
    fn note(&self, now: Seen) {
        self.0.seen.send_if_modified(|seen| {
            let other = seen.as_ref().filter(|seen| seen.run_id != now.run_id).cloned();
            if let Some(before) = &other {
                now.tell(before, &self.address());
            }
            *seen = Some(now);
            other.is_some()
        });
    }

    fn learned(&self) -> Vec<ConnectionInfo> {
        let learned = |cluster: &Cluster| cluster.learned.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        self.0.cluster.as_ref().map(learned).unwrap_or_default()
    }

    /// Asks a cluster for its nodes, where that is due. Nobody waits for it.
    pub(crate) fn learn(&self, conn: &Conn) {
        let Some(cluster) = &self.0.cluster else { return };
        let mut learned = cluster.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if learned.1.is_none_or(|at| at.elapsed() > NEWS) {
            learned.1 = Some(Instant::now());
            tokio::spawn(self.clone().ask_for_nodes(conn.clone()));
        }
    }

    async fn ask_for_nodes(self, conn: Conn) {
        let mut cmd = redis::cmd("CLUSTER");
        cmd.arg("SLOTS");
        // Without an answer those that are known must do.
        let Ok(Ok(slots)) = timeout(self.0.connect, conn.send(cmd)).await else { return };
        let (Some(cluster), Some(like)) = (&self.0.cluster, self.0.seeds.first()) else { return };
        let nodes = server::nodes(&slots).into_iter();
        let nodes = nodes.map(|(host, port)| like.clone().set_addr(beside(like.addr(), host, port))).collect();
        cluster.learned.lock().unwrap_or_else(PoisonError::into_inner).0 = nodes;
    }
}

/// The address of another node of the same cluster.
fn beside(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connection's own Debug is not used: it belongs to another crate, and it knows the password.
        let learned: Vec<String> = self.learned().iter().map(|info| info.addr().to_string()).collect();
        f.debug_struct("Target").field("named", &self.address()).field("learned", &learned).finish()
    }
}
