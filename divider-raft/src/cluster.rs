//! The life of this process in its cluster: opening the data directory, listening, founding or joining, and the leader's
//! housekeeping among the members.
//!
//! # A runtime of its own
//! Everything of a member runs on threads of its own, so that a handler which blocks the program's runtime neither loses
//! the lease nor stops the log. Calls to the store are spawned there and awaited from wherever they are made.
//!
//! # Founding happens once
//! All members are given the same list of seeds. A newcomer asks them all: if one belongs to a cluster it joins that one.
//! Only the first of the list may found a cluster, and only once *all* others have said that they have none. So two can
//! never be founded side by side, also not when the first one's disk was wiped.

use std::{collections::HashMap, sync::Arc, time::Duration};

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
    config::{Data, RaftConfig, Role},
    confirm::Confirmer,
    error::DataError,
    ground::Place,
    link::{Class, Dialer, Links, Target},
    member::Member,
    propose::Proposer,
    raft::{Identity, Log, Machine, Peer, Raft, Receiving, Refused, Snapshots, View},
    router::Router,
    seeds, server, succession,
    wire::{Answer, Call, Request, Status},
};

const TARGET: &str = "divider::raft";
/// How long a seed may take to say where it stands.
const STATUS: Duration = Duration::from_millis(400);
/// How often a newcomer asks, and how often a leader looks after its members.
const ROUND: Duration = Duration::from_millis(100);
/// After how long a newcomer that is not complete yet asks once more to be taken in.
const AGAIN: Duration = Duration::from_secs(2);
/// A learner that is at most this many entries behind has caught up.
const NEAR: u64 = 100;
/// How long an earlier user of the data directory may take to let go of it.
const LET_GO: Duration = Duration::from_secs(2);

/// A running member or client.
pub(crate) struct Running {
    pub(crate) router: Arc<Router>,
    pub(crate) handle: runtime::Handle,
    /// `None` where the ground has no runtime of its own for it.
    runtime: Background,
    /// Ends with the runtime; `None` once it is being stopped.
    tasks: Mutex<Option<JoinSet<()>>>,
    /// Why this process has not joined yet, if it has not.
    joined: watch::Receiver<Result<(), String>>,
}

/// A runtime that is not ended in place: a start may be given up, and the last handle dropped, on a thread that must not
/// block.
struct Background(Mutex<Option<runtime::Runtime>>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.lock().take() {
            runtime.shutdown_background();
        }
    }
}

/// What is opened on the disk.
struct Opened {
    log: Log,
    identity: Identity,
    machine: Arc<Machine>,
}

impl Running {
    /// Opens the data, listens, and begins to found or to join.
    pub(crate) async fn start(config: Arc<RaftConfig>) -> Result<Arc<Self>, StoreError> {
        // A client only passes on, and a second thread would be woken for nothing most of the time.
        let threads = if config.role == Role::Client { 1 } else { 2 };
        let (handle, runtime) = config.ground.runtime(threads).map_err(StoreError::unavailable)?;
        let runtime = Background(Mutex::new(runtime));
        match handle.spawn(Self::inside(config)).await {
            Ok(Ok((router, tasks, joined))) => {
                Ok(Arc::new(Self { router, handle, runtime, tasks: Mutex::new(Some(tasks)), joined }))
            }
            failed => Err(match failed {
                Ok(Err(error)) => error,
                _ => StoreError::Corrupt("the start of the member failed unexpectedly".into()),
            }),
        }
    }

