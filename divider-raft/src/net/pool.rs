//! Connections to members, as a caller has them: pooled, multiplexed, dialled again when they break.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    sync::Arc,
    time::Duration,
};

use divider_core::{Group, Topic};
use futures_util::FutureExt;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    environment::{Environment, first_of},
    error::TooOld,
    format::Formats,
    net::{
        address_book::AddressBook,
        client::{CallError, Hints, PooledConnection},
        cluster_binding::ClusterBinding,
        security::Security,
        wire::{self},
    },
    protocol::{
        messages::{Answer, Hello, Request, Welcome},
        peer::Peer,
    },
};

/// How long a dial may take, the handshake included.
const DIAL: Duration = Duration::from_secs(2);
/// After a dial that failed, others fail at once for this long.
const DIAL_PAUSE: Duration = Duration::from_millis(50);
/// Whom to call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) address: String,
    /// Which member is meant, where that is known: another one at this address is refused.
    pub(crate) id: Option<u64>,
    /// The name that its certificate must carry; else the host of the address.
    pub(crate) name: Option<String>,
}

impl Target {
    pub(crate) fn member(peer: &Peer) -> Self {
        Self { address: peer.address.clone(), id: Some(peer.id), name: Some(peer.name.clone()) }
    }

    pub(crate) fn seed(address: &str) -> Self {
        Self { address: address.to_owned(), id: None, name: None }
    }

    /// One of the addresses that a name, `host:port`, stands for.
    pub(crate) fn looked_up(address: &str, name: &str) -> Self {
        Self { address: address.to_owned(), id: None, name: Some(host(name).to_owned()) }
    }
}

/// Without the port.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// What a connection carries: kinds that must not wait for one another have connections of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TrafficClass {
    /// Entries, heartbeats, votes.
    Raft,
    /// Snapshots.
    Bulk,
    /// Calls to stores.
    Calls,
    /// Renewals.
    Beats,
    /// Subscriptions.
    Hints,
}

/// All connections of a process to members.
pub(crate) struct ConnectionPool {
    dialer: Arc<Dialer>,
    slots: Mutex<HashMap<(Target, TrafficClass), Arc<Slot>>>,
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool").finish_non_exhaustive()
    }
}

/// What a dial needs to know.
pub(crate) struct Dialer {
    pub(crate) cluster: String,
    /// Learned once, from founding or joining; for a client, see [`ClusterBinding`].
    pub(crate) cluster_id: Arc<RwLock<Option<Uuid>>>,
    /// This process, if it is a member.
    pub(crate) me: Option<Peer>,
    pub(crate) formats: Formats,
    pub(crate) security: Security,
    pub(crate) environment: Arc<dyn Environment>,
    /// To which cluster a client belongs.
    pub(crate) binding: ClusterBinding,
    /// Where members are, beside what the log says.
    pub(crate) address_book: AddressBook,
    /// That the last dial which got as far as a handshake found two programs too far apart.
    pub(crate) too_old: Mutex<Option<TooOld>>,
}

#[derive(Default)]
struct Slot(tokio::sync::Mutex<State>);

#[derive(Default)]
struct State {
    connection: Option<Arc<PooledConnection>>,
    failed: Option<(Instant, CallError)>,
}

