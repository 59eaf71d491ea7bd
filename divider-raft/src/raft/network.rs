//! Raft's calls between members, over the [`Links`].
//!
//! openraft gives each call a time limit and drops the future; a link outlives that, and a dial goes on, so that a slow
//! handshake is not begun again for ever. A peer that accepts and never answers costs its own calls only.
//!
//! The limit of a call with entries is one heartbeat, and openraft sends the same entries again after it. Where they take
//! longer, because there are many of them or a disk stalls, they would be sent again and again and never be through. So
//! the first call goes on, heartbeats pass it, and whoever would send the same again waits for its answer.

use std::{sync::Arc, time::Duration};

use openraft::{
    RaftNetwork, RaftNetworkFactory, Snapshot,
    error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinHandle, time::Instant};

use super::{
    Log, LogId, Machine, Peer, Raft, SnapshotData, SnapshotMeta, Types, Vote, quorum::Quorum, silence::Silence,
    snapshot,
};
use crate::{
    ground::Ground,
    link::{Class, LinkError, Links, Target},
    wire::{Answer, Request},
};

/// How long a heartbeat waits for this member's own disk.
const DISK: Duration = Duration::from_millis(10);
/// How long entries may take to be taken in, and how late an answer counts as a sign of life.
const APPEND: Duration = Duration::from_secs(2);
/// How long a leader that ends may take to have another one lead.
const HAND_OVER: Duration = Duration::from_millis(800);
/// And how often it looks whether another one can.
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of a snapshot in one call.
const CHUNK: usize = 256 << 10;

/// Raft's own calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RaftRequest {
    /// Entries, or a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// A vote is asked for.
    Vote(VoteRequest<u64>),
    /// A snapshot begins; one that was begun before is forgotten.
    SnapshotBegin {
        /// Drawn by the sender.
        stream: u64,
        /// The leader's vote.
        vote: Vote,
        /// What the snapshot is of.
        meta: SnapshotMeta,
    },
    /// Its next chunk.
    SnapshotChunk {
        /// Which snapshot.
        stream: u64,
        /// Where the chunk begins.
        offset: u64,
        /// The chunk.
        bytes: Vec<u8>,
    },
    /// It is whole: install it.
    SnapshotEnd {
        /// Which snapshot.
        stream: u64,
    },
    /// The leader ends, and whoever is asked should stand for election at once.
    TakeOver,
    /// What the number over all that was applied was at an index; see [`sum`](super::sum).
    Compare {
        /// At which index.
        index: u64,
    },
    /// What that number is on most members, or on the leader: one that has another one differs from the others.
    Differs {
        /// At which index.
        index: u64,
        /// The number.
        sum: u64,
    },
}

/// The answers, in the same order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum RaftAnswer {
    /// Of an append.
    Append(AppendEntriesResponse<u64>),
    /// Of a vote, and how many milliseconds ago the voter last took part in an earlier leadership.
    Vote(VoteResponse<u64>, u64),
    /// Of a snapshot's beginning, of its chunks, and of a leader that ends.
    Taken,
    /// Of a snapshot's end: the receiver's vote. Of its beginning: a newer vote, and nothing is taken in.
    Installed(Vote),
    /// Raft has stopped there, or the disk failed.
    Failed(String),
    /// Of a comparison: the number, where it is known.
    Compared(Option<u64>),
}

impl PartialEq for RaftRequest {
    fn eq(&self, other: &Self) -> bool {
        postcard::to_stdvec(self).ok() == postcard::to_stdvec(other).ok()
    }
}

impl Clone for RaftAnswer {
    fn clone(&self) -> Self {
        match self {
            Self::Append(AppendEntriesResponse::Success) => Self::Append(AppendEntriesResponse::Success),
            Self::Append(AppendEntriesResponse::PartialSuccess(log)) => {
                Self::Append(AppendEntriesResponse::PartialSuccess(*log))
            }
            Self::Append(AppendEntriesResponse::Conflict) => Self::Append(AppendEntriesResponse::Conflict),
            Self::Append(AppendEntriesResponse::HigherVote(vote)) => {
                Self::Append(AppendEntriesResponse::HigherVote(*vote))
            }
            Self::Vote(vote, ago) => Self::Vote(vote.clone(), *ago),
            Self::Taken => Self::Taken,
            Self::Installed(vote) => Self::Installed(*vote),
            Self::Failed(problem) => Self::Failed(problem.clone()),
            Self::Compared(sum) => Self::Compared(*sum),
        }
    }
}