    async fn inside(
        config: Arc<RaftConfig>,
    ) -> Result<(Arc<Router>, JoinSet<()>, watch::Receiver<Result<(), String>>), StoreError> {
        let mut tasks = JoinSet::new();
        let (joining, joined) = watch::channel(Err("it has just begun".to_owned()));
        if config.role == Role::Client {
            let dialer = Dialer {
                cluster: config.cluster.clone(),
                cluster_id: Arc::default(),
                me: None,
                security: config.security.clone(),
                ground: config.ground.clone(),
            };
            joining.send_modify(|joined| *joined = Ok(()));
            return Ok((Arc::new(Router::new(config, None, Arc::new(Links::new(dialer)))), tasks, joined));
        }
        let place = place(&config);
        let Opened { log, identity, machine } = open(&config, &place).await?;
        let listener = match &config.listen {
            Some(address) => {
                let bound = config.ground.bind(address).await;
                Some(bound.map_err(|error| {
                    StoreError::Misconfigured(format!("cannot listen at {address}: {error}; choose another address"))
                })?)
            }
            None => None,
        };
        let bound = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let address = config.advertise.clone().or_else(|| bound.map(|bound| bound.to_string())).unwrap_or_default();
        let wants_vote = config.role == Role::Voter;
        let me = Peer { id: identity.id, name: identity.name.clone(), address, wants_vote };
        let cluster_id = Arc::new(RwLock::new(identity.cluster_id));
        let links = Arc::new(Links::new(Dialer {
            cluster: config.cluster.clone(),
            cluster_id: cluster_id.clone(),
            me: Some(me.clone()),
            security: config.security.clone(),
            ground: config.ground.clone(),
        }));
        let raft = Raft::start(me.id, &config, log.clone(), machine.clone(), links.clone()).await;
        let raft = raft.map_err(|refused| match refused {
            Refused::Unavailable(problem) => StoreError::Misconfigured(problem),
            Refused::NotLeader => StoreError::Misconfigured("Raft did not start".into()),
        })?;
        let confirmer = Confirmer::spawn(raft.clone());
        let member = Arc::new(Member {
            config: config.clone(),
            me,
            identity: Mutex::new(identity),
            cluster_id,
            log,
            proposer: Proposer::spawn(raft.clone(), machine.clone(), confirmer.clone()),
            confirmer,
            machine,
            raft,
            links: links.clone(),
            receiving: Receiving::default(),
            locals: Mutex::default(),
            place,
            leader_left: Notify::new(),
        });
        if let Some(listener) = listener {
            tracing::info!(target: TARGET, member = %member.me, "listens");
            tasks.spawn(server::listen(listener, member.clone()));
        }
        let router = Arc::new(Router::new(config, Some(member.clone()), links));
        tasks.spawn(settle(member.clone(), router.clone(), joining));
        tasks.spawn(watch_leadership(member.clone()));
        tasks.spawn(succession::watch(member.clone()));
        tasks.spawn(keep_house(member));
        Ok((router, tasks, joined))
    }

