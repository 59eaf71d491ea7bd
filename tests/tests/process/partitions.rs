//! One node's network fails, and nobody else's.

use std::time::Duration;

use divider_core::StopReason;
use divider_tests::{
    history::ProcessId,
    netns::Netns,
    process::{Network, Proxy, now},
};

use super::{Bed, figure, pause};
use crate::backend::Server;

const KEYS: usize = 300;
const LEASE: Duration = Duration::from_millis(1000);

/// Three nodes, one of them behind a proxy, which leads if that is wanted.
fn bed<B: Server>(leads: bool) -> (Bed<B>, Proxy, ProcessId) {
    let mut bed = Bed::<B>::new(&["--tick-ms", "10", "--lease-ms", "1000"]);
    let proxy = Proxy::before(bed.store.port());
    let url = bed.store.url_by("127.0.0.1", proxy.port());
    let victim = if leads {
        let victim = bed.fleet.spawn_at(&url, &[]);
        bed.fleet.wait_ready(&[victim]);
        bed.spawn_ready(2, &[]);
        victim
    } else {
        bed.spawn_ready(2, &[]);
        let victim = bed.fleet.spawn_at(&url, &[]);
        bed.fleet.wait_ready(&[victim]);
        victim
    };
    assert_eq!(bed.fleet.leader() == Some(victim), leads);
    bed.settle(victim);
    bed.add(victim, KEYS, Duration::from_secs(10));
    (bed, proxy, victim)
}

/// Cuts the node off for some leases: it fences itself by its own clock, the others take over, and it comes back.
fn cut_off<B: Server>(leads: bool, network: Network, leases: u32) {
    let (mut bed, proxy, victim) = bed::<B>(leads);
    let held = bed.fleet.loads()[&victim];
    bed.fleet.record(victim);
    let cut = now();
    proxy.set(network);
    pause(u64::try_from((LEASE * leases).as_millis()).expect("short"));

    let said = bed.fleet.said();
    let lost: Vec<_> = said.recorded[&victim].iter().filter(|line| line.reason == Some(StopReason::Lost)).collect();
    assert_eq!(lost.len(), held, "every key was told to be lost while the node was cut off");
    let mut told: Vec<_> = lost.iter().map(|line| Duration::from_nanos(line.at_ns.saturating_sub(cut))).collect();
    let mut taken: Vec<_> = said.history.takeovers(victim, cut).into_iter().filter_map(|(_, time)| time).collect();
    drop(said);
    let who = if leads { ", the leader" } else { "" };
    let what = format!("{}: {network:?} for {leases} leases of {LEASE:?}{who}", B::NAME);
    figure(&format!("{what}: until the loss was told"), &mut told);
    assert!(told.last() <= Some(&bed.fleet.allowing(LEASE + Duration::from_millis(50))), "{told:?}");
    figure(&format!("{what}: until the start elsewhere"), &mut taken);
    // Renewals go on to arrive where only answers are lost; they end with the node's own lease.
    let bound = if network == Network::NoAnswers { LEASE * 2 } else { LEASE } + Duration::from_millis(500);
    let bound = bed.fleet.allowing(bound);
    if taken.len() < held || taken.last() > Some(&bound) {
        println!("figure: {} of {held} were taken over in time", taken.iter().filter(|time| **time <= bound).count());
    }
    assert!(network == Network::NoAnswers || taken.len() == held && taken.last() <= Some(&bound));

    proxy.set(Network::Fine);
    let healed = now();
    bed.fleet.wait_all_run(KEYS, LEASE + Duration::from_secs(3));
    println!("figure: {what}: all {KEYS} keys run {:?} after it healed", Duration::from_nanos(now() - healed));
    bed.fleet.wait("the node to have keys again", Duration::from_secs(5), |_, said| {
        said.history
            .keys()
            .any(|(_, claims)| claims.values().any(|claim| claim.process == victim && claim.started > healed))
    });
    bed.fleet.wait_all_run(KEYS, LEASE + Duration::from_secs(3));
    let stats = bed.fleet.call(victim, "stats").detail.unwrap_or_default();
    assert_eq!(stats["quarantined"], 0, "{stats}");
}

pub(crate) fn a_node_that_is_cut_off_fences_itself<B: Server>() {
    cut_off::<B>(false, Network::Cut, 2);
}

pub(crate) fn a_node_whose_network_falls_silent_fences_itself_and_its_late_words_do_no_harm<B: Server>() {
    cut_off::<B>(false, Network::Silent, 3);
}

pub(crate) fn a_leader_whose_network_falls_silent_is_replaced_and_its_late_words_do_no_harm<B: Server>() {
    cut_off::<B>(true, Network::Silent, 3);
}

pub(crate) fn a_node_that_hears_no_answers_fences_itself<B: Server>() {
    cut_off::<B>(false, Network::NoAnswers, 3);
}

pub(crate) fn a_leader_that_hears_no_answers_is_replaced<B: Server>() {
    cut_off::<B>(true, Network::NoAnswers, 3);
}

