//! What the planner remembers: one small record per key, one per node, and who bears which key's weight.
//!
//! Everything is an index into a vector, and every set of keys that the planner walks is a list threaded through the
//! key records themselves. So a key costs 28 bytes, an event touches a handful of cache lines, and no answer depends on
//! the order of a hash table.

use super::{NodeSpec, Planner};

/// No key, no node, end of list.
pub(super) const NONE: u32 = u32::MAX;

/// Weights are at most 1,000,000, which is below 2^20: one list per power of two.
pub(super) const CLASSES: usize = 20;

/// The list, after the classes, of the keys that a node holds and that no move may touch: on their way out already, or
/// pinned.
pub(super) const BUSY: usize = CLASSES;

/// The lists of one node.
pub(super) const LISTS: usize = CLASSES + 1;

/// Where a key stands, as the planner knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// The slot is unused.
    Vacant,
    Parked,
    Ready,
    Proposed,
    Owned,
    Stopping,
}

pub(super) const STATES: usize = 6;

#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) weight: u32,
    pub(super) priority: i32,
    /// Proposed, owned or stopping: the node that has it. Ready: the node to avoid.
    pub(super) place: u32,
    /// Where a move takes it.
    pub(super) target: u32,
    /// The one after it in its list. The one before it is in `Planner::prevs`.
    pub(super) next: u32,
    pub(super) state: State,
    /// Between two owners because of balancing.
    pub(super) in_flight: bool,
    /// No move takes it from its owner for now.
    pub(super) pinned: bool,
}

impl Key {
    /// The list among those of its node that a key with a place belongs to.
    ///
    /// A proposed key is listed as if it were owned already, so that the fact that confirms it costs one store.
    pub(super) fn list(&self) -> usize {
        if self.state == State::Stopping || (self.in_flight || self.pinned) && self.state == State::Owned {
            BUSY
        } else {
            class(self.weight)
        }
    }
}

/// The power of two at or below a weight.
pub(super) fn class(weight: u32) -> usize {
    weight.max(1).ilog2() as usize
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    /// The weight of the keys that it owns, was offered, or is about to receive.
    pub(super) load: u64,
    pub(super) affinity: u32,
    /// `u32::MAX` stands for no limit: there are never more keys than that.
    pub(super) capacity: u32,
    /// Keys that it physically holds: owned and stopping.
    pub(super) held: u32,
    pub(super) proposed: u32,
    /// Keys that name it as the target of their move.
    pub(super) inbound: u32,
    /// Ready keys that name it as the node to avoid.
    pub(super) avoided: u32,
    /// Bit c is set when the list of weight class c has a key.
    pub(super) classes: u32,
    pub(super) alive: bool,
    pub(super) accepting: bool,
    /// Entitled to pull keys from others up to its quota.
    pub(super) newcomer: bool,
    /// Counted in the sums over the nodes that can be given a key.
    pub(super) open: bool,
}

impl Node {
    pub(super) fn new(spec: NodeSpec) -> Self {
        Self {
            load: 0,
            affinity: spec.affinity,
            capacity: spec.capacity.unwrap_or(u32::MAX),
            held: 0,
            proposed: 0,
            inbound: 0,
            avoided: 0,
            classes: 0,
            alive: true,
            accepting: spec.accepting,
            newcomer: false,
            open: false,
        }
    }

    /// Has a share in the quotas.
    pub(super) fn takes_part(&self) -> bool {
        self.alive && self.accepting && self.affinity > 0
    }

    /// How many more keys it could be given.
    pub(super) fn room(&self) -> u32 {
        self.capacity.saturating_sub(self.held.saturating_add(self.proposed))
    }

    /// How many more keys a move could bring, with those under way already counted.
    pub(super) fn room_for_moves(&self) -> u32 {
        self.room().saturating_sub(self.inbound)
    }
}

/// Sums over the nodes that could be given a key now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    pub(super) nodes: u32,
    pub(super) load: u64,
    pub(super) affinity: u64,
    pub(super) room: u64,
}