    /// Waits until this process has a leader to turn to, and has applied what was decided before that: a node hears of its
    /// keys from its own replica, so what it were given until that has caught up would run nowhere.
    pub(crate) async fn ready(&self) -> Result<(), StoreError> {
        let limit = self.router.config.open_time_limit;
        let mut joined = self.joined.clone();
        let router = self.router.clone();
        let ready = self.handle.spawn(async move {
            // The sender lives until it has said so.
            let _ = joined.wait_for(Result::is_ok).await;
            let index = loop {
                if let Ok(Answer::Index(index)) = router.call(Call::Confirm, Class::Calls, true).await {
                    break index;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            if let Some(member) = &router.member {
                member.machine.reached(index).await;
            }
        });
        let stop = ready.abort_handle();
        match tokio::time::timeout(limit, ready).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => {
                stop.abort();
                let why = match &*self.joined.borrow() {
                    Ok(()) => {
                        "no leader is known yet (are enough voters running, and can they reach each other?), or this \
                               member has not caught up with it: that goes on, so try again"
                            .into()
                    }
                    Err(problem) => format!("not in the cluster yet: {problem}"),
                };
                Err(StoreError::Unavailable { message: why, source: None })
            }
        }
    }

    /// Ends everything, the disk last.
    pub(crate) async fn stop(&self) {
        let Some(mut tasks) = self.tasks.lock().take() else { return };
        // Whoever waits for the end may give that up as well.
        let _runtime = Background(Mutex::new(self.runtime.0.lock().take()));
        let member = self.router.member.clone();
        let stopping = self.handle.spawn(async move {
            if let Some(member) = &member {
                member.raft.hand_over(&member.links).await;
            }
            tasks.shutdown().await;
            if let Some(member) = member {
                member.raft.stop().await;
                let place = member.place.clone();
                let closing = place.blocking(move || member.log.close());
                // It can only have panicked, and then it is closed as well.
                let _ = closing.await;
            }
        });
        let _ = stopping.await;
    }
}

/// Opens log and snapshot, and checks that they are this member's.
async fn open(config: &Arc<RaftConfig>, place: &Place) -> Result<Opened, StoreError> {
    let began = Instant::now();
    loop {
        let opened = {
            let (config, opening) = (config.clone(), place.clone());
            place.blocking(move || open_blocking(&config, opening)).await
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

fn place(config: &RaftConfig) -> Place {
    let directory = match &config.data {
        Data::Directory(directory) => Some(directory.clone()),
        Data::Memory | Data::Unset => None,
    };
    Place { directory, ground: config.ground.clone() }
}

fn open_blocking(config: &RaftConfig, place: Place) -> Result<Opened, DataError> {
    let fresh = || {
        let id = Uuid::from_u128(config.ground.draw());
        let name = config.name.as_ref().map_or_else(|| id.simple().to_string()[..12].to_owned(), ToString::to_string);
        let (id, _) = id.as_u64_pair();
        Identity { id: id.max(1), name, cluster: config.cluster.clone(), cluster_id: None }
    };
    let (log, identity) = Log::open(&place, fresh)?;
    let directory = place.directory.clone();
    let ours = config.name.as_ref().map_or(identity.name.as_str(), |name| name.as_str());
    if (identity.name.as_str(), &identity.cluster) != (ours, &config.cluster) {
        return Err(DataError::Foreign {
            path: directory.unwrap_or_default(),
            theirs: format!("the member {:?} of the cluster {:?}", identity.name, identity.cluster),
            ours: format!("the member {ours:?} of the cluster {:?}", config.cluster),
        });
    }
    let (snapshots, loaded) = Snapshots::open(place)?;
    let machine = Machine::new(snapshots, loaded);
    if log.purged() > machine.snapshot_index() {
        let problem = "the log goes on from a snapshot that is not there".to_owned();
        return Err(DataError::Corrupt { path: directory.unwrap_or_default(), problem });
    }
    log.snapshot_is_kept(Ok(machine.snapshot_index().unwrap_or(0)));
    Ok(Opened { log, identity, machine })
}

/// Founds a cluster or joins one, once.
async fn settle(member: Arc<Member>, router: Arc<Router>, joining: watch::Sender<Result<(), String>>) {
    // A vote alone says nothing: it may come from a leader that was lost with the entry that took this member in.
    let known = member.raft.is_initialized().await && !member.raft.view().members.is_empty();
    let (mut settled, mut again, mut asked) = (false, false, Instant::now());
    loop {
        let result = match settled {
            false => try_to_settle(&member, &router, again).await,
            true => Ok(()),
        };
        settled = result.is_ok();
        // The entry with which it was taken in may have been lost with the leader that wrote it.
        if settled && !known && asked.elapsed() >= AGAIN {
            (settled, again, asked) = (false, true, Instant::now());
        }
        // Whoever comes back is not waited for; what it was before, it is again.
        let result = if known { result } else { result.and_then(|()| complete(&member)) };
        match result {
            Ok(()) => {
                joining.send_modify(|joined| *joined = Ok(()));
                return;
            }
            Err(problem) => {
                tracing::debug!(target: TARGET, member = %member.me, problem, "not in the cluster yet");
                joining.send_modify(|joined| *joined = Err(problem));
            }
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Whether all that founded the cluster together are in it, and this member votes if it is to.
fn complete(member: &Member) -> Result<(), String> {
    let view = member.raft.view();
    let votes =
        |wanted: bool| view.members.values().filter(|(peer, votes)| peer.wants_vote && *votes == wanted).count();
    let full = votes(true) >= member.config.voters;
    if !view.leads && member.raft.last_heard().elapsed() >= AGAIN {
        return Err("no leader is heard".into());
    }
    if view.members.len() < member.config.seeds.len() {
        return Err(format!("{} of {} seeds are in the cluster", view.members.len(), member.config.seeds.len()));
    }
    match view.members.get(&member.me.id) {
        _ if view.leads && votes(false) > 0 && !full => Err(format!("{} members do not vote yet", votes(false))),
        Some((me, false)) if me.wants_vote && !full => Err("this member does not vote yet".into()),
        None => Err("this member is not known yet".into()),
        Some(_) if !member.machine.is_member(member.me.id) => Err("it is not decided yet that this is a member".into()),
        Some(_) => Ok(()),
    }
}

async fn try_to_settle(member: &Arc<Member>, router: &Router, again: bool) -> Result<(), String> {
    if !again && member.raft.is_initialized().await {
        let known = member.raft.view().members.get(&member.me.id).map(|(peer, _)| peer.clone());
        if known.as_ref().is_none_or(|known| known.address == member.me.address || member.me.address.is_empty()) {
            return Ok(());
        }
        // It listens elsewhere now, and the others look for it where it was.
        return join(member, router, None).await;
    }
    let config = &member.config;
    let seeds = seeds::addresses(config).await;
    if seeds.is_empty() {
        return if config.seed_names.is_empty() { found(member).await } else { Err("no seed name is known".into()) };
    }
    let answers = ask(member, &seeds).await;
    let belongs = |status: &&Status| status.cluster_id.is_some() && !status.members.is_empty();
    if let Some(status) = answers.iter().flatten().find(belongs) {
        let leader = status.leader.as_ref().unwrap_or(&status.me);
        if let Some(cluster) = status.cluster_id {
            adopt(member, cluster).await?;
        }
        return join(member, router, Some(Target::member(leader))).await;
    }
    let silent = seeds.iter().zip(&answers).find(|(_, answer)| answer.is_none());
    let first = answers.first().and_then(Option::as_ref).is_some_and(|status| status.me.id == member.me.id);
    match (first, silent) {
        (true, None) => found(member).await,
        (_, Some((seed, _))) => Err(format!("the seed {seed} does not answer yet")),
        (false, None) => Err(format!("waiting for {} to found the cluster", seeds[0])),
    }
}

/// Asks each seed where it stands. This member's own address answers as well.
async fn ask(member: &Arc<Member>, seeds: &[String]) -> Vec<Option<Status>> {
    let mut asking = JoinSet::new();
    for (at, seed) in seeds.iter().enumerate() {
        let (links, target) = (member.links.clone(), Target::seed(seed));
        asking.spawn(async move {
            let status = Request::Call(Call::Status);
            (at, links.call(&target, Class::Calls, &status, STATUS).await)
        });
    }
    let mut answers = vec![None; seeds.len()];
    while let Some(answer) = asking.join_next().await {
        if let Ok((at, Ok(Answer::Status(status)))) = answer {
            answers[at] = Some(status);
        }
    }
    answers
}

async fn found(member: &Arc<Member>) -> Result<(), String> {
    let cluster = member.cluster_id().unwrap_or_else(|| Uuid::from_u128(member.place.ground.draw()));
    adopt(member, cluster).await?;
    match member.raft.found(member.me.clone()).await {
        Ok(()) => {
            tracing::info!(target: TARGET, member = %member.me, %cluster, "founded the cluster");
            Ok(())
        }
        Err(Refused::Unavailable(problem)) => Err(problem),
        Err(Refused::NotLeader) => Err("another one was faster".into()),
    }
}

/// Remembers the cluster for good.
async fn adopt(member: &Arc<Member>, cluster: Uuid) -> Result<(), String> {
    let identity = {
        let mut identity = member.identity.lock();
        match identity.cluster_id {
            Some(known) if known == cluster => return Ok(()),
            Some(known) => return Err(format!("this data directory belongs to the cluster {known}, not to {cluster}")),
            None => identity.cluster_id = Some(cluster),
        }
        identity.clone()
    };
    member.log.identify(&identity).await.map_err(|error| error.to_string())?;
    *member.cluster_id.write() = Some(cluster);
    Ok(())
}

async fn join(member: &Arc<Member>, router: &Router, leader: Option<Target>) -> Result<(), String> {
    let call = Call::Join { peer: member.me.clone(), votes: member.me.wants_vote };
    let Some(leader) = leader else {
        return router.call(call, Class::Calls, true).await.map(drop).map_err(|error| error.to_string());
    };
    let limit = member.config.call_time_limit;
    match member.links.call(&leader, Class::Calls, &Request::Call(call), limit).await {
        Ok(Answer::Done) => {
            tracing::info!(target: TARGET, member = %member.me, "joined the cluster");
            Ok(())
        }
        Ok(Answer::Fault(fault)) => Err(format!("{}: {fault:?}", leader.address)),
        Ok(_) => Err("an answer to another question".into()),
        Err(error) => Err(format!("{}: {error}", leader.address)),
    }
}

/// Tells this process's sessions when it has begun to lead Raft, so that they lead their groups at once.
async fn watch_leadership(member: Arc<Member>) {
    let mut led = None;
    loop {
        let changed = member.raft.changes();
        let view = member.raft.view();
        if view.stopped {
            tracing::error!(target: TARGET, member = %member.me, "Raft has stopped; this member answers no more");
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

/// While this member leads: makes learners voters that want to be, and replaces the dead where the user wants that.
async fn keep_house(member: Arc<Member>) {
    let mut heard: HashMap<u64, Instant> = HashMap::new();
    loop {
        let changed = member.raft.changes();
        let view = member.raft.view();
        let waiting = view.members.values().any(|(peer, votes)| peer.wants_vote && !votes);
        if view.leads && (waiting || member.config.replace_dead_after.is_some()) {
            look_after(&member, &view, &mut heard).await;
            tokio::time::sleep(ROUND).await;
        } else {
            heard.clear();
            changed.await;
        }
    }
}

async fn look_after(member: &Arc<Member>, view: &View, heard: &mut HashMap<u64, Instant>) {
    let last = member.raft.last_log_index();
    let replicated = member.raft.replicated().unwrap_or_default();
    let near = |id: &u64| replicated.get(id).copied().flatten().is_some_and(|index| index + NEAR >= last);
    let voters: Vec<u64> = view.members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id).collect();
    let learners = view.members.iter().filter(|(id, (_, votes))| !votes && near(id));
    let mut candidates = learners.map(|(id, (peer, _))| (*id, peer.wants_vote)).collect::<Vec<_>>();
    let room = member.config.voters.saturating_sub(voters.len());
    let promoted: Vec<u64> = candidates.iter().filter(|(_, wants)| *wants).map(|(id, _)| *id).take(room).collect();
    if !promoted.is_empty() {
        let all = voters.iter().chain(&promoted).copied().collect();
        if member.raft.set_voters(all).await.is_ok() {
            tracing::info!(target: TARGET, ?promoted, "vote from now on");
        }
        return;
    }
    let Some(limit) = member.config.replace_dead_after else { return };
    look_around(member, view, heard).await;
    let now = Instant::now();
    let dead =
        voters.iter().find(|id| **id != member.me.id && now.duration_since(*heard.entry(**id).or_insert(now)) >= limit);
    candidates.sort_by_key(|(_, wants)| !wants);
    if let (Some(dead), Some((new, _))) = (dead, candidates.first()) {
        let call = Call::Replace { old: *dead, new: *new };
        match member.call(call, true).await {
            Ok(_) => tracing::warn!(target: TARGET, dead, new, "replaced a dead voter"),
            Err(fault) => tracing::warn!(target: TARGET, dead, ?fault, "could not replace a dead voter yet"),
        }
    }
}

/// Asks the voters for a sign of life.
async fn look_around(member: &Arc<Member>, view: &View, heard: &mut HashMap<u64, Instant>) {
    let mut asking = JoinSet::new();
    for (id, (peer, votes)) in &view.members {
        if *votes && *id != member.me.id {
            let (links, target, id) = (member.links.clone(), Target::member(peer), *id);
            asking.spawn(async move {
                let status = Request::Call(Call::Status);
                links.call(&target, Class::Calls, &status, STATUS).await.ok().map(|_| id)
            });
        }
    }
    while let Some(answer) = asking.join_next().await {
        if let Ok(Some(id)) = answer {
            heard.insert(id, Instant::now());
        }
    }
}
