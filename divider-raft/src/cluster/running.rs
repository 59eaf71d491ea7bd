//! The life of this process in its cluster: opening the data directory, listening, and ending.
//!
//! # A runtime of its own
//! Everything of a member runs on threads of its own, so that a handler which blocks the program's runtime neither loses
//! the lease nor stops the log. Calls to the store are spawned there and awaited from wherever they are made.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use divider_core::StoreError;
use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime,
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use uuid::Uuid;

use crate::{
    cluster::{
        failover,
        founding::Founding,
        joining::{self},
        member::{EndReason, Member},
        router::Router,
        server, voters,
    },
    config::{Data, RaftConfig, Role},
    consensus::{
        compare,
        confirm::Confirmer,
        inbound::Receiving,
        log::{Log, records::Identity},
        propose::Proposer,
        raft::{Raft, Refused},
        snapshots::Snapshots,
        state_machine::StateMachine,
    },
    environment::DataDir,
    error::{DataError, TooOld},
    format::Formats,
    net::{
        address_book::AddressBook,
        cluster_binding::ClusterBinding,
        pool::{ConnectionPool, Dialer, TrafficClass},
        security::Security,
    },
    protocol::{
        messages::{Answer, Call},
        peer::Peer,
    },
};

const TARGET: &str = "divider::raft";
/// How long a member may take to leave the cluster when it ends.
const LEAVE: Duration = Duration::from_secs(2);
/// How long an earlier user of the data directory may take to let go of it.
const LET_GO: Duration = Duration::from_secs(2);

/// A running member or client.
pub(crate) struct Running {
    pub(crate) router: Arc<Router>,
    pub(crate) threads: Threads,
    /// Ends with the runtime; `None` once it is being stopped.
    tasks: Mutex<Option<JoinSet<()>>>,
    /// Why this process has not joined yet, if it has not.
    joined: watch::Receiver<Result<(), String>>,
    /// Why this member is none any more, once it is not.
    ended: watch::Receiver<Option<EndReason>>,
}

/// What a member and its successors of this process run on.
#[derive(Clone)]
pub(crate) struct Threads {
    pub(crate) handle: runtime::Handle,
    /// Ends with the last that runs on it.
    _runtime: Arc<Background>,
}

impl Threads {
    pub(crate) fn start(config: &RaftConfig) -> Result<Self, StoreError> {
        // A client only passes on, and a second thread would be woken for nothing most of the time.
        let threads = if config.role == Role::Client { 1 } else { 2 };
        let (handle, runtime) = config.environment.runtime(threads).map_err(StoreError::unavailable)?;
        Ok(Self { handle, _runtime: Arc::new(Background(Mutex::new(runtime))) })
    }
}

/// A runtime that is not ended in place: a start may be given up, and the last handle dropped, on a thread that must not
/// block. `None` where the environment has none of its own.
struct Background(Mutex<Option<runtime::Runtime>>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.lock().take() {
            runtime.shutdown_background();
        }
    }
}

/// What a start gives.
struct Started {
    router: Arc<Router>,
    tasks: JoinSet<()>,
    joined: watch::Receiver<Result<(), String>>,
    ended: watch::Receiver<Option<EndReason>>,
}

/// What is opened on the disk.
struct Opened {
    log: Log,
    identity: Identity,
    machine: Arc<StateMachine>,
}

impl Running {
    /// Opens the data, listens, and begins to found or to join.
    pub(crate) async fn start(config: Arc<RaftConfig>, threads: Threads) -> Result<Arc<Self>, StoreError> {
        match threads.handle.spawn(Self::inside(config)).await {
            Ok(Ok(started)) => Ok(Self::of(started, threads)),
            failed => Err(match failed {
                Ok(Err(error)) => error,
                _ => StoreError::Corrupt("the start of the member failed unexpectedly".into()),
            }),
        }
    }

