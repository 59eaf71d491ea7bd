//! A running member of Raft: openraft, in the words of the rest of the crate.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{
    ChangeMembers, Config, ServerState, SnapshotPolicy,
    error::{ClientWriteError, RaftError},
};
use tokio::time::Instant;

use crate::{
    config::RaftConfig,
    consensus::{
        elections,
        log::Log,
        network, quorum, silence,
        state_machine::{StateMachine, StateMachineHandle},
    },
    format::OLDEST,
    net::pool::ConnectionPool,
    protocol::{
        command::{Command, Reply},
        peer::Peer,
        types::Types,
    },
};

/// Most bytes of the log, about, however few entries they are.
const LOG_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// Where this member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The Raft term.
    pub(crate) term: u64,
    /// Who leads, as far as is known.
    pub(crate) leader: Option<u64>,
    /// Whether this member leads.
    pub(crate) leads: bool,
    /// Whether it leads without having heard of a quorum for too long: another one may lead by now.
    pub(crate) lost: bool,
    /// The members, and whether each votes.
    pub(crate) members: BTreeMap<u64, (Peer, bool)>,
    /// Set once Raft has stopped for good, for example because the disk failed.
    pub(crate) stopped: bool,
}

impl View {
    /// The newest format that all members read.
    pub(crate) fn reads(&self) -> u8 {
        self.members.values().map(|(peer, _)| peer.reads).min().unwrap_or(OLDEST)
    }
}

/// Why Raft did not do what was asked.
#[derive(Clone, Debug)]
pub(crate) enum Refused {
    /// Another member leads, or nobody.
    NotLeader,
    /// It could not be done now, or nobody knows whether it was.
    Unavailable(String),
}

impl<E: std::error::Error> From<RaftError<u64, E>> for Refused {
    fn from(error: RaftError<u64, E>) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// A running member. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Raft {
    pub(super) raft: openraft::Raft<Types>,
    pub(super) id: u64,
    pub(super) log: Log,
    pub(super) quorum: quorum::Quorum,
    pub(super) silence: silence::Silence,
    /// Set when it begins to hand over: nothing new is to be decided here.
    pub(super) ending: Arc<AtomicBool>,
}

