//! Raft's calls between members, over the [`Links`].
//!
//! openraft gives each call a time limit and drops the future; a link outlives that, and a dial goes on, so that a slow
//! handshake is not begun again for ever. A peer that accepts and never answers costs its own calls only.
//!
//! The limit of a call with entries is one heartbeat, and openraft sends the same entries again after it. Where they take
//! longer, because there are many of them or a disk stalls, they would be sent again and again and never be through. So
//! the first call goes on, heartbeats pass it, and whoever would send the same again waits for its answer.

use std::{collections::HashMap, io::Read, sync::Arc, time::Duration};

use openraft::{
    RaftNetwork, RaftNetworkFactory, Snapshot,
    error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Log, LogId, Machine, Peer, Raft, SnapshotMeta, Types, Vote, quorum::Quorum, snapshot};
use crate::{
    link::{Class, LinkError, Links, Target},
    wire::{Answer, Request},
};

/// How long a heartbeat waits for this member's own disk.
const DISK: Duration = Duration::from_millis(10);
/// How long entries may take to be taken in.
const ENTRIES: Duration = Duration::from_secs(2);
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
}

/// The answers, in the same order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum RaftAnswer {
    /// Of an append.
    Append(AppendEntriesResponse<u64>),
    /// Of a vote.
    Vote(VoteResponse<u64>),
    /// Of a snapshot's beginning, and of its chunks.
    Taken,
    /// Of a snapshot's end: the receiver's vote.
    Installed(Vote),
    /// Raft has stopped there, or the disk failed.
    Failed(String),
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
            Self::Vote(vote) => Self::Vote(vote.clone()),
            Self::Taken => Self::Taken,
            Self::Installed(vote) => Self::Installed(*vote),
            Self::Failed(problem) => Self::Failed(problem.clone()),
        }
    }
}

impl PartialEq for RaftAnswer {
    fn eq(&self, other: &Self) -> bool {
        postcard::to_stdvec(self).ok() == postcard::to_stdvec(other).ok()
    }
}

/// The snapshot that a member is receiving: at most one, since a member follows at most one leader.
#[derive(Debug, Default)]
pub(crate) struct Receiving(Mutex<HashMap<u64, (Vote, SnapshotMeta, snapshot::Spool)>>);

impl Raft {
    /// Answers a call of another member.
    pub(crate) async fn answer(&self, request: RaftRequest, machine: &Machine, receiving: &Receiving) -> RaftAnswer {
        let failed = |error: &dyn std::fmt::Display| RaftAnswer::Failed(error.to_string());
        match request {
            RaftRequest::Append(request) => {
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
            RaftRequest::Vote(request) => match self.raft.vote(request).await {
                Ok(answer) => RaftAnswer::Vote(answer),
                Err(error) => failed(&error),
            },
            RaftRequest::SnapshotBegin { stream, vote, meta } => match machine.receive() {
                Ok(spool) => {
                    let mut receiving = receiving.0.lock();
                    receiving.clear();
                    receiving.insert(stream, (vote, meta, spool));
                    RaftAnswer::Taken
                }
                Err(error) => failed(&error),
            },
            RaftRequest::SnapshotChunk { stream, offset, bytes } => {
                let mut receiving = receiving.0.lock();
                match receiving.get_mut(&stream).map(|(_, _, spool)| spool.write(offset, &bytes)) {
                    Some(Ok(())) => RaftAnswer::Taken,
                    Some(Err(error)) => failed(&error),
                    None => failed(&"another snapshot has begun"),
                }
            }
            RaftRequest::SnapshotEnd { stream } => {
                let received = receiving.0.lock().remove(&stream);
                let Some((vote, meta, spool)) = received else { return failed(&"another snapshot has begun") };
                let snapshot = Snapshot { meta, snapshot: Box::new(spool.finish()) };
                match self.raft.install_full_snapshot(vote, snapshot).await {
                    Ok(answer) => RaftAnswer::Installed(answer.vote),
                    Err(error) => failed(&error),
                }
            }
        }
    }
}

/// Makes a [`Line`] to each member.
#[derive(Debug)]
pub(super) struct Network {
    links: Arc<Links>,
    log: Log,
    quorum: Quorum,
}

impl Network {
    pub(super) fn new(links: Arc<Links>, log: Log, quorum: Quorum) -> Self {
        Self { links, log, quorum }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Line;

    async fn new_client(&mut self, _: u64, peer: &Peer) -> Line {
        let (links, log, quorum) = (self.links.clone(), self.log.clone(), self.quorum.clone());
        Line { links, target: Target::member(peer), log, quorum, sent: None }
    }
}

/// Raft's calls to one member.
#[derive(Debug)]
pub(super) struct Line {
    links: Arc<Links>,
    target: Target,
    log: Log,
    quorum: Quorum,
    /// Entries that are on their way, perhaps for longer than openraft waits.
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    vote: Vote,
    before: Option<LogId>,
    last: Option<LogId>,
    answer: JoinHandle<Result<RaftAnswer, LinkError>>,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

impl Line {
    fn call(
        &self,
        class: Class,
        request: RaftRequest,
        limit: Duration,
    ) -> impl Future<Output = Result<RaftAnswer, LinkError>> + Send + use<> {
        let (links, target) = (self.links.clone(), self.target.clone());
        async move {
            match links.call(&target, class, &Request::Raft(request), limit).await? {
                Answer::Raft(RaftAnswer::Failed(problem)) => Err(LinkError::Lost(problem)),
                Answer::Raft(answer) => Ok(answer),
                Answer::Fault(fault) => Err(LinkError::Lost(format!("{fault:?}"))),
                _ => Err(LinkError::Lost("an answer to another question".into())),
            }
        }
    }

