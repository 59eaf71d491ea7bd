//! A member of the cluster, as the others see it: what it answers to whom.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use divider_core::{Batch, Claim, Group, LeaderView, Ledger, Op, PollReply, SessionId, StoreError, Term, Topic};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use crate::{
    cluster::{authorization::Caller, founding::Founding},
    config::RaftConfig,
    consensus::{
        confirm::Confirmer,
        inbound::Receiving,
        log::{Log, records::Identity},
        propose::Proposer,
        raft::{Raft, Refused, View},
        state_machine::{StateMachine, owner},
        subscribers::change_bytes,
    },
    environment::DataDir,
    error::TooOld,
    format::{Formats, OLDEST},
    net::{pool::ConnectionPool, security::Proof, wire},
    protocol::{
        command::{Body, Command, Done, Step},
        messages::{Answer, Call, Fault, Hello, Query, Request, Status},
        peer::Peer,
        raft_messages::{RaftAnswer, RaftRequest},
    },
};

/// About how many bytes of changes go into one answer.
const CHANGES_BYTES: usize = 1 << 20;
/// A renewal may wait for others for this part of the lease, a quarter of the time between two,
const RENEWAL: u32 = 16;
/// and for no longer than this: a call has a time limit of its own, however long the lease. openraft looks every one and a
/// half heartbeats whether one is due, so by default this is the longest that the next one can take, and its answers.
const RENEWAL_MOST: Duration = Duration::from_millis(175);
/// A voter that has answered no heartbeat for this long is not counted on where another one leaves.
const SILENT: Duration = Duration::from_secs(2);
/// A session of this process that was not heard of for this long is none any more.
const LOCAL: Duration = Duration::from_secs(10);

/// How much later than here the last heartbeat may have come elsewhere.
pub(super) const SKEW: Duration = Duration::from_millis(10);

/// Why a member is none any more, though nobody has closed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// Raft has stopped, for example because the disk is full. What was answered is on the disk.
    Stopped(String),
    /// The cluster does not count it as a member any more.
    Removed,
}

/// A member. One for each process and cluster.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) config: Arc<RaftConfig>,
    pub(crate) me: Peer,
    pub(crate) identity: Mutex<Identity>,
    pub(crate) cluster_id: Arc<RwLock<Option<Uuid>>>,
    pub(crate) log: Log,
    pub(crate) machine: Arc<StateMachine>,
    pub(crate) raft: Raft,
    pub(crate) proposer: Proposer,
    pub(crate) confirmer: Confirmer,
    pub(crate) pool: Arc<ConnectionPool>,
    pub(crate) receiving: Receiving,
    /// Sessions of this process, and when they were last heard of, whoever led then.
    pub(crate) locals: Mutex<HashMap<SessionId, Instant>>,
    pub(crate) data_dir: DataDir,
    pub(crate) founding: Founding,
    /// Set once it is known that no other cluster is at its seeds. Where it is the only member of its own, nobody else would
    /// find that out, and until then it serves nobody.
    pub(crate) unrivalled: AtomicBool,
    /// Told when a connection of the leader has ended.
    pub(crate) leader_left: Notify,
    pub(crate) formats: Formats,
    /// Held while a member is taken in, and while a step to a newer format is decided: the Raft term and the format of the
    /// last step that was proposed here.
    pub(crate) changing: tokio::sync::Mutex<(u64, u8)>,
}

impl Member {
    pub(crate) fn config(&self) -> &RaftConfig {
        &self.config
    }

    pub(crate) fn me(&self) -> &Peer {
        &self.me
    }

    pub(crate) fn cluster_id(&self) -> Option<Uuid> {
        *self.cluster_id.read()
    }

    /// Lets in whoever says `hello`, or says why not; `proved` is its certificate.
    pub(crate) fn authenticate(&self, hello: &Hello, proved: Option<&Proof>) -> Result<Caller, String> {
        let caller = || Caller::of(hello, proved, &self.config, &self.raft.view());
        let caller = self.objection(hello).map_or_else(caller, Err)?;
        caller.member.iter().for_each(|peer| self.pool.address_book().met(peer));
        Ok(caller)
    }

