//! Many keys at once.
//!
//! First the deficits: how much each node lacks of its share of everything that the nodes with room will have in the end.
//! A node that has more than its share already, or no room for it, is set aside and the rest divided anew among the
//! others, until all agree ("water-filling", in the order of Bitran and Hax, which ends with the exact answer).
//!
//! Equal keys are then dealt node by node, so that a node's keys are neighbours in memory. Keys of mixed weight are dealt
//! heaviest first, each to the node that lacks most (Graham's LPT rule), with a bucket queue in the place of a heap: the
//! largest deficit only ever falls, so the search for it is one sweep downwards, and each key costs O(1) on average.
//!
//! That order jumps through memory, and most keys need not be dealt so carefully. What a node gets too much or too little
//! of one power of two, lighter keys make up for, if there are enough of them. So each power of two in turn, the heaviest
//! first, is dealt in runs of neighbours, to each node in proportion to what it still lacks, wherever that leaves no node
//! above its share and enough to mend it with; and by LPT where it does not, which is so for keys that are heavy beside a
//! node's share. Keys so light that one more or less is nothing are one run, whatever their power of two.

use std::{hint::select_unpredictable, ops::Range};

use super::board::{CLASSES, LISTS, NONE, State, class};
use super::quota::{Remainders, Share, divide};
use super::{KeyIx, MAX_WEIGHT, NodeIx, Planner};

/// When keys of several priorities are dealt together each node gets its part in this many rounds, so that the first
/// keys of the queue do not all end on the first node.
const ROUNDS: u64 = 16;

/// Buckets of the deficit queue: the finest distinction between deficits is the largest of them divided by this.
const BUCKETS: usize = 1 << 13;

/// Keys that are listed together, few enough that all of them stay in the nearest cache.
const BLOCK: usize = 256;

/// A class is dealt in a run to nodes that will lack this many times its power of two when it has been dealt. A run may be
/// off by less than twice the power of two, and those that have no part in it may take half of what is lighter: so four is
/// the least by which no run makes a node overshoot.
const MENDED: u64 = 4;

/// Where a node's share is less than this many typical keys every one of them counts, and there are no runs.
const MANY: u64 = 16;

/// Keys are light if no node's share is less than this many of them. Twice the power of two by which a run of them may be off
/// is 0.8 % then.
const FINE: u64 = 256;

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
    /// What it is to be given before the others, in the unit that is divided.
    due: u64,
    /// What it lacks, in the unit that is divided.
    lacks: u64,
}

impl Taker {
    /// Room for units beyond those that are due, if units are keys; else nobody knows how many keys they will be.
    fn room(&self, units_are_keys: bool) -> u64 {
        if units_are_keys { self.room - self.due } else { u64::MAX }
    }

    /// Takes keys that weigh so much together.
    fn take(&mut self, keys: u64, weight: u64) {
        self.room -= keys;
        self.load += weight;
        self.lacks = self.lacks.saturating_sub(weight);
    }
}

