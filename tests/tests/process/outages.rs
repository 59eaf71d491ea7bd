//! A store that goes away, comes back, forgets, or holds its breath.

use std::time::{Duration, Instant};

use divider_core::StopReason;
use divider_tests::{
    history::ProcessId,
    process::{Said, now},
};

use super::{Bed, figure, pause};
use crate::backend::{Server, TestBackend};

pub(crate) const KEYS: usize = 500;
const LEASE: Duration = Duration::from_secs(2);
const BACK: Duration = Duration::from_millis(3500);
const ARGS: [&str; 4] = ["--tick-ms", "50", "--lease-ms", "2000"];

/// Three nodes that run all keys, on a store of choice.
pub(crate) fn bed<B: Server>(store: impl FnOnce() -> B) -> Bed<B> {
    let mut bed = Bed::on(store, &ARGS);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], KEYS, Duration::from_secs(20));
    bed
}

/// Waits until every key has been started after the moment given, and says how long after the return that was.
pub(crate) fn wait_all_back<B: Server>(bed: &Bed<B>, what: &str, gone: u64, back: u64) {
    bed.fleet.wait("every key to run again", BACK + Duration::from_secs(10), |fleet, said| {
        let running = said.history.running(|id| fleet.lives(id));
        running
            .iter()
            .filter(|(key, owners)| {
                owners.len() == 1 && said.history.claims(key).last().is_some_and(|claim| claim.started > gone)
            })
            .count()
            == KEYS
    });
    let said = bed.fleet.said();
    let last = said.history.keys().flat_map(|(_, claims)| claims.values()).map(|claim| claim.started).max();
    let took = Duration::from_nanos(last.unwrap_or_default().saturating_sub(back));
    drop(said);
    println!(
        "figure: {}: {what}: all {KEYS} keys run again {:.0} ms after its return (lease {LEASE:?})",
        B::NAME,
        took.as_secs_f64() * 1e3
    );
    bed.fleet.check();
    assert!(took <= bed.fleet.allowing(BACK), "it took {took:?}");
}

/// Waits until every key runs in one place, which it may have done all the time, and says how long after the return
/// that was.
pub(crate) fn wait_all_run_by<B: Server>(bed: &Bed<B>, what: &str, back: u64) {
    bed.fleet.wait_all_run(KEYS, BACK + Duration::from_secs(10));
    let took = Duration::from_nanos(now() - back);
    println!("figure: {}: {what}: all {KEYS} keys run at most {took:?} after its return (lease {LEASE:?})", B::NAME);
    bed.fleet.check();
    assert!(took <= bed.fleet.allowing(BACK), "it took {took:?}");
}

pub(crate) fn the_store_is_killed_and_comes_back_at_once<B: Server>() {
    let mut bed = bed(B::start_durable);
    bed.store.restart();
    let back = now();
    // Whether sessions outlive a restart is the store's affair.
    pause(300);
    wait_all_run_by(&bed, "killed and restarted with its data", back);
    bed.fleet.call(0, "add one-more");
    bed.fleet.wait_all_run(KEYS + 1, BACK);
}

pub(crate) fn the_store_is_killed_and_comes_back_after_every_lease_has_run_out<B: Server>() {
    let mut bed = bed(B::start_durable);
    let gone = now();
    bed.store.kill9();
    pause(3000);
    bed.store.restart();
    wait_all_back(&bed, "gone for longer than a lease, back with its data", gone, now());
}

pub(crate) fn the_store_holds_its_breath_for_a_lease<B: Server>() {
    let bed = bed(B::start);
    let gone = now();
    bed.store.freeze();
    pause(2500);
    bed.store.thaw();
    wait_all_back(&bed, "frozen for longer than a lease", gone, now());
}

pub(crate) fn the_store_stalls_for_less_than_a_lease_and_nothing_moves<B: Server>() {
    let bed = bed(B::start);
    let starts = bed.fleet.said().history.starts();
    bed.store.freeze();
    pause(1000);
    bed.store.thaw();
    pause(3000);
    assert_eq!(bed.fleet.said().history.starts(), starts, "keys were moved");
}

pub(crate) fn subscriptions_are_cut_again_and_again_and_nothing_is_lost<B: Server>() {
    cut_again_and_again("subscriptions", B::cut_hints);
}

pub(crate) fn all_connections_are_cut_again_and_again_and_nothing_is_lost<B: Server>() {
    cut_again_and_again("all connections", B::cut_all);
}

