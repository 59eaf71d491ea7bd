//! The leader's picture of the group: keys and sessions under dense numbers, so that the planner never sees a string.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::BuildHasher,
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use super::{Counts, Now, Timing};
use crate::{
    clock::Instant,
    ids::{Key, NodeId, SessionId, Token},
    op::SessionView,
    planner::{KeyIx, NodeIx, NodeSpec, Planner},
    record::{Deaths, KeyView, State, StopReason},
};

/// No session.
const NOBODY: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(super) struct GroupIndex {
    /// The numbers of the keys by name. The names stand in `keys` alone, which saves 40 bytes a key.
    names: HashTable<KeyIx>,
    /// Random for each index, so that nobody can choose keys that meet in one bucket.
    hasher: DefaultHashBuilder,
    keys: Vec<Option<Entry>>,
    /// What few keys have, of those that are marked so.
    rare: HashMap<KeyIx, Rare>,
    slots: HashMap<SessionId, u32>,
    sessions: Vec<Option<Slot>>,
    /// Which session a planner's node is.
    nodes: Vec<u32>,
    /// Keys that are not due yet by the wall clock, the earliest first.
    schedule: BTreeSet<(u64, KeyIx)>,
    /// Keys that rest after a failure, by when that ends on this leader's clock.
    rests: BTreeSet<(Instant, KeyIx)>,
    /// Since when keys are between owners, by request. Few.
    stops: BTreeMap<KeyIx, Instant>,
    /// Keys that are to end once their owner has stopped them. Few.
    removing: BTreeSet<KeyIx>,
    quarantined: usize,
    registered: usize,
    timings: Vec<Timing>,
}

/// What is kept of a key, in as few bytes as will do: there may be a million. Weight and priority are the planner's.
#[derive(Debug)]
struct Entry {
    key: Key,
    token: Token,
    /// Slot of a session, or [`NOBODY`].
    owner: u32,
    kind: Kind,
    /// Its last op was refused.
    refused: bool,
    /// There is more of it in [`GroupIndex::rare`].
    rare: bool,
}

/// What few keys have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rare {
    not_before_ms: u64,
    /// The end of its pause in ledger time, and on this leader's clock.
    retry_at_ms: u64,
    rests_until: Option<Instant>,
    deaths: Deaths,
    /// Slot of a session, or [`NOBODY`].
    avoid: u32,
}

impl Default for Rare {
    fn default() -> Self {
        Self { not_before_ms: 0, retry_at_ms: 0, rests_until: None, deaths: Deaths::default(), avoid: NOBODY }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pending,
    Assigned,
    Stopping,
    Removing,
    Quarantined,
}

#[derive(Debug)]
struct Slot {
    view: SessionView,
    /// Its number in the planner, while it lives.
    node: Option<NodeIx>,
    /// Its last sign of life, once it has ended.
    silent_since: Instant,
    /// When it was first seen to own a key.
    works_since: Option<Instant>,
}

/// How a key stands, for the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    Owned { node: NodeIx, stopping: bool },
    Free { avoid: Option<NodeIx>, due_ms: u64, rests_until: Option<Instant> },
    Quarantined,
    Gone,
}

impl GroupIndex {
    pub(super) fn set_session(&mut self, view: SessionView, silent_since: Instant, planner: &mut Planner) {
        let slot = self.slot(view.session);
        let spec = NodeSpec { affinity: view.affinity, capacity: view.capacity, accepting: !view.draining };
        let known = self.sessions[slot as usize].take();
        let works_since = known.as_ref().and_then(|known| known.works_since);
        let node = match known.as_ref().and_then(|known| known.node) {
            Some(node) if view.ended.is_some() => {
                planner.leave(node);
                None
            }
            Some(node) => {
                planner.set_node(node, spec);
                if !view.settled && known.is_some_and(|known| known.view.settled) {
                    planner.rebalance();
                }
                Some(node)
            }
            None if view.ended.is_some() => None,
            None => {
                let node = planner.join(spec, view.settled);
                let at = node.0 as usize;
                self.nodes.resize(self.nodes.len().max(at + 1), NOBODY);
                self.nodes[at] = slot;
                Some(node)
            }
        };
        self.sessions[slot as usize] = Some(Slot { view, node, silent_since, works_since });
    }

    pub(super) fn knows(&self, session: SessionId) -> bool {
        self.slots.get(&session).is_some_and(|slot| self.sessions[*slot as usize].is_some())
    }

    /// Whether a session of this name lives, or has ended with keys still in its name.
    pub(super) fn has_node(&self, node: &NodeId) -> bool {
        self.sessions.iter().flatten().any(|slot| slot.view.node == *node)
    }

