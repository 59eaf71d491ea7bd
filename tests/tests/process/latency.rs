//! How fast.

use std::time::Duration;

use divider_tests::{history::quantile, process::Fleet};

use super::{Bed, figure};
use crate::backend::Backend;

const ADDS: usize = 1000;

/// Waits until a key runs, looking often: many of these are waited for one after the other.
fn wait_started(fleet: &Fleet, key: &str) -> u64 {
    for _ in 0..20_000 {
        if let Some(claim) = fleet.said().history.claims(key).next() {
            return claim.started;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    panic!("{key} was not started within 10 s");
}

pub(crate) fn a_key_is_started_within_milliseconds_of_its_add<B: Backend>() {
    let mut bed = Bed::<B>::new(&[]);
    let ids = bed.nodes(5, &[]);
    let mut times = Vec::new();
    for k in 0..ADDS {
        let (key, by) = (format!("one-{k}"), ids[k % ids.len()]);
        let before = bed.fleet.said().notes[by].len();
        bed.fleet.send(by, &format!("add {key}"));
        let started = wait_started(&bed.fleet, &key);
        bed.fleet.wait("the add to be answered", Duration::from_secs(5), |_, said| said.notes[by].len() > before);
        let added = bed.fleet.said().notes[by][before].clone();
        assert_eq!(added.key.as_deref(), Some(&*key), "{added:?}");
        times.push(Duration::from_nanos(started - added.at_ns));
    }
    figure(&format!("{}: add to start, 5 nodes", B::NAME), &mut times);
    assert!(quantile(&mut times, 0.5) <= B::LATENCY.0);
    assert!(quantile(&mut times, 0.99) <= B::LATENCY.1);
}