    /// Sends entries, or waits for the answer to the call with which they were sent before. Cancel safe: what is on its
    /// way stays there.
    async fn send(&mut self, request: AppendEntriesRequest<Types>) -> Result<RaftAnswer, LinkError> {
        let (vote, before) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id);
        // More entries may have come since; then the ones on their way are the first of them.
        let same = |sent: &Sent| (sent.vote, sent.before) == (vote, before) && sent.last <= last;
        if !self.sent.as_ref().is_some_and(same) {
            let answer = tokio::spawn(self.call(Class::Raft, RaftRequest::Append(request), ENTRIES));
            self.sent = Some(Sent { vote, before, last, answer });
        }
        let Some(sent) = self.sent.as_mut() else { return Err(LinkError::Lost("nothing was sent".into())) };
        let answer = (&mut sent.answer).await.unwrap_or_else(|error| Err(LinkError::Lost(error.to_string())));
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

type CallError = RPCError<u64, Peer, RaftError<u64>>;

fn rpc(error: LinkError) -> CallError {
    match error {
        // There is nobody: openraft waits a little before it tries again.
        LinkError::NotSent(_) => Unreachable::new(&error).into(),
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
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        if self.quorum.is_lost() {
            return Err(rpc(LinkError::NotSent("no quorum answers, so this leader is silent".into())));
        }
        if let Some(commit) = request.leader_commit {
            if request.entries.is_empty() {
                // Most often this disk is about as fast as the others', and followers should not have to wait for the next
                // heartbeat to hear of it. What comes of it is seen below.
                let _ = tokio::time::timeout(DISK, self.log.durable(commit.index)).await;
            }
            request.leader_commit = self.log.durable_until(commit);
        }
        let answer = if request.entries.is_empty() {
            self.call(Class::Raft, RaftRequest::Append(request), option.hard_ttl()).await
        } else {
            self.send(request).await
        };
        match answer.map_err(rpc)? {
            RaftAnswer::Append(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn vote(&mut self, request: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, CallError> {
        match self.call(Class::Raft, RaftRequest::Vote(request), option.hard_ttl()).await.map_err(rpc)? {
            RaftAnswer::Vote(answer) => Ok(answer),
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
            let lost = |error: LinkError| match error {
                LinkError::NotSent(_) => StreamingError::Unreachable(Unreachable::new(&error)),
                _ => StreamingError::Network(NetworkError::new(&error)),
            };
            let stream = uuid::Uuid::new_v4().as_u64_pair().0;
            let begin = RaftRequest::SnapshotBegin { stream, vote, meta: snapshot.meta };
            self.call(Class::Bulk, begin, limit).await.map_err(lost)?;
            let mut content = snapshot::chunks(&snapshot.snapshot).map_err(io)?;
            let mut offset = 0;
            loop {
                let mut bytes = Vec::with_capacity(CHUNK);
                content.by_ref().take(CHUNK as u64).read_to_end(&mut bytes).map_err(io)?;
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
            sent = send => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}