    /// Whether any session takes work.
    pub(super) fn takes_work(&self) -> bool {
        self.sessions.iter().flatten().any(|slot| slot.view.takes_work())
    }

    pub(super) fn remove_session(&mut self, session: SessionId, planner: &mut Planner) {
        let Some(slot) = self.slots.get(&session) else { return };
        // The slot stays taken: keys may still name the session as the one to avoid. There is one for each session
        // that this leader has seen, which is little.
        if let Some(node) = self.sessions[*slot as usize].take().and_then(|slot| slot.node) {
            planner.leave(node);
        }
    }

    fn slot(&mut self, session: SessionId) -> u32 {
        *self.slots.entry(session).or_insert_with(|| {
            self.sessions.push(None);
            u32::try_from(self.sessions.len() - 1).unwrap_or(NOBODY)
        })
    }

    fn node(&self, slot: u32) -> Option<NodeIx> {
        self.sessions.get(slot as usize)?.as_ref()?.node
    }

    pub(super) fn session_at(&self, node: NodeIx) -> Option<SessionId> {
        let slot = *self.nodes.get(node.0 as usize)?;
        self.sessions.get(slot as usize)?.as_ref().map(|slot| slot.view.session)
    }

    pub(super) fn longest_lease(&self) -> Duration {
        let leases = self.sessions.iter().flatten().map(|slot| slot.view.lease_ms);
        Duration::from_millis(leases.max().unwrap_or(0).into())
    }

    /// Takes in how a key stands, where ledger time stands at `time_ms`.
    pub(super) fn set_key(&mut self, view: KeyView, planner: &mut Planner, now: Instant, time_ms: u64) -> KeyIx {
        let (owner, token) = match view.state.owner() {
            Some((session, token)) => (self.slot(session), token),
            None => (NOBODY, Token(0)),
        };
        if let Some(Some(owner)) = self.sessions.get_mut(owner as usize) {
            owner.works_since.get_or_insert(now);
        }
        let avoid = view.avoid.map_or(NOBODY, |session| self.slot(session));
        let kind = match view.state {
            State::Pending => Kind::Pending,
            State::Assigned { .. } => Kind::Assigned,
            State::Stopping { reason: StopReason::Removed, .. } => Kind::Removing,
            State::Stopping { .. } => Kind::Stopping,
            State::Quarantined(_) => Kind::Quarantined,
        };
        let KeyView { key, weight, priority, not_before_ms, retry_at_ms, deaths, .. } = view;
        let known = self.index(&key);
        let k = known.unwrap_or_else(|| planner.add_key(weight, priority));
        let at = k.0 as usize;
        if known.is_none() {
            let Self { names, hasher, keys, .. } = self;
            let hash = |k: &KeyIx| keys[k.0 as usize].as_ref().map_or(0, |entry| hasher.hash_one(&entry.key));
            names.insert_unique(hasher.hash_one(&key), k, hash);
            let len = keys.len().max(at + 1);
            keys.resize_with(len, || None);
            self.registered += 1;
        }
        self.unschedule(k);
        let known_rest = self.rare.get(&k).filter(|rare| rare.retry_at_ms == retry_at_ms).map(|rare| rare.rests_until);
        // Counted from when this leader heard of it, so never shorter than it was meant.
        let rest =
            retry_at_ms.checked_sub(time_ms).filter(|left| *left > 0).map(|left| now + Duration::from_millis(left));
        let rests_until = known_rest.unwrap_or(rest);
        let rare = Rare { not_before_ms, retry_at_ms, rests_until, deaths, avoid };
        let is_rare = rare != Rare::default();
        let entry = Entry { key, token, owner, kind, refused: false, rare: is_rare };
        let old = self.keys[at].replace(entry);
        if is_rare {
            self.rare.insert(k, rare);
        } else if old.as_ref().is_some_and(|old| old.rare) {
            self.rare.remove(&k);
        }
        if let Some(old) = old {
            self.quarantined -= usize::from(old.kind == Kind::Quarantined);
            planner.set_key(k, weight, priority);
            if kind == Kind::Assigned && old.token != token {
                self.time(k, old.owner, now);
            }
        }
        self.quarantined += usize::from(kind == Kind::Quarantined);
        if kind == Kind::Removing {
            self.removing.insert(k);
        } else {
            self.removing.remove(&k);
        }
        k
    }

    /// The key has its next owner.
    fn time(&mut self, k: KeyIx, old_owner: u32, now: Instant) {
        let ended = self.sessions.get(old_owner as usize).and_then(Option::as_ref).filter(|s| s.node.is_none());
        if let Some(since) = ended.map(|slot| slot.silent_since) {
            self.timings.push(Timing::Takeover(now.since(since)));
            self.stops.remove(&k);
        } else if let Some(since) = self.stops.remove(&k) {
            self.timings.push(Timing::Handoff(now.since(since)));
        }
    }