impl PartialEq for RaftAnswer {
    fn eq(&self, other: &Self) -> bool {
        postcard::to_stdvec(self).ok() == postcard::to_stdvec(other).ok()
    }
}

/// The snapshot that a member is receiving: at most one, since a member follows at most one leader. One that is whole is
/// none of these any more: what begins later does not touch it.
#[derive(Debug, Default)]
pub(crate) struct Receiving(Mutex<Option<Stream>>);

#[derive(Debug)]
struct Stream {
    id: u64,
    vote: Vote,
    meta: SnapshotMeta,
    spool: snapshot::Spool,
}

impl Receiving {
    /// Takes the place of an older stream, but of none of a newer leader.
    fn begin(&self, stream: Stream) -> Result<(), String> {
        let mut receiving = self.0.lock();
        if let Some(other) = receiving.as_ref().filter(|other| is_older(&stream.vote, &other.vote)) {
            return Err(format!("a newer leader, {}, sends a snapshot", other.vote));
        }
        *receiving = Some(stream);
        Ok(())
    }

    fn write(&self, id: u64, offset: u64, bytes: Vec<u8>) -> Result<(), String> {
        let mut receiving = self.0.lock();
        let stream = receiving.as_mut().filter(|stream| stream.id == id).ok_or(OTHER)?;
        stream.spool.write(offset, bytes).map_err(|error| error.to_string())
    }

    fn end(&self, id: u64) -> Result<Stream, String> {
        Ok(self.0.lock().take_if(|stream| stream.id == id).ok_or(OTHER)?)
    }
}

/// Votes of one term for two members come after neither.
fn is_older(vote: &Vote, known: &Vote) -> bool {
    vote.partial_cmp(known).is_none_or(std::cmp::Ordering::is_lt)
}

const OTHER: &str = "another snapshot has begun";

/// Why these entries can be none of a log: openraft stops where one is missing.
pub(super) fn gap(request: &AppendEntriesRequest<Types>) -> Option<String> {
    let mut before = request.prev_log_id;
    request.entries.iter().map(|entry| entry.log_id).find_map(|log| {
        let last = before.replace(log);
        let follows = last.map_or(0, |last| last.index + 1) == log.index && last.is_none_or(|last| last < log);
        (!follows).then(|| format!("the entry {log} does not follow on {last:?}"))
    })
}

