//! Whether a node hears what it is told: through its subscription, or else by reading.

use std::time::Duration;

use crate::Instant;

/// A node that can neither hear nor read would keep its keys and never start them.
#[derive(Debug, Default)]
pub(crate) struct Ears {
    /// While it does not hear everything: when it last knew all that it had been told.
    complete: Option<Instant>,
}

impl Ears {
    /// Something was missed, or may be from now on.
    pub(crate) fn missed(&mut self, now: Instant) {
        self.complete.get_or_insert(now);
    }

    /// It knows all that it was told by now.
    pub(crate) fn knows_all(&mut self, now: Instant) {
        self.complete = self.complete.map(|_| now);
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
    fn who_reads_now_and_then_is_not_deaf() {
        let mut ears = Ears::default();
        let lease = Duration::from_nanos(100);
        assert!(!ears.deaf_for(Instant(1000), lease), "it hears");
        ears.missed(Instant(1000));
        ears.missed(Instant(1090));
        assert!(ears.deaf_for(Instant(1100), lease));
        ears.knows_all(Instant(1050));
        assert!(!ears.deaf_for(Instant(1149), lease));
        assert!(ears.deaf_for(Instant(1150), lease));
        ears.hears();
        ears.knows_all(Instant(1200));
        assert!(!ears.deaf_for(Instant(9000), lease));
    }
}
