//! Whether a node hears what it is told: through its subscription, or else by reading.

use std::time::Duration;

use crate::Instant;

/// A node that can neither hear nor read would keep its keys and never start them.
#[derive(Debug, Default)]
pub(crate) struct GapTracker {
    /// While it does not hear everything: when it last knew all that it had been told.
    complete: Option<Instant>,
    /// While polls fail: when it last knew, or asked again. A subscription that stands may have gone silent.
    unsure: Option<Instant>,
}

impl GapTracker {
    /// Something was missed, or may be from now on.
    pub(crate) fn missed(&mut self, now: Instant) {
        self.complete.get_or_insert(now);
    }

    /// It knows all that it was told by now.
    pub(crate) fn knows_all(&mut self, now: Instant) {
        self.complete = self.complete.map(|_| now);
        self.unsure = None;
    }

    /// A poll has failed, so nothing says whether something was missed. True where it is time to read.
    pub(crate) fn is_unsure(&mut self, now: Instant, resync: Duration) -> bool {
        let due = *self.unsure.get_or_insert(now) + resync <= now;
        if due {
            self.unsure = Some(now);
        }
        due
    }

    /// It has read everything since its subscription stands.
    pub(crate) fn hears(&mut self) {
        self.complete = None;
    }

    /// Whether it has known nothing new for so long.
    pub(crate) fn deaf_for(&self, now: Instant, lease: Duration) -> bool {
        self.complete.is_some_and(|complete| complete + lease <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_poll_reads_once_in_each_resync_interval() {
        let mut gaps = GapTracker::default();
        let resync = Duration::from_nanos(100);
        let reads = [1000, 1099, 1100, 1199, 1200].map(|at| gaps.is_unsure(Instant(at), resync));
        assert_eq!(reads, [false, false, true, false, true]);
        gaps.knows_all(Instant(1250));
        assert_eq!([1260, 1300, 1360].map(|at| gaps.is_unsure(Instant(at), resync)), [false, false, true]);
    }

    #[test]
    fn who_reads_now_and_then_is_not_deaf() {
        let mut gaps = GapTracker::default();
        let lease = Duration::from_nanos(100);
        assert!(!gaps.deaf_for(Instant(1000), lease), "it hears");
        gaps.missed(Instant(1000));
        gaps.missed(Instant(1090));
        assert!(gaps.deaf_for(Instant(1100), lease));
        gaps.knows_all(Instant(1050));
        assert!(!gaps.deaf_for(Instant(1149), lease));
        assert!(gaps.deaf_for(Instant(1150), lease));
        gaps.hears();
        gaps.knows_all(Instant(1200));
        assert!(!gaps.deaf_for(Instant(9000), lease));
    }
}
