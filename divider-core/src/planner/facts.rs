//! Keys come, change and go, and what is known of each.

use super::board::{Key, NONE, State};
use super::{KeyIx, MAX_WEIGHT, NodeIx, Planner};

impl Planner {
    /// A key appears, parked: [`ready`](Self::ready) or [`own`](Self::own) says what is true of it.
    ///
    /// `weight` is `1..=`[`MAX_WEIGHT`]. Higher priorities are assigned first.
    ///
    /// # Panics
    ///
    /// With more than 2^32 - 1 keys.
    pub fn add_key(&mut self, weight: u32, priority: i32) -> KeyIx {
        let key = Key {
            weight: weight.clamp(1, MAX_WEIGHT),
            priority,
            place: NONE,
            target: NONE,
            next: NONE,
            state: State::Parked,
            in_flight: false,
            pinned: false,
        };
        self.counts[State::Parked as usize] += 1;
        match self.free_keys.pop() {
            Some(k) => {
                self.keys[k as usize] = key;
                KeyIx(k)
            }
            None => {
                let k = self.keys.len();
                assert!(k < NONE as usize, "a planner holds fewer than 2^32 keys");
                self.keys.push(key);
                self.prevs.push(NONE);
                KeyIx(k as u32)
            }
        }
    }

    /// A key changed its weight or its priority. Moves nothing by itself; a ready key whose priority changed waits behind
    /// those that have the new priority already.
    pub fn set_key(&mut self, k: KeyIx, weight: u32, priority: i32) {
        let k = k.0;
        let Some(&key) = self.known(k) else { return };
        let weight = weight.clamp(1, MAX_WEIGHT);
        if (key.weight, key.priority) == (weight, priority) {
            return;
        }
        let requeue = key.state == State::Ready && key.priority != priority;
        let relist = key.state != State::Ready && key.weight != weight;
        if requeue || relist {
            self.detach(k);
        }
        self.account(k, false);
        self.plan(&key, false);
        let changed = &mut self.keys[k as usize];
        changed.weight = weight;
        changed.priority = priority;
        let changed = *changed;
        self.plan(&changed, true);
        self.account(k, true);
        if requeue || relist {
            self.attach(k);
        }
        if key.weight != weight {
            self.stir();
        }
    }

    /// A key is gone. Its index will be used again.
    pub fn remove_key(&mut self, k: KeyIx) {
        let k = k.0;
        if self.known(k).is_none() {
            return;
        }
        self.detach(k);
        self.settle_state(k, State::Parked, NONE, NONE, false);
        self.counts[State::Parked as usize] -= 1;
        self.keys[k as usize].state = State::Vacant;
        self.free_keys.push(k);
    }

    /// A key is free and wants an owner.
    ///
    /// It goes to another node than `avoid` if any other takes it, else it may go back. A proposal that was refused comes
    /// back this way, and then waits behind the others of its priority. A key that is ready already keeps its place.
    pub fn ready(&mut self, k: KeyIx, avoid: Option<NodeIx>) {
        let k = k.0;
        let Some(&key) = self.known(k) else { return };
        let avoid = avoid.map_or(NONE, |n| if self.is_alive(n.0) { n.0 } else { NONE });
        let target = if key.target != avoid && self.is_alive(key.target) { key.target } else { NONE };
        if key.state == State::Ready {
            self.settle_state(k, State::Ready, avoid, target, key.in_flight);
            return;
        }
        self.detach(k);
        self.settle_state(k, State::Ready, avoid, target, key.in_flight);
        self.attach(k);
    }

    /// A key is free but not to be assigned: not due yet, or quarantined. It counts in nobody's load and in no quota.
    pub fn park(&mut self, k: KeyIx) {
        let k = k.0;
        if self.known(k).is_some() {
            self.detach(k);
            self.settle_state(k, State::Parked, NONE, NONE, false);
        }
    }

