//! Which keys change hands for the sake of balance.
//!
//! A key moves from a node above its quota to one below, and only if both come nearer to theirs by it. So every move is
//! progress, the sum of all distances falls, and there is an end; and with equal keys no plan that gives the receivers
//! their quota has fewer moves, for each move fills one key of deficit and none is ever made twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::board::{BUSY, LISTS, NONE, State, class};
use super::{KeyIx, MaxInFlight, NodeIx, Planner};

/// Keys of one list looked at before the search goes on to lighter ones: a move must not cost what a node holds.
const PATIENCE: usize = 64;

/// The distance from the quota, the larger the sooner, then the lower index.
type Heap = BinaryHeap<(u64, Reverse<u32>)>;

impl Planner {
    /// Appends the keys that should be taken from their owners now, within the limit of keys in flight.
    ///
    /// Each is in flight from now on, counts for its target and is asked for once. The leader revokes it:
    /// [`stopping`](Self::stopping), then [`ready`](Self::ready), then [`assignments`](Self::assignments) names the
    /// target. A revoke that is refused comes back as [`own`](Self::own) with the same owner, and ends the move.
    ///
    /// Call it after [`assignments`](Self::assignments), so that keys without an owner fill gaps first. O(1) when nothing
    /// happened, or when nobody is entitled to anything; else O(nodes), and O(log nodes) per move.
    pub fn moves(&mut self, out: &mut Vec<KeyIx>) {
        if !self.stirred || self.newcomers.is_empty() && self.tolerance.is_none() {
            return;
        }
        let budget = self.max_moves().saturating_sub(self.in_flight);
        if budget == 0 {
            return;
        }
        self.refresh_quotas();
        let first = out.len();
        let pull = self.newcomers.iter().any(|&n| self.lacks(n) > 0);
        if pull {
            let mut donors = self.donors(0);
            let mut receivers = self.receivers(self.newcomers.iter().copied());
            self.pair(&mut donors, &mut receivers, budget, out);
        }
        let spent = out.len() - first;
        if let Some(tolerance) = self.tolerance
            && spent < budget
        {
            let mut donors = self.donors(tolerance);
            if !donors.is_empty() {
                let mut receivers = self.receivers(0..self.nodes.len() as u32);
                self.pair(&mut donors, &mut receivers, budget - spent, out);
            }
        }
        // Moves do not change what anyone is due.
        self.quota_epoch = self.epoch;
        self.stirred = false;
        self.settle(out.len() == first);
    }

    /// Appends the newcomers that have had their share since the last call, and lost their entitlement by it: they have
    /// their quota, with nothing on its way any more, or there is no room, or nothing left, for more.
    pub fn take_settled(&mut self, out: &mut Vec<NodeIx>) {
        out.append(&mut self.settled);
    }

    fn max_moves(&self) -> usize {
        match self.max_in_flight {
            MaxInFlight::Keys(keys) => keys as usize,
            MaxInFlight::Percent(percent) => (self.planned_keys() * u64::from(percent) / 100).max(1) as usize,
        }
    }

    pub(super) fn refresh_quotas(&mut self) {
        if self.quota_epoch == self.epoch {
            return;
        }
        let mut shares = std::mem::take(&mut self.shares);
        let mut remainders = std::mem::take(&mut self.remainders);
        let unit = self.divide_quotas(&mut shares, &mut remainders);
        self.quotas.fill(0);
        for share in &shares {
            self.quotas[share.node as usize] = share.quota * unit;
        }
        self.shares = shares;
        self.remainders = remainders;
        self.quota_epoch = self.epoch;
    }

    pub(super) fn lacks(&self, n: u32) -> u64 {
        self.quotas[n as usize].saturating_sub(self.nodes[n as usize].load)
    }

