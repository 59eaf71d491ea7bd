//! Many keys at once.
//!
//! First the deficits: how much each node lacks of its share of everything that the nodes with room will have in the end.
//! A node that has more than its share already, or no room for it, is set aside and the rest divided anew among the
//! others, until all agree ("water-filling", in the order of Bitran and Hax, which ends with the exact answer).
//!
//! Equal keys are then dealt node by node, so that a node's keys are neighbours in memory. Keys of mixed weight are dealt
//! heaviest first, each to the node that lacks most (Graham's LPT rule), with a bucket queue in the place of a heap: the
//! largest deficit only ever falls, so the search for it is one sweep downwards, and each key costs O(1) on average.

use super::board::{CLASSES, LISTS, NONE, State};
use super::quota::{Remainders, Share, divide};
use super::{KeyIx, NodeIx, Planner};

/// When keys of several priorities are dealt together each node gets its part in this many rounds, so that the first
/// keys of the queue do not all end on the first node.
const ROUNDS: u64 = 16;

/// Buckets of the deficit queue: the finest distinction between deficits is the largest of them divided by this.
const BUCKETS: usize = 1 << 13;

/// Keys that are listed together, few enough that all of them stay in the nearest cache.
const BLOCK: usize = 256;

/// Weights are sorted by their leading bits: 32 steps per power of two is 3 %, which is all that LPT can use.
const STEPS: usize = 32;

/// A node that can take keys, during one bulk assignment.
#[derive(Clone, Copy, Debug)]
struct Taker {
    node: u32,
    affinity: u32,
    /// What it has, in the unit that is divided.
    load: u64,
    /// How many more keys it could be given.
    room: u64,
    /// What it lacks, in the unit that is divided.
    lacks: u64,
}

impl Planner {
    /// Gives the first `count` keys of the queue, for which there is room, to the nodes.
    pub(super) fn assign_many(&mut self, count: usize, out: &mut Vec<(KeyIx, NodeIx)>) {
        let first = out.len();
        let mut apart = Vec::new();
        let mut weight = 0u64;
        out.reserve(count);
        let ranked = self.queue.take(&self.keys, &mut self.prevs, count, |k, key| {
            if key.target == NONE && key.place == NONE {
                weight += u64::from(key.weight);
                // What a key weighs stands where its node will: the two are never needed together.
                out.push((KeyIx(k), NodeIx(key.weight)));
            } else {
                apart.push(k);
            }
        });
        // Keys on the move first, for their place is known and counted; keys that avoid a node last, for theirs
        // depends on the others.
        let (bound, picky): (Vec<u32>, Vec<u32>) =
            apart.into_iter().partition(|&k| self.awaits(self.keys[k as usize].target));
        let mut later = Vec::new();
        for k in bound {
            self.assign_one(k, &mut later);
        }
        let end = self.deal(&mut out[first..], weight, ranked);
        let mut rest: Vec<u32> = out.drain(first + end..).map(|(k, _)| k.0).collect();
        rest.extend(picky);
        out.append(&mut later);
        for k in rest {
            self.assign_one(k, out);
        }
    }

    /// Puts nodes in the place of the weights of the pairs, and makes it so. Returns how many of them, from the front, were given one.
    fn deal(&mut self, pairs: &mut [(KeyIx, NodeIx)], weight: u64, ranked: bool) -> usize {
        if pairs.is_empty() {
            return 0;
        }
        let (unit, equal) = self.unit();
        let unit = if equal { unit } else { 1 };
        let mut takers: Vec<Taker> = (0u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| node.open)
            .map(|(n, node)| Taker {
                node: n,
                affinity: node.affinity,
                load: if unit == 1 { node.load } else { node.load / unit },
                room: node.room().into(),
                lacks: 0,
            })
            .collect();
        fill(&mut takers, weight / unit, equal, &mut self.remainders);
        let end = if equal { deal_equal(&mut takers, pairs, ranked) } else { deal_mixed(&mut takers, pairs) };
        for taker in &takers {
            let node = &mut self.nodes[taker.node as usize];
            node.load = taker.load * unit;
            node.proposed += (u64::from(node.room()) - taker.room) as u32;
        }
        self.settle_many(&pairs[..end]);
        end
    }

    /// Makes the proposals so: the same as one at a time, with the sums and the ranking brought up to date once. The
    /// nodes have their new load already.
    fn settle_many(&mut self, pairs: &[(KeyIx, NodeIx)]) {
        self.epoch += 1;
        self.counts[State::Ready as usize] -= pairs.len();
        self.counts[State::Proposed as usize] += pairs.len();
        // As `link` does it, but what each list's old head is told comes after a whole block: a branch on it, as soon as it
        // is read from far away, would make every key wait for memory.
        for block in pairs.chunks(BLOCK) {
            for &(KeyIx(k), NodeIx(n)) in block {
                let key = &mut self.keys[k as usize];
                key.state = State::Proposed;
                key.place = n;
                key.next = std::mem::replace(&mut self.heads[n as usize * LISTS + key.list()], k);
                self.prevs[k as usize] = NONE;
            }
            for &(KeyIx(k), NodeIx(n)) in block {
                let key = &self.keys[k as usize];
                match self.prevs.get_mut(key.next as usize) {
                    Some(prev) => *prev = k,
                    None => self.nodes[n as usize].classes |= 1 << key.list(),
                }
            }
        }
        self.recount_open();
        self.ranking.mark_all();
    }
}

