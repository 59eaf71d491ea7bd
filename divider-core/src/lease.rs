//! A node's own deadline: until when it may believe that it owns what it was given.
//!
//! The time is taken *before* a renewal is sent, so that no pause between the answer and its handling can lengthen the
//! lease. Once the deadline has passed the lease is dead for good: an answer that comes later does not revive it, because
//! the program may have been told of the loss already.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::{clock::Instant, error::StoreError, ids::SessionId};

/// One session's lease. The beat thread extends it, everybody reads it.
#[derive(Debug)]
pub(crate) struct Lease {
    session: SessionId,
    /// Nanoseconds on the node's clock; 0 once it is dead.
    deadline: AtomicU64,
    /// Why the last renewal failed, if it did. For people.
    trouble: Mutex<Option<StoreError>>,
}

impl Lease {
    pub(crate) fn new(session: SessionId, deadline: Instant) -> Self {
        Self { session, deadline: AtomicU64::new(deadline.0), trouble: Mutex::new(None) }
    }

    /// Notes how a renewal went.
    pub(crate) fn note(&self, trouble: Option<StoreError>) {
        *self.trouble.lock() = trouble;
    }

    /// Why the last renewal failed, if it did.
    pub(crate) fn trouble(&self) -> Option<StoreError> {
        self.trouble.lock().clone()
    }

    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// Moves the deadline on, unless it has passed at `now`. Says whether the lease lives.
    pub(crate) fn extend(&self, now: Instant, deadline: Instant) -> bool {
        let extend = |current: u64| (now.0 < current).then_some(current.max(deadline.0));
        self.deadline.fetch_update(Ordering::SeqCst, Ordering::SeqCst, extend).is_ok()
    }

    /// Whether the lease lives at `now`.
    pub(crate) fn is_valid(&self, now: Instant) -> bool {
        now.0 < self.deadline.load(Ordering::SeqCst)
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant(self.deadline.load(Ordering::SeqCst))
    }

    /// Ends it for good.
    pub(crate) fn kill(&self) {
        self.deadline.store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_after_the_deadline_does_not_revive_the_lease() {
        let lease = Lease::new(SessionId::fresh(), Instant(100));
        assert!(lease.extend(Instant(99), Instant(150)));
        assert!(lease.is_valid(Instant(149)));
        assert!(!lease.extend(Instant(150), Instant(250)));
        assert!(!lease.is_valid(Instant(150)));
    }

    #[test]
    fn a_late_answer_to_an_earlier_renewal_does_not_shorten_the_lease() {
        let lease = Lease::new(SessionId::fresh(), Instant(100));
        assert!(lease.extend(Instant(50), Instant(200)));
        assert!(lease.extend(Instant(51), Instant(120)));
        assert_eq!(lease.deadline(), Instant(200));
    }
}
