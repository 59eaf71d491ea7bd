//! Boards for the planner's benches, and what happens on them.

use std::hint::black_box;

use divider_core::{
    Balance, MaxInFlight,
    sim::{KeyIx, NodeIx, NodeSpec, Planner},
};

pub(crate) fn node(affinity: u32) -> NodeSpec {
    NodeSpec { affinity, capacity: None, accepting: true }
}

pub(crate) struct Board {
    pub(crate) planner: Planner,
    pub(crate) nodes: Vec<NodeIx>,
    pub(crate) out: Vec<(KeyIx, NodeIx)>,
    pub(crate) moves: Vec<KeyIx>,
}

impl Board {
    /// Nodes with affinities from `affinity`, and ready keys with weights from `weight`.
    pub(crate) fn new(nodes: u32, affinity: impl Fn(u32) -> u32, keys: u32, weight: impl Fn(u32) -> u32) -> Self {
        let mut planner = Planner::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
        let nodes = (0..nodes).map(|n| planner.join(node(affinity(n)), true)).collect();
        for k in 0..keys {
            let k = planner.add_key(weight(k), 0);
            planner.ready(k, None);
        }
        Self { planner, nodes, out: Vec::with_capacity(keys as usize), moves: Vec::with_capacity(1000) }
    }

    pub(crate) fn assign(&mut self) {
        self.planner.assignments(usize::MAX, &mut self.out);
    }

    pub(crate) fn own(&mut self) {
        for (k, n) in self.out.drain(..) {
            self.planner.own(k, n);
        }
    }

    /// One key comes, is given a node and owned.
    pub(crate) fn add(&mut self) -> KeyIx {
        let k = self.planner.add_key(1, 0);
        self.planner.ready(k, None);
        self.assign();
        self.own();
        self.planner.moves(&mut self.moves);
        k
    }

    pub(crate) fn planned(mut self) -> Self {
        self.assign();
        self.own();
        self
    }
}

pub(crate) fn even(_: u32) -> u32 {
    1000
}

pub(crate) fn uneven(n: u32) -> u32 {
    [1000, 2000, 3000, 500, 1000][n as usize % 5]
}

pub(crate) fn one(_: u32) -> u32 {
    1
}

/// Three orders of magnitude, evenly over their logarithms.
pub(crate) fn spread(k: u32) -> u32 {
    let x = k.wrapping_mul(2_654_435_761) >> 8;
    let power = f64::from(x) / f64::from(1 << 24) * 3.0;
    10f64.powf(power) as u32
}

pub(crate) fn join(board: &mut Board) {
    let n = board.planner.join(node(1000), false);
    board.planner.moves(&mut board.moves);
    black_box(n);
}

pub(crate) fn leave(board: &mut Board) {
    let n = board.nodes[board.nodes.len() / 2];
    board.planner.leave(n);
    board.assign();
}

/// Two of the nodes leave and two others come.
pub(crate) fn replace_two(board: &mut Board) {
    for at in [10, 30] {
        board.planner.leave(board.nodes[at]);
    }
    for _ in 0..2 {
        board.planner.join(node(1000), false);
    }
    board.assign();
    board.planner.moves(&mut board.moves);
    board.own();
}
