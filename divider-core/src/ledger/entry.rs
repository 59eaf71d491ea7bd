//! What the ledger keeps of a key in memory.

use crate::{
    ids::{Key, SessionId},
    record::{Blob, Deaths, KeyView, Record, State, Text},
};

/// A [`Record`] in as few bytes as will do, since there may be a million: what few keys have stands apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) since: u64,
    pub(super) weight: u32,
    pub(super) priority: i32,
    pub(super) attempts: u32,
    pub(super) generation: u32,
    pub(super) state: State,
    /// `None` where all of it is as in a new record, so that equal records are equal entries.
    rare: Option<Box<Rare>>,
}

/// What few keys have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rare {
    pub(super) not_before_ms: u64,
    pub(super) retry_at_ms: u64,
    pub(super) failures: u32,
    pub(super) deaths: Deaths,
    pub(super) avoid: Option<SessionId>,
    pub(super) why: Text,
    pub(super) payload: Blob,
    pub(super) checkpoint: Blob,
}

impl Entry {
    pub(super) fn rare(&self) -> Rare {
        self.rare.as_deref().cloned().unwrap_or_default()
    }

    /// Changes what few keys have. Allocates only for those.
    pub(super) fn edit_rare(&mut self, change: impl FnOnce(&mut Rare)) {
        let mut rare = self.rare.take().map(|rare| *rare).unwrap_or_default();
        change(&mut rare);
        self.rare = (rare != Rare::default()).then(|| Box::new(rare));
    }

    pub(super) fn view(&self) -> KeyView {
        let Self { since, weight, priority, attempts, generation, state, .. } = *self;
        let (not_before_ms, retry_at_ms, failures, deaths, avoid) = match &self.rare {
            Some(rare) => (rare.not_before_ms, rare.retry_at_ms, rare.failures, rare.deaths, rare.avoid),
            None => Default::default(),
        };
        KeyView {
            key: self.key.clone(),
            weight,
            priority,
            not_before_ms,
            retry_at_ms,
            generation,
            since,
            attempts,
            failures,
            deaths,
            avoid,
            state,
        }
    }

    pub(super) fn record(&self) -> Record {
        let Rare { why, payload, checkpoint, .. } = self.rare();
        Record { view: self.view(), why, payload, checkpoint }
    }
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        let Record { view, why, payload, checkpoint } = record;
        let KeyView {
            key,
            weight,
            priority,
            not_before_ms,
            retry_at_ms,
            generation,
            since,
            attempts,
            failures,
            deaths,
            avoid,
            state,
        } = view;
        let mut entry = Self { key, since, weight, priority, attempts, generation, state, rare: None };
        entry.edit_rare(|rare| {
            *rare = Rare { not_before_ms, retry_at_ms, failures, deaths, avoid, why, payload, checkpoint };
        });
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::Token,
        record::{StopReason, Work},
    };

    #[test]
    fn an_entry_is_small_and_gives_back_the_whole_record() {
        assert_eq!(size_of::<Option<Entry>>(), 80, "there may be a million");
        let plain = Record::new(Work::new("k").unwrap().weight(2).priority(-3), 8);
        let session = SessionId::fresh();
        let rich = Record {
            view: KeyView {
                not_before_ms: 4,
                retry_at_ms: 9,
                generation: 10,
                attempts: 5,
                failures: 11,
                deaths: Deaths { count: 6, alone: 1, token: Token(3) },
                avoid: Some(session),
                state: State::Stopping { session, token: Token(7), reason: StopReason::Removed },
                ..plain.view.clone()
            },
            why: Text::new("why"),
            payload: Blob::from(*b"p"),
            checkpoint: Blob::from(*b"c"),
        };
        for record in [&plain, &rich] {
            let entry = Entry::from(record.clone());
            assert_eq!((entry.record(), entry.view()), (record.clone(), record.view.clone()));
        }
        let mut entry = Entry::from(plain.clone());
        entry.edit_rare(|rare| rare.checkpoint = Blob::from(*b"c"));
        assert_ne!(entry, Entry::from(plain.clone()));
        entry.edit_rare(|rare| rare.checkpoint = Blob::default());
        assert_eq!(entry, Entry::from(plain), "equal records, however they came to be so, are equal entries");
    }
}
