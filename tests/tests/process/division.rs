//! Who gets what.

use std::time::Duration;

use super::{Bed, pause};
use crate::backend::TestBackend;

const KEYS: usize = 5000;

pub(crate) fn five_nodes_start_each_of_5000_keys_once_and_share_them_evenly<B: TestBackend>() {
    let mut bed = Bed::<B>::new(&["--tick-ms", "250"]);
    let ids = bed.nodes(5, &[]);
    let began = bed.fleet.call(ids[1], &format!("keys {KEYS}")).at_ns;
    bed.fleet.wait_all_run(KEYS, Duration::from_secs(20));
    // More than a lease, in which nothing may move.
    pause(4000);

    let loads = bed.fleet.loads();
    let said = bed.fleet.said();
    let history = &said.history;
    assert_eq!(history.starts(), KEYS + 1, "each key was started once, and the one that began the group");
    let last = history.keys().flat_map(|(_, claims)| claims.values()).map(|claim| claim.started).max();
    let ticks: u64 = history.keys().flat_map(|(_, claims)| claims.values()).map(|claim| claim.ticks).sum();
    assert!(ticks > KEYS as u64 * 8, "only {ticks} ticks: the keys were not watched");
    let fullest = loads.values().copied().max().unwrap_or_default() as f64 / (KEYS as f64 / ids.len() as f64);
    println!(
        "figure: {}: {KEYS} keys on 5 nodes: all started {:?} after the add, fullest/mean {fullest:.4}, {ticks} ticks",
        B::NAME,
        Duration::from_nanos(last.unwrap_or_default() - began),
    );
    assert!(fullest <= 1.01, "{loads:?}");
}

pub(crate) fn keys_are_divided_by_affinity_to_within_one_key<B: TestBackend>() {
    let mut bed = Bed::<B>::new(&[]);
    let affinities = [1000, 2000, 3000, 0, 1000];
    let ids: Vec<_> = affinities.iter().map(|affinity| bed.spawn(&["--affinity", &affinity.to_string()])).collect();
    bed.fleet.wait_ready(&ids);
    bed.settle(ids[0]);
    bed.add(ids[3], KEYS, Duration::from_secs(20));

    let loads = bed.fleet.loads();
    let total: u32 = affinities.iter().sum();
    let quotas = affinities.map(|affinity| KEYS as f64 * f64::from(affinity) / f64::from(total));
    println!(
        "figure: {}: affinities {affinities:?}: keys {:?}, quotas {quotas:.1?}",
        B::NAME,
        ids.iter().map(|id| loads[id]).collect::<Vec<_>>()
    );
    for (id, quota) in ids.iter().zip(quotas) {
        assert!((loads[id] as f64 - quota).abs() <= 1.0, "node {id} has {} of {quota}", loads[id]);
    }
    let said = bed.fleet.said();
    let at_0 =
        said.history.keys().flat_map(|(_, claims)| claims.values()).filter(|claim| claim.process == ids[3]).count();
    assert_eq!(at_0, 0, "a node with affinity 0 was given keys");
}