    /// Why whoever says `hello` has come to the wrong place.
    fn objection(&self, hello: &Hello) -> Option<String> {
        if hello.cluster != self.config.cluster {
            return Some(format!("this member is of the cluster {:?}, not {:?}", self.config.cluster, hello.cluster));
        }
        if hello.target.is_some_and(|target| target != self.me.id) {
            return Some(format!("this is {}, not the member that was meant", self.me));
        }
        // A client is told which cluster this is, and goes by itself.
        if let (Some(mine), Some(theirs), Some(_)) = (self.cluster_id(), hello.cluster_id, &hello.from)
            && mine != theirs
        {
            return Some(format!("this member belongs to the cluster {mine}, not to {theirs}"));
        }
        None
    }

    /// Answers a request that came over the wire, if its caller may ask for that.
    pub(crate) async fn serve(&self, request: Request, caller: &Caller) -> Answer {
        if let Err(problem) = caller.may(&request, self.me.id, &self.raft.view()) {
            tracing::warn!(target: "divider::raft", ?caller, problem, "refused what the caller may not ask for");
            return Answer::Fault(Fault::Denied(problem));
        }
        match request {
            Request::Call(call) => {
                let limit = self.config.call_time_limit;
                // Whoever asked gives up at about the same time, so nothing is gained by going on.
                let answered = tokio::time::timeout(limit, self.call(call, false)).await;
                let late = |_| Err(Fault::Unknown(format!("not done within {limit:?}")));
                answered.unwrap_or_else(late).unwrap_or_else(Answer::Fault)
            }
            Request::Raft(request) => {
                // A newcomer learns which cluster it joins before it asks to be taken in, so this holds from then on.
                if self.cluster_id().is_none() || caller.cluster_id != self.cluster_id() {
                    return Answer::Raft(RaftAnswer::Failed("this member does not belong to that cluster".into()));
                }
                if request == RaftRequest::TimeoutNow {
                    wait_for_votes(self).await;
                }
                Answer::Raft(self.raft.answer(request, &self.machine, &self.receiving).await)
            }
            Request::Subscribe { .. } => Answer::Fault(Fault::Refused("a subscription is not a call".into())),
        }
    }

    pub(crate) fn subscribe(&self, group: &Group, topic: Topic) -> mpsc::Receiver<divider_core::Hint> {
        self.machine.subscribers.subscribe(group, topic)
    }

