//! What the ledger keeps of a key in memory.

use crate::{Blob, Key, KeyView, Record, SessionId, State};

/// A [`Record`] in as few bytes as will do, since there may be a million: what few keys have stands apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) weight: u32,
    pub(super) priority: i32,
    pub(super) attempts: u32,
    pub(super) fates: u32,
    pub(super) state: State,
    /// `None` where all of it is as in a new record, so that equal records are equal entries.
    rare: Option<Box<Rare>>,
}

/// What few keys have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rare {
    pub(super) not_before_ms: u64,
    pub(super) avoid: Option<SessionId>,
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
        let Self { weight, priority, attempts, fates, state, .. } = *self;
        let (not_before_ms, avoid) = self.rare.as_ref().map_or((0, None), |rare| (rare.not_before_ms, rare.avoid));
        KeyView { key: self.key.clone(), weight, priority, not_before_ms, attempts, fates, avoid, state }
    }

    pub(super) fn record(&self) -> Record {
        let Rare { payload, checkpoint, .. } = self.rare();
        Record { view: self.view(), payload, checkpoint }
    }
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        let Record { view, payload, checkpoint } = record;
        let KeyView { key, weight, priority, not_before_ms, attempts, fates, avoid, state } = view;
        let mut entry = Self { key, weight, priority, attempts, fates, state, rare: None };
        entry.edit_rare(|rare| *rare = Rare { not_before_ms, avoid, payload, checkpoint });
        entry
    }
}