impl Raft {
    /// Answers a call of another member.
    pub(crate) async fn answer(&self, request: RaftRequest, machine: &Machine, receiving: &Receiving) -> RaftAnswer {
        let failed = |error: &dyn std::fmt::Display| RaftAnswer::Failed(error.to_string());
        match request {
            RaftRequest::Append(request) => {
                if let Some(problem) = gap(&request) {
                    return failed(&problem);
                }
                self.silence.breaks();
                let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
                let answer = match self.raft.append_entries(request).await {
                    Ok(answer) => answer,
                    Err(error) => return failed(&error),
                };
                // Whoever says that it has entries has them on its disk. A heartbeat names what the leader knows already.
                let has = match &answer {
                    AppendEntriesResponse::Success => last,
                    AppendEntriesResponse::PartialSuccess(last) => *last,
                    AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => None,
                };
                match self.log.durable(has.map_or(0, |log| log.index)).await {
                    Ok(()) => RaftAnswer::Append(answer),
                    Err(error) => failed(&error),
                }
            }
            RaftRequest::TakeOver if self.stand().await => RaftAnswer::Taken,
            RaftRequest::TakeOver => failed(&"Raft has stopped"),
            RaftRequest::Vote(request) => {
                self.silence.asked(request.vote.leader_id().term);
                match self.raft.vote(request).await {
                    // Less than a millisecond is not told: a silence must not look longer than it is.
                    Ok(answer) => RaftAnswer::Vote(answer, self.silence.last().elapsed().as_millis() as u64),
                    Err(error) => failed(&error),
                }
            }
            RaftRequest::SnapshotBegin { stream, vote, meta } => {
                let known = self.raft.metrics().borrow().vote;
                if known > vote {
                    // Whoever led in an older term learns of it here, perhaps from nobody else.
                    return RaftAnswer::Installed(known);
                }
                if !vote.is_committed() || is_older(&vote, &known) {
                    return failed(&format!("{vote} is not the vote of a leader that is known here, {known}"));
                }
                let spool = match machine.receive() {
                    Ok(spool) => spool,
                    Err(error) => return failed(&error),
                };
                match receiving.begin(Stream { id: stream, vote, meta, spool }) {
                    Ok(()) => RaftAnswer::Taken,
                    Err(problem) => failed(&problem),
                }
            }
            RaftRequest::SnapshotChunk { stream, offset, bytes } => match receiving.write(stream, offset, bytes) {
                Ok(()) => RaftAnswer::Taken,
                Err(problem) => failed(&problem),
            },
            RaftRequest::SnapshotEnd { stream } => match receiving.end(stream) {
                Ok(stream) => self.take_in(machine, stream).await.unwrap_or_else(|problem| failed(&problem)),
                Err(problem) => failed(&problem),
            },
            RaftRequest::Compare { index } => RaftAnswer::Compared(machine.sum_at(index)),
            RaftRequest::Differs { index, sum } => {
                if machine.sum_at(index).is_some_and(|own| own != sum) {
                    self.stop_differing(machine, index);
                }
                RaftAnswer::Taken
            }
        }
    }

    /// Installs a snapshot that is whole. What is damaged, is not what was announced, or cannot be put on the disk is refused
    /// before Raft hears of it, and costs no more than another try.
    async fn take_in(&self, machine: &Machine, stream: Stream) -> Result<RaftAnswer, String> {
        let Stream { vote, meta, spool, .. } = stream;
        let announced = meta.clone();
        let check = move || spool.finish().map_err(|error| error.to_string())?.check(&announced);
        let checked = machine.place().blocking(check).await;
        let received = checked.map_err(|error| error.to_string()).flatten().inspect_err(|problem| {
            tracing::warn!(target: "divider::raft", problem, "a snapshot that came in is refused");
        })?;
        let snapshot = Box::new(SnapshotData::Received(Arc::new(Mutex::new(Some(received)))));
        let installed = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
        installed.map(|answer| RaftAnswer::Installed(answer.vote)).map_err(|error| error.to_string())
    }
}

impl Raft {
    /// If this member leads: has the voter lead that has all entries, which wins with its own vote and this member's where
    /// there are three. A leader that ends without it costs the others an election.
    pub(crate) async fn hand_over(&self, links: &Links) {
        // An entry that came after the heir has been chosen would cost it this member's vote.
        self.ending.store(true, std::sync::atomic::Ordering::Relaxed);
        let hand_over = async {
            let heir = loop {
                tokio::time::sleep(LOOK).await;
                let view = self.view();
                if !view.leads {
                    return;
                }
                let (last, replicated) = (self.last_log_index(), self.replicated().unwrap_or_default());
                let has_all = |id: &u64| replicated.get(id).copied().flatten() == Some(last);
                let mut others = view.members;
                others.retain(|id, (_, votes)| *votes && *id != self.id);
                if others.is_empty() {
                    return;
                }
                if let Some((_, (peer, _))) = others.into_iter().find(|(id, _)| has_all(id)) {
                    break peer;
                }
            };
            // Each heartbeat would keep the others from voting for the heir.
            self.quorum.hush();
            let take_over = Request::Raft(RaftRequest::TakeOver);
            // One that does not know of this refuses, and an election follows as if nobody had asked.
            if links.call(&Target::member(&heir), Class::Raft, &take_over, HAND_OVER).await.is_ok() {
                // It needs this member's vote, so it must be heard of before this one goes.
                loop {
                    let changed = self.changes();
                    if self.view().leader == Some(heir.id) {
                        return;
                    }
                    changed.await;
                }
            }
        };
        let _ = tokio::time::timeout(HAND_OVER, hand_over).await;
    }
}