/// The place of a weight in a coarse descending order: its power of two, then the five bits below, which stand side by
/// side in a float.
fn rank(weight: u32) -> usize {
    const FIRST: u32 = (127 + CLASSES as u32) * STEPS as u32 - 1;
    (FIRST - ((weight.max(1) as f32).to_bits() >> (23 - STEPS.ilog2()))) as usize
}

/// Sets what each taker lacks, so that the sum is `units` unless all room is less than that.
fn fill(takers: &mut [Taker], units: u64, counts_room: bool, scratch: &mut Remainders) {
    let mut shares: Vec<Share> = (0u32..)
        .zip(takers.iter())
        .map(|(at, t)| Share { node: at, affinity: t.affinity, load: t.load, quota: 0 })
        .collect();
    let mut units = units;
    while units > 0 && !shares.is_empty() {
        let total = units + shares.iter().map(|share| share.load).sum::<u64>();
        divide(total, &mut shares, scratch);
        let room = |share: &Share| {
            if counts_room { takers[share.node as usize].room } else { u64::MAX }
        };
        let (mut over, mut cut) = (0u64, 0u64);
        for share in &shares {
            over += share.load.saturating_sub(share.quota);
            cut += share.quota.saturating_sub(share.load).saturating_sub(room(share));
        }
        if over == 0 && cut == 0 {
            break;
        }
        // Setting the richer side aside first never sets aside a node that would have come back (Bitran and Hax).
        let mut given = 0;
        shares.retain(|share| {
            let taker = &mut takers[share.node as usize];
            if over >= cut {
                return share.load <= share.quota;
            }
            let fits = share.quota.saturating_sub(share.load) <= taker.room;
            if !fits {
                taker.lacks = taker.room;
                given += taker.room;
            }
            fits
        });
        units -= given;
    }
    if units > 0 {
        for share in &shares {
            takers[share.node as usize].lacks = share.quota.saturating_sub(share.load);
        }
    }
}

/// Node by node in as many rounds as wanted, each round a proportional part of what the node lacks. Returns how many
/// keys, from the front, were given a node.
fn deal_equal(takers: &mut [Taker], pairs: &mut [(KeyIx, NodeIx)], ranked: bool) -> usize {
    let rounds = if ranked { ROUNDS } else { 1 };
    let all = pairs.len();
    let mut pairs = pairs.iter_mut();
    for round in 0..rounds {
        for taker in takers.iter_mut() {
            let part = taker.lacks * (round + 1) / rounds - taker.lacks * round / rounds;
            let before = pairs.len();
            for pair in pairs.by_ref().take(part as usize) {
                pair.1 = NodeIx(taker.node);
            }
            let dealt = (before - pairs.len()) as u64;
            taker.load += dealt;
            taker.room -= dealt;
        }
    }
    all - pairs.len()
}

/// Heaviest first, each to whoever lacks most. Returns how many were given a node; the others, for which mixed weights
/// and scarce room left none, are moved to the end.
fn deal_mixed(takers: &mut [Taker], pairs: &mut [(KeyIx, NodeIx)]) -> usize {
    let order = heaviest_first(pairs);
    let mut order = order.iter();
    let mut heads = vec![NONE; BUCKETS];
    let mut nexts = vec![NONE; takers.len()];
    'all: loop {
        let most = takers.iter().filter(|t| t.room > 0).map(|t| t.lacks).max().unwrap_or(0);
        if most == 0 {
            break;
        }
        let bits = 64 - most.leading_zeros();
        let coarse = bits.saturating_sub(BUCKETS.ilog2());
        heads[0] = NONE;
        for (at, taker) in takers.iter().enumerate().rev() {
            if taker.lacks > 0 && taker.room > 0 {
                let bucket = (taker.lacks >> coarse) as usize;
                nexts[at] = std::mem::replace(&mut heads[bucket], at as u32);
            }
        }
        let mut cursor = (most >> coarse) as usize;
        // The lowest bucket holds all that is finer than this grid can tell apart: it is sown anew on a finer one.
        while cursor > 0 {
            let at = heads[cursor];
            if at == NONE {
                cursor -= 1;
                continue;
            }
            let Some(&pos) = order.next() else { break 'all };
            let taker = &mut takers[at as usize];
            heads[cursor] = nexts[at as usize];
            let weight = std::mem::replace(&mut pairs[pos as usize].1, NodeIx(taker.node)).0;
            taker.room -= 1;
            taker.load += u64::from(weight);
            taker.lacks = taker.lacks.saturating_sub(weight.into());
            if taker.room > 0 {
                let bucket = (taker.lacks >> coarse) as usize;
                nexts[at as usize] = std::mem::replace(&mut heads[bucket], at);
            }
        }
    }
    let rest = order.as_slice();
    if rest.is_empty() {
        return pairs.len();
    }
    for &pos in rest {
        pairs[pos as usize].1 = NodeIx(NONE);
    }
    // A stable sort by one bit.
    pairs.sort_by_key(|pair| pair.1.0 == NONE);
    pairs.len() - rest.len()
}

/// The places of the pairs from the heaviest to the lightest, equals in their order.
fn heaviest_first(pairs: &[(KeyIx, NodeIx)]) -> Vec<u32> {
    let mut starts = [0u32; CLASSES * STEPS + 1];
    for &(_, NodeIx(weight)) in pairs {
        starts[rank(weight) + 1] += 1;
    }
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut order = vec![0; pairs.len()];
    for (pos, &(_, NodeIx(weight))) in (0u32..).zip(pairs) {
        let start = &mut starts[rank(weight)];
        order[*start as usize] = pos;
        *start += 1;
    }
    order
}
