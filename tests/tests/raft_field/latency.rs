//! How fast.

use std::time::{Duration, Instant};

use divider_tests::history::quantile;

use super::bed::{Bed, SOON, figure, pause};

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

/// A leader of Raft that ends hands over first, so that nobody waits for an election, which takes 300 ms at the least.
#[test]
fn a_leader_that_drains_costs_no_election() {
    let mut bed = Bed::new(&["--tick-ms", "20", "--lease-ms", "3000"]);
    bed.add(bed.voters[0], 300);
    let mut gaps = Vec::new();
    for round in 0..5 {
        let at = bed.leader();
        let leader = bed.voters[at];
        bed.wait_share(leader, 0);
        // A leader of less than an election votes for nobody else yet.
        pause(600);
        let asked = bed.fleet.terminate(leader);
        let began = Instant::now();
        bed.fleet.wait_all_run(300 + round, SOON);
        let gap = bed.fleet.said().history.gaps(leader, asked).into_iter().max().unwrap_or_default();
        // Who comes next is ready as well.
        bed.insist(bed.voters[(at + 1) % 3], &format!("next-{round}"));
        bed.fleet.wait_all_run(301 + round, SOON);
        gaps.push(gap.max(began.elapsed()));
        let again = bed.start(at);
        bed.fleet.wait_ready(&[again]);
    }
    figure("the leader drained: until all its keys and a new one run elsewhere", &mut gaps);
    assert!(quantile(&mut gaps, 0.5) <= Duration::from_millis(250));
}
