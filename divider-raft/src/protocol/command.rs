//! What is replicated: the entry of the log, and the answer that applying it gives.
//!
//! The types here are on disk and on the wire of programs of other versions: variants and fields are only ever appended,
//! and recorded bytes of each are kept as fixtures.

use std::sync::Arc;

use divider_core::{Applied, Group, Op, SessionId, Term};
use serde::{Deserialize, Serialize};

use crate::format::KEEPS_CLOCK;

/// One entry of the log: many callers' requests, decided together. Cloning is cheap, since the log keeps the newest
/// entries in memory while they are sent to each follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Command(pub(crate) Arc<Body>);

/// The versions of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Body {
    /// The first version.
    V1 {
        /// The Raft term in which beats were compared for the expiries in here. In another term they may have moved, so
        /// that an expiry is then refused when it is applied.
        raft_term: u64,
        /// The requests, each atomic by itself, in order.
        steps: Vec<Step>,
    },
    /// The second version.
    V2 {
        /// As in the first.
        raft_term: u64,
        /// The proposer's clock, in microseconds since 1970. A group's first term and all its tokens are above it, and so above
        /// those of an earlier life that all members have lost.
        clock: u64,
        /// As in the first.
        steps: Vec<Step>,
    },
    /// The third version: as the second, and a group that begins with this entry may have had a life before, of which all
    /// members have lost their disks. So grants are held back in it, as in a new lineage.
    V3 {
        /// As in the first.
        raft_term: u64,
        /// As in the second.
        clock: u64,
        /// As in the first.
        steps: Vec<Step>,
    },
}

impl Body {
    /// In this format, with grants held back in groups that begin with it where it has a form for that.
    pub(crate) fn new(format: u8, raft_term: u64, clock: u64, holds: bool, steps: Vec<Step>) -> Self {
        match format >= KEEPS_CLOCK {
            false => Self::V1 { raft_term, steps },
            true if holds => Self::V3 { raft_term, clock, steps },
            true => Self::V2 { raft_term, clock, steps },
        }
    }

    /// The oldest format that has a form for it.
    pub(crate) fn format(&self) -> u8 {
        match self {
            Self::V1 { .. } => 1,
            Self::V2 { .. } | Self::V3 { .. } => 2,
        }
    }

    /// The Raft term in which beats were compared.
    pub(crate) fn raft_term(&self) -> u64 {
        match self {
            Self::V1 { raft_term, .. } | Self::V2 { raft_term, .. } | Self::V3 { raft_term, .. } => *raft_term,
        }
    }

    /// What a group's first term and its tokens are above.
    pub(crate) fn clock(&self) -> u64 {
        match self {
            Self::V1 { .. } => 0,
            Self::V2 { clock, .. } | Self::V3 { clock, .. } => *clock,
        }
    }

    /// Whether grants are held back in a group that begins with it.
    pub(crate) fn holds(&self) -> bool {
        matches!(self, Self::V3 { .. })
    }

    /// The requests, each atomic by itself, in order.
    pub(crate) fn steps(&self) -> &[Step] {
        match self {
            Self::V1 { steps, .. } | Self::V2 { steps, .. } | Self::V3 { steps, .. } => steps,
        }
    }
}

/// One caller's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// A batch of ops for one group's ledger.
    Apply {
        /// Whose ledger.
        group: Group,
        /// The ops.
        ops: Vec<Op>,
    },
    /// Makes a session the leader of its group, where the leadership still is the one that was looked at.
    Lead {
        /// Whose ledger.
        group: Group,
        /// The new leader.
        session: SessionId,
        /// The term that it follows on.
        over: Term,
    },
    /// Frees the leadership.
    Resign {
        /// Whose ledger.
        group: Group,
        /// The leader.
        session: SessionId,
        /// Its term.
        term: Term,
    },
}

impl Step {
    /// Whose ledger.
    pub(crate) fn group(&self) -> &Group {
        match self {
            Self::Apply { group, .. } | Self::Lead { group, .. } | Self::Resign { group, .. } => group,
        }
    }

    /// About how many bytes the step takes in the log.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Apply { group, ops } => 16 + group.as_str().len() + ops.iter().map(Op::bytes).sum::<usize>(),
            Self::Lead { group, .. } | Self::Resign { group, .. } => 64 + group.as_str().len(),
        }
    }
}

/// What came of an entry: one answer for each step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply(pub(crate) Vec<Done>);

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Done {
    /// Of [`Step::Apply`].
    Applied(Applied),
    /// Of the others.
    Looked,
}
