//! Finds the leader and passes calls on to it, from members and from clients alike.
//!
//! # What is tried again
//! A call that is known to have had no effect is tried again until its time is over. A call that may have had one is
//! tried again only where twice does no harm; for ops the caller is told that nobody knows, since only it knows what a
//! second time would mean.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use divider_core::StoreError;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::{
    cluster::{member::Member, seeds},
    config::RaftConfig,
    net::{
        client::CallError,
        pool::{ConnectionPool, Target, TrafficClass},
    },
    protocol::{
        messages::{Answer, Call, Fault, Request, Status},
        peer::Peer,
    },
};

/// How long one member may take to say where the cluster stands.
const STATUS: Duration = Duration::from_millis(400);
/// How often whoever waits for a leader's answer looks whether another one leads by now; and so how long one that has
/// just been replaced has to say so itself.
const LOOK: Duration = Duration::from_millis(100);
/// How often a client asks who the members are.
const KEEP_UP: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The way to the leader.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) config: Arc<RaftConfig>,
    pub(crate) member: Option<Arc<Member>>,
    pub(crate) pool: Arc<ConnectionPool>,
    /// Why this process is a client although it is to be a member.
    pub(crate) note: Option<String>,
    known: Arc<Mutex<Known>>,
}

/// What a client knows of the cluster.
#[derive(Debug, Default)]
struct Known {
    leader: Option<Target>,
    members: Vec<Peer>,
    /// When they were asked for last.
    asked: Option<Instant>,
    /// Why somebody did not say who leads, when all were asked last.
    problem: Option<String>,
}

/// Where the leader is.
enum Leader {
    Here(Arc<Member>),
    There(Target),
    Nowhere,
}

impl Router {
    pub(crate) fn new(config: Arc<RaftConfig>, member: Option<Arc<Member>>, pool: Arc<ConnectionPool>) -> Self {
        Self { config, member, pool, note: None, known: Arc::default() }
    }

    /// Tells a client of members that it has not met yet.
    pub(crate) fn tell(&self, members: Vec<Peer>) {
        self.known.lock().members = members;
    }