pub(crate) fn a_network_that_is_slow_for_one_node_loses_nothing<B: Server>() {
    let (mut bed, proxy, victim) = bed::<B>(true);
    proxy.set(Network::Slow(Duration::from_millis(100)));
    pause(2000);
    bed.fleet.call(victim, "keys 400");
    bed.fleet.wait_all_run(400, Duration::from_secs(10));
    let said = bed.fleet.said();
    let lost = said.history.keys().flat_map(|(_, claims)| claims.values());
    let lost = lost.filter(|claim| claim.stopped.is_some_and(|(_, reason)| reason == StopReason::Lost)).count();
    println!("figure: {}: a leader 100 ms away: {lost} keys lost", B::NAME);
    assert_eq!(lost, 0, "a renewal that takes 200 ms is no reason to lose a lease of a second");
}

/// Which way nothing gets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Both,
    ToTheStore,
    FromTheStore,
}

/// As a partition in a real network: packets vanish, and nobody is told. The store is in the hub, each node in a place of
/// its own.
fn vanish<B: Server>(leads: bool, cut: Cut) {
    let network = Netns::new(3);
    let hub = network.hub();
    let store = || network.within(hub, B::start_for_others);
    let mut bed = Bed::<B>::on(store, &["--tick-ms", "10", "--lease-ms", "1000"]);
    let url = bed.store.url_by(&network.address(hub).to_string(), bed.store.port());
    let mut ids = Vec::new();
    for at in 0..3 {
        ids.push(bed.fleet.spawn_in(network.command(at), &url, &[]));
        // One after the other, so that the first one leads.
        bed.fleet.wait_ready(&ids);
    }
    assert_eq!(bed.fleet.leader(), Some(ids[0]));
    bed.settle(ids[0]);
    bed.add(ids[0], KEYS, Duration::from_secs(10));
    let place = if leads { 0 } else { 1 };
    let victim = ids[place];
    let held = bed.fleet.loads()[&victim];
    let began = now();
    match cut {
        Cut::Both => network.cut(place, hub),
        Cut::ToTheStore => network.cut_one_way(place, hub),
        Cut::FromTheStore => network.cut_one_way(hub, place),
    }
    pause(5000);
    let what = format!("{}: packets vanish, {cut:?}{}", B::NAME, if leads { ", for the leader" } else { "" });
    let said = bed.fleet.said();
    let claims = said.history.keys().flat_map(|(_, claims)| claims.values()).filter(|claim| claim.process == victim);
    let lost = claims.filter_map(|claim| claim.stopped.filter(|(_, reason)| *reason == StopReason::Lost));
    let mut told: Vec<_> = lost.map(|(at, _)| Duration::from_nanos(at.saturating_sub(began))).collect();
    let mut taken: Vec<_> = said.history.takeovers(victim, began).into_iter().filter_map(|(_, time)| time).collect();
    drop(said);
    assert_eq!((told.len(), taken.len()), (held, held), "all was told to be lost, and runs elsewhere");
    figure(&format!("{what}: until the loss was told"), &mut told);
    figure(&format!("{what}: until the start elsewhere"), &mut taken);
    assert!(told.last() <= Some(&bed.fleet.allowing(LEASE + Duration::from_millis(50))), "{told:?}");
    // What the node says may go on to arrive where only answers are lost; that ends with its own lease.
    let bound = if cut == Cut::FromTheStore { LEASE * 2 } else { LEASE } + Duration::from_millis(500);
    let bound = bed.fleet.allowing(bound);
    assert!(taken.last() <= Some(&bound), "{:?}", taken.last());

    network.heal();
    let healed = now();
    bed.fleet.wait("the node to have keys again", LEASE + Duration::from_millis(1500), |_, said| {
        let claims = said.history.keys().flat_map(|(_, claims)| claims.values());
        claims.into_iter().any(|claim| claim.process == victim && claim.started > healed)
    });
    bed.fleet.wait_all_run(KEYS, LEASE + Duration::from_millis(1500));
    println!(
        "figure: {what}: it has keys again, and all run, {:?} after the heal",
        Duration::from_nanos(now() - healed)
    );
}

pub(crate) fn a_node_in_a_network_namespace_that_is_cut_off_loses_its_keys_and_comes_back<B: Server>() {
    vanish::<B>(false, Cut::Both);
}

pub(crate) fn a_leader_in_a_network_namespace_that_is_cut_off_is_replaced_and_comes_back<B: Server>() {
    vanish::<B>(true, Cut::Both);
}

pub(crate) fn a_leader_in_a_network_namespace_that_is_heard_by_nobody_is_replaced<B: Server>() {
    vanish::<B>(true, Cut::ToTheStore);
}

pub(crate) fn a_leader_in_a_network_namespace_that_hears_nobody_is_replaced<B: Server>() {
    vanish::<B>(true, Cut::FromTheStore);
}