impl Planner {
    /// The node whose load a key is part of, if any.
    pub(super) fn bearer(&self, key: &Key) -> u32 {
        match key.state {
            State::Proposed => key.place,
            State::Owned if !key.in_flight => key.place,
            State::Owned | State::Stopping | State::Ready => key.target,
            State::Vacant | State::Parked => NONE,
        }
    }

    /// Changes one node, and with it the sums and the ranking that depend on it.
    pub(super) fn with_node(&mut self, n: u32, change: impl FnOnce(&mut Node)) {
        let node = &mut self.nodes[n as usize];
        if node.open {
            self.open.nodes -= 1;
            self.open.load -= node.load;
            self.open.affinity -= u64::from(node.affinity);
            self.open.room -= u64::from(node.room());
        }
        change(node);
        node.open = node.takes_part() && node.room() > 0;
        if node.open {
            self.open.nodes += 1;
            self.open.load += node.load;
            self.open.affinity += u64::from(node.affinity);
            self.open.room += u64::from(node.room());
        }
        self.ranking.mark(n);
    }

    /// Counts a key in, or out of, all sums that its present state is part of. The lists are not touched.
    pub(super) fn account(&mut self, k: u32, add: bool) {
        let key = self.keys[k as usize];
        let count = &mut self.counts[key.state as usize];
        *count = if add { *count + 1 } else { *count - 1 };
        if key.in_flight {
            self.in_flight = if add { self.in_flight + 1 } else { self.in_flight - 1 };
        }
        if key.target != NONE {
            let inbound = &mut self.nodes[key.target as usize].inbound;
            *inbound = if add { *inbound + 1 } else { *inbound - 1 };
        }
        if key.state == State::Ready && key.place != NONE {
            let avoided = &mut self.nodes[key.place as usize].avoided;
            *avoided = if add { *avoided + 1 } else { *avoided - 1 };
        }
        let bearer = self.bearer(&key);
        let places = matches!(key.state, State::Proposed | State::Owned | State::Stopping);
        if places {
            let proposed = key.state == State::Proposed;
            let bears = bearer == key.place;
            self.with_node(key.place, |node| {
                let count = if proposed { &mut node.proposed } else { &mut node.held };
                *count = if add { *count + 1 } else { *count - 1 };
                if bears {
                    shift(&mut node.load, key.weight, add);
                }
            });
            if bears || bearer == NONE {
                return;
            }
        }
        if bearer != NONE && self.nodes[bearer as usize].alive {
            self.with_node(bearer, |node| shift(&mut node.load, key.weight, add));
        }
    }

    /// Puts a key at the head of the list of its place that its state asks for.
    pub(super) fn link(&mut self, k: u32) {
        let key = &mut self.keys[k as usize];
        let list = key.list();
        let place = key.place as usize;
        let head = &mut self.heads[place * LISTS + list];
        let after = std::mem::replace(head, k);
        key.next = after;
        self.prevs[k as usize] = NONE;
        if after != NONE {
            self.prevs[after as usize] = k;
        } else {
            self.nodes[place].classes |= 1 << list;
        }
    }

    /// Takes a key out of the list that its state says it is in.
    pub(super) fn unlink(&mut self, k: u32) {
        let key = self.keys[k as usize];
        let prev = self.prevs[k as usize];
        if key.next != NONE {
            self.prevs[key.next as usize] = prev;
        }
        if prev != NONE {
            self.keys[prev as usize].next = key.next;
            return;
        }
        let list = key.list();
        self.heads[key.place as usize * LISTS + list] = key.next;
        if key.next == NONE {
            self.nodes[key.place as usize].classes &= !(1 << list);
        }
    }

    /// Lets go of the slot of a node that has left, once no key names it any more.
    ///
    /// Until then the index is not handed out again, so that a key which avoids the old session, or was on its way to
    /// it, never takes a new one for it.
    pub(super) fn reap(&mut self, n: u32) {
        let node = &self.nodes[n as usize];
        if !node.alive && node.inbound == 0 && node.avoided == 0 {
            self.free_nodes.push(n);
        }
    }
}

fn shift(load: &mut u64, weight: u32, add: bool) {
    if add {
        *load += u64::from(weight);
    } else {
        *load -= u64::from(weight);
    }
}