    /// A key is assigned to a node, whatever was proposed. Ends its move, if it was on one.
    ///
    /// If the node has left, the key is [`ready`](Self::ready).
    pub fn own(&mut self, k: KeyIx, n: NodeIx) {
        let (KeyIx(k), NodeIx(n)) = (k, n);
        let Some(&key) = self.known(k) else { return };
        if key.state == State::Proposed && key.place == n && !key.in_flight {
            // The expected case. Load, room and list are those of the proposal.
            self.keys[k as usize].state = State::Owned;
            self.counts[State::Proposed as usize] -= 1;
            self.counts[State::Owned as usize] += 1;
            let node = &mut self.nodes[n as usize];
            node.proposed -= 1;
            node.held += 1;
            self.stirred = true;
            return;
        }
        if key.state == State::Owned && key.place == n && !key.in_flight {
            return;
        }
        if !self.is_alive(n) {
            return self.ready(KeyIx(k), None);
        }
        self.detach(k);
        self.settle_state(k, State::Owned, n, NONE, false);
        self.attach(k);
    }

    /// The owner of a key has been asked to stop it, by a move of this planner or by anyone.
    ///
    /// On a move it counts for its target; else for nobody, until it has a new owner. A key without an owner is left as
    /// it is: on a board that is being loaded, [`own`](Self::own) comes first.
    pub fn stopping(&mut self, k: KeyIx) {
        let k = k.0;
        let Some(&key) = self.known(k) else { return };
        if !matches!(key.state, State::Proposed | State::Owned) {
            return;
        }
        self.detach(k);
        // A proposed key that is being stopped was owned in between, and so its move is over.
        let in_flight = key.in_flight && key.state == State::Owned;
        let target = if in_flight { key.target } else { NONE };
        self.settle_state(k, State::Stopping, key.place, target, in_flight);
        self.attach(k);
    }

    /// Whether a key is to stay with the node that owns it. Ends by itself with the ownership.
    pub fn pin(&mut self, k: KeyIx, pinned: bool) {
        let k = k.0;
        let may_be = |key: &&Key| key.state == State::Owned && !key.in_flight && key.pinned != pinned;
        if self.known(k).filter(may_be).is_some() {
            self.unlink(k);
            self.keys[k as usize].pinned = pinned;
            self.link(k);
            self.pinned = if pinned { self.pinned + 1 } else { self.pinned - 1 };
            self.stirred = true;
        }
    }

    pub(super) fn known(&self, k: u32) -> Option<&Key> {
        self.keys.get(k as usize).filter(|key| key.state != State::Vacant)
    }

    /// Changes what is known of a key and all sums that depend on it. The key is in no list meanwhile.
    pub(super) fn settle_state(&mut self, k: u32, state: State, place: u32, target: u32, in_flight: bool) {
        let old = self.keys[k as usize];
        self.account(k, false);
        let key = &mut self.keys[k as usize];
        key.state = state;
        key.place = place;
        key.target = target;
        key.in_flight = in_flight;
        self.pinned -= usize::from(std::mem::take(&mut key.pinned));
        let new = *key;
        self.account(k, true);
        let planned = |key: &Key| key.state != State::Parked;
        if planned(&old) != planned(&new) {
            self.plan(&old, false);
            self.plan(&new, true);
        }
        if planned(&old) != planned(&new) || self.bearer(&old) != self.bearer(&new) {
            self.epoch += 1;
        }
        self.stirred = true;
        if old.target != NONE && old.target != new.target {
            self.reap(old.target);
        }
        if old.state == State::Ready && old.place != NONE && old.place != old.target {
            self.reap(old.place);
        }
    }

    /// Counts a key in, or out of, what there is to divide.
    fn plan(&mut self, key: &Key, add: bool) {
        if key.state == State::Parked {
            return;
        }
        let weight = u64::from(key.weight);
        let square = u128::from(weight * weight);
        if add {
            self.weight += weight;
            self.squares += square;
        } else {
            self.weight -= weight;
            self.squares -= square;
        }
    }

    /// Takes a key out of whatever list it is in.
    pub(super) fn detach(&mut self, k: u32) {
        match self.keys[k as usize].state {
            State::Ready => self.queue.remove(&mut self.keys, &mut self.prevs, k),
            State::Proposed | State::Owned | State::Stopping => self.unlink(k),
            State::Vacant | State::Parked => {}
        }
    }

    /// Puts a key into the list that its state asks for.
    pub(super) fn attach(&mut self, k: u32) {
        match self.keys[k as usize].state {
            State::Ready => self.queue.push(&mut self.keys, &mut self.prevs, k),
            State::Proposed | State::Owned | State::Stopping => self.link(k),
            State::Vacant | State::Parked => {}
        }
    }
}
