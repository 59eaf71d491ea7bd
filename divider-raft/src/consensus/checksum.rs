//! Whether replicas that applied the same entries are equal.
//!
//! # Why a sum over what entries did
//! A replica that differs says nothing of it: it goes on, answers, and is elected one day. To walk a million keys and
//! compare them costs more than it may. But whatever changes in a ledger changes by an entry, and what an entry did
//! depends on all that it met: which revision it made, which tokens were given, what was refused. So each member keeps one
//! number over all entries that it applied and what each of them did, and a snapshot carries the number that belongs to it.
//! Members with one history have one number at each index, whichever way they came by it.
//!
//! The number is made of what every version of the program says in the same bytes: counters and outcomes, no records.
//! A snapshot of the first format brings none: whoever starts from it is not compared until it takes in a newer one.

use std::collections::VecDeque;

use divider_core::Ledger;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::protocol::{command::Done, types::LogId};

/// The number is noted at each so many entries, for comparison.
const EVERY: u64 = 32;
/// How many of those are remembered: a follower that is further behind is compared later.
const NOTED: usize = 2048;

/// What one entry did, as bytes.
#[derive(Debug, Default)]
pub(super) struct EntryDigest(Vec<u8>);

impl EntryDigest {
    /// A step was applied.
    pub(super) fn step(&mut self, done: &Done, ledger: &Ledger) {
        let held = ledger.group();
        for number in [ledger.revision().0, ledger.token().0, held.term.0, u64::from(held.leader.is_some())] {
            self.0.extend(number.to_le_bytes());
        }
        if let Done::Applied(applied) = done
            && let Ok(bytes) = postcard::to_extend(&applied.outcomes, std::mem::take(&mut self.0))
        {
            self.0 = bytes;
        }
    }

    /// The number after this entry, and begins with the next one.
    pub(super) fn end(&mut self, sum: u64, entry: LogId) -> u64 {
        for number in [sum, entry.index, entry.leader_id.term] {
            self.0.extend(number.to_le_bytes());
        }
        let sum = xxh3_64(&self.0);
        self.0.clear();
        sum
    }
}

/// The numbers that this member had at some indexes.
#[derive(Debug, Default)]
pub(super) struct Checksums(Mutex<VecDeque<(u64, u64)>>);

impl Checksums {
    /// Notes the number at an index, where it is one at which all do so.
    pub(super) fn note(&self, index: u64, sum: u64) {
        if !index.is_multiple_of(EVERY) {
            return;
        }
        let mut noted = self.0.lock();
        if noted.len() >= NOTED {
            noted.pop_front();
        }
        noted.push_back((index, sum));
    }

    /// The newest.
    pub(super) fn newest(&self) -> Option<(u64, u64)> {
        self.0.lock().back().copied()
    }

    /// The one at this index.
    pub(super) fn at(&self, index: u64) -> Option<u64> {
        let noted = self.0.lock();
        let place = noted.binary_search_by_key(&index, |(noted, _)| *noted).ok()?;
        noted.get(place).map(|(_, sum)| *sum)
    }

    /// The state has been replaced as a whole.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
