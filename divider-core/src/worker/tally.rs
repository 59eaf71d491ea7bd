//! How often in a row a key's task has released the key here.
//!
//! Kept in memory, and only for the last keys that did: it is no record of the work, only what the pauses are made from.

use std::collections::{HashMap, VecDeque};

use crate::ids::Key;

/// How many keys are remembered. A key that is forgotten is counted anew, so its next pause is short.
const KEYS: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: HashMap<Key, u32>,
    /// The keys, those that were counted first at the front. A key that was forgotten meanwhile may still stand here.
    order: VecDeque<Key>,
}

impl Tally {
    /// Counts, and says how often in a row that makes.
    pub(super) fn count(&mut self, key: &Key) -> u32 {
        if !self.counts.contains_key(key) {
            self.make_room();
            self.order.push_back(key.clone());
        }
        let count = self.counts.entry(key.clone()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.counts.remove(key);
    }

    fn make_room(&mut self) {
        while self.order.len() >= KEYS {
            if let Some(oldest) = self.order.pop_front() {
                self.counts.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: usize) -> Key {
        Key::new(format!("key {name}")).unwrap()
    }

    #[test]
    fn releases_in_a_row_are_counted_until_they_are_forgotten() {
        let mut tally = Tally::default();
        assert_eq!([(); 3].map(|()| tally.count(&key(1))), [1, 2, 3]);
        assert_eq!(tally.count(&key(2)), 1);
        tally.forget(&key(1));
        assert_eq!(tally.count(&key(1)), 1);
    }

    #[test]
    fn it_stays_small_however_many_keys_are_released() {
        let mut tally = Tally::default();
        for name in 0..3 * KEYS {
            tally.count(&key(name));
            // Also where the same keys come and go.
            tally.forget(&key(name % 7));
        }
        assert!(tally.counts.len() <= KEYS && tally.order.len() <= KEYS);
        assert_eq!(tally.count(&key(3 * KEYS - 1)), 2, "the last ones are remembered");
    }
}
