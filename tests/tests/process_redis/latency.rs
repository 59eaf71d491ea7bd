//! How fast.

use std::time::Duration;

use divider_tests::{history::quantile, process::Fleet};

use super::{Bed, figure};

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

#[test]
fn a_key_is_started_about_a_millisecond_after_it_was_added() {
    let mut bed = Bed::new(&[]);
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
    figure("add to start, 5 nodes", &mut times);
    assert!(quantile(&mut times, 0.5) <= Duration::from_millis(5));
    assert!(quantile(&mut times, 0.99) <= Duration::from_millis(25));
}
