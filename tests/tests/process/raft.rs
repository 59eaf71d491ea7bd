//! On Raft: what holds everywhere. Everything else about it stands in `raft_field`.

use divider_tests::raft::Voters;

use super::{on_any_store, outages};

on_any_store!(Voters);

#[test]
fn two_voters_of_three_go_away_seven_times_and_nothing_is_set_aside() {
    // The first three nodes are the voters.
    let each = |act: fn(&divider_tests::process::Fleet, usize)| {
        move |bed: &super::Bed<Voters>| [1, 2].into_iter().for_each(|id| act(&bed.fleet, id))
    };
    let (gone, back) = (each(|fleet, id| fleet.pause(id)), each(|fleet, id| fleet.resume(id)));
    outages::again_and_again::<Voters>("two of three voters stopped for 2.5 s, seven times", 5, gone, back);
}
