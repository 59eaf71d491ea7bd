//! Whether a source is believed when it no longer names much of what there is.

use std::{collections::HashSet, time::Duration};

use super::observe::target;
use crate::{
    clock::Instant,
    ids::{Key, NodeId},
    source::RemovalLimit,
};

/// An empty list is more often a fault of whoever made it than the wish to stop everything.
pub(super) struct Removals {
    limit: RemovalLimit,
    doubt: Option<Doubt>,
}

/// Readings in a row that would each remove too much.
struct Doubt {
    since: Instant,
    readings: u32,
    /// What none of them names.
    absent: HashSet<Key>,
}

impl Removals {
    pub(super) fn new(limit: RemovalLimit) -> Self {
        Self { limit, doubt: None }
    }

    /// Of the keys that a reading does not name, those that are to be removed. `known` is how many keys there are.
    pub(super) fn allow(&mut self, gone: HashSet<Key>, known: usize, now: Instant, node: &NodeId) -> HashSet<Key> {
        let part = known.saturating_mul(self.limit.percent.into()) / 100;
        if gone.len() <= part.max(self.limit.keys) {
            self.doubt = None;
            return gone;
        }
        let doubt = self.doubt.get_or_insert_with(|| Doubt { since: now, readings: 0, absent: gone.clone() });
        doubt.readings = doubt.readings.saturating_add(1);
        doubt.absent.retain(|key| gone.contains(key));
        let RemovalLimit { readings, time, .. } = self.limit;
        if doubt.readings >= readings && now.since(doubt.since) >= time {
            return std::mem::take(&mut doubt.absent).into_iter().collect();
        }
        tracing::warn!(
            target: target::SOURCE, %node, gone = gone.len(), known, %readings, ?time,
            "the work source would remove too much; it is believed after so many readings and so long a time"
        );
        HashSet::new()
    }
}

impl Default for RemovalLimit {
    fn default() -> Self {
        Self { percent: 20, keys: 10, readings: 3, time: Duration::from_secs(10) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(range: std::ops::Range<u32>) -> HashSet<Key> {
        range.map(|key| Key::new(key.to_string()).unwrap()).collect()
    }

    #[test]
    fn much_is_removed_once_it_has_been_absent_from_several_readings_for_a_while() {
        let limit = RemovalLimit { time: Duration::from_nanos(100), ..RemovalLimit::default() };
        let mut removals = Removals::new(limit);
        let node = NodeId::new("n").unwrap();
        let mut allow = |gone, at| removals.allow(gone, 100, Instant(at), &node).len();
        assert_eq!(allow(keys(0..20), 0), 20, "a fifth");
        assert_eq!(allow(keys(0..100), 1000), 0);
        assert_eq!(allow(keys(0..100), 1040), 0);
        assert_eq!(allow(keys(0..5), 1050), 5, "it was a fault of the source");
        assert_eq!(allow(keys(0..100), 2000), 0, "so it begins anew");
        assert_eq!(allow(keys(0..100), 2100), 0, "long enough, but read twice only");
        assert_eq!(allow(keys(10..90), 2101), 80, "what no reading names");
    }

    #[test]
    fn a_few_keys_are_removed_at_once_however_few_there_are() {
        let mut removals = Removals::new(RemovalLimit::default());
        let node = NodeId::new("n").unwrap();
        assert_eq!(removals.allow(keys(0..10), 10, Instant(0), &node).len(), 10);
        assert_eq!(removals.allow(keys(0..11), 11, Instant(0), &node).len(), 0);
    }
}
