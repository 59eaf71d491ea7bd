//! What a plan costs, on boards of the size that others publish figures for.
//!
//! `cargo bench -p divider-core --bench planner`
//!
//! "full" is `assignments` alone on a board whose keys wait; "full, carried out" adds the fact of each assignment.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use divider_core::planner::{Balance, KeyIx, MaxInFlight, NodeIx, NodeSpec, Planner};

fn node(affinity: u32) -> NodeSpec {
    NodeSpec { affinity, capacity: None, accepting: true }
}

struct Board {
    planner: Planner,
    nodes: Vec<NodeIx>,
    out: Vec<(KeyIx, NodeIx)>,
    moves: Vec<KeyIx>,
}

impl Board {
    /// Nodes with affinities from `affinity`, and ready keys with weights from `weight`.
    fn new(nodes: u32, affinity: impl Fn(u32) -> u32, keys: u32, weight: impl Fn(u32) -> u32) -> Self {
        let mut planner = Planner::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
        let nodes = (0..nodes).map(|n| planner.join(node(affinity(n)), true)).collect();
        for k in 0..keys {
            let k = planner.add_key(weight(k), 0);
            planner.ready(k, None);
        }
        Self { planner, nodes, out: Vec::with_capacity(keys as usize), moves: Vec::with_capacity(1000) }
    }

    fn assign(&mut self) {
        self.planner.assignments(usize::MAX, &mut self.out);
    }

    fn own(&mut self) {
        for (k, n) in self.out.drain(..) {
            self.planner.own(k, n);
        }
    }

    fn planned(mut self) -> Self {
        self.assign();
        self.own();
        self
    }
}

fn even(_: u32) -> u32 {
    1000
}

fn uneven(n: u32) -> u32 {
    [1000, 2000, 3000, 500, 1000][n as usize % 5]
}

fn one(_: u32) -> u32 {
    1
}

/// Three orders of magnitude, evenly over their logarithms.
fn spread(k: u32) -> u32 {
    let x = k.wrapping_mul(2_654_435_761) >> 8;
    let power = f64::from(x) / f64::from(1 << 24) * 3.0;
    10f64.powf(power) as u32
}

fn bench(c: &mut Criterion, name: &str, make: impl Fn() -> Board, act: impl Fn(&mut Board)) {
    // The board is built and dropped outside the measured time.
    c.bench_function(name, |b| {
        b.iter_batched(
            &make,
            |mut board| {
                act(&mut board);
                board
            },
            BatchSize::PerIteration,
        );
    });
}

fn full(c: &mut Criterion) {
    let big = || Board::new(10_000, even, 500_000, one);
    bench(c, "full 10k nodes 500k keys", big, Board::assign);
    bench(c, "full, carried out, 10k nodes 500k keys", big, |board| {
        board.assign();
        board.own();
    });
    bench(c, "full 10k uneven nodes 500k keys", || Board::new(10_000, uneven, 500_000, one), Board::assign);
    bench(c, "full 10k nodes 500k mixed keys", || Board::new(10_000, even, 500_000, spread), Board::assign);
    bench(c, "full 10k uneven nodes 500k mixed keys", || Board::new(10_000, uneven, 500_000, spread), Board::assign);
    bench(c, "full 50 nodes 10k keys", || Board::new(50, even, 10_000, one), Board::assign);
    bench(c, "full 50 nodes 10k mixed keys", || Board::new(50, even, 10_000, spread), Board::assign);
    bench(c, "full 1k nodes 1M keys", || Board::new(1_000, even, 1_000_000, one), Board::assign);
}

fn join(board: &mut Board) {
    let n = board.planner.join(node(1000), false);
    board.planner.moves(&mut board.moves);
    black_box(n);
}

fn leave(board: &mut Board) {
    let n = board.nodes[board.nodes.len() / 2];
    board.planner.leave(n);
    board.assign();
}

fn changes(c: &mut Criterion) {
    let big = || Board::new(10_000, even, 500_000, one).planned();
    let uneven = || Board::new(10_000, uneven, 500_000, one).planned();
    let nearly = || Board::new(9_999, even, 500_000, one).planned();
    for (mut board, due) in [(nearly(), 50), (big(), 49)] {
        join(&mut board);
        assert_eq!(board.moves.len(), due, "the whole part of the share: the tied rest stays where it is");
    }
    bench(c, "one joins 9,999 nodes 500k keys", nearly, join);
    bench(c, "one joins 10k nodes 500k keys", big, join);
    bench(c, "one joins 10k uneven nodes 500k keys", uneven, join);
    bench(c, "one leaves 10k nodes 500k keys", big, leave);
    bench(c, "one leaves 10k uneven nodes 500k keys", uneven, leave);
    bench(c, "one leaves 1k nodes 1M keys", || Board::new(1_000, even, 1_000_000, one).planned(), leave);
    let small = || Board::new(50, even, 10_000, one).planned();
    bench(c, "2 of 50 out and 2 in, 10k keys", small, |board| {
        for at in [10, 30] {
            board.planner.leave(board.nodes[at]);
        }
        for _ in 0..2 {
            board.planner.join(node(1000), false);
        }
        board.assign();
        board.planner.moves(&mut board.moves);
        board.own();
    });
}

/// One key after another, each added, assigned, owned and removed again.
fn one_key(c: &mut Criterion) {
    for (name, affinity) in [("even", even as fn(u32) -> u32), ("uneven", uneven)] {
        let mut board = Board::new(10_000, affinity, 500_000, one).planned();
        c.bench_function(&format!("add a key to 10k {name} nodes 500k keys"), |b| {
            b.iter_custom(|count| {
                let mut keys = Vec::with_capacity(count as usize);
                let start = std::time::Instant::now();
                for _ in 0..count {
                    let k = board.planner.add_key(1, 0);
                    board.planner.ready(k, None);
                    board.assign();
                    board.own();
                    board.planner.moves(&mut board.moves);
                    keys.push(k);
                }
                let time = start.elapsed();
                for k in keys {
                    board.planner.remove_key(k);
                }
                time
            });
        });
        c.bench_function(&format!("replace a key on 10k {name} nodes 500k keys"), |b| {
            let mut oldest = 0;
            b.iter(|| {
                board.planner.remove_key(KeyIx(oldest));
                oldest = (oldest + 7919) % 500_000;
                let k = board.planner.add_key(1, 0);
                board.planner.ready(k, None);
                board.assign();
                board.own();
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2));
    targets = full, changes, one_key
}
criterion_main!(benches);
