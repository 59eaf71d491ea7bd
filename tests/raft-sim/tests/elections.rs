//! Voters that stand for election at the same moment keep each other from winning; not again and again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use divider_conformance::Dice;
use divider_core::{Group, Store};
use divider_raft::{Data, RaftStore};
use divider_raft_sim::environment::Environment;

const VOTERS: [&str; 3] = ["a", "b", "c"];
/// A lease of a leader, and elections of which each has a chance.
const SOON: u64 = 5000;

type Stores = Arc<Mutex<BTreeMap<&'static str, RaftStore>>>;

fn build(name: &'static str, environment: &Arc<Environment>) -> RaftStore {
    let seeds = VOTERS.map(|voter| format!("{voter}:7400"));
    let builder =
        RaftStore::builder(Data::Memory, Group::new("/group/").unwrap()).plaintext().seeds(&seeds).name(name).unwrap();
    let builder = builder.listen("0.0.0.0:7400").configure(|config| {
        config.advertise = Some(format!("{name}:7400"));
        config.environment = environment.clone();
        config.voters = 3;
        config.election = (Duration::from_millis(300), Duration::from_millis(301));
    });
    builder.build().unwrap()
}

/// Milliseconds until there is a leader after the one before has crashed, which one of the others lost sight of `earlier` than
/// the other.
fn elections(seed: u64, earlier: u64) -> Vec<u64> {
    let mut dice = Dice(seed);
    let ms = Duration::from_millis;
    let mut sim = turmoil::Builder::new()
        .rng_seed(dice.roll())
        .simulation_duration(Duration::from_secs(3600))
        .tick_duration(ms(1))
        .min_message_latency(ms(2))
        .max_message_latency(ms(8))
        .tcp_capacity(4096)
        .build();
    let stores = Stores::default();
    for name in VOTERS {
        let environment = Arc::new(Environment::new(dice.split()));
        environment.in_step.store(true, Ordering::Relaxed);
        let stores = stores.clone();
        sim.host(name, move || {
            let store = build(name, &environment);
            let stores = stores.clone();
            async move {
                while store.open().await.is_err() {
                    tokio::time::sleep(ms(50)).await;
                }
                stores.lock().unwrap().insert(name, store);
                std::future::pending().await
            }
        });
    }
    let leader = || {
        let stores = stores.lock().unwrap();
        VOTERS.into_iter().find(|voter| stores.get(voter).is_some_and(RaftStore::leads_raft))
    };
    let mut times = Vec::new();
    for _ in 0..4 {
        let mut waited = 0;
        while stores.lock().unwrap().len() < 3 || leader().is_none() {
            sim.step().unwrap();
            waited += 1;
            assert!(waited < 20_000, "no cluster");
        }
        (0..1000).try_for_each(|_| sim.step().map(|_| ())).unwrap();
        // A machine that fails: nothing refuses a connection, and nobody says that the leader has died.
        let Some(old) = leader() else { continue };
        let others: Vec<_> = VOTERS.into_iter().filter(|voter| *voter != old).collect();
        for other in &others {
            sim.partition(old, *other);
            let pause = if Some(other) == others.first() { earlier } else { 0 };
            (0..pause).try_for_each(|_| sim.step().map(|_| ())).unwrap();
        }
        let gone = stores.lock().unwrap().remove(old);
        let mut took = 0;
        while leader().is_none() {
            sim.step().unwrap();
            took += 1;
            assert!(took < 60_000, "nobody is elected");
        }
        times.push(took);
        stores.lock().unwrap().extend(gone.map(|store| (old, store)));
        others.iter().for_each(|other| sim.repair(old, *other));
        // A connection that a partition has broken is given up after 3.5 s of silence.
        (0..4000).try_for_each(|_| sim.step().map(|_| ())).unwrap();
    }
    times
}

#[test]
fn voters_that_tick_in_step_do_not_keep_each_other_from_winning() {
    let mut times: Vec<_> = (0..4).flat_map(|seed| elections(seed, 0)).collect();
    times.sort_unstable();
    println!("figure: elections among voters that tick in step, ms: {times:?}");
    assert!(times.len() > 10 && *times.last().unwrap() < SOON, "{times:?}");
}

#[test]
fn a_voter_that_others_refused_does_not_keep_them_from_winning() {
    // It stands first, and is refused by one that has heard of the leader since.
    let mut times: Vec<_> = (0..6).flat_map(|seed| elections(seed, 200)).collect();
    times.sort_unstable();
    println!("figure: elections after one that was refused, ms: {times:?}");
    assert!(times.len() > 15 && *times.last().unwrap() < 800, "{times:?}");
}
