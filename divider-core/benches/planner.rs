//! What a plan costs, on boards of the size that others publish figures for.
//!
//! `cargo bench -p divider-core --bench planner`
//!
//! "full" is `assignments` alone on a board whose keys wait; "full, carried out" adds the fact of each assignment. How the
//! same is counted in instructions, without noise: `divider-core/benches/instructions.sh`.

mod board;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use divider_core::sim::KeyIx;

use board::{Board, even, join, leave, one, replace_two, spread, uneven};

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
    bench(c, "2 of 50 out and 2 in, 10k keys", small, replace_two);
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
                    keys.push(board.add());
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