    /// Answers a call. `local` says that it comes from this process.
    pub(crate) async fn call(&self, call: Call, local: bool) -> Result<Answer, Fault> {
        match call {
            Call::Status => return Ok(Answer::Status(self.status())),
            Call::Found { by, taken_back } => return self.leave_founding_to(by, taken_back),
            _ if self.cluster_id().is_none() => return Err(Fault::Busy("this member has no cluster yet".into())),
            _ => {}
        }
        if self.machine.differs() {
            return Err(Fault::Busy("this replica differs from the others', and stops".into()));
        }
        let view = self.raft.view();
        if !view.leads {
            return Err(self.not_leader(&view));
        }
        if view.members.len() == 1 && !self.unrivalled.load(Ordering::Relaxed) {
            return Err(Fault::Busy("this member does not know yet whether another cluster is there".into()));
        }
        if self.raft.is_ending() {
            return Err(Fault::Busy("this member hands over to another one".into()));
        }
        let answer = match call {
            Call::Status => Ok(Answer::Status(self.status())),
            Call::Found { by, taken_back } => self.leave_founding_to(by, taken_back),
            Call::Apply { group, ops } => self.apply(group, ops).await,
            Call::Renew { group, session } => self.renew(view.term, &group, session).await,
            Call::Poll { group, session, claim } => self.poll(&view, &group, session, claim, local).await,
            Call::Resign { group, session, term } => {
                let resigned = self.proposer.propose(Step::Resign { group: group.clone(), session, term }).await;
                if self.machine.with(&group, |ledger| ledger.group().leader) != Some(session) {
                    self.machine.beats.resigned(&group, session);
                }
                resigned.map(|_| Answer::Done)
            }
            Call::Beats { group } => {
                let beat = |session| (session, self.machine.beats.beat(view.term, &group, session));
                Ok(Answer::Beats(self.alive(&group).into_iter().map(beat).collect()))
            }
            Call::Silences { group } => {
                let before = self.raft.silence_before(view.term);
                let unheard = self.machine.beats.unheard(view.term, &group, self.alive(&group));
                let silent =
                    |before: Duration| unheard.into_iter().map(|(session, beat)| (session, beat, before)).collect();
                Ok(Answer::Silences(before.map_or_else(Vec::new, silent)))
            }
            Call::Confirm => self.confirmer.confirm().await.map(Answer::Index),
            Call::Read { group, query } => {
                let index = self.confirmer.confirm().await?;
                self.machine.reached(index).await;
                self.read(&group, query)
            }
            Call::Join { peer, votes } => self.join(&view, Peer { wants_vote: votes, ..peer }).await,
            Call::Leave { id } => self.leave(&view, id).await,
            Call::Promote { id } => self.set_voters(&view, None, Some(id)).await,
            Call::Replace { old, new } => self.set_voters(&view, Some(old), Some(new)).await,
            Call::StepUp => self.step_up().await.map(|format| Answer::Index(format.into())),
        };
        match answer {
            Err(Fault::NotLeader(None)) => Err(self.not_leader(&self.raft.view())),
            answer => answer,
        }
    }

    fn leave_founding_to(&self, by: u64, taken_back: bool) -> Result<Answer, Fault> {
        if taken_back {
            self.founding.release(by);
            return Ok(Answer::Done);
        }
        if self.cluster_id().is_some() {
            return Err(Fault::Refused("this member belongs to a cluster".into()));
        }
        let other = |other| Fault::Busy(format!("it is left to {other:016x} to found the cluster"));
        self.founding.promise(self.me.id, by).map(|()| Answer::Done).map_err(other)
    }

    /// The living sessions of a group.
    fn alive(&self, group: &Group) -> Vec<SessionId> {
        let alive =
            |ledger: &Ledger| ledger.sessions().filter(|view| view.ended.is_none()).map(|view| view.session).collect();
        self.machine.with(group, alive)
    }

    fn not_leader(&self, view: &View) -> Fault {
        let leader = view.leader.filter(|id| *id != self.me.id);
        Fault::NotLeader(leader.and_then(|id| view.members.get(&id)).map(|(peer, _)| peer.clone()))
    }

    pub(crate) fn status(&self) -> Status {
        let view = self.raft.view();
        // Where each was met last: whoever asks may look for somebody who has moved.
        let placed = |peer: &Peer| self.pool.address_book().placed(peer);
        Status {
            me: self.me.clone(),
            cluster_id: self.cluster_id(),
            // One that no quorum answers may have been replaced, and whoever asks is to find the one that has replaced it.
            leader: view
                .leader
                .filter(|_| !view.lost)
                .and_then(|id| view.members.get(&id))
                .map(|(peer, _)| placed(peer)),
            members: view.members.values().map(|(peer, votes)| (placed(peer), *votes)).collect(),
        }
    }

    async fn apply(&self, group: Group, ops: Vec<Op>) -> Result<Answer, Fault> {
        if let Some(problem) = wire::too_large(&ops) {
            return Err(Fault::Refused(problem));
        }
        // What comes over the wire has been checked by another program, perhaps of another version.
        if let Some(error) = ops.iter().find_map(|op| op.validate().err()) {
            return Err(Fault::Refused(error.to_string()));
        }
        match self.proposer.propose(Step::Apply { group, ops }).await? {
            Done::Applied(applied) => Ok(Answer::Applied(applied)),
            Done::Looked => Err(Fault::Unknown("an answer to another question".into())),
        }
    }

