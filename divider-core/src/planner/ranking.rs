//! Which node gets the next key: a tournament over the nodes, repaired only where something changed.
//!
//! The rule is the one of apportionment that keeps quota while seats are handed out one at a time (Balinski and Young,
//! "The Quota Method of Apportionment", 1975; the same rule schedules fair shares of a processor, Tijdeman's "chairman
//! assignment"). With load a, affinity p and a key of weight u, among all nodes that would still be below their exact
//! share after this key, that is a / p < (total load + u) / total affinity, take the one with the lowest (a + u) / p.
//! Plain "lowest load per affinity", by whatever divisor, is not enough: Webster's (2a + 1) / p takes a node of affinity
//! 1000 among a hundred of affinity 6 sixteen keys below its share of a hundred.
//!
//! The two ratios of a node do not depend on the rest of the board, so a change of one node touches log(nodes) matches.
//! Seats are ordered by affinity: in a subtree of near-equal affinities both ratios agree on the best, which keeps the
//! search from straying. It is bounded anyway; past the bound the lowest load per affinity wins, which is always below
//! its share.

use std::cmp::Ordering;

use super::board::{NONE, Node};

/// Matches looked at before the search settles for what it has.
const PATIENCE: u32 = 128;

#[derive(Clone, Copy, Debug, Default)]
struct Seat {
    load: u64,
    /// Zero: nobody sits here, or whoever does has no room.
    affinity: u32,
    node: u32,
}

/// The winners of a subtree, as seats.
#[derive(Clone, Copy, Debug)]
struct Match {
    /// The lowest load per affinity after one more key.
    due: u32,
    /// The lowest load per affinity now.
    light: u32,
}

const NOBODY: Match = Match { due: NONE, light: NONE };

/// The share that a node must be below to be given a key, as a fraction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar {
    pub(super) load: u64,
    pub(super) affinity: u64,
}

/// The tournament.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    seats: Vec<Seat>,
    /// A binary heap-shaped tree: root at 1, the children of i at 2i and 2i + 1, leaves in the second half.
    tree: Vec<Match>,
    /// By node: its seat, or `NONE`.
    seat_of: Vec<u32>,
    /// By node: already in `changed`.
    marked: Vec<bool>,
    changed: Vec<u32>,
    /// So much changed that building anew is cheaper than repairing.
    all_changed: bool,
    /// Someone has to be seated, or reseated, before the next search.
    unseated: bool,
    /// The weight of one key in the ratios.
    unit: u64,
    /// Repairs since the tree was built.
    repairs: usize,
}

impl Ranking {
    /// Makes room for a node.
    pub(super) fn admit(&mut self, n: u32) {
        let len = n as usize + 1;
        if self.seat_of.len() < len {
            self.seat_of.resize(len, NONE);
            self.marked.resize(len, false);
        }
    }

    /// A node takes part now, or takes part with another affinity.
    pub(super) fn reseat(&mut self) {
        self.unseated = true;
    }

    /// The load or the room of a node changed.
    pub(super) fn mark(&mut self, n: u32) {
        let marked = &mut self.marked[n as usize];
        if !*marked && !self.all_changed {
            *marked = true;
            self.changed.push(n);
        }
    }

    /// Every node changed: forget the bookkeeping.
    pub(super) fn mark_all(&mut self) {
        self.all_changed = true;
    }

    /// Brings the tree up to date. `unit` is the weight of a typical key, exact when all weigh the same.
    pub(super) fn refresh(&mut self, nodes: &[Node], unit: u64, exact: bool) {
        // Another unit means another tree, so with mixed weights only a change of size counts; and not more often than
        // what was saved by repairing pays for.
        let other = if exact { unit != self.unit } else { unit >= self.unit * 2 || unit * 2 <= self.unit };
        let reunit = self.unit == 0 || other && self.repairs * 16 >= self.seats.len();
        if reunit {
            self.unit = unit;
        }
        if self.unseated {
            self.seat(nodes);
        }
        if self.unseated || reunit || self.all_changed || self.changed.len() * 8 > self.seats.len() + 8 {
            self.build(nodes);
        } else {
            while let Some(n) = self.changed.pop() {
                self.marked[n as usize] = false;
                self.repair(n, &nodes[n as usize]);
            }
        }
        self.unseated = false;
    }

    fn seat(&mut self, nodes: &[Node]) {
        let seat_of = &mut self.seat_of;
        self.seats.retain(|seat| {
            let stays = nodes[seat.node as usize].takes_part();
            if !stays {
                seat_of[seat.node as usize] = NONE;
            }
            stays
        });
        for (n, node) in (0u32..).zip(nodes) {
            if node.takes_part() && self.seat_of[n as usize] == NONE {
                self.seats.push(Seat { node: n, ..Seat::default() });
            }
        }
        // A stable sort finds the long run that is in order already; of plain numbers it is fast even without one.
        let mut order: Vec<u64> = self
            .seats
            .iter()
            .map(|seat| u64::from(nodes[seat.node as usize].affinity) << 32 | u64::from(seat.node))
            .collect();
        order.sort();
        for (seat, order) in self.seats.iter_mut().zip(order) {
            seat.node = order as u32;
        }
        for (at, seat) in (0u32..).zip(&self.seats) {
            self.seat_of[seat.node as usize] = at;
        }
        let leaves = self.seats.len().next_power_of_two();
        self.tree.clear();
        self.tree.resize(leaves * 2, NOBODY);
    }

