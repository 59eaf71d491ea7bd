//! What is known of the log without the disk: its newest entries, and how large all of them are.

use std::collections::{BTreeMap, VecDeque};

use openraft::EntryPayload;

use crate::protocol::{
    command::Step,
    types::{Entry, LogId, Vote},
};

/// The newest entries are kept in memory up to this many bytes of it, which has room for all that are on their way to the
/// followers and the machine.
const CACHE_BYTES: usize = 4 << 20;

/// What is known without the disk.
#[derive(Default)]
pub(super) struct Cache {
    /// The newest entries, without gaps up to the last one: at least all that are not on disk yet.
    pub(super) entries: BTreeMap<u64, CachedEntry>,
    /// Bytes of memory that they take, about.
    pub(super) memory: usize,
    pub(super) last: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Of all entries in the log.
    pub(super) sizes: Sizes,
    pub(super) vote: Option<Vote>,
    /// At which entry this replica was found to be another one than the others'.
    pub(super) differs: Option<u64>,
    /// Number of the last append.
    pub(super) appends: u64,
    /// Number of the last commit.
    pub(super) commit: u64,
}

/// How many bytes each entry takes in the log.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// Index of the first.
    first: u64,
    each: VecDeque<u32>,
    pub(super) all: u64,
}

pub(super) struct CachedEntry {
    pub(super) entry: Entry,
    /// In the log.
    pub(super) bytes: usize,
    /// In memory, about: several times as much where its ops are small.
    pub(super) memory: usize,
    /// Number of the append that it came with; zero if it was there at the start.
    pub(super) append: u64,
}

impl Cache {
    pub(super) fn insert(&mut self, entry: Entry, bytes: usize, append: u64) {
        self.last = Some(entry.log_id);
        self.sizes.push(entry.log_id.index, bytes);
        let memory = match &entry.payload {
            EntryPayload::Normal(command) => command.0.steps().iter().map(Step::bytes).sum(),
            EntryPayload::Blank | EntryPayload::Membership(_) => bytes,
        };
        self.memory += memory;
        if let Some(old) = self.entries.insert(entry.log_id.index, CachedEntry { entry, bytes, memory, append }) {
            self.memory -= old.memory;
        }
    }

    /// Makes room, but not of what came with an append after `written`.
    pub(super) fn evict(&mut self, written: u64) {
        while self.memory > CACHE_BYTES
            && let Some(first) = self.entries.first_entry().filter(|first| first.get().append <= written)
        {
            self.memory -= first.remove().memory;
        }
    }

    pub(super) fn recount(&mut self) {
        self.memory = self.entries.values().map(|held| held.memory).sum();
    }
}

impl Sizes {
    fn push(&mut self, index: u64, bytes: usize) {
        if self.each.is_empty() {
            self.first = index;
        }
        self.truncate(index);
        self.each.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.all += bytes as u64;
    }

    /// Those from this index on are gone.
    pub(super) fn truncate(&mut self, from: u64) {
        while self.first + self.each.len() as u64 > from
            && let Some(bytes) = self.each.pop_back()
        {
            self.all -= u64::from(bytes);
        }
    }

    /// Those up to this index are gone.
    pub(super) fn purge(&mut self, to: u64) {
        while self.first <= to
            && let Some(bytes) = self.each.pop_front()
        {
            self.all -= u64::from(bytes);
            self.first += 1;
        }
    }

    /// Up to which index entries must go, so that the rest takes no more than so many bytes.
    pub(super) fn surplus(&self, most: u64) -> Option<u64> {
        let mut rest = self.all;
        let gone = self.each.iter().take_while(|bytes| {
            let over = rest > most;
            rest -= u64::from(**bytes);
            over
        });
        (self.first + gone.count() as u64).checked_sub(1).filter(|upto| *upto >= self.first)
    }
}