impl fmt::Debug for Raft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raft").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Raft {
    pub(crate) async fn start(
        id: u64,
        config: &RaftConfig,
        log: Log,
        machine: Arc<StateMachine>,
        pool: Arc<ConnectionPool>,
    ) -> Result<Self, Refused> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // Most members do not tick alike, so that few stand for election at the same moment. See `elections` for those who do.
        let drawn = config.environment.draw().to_le_bytes()[0];
        let heartbeat = config.heartbeat - config.heartbeat.mul_f64(f64::from(drawn) / 2048.0);
        let settings = Config {
            cluster_name: config.cluster.clone(),
            heartbeat_interval: ms(heartbeat),
            election_timeout_min: ms(config.election.0),
            election_timeout_max: ms(config.election.1),
            install_snapshot_timeout: ms(config.snapshot_time_limit),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
            max_in_snapshot_log_to_keep: config.snapshot_every / 4,
            replication_lag_threshold: config.snapshot_every * 2,
            ..Config::default()
        };
        let settings = settings.validate().map_err(|error| Refused::Unavailable(error.to_string()))?;
        let quorum = quorum::Quorum::default();
        let silence = silence::Silence::default();
        let network = network::Network {
            pool: pool.clone(),
            log: log.clone(),
            quorum: quorum.clone(),
            silence: silence.clone(),
            environment: config.environment.clone(),
        };
        let handle = StateMachineHandle { machine: machine.clone(), log: log.clone() };
        let raft = openraft::Raft::new(id, Arc::new(settings), network, log.clone(), handle).await;
        let raft = raft.map_err(|error| Refused::Unavailable(error.to_string()))?;
        tokio::spawn(quorum.clone().watch(raft.server_metrics(), config.election.1.mul_f64(1.5)));
        let raft = Self { raft, id, log, quorum, silence, ending: Arc::default() };
        tokio::spawn(elections::watch(
            raft.raft.clone(),
            raft.silence.clone(),
            config.election.1,
            config.environment.clone(),
        ));
        tokio::spawn(raft.clone().bound_log());
        tokio::spawn(raft.clone().stop_with_log());
        Ok(raft)
    }

    /// openraft counts entries, and one may have a megabyte: where the log has too many bytes, a snapshot is made before its
    /// time, and fewer entries are kept behind it.
    async fn bound_log(self) {
        let mut metrics = self.raft.metrics();
        let bound = async {
            while let Ok(upto) = self.log.outgrows(LOG_BYTES).await {
                let (snapshot, applied) = {
                    let metrics = self.raft.metrics();
                    let metrics = metrics.borrow();
                    (metrics.snapshot.map(|log| log.index), metrics.last_applied.map(|log| log.index))
                };
                let trigger = self.raft.trigger();
                let asked = match snapshot {
                    snapshot if snapshot >= Some(upto) => trigger.purge_log(upto).await,
                    snapshot if snapshot < applied => trigger.snapshot().await,
                    _ => Ok(()),
                };
                if asked.is_err() {
                    return;
                }
                // Both take their time, and may wait for followers.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = bound => {}
            _ = metrics.wait_for(|metrics| metrics.running_state.is_err()) => {}
        }
    }

    /// openraft finds out that nothing can be written when it has something to write, which a member that is not told of
    /// anything never has.
    async fn stop_with_log(self) {
        self.log.broken().await;
        self.stop().await;
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    pub(crate) fn view(&self) -> View {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        // While the voters change, the old ones and the new ones both decide. Whoever does not vote among both yet is not
        // counted, for nobody can do without the old ones so far; and a change that was cut short is taken up again.
        let votes = |id: &u64| membership.get_joint_config().iter().all(|voters| voters.contains(id));
        View {
            term: metrics.current_term,
            leader: metrics.current_leader,
            leads: metrics.state == ServerState::Leader && !self.has_ended(),
            lost: self.quorum.is_lost(),
            members: membership.nodes().map(|(id, peer)| (*id, (peer.clone(), votes(id)))).collect(),
            stopped: metrics.running_state.is_err() || self.has_ended(),
        }
    }

    /// Whether the core is gone, in whatever way: one that has panicked says nothing any more, not even that.
    fn has_ended(&self) -> bool {
        self.raft.server_metrics().has_changed().is_err()
    }

    /// How far each follower has the log, where this member leads.
    pub(crate) fn replicated(&self) -> Option<BTreeMap<u64, Option<u64>>> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let replication = metrics.replication.as_ref()?;
        Some(replication.iter().map(|(id, log)| (*id, log.as_ref().map(|log| log.index))).collect())
    }

    pub(crate) fn last_log_index(&self) -> u64 {
        self.raft.metrics().borrow().last_log_index.unwrap_or_default()
    }

    /// Waits until something about this member has changed.
    pub(crate) fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut metrics = self.raft.server_metrics();
        metrics.mark_unchanged();
        async move {
            // An error means that Raft has stopped: whoever asks next finds out.
            if metrics.changed().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Waits until this member knows of a later term.
    pub(crate) async fn outlived(&self, term: u64) {
        let mut metrics = self.raft.server_metrics();
        // An error means that Raft has stopped, which ends the term as well.
        let _ = metrics.wait_for(|metrics| metrics.vote.leader_id.term > term).await;
    }

    /// Has an entry decided. A caller that gives up waiting does not know whether it was.
    pub(crate) async fn propose(&self, command: Command) -> Result<Reply, Refused> {
        self.silence.breaks();
        match self.raft.client_write(command).await {
            Ok(response) => Ok(response.data),
            Err(error) => Err(error.into()),
        }
    }

    /// Confirms with a quorum that this member leads *now*, and returns the index up to which a reader must have applied
    /// to see everything that was acknowledged before the call.
    pub(crate) async fn confirm(&self) -> Result<u64, Refused> {
        self.silence.breaks();
        match self.raft.get_read_log_id().await {
            // What is not on this disk yet has been acknowledged to nobody, so nobody has to wait for it.
            // Where that is not known, all of it counts.
            Ok((read, _)) => Ok(read.map_or(0, |read| self.log.durable_until(read).unwrap_or(read).index)),
            Err(error) if error.forward_to_leader().is_some() => Err(Refused::NotLeader),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it is certain already that this member led in `term` at that moment or later, by what others have answered
    /// to heartbeats and entries. If so, it takes part in that as in a confirmation.
    pub(crate) fn led(&self, term: u64, at: Instant) -> bool {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.membership().get_joint_config();
        self.quorum.led(self.id, term, voters).is_some_and(|led| led >= at) && self.silence.leads(term)
    }

    /// Waits until another member has answered. One at a time may wait. Cancel safe.
    pub(crate) async fn answers(&self) {
        self.quorum.more().await;
    }

    /// When a member last answered what this one sent as a leader.
    pub(crate) fn answered(&self, id: u64) -> Option<Instant> {
        self.quorum.last(id)
    }

    /// Why Raft has stopped for good, if it has.
    pub(crate) fn why_stopped(&self) -> Option<String> {
        let fatal = self.raft.metrics().borrow().running_state.as_ref().err().map(ToString::to_string);
        let fatal = fatal.or_else(|| self.has_ended().then(|| "it has ended unexpectedly".to_owned()))?;
        Some(self.log.problem().unwrap_or(fatal))
    }

    /// When this member last heard of a leader, or led.
    pub(crate) fn last_heard(&self) -> Instant {
        self.silence.last()
    }

    /// Stands for election, unless it leads. Only fails where Raft has stopped.
    pub(crate) async fn stand(&self) -> bool {
        elections::stand(&self.raft, &self.silence).await
    }

    /// For how long, at least, no renewal that any leader before this one counted was sent. `None` where that is not known.
    pub(crate) fn silence_before(&self, term: u64) -> Option<Duration> {
        self.silence.before(term)
    }

    pub(crate) async fn is_initialized(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(false)
    }

    /// Founds a cluster of this member alone.
    pub(crate) async fn found(&self, me: Peer) -> Result<(), Refused> {
        Ok(self.raft.initialize(BTreeMap::from([(self.id, me)])).await?)
    }

    /// Adds a member that does not vote, or changes where it listens.
    pub(crate) async fn add_learner(&self, peer: Peer) -> Result<(), Refused> {
        let changes = ChangeMembers::SetNodes(BTreeMap::from([(peer.id, peer)]));
        self.change(changes).await
    }

    /// Sets who votes. Whoever voted before and is not named stays as a learner.
    pub(crate) async fn set_voters(&self, voters: std::collections::BTreeSet<u64>) -> Result<(), Refused> {
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Removes a member that does not vote.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), Refused> {
        self.change(ChangeMembers::RemoveNodes([id].into())).await
    }

    async fn change(&self, changes: ChangeMembers<u64, Peer>) -> Result<(), Refused> {
        match self.raft.change_membership(changes, true).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(Refused::NotLeader),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn snapshot(&self) {
        // Only fails where Raft has stopped.
        let _ = self.raft.trigger().snapshot().await;
    }

    pub(crate) async fn stop(&self) {
        if self.raft.shutdown().await.is_err() {
            tracing::debug!(target: "divider::raft", "the core had ended already");
        }
    }
}