/// Makes a [`Line`] to each member.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) links: Arc<Links>,
    pub(super) log: Log,
    pub(super) quorum: Quorum,
    pub(super) silence: Silence,
    pub(super) ground: Arc<dyn Ground>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Line;

    async fn new_client(&mut self, _: u64, peer: &Peer) -> Line {
        Line { network: self.clone(), target: Target::member(peer), sent: None, acknowledged: None }
    }
}

/// Raft's calls to one member.
#[derive(Debug)]
pub(super) struct Line {
    network: Network,
    target: Target,
    /// Entries that are on their way, perhaps for longer than openraft waits.
    sent: Option<Sent>,
    /// The last entry that it has said it has.
    acknowledged: Option<LogId>,
}

#[derive(Debug)]
struct Sent {
    vote: Vote,
    before: Option<LogId>,
    last: Option<LogId>,
    answer: JoinHandle<Result<RaftAnswer, LinkError>>,
}

impl Line {
    async fn call(&self, class: Class, request: RaftRequest, limit: Duration) -> Result<RaftAnswer, LinkError> {
        raft_answer(self.network.links.call(&self.target, class, &Request::Raft(request), limit).await?)
    }

    /// Sends entries or a heartbeat, and goes on to wait for the answer when the caller does not any more.
    fn append(&self, request: AppendEntriesRequest<Types>) -> JoinHandle<Result<RaftAnswer, LinkError>> {
        let (links, quorum, target) = (self.network.links.clone(), self.network.quorum.clone(), self.target.clone());
        let sent = (request.vote.leader_id().term, Instant::now());
        tokio::spawn(async move {
            let request = Request::Raft(RaftRequest::Append(request));
            let answer = raft_answer(links.call(&target, Class::Raft, &request, APPEND).await?)?;
            let follows = !matches!(answer, RaftAnswer::Append(AppendEntriesResponse::HigherVote(_)));
            target.id.inspect(|id| quorum.heard(*id, follows.then_some(sent)));
            Ok(answer)
        })
    }

    /// A member that has no more what it had acknowledged is sent it again: nobody else is to suffer for it. But it may have
    /// voted as well, and others may have relied on its word.
    fn compare(&mut self, answer: &AppendEntriesResponse<u64>, before: Option<LogId>, last: Option<LogId>) {
        let has = match answer {
            AppendEntriesResponse::Success => last,
            AppendEntriesResponse::PartialSuccess(last) => *last,
            AppendEntriesResponse::Conflict if before.is_some() && before <= self.acknowledged => {
                let problem = "a member has lost what it had acknowledged: an older copy of its directory was put back, or its \
                               disk did not keep what it said it had written. Entries that only it and a lost member had may \
                               be gone: remove it, and let it join again with an empty directory";
                tracing::error!(target: "divider::raft", member = %self.target.address, problem);
                self.acknowledged = None;
                return;
            }
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => return,
        };
        self.acknowledged = self.acknowledged.max(has);
    }

    /// Sends entries, or waits for the answer to the call with which they were sent before. Cancel safe: what is on its
    /// way stays there.
    async fn send(&mut self, request: AppendEntriesRequest<Types>) -> Result<RaftAnswer, LinkError> {
        let (vote, before) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id);
        // More entries may have come since; then the ones on their way are the first of them.
        let same = |sent: &Sent| (sent.vote, sent.before) == (vote, before) && sent.last <= last;
        if !self.sent.as_ref().is_some_and(same) {
            let answer = self.append(request);
            self.sent = Some(Sent { vote, before, last, answer });
        }
        let Some(sent) = self.sent.as_mut() else { return Err(LinkError::Lost("nothing was sent".into())) };
        let answer = ended((&mut sent.answer).await);
        let reached = sent.last;
        self.sent = None;
        match answer? {
            RaftAnswer::Append(AppendEntriesResponse::Success) if reached < last => {
                Ok(RaftAnswer::Append(AppendEntriesResponse::PartialSuccess(reached)))
            }
            answer => Ok(answer),
        }
    }
}