fn cut_again_and_again<B: Server>(what: &str, cut: fn(&B) -> u64) {
    let mut bed = bed(B::start);
    let mut added = Vec::new();
    for round in 0..10 {
        cut(&bed.store);
        let at = bed.fleet.call(round % 3, &format!("keys 20 round-{round}-")).at_ns;
        added.push((round, at));
        pause(100);
    }
    let began = Instant::now();
    bed.fleet.wait_all_run(KEYS + 200, Duration::from_secs(5));
    let said = bed.fleet.said();
    let mut slowest = 0;
    for (round, at) in added {
        for k in 0..20 {
            let key = format!("round-{round}-{k}");
            let started = said.history.claims(&key).map(|claim| claim.started).min();
            // The start may have been told before the answer to the add was.
            slowest = slowest.max(started.unwrap_or(u64::MAX).saturating_sub(at));
        }
    }
    println!(
        "figure: {}: {what} cut 10 times: slowest start {:?} after its add; all ran {:?} after the last",
        B::NAME,
        Duration::from_nanos(slowest),
        began.elapsed()
    );
    let lost = said
        .history
        .keys()
        .flat_map(|(_, claims)| claims.values())
        .filter(|claim| claim.stopped.is_some_and(|(_, reason)| reason == StopReason::Lost))
        .count();
    assert_eq!(lost, 0, "sessions were lost");
    assert_eq!(said.history.starts(), KEYS + 200 + 1, "each key was started once");
}

/// A store that comes and goes is nobody's fault, least of all the keys'.
pub(crate) fn a_store_that_keeps_stalling_does_not_get_keys_quarantined<B: Server>() {
    let mut bed = Bed::<B>::new(&["--lease-ms", "600"]);
    let ids = bed.nodes(3, &[]);
    bed.add(ids[0], 300, Duration::from_secs(20));
    for _ in 0..8 {
        bed.store.freeze();
        pause(900);
        bed.store.thaw();
        pause(800);
    }
    pause(1200);
    let stats = bed.fleet.call(ids[0], "stats").detail.unwrap_or_default();
    println!("figure: {}: after 8 stalls of the store: {stats}", B::NAME);
    assert_eq!(stats["quarantined"], 0, "{stats}");
    bed.fleet.wait_all_run(300, Duration::from_secs(5));
}

/// Waits until every key runs in one place that has started it since the moment given, and returns how long after the
/// return that was.
fn all_started_since<B: TestBackend>(bed: &Bed<B>, keys: usize, gone: u64, back: u64) -> Duration {
    let began = |said: &Said, key: &str| said.history.claims(key).last().map_or(0, |claim| claim.started);
    bed.fleet.wait("every key to run again", Duration::from_secs(20), |fleet, said| {
        let running = said.history.running(|id| fleet.lives(id));
        running.iter().filter(|(key, owners)| owners.len() == 1 && began(said, key) > gone).count() == keys
    });
    let said = bed.fleet.said();
    let last = said.history.keys().map(|(key, _)| began(&said, key)).max();
    Duration::from_nanos(last.unwrap_or_default().saturating_sub(back))
}

/// How many keys are set aside, and which.
pub(crate) fn set_aside<B: TestBackend>(bed: &mut Bed<B>, by: ProcessId) -> Vec<String> {
    let listed = bed.fleet.call(by, "quarantined").detail.unwrap_or_default();
    listed.as_array().into_iter().flatten().filter_map(|key| Some(key.as_str()?.to_owned())).collect()
}

/// Seven outages, each of which outlasts every lease, so that all keys are given out anew a moment before the next one. It is
/// nobody's fault, and whatever was running runs again soon after each.
pub(crate) fn again_and_again<B: TestBackend>(
    what: &str,
    nodes: usize,
    gone: impl Fn(&Bed<B>),
    back: impl Fn(&Bed<B>),
) {
    const KEYS: usize = 60;
    const SOON: Duration = Duration::from_millis(2500);
    let mut bed = Bed::<B>::new(&["--tick-ms", "50", "--lease-ms", "1000"]);
    let ids = bed.nodes(nodes, &[]);
    bed.add(ids[0], KEYS, Duration::from_secs(20));
    let mut times = Vec::new();
    for round in 1..=7 {
        let since = now();
        gone(&bed);
        pause(2500);
        back(&bed);
        let returned = now();
        times.push(all_started_since(&bed, KEYS, since, returned));
        let aside = set_aside(&mut bed, ids[0]);
        assert_eq!(aside, Vec::<String>::new(), "after outage {round} of the store healthy keys are set aside");
        pause(1000_u64.saturating_sub((now() - returned) / 1_000_000));
    }
    figure(&format!("{}: {what}: every key runs after its return (lease 1 s)", B::NAME), &mut times);
    let bound = bed.fleet.allowing(SOON);
    assert!(times.last().is_some_and(|longest| *longest <= bound), "it took {times:?}, and may take {bound:?}");
}

pub(crate) fn the_store_goes_away_seven_times_and_nothing_is_set_aside<B: Server>() {
    again_and_again::<B>("gone for 2.5 s, seven times", 3, |bed| bed.store.freeze(), |bed| bed.store.thaw());
}
