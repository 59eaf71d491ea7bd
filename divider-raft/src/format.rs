//! The formats that a cluster can be written in.
//!
//! # Why
//! A rolling deploy is the normal case: members of the version before and of the next one work side by side for a while, and
//! a deploy must be able to be rolled back. So each member says in the membership which formats it reads, and the cluster is
//! written in one that all its members read, whether they can be reached or not. The leader lets it step up when all of them
//! have been able to read a newer one for [`RaftConfig::step_after`](crate::RaftConfig::step_after), or when an operator
//! [says so](crate::RaftStore::step_up). Whoever is too old for what is written is told so at the handshake, and may not
//! join. Clients read nothing of what is written, so nobody waits for them and no step shuts them out.
//!
//! # How
//! The step is an entry: the first one of its format. Whoever has applied it, or a snapshot with its number, knows of it. A
//! leader decides about a step and about whom it takes in one after the other (`Member::changing`), and knows all that
//! earlier leaders have decided before it does either. So no member is taken in that cannot read what is on its way.
//!
//! | format | what it adds |
//! | --- | --- |
//! | 1 | everything but what follows |
//! | 2 | entries carry the clock of whoever proposed them, and a group's first term is above it |
//!
//! A snapshot carries the number of the format that the cluster was written in. Its body is the same in both.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use crate::wire::Speaks;

/// The oldest format that this program reads.
pub(crate) const OLDEST: u8 = 1;
/// The newest format that this program reads.
pub(crate) const NEWEST: u8 = 2;
/// From this one on an entry carries its proposer's clock.
pub(crate) const KEEPS_CLOCK: u8 = 2;

/// What a process reads, and in which format its cluster is written as far as it knows.
#[derive(Clone, Debug)]
pub(crate) struct Formats {
    reads: u8,
    /// `None` for a client.
    written: Option<Arc<AtomicU8>>,
}

impl Formats {
    /// Of a member whose machine keeps the number of what is written.
    pub(crate) fn of_member(reads: u8, written: Arc<AtomicU8>) -> Self {
        Self { reads, written: Some(written) }
    }

    /// Of a process that keeps nothing.
    pub(crate) fn of_client(reads: u8) -> Self {
        Self { reads, written: None }
    }

    /// Of the same program, where it keeps nothing.
    pub(crate) fn of_a_stranger(&self) -> Self {
        Self::of_client(self.reads)
    }

    /// As it is said at a handshake.
    pub(crate) fn speaks(&self) -> Speaks {
        let written = |written: &Arc<AtomicU8>| written.load(Ordering::Relaxed).max(OLDEST);
        Speaks {
            lowest: OLDEST.into(),
            highest: self.reads.into(),
            writes: self.written.as_ref().map_or(0, written).into(),
        }
    }
}