    /// Has the leader answer a call. `again` says that twice does no harm.
    pub(crate) async fn call(&self, call: Call, class: TrafficClass, again: bool) -> Result<Answer, StoreError> {
        if let (Some(member), Call::Renew { session, .. } | Call::Poll { session, .. }) = (&self.member, &call) {
            member.heard_of_local(*session);
        }
        let limit = self.config.call_time_limit;
        let deadline = Instant::now() + limit;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(last.map_or(StoreError::Timeout { limit }, |problem| self.unavailable(problem)));
            }
            let (problem, pause) = match self.leader(left).await {
                Leader::Here(member) => match timeout(left, member.call(call.clone(), true)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(fault)) => self.fault(fault, again)?,
                    Err(_) => return Err(StoreError::Timeout { limit }),
                },
                Leader::There(target) => {
                    let request = Request::Call(call.clone());
                    // A leader that has been cut off does not say so. Whoever may ask again has time left to ask another.
                    let patience = if again { left.min(limit / 2) } else { left };
                    let answer = tokio::select! {
                        biased;
                        answer = self.pool.call(&target, class, &request, patience) => answer,
                        () = self.replaced(&target) => Err(CallError::Lost("another one leads by now".into())),
                    };
                    match answer {
                        Ok(Answer::Fault(fault)) => self.fault(fault, again)?,
                        Ok(answer) => {
                            self.keep_up(&target);
                            return Ok(answer);
                        }
                        Err(error) => {
                            self.lost(&target);
                            let harmless = again || error.is_harmless();
                            let problem = format!("the leader at {}: {error}", target.address);
                            if !harmless {
                                return Err(self.unavailable(problem));
                            }
                            (problem, PAUSE * 2)
                        }
                    }
                }
                Leader::Nowhere => (self.nobody(), PAUSE),
            };
            last = Some(problem);
            tokio::time::sleep(pause).await;
        }
    }

    /// What a fault means: an error, or something to say if no later try succeeds, and how long to wait before one.
    fn fault(&self, fault: Fault, again: bool) -> Result<(String, Duration), StoreError> {
        match fault {
            Fault::NotLeader(leader) => {
                self.known.lock().leader = leader.as_ref().map(Target::member);
                Ok(("the leader has changed".into(), PAUSE / 2))
            }
            Fault::Busy(problem) => Ok((problem, PAUSE * 2)),
            Fault::Unknown(problem) if again => Ok((problem, PAUSE)),
            Fault::Unknown(problem) => Err(self.unavailable(problem)),
            Fault::SessionEnded => Err(StoreError::SessionEnded),
            Fault::Refused(problem) | Fault::Denied(problem) => Err(StoreError::Misconfigured(problem)),
        }
    }

    /// Returns when another one than the target is known to lead. The answer of one that has been cut off never comes.
    async fn replaced(&self, target: &Target) {
        loop {
            tokio::time::sleep(LOOK).await;
            let replaced = match &self.member {
                Some(member) => member.raft.view().leader.is_some_and(|leader| Some(leader) != target.id),
                None => self.known.lock().leader.as_ref().is_some_and(|leader| leader != target),
            };
            if replaced {
                return;
            }
        }
    }

    /// That no leader is known, and why, as far as that was said.
    pub(crate) fn nobody(&self) -> String {
        let why = self.known.lock().problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
        format!("no leader is known at the moment{why}")
    }

    fn lost(&self, target: &Target) {
        let mut known = self.known.lock();
        if known.leader.as_ref() == Some(target) {
            known.leader = None;
        }
    }

    async fn leader(&self, left: Duration) -> Leader {
        if let Some(member) = &self.member {
            let view = member.raft.view();
            if view.leads {
                return Leader::Here(member.clone());
            }
            let leader = view.leader.filter(|id| *id != member.me.id).and_then(|id| view.members.get(&id));
            return leader.map_or(Leader::Nowhere, |(peer, _)| Leader::There(Target::member(peer)));
        }
        if let Some(leader) = self.known.lock().leader.clone() {
            return Leader::There(leader);
        }
        // Whoever knows a leader is believed; a wrong one says so itself.
        match timeout(left, self.look()).await {
            Ok(Some(leader)) => {
                self.known.lock().leader = Some(leader.clone());
                Leader::There(leader)
            }
            _ => Leader::Nowhere,
        }
    }

    /// Whom a client asks when it has lost the leader must be those that there are by then, so it has itself told who they
    /// are now and then. Members know.
    fn keep_up(&self, leader: &Target) {
        let now = Instant::now();
        {
            let mut known = self.known.lock();
            if self.member.is_some() || known.asked.is_some_and(|asked| now - asked < KEEP_UP) {
                return;
            }
            known.asked = Some(now);
        }
        let (pool, known, leader) = (self.pool.clone(), self.known.clone(), leader.clone());
        tokio::spawn(async move {
            let status = pool.call(&leader, TrafficClass::Calls, &Request::Call(Call::Status), STATUS).await;
            if let Ok(Answer::Status(Status { members, .. })) = status
                && !members.is_empty()
            {
                known.lock().members = members.into_iter().map(|(peer, _)| peer).collect();
            }
        });
    }

    /// Asks the members, and the seeds, for the leader.
    async fn look(&self) -> Option<Target> {
        let new = self.pool.is_new();
        let (leader, clusters) = self.ask_all(new).await;
        match self.pool.asked(new, clusters) {
            Ok(()) => leader,
            Err(problem) => {
                *self.known.lock() = Known { problem: Some(problem), ..Known::default() };
                None
            }
        }
    }

    /// Until one knows the leader; but whoever does not know yet to which cluster it belongs hears all.
    async fn ask_all(&self, new: bool) -> (Option<Target>, BTreeSet<Uuid>) {
        let (mut found, mut clusters) = (None, BTreeSet::new());
        let mut targets: Vec<Target> = self.known.lock().members.iter().map(Target::member).collect();
        targets.extend(seeds::targets(&self.config).await);
        let request = Request::Call(Call::Status);
        let mut asking = tokio::task::JoinSet::new();
        for target in targets {
            let (pool, request) = (self.pool.clone(), request.clone());
            asking.spawn(async move { pool.call(&target, TrafficClass::Calls, &request, STATUS).await });
        }
        while let Some(answer) = asking.join_next().await {
            let status = match answer {
                Ok(Ok(Answer::Status(status))) => status,
                Ok(Err(error)) => {
                    self.known.lock().problem = Some(error.to_string());
                    continue;
                }
                _ => continue,
            };
            if !self.pool.may_be_of(status.cluster_id) {
                continue;
            }
            self.pool.address_book().met(&status.me);
            clusters.extend(status.cluster_id);
            if let Status { leader: Some(leader), members, .. } = status {
                let mut known = self.known.lock();
                known.members = members.into_iter().map(|(peer, _)| peer).collect();
                known.asked = Some(Instant::now());
                known.problem = None;
                found = found.or_else(|| Some(Target::member(&leader)));
                if !new {
                    break;
                }
            }
        }
        (found, clusters)
    }

    /// The members that are known, the one to begin with first.
    pub(crate) async fn members(&self, begin: u64) -> Vec<Target> {
        if self.known.lock().members.is_empty() {
            // Fills in the members, if anybody answers.
            self.look().await;
        }
        let mut targets: Vec<Target> = self.known.lock().members.iter().map(Target::member).collect();
        if !targets.is_empty() {
            let at = usize::try_from(begin % targets.len() as u64).unwrap_or_default();
            targets.rotate_left(at);
        }
        targets
    }

    /// Nobody answered as it was needed. Where that is because programs are too far apart, the error has that as its source.
    pub(crate) fn unavailable(&self, problem: String) -> StoreError {
        let note = self.note.as_ref().map_or_else(String::new, |note| format!(" ({note})"));
        let too_old = self.pool.too_old();
        let message = match &too_old {
            Some(too_old) => format!("{problem}; {too_old}{note}"),
            None => problem + &note,
        };
        let source = too_old.map(|too_old| Arc::new(too_old) as Arc<dyn std::error::Error + Send + Sync>);
        StoreError::Unavailable { message, source }
    }
}
