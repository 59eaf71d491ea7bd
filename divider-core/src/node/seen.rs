//! A leader as the others see it.

use std::time::Duration;

use crate::{Beat, Instant, Sighting, Term, leader::Deposed};

/// Another node's leadership, as it is watched from here.
pub(super) struct Seen {
    leader: Sighting,
    /// Since when the leadership's beat has stood still.
    pub(super) since: Instant,
    /// Since when the beat of the leader's session has.
    session_since: Instant,
}

impl Seen {
    pub(super) fn new(leader: Sighting, now: Instant) -> Self {
        Self { leader, since: now, session_since: now }
    }

    pub(super) fn update(&mut self, leader: Sighting, now: Instant) {
        if (self.leader.term, self.leader.beat) != (leader.term, leader.beat) {
            self.since = now;
        }
        if (self.leader.session, self.leader.session_beat) != (leader.session, leader.session_beat) {
            self.session_since = now;
        }
        self.leader = leader;
    }

    /// The leadership, if it has stood still for a lease.
    pub(super) fn stale(&self, now: Instant, lease: Duration) -> Option<(Term, Beat)> {
        (self.since + lease <= now).then_some((self.leader.term, self.leader.beat))
    }

    pub(super) fn deposed(&self) -> Option<Deposed> {
        let beat = self.leader.session_beat?;
        Some(Deposed { session: self.leader.session, beat, since: self.session_since })
    }
}