    pub(super) fn take_timings(&mut self) -> Vec<Timing> {
        std::mem::take(&mut self.timings)
    }

    pub(super) fn remove_key(&mut self, key: &Key) -> Option<KeyIx> {
        let keys = &self.keys;
        let found = self.names.find_entry(self.hasher.hash_one(key), |k| is(keys, *k, key)).ok()?;
        let (k, _) = found.remove();
        let entry = self.keys[k.0 as usize].take()?;
        self.quarantined -= usize::from(entry.kind == Kind::Quarantined);
        self.registered -= 1;
        self.unschedule(k);
        self.rare.remove(&k);
        self.removing.remove(&k);
        self.stops.remove(&k);
        Some(k)
    }

    fn index(&self, key: &Key) -> Option<KeyIx> {
        self.names.find(self.hasher.hash_one(key), |k| is(&self.keys, *k, key)).copied()
    }

    fn entry(&self, k: KeyIx) -> Option<&Entry> {
        self.keys.get(k.0 as usize)?.as_ref()
    }

    fn rare(&self, k: KeyIx, entry: &Entry) -> Rare {
        if entry.rare { self.rare.get(&k).copied().unwrap_or_default() } else { Rare::default() }
    }

    pub(super) fn key(&self, k: KeyIx) -> Option<Key> {
        self.entry(k).map(|entry| entry.key.clone())
    }

    /// What the ownership is called in an op that ends it: a living owner's, or one that ended while the key was being
    /// removed.
    pub(super) fn ownership(&self, k: KeyIx) -> Option<(Key, Token)> {
        let entry = self.entry(k).filter(|entry| self.node(entry.owner).is_some() || entry.kind == Kind::Removing)?;
        Some((entry.key.clone(), entry.token))
    }

    pub(super) fn placement(&self, k: KeyIx) -> Placement {
        let Some(entry) = self.entry(k) else { return Placement::Gone };
        if entry.kind == Kind::Quarantined {
            return Placement::Quarantined;
        }
        match self.node(entry.owner) {
            Some(node) => Placement::Owned { node, stopping: entry.kind != Kind::Assigned },
            None => {
                let rare = self.rare(k, entry);
                Placement::Free {
                    avoid: self.node(rare.avoid),
                    due_ms: rare.not_before_ms,
                    rests_until: rare.rests_until,
                }
            }
        }
    }

    /// Whether the key still stands in the name of a session that has ended.
    pub(super) fn is_orphan(&self, k: KeyIx) -> bool {
        self.entry(k).is_some_and(|entry| entry.owner != NOBODY && self.node(entry.owner).is_none())
    }

    /// Whether a session had joined before that token was issued, or has owned keys since that time.
    pub(super) fn was_there(&self, session: SessionId, issued: Token, since: Instant) -> bool {
        let slot = self.slots.get(&session).and_then(|slot| self.sessions[*slot as usize].as_ref());
        slot.is_some_and(|slot| slot.view.joined < issued || slot.works_since.is_some_and(|at| at <= since))
    }

    /// A living session's number in the planner.
    pub(super) fn node_of(&self, session: SessionId) -> Option<NodeIx> {
        self.node(*self.slots.get(&session)?)
    }

    /// The name of a session's node.
    pub(super) fn name(&self, session: SessionId) -> Option<&NodeId> {
        let slot = *self.slots.get(&session)?;
        self.sessions.get(slot as usize)?.as_ref().map(|slot| &slot.view.node)
    }

    /// Whether the key is to end.
    pub(super) fn is_unwanted(&self, k: KeyIx) -> bool {
        self.removing.contains(&k)
    }

    /// All keys that are to end.
    pub(super) fn unwanted(&self) -> Vec<KeyIx> {
        self.removing.iter().copied().collect()
    }

    /// What is held against a key, the end of its last owner included.
    pub(super) fn deaths(&self, k: KeyIx) -> Deaths {
        let Some(entry) = self.entry(k) else { return Deaths::default() };
        let deaths = self.rare(k, entry).deaths;
        let ended = self.sessions.get(entry.owner as usize).and_then(Option::as_ref).and_then(|slot| slot.view.ended);
        ended.map_or(deaths, |verdict| deaths.after(verdict, entry.token))
    }

    /// The living session that owns a key, and under which token.
    pub(super) fn owner(&self, k: KeyIx) -> Option<(SessionId, Token)> {
        let entry = self.entry(k)?;
        let session = self.sessions.get(entry.owner as usize)?.as_ref()?;
        session.node.map(|_| (session.view.session, entry.token))
    }

