//! Raft's calls between members, over the [`ConnectionPool`].
//!
//! openraft gives each call a time limit and drops the future; a connection outlives that, and a dial goes on, so that a slow
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
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    consensus::{log::Log, quorum::Quorum, silence::Silence},
    environment::Environment,
    net::{
        client::CallError,
        pool::{ConnectionPool, Target, TrafficClass},
    },
    protocol::{
        messages::{Answer, Request},
        peer::Peer,
        raft_messages::{RaftAnswer, RaftRequest},
        types::{LogId, Types, Vote},
    },
};

/// How long a heartbeat waits for this member's own disk.
const DISK: Duration = Duration::from_millis(10);
/// How long entries may take to be taken in, and how late an answer counts as a sign of life.
const APPEND: Duration = Duration::from_secs(2);
/// Bytes of a snapshot in one call.
const CHUNK: usize = 256 << 10;

/// Makes a [`PeerNetwork`] to each member.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) pool: Arc<ConnectionPool>,
    pub(super) log: Log,
    pub(super) quorum: Quorum,
    pub(super) silence: Silence,
    pub(super) environment: Arc<dyn Environment>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = PeerNetwork;

    async fn new_client(&mut self, _: u64, peer: &Peer) -> PeerNetwork {
        PeerNetwork { network: self.clone(), target: Target::member(peer), sent: None, acknowledged: None }
    }
}

/// Raft's calls to one member.
#[derive(Debug)]
pub(super) struct PeerNetwork {
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
    answer: JoinHandle<Result<RaftAnswer, CallError>>,
}

impl PeerNetwork {
    async fn call(&self, class: TrafficClass, request: RaftRequest, limit: Duration) -> Result<RaftAnswer, CallError> {
        raft_answer(self.network.pool.call(&self.target, class, &Request::Raft(request), limit).await?)
    }

    /// Sends entries or a heartbeat, and goes on to wait for the answer when the caller does not any more.
    fn append(&self, request: AppendEntriesRequest<Types>) -> JoinHandle<Result<RaftAnswer, CallError>> {
        let (pool, quorum, target) = (self.network.pool.clone(), self.network.quorum.clone(), self.target.clone());
        let sent = (request.vote.leader_id().term, Instant::now());
        tokio::spawn(async move {
            let request = Request::Raft(RaftRequest::Append(request));
            let answer = raft_answer(pool.call(&target, TrafficClass::Raft, &request, APPEND).await?)?;
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
    async fn send(&mut self, request: AppendEntriesRequest<Types>) -> Result<RaftAnswer, CallError> {
        let (vote, before) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id);
        // More entries may have come since; then the ones on their way are the first of them.
        let same = |sent: &Sent| (sent.vote, sent.before) == (vote, before) && sent.last <= last;
        if !self.sent.as_ref().is_some_and(same) {
            let answer = self.append(request);
            self.sent = Some(Sent { vote, before, last, answer });
        }
        let Some(sent) = self.sent.as_mut() else { return Err(CallError::Lost("nothing was sent".into())) };
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

fn raft_answer(answer: Answer) -> Result<RaftAnswer, CallError> {
    match answer {
        Answer::Raft(RaftAnswer::Failed(problem)) => Err(CallError::Lost(problem)),
        Answer::Raft(answer) => Ok(answer),
        Answer::Fault(fault) => Err(CallError::Lost(format!("{fault:?}"))),
        _ => Err(CallError::Lost("an answer to another question".into())),
    }
}

/// What came of a task.
fn ended(task: Result<Result<RaftAnswer, CallError>, tokio::task::JoinError>) -> Result<RaftAnswer, CallError> {
    task.unwrap_or_else(|error| Err(CallError::Lost(error.to_string())))
}

type RpcError = RPCError<u64, Peer, RaftError<u64>>;

fn rpc(error: CallError) -> RpcError {
    match error {
        // There is nobody: openraft waits a little before it tries again.
        CallError::NotSent(_) | CallError::TooOld(..) => Unreachable::new(&error).into(),
        _ => NetworkError::new(&error).into(),
    }
}

fn unexpected() -> RpcError {
    NetworkError::new(&CallError::Lost("an answer to another question".into())).into()
}

impl RaftNetwork<Types> for PeerNetwork {
    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        if self.network.quorum.is_silent() {
            return Err(rpc(CallError::NotSent("no quorum answers, so this leader is silent".into())));
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

    async fn vote(&mut self, request: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, RpcError> {
        let term = request.vote.leader_id().term;
        self.network.silence.stands(term);
        match self.call(TrafficClass::Raft, RaftRequest::Vote(request), option.hard_ttl()).await.map_err(rpc)? {
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
            let lost = |error: CallError| StreamingError::Unreachable(Unreachable::new(&error));
            let stream = (self.network.environment.draw() >> 64) as u64;
            let begin = RaftRequest::SnapshotBegin { stream, vote, meta: snapshot.meta };
            match self.call(TrafficClass::Bulk, begin, limit).await.map_err(lost)? {
                RaftAnswer::Installed(newer) if newer > vote => return Ok(SnapshotResponse::new(newer)),
                RaftAnswer::Taken => {}
                _ => return Err(lost(CallError::Lost("an answer to another question".into()))),
            }
            let mut offset = 0;
            loop {
                let bytes = snapshot.snapshot.chunk(offset, CHUNK).map_err(io)?;
                if bytes.is_empty() {
                    break;
                }
                let next = offset + bytes.len() as u64;
                self.call(TrafficClass::Bulk, RaftRequest::SnapshotChunk { stream, offset, bytes }, limit)
                    .await
                    .map_err(lost)?;
                offset = next;
            }
            // The receiver decodes and writes it all before it answers.
            match self.call(TrafficClass::Bulk, RaftRequest::SnapshotEnd { stream }, limit).await.map_err(lost)? {
                RaftAnswer::Installed(vote) => Ok(SnapshotResponse::new(vote)),
                _ => Err(lost(CallError::Lost("an answer to another question".into()))),
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
