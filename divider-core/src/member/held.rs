//! The keys that a node holds, and what is asked of them again and again.
//!
//! A program may ask on every step whether a key is current. By name the answer takes a hash of the name and three places
//! in memory; so those that are current are also kept by token, which is the quicker to hash, beside the name that belongs
//! to it. The name that a start brought along is the same one in memory, and so is not even read.
//!
//! What a node holds is handed out as one list that all callers share, made when somebody asks and forgotten at the next
//! change: so a change costs the same whether anybody asks or not.

use std::{collections::BTreeMap, sync::Arc};

// Its hasher (foldhash) costs a third of the standard one. It starts from random numbers that differ from process to process
// and from map to map, so whoever chooses keys cannot make them meet in one bucket without reading this process's memory.
use hashbrown::{HashMap, HashTable};

use crate::{
    divider::Assigned,
    ids::{Key, Token},
    op::Holding,
    record::StopReason,
};

#[derive(Debug)]
pub(super) struct Held {
    pub(super) holding: Holding,
    pub(super) phase: Phase,
    /// A `complete` is on its way, so a truth without the key is no surprise.
    pub(super) completing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The start waits to be read, at this place.
    Queued(u64),
    /// The start waits for the confirmation of a `Lost` stop of the same key.
    HeldBack,
    Running,
    StopQueued(u64, StopReason),
    Stopping(StopReason),
    /// The confirmation is on its way: of a stop for this reason, or of a start that was never read.
    Confirming(Option<StopReason>),
}

impl Held {
    /// Whether the program may act on the key while the lease holds.
    pub(super) fn is_current(&self) -> bool {
        // A completion that is on its way may have taken effect already.
        !self.completing && matches!(self.phase, Phase::Running | Phase::StopQueued(..) | Phase::Stopping(_))
    }

    /// What the program is shown, unless the key is being given back.
    fn view(&self) -> Option<Assigned> {
        let (started, stopping) = match self.phase {
            Phase::Queued(_) | Phase::HeldBack => (false, None),
            Phase::Running => (true, None),
            Phase::StopQueued(_, reason) | Phase::Stopping(reason) => (true, Some(reason)),
            Phase::Confirming(_) => return None,
        };
        Some(Assigned::new(self.holding.key.clone(), self.holding.token, started, stopping))
    }
}

impl Held {
    /// Whether the program has been told to start it.
    pub(super) fn was_started(&self) -> bool {
        !matches!(self.phase, Phase::Queued(_) | Phase::HeldBack | Phase::Confirming(None))
    }

    /// A key that the program has stopped, and the store has not heard of it.
    pub(super) fn confirming(&self) -> Option<Assigned> {
        let Phase::Confirming(Some(reason)) = self.phase else { return None };
        Some(Assigned::new(self.holding.key.clone(), self.holding.token, true, Some(reason)))
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct HeldKeys {
    keys: HashMap<Key, Held>,
    /// Those that are current.
    current: HashTable<(Token, Key)>,
    /// All that is shown, if nothing has changed since somebody asked.
    shown: Option<Arc<[Assigned]>>,
}

impl HeldKeys {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Held> {
        self.keys.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.keys.values()
    }

    pub(super) fn insert(&mut self, held: Held) {
        let key = held.holding.key.clone();
        self.remove(&key);
        if held.is_current() {
            mark(&mut self.current, &held.holding, true);
        }
        self.keys.insert(key, held);
        self.shown = None;
    }

    /// Changes how a key stands, if it is held.
    pub(super) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Held)) {
        let Some(held) = self.keys.get_mut(key) else { return };
        let before = held.is_current();
        change(held);
        let after = held.is_current();
        if before != after {
            mark(&mut self.current, &held.holding, after);
        }
        self.shown = None;
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Held> {
        let held = self.keys.remove(key)?;
        if held.is_current() {
            mark(&mut self.current, &held.holding, false);
        }
        self.shown = None;
        Some(held)
    }

    /// Takes all of them, in order.
    pub(super) fn take(&mut self) -> BTreeMap<Key, Held> {
        std::mem::take(self).keys.into_iter().collect()
    }

    pub(super) fn is_current(&self, key: &Key, token: Token) -> bool {
        self.current.find(hash(token), |(of, name)| *of == token && name == key).is_some()
    }

    /// What is kept beside the keys, against the keys.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let current = |held: &&Held| held.is_current();
        assert_eq!(self.current.len(), self.iter().filter(current).count());
        assert!(self.iter().filter(current).all(|held| self.is_current(&held.holding.key, held.holding.token)));
        if let Some(shown) = &self.shown {
            assert_eq!(**shown, self.iter().filter_map(Held::view).collect::<Vec<_>>());
        }
    }

    pub(super) fn shown(&mut self) -> Arc<[Assigned]> {
        let keys = &self.keys;
        self.shown.get_or_insert_with(|| keys.values().filter_map(Held::view).collect()).clone()
    }
}

/// Notes that a key is current, or that it no longer is.
fn mark(current: &mut HashTable<(Token, Key)>, Holding { key, token, .. }: &Holding, add: bool) {
    if add {
        current.insert_unique(hash(*token), (*token, key.clone()), |(token, _)| hash(*token));
    } else if let Ok(entry) = current.find_entry(hash(*token), |(of, name)| of == token && name == key) {
        entry.remove();
    }
}

/// The store chooses tokens, and they are numbers that follow on each other, so one multiplication spreads them: to the
/// highest bits, which tell entries of one bucket apart, and from there to the lowest, which choose the bucket.
fn hash(Token(token): Token) -> u64 {
    let spread = token.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    spread ^ spread >> 32
}