    fn build(&mut self, nodes: &[Node]) {
        for n in self.changed.drain(..) {
            self.marked[n as usize] = false;
        }
        self.all_changed = false;
        self.repairs = 0;
        let leaves = self.tree.len() / 2;
        for at in 0..self.seats.len() {
            let seat = &mut self.seats[at];
            let node = &nodes[seat.node as usize];
            seat.load = node.load;
            seat.affinity = if node.open { node.affinity } else { 0 };
            self.tree[leaves + at] = leaf(at as u32, seat);
        }
        for i in (1..leaves).rev() {
            self.tree[i] = self.play(i);
        }
    }

    fn repair(&mut self, n: u32, node: &Node) {
        let at = self.seat_of[n as usize];
        if at == NONE {
            return;
        }
        self.repairs += 1;
        let seat = &mut self.seats[at as usize];
        seat.load = node.load;
        seat.affinity = if node.open { node.affinity } else { 0 };
        let mut i = self.tree.len() / 2 + at as usize;
        self.tree[i] = leaf(at, seat);
        while i > 1 {
            i /= 2;
            self.tree[i] = self.play(i);
        }
    }

    fn play(&self, i: usize) -> Match {
        let (left, right) = (self.tree[2 * i], self.tree[2 * i + 1]);
        Match { due: self.better(left.due, right.due, self.unit), light: self.better(left.light, right.light, 0) }
    }

    /// Of two seats the one with the lower (load + unit) / affinity; on a tie more affinity, then the lower index.
    fn better(&self, a: u32, b: u32, unit: u64) -> u32 {
        if a == NONE || b == NONE {
            return a.min(b);
        }
        let (x, y) = (&self.seats[a as usize], &self.seats[b as usize]);
        let order = if x.affinity == y.affinity {
            x.load.cmp(&y.load)
        } else {
            ratio(x.load + unit, x.affinity.into(), y.load + unit, y.affinity.into())
        };
        match order {
            Ordering::Less => a,
            Ordering::Greater => b,
            Ordering::Equal if x.affinity == y.affinity => a.min(b),
            Ordering::Equal => a.max(b),
        }
    }

    /// The node for the next key: not `avoid`, if there is another one.
    pub(super) fn best(&self, open_load: u64, open_affinity: u64, avoid: u32) -> Option<u32> {
        let bar = Bar { load: open_load + self.unit, affinity: open_affinity };
        let avoid = if avoid == NONE { NONE } else { self.seat_of[avoid as usize] };
        let mut search = Search { ranking: self, bar, avoid, best: NONE, patience: PATIENCE };
        search.visit(1);
        let mut seat = search.best;
        if seat == NONE {
            seat = self.lightest(avoid);
        }
        self.seats.get(seat as usize).map(|seat| seat.node)
    }

    /// The seat with the lowest load per affinity other than `avoid`, or `avoid` if it is the only one with room.
    fn lightest(&self, avoid: u32) -> u32 {
        let Some(root) = self.tree.get(1) else {
            return NONE;
        };
        if avoid == NONE || root.light != avoid {
            return root.light;
        }
        // The best of all others is the best of the subtrees beside the way from its leaf to the root.
        let mut best = NONE;
        let mut i = self.tree.len() / 2 + avoid as usize;
        while i > 1 {
            best = self.better(best, self.tree[i ^ 1].light, 0);
            i /= 2;
        }
        if best == NONE { avoid } else { best }
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.seats.capacity() * size_of::<Seat>()
            + self.tree.capacity() * size_of::<Match>()
            + self.seat_of.capacity() * size_of::<u32>()
            + self.marked.capacity()
            + self.changed.capacity() * size_of::<u32>()
    }
}

fn leaf(at: u32, seat: &Seat) -> Match {
    if seat.affinity == 0 { NOBODY } else { Match { due: at, light: at } }
}

/// Compares a / p with b / q.
fn ratio(a: u64, p: u64, b: u64, q: u64) -> Ordering {
    (u128::from(a) * u128::from(q)).cmp(&(u128::from(b) * u128::from(p)))
}

/// A branch-and-bound search for the best of those below the bar.
struct Search<'a> {
    ranking: &'a Ranking,
    bar: Bar,
    avoid: u32,
    best: u32,
    patience: u32,
}

impl Search<'_> {
    fn visit(&mut self, i: usize) {
        let Some(&Match { due, light }) = self.ranking.tree.get(i) else {
            return;
        };
        if due == NONE || self.patience == 0 {
            return;
        }
        self.patience -= 1;
        if self.best != NONE && self.ranking.better(self.best, due, self.ranking.unit) == self.best {
            return;
        }
        if !self.below(light) {
            return;
        }
        if due != self.avoid && self.below(due) {
            self.best = due;
            return;
        }
        let (left, right) = (2 * i, 2 * i + 1);
        let Some(right_due) = self.ranking.tree.get(right).map(|m| m.due) else {
            return;
        };
        let left_due = self.ranking.tree[left].due;
        if self.ranking.better(left_due, right_due, self.ranking.unit) == left_due {
            self.visit(left);
            self.visit(right);
        } else {
            self.visit(right);
            self.visit(left);
        }
    }

    fn below(&self, seat: u32) -> bool {
        let seat = &self.ranking.seats[seat as usize];
        ratio(seat.load, seat.affinity.into(), self.bar.load, self.bar.affinity) == Ordering::Less
    }
}