    async fn renew(&self, term: u64, group: &Group, session: SessionId) -> Result<Answer, Fault> {
        let beat = loop {
            let mut decided = pin!(self.machine.beats.decided());
            decided.as_mut().enable();
            match self.machine.beats.renew(term, group, session) {
                Some(beat) => break beat,
                // Its expiry is being decided; what comes of that decides about the renewal.
                None => decided.await,
            }
        };
        // Only a leader that still led after the renewal had come in may count it: another one may be expiring sessions.
        let lease = self.machine.with(group, |ledger| ledger.session(session).map_or(0, |view| view.lease_ms));
        let patience = (Duration::from_millis(lease.into()) / RENEWAL).min(RENEWAL_MOST);
        let index = match self.machine.entered(term) {
            // What ends sessions in this term is decided here, and applied before anybody is told of it; an expiry that is on
            // its way has been waited for.
            true => self.confirmer.confirm_term(term, patience).await?,
            false => self.confirmer.confirm().await?,
        };
        self.machine.reached(index).await;
        if self.raft.view().term != term {
            // The beat that was raised is of a term that is over, and the one that was confirmed may be another.
            return Err(Fault::Busy("another term has begun".into()));
        }
        if self.machine.with(group, |ledger| ledger.is_alive(session)) {
            Ok(Answer::Beat(beat))
        } else {
            self.machine.beats.forget(group, session);
            Err(Fault::SessionEnded)
        }
    }

    async fn poll(
        &self,
        view: &View,
        group: &Group,
        session: SessionId,
        claim: Claim,
        local: bool,
    ) -> Result<Answer, Fault> {
        let (machine, beats) = (&self.machine, &self.machine.beats);
        if machine.with(group, |ledger| ledger.seq(session)).is_none() {
            // Perhaps it has joined under a leader that this member does not know of yet.
            let index = self.confirmer.confirm().await?;
            machine.reached(index).await;
        }
        let held = machine.with(group, |ledger| {
            let held = ledger.group();
            (held.term, held.leader.map(|leader| (leader, held.term)))
        });
        match claim {
            Claim::Follow => {}
            Claim::Take { stale } => {
                if local {
                    beats.heard_of_local(view.term, group, session);
                }
                if self.may_lead(view.term, group, held.1, session, stale, local) {
                    self.proposer.propose(Step::Lead { group: group.clone(), session, over: held.0 }).await?;
                }
            }
            Claim::Lead { term } if held.1 == Some((session, term)) => {
                if local {
                    beats.heard_of_local(view.term, group, session);
                }
                beats.leader_beat(view.term, group, true);
            }
            Claim::Lead { .. } => {}
        }
        // A leader that no quorum has answered for so long may have been replaced: its groups' leaders step down.
        let leader_beat = beats.leader_beat(view.term, group, false);
        let reply = machine.with(group, |ledger| {
            let seq = ledger.seq(session)?;
            let held = ledger.group();
            let leader = held.leader.filter(|_| !view.lost).map(|leader| LeaderView {
                term: held.term,
                session: leader,
                beat: leader_beat,
                session_beat: ledger.is_alive(leader).then(|| beats.beat(view.term, group, leader)),
                // Its process is this one: when that dies, whoever leads Raft next frees the leadership.
                watched: beats.hears_local(view.term, group, leader),
            });
            Some(PollReply { leader, revision: ledger.revision(), token: ledger.token(), seq })
        });
        reply.map(Answer::PollReply).ok_or(Fault::SessionEnded)
    }

    /// A session of this process has called.
    pub(crate) fn heard_of_local(&self, session: SessionId) {
        let mut locals = self.locals.lock();
        if !locals.contains_key(&session) {
            locals.retain(|_, heard| heard.elapsed() < LOCAL);
        }
        locals.insert(session, Instant::now());
    }