impl Planner {
    /// Gives the first `count` keys of the queue, for which there is room, to the nodes.
    pub(super) fn assign_many(&mut self, count: usize, out: &mut Vec<(KeyIx, NodeIx)>) {
        let first = out.len();
        let mut apart = Vec::new();
        let mut weight = 0u64;
        let mut tally = Tally::default();
        let (_, equal) = self.unit();
        out.reserve(count);
        let ranked = self.queue.take(&self.keys, &mut self.prevs, count, |k, key| {
            if key.target == NONE && key.place == NONE {
                weight += u64::from(key.weight);
                if !equal {
                    tally.count(key.weight);
                }
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
        let end = self.deal(&mut out[first..], weight, tally, ranked);
        let mut rest: Vec<u32> = out.drain(first + end..).map(|(k, _)| k.0).collect();
        rest.extend(picky);
        out.append(&mut later);
        for k in rest {
            self.assign_one(k, out);
        }
    }

    /// Puts nodes in the place of the weights of the pairs, and makes it so. Returns how many of them, from the front, were given one.
    fn deal(&mut self, pairs: &mut [(KeyIx, NodeIx)], weight: u64, tally: Tally, ranked: bool) -> usize {
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
                due: 0,
                lacks: 0,
            })
            .collect();
        let mut units = weight / unit;
        if !self.newcomers.is_empty() {
            self.refresh_quotas();
            units -= self.serve_newcomers(&mut takers, units, unit, equal);
        }
        fill(&mut takers, units, equal, &mut self.remainders);
        for taker in &mut takers {
            taker.load -= taker.due;
            taker.lacks += taker.due;
        }
        let end = match equal {
            true => deal_equal(&mut takers, pairs, ranked),
            false => deal_mixed(&mut takers, pairs, tally, ranked),
        };
        for taker in &takers {
            let node = &mut self.nodes[taker.node as usize];
            node.load = taker.load * unit;
            node.proposed += (u64::from(node.room()) - taker.room) as u32;
        }
        match equal {
            true => self.settle_many::<false>(&pairs[..end]),
            false => self.settle_many::<true>(&pairs[..end]),
        }
        end
    }

    /// What newcomers lack of their quotas is theirs first: what they are given now need not be pulled from others later. Counts
    /// it as if they had it, in proportion where there is not enough for all, and returns how much it is.
    fn serve_newcomers(&self, takers: &mut [Taker], units: u64, unit: u64, equal: bool) -> u64 {
        for taker in takers.iter_mut().filter(|taker| self.nodes[taker.node as usize].newcomer) {
            taker.due = (self.lacks(taker.node) / unit).min(taker.room(equal));
        }
        let all: u64 = takers.iter().map(|taker| taker.due).sum();
        let served = all.min(units);
        let (mut passed, mut given) = (0, 0);
        for taker in takers.iter_mut().filter(|taker| taker.due > 0) {
            passed += taker.due;
            taker.due = (u128::from(passed) * u128::from(served) / u128::from(all)) as u64 - given;
            taker.load += taker.due;
            given += taker.due;
        }
        served
    }

    /// Makes the proposals so: the same as one at a time, with the sums and the ranking brought up to date once. The
    /// nodes have their new load already.
    fn settle_many<const MIXED: bool>(&mut self, pairs: &[(KeyIx, NodeIx)]) {
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
                if MIXED {
                    // Nobody can foretell which key is the first of its list, so nothing branches on it.
                    let is_first = key.next == NONE;
                    let at = select_unpredictable(is_first, k, key.next);
                    self.prevs[at as usize] = select_unpredictable(is_first, NONE, k);
                    self.nodes[n as usize].classes |= 1 << key.list();
                    continue;
                }
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
        let room = |share: &Share| takers[share.node as usize].room(counts_room);
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
            let room = taker.room(counts_room);
            let fits = share.quota.saturating_sub(share.load) <= room;
            if !fits {
                taker.lacks = room;
                given += room;
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

/// Returns how many keys were given a node; the others, for which mixed weights and scarce room left none, are moved to the
/// end.
fn deal_mixed(takers: &mut [Taker], pairs: &mut [(KeyIx, NodeIx)], tally: Tally, ranked: bool) -> usize {
    // A run takes no heed of room, and puts the first keys of the queue on the first nodes.
    let left = if ranked || takers.iter().any(|taker| taker.room < pairs.len() as u64) {
        deal_heaviest_first(takers, pairs, &Vec::from_iter(0..pairs.len() as u32))
    } else {
        deal_by_class(takers, pairs, tally)
    };
    if left > 0 {
        // A stable sort by one bit.
        pairs.sort_by_key(|pair| pair.1.0 == NONE);
    }
    pairs.len() - left
}

/// Class by class, the heaviest first: in runs where lighter keys can mend what runs leave uneven, by LPT where not.
/// Returns how many were not given a node.
fn deal_by_class(takers: &mut [Taker], pairs: &mut [(KeyIx, NodeIx)], tally: Tally) -> usize {
    let shares = takers.iter().filter(|taker| taker.lacks > 0).map(|taker| taker.load + taker.lacks);
    let least = shares.min().unwrap_or(0);
    let fine = least / FINE;
    let (order, classes) = by_class(pairs, tally, fine);
    let mut lighter: u64 = classes.iter().map(|class| class.weight).sum();
    let few = least < MANY * (lighter / pairs.len() as u64);
    let mut dealt = 0;
    for Class { unit, keys, weight } in classes {
        lighter -= weight;
        let mends = if unit <= fine { u64::MAX } else { lighter };
        if few || keys.is_empty() || mends / (takers.len() as u64) < MENDED * unit {
            continue;
        }
        deal_heaviest_first(takers, pairs, &order[dealt..keys.start]);
        let ran = deal_run(takers, pairs, &order[keys.clone()], weight, unit, mends);
        dealt = if ran { keys.end } else { keys.start };
    }
    deal_heaviest_first(takers, pairs, &order[dealt..])
}

/// Neighbours to one node, to each a part of the run's weight in proportion to what it lacks. Does nothing, and says so,
/// where `mends`, the weight that follows, could not mend what keys from `unit` up to twice that leave uneven.
fn deal_run(
    takers: &mut [Taker],
    pairs: &mut [(KeyIx, NodeIx)],
    run: &[u32],
    weight: u64,
    unit: u64,
    mends: u64,
) -> bool {
    let lacking: u64 = takers.iter().map(|taker| taker.lacks).sum();
    let least = u128::from(MENDED * unit) * u128::from(lacking);
    let takes = |taker: &Taker| u128::from(taker.lacks) * u128::from(mends) >= least;
    let served: u64 = takers.iter().filter(|taker| takes(taker)).map(|taker| taker.lacks).sum();
    // Those that lack too little to have a part in it get lighter keys only: half of these, at most.
    if lacking - served > mends / 2 {
        return false;
    }
    let (mut passed, mut given) = (0u64, 0u64);
    let mut run = run.iter();
    for taker in takers.iter_mut().filter(|taker| takes(taker)) {
        passed += taker.lacks;
        // All of these are exact in a float, and the last of them is `weight` itself.
        let due = (passed as f64 / served as f64 * weight as f64) as u64;
        let (left, before) = (run.len(), given);
        while given < due
            && let Some(&pos) = run.next()
        {
            given += u64::from(std::mem::replace(&mut pairs[pos as usize].1, NodeIx(taker.node)).0);
        }
        taker.take((left - run.len()) as u64, given - before);
    }
    debug_assert!(run.as_slice().is_empty());
    true
}

/// The listed keys, heaviest first, each to whoever lacks most. Returns how many were left without a node.
fn deal_heaviest_first(takers: &mut [Taker], pairs: &mut [(KeyIx, NodeIx)], listed: &[u32]) -> usize {
    if listed.is_empty() {
        return 0;
    }
    let order = heaviest_first(pairs, listed);
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
            taker.take(1, weight.into());
            if taker.room > 0 {
                let bucket = (taker.lacks >> coarse) as usize;
                nexts[at as usize] = std::mem::replace(&mut heads[bucket], at);
            }
        }
    }
    for &pos in order.as_slice() {
        pairs[pos as usize].1 = NodeIx(NONE);
    }
    order.len()
}

/// How many keys there are of each class, the heaviest first, and what they weigh together. It is counted while the keys are
/// taken from the queue, which waits for memory anyway.
#[derive(Default)]
struct Tally {
    /// Number and weight in one word, for so few keys that both fit: what is written to memory and read again at once costs
    /// a few nanoseconds.
    few: [u64; CLASSES],
    in_few: u32,
    keys: [u32; CLASSES],
    weights: [u64; CLASSES],
}

impl Tally {
    /// `MAX_WEIGHT` times this is less than 2^32.
    const FEW: u32 = 1 << 11;

    fn at(weight: u32) -> usize {
        CLASSES - 1 - class(weight)
    }

    fn count(&mut self, weight: u32) {
        self.few[Self::at(weight)] += 1 << 32 | u64::from(weight);
        self.in_few += 1;
        if self.in_few == Self::FEW {
            self.sum_up();
        }
    }

    #[inline(never)]
    fn sum_up(&mut self) {
        for ((few, keys), weight) in self.few.iter_mut().zip(&mut self.keys).zip(&mut self.weights) {
            *keys += (*few >> 32) as u32;
            *weight += std::mem::take(few) & u64::from(u32::MAX);
        }
        self.in_few = 0;
    }
}

/// The keys from a power of two to the next.
struct Class {
    unit: u64,
    /// Where they stand in the order by class.
    keys: Range<usize>,
    weight: u64,
}

/// The places of the pairs by class, the heaviest first, within a class in their order. What is lighter than `fine` belongs
/// to the class of `fine`, which is the last one.
fn by_class(pairs: &[(KeyIx, NodeIx)], mut tally: Tally, fine: u64) -> (Vec<u32>, Vec<Class>) {
    tally.sum_up();
    let (mut ends, mut weights) = (tally.keys, tally.weights);
    let last = Tally::at(u32::try_from(fine).unwrap_or(MAX_WEIGHT).clamp(1, MAX_WEIGHT));
    weights[last] = weights[last..].iter().sum();
    ends[last] = ends[last..].iter().sum();
    let mut start = 0;
    let classes = (0..=last)
        .map(|at| {
            let keys = start as usize..(start + ends[at]) as usize;
            ends[at] = std::mem::replace(&mut start, keys.end as u32);
            Class { unit: 1 << (CLASSES - 1 - at), keys, weight: weights[at] }
        })
        .collect();
    let mut fine = ends[last];
    let mut order = vec![0; pairs.len()];
    for (pos, &(_, NodeIx(weight))) in (0u32..).zip(pairs) {
        // Without a branch, and with the place for half of all keys in a register: see `Tally`.
        let at = Tally::at(weight);
        let end = &mut ends[at];
        let is_fine = at >= last;
        order[if is_fine { fine } else { *end } as usize] = pos;
        fine += u32::from(is_fine);
        *end += u32::from(!is_fine);
    }
    (order, classes)
}

/// The listed places from the heaviest to the lightest, equals in their order.
fn heaviest_first(pairs: &[(KeyIx, NodeIx)], listed: &[u32]) -> Vec<u32> {
    let rank = |pos: u32| rank(pairs[pos as usize].1.0);
    let mut starts = [0u32; CLASSES * STEPS + 1];
    for &pos in listed {
        starts[rank(pos) + 1] += 1;
    }
    for i in 1..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut order = vec![0; listed.len()];
    for &pos in listed {
        let start = &mut starts[rank(pos)];
        order[*start as usize] = pos;
        *start += 1;
    }
    order
}
