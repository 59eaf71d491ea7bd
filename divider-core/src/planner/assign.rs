//! Owners for the keys that wait: one at a time while they are few, all at once when they are many.

use super::board::{NONE, State};
use super::{KeyIx, NodeIx, Planner};

/// Below this many keys dividing the whole board is never worth it.
const FEW: usize = 16;

impl Planner {
    /// Picks owners for up to `max` ready keys, in the order of the queue, and appends them to `out`.
    ///
    /// Each pick is *proposed* from then on, counted in its node's load and room, until a fact about the key says
    /// otherwise. Highest priority first, then first come, first served. A key that was on the move goes to the target
    /// of its move if that still takes work and has room; others go to newcomers, up to their quotas, and then where the
    /// load per affinity is lowest.
    ///
    /// O(1) when no node has room, however many keys wait. Few keys cost O(log nodes) each; many, or any while there are
    /// newcomers, cost O(keys + nodes) together, and fill the deficits against the exact quotas.
    pub fn assignments(&mut self, max: usize, out: &mut Vec<(KeyIx, NodeIx)>) {
        let room = usize::try_from(self.open.room).unwrap_or(usize::MAX);
        let count = max.min(self.count(State::Ready)).min(room);
        if count == 0 {
            return;
        }
        // Each key taken from the queue finds a place: there is room for all of them, and no node with room refuses any.
        // Where newcomers are to be served first, the quotas are to be divided in any case.
        if !self.newcomers.is_empty() || count >= FEW && count * 4 >= self.open.nodes as usize {
            return self.assign_many(count, out);
        }
        let mut batch = std::mem::take(&mut self.batch);
        self.queue.take(&self.keys, &mut self.prevs, count, |k, _| batch.push(k));
        for k in batch.drain(..) {
            self.assign_one(k, out);
        }
        self.batch = batch;
    }

    /// Gives a key that is no longer in the queue to the target of its move, or to the best node.
    pub(super) fn assign_one(&mut self, k: u32, out: &mut Vec<(KeyIx, NodeIx)>) {
        let key = self.keys[k as usize];
        let n = if self.awaits(key.target) {
            key.target
        } else {
            let (unit, exact) = self.unit();
            self.ranking.refresh(&self.nodes, unit, exact);
            match self.ranking.best(self.open.load, self.open.affinity, key.place) {
                Some(n) => n,
                None => return self.queue.push(&mut self.keys, &mut self.prevs, k),
            }
        };
        self.settle_state(k, State::Proposed, n, NONE, key.in_flight);
        self.link(k);
        out.push((KeyIx(k), NodeIx(n)));
    }

    /// Whether a node, if any, is still there to take the key that was moved to it.
    pub(super) fn awaits(&self, target: u32) -> bool {
        target != NONE && self.nodes[target as usize].open
    }

    /// The weight of a typical planned key, and whether all of them weigh exactly that.
    ///
    /// By the inequality of Cauchy and Schwarz, n·Σw² = (Σw)² when, and only when, all weights are equal.
    pub(super) fn unit(&self) -> (u64, bool) {
        let n = self.planned_keys();
        if n == 0 {
            return (1, true);
        }
        let weight = u128::from(self.weight);
        (self.weight / n, u128::from(n) * self.squares == weight * weight)
    }
}
