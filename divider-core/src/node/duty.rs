//! What a leader must be able to do. Its leadership is renewed by a call of its own, so a leader that is not let read or
//! write would stay, and the group would have none.

use std::{fmt, time::Duration};

use crate::clock::Instant;

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

/// For how long which duty has failed, without one success, while the store was within reach.
#[derive(Debug, Default)]
pub(super) struct Duties {
    failing: Vec<(Duty, Duration)>,
    /// Since when the store has been within reach, as far as that is not counted yet.
    reached: Option<Instant>,
}

impl Duties {
    pub(super) fn failed(&mut self, duty: Duty, now: Instant) {
        if self.failing.is_empty() {
            self.reached = Some(now);
        }
        if self.failing.iter().all(|(failing, _)| *failing != duty) {
            self.failing.push((duty, Duration::ZERO));
        }
    }

    pub(super) fn done(&mut self, duty: Duty) {
        self.failing.retain(|(failing, _)| *failing != duty);
    }

    /// The store is out of reach altogether, so it is not this node's fault, until it is back.
    pub(super) fn excuse(&mut self) {
        self.reached = None;
    }

    /// The store is within reach: one that has failed for so long.
    pub(super) fn neglected(&mut self, now: Instant, lease: Duration) -> Option<Duty> {
        let more = self.reached.replace(now).map_or(Duration::ZERO, |since| now.since(since));
        self.failing.iter_mut().for_each(|(_, failed)| *failed += more);
        self.failing.iter().find(|(_, failed)| *failed >= lease).map(|(duty, _)| *duty)
    }
}