    /// This member has begun to lead Raft: the groups' leaders in other processes lose their leadership, as if the store
    /// had noticed their death. The process that leads Raft should lead its groups too: its proposals then take no detour,
    /// and when it is lost both move together, within an election instead of a lease.
    pub(crate) async fn free_leaderships(&self) -> Result<(), Fault> {
        let index = self.confirmer.confirm().await?;
        self.machine.reached(index).await;
        for (group, session, term) in self.machine.leaders() {
            if self.locals.lock().get(&session).is_none_or(|heard| heard.elapsed() >= LOCAL) {
                self.proposer.propose(Step::Resign { group, session, term }).await?;
            }
        }
        Ok(())
    }

    /// Whether a session may lead its group now: where nobody does, or the leadership has stood still for a lease. Sessions
    /// of this process are preferred; another one comes into question only where none of those has asked for a while.
    fn may_lead(
        &self,
        raft_term: u64,
        group: &Group,
        held: Option<(SessionId, Term)>,
        session: SessionId,
        stale: Option<(Term, divider_core::Beat)>,
        local: bool,
    ) -> bool {
        let preferred = || local || self.machine.beats.others_may_lead(raft_term, group);
        match held {
            None => preferred(),
            Some((leader, _)) if leader == session => false,
            Some((_, term)) => {
                let beat = self.machine.beats.leader_beat(raft_term, group, false);
                stale == Some((term, beat)) && preferred()
            }
        }
    }

    /// Reads from what has been applied here.
    pub(crate) fn read(&self, group: &Group, query: Query) -> Result<Answer, Fault> {
        let failed = |error: StoreError| match error {
            StoreError::SessionEnded => Fault::SessionEnded,
            other => Fault::Refused(other.to_string()),
        };
        if self.machine.differs() {
            return Err(Fault::Busy("this replica differs from the others', and stops".into()));
        }
        self.machine.with(group, |ledger| match query {
            Query::Holdings(session) => ledger.holdings(session).map(Answer::Holdings).map_err(failed),
            Query::Changes(since) => Ok(Answer::Changes(ledger.changes(since).map(some))),
            Query::Scan(cursor) => ledger.scan(cursor.as_ref()).map(Answer::Page).map_err(failed),
            Query::Records(keys) => Ok(Answer::Records(keys.iter().map(|key| ledger.record(key)).collect())),
            Query::Stats => Ok(Answer::Stats(ledger.stats())),
            Query::Quarantined(limit) => {
                Ok(Answer::Keys(ledger.quarantined(usize::try_from(limit).unwrap_or(usize::MAX))))
            }
            Query::Owners(keys) => Ok(Answer::Owners(keys.iter().map(|key| owner(ledger, key)).collect())),
        })
    }

    async fn join(&self, view: &View, peer: Peer) -> Result<Answer, Fault> {
        if view.members.get(&peer.id).is_some_and(|(known, _)| *known == peer) {
            return Ok(Answer::Done);
        }
        let twin = view.members.values().find(|(known, _)| known.id != peer.id && known.name == peer.name);
        if let Some((twin, _)) = twin {
            return Err(Fault::Refused(format!(
                "a member called {} is known with another data directory; if that one is lost, remove {:016x} first",
                twin.name, twin.id
            )));
        }
        let proposed = self.changing.lock().await;
        let needs = self.needs(*proposed).await?;
        if peer.reads < needs {
            let reads = peer.reads;
            return Err(Fault::Refused(TooOld { needs: needs.into(), reads: reads.into(), here: false }.to_string()));
        }
        self.raft.add_learner(peer).await.map_err(changing).map(|()| Answer::Done)
    }

    /// What a member must read: the format that the cluster is written in, with all that this leader and earlier ones have
    /// proposed.
    async fn needs(&self, proposed: (u64, u8)) -> Result<u8, Fault> {
        let index = self.confirmer.confirm().await?;
        self.machine.reached(index).await;
        let view = self.raft.view();
        let decided = self.machine.needs(view.reads());
        Ok(if proposed.0 == view.term { decided.max(proposed.1) } else { decided })
    }

