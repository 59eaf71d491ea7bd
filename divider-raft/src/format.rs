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

use crate::error::TooOld;

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
    pub(crate) fn supported(&self) -> SupportedFormats {
        let written = |written: &Arc<AtomicU8>| written.load(Ordering::Relaxed).max(OLDEST);
        SupportedFormats {
            lowest: OLDEST.into(),
            highest: self.reads.into(),
            writes: self.written.as_ref().map_or(0, written).into(),
        }
    }
}

/// What a program can read and writes, as numbers of the format of everything that crosses a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SupportedFormats {
    /// The lowest format that it reads.
    pub(crate) lowest: u16,
    /// The highest format that it reads.
    pub(crate) highest: u16,
    /// The format of what its cluster writes for all members to read: a member that does not read this one is too old. 0 from
    /// a client, which reads nothing of that.
    pub(crate) writes: u16,
}

impl SupportedFormats {
    /// The highest format that both sides read.
    pub(crate) fn negotiate(self, theirs: Self) -> Result<u16, TooOld> {
        let (mine_needed, theirs_needed) = (theirs.asks_of(self), self.asks_of(theirs));
        if self.highest < mine_needed {
            return Err(TooOld { needs: mine_needed, reads: self.highest, here: true });
        }
        if theirs.highest < theirs_needed {
            return Err(TooOld { needs: theirs_needed, reads: theirs.highest, here: false });
        }
        Ok(self.highest.min(theirs.highest))
    }

    /// What the other one must read at least.
    fn asks_of(self, other: Self) -> u16 {
        if other.writes == 0 { self.lowest } else { self.lowest.max(self.writes) }
    }

    pub(crate) fn to_bytes(self) -> [u8; 6] {
        let [l, h, w] = [self.lowest, self.highest, self.writes].map(u16::to_le_bytes);
        [l[0], l[1], h[0], h[1], w[0], w[1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported(lowest: u16, highest: u16, writes: u16) -> SupportedFormats {
        SupportedFormats { lowest, highest, writes }
    }

    #[test]
    fn two_programs_settle_on_the_highest_format_that_both_read() {
        for (mine, theirs, settled) in [
            (supported(2, 3, 2), supported(2, 2, 2), 2),
            (supported(2, 3, 3), supported(2, 4, 3), 3),
            (supported(3, 5, 4), supported(2, 4, 3), 4),
            (supported(1, 1, 0), supported(1, 2, 2), 1),
        ] {
            assert_eq!(mine.negotiate(theirs), Ok(settled), "{mine:?} {theirs:?}");
            assert_eq!(theirs.negotiate(mine), Ok(settled), "{theirs:?} {mine:?}");
        }
    }

    #[test]
    fn whoever_is_too_old_is_told_what_is_needed() {
        for (old, new, needs) in [
            (supported(2, 2, 2), supported(3, 4, 3), 3),
            // It could still be read, but does not read what is written.
            (supported(2, 2, 2), supported(2, 4, 4), 4),
            (supported(1, 1, 1), supported(2, 2, 2), 2),
            // A client reads nothing of what is written.
            (supported(1, 1, 0), supported(2, 3, 3), 2),
        ] {
            let reads = old.highest;
            assert_eq!(old.negotiate(new), Err(TooOld { needs, reads, here: true }));
            assert_eq!(new.negotiate(old), Err(TooOld { needs, reads, here: false }));
        }
    }
}
