//! Raft's own calls and their answers; whose words a call is, and whether it can be true: looked at before openraft sees it.

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use crate::protocol::{
    snapshot::SnapshotMeta,
    types::{Types, Vote},
};

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
    TimeoutNow,
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

impl RaftRequest {
    /// The member in whose name it speaks: only that one may say it. `None` where it does not say.
    pub(crate) fn speaker(&self) -> Option<u64> {
        let vote = match self {
            Self::Append(request) => &request.vote,
            Self::Vote(request) => &request.vote,
            Self::SnapshotBegin { vote, .. } => vote,
            Self::SnapshotChunk { .. }
            | Self::SnapshotEnd { .. }
            | Self::TimeoutNow
            | Self::Compare { .. }
            | Self::Differs { .. } => return None,
        };
        vote.leader_id().voted_for()
    }

    /// What is wrong with it whoever says it. openraft believes what a leader says, and writes it down.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        match self {
            Self::Append(request) => flaw(request),
            Self::Vote(request) => names_nobody(&request.vote),
            Self::SnapshotBegin { vote, .. } => names_nobody(vote),
            Self::SnapshotChunk { .. }
            | Self::SnapshotEnd { .. }
            | Self::TimeoutNow
            | Self::Compare { .. }
            | Self::Differs { .. } => None,
        }
    }
}

fn names_nobody(vote: &Vote) -> Option<&'static str> {
    vote.leader_id().voted_for().is_none().then_some("it names nobody whose word it is")
}

/// Entries follow on the one before them without a gap, in terms that do not fall and are not after their leader's.
fn flaw(request: &AppendEntriesRequest<Types>) -> Option<&'static str> {
    let mut before = request.prev_log_id;
    for entry in &request.entries {
        let id = entry.log_id;
        if id.index != before.map_or(0, |before| before.index.saturating_add(1)) {
            return Some("its entries do not follow on one another");
        }
        if before.is_some_and(|before| before.leader_id.term > id.leader_id.term) {
            return Some("the terms of its entries fall");
        }
        before = Some(id);
    }
    let term = request.vote.leader_id().term;
    if before.is_some_and(|last| last.leader_id.term > term) {
        return Some("its entries are of a later term than its leader");
    }
    names_nobody(&request.vote)
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;
    use crate::protocol::types::{Entry, LogId};

    fn append(before: Option<(u64, u64)>, entries: &[(u64, u64)]) -> RaftRequest {
        let id = |(term, index): (u64, u64)| LogId::new(CommittedLeaderId::new(term, 1), index);
        let entry = |at: &(u64, u64)| Entry { log_id: id(*at), payload: EntryPayload::Blank };
        RaftRequest::Append(AppendEntriesRequest {
            vote: Vote::new_committed(5, 1),
            prev_log_id: before.map(id),
            entries: entries.iter().map(entry).collect(),
            leader_commit: None,
        })
    }

    #[test]
    fn entries_with_a_hole_or_of_impossible_terms_are_found_out() {
        assert_eq!(append(None, &[]).flaw(), None);
        assert_eq!(append(None, &[(0, 0), (1, 1), (5, 2)]).flaw(), None);
        assert_eq!(append(Some((2, 7)), &[(2, 8), (3, 9)]).flaw(), None);
        for flawed in [
            append(None, &[(5, 500), (5, 900)]),
            append(None, &[(5, 1)]),
            append(Some((2, 7)), &[(2, 9)]),
            append(Some((2, 7)), &[(2, 8), (2, 8)]),
            append(Some((2, u64::MAX)), &[(2, 0)]),
            append(Some((3, 7)), &[(2, 8)]),
            append(Some((3, 7)), &[(6, 8)]),
            append(Some((6, 7)), &[]),
        ] {
            assert!(flawed.flaw().is_some(), "{flawed:?}");
        }
    }

    #[test]
    fn a_call_says_in_whose_name_it_speaks() {
        assert_eq!(append(None, &[]).speaker(), Some(1));
        assert_eq!(RaftRequest::TimeoutNow.speaker(), None);
    }
}
