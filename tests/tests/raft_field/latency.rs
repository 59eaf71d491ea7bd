//! How fast.

use std::time::{Duration, Instant};

use divider_tests::history::quantile;

use super::bed::{Bed, SOON, figure};

const ADDS: usize = 300;

/// Two entries one after the other, the key's declaration and its grant, each on the disks of two voters.
#[test]
fn a_key_starts_within_milliseconds_of_its_declaration() {
    let mut bed = Bed::new(&["--lease-ms", "3000"]);
    bed.fleet.call(bed.voters[0], "add warm-up");
    bed.fleet.wait_all_run(1, SOON);
    let mut times = Vec::new();
    for at in 0..ADDS {
        let (key, by) = (format!("one-{at}"), bed.voters[at % 3]);
        let before = bed.fleet.said().notes[by].len();
        bed.fleet.send(by, &format!("add {key}"));
        let began = Instant::now();
        let started = loop {
            if let Some(claim) = bed.fleet.said().history.claims(&key).next() {
                break claim.started;
            }
            assert!(began.elapsed() < SOON, "{key} was not started");
            std::thread::sleep(Duration::from_micros(500));
        };
        bed.fleet.wait("the add to be answered", SOON, |_, said| said.notes[by].len() > before);
        let added = bed.fleet.said().notes[by][before].at_ns;
        times.push(Duration::from_nanos(started.saturating_sub(added)));
    }
    figure("add to start, 3 voters", &mut times);
    assert!(quantile(&mut times, 0.5) <= Duration::from_millis(50));
    assert!(quantile(&mut times, 0.99) <= Duration::from_millis(250));
}