    /// The nodes above their quota by more than `tolerance` millionths of it.
    fn donors(&self, tolerance: u64) -> Heap {
        let above = |(n, (node, &quota)): (u32, (&super::Node, &u64))| {
            let over = node.load.saturating_sub(quota);
            let bar = u128::from(quota) * u128::from(tolerance);
            let gives = node.alive && node.accepting && over > 0 && u128::from(over) * 1_000_000 > bar;
            gives.then_some((over, Reverse(n)))
        };
        (0u32..).zip(self.nodes.iter().zip(&self.quotas)).filter_map(above).collect()
    }

    fn receivers(&self, among: impl Iterator<Item = u32>) -> Heap {
        among
            .map(|n| (self.lacks(n), Reverse(n)))
            .filter(|&(lacks, Reverse(n))| lacks > 0 && self.can_receive(n))
            .collect()
    }

    fn can_receive(&self, n: u32) -> bool {
        let node = &self.nodes[n as usize];
        node.takes_part() && node.room_for_moves() > 0
    }

    /// Moves one key at a time from whoever is most above to whoever is most below.
    fn pair(&mut self, donors: &mut Heap, receivers: &mut Heap, budget: usize, out: &mut Vec<KeyIx>) {
        let wanted = out.len() + budget;
        while out.len() < wanted {
            let Some(&(lacks, Reverse(to))) = receivers.peek() else {
                return;
            };
            let Some((over, Reverse(from))) = donors.pop() else {
                return;
            };
            let limit = lacks.min(over);
            let k = self.fitting(from, limit);
            if k == NONE {
                // No later pair allows this donor more, since all distances only shrink.
                continue;
            }
            receivers.pop();
            let weight = u64::from(self.keys[k as usize].weight);
            self.unlink(k);
            self.settle_state(k, State::Owned, from, to, true);
            self.link(k);
            out.push(KeyIx(k));
            if over > weight {
                donors.push((over - weight, Reverse(from)));
            }
            if lacks > weight && self.can_receive(to) {
                receivers.push((lacks - weight, Reverse(to)));
            }
        }
    }

    /// A key of a node for a move that may carry `limit`: the most recently placed one of the heaviest class that fits;
    /// failing that, one that overshoots by less than what is gained. `NONE` if there is neither.
    fn fitting(&self, n: u32, limit: u64) -> u32 {
        let classes = self.nodes[n as usize].classes & !(1 << BUSY);
        let top = class(u32::try_from(limit).unwrap_or(u32::MAX)).min(BUSY - 1);
        let mut below = classes & ((2 << top) - 1);
        while below != 0 {
            let list = below.ilog2();
            let k = self.scan(n, list as usize, limit);
            if k != NONE {
                return k;
            }
            below &= !(1 << list);
        }
        // What is left is heavier than `limit`. Below twice that, both sides still end nearer to their quotas.
        let mut above = classes & !((1 << top) - 1);
        while above != 0 {
            let list = above.trailing_zeros();
            let k = self.scan(n, list as usize, (limit * 2).saturating_sub(1));
            if k != NONE || list as usize > top {
                return k;
            }
            above &= above - 1;
        }
        NONE
    }

    /// The first key of a list that is owned and weighs no more than `limit`.
    fn scan(&self, n: u32, list: usize, limit: u64) -> u32 {
        let mut k = self.heads[n as usize * LISTS + list];
        for _ in 0..PATIENCE {
            let Some(key) = self.keys.get(k as usize) else {
                return NONE;
            };
            if key.state == State::Owned && u64::from(key.weight) <= limit {
                return k;
            }
            k = key.next;
        }
        NONE
    }

    /// Ends the entitlement of those who have what they can get. `dry` says that a whole search found no move.
    fn settle(&mut self, dry: bool) {
        let dry = dry && self.count(State::Ready) == 0 && self.count(State::Proposed) == 0 && self.pinned == 0;
        let mut newcomers = std::mem::take(&mut self.newcomers);
        newcomers.retain(|&n| {
            let done = self.nodes[n as usize].inbound == 0 && (dry || self.lacks(n) == 0 || !self.can_receive(n));
            if done {
                self.nodes[n as usize].newcomer = false;
                self.settled.push(NodeIx(n));
            }
            !done
        });
        self.newcomers = newcomers;
    }
}
