//! What a member does with Raft's calls of others.

use std::sync::Arc;

use openraft::{
    Snapshot,
    raft::{AppendEntriesRequest, AppendEntriesResponse},
};
use parking_lot::Mutex;

use crate::{
    consensus::{raft::Raft, snapshots, state_machine::StateMachine},
    protocol::{
        raft_messages::{RaftAnswer, RaftRequest},
        snapshot::{SnapshotData, SnapshotMeta},
        types::{Types, Vote},
    },
};

/// The snapshot that a member is receiving: at most one, since a member follows at most one leader. One that is whole is
/// none of these any more: what begins later does not touch it.
#[derive(Debug, Default)]
pub(crate) struct Receiving(Mutex<Option<Stream>>);

#[derive(Debug)]
struct Stream {
    id: u64,
    vote: Vote,
    meta: SnapshotMeta,
    spool: snapshots::Spool,
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
    pub(crate) async fn answer(
        &self,
        request: RaftRequest,
        machine: &StateMachine,
        receiving: &Receiving,
    ) -> RaftAnswer {
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
            RaftRequest::TimeoutNow if self.stand().await => RaftAnswer::Taken,
            RaftRequest::TimeoutNow => failed(&"Raft has stopped"),
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
    async fn take_in(&self, machine: &StateMachine, stream: Stream) -> Result<RaftAnswer, String> {
        let Stream { vote, meta, spool, .. } = stream;
        let announced = meta.clone();
        let check = move || spool.finish().map_err(|error| error.to_string())?.check(&announced);
        let checked = machine.data_dir().blocking(check).await;
        let received = checked.map_err(|error| error.to_string()).flatten().inspect_err(|problem| {
            tracing::warn!(target: "divider::raft", problem, "a snapshot that came in is refused");
        })?;
        let snapshot = Box::new(SnapshotData::Received(Arc::new(Mutex::new(Some(received)))));
        let installed = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
        installed.map(|answer| RaftAnswer::Installed(answer.vote)).map_err(|error| error.to_string())
    }
}
