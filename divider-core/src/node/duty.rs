//! What a leader must be able to do. Its leadership is renewed by a call of its own, so a leader that is not let read or
//! write would stay, and the group would have none.

use std::{fmt, time::Duration};

use crate::Instant;

/// A kind of call that a leader cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Reading the group and its changes.
    Read,
    /// Reading the beats.
    Watch,
    /// Proposing.
    Propose,
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read the group",
            Self::Watch => "read who is alive",
            Self::Propose => "carry out what it decides",
        })
    }
}

/// Since when which duty fails, without one success.
#[derive(Debug, Default)]
pub(super) struct Duties(Vec<(Duty, Instant)>);

impl Duties {
    pub(super) fn failed(&mut self, duty: Duty, now: Instant) {
        if self.0.iter().all(|(failing, _)| *failing != duty) {
            self.0.push((duty, now));
        }
    }

    pub(super) fn done(&mut self, duty: Duty) {
        self.0.retain(|(failing, _)| *failing != duty);
    }

    /// The store is out of reach altogether, so it is not this node's fault.
    pub(super) fn excuse(&mut self) {
        self.0.clear();
    }

    /// One that has failed for so long.
    pub(super) fn neglected(&self, now: Instant, lease: Duration) -> Option<Duty> {
        self.0.iter().find(|(_, since)| *since + lease <= now).map(|(duty, _)| *duty)
    }
}