    /// A client in the place of a member that has ended, which says why it is one.
    pub(crate) fn instead_of(member: &Member, note: String, threads: Threads) -> Arc<Self> {
        let address_book = member.pool.address_book();
        let others =
            member.raft.view().members.into_values().map(|(peer, _)| peer).filter(|peer| peer.id != member.me.id);
        let config = RaftConfig { role: Role::Client, ..RaftConfig::clone(&member.config) };
        let cluster_id = Arc::new(RwLock::new(member.cluster_id()));
        let started = client(Arc::new(config), cluster_id, Some(note));
        // As members and not as seeds: their certificates carry their names.
        started.router.tell(others.map(|peer| address_book.placed(&peer)).collect());
        Self::of(started, threads)
    }

    fn of(Started { router, tasks, joined, ended }: Started, threads: Threads) -> Arc<Self> {
        Arc::new(Self { router, threads, tasks: Mutex::new(Some(tasks)), joined, ended })
    }

    /// Waits until this member is none any more, though nobody has closed it. Never for a client.
    pub(crate) fn ends(&self) -> impl Future<Output = Option<EndReason>> + Send + use<> {
        let mut ended = self.ended.clone();
        // An error means that it was closed.
        async move { ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone()) }
    }

    async fn inside(config: Arc<RaftConfig>) -> Result<Started, StoreError> {
        if config.role == Role::Client {
            return Ok(client(config, Arc::default(), None));
        }
        let mut tasks = JoinSet::new();
        let (joining, joined) = watch::channel(Err("it has just begun".to_owned()));
        let (ending, ended) = watch::channel(None);
        let data_dir = data_dir(&config);
        let Opened { log, identity, machine } = open(&config, &data_dir).await?;
        let listener = match &config.listen {
            Some(address) => {
                let bound = config.environment.bind(address).await;
                Some(bound.map_err(|error| {
                    StoreError::Misconfigured(format!("cannot listen at {address}: {error}; choose another address"))
                })?)
            }
            None => None,
        };
        let bound = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let address = config.advertise.clone().or_else(|| bound.map(|bound| bound.to_string())).unwrap_or_default();
        let wants_vote = config.role == Role::Voter;
        let me = Peer { id: identity.id, name: identity.name.clone(), address, wants_vote, reads: config.reads };
        let formats = Formats::of_member(config.reads, machine.written_shared());
        let cluster_id = Arc::new(RwLock::new(identity.cluster_id));
        let pool = Arc::new(ConnectionPool::new(Dialer {
            cluster: config.cluster.clone(),
            cluster_id: cluster_id.clone(),
            me: Some(me.clone()),
            formats: formats.clone(),
            security: config.security.clone(),
            environment: config.environment.clone(),
            binding: ClusterBinding::default(),
            address_book: AddressBook::default(),
            too_old: Mutex::default(),
        }));
        let raft = Raft::start(me.id, &config, log.clone(), machine.clone(), pool.clone()).await;
        let raft = raft.map_err(|refused| match refused {
            Refused::Unavailable(problem) => StoreError::Misconfigured(problem),
            Refused::NotLeader => StoreError::Misconfigured("Raft did not start".into()),
        })?;
        tokio::spawn(compare::watch(raft.clone(), machine.clone(), pool.clone()));
        let confirmer = Confirmer::spawn(raft.clone());
        let member = Arc::new(Member {
            config: config.clone(),
            me,
            identity: Mutex::new(identity),
            cluster_id,
            log,
            proposer: Proposer::spawn(raft.clone(), machine.clone(), confirmer.clone(), config.may_be_reborn()),
            confirmer,
            machine,
            raft,
            pool: pool.clone(),
            receiving: Receiving::default(),
            locals: Mutex::default(),
            data_dir,
            founding: Founding::default(),
            unrivalled: AtomicBool::new(false),
            leader_left: Notify::new(),
            formats,
            changing: tokio::sync::Mutex::default(),
        });
        if config.leaves() && config.has_seeds() {
            let note = "it has no `name`, so it leaves the cluster when it is closed; with a name it is waited for";
            tracing::info!(target: TARGET, member = %member.me, note);
        }
        if let Some(listener) = listener {
            tracing::info!(target: TARGET, member = %member.me, "listens");
            if matches!(member.config.security, Security::Plaintext) {
                let problem = "listens without TLS or a secret: whoever reaches this port may do everything, as any member or as an \
                               administrator; keep it closed to others";
                tracing::warn!(target: TARGET, member = %member.me, problem);
            }
            tasks.spawn(server::listen(listener, member.clone()));
        }
        let router = Arc::new(Router::new(config, Some(member.clone()), pool));
        tasks.spawn(joining::join_cluster(member.clone(), router.clone(), joining));
        tasks.spawn(joining::seek(member.clone(), router.clone(), joined.clone(), ending.clone()));
        tasks.spawn(watch_leadership(member.clone(), ending));
        tasks.spawn(failover::watch(member.clone()));
        tasks.spawn(voters::maintain(member));
        Ok(Started { router, tasks, joined, ended })
    }

    /// Waits until this process has a leader to turn to, and has applied what was decided before that: a node hears of its
    /// keys from its own replica, so what it were given until that has caught up would run nowhere.
    pub(crate) async fn ready(&self) -> Result<(), StoreError> {
        let limit = self.router.config.open_time_limit;
        let mut joined = self.joined.clone();
        let router = self.router.clone();
        // It ends with this call, however that ends: what runs on would keep the directory.
        let mut ready = JoinSet::new();
        let wait = async move {
            // The sender lives until it has said so.
            let _ = joined.wait_for(Result::is_ok).await;
            let index = loop {
                if let Ok(Answer::Index(index)) = router.call(Call::Confirm, TrafficClass::Calls, true).await {
                    break index;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if let Some(member) = &router.member {
                member.machine.reached(index).await;
            }
        };
        ready.spawn_on(wait, &self.threads.handle);
        match tokio::time::timeout(limit, ready.join_next()).await {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(_) => Err(StoreError::Closed),
            Err(_) => {
                // What is written is never written in an older format again.
                if let Some(TooOld { needs, reads, .. }) = self.router.pool.too_old().filter(|too_old| too_old.here) {
                    return Err(StoreError::TooOld { needs, reads });
                }
                let why: String = match &*self.joined.borrow() {
                    Ok(()) => format!(
                        "{} (are enough voters running, and can they reach each other?), or this member has not caught up \
                         with it: that goes on, so try again",
                        self.router.nobody()
                    ),
                    Err(problem) => format!("not in the cluster yet: {problem}"),
                };
                Err(self.router.unavailable(why))
            }
        }
    }

    /// Ends everything, the disk last.
    pub(crate) async fn stop(&self) {
        self.end(true).await;
    }

    /// Ends a member that cannot go on.
    pub(crate) async fn give_up(&self) {
        self.end(false).await;
    }

    async fn end(&self, gracefully: bool) {
        let Some(mut tasks) = self.tasks.lock().take() else { return };
        let router = self.router.clone();
        let stopping = self.threads.handle.spawn(async move {
            if let Some(member) = router.member.as_ref().filter(|_| gracefully) {
                member.raft.transfer_leadership(&member.pool).await;
                leave(member, &router).await;
            }
            tasks.shutdown().await;
            if let Some(member) = &router.member {
                member.raft.stop().await;
                member.machine.subscribers.close();
                let (log, data_dir) = (member.log.clone(), member.data_dir.clone());
                let closing = data_dir.blocking(move || log.close());
                // It can only have panicked, and then it is closed as well.
                let _ = closing.await;
            }
        });
        let _ = stopping.await;
    }
}

/// Nobody is to count on a member that does not come back.
async fn leave(member: &Member, router: &Router) {
    let others = member.raft.view().members.keys().any(|id| *id != member.me.id);
    if !member.config.leaves() || !others {
        return;
    }
    let call = Call::Leave { id: member.me.id };
    match tokio::time::timeout(LEAVE, router.call(call, TrafficClass::Calls, true)).await {
        Ok(Ok(_)) => tracing::info!(target: TARGET, member = %member.me, "has left the cluster"),
        failed => tracing::warn!(
            target: TARGET,
            member = %member.me,
            ?failed,
            "could not leave the cluster: the others go on counting on this member until another takes its place",
        ),
    }
}

fn client(config: Arc<RaftConfig>, cluster_id: Arc<RwLock<Option<Uuid>>>, note: Option<String>) -> Started {
    let pool = Arc::new(ConnectionPool::new(Dialer {
        cluster: config.cluster.clone(),
        cluster_id,
        me: None,
        formats: Formats::of_client(config.reads),
        security: config.security.clone(),
        environment: config.environment.clone(),
        binding: ClusterBinding::default(),
        address_book: AddressBook::default(),
        too_old: Mutex::default(),
    }));
    let mut router = Router::new(config, None, pool);
    router.note = note;
    let router = Arc::new(router);
    Started { router, tasks: JoinSet::new(), joined: watch::channel(Ok(())).1, ended: watch::channel(None).1 }
}

/// Opens log and snapshot, and checks that they are this member's.
async fn open(config: &Arc<RaftConfig>, data_dir: &DataDir) -> Result<Opened, StoreError> {
    let began = Instant::now();
    loop {
        let opened = {
            let (config, opening) = (config.clone(), data_dir.clone());
            data_dir.blocking(move || open_blocking(&config, opening)).await
        };
        let opened = opened.map_err(|_| StoreError::Corrupt("the data directory could not be read".into()))?;
        match opened {
            // A store of this process that has just been closed may still be letting go.
            Err(DataError::InUse { .. }) if began.elapsed() < LET_GO => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

fn data_dir(config: &RaftConfig) -> DataDir {
    let directory = match &config.data {
        Data::Directory(directory) => Some(directory.clone()),
        Data::Memory | Data::Unset => None,
    };
    DataDir { directory, environment: config.environment.clone(), reads: config.reads }
}

fn open_blocking(config: &RaftConfig, data_dir: DataDir) -> Result<Opened, DataError> {
    let fresh = || {
        let id = Uuid::from_u128(config.environment.draw());
        let name = config.name.as_ref().map_or_else(|| id.simple().to_string()[..12].to_owned(), ToString::to_string);
        let (id, _) = id.as_u64_pair();
        Identity { id: id.max(1), name, cluster: config.cluster.clone(), cluster_id: None }
    };
    let (log, identity) = Log::open(&data_dir, fresh)?;
    let directory = data_dir.directory.clone();
    let ours = config.name.as_ref().map_or(identity.name.as_str(), |name| name.as_str());
    if (identity.name.as_str(), &identity.cluster) != (ours, &config.cluster) {
        return Err(DataError::Foreign {
            path: directory.unwrap_or_default(),
            theirs: format!("the member {:?} of the cluster {:?}", identity.name, identity.cluster),
            ours: format!("the member {ours:?} of the cluster {:?}", config.cluster),
        });
    }
    let (snapshots, loaded) = Snapshots::open(data_dir)?;
    let machine = StateMachine::new(snapshots, loaded);
    if log.purged() > machine.snapshot_index() {
        let problem = "the log goes on from a snapshot that is not there".to_owned();
        return Err(DataError::Corrupt { path: directory.unwrap_or_default(), problem });
    }
    log.snapshot_is_kept(Ok(machine.snapshot_index().unwrap_or(0)));
    if let Some(last) = machine.snapshot_end() {
        log.goes_on_from(last).map_err(|error| DataError::io(directory.unwrap_or_default(), error))?;
    }
    Ok(Opened { log, identity, machine })
}

/// Tells this process's sessions when it has begun to lead Raft, so that they lead their groups at once.
async fn watch_leadership(member: Arc<Member>, ending: watch::Sender<Option<EndReason>>) {
    let mut led = None;
    loop {
        let changed = member.raft.changes();
        let view = member.raft.view();
        if let Some(why) = member.raft.why_stopped() {
            let differs = "this replica differs from the others', although it applied the same entries";
            let why = if member.machine.differs() { differs.to_owned() } else { why };
            tracing::error!(target: TARGET, member = %member.me, why, "Raft has stopped; this member answers no more");
            ending.send_modify(|ended| _ = ended.get_or_insert(EndReason::Stopped(why)));
            return;
        }
        let leads = view.leads.then_some(view.term);
        if leads != led {
            led = leads;
            match leads {
                Some(term) => {
                    tracing::info!(target: TARGET, member = %member.me, term, "leads Raft");
                    if let Err(fault) = member.free_leaderships().await {
                        tracing::debug!(target: TARGET, ?fault, "the groups' leaders could not be freed");
                    }
                    member.machine.subscribers.leads();
                }
                None => tracing::info!(target: TARGET, member = %member.me, term = view.term, "follows"),
            }
        }
        changed.await;
    }
}
