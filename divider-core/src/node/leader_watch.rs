//! A leader as the others see it.

use std::time::Duration;

use crate::{Beat, Instant, LeaderView, Term, leader::Deposed};

/// Another node's leadership, as it is watched from here.
pub(super) struct LeaderWatch {
    leader: LeaderView,
    /// Since when the leadership's beat has stood still.
    pub(super) since: Instant,
    /// Since when the beat of the leader's session has.
    session_since: Instant,
    /// The store failed to answer since: the silence may be its own.
    unanswered: bool,
}

impl LeaderWatch {
    pub(super) fn new(leader: LeaderView, now: Instant) -> Self {
        Self { leader, since: now, session_since: now, unanswered: false }
    }

    /// The store did not answer a poll.
    pub(super) fn unanswered(&mut self) {
        self.unanswered = true;
    }

    pub(super) fn update(&mut self, leader: LeaderView, now: Instant) {
        if (self.leader.term, self.leader.beat) != (leader.term, leader.beat) {
            self.since = now;
        }
        if (self.leader.session, self.leader.session_beat) != (leader.session, leader.session_beat) {
            self.session_since = now;
            self.unanswered = false;
        }
        self.leader = leader;
    }

    /// The leadership, if it has stood still for a lease.
    pub(super) fn stale(&self, now: Instant, lease: Duration) -> Option<(Term, Beat)> {
        (self.since + lease <= now).then_some((self.leader.term, self.leader.beat))
    }

    pub(super) fn deposed(&self) -> Option<Deposed> {
        let beat = self.leader.session_beat?;
        let Self { session_since: since, unanswered, .. } = *self;
        Some(Deposed { session: self.leader.session, beat, since, unanswered })
    }
}