    /// Lets the cluster be written in the newest format that all its members read, and says which that is.
    pub(crate) async fn step_up(&self) -> Result<u8, Fault> {
        let mut proposed = self.changing.lock().await;
        self.needs(*proposed).await?;
        let (view, written) = (self.raft.view(), self.machine.written());
        if !view.leads {
            return Err(Fault::NotLeader(None));
        }
        let reads = view.reads().min(self.machine.members_read().unwrap_or(OLDEST)).min(self.me.reads);
        if reads <= written {
            return Ok(written);
        }
        // From here on nobody who reads less is taken in, whatever becomes of this.
        *proposed = (view.term, reads);
        let clock = self.data_dir.environment.clock();
        let first = Command(Arc::new(Body::new(reads, view.term, clock, false, Vec::new())));
        self.raft.propose(first).await.map_err(changing)?;
        tracing::info!(target: "divider::raft", member = %self.me, from = written, to = reads, "the cluster steps up to a newer format");
        Ok(reads)
    }

    async fn leave(&self, view: &View, id: u64) -> Result<Answer, Fault> {
        match view.members.get(&id) {
            None => return Ok(Answer::Done),
            Some((_, true)) => _ = self.set_voters(view, Some(id), None).await?,
            Some((_, false)) => {}
        }
        self.raft.remove(id).await.map_err(changing).map(|()| Answer::Done)
    }

    async fn set_voters(&self, view: &View, old: Option<u64>, new: Option<u64>) -> Result<Answer, Fault> {
        let mut voters: BTreeSet<u64> =
            view.members.iter().filter(|(_, (_, votes))| *votes).map(|(id, _)| *id).collect();
        let before = voters.clone();
        if let Some(old) = old {
            voters.remove(&old);
        }
        if let Some(new) = new {
            if !view.members.contains_key(&new) {
                return Err(Fault::Refused(format!("{new:016x} is not a member")));
            }
            voters.insert(new);
        }
        if voters.is_empty() {
            return Err(Fault::Refused("the last voter cannot leave".into()));
        }
        // Whoever has led for a moment only may not have been answered yet, but those who are to vote were there before.
        let heard = |id: &&u64| match self.raft.answered(**id) {
            Some(answered) => answered.elapsed() < SILENT,
            None => **id == self.me.id || before.contains(*id),
        };
        if voters != before && voters.iter().filter(heard).count() * 2 <= voters.len() {
            // It would be the last thing that they decide, or could not even be decided.
            return Err(Fault::Busy(
                "too few of those who would vote then can be heard; remove the others first".into(),
            ));
        }
        if voters != before {
            self.raft.set_voters(voters).await.map_err(changing)?;
        }
        if let Some(old) = old.filter(|_| new.is_some()) {
            self.raft.remove(old).await.map_err(changing)?;
        }
        Ok(Answer::Done)
    }
}

/// Where the leader hands over, and its vote and this member's are not enough: waits until the others may vote, for whoever
/// stands before that loses, and stands again in another term.
async fn wait_for_votes(member: &Member) {
    let voters = member.raft.view().members.values().filter(|(_, votes)| *votes).count();
    if voters > 3 {
        sleep_until(member.raft.last_heard() + member.config.election.1 + SKEW).await;
    }
}

fn changing(refused: Refused) -> Fault {
    match refused {
        Refused::NotLeader => Fault::NotLeader(None),
        Refused::Unavailable(problem) => Fault::Unknown(problem),
    }
}

/// The first batches, up to about [`CHANGES_BYTES`], but at least one.
fn some(batches: Vec<Batch>) -> Vec<Batch> {
    let mut bytes = 0;
    let mut taken = 0;
    batches
        .into_iter()
        .take_while(|batch| {
            bytes += batch.changes.iter().map(change_bytes).sum::<usize>();
            taken += 1;
            taken == 1 || bytes <= CHANGES_BYTES
        })
        .collect()
}
