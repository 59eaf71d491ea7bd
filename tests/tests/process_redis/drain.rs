//! Nodes that leave with a word.

use std::time::Duration;

use divider_tests::history::quantile;

use super::{Bed, figure};

fn drain(of_leader: bool) {
    let mut bed = Bed::new(&["--tick-ms", "100"]);
    let ids = bed.nodes(5, &[]);
    bed.add(ids[0], 2500, Duration::from_secs(20));
    let leader = bed.fleet.leader().expect("somebody leads");
    let leaver = if of_leader { leader } else { *ids.iter().find(|id| **id != leader).expect("there are five") };
    let asked = bed.fleet.terminate(leaver);
    bed.fleet.wait_all_run(2500, Duration::from_secs(10));

    let said = bed.fleet.said();
    let mut taken: Vec<_> = said.history.takeovers(leaver, asked).into_iter().filter_map(|(_, time)| time).collect();
    assert_eq!(taken.len(), 500);
    let mut gaps = said.history.gaps(leaver, asked);
    assert_eq!(gaps.len(), 500, "every key was stopped, confirmed and started again");
    let role = if of_leader { "the leader" } else { "a node" };
    figure(&format!("flush_and_cancel of {role} with 500 keys, confirmation to next start"), &mut gaps);
    figure("from the signal to the next start", &mut taken);
    assert!(quantile(&mut gaps, 0.99) <= Duration::from_millis(if cfg!(debug_assertions) { 100 } else { 20 }));
}

#[test]
fn a_node_that_drains_hands_500_keys_over_without_a_noticeable_gap() {
    drain(false);
}

#[test]
fn a_leader_that_drains_hands_500_keys_over_without_a_noticeable_gap() {
    drain(true);
}