impl ConnectionPool {
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self { dialer: Arc::new(dialer), slots: Mutex::default() }
    }

    /// Others, as somebody has them who belongs to no cluster, and is no member.
    pub(crate) fn of_a_stranger(&self) -> Self {
        let Dialer { cluster, formats, security, environment, .. } = &*self.dialer;
        Self::new(Dialer {
            cluster: cluster.clone(),
            cluster_id: Arc::default(),
            me: None,
            formats: formats.of_a_stranger(),
            security: security.clone(),
            environment: environment.clone(),
            binding: ClusterBinding::default(),
            address_book: AddressBook::default(),
            too_old: Mutex::default(),
        })
    }

    pub(crate) fn address_book(&self) -> &AddressBook {
        &self.dialer.address_book
    }

    /// Whether this client belongs to no cluster yet.
    pub(crate) fn is_new(&self) -> bool {
        self.dialer.cluster_id.read().is_none()
    }

    /// Whether a member of that cluster may be one of this client's.
    pub(crate) fn may_be_of(&self, cluster: Option<Uuid>) -> bool {
        let mine = *self.dialer.cluster_id.read();
        mine.is_none() || cluster.is_none() || mine == cluster
    }

    /// All have been asked; see [`ClusterBinding::asked`].
    pub(crate) fn asked(&self, new: bool, said: BTreeSet<Uuid>) -> Result<(), String> {
        self.dialer.binding.asked(&self.dialer.cluster_id, new, said)
    }

    /// Whether the last member that was dialled and answered does not speak with this program.
    pub(crate) fn too_old(&self) -> Option<TooOld> {
        *self.dialer.too_old.lock()
    }

    /// Sends a request and waits for its answer. A dropped future leaves the effect unknown.
    pub(crate) async fn call(
        &self,
        to: &Target,
        class: TrafficClass,
        request: &Request,
        limit: Duration,
    ) -> Result<Answer, CallError> {
        let not_sent = |error: io::Error| CallError::NotSent(error.to_string());
        let body = wire::encode(request).map_err(not_sent)?;
        if body.len() > wire::MAX_REQUEST {
            return Err(CallError::NotSent(format!("a request of {} bytes is over the limit", body.len())));
        }
        let began = Instant::now();
        let connection = match tokio::time::timeout(limit, self.connection(to, class)).await {
            Ok(connection) => connection?,
            Err(_) => return Err(CallError::NotSent(format!("{}: not connected within {limit:?}", to.address))),
        };
        let left = limit.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, connection.call(&body)).await {
            Ok(answer) => wire::decode(&answer?).map_err(|error| CallError::Lost(error.to_string())),
            Err(_) => Err(CallError::Late(limit)),
        }
    }

    /// Subscribes at a member. When this returns the subscription stands there.
    pub(crate) async fn subscribe(
        &self,
        to: &Target,
        group: Group,
        topic: Topic,
        limit: Duration,
    ) -> Result<Hints, CallError> {
        let body = wire::encode(&Request::Subscribe { group, topic });
        let body = body.map_err(|error| CallError::NotSent(error.to_string()))?;
        let subscribe = async { self.connection(to, TrafficClass::Hints).await?.subscribe(&body).await };
        tokio::time::timeout(limit, subscribe).await.unwrap_or(Err(CallError::Late(limit)))
    }

    /// The connection to a member, dialled if there is none. Cancel safe: a dial goes on for whoever asks next.
    async fn connection(&self, to: &Target, class: TrafficClass) -> Result<Arc<PooledConnection>, CallError> {
        let slot = self.slots.lock().entry((to.clone(), class)).or_default().clone();
        {
            let state = slot.0.lock().await;
            if let Some(connection) = state.connection.as_ref().filter(|connection| connection.is_open()) {
                return Ok(connection.clone());
            }
            if let Some((at, problem)) = &state.failed
                && at.elapsed() < DIAL_PAUSE
            {
                return Err(problem.clone());
            }
        }
        let (dialer, to) = (self.dialer.clone(), to.clone());
        let dial = tokio::spawn(async move {
            let mut state = slot.0.lock().await;
            if let Some(connection) = state.connection.as_ref().filter(|connection| connection.is_open()) {
                return Ok(connection.clone());
            }
            let dialled = tokio::time::timeout(DIAL, dialer.dial(&to)).await;
            let dialled = dialled
                .unwrap_or_else(|_| Err(io::Error::other(format!("{}: no handshake within {DIAL:?}", to.address))));
            match dialled {
                Ok(connection) => {
                    let connection = Arc::new(connection);
                    *state = State { connection: Some(connection.clone()), failed: None };
                    Ok(connection)
                }
                Err(error) => {
                    let problem = match TooOld::within(&error) {
                        Some(too_old) => CallError::TooOld(to.address, too_old),
                        None => CallError::NotSent(error.to_string()),
                    };
                    *state = State { connection: None, failed: Some((Instant::now(), problem.clone())) };
                    Err(problem)
                }
            }
        });
        dial.await.unwrap_or_else(|error| Err(CallError::NotSent(error.to_string())))
    }
}

