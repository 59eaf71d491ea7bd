//! What the ledger keeps of a session.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::places::Place;
use crate::op::SessionView;

/// A session that lives, or has ended with keys still in its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) view: SessionView,
    /// Number of the last message to it.
    pub(super) seq: u64,
    /// Number of the last alteration of its affinity.
    pub(super) altered: u64,
    /// The highest serial number of its batches.
    pub(super) serial: u64,
    /// All keys in its name.
    pub(super) keys: BTreeSet<Place>,
    /// How many of them it has been asked to stop.
    pub(super) stopping: u64,
}

impl Session {
    pub(super) fn new(view: SessionView) -> Self {
        Self { view, seq: 0, altered: 0, serial: 0, keys: BTreeSet::new(), stopping: 0 }
    }

    /// All but its keys, which the entries say as well.
    pub(super) fn freeze(&self) -> Self {
        Self { view: self.view.clone(), keys: BTreeSet::new(), ..*self }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.view.ended.is_none()
    }

    pub(super) fn has_room(&self) -> bool {
        self.view.capacity.is_none_or(|capacity| self.keys.len() < capacity as usize)
    }
}
