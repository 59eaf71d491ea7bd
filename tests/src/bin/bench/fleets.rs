//! Processes on one store.

use std::time::{Duration, Instant};

use divider_tests::{backend::TestBackend, bed::Bed, history::ProcessId, process::now};

use crate::{
    Run,
    report::{Goal, Store, Unit},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn add_to_start<B: TestBackend>(run: &mut Run<'_>, store: Store) {
    let mut bed = Bed::<B>::new(&[]);
    // On Raft the three voters.
    let ids = bed.nodes(3, &[]);
    let mut times = bed.time_adds(&ids, if run.quick { 200 } else { 2000 });
    let (p50, p99) = match store {
        Store::Redis => (Duration::from_micros(600), ms(3)),
        Store::Postgres => (Duration::from_micros(2500), ms(10)),
        _ => (ms(2), ms(8)),
    };
    let wanted = [("p50", 0.5, Some(p50)), ("p99", 0.99, Some(p99))];
    run.report.times("add → start, 3 nodes", store, &mut times, &wanted);
}

/// From the moment before a call that adds keys to the start of the last.
fn all_started<B: TestBackend>(bed: &mut Bed<B>, by: ProcessId, keys: usize, prefix: &str) -> Duration {
    let began = bed.fleet.call(by, &format!("keys {keys} {prefix}")).at_ns;
    let started = |bed: &Bed<B>| -> Vec<u64> {
        let said = bed.fleet.said();
        let claims =
            said.history.keys().filter(|(key, _)| key.starts_with(prefix)).flat_map(|(_, claims)| claims.values());
        claims.map(|claim| claim.started).collect()
    };
    bed.fleet.wait("all keys to be started", ms(60_000), |_, said| {
        said.history.keys().filter(|(key, _)| key.starts_with(prefix)).count() == keys
    });
    Duration::from_nanos(started(bed).into_iter().max().unwrap() - began)
}

pub(crate) fn burst<B: TestBackend>(run: &mut Run<'_>, store: Store) {
    let mut bed = Bed::<B>::new(&[]);
    let ids = bed.nodes(10, &[]);
    bed.add(ids[0], 100, ms(20_000));
    let rounds = if run.quick { 1 } else { 5 };
    let mut times: Vec<_> =
        (0..rounds).map(|round| all_started(&mut bed, ids[round], 900, &format!("burst-{round}/"))).collect();
    let wanted = [("all started, median", 0.5, Some(ms(100)))];
    run.report.times("10 nodes, 900 keys more", store, &mut times, &wanted);
}

/// Waits until this many keys run in all, in a fleet that is quiet.
pub(crate) fn wait_running<B: TestBackend>(bed: &mut Bed<B>, keys: usize, limit: Duration) {
    let deadline = Instant::now() + limit;
    while bed.fleet.running() != keys {
        assert!(Instant::now() < deadline, "{} keys run after {limit:?}, not {keys}", bed.fleet.running());
        std::thread::sleep(ms(10));
    }
}

/// A fleet that says nothing of single keys, in a group that has got over its beginning and has one key.
pub(crate) fn quiet<B: TestBackend>(nodes: usize, args: &[&str]) -> (Bed<B>, Vec<ProcessId>) {
    let mut bed = Bed::<B>::new(&[&["--quiet", "--no-quarantine"], args].concat());
    let ids = bed.spawn_ready(nodes, &[]);
    bed.fleet.call(ids[0], "add warm-up");
    wait_running(&mut bed, 1, ms(20_000));
    (bed, ids)
}

pub(crate) fn bulk<B: TestBackend>(run: &mut Run<'_>, store: Store) {
    const KEYS: usize = 100_000;
    let (mut bed, ids) = quiet::<B>(5, &[]);
    let began = bed.fleet.call(ids[0], &format!("keys {KEYS} bulk/")).at_ns;
    wait_running(&mut bed, KEYS + 1, ms(120_000));
    let took = Duration::from_nanos(now() - began);
    let least = if store == Store::Postgres { 20_000.0 } else { 50_000.0 };
    let rate = KEYS as f64 / took.as_secs_f64();
    run.report.add(
        "100,000 keys added and started, 5 nodes",
        store,
        "keys",
        rate,
        Unit::PerSecond,
        Some(Goal::AtLeast(least)),
    );
}

pub(crate) fn take_over<B: TestBackend>(run: &mut Run<'_>, store: Store, lease_ms: u64) {
    let keys = 1000;
    let mut bed = Bed::<B>::new(&["--no-quarantine", "--lease-ms", &lease_ms.to_string()]);
    let ids = bed.nodes(5, &[]);
    bed.add(ids[0], keys, ms(20_000));
    let (mut of_leaders, mut of_others) = (Vec::new(), Vec::new());
    for round in 0..if run.quick { 2 } else { 10 } {
        let leader = bed.fleet.wait_leader();
        let others: Vec<_> = bed.fleet.living().into_iter().filter(|id| *id != leader).collect();
        let victim = if round % 2 == 0 { others[round % others.len()] } else { leader };
        let at = bed.fleet.kill9(victim);
        bed.fleet.wait_all_run(keys, ms(30_000));
        let said = bed.fleet.said();
        let last = said.history.takeovers(victim, at).into_iter().filter_map(|(_, time)| time).max();
        drop(said);
        let times = if victim == leader { &mut of_leaders } else { &mut of_others };
        times.push(last.expect("every node has a share"));
        bed.spawn_ready(1, &[]);
        wait_shares(&bed, keys);
    }
    let case = format!("kill -9 to the last orphan's start, lease {:.1} s", lease_ms as f64 / 1e3);
    let most = if lease_ms == 500 { ms(800) } else { ms(lease_ms + 500) };
    let wanted = |who: &'static str| [(who, 1.0, Some(most))];
    run.report.times(&case, store, &mut of_others, &wanted("a node, longest"));
    run.report.times(&case, store, &mut of_leaders, &wanted("the leader, longest"));
}

/// Waits until every node has about its share, so that any one may be the next to die.
fn wait_shares<B: TestBackend>(bed: &Bed<B>, keys: usize) {
    let deadline = Instant::now() + ms(30_000);
    loop {
        let loads = bed.fleet.loads();
        let share = keys / loads.len();
        if loads.values().all(|load| *load + 1 >= share) && loads.values().sum::<usize>() == keys {
            return;
        }
        assert!(Instant::now() < deadline, "the keys are not shared out: {loads:?}");
        std::thread::sleep(ms(10));
    }
}

/// Every node in turn ends in order, and a new one takes its place, as in a deployment.
pub(crate) fn rolling_restart<B: TestBackend>(run: &mut Run<'_>, store: Store) {
    let keys = if run.quick { 1000 } else { 10_000 };
    let mut bed = Bed::<B>::new(&[]);
    let ids = bed.nodes(10, &[]);
    bed.add(ids[0], keys, ms(60_000));
    wait_shares(&bed, keys);
    let began = now();
    let mut held = 0;
    for id in ids {
        held += bed.fleet.loads()[&id];
        bed.fleet.terminate(id);
        bed.fleet.wait_all_run(keys, ms(30_000));
        bed.spawn_ready(1, &[]);
        wait_shares(&bed, keys);
    }
    let took = Duration::from_nanos(now() - began);
    let said = bed.fleet.said();
    let (mut moves, mut without) = (0, Vec::new());
    for (_, claims) in said.history.keys().filter(|(key, _)| key.starts_with("key-")) {
        let claims: Vec<_> = claims.values().collect();
        moves += claims.len() - 1;
        let gaps = claims.windows(2).map(|pair| {
            let ended = pair[0].ended.expect("every node confirms what it stops");
            Duration::from_nanos(pair[1].started.saturating_sub(ended))
        });
        without.push(gaps.sum::<Duration>());
    }
    drop(said);
    let case = format!("rolling restart, 10 nodes, {keys} keys");
    let wanted = [
        ("a key's whole time without an owner, p50", 0.5, None),
        ("the same, p99", 0.99, Some(ms(50))),
        ("the same, longest", 1.0, None),
    ];
    run.report.times(&case, store, &mut without, &wanted);
    let ratio = moves as f64 / held as f64;
    run.report.add(
        &case,
        store,
        "keys moved / keys held by the restarted",
        ratio,
        Unit::Ratio,
        Some(Goal::AtMost(2.2)),
    );
    run.report.time(&case, store, "all in all", took, None);
}
