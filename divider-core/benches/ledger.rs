//! What it costs to freeze the ledger of a large group, and to change it while the picture is kept.
//!
//! `cargo bench -p divider-core --bench ledger`

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use divider_core::{Ledger, NodeId, Op, SessionId, Term, Token, Work, limits};

const KEYS: u32 = 1_000_000;
/// No fewer than there are keys in a part that is copied as a whole.
const PART: u32 = 512;

fn work(k: u32) -> Work {
    Work::new(format!("tenant-{k:09}")).expect("a name")
}

fn apply(ledger: &mut Ledger, ops: impl Iterator<Item = Op>) {
    let ops: Vec<Op> = ops.collect();
    ops.chunks(limits::MAX_BATCH_OPS).for_each(|ops| _ = ledger.apply(ops, Token(0)));
}

/// A group of ten nodes that hold all keys.
fn group() -> Ledger {
    let mut ledger = Ledger::new();
    let sessions: Vec<SessionId> = (0..10).map(|_| SessionId::fresh()).collect();
    let join = |(n, session): (usize, &SessionId)| {
        Op::join(*session, NodeId::new(format!("node-{n}")).expect("a name")).lease_ms(10_000).build()
    };
    apply(&mut ledger, sessions.iter().enumerate().map(join));
    let term = ledger.lead(sessions[0], Term(0)).0.expect("it lives");
    apply(&mut ledger, (0..KEYS).map(|k| Op::Add(work(k))));
    let assign = |k: u32| Op::assign(term, work(k).key, sessions[k as usize % 10]);
    apply(&mut ledger, (0..KEYS).map(assign));
    ledger
}

fn ledger(c: &mut Criterion) {
    let mut ledger = group();
    let mut priority = 0;
    let mut change = |ledger: &mut Ledger, keys: &[u32]| {
        priority += 1;
        let ops: Vec<Op> = keys.iter().map(|k| Op::Add(work(*k).priority(priority))).collect();
        let begin = Instant::now();
        ledger.apply(&ops, Token(0));
        begin.elapsed()
    };
    let each: Vec<u32> = (0..KEYS).step_by(PART as usize).collect();
    // In as many parts as there are keys, and no neighbours.
    let apart: Vec<u32> = (0..limits::MAX_BATCH_OPS as u32).map(|k| (k * 7_919 * 13) % KEYS).collect();
    c.bench_function("freeze 1M keys", |b| {
        b.iter_custom(|times| {
            let mut all = Duration::ZERO;
            for _ in 0..times {
                // Nothing is shared any more.
                each.chunks(limits::MAX_BATCH_OPS).for_each(|keys| _ = change(&mut ledger, keys));
                let begin = Instant::now();
                let picture = ledger.freeze();
                all += begin.elapsed();
                drop(picture);
            }
            all
        });
    });
    c.bench_function("512 changes among 1M keys", |b| {
        b.iter_custom(|times| (0..times).map(|_| change(&mut ledger, &apart)).sum());
    });
    c.bench_function("512 changes among 1M keys, the first since they were frozen", |b| {
        b.iter_custom(|times| {
            let mut all = Duration::ZERO;
            for _ in 0..times {
                let picture = ledger.freeze();
                all += change(&mut ledger, &apart);
                drop(picture);
            }
            all
        });
    });
    let picture = ledger.freeze();
    c.bench_function("store a picture of 1M keys", |b| {
        b.iter(|| postcard::to_io(&picture, std::io::sink()).expect("it is written"));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(10);
    targets = ledger
}
criterion_main!(benches);
