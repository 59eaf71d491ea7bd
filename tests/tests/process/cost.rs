//! What an idle group costs the store.

use std::time::{Duration, Instant};

use super::{Bed, pause};
use crate::backend::Server;

const SECONDS: u64 = 6;

/// How much the store is asked for in a second while nothing happens.
pub(crate) fn idle<B: Server>(keys: usize) -> f64 {
    let mut bed = Bed::<B>::new(&[]);
    let ids = bed.nodes(10, &[]);
    bed.add(ids[0], keys, Duration::from_secs(60));
    pause(2500);
    let asked = |bed: &Bed<B>| bed.store.asked().expect("a server counts");
    let (before, began) = (asked(&bed), Instant::now());
    pause(SECONDS * 1000);
    let rate = (asked(&bed) - before) / began.elapsed().as_secs_f64();
    println!("figure: {}: idle, 10 nodes and {keys} keys: {rate:.1} requests/s, as the server counts them", B::NAME);
    rate
}

pub(crate) fn an_idle_group_costs_the_same_with_10_keys_as_with_10000<B: Server>() {
    let (few, many) = (idle::<B>(10), idle::<B>(10_000));
    assert!((many / few - 1.0).abs() <= 0.05, "{few:.1} requests/s with 10 keys, {many:.1} with 10,000");
}