    /// All sessions, those that have ended with keys still in their name included.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &SessionView> {
        self.sessions.iter().flatten().map(|slot| &slot.view)
    }

    /// The living sessions that take work, with their numbers in the planner.
    pub(super) fn taking(&self) -> impl Iterator<Item = (NodeIx, &SessionView)> {
        let taking = self.sessions.iter().flatten().filter(|slot| slot.view.takes_work());
        taking.filter_map(|slot| Some((slot.node?, &slot.view)))
    }

    /// Whether another session lives that was there before a grant.
    pub(super) fn has_witness(&self, but: SessionId, granted: Token) -> bool {
        let others = self.sessions.iter().flatten().map(|slot| &slot.view).filter(|view| view.session != but);
        others.filter(|view| view.ended.is_none()).any(|view| view.joined < granted)
    }

    /// The newest format that all living sessions read.
    pub(super) fn lowest_reads(&self) -> Option<u16> {
        self.sessions.iter().flatten().filter(|slot| slot.view.ended.is_none()).map(|slot| slot.view.reads).min()
    }

    /// Whether the key is not due yet, or rests.
    pub(super) fn waits(&self, k: KeyIx, now: Now) -> bool {
        let waits = |rare: Rare| rare.not_before_ms > now.unix_ms || rare.rests_until.is_some_and(|at| at > now.mono);
        self.entry(k).is_some_and(|entry| waits(self.rare(k, entry)))
    }

    pub(super) fn schedule(&mut self, k: KeyIx, due_ms: u64) {
        self.schedule.insert((due_ms, k));
    }

    pub(super) fn rest(&mut self, k: KeyIx, until: Instant) {
        self.rests.insert((until, k));
    }

    /// Forgets what a key waited for. Called before that changes, so that nothing of before stays behind.
    fn unschedule(&mut self, k: KeyIx) {
        let Some(rare) = self.rare.get(&k) else { return };
        self.schedule.remove(&(rare.not_before_ms, k));
        if let Some(until) = rare.rests_until {
            self.rests.remove(&(until, k));
        }
    }

    /// When the next key is due by the wall clock.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.schedule.first().map(|(due_ms, _)| *due_ms)
    }

    /// When the next pause ends.
    pub(super) fn rested_at(&self) -> Option<Instant> {
        self.rests.first().map(|(until, _)| *until)
    }

    /// A key that has become due, or whose pause has ended. It is named once.
    pub(super) fn next_due(&mut self, now_ms: u64, now: Instant) -> Option<KeyIx> {
        if self.due_ms().is_some_and(|due| due <= now_ms) {
            return self.schedule.pop_first().map(|(_, k)| k);
        }
        if self.rested_at().is_some_and(|until| until <= now) {
            return self.rests.pop_first().map(|(_, k)| k);
        }
        None
    }

    pub(super) fn stopping_since(&mut self, k: KeyIx, now: Instant) {
        self.stops.entry(k).or_insert(now);
    }

    /// Keys that were asked to stop at least `limit` ago, each named once for each time that it passes.
    pub(super) fn stopping_longer_than(&mut self, limit: Duration, now: Instant) -> Vec<KeyIx> {
        let overdue: Vec<KeyIx> =
            self.stops.iter().filter(|(_, since)| **since + limit <= now).map(|(k, _)| *k).collect();
        for k in &overdue {
            self.stops.insert(*k, now);
        }
        overdue
    }

    /// Notes a refusal, and says whether it was the second one running.
    pub(super) fn note_refusal(&mut self, k: KeyIx) -> bool {
        let entry = self.keys.get_mut(k.0 as usize).and_then(Option::as_mut);
        entry.is_some_and(|entry| std::mem::replace(&mut entry.refused, true))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().flatten().map(|entry| &entry.key)
    }

    pub(super) fn wants(&self, key: &Key) -> bool {
        let entry = self.index(key).and_then(|k| self.entry(k));
        entry.is_some_and(|entry| entry.kind != Kind::Removing)
    }

    pub(super) fn counts(&self, planner: &Planner) -> Counts {
        let planned = planner.counters();
        Counts {
            registered: self.registered,
            pending: planned.ready,
            stopping: planned.stopping,
            quarantined: self.quarantined,
            scheduled: planned.parked.saturating_sub(self.quarantined),
            held_back: 0,
        }
    }
}

/// Whether the entry under a number is that of the key.
fn is(keys: &[Option<Entry>], k: KeyIx, key: &Key) -> bool {
    keys[k.0 as usize].as_ref().is_some_and(|entry| entry.key == *key)
}