impl Dialer {
    /// At each address where the member may be: the first at which it says that it is the one.
    async fn dial(&self, to: &Target) -> io::Result<PooledConnection> {
        let addresses = self.address_book.addresses(to.id, &to.address);
        let tries: Vec<_> = addresses.into_iter().map(|address| self.dial_at(address, to).boxed()).collect();
        first_of(tries).await.unwrap_or_else(|| Err(io::Error::other("it has no address")))
    }

    async fn dial_at(&self, address: String, to: &Target) -> io::Result<PooledConnection> {
        let dialled = self.try_at(&address, to).await;
        match dialled.as_ref().map_err(TooOld::within) {
            Ok(_) => *self.too_old.lock() = None,
            Err(Some(too_old)) => *self.too_old.lock() = Some(too_old),
            Err(None) => return dialled.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}"))),
        }
        dialled
    }

    async fn try_at(&self, address: &str, to: &Target) -> io::Result<PooledConnection> {
        let stream = self.environment.connect(address).await?;
        let name = to.name.as_deref().unwrap_or(host(address));
        let mut stream = self.security.dialled(stream, name, &*self.environment).await?;
        let cluster_id = *self.cluster_id.read();
        let hello = Hello { cluster: self.cluster.clone(), cluster_id, target: to.id, from: self.me.clone() };
        let supported = self.formats.supported();
        wire::greet(&mut stream, supported, &hello).await?;
        match wire::greeted(&mut stream, supported).await? {
            Welcome::Ok { id, .. } if to.id.is_some_and(|wanted| wanted != id) => {
                Err(io::Error::other(format!("another member ({id:016x}) listens there")))
            }
            Welcome::Ok { cluster_id: theirs, .. } => {
                let bound = match theirs.filter(|_| self.me.is_none()) {
                    Some(theirs) => {
                        let bound = self.binding.bind(&self.cluster_id, theirs);
                        Some(bound.ok_or_else(|| io::Error::other("the member belongs to another cluster"))?)
                    }
                    None => None,
                };
                Ok(PooledConnection::open(stream, bound))
            }
            Welcome::Refused(problem) => Err(io::Error::other(problem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use divider_core::{Store, StoreError};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{RaftStore, format::NEWEST};

    /// Answers each hello as a later program does, which reads nothing as old as what this one reads.
    async fn later_program() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut said = b"DVDR".to_vec();
                said.extend([7_u16, 9, 8].iter().flat_map(|number| number.to_le_bytes()));
                said.extend(0_u32.to_le_bytes());
                let _ = stream.write_all(&said).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        address
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_that_is_too_old_is_told_what_is_needed() {
        let address = later_program().await;
        let client = RaftStore::client([&address], Group::new("/test/").unwrap()).plaintext();
        let client = client.configure(|config| config.open_time_limit = Duration::from_millis(500)).build().unwrap();
        let error = client.open().await.unwrap_err();
        // A client reads nothing of what is written, so it need not read more than the other side does.
        let StoreError::TooOld { needs: 7, reads } = error else { panic!("{error:?}") };
        assert_eq!(reads, u16::from(NEWEST));
        // Whoever asks later is told why nobody answers.
        let StoreError::Unavailable { message, source } = client.members().await.unwrap_err() else { panic!() };
        let source = source.unwrap();
        let too_old = source.downcast_ref::<TooOld>().unwrap();
        assert_eq!((too_old.needs, too_old.reads, too_old.here), (7, u16::from(NEWEST), true));
        assert!(message.contains("too old"), "{message}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_error_says_which_host_and_port() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let client = RaftStore::client([&gone], Group::new("/test/").unwrap()).plaintext();
        let client = client.configure(|config| config.open_time_limit = Duration::from_millis(500)).build().unwrap();
        let error = client.open().await.unwrap_err().to_string();
        assert!(error.contains(&gone) && error.contains("refused"), "{error}");
    }
}