fn raft_answer(answer: Answer) -> Result<RaftAnswer, LinkError> {
    match answer {
        Answer::Raft(RaftAnswer::Failed(problem)) => Err(LinkError::Lost(problem)),
        Answer::Raft(answer) => Ok(answer),
        Answer::Fault(fault) => Err(LinkError::Lost(format!("{fault:?}"))),
        _ => Err(LinkError::Lost("an answer to another question".into())),
    }
}

/// What came of a task.
fn ended(task: Result<Result<RaftAnswer, LinkError>, tokio::task::JoinError>) -> Result<RaftAnswer, LinkError> {
    task.unwrap_or_else(|error| Err(LinkError::Lost(error.to_string())))
}

type CallError = RPCError<u64, Peer, RaftError<u64>>;

fn rpc(error: LinkError) -> CallError {
    match error {
        // There is nobody: openraft waits a little before it tries again.
        LinkError::NotSent(_) | LinkError::TooOld(..) => Unreachable::new(&error).into(),
        _ => NetworkError::new(&error).into(),
    }
}

fn unexpected() -> CallError {
    NetworkError::new(&LinkError::Lost("an answer to another question".into())).into()
}

impl RaftNetwork<Types> for Line {
    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        if self.network.quorum.is_silent() {
            return Err(rpc(LinkError::NotSent("no quorum answers, so this leader is silent".into())));
        }
        if let Some(commit) = request.leader_commit {
            if request.entries.is_empty() {
                // Most often this disk is about as fast as the others', and followers should not have to wait for the next
                // heartbeat to hear of it. What comes of it is seen below.
                let _ = tokio::time::timeout(DISK, self.network.log.durable(commit.index)).await;
            }
            request.leader_commit = self.network.log.durable_until(commit);
        }
        let (before, last) = (request.prev_log_id, request.entries.last().map(|entry| entry.log_id));
        let answer =
            if request.entries.is_empty() { ended(self.append(request).await) } else { self.send(request).await };
        match answer.map_err(rpc)? {
            RaftAnswer::Append(answer) => {
                self.compare(&answer, before, last.or(before));
                Ok(answer)
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(&mut self, request: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, CallError> {
        let term = request.vote.leader_id().term;
        self.network.silence.stands(term);
        match self.call(Class::Raft, RaftRequest::Vote(request), option.hard_ttl()).await.map_err(rpc)? {
            RaftAnswer::Vote(answer, ago) => {
                if answer.vote_granted {
                    self.network.silence.voted(term, Duration::from_millis(ago));
                }
                Ok(answer)
            }
            _ => Err(unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let send = async {
            let limit = option.hard_ttl();
            let io = |error: std::io::Error| StreamingError::Network(NetworkError::new(&error));
            // openraft begins again at once, unless it is told that nobody is there: a receiver whose disk is full would be sent
            // the same as fast as the network is.
            let lost = |error: LinkError| StreamingError::Unreachable(Unreachable::new(&error));
            let stream = (self.network.ground.draw() >> 64) as u64;
            let begin = RaftRequest::SnapshotBegin { stream, vote, meta: snapshot.meta };
            match self.call(Class::Bulk, begin, limit).await.map_err(lost)? {
                RaftAnswer::Installed(newer) if newer > vote => return Ok(SnapshotResponse::new(newer)),
                RaftAnswer::Taken => {}
                _ => return Err(lost(LinkError::Lost("an answer to another question".into()))),
            }
            let mut offset = 0;
            loop {
                let bytes = snapshot.snapshot.chunk(offset, CHUNK).map_err(io)?;
                if bytes.is_empty() {
                    break;
                }
                let next = offset + bytes.len() as u64;
                self.call(Class::Bulk, RaftRequest::SnapshotChunk { stream, offset, bytes }, limit)
                    .await
                    .map_err(lost)?;
                offset = next;
            }
            // The receiver decodes and writes it all before it answers.
            match self.call(Class::Bulk, RaftRequest::SnapshotEnd { stream }, limit).await.map_err(lost)? {
                RaftAnswer::Installed(vote) => Ok(SnapshotResponse::new(vote)),
                _ => Err(lost(LinkError::Lost("an answer to another question".into()))),
            }
        };
        tokio::select! {
            biased;
            sent = send => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}
