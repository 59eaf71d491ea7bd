//! Voters that stand for election at the same moment do not do so again and again.
//!
//! openraft draws a member's election timeout once, when it starts, and looks at it at each tick of one and a half
//! heartbeats. Raft wants a new one drawn for every election: two members whose ticks and timeouts are alike would split the
//! votes for as long as they live. So a member that has stood in vain stands again after a time that is drawn anew, and not
//! by its ticks, at which members that drew different times would meet again. A first candidature is not delayed, nor
//! one that somebody asks for.
//!
//! A member that stands in a term in which another has asked for its vote cannot have the vote of that one: it stands once
//! more at once, in a later term. Not twice in a row, for the other may do the same.

use std::{sync::Arc, time::Duration};

use openraft::ServerState;

use crate::{consensus::raft::Raft, environment::Environment};

/// Draws until Raft ends. `timeout` is the longest election timeout.
pub(super) async fn run(raft: Raft, timeout: Duration, environment: Arc<dyn Environment>) {
    let mut metrics = raft.raft.server_metrics();
    let (mut stood, mut at_once) = (None, false);
    loop {
        let stands = metrics.wait_for(|seen| seen.state == ServerState::Candidate && Some(seen.vote) != stood).await;
        // An error means that Raft has stopped.
        let Ok(vote) = stands.map(|seen| seen.vote) else { return };
        stood = Some(vote);
        at_once = !at_once && raft.newest_asked() >= vote.leader_id().term;
        if !at_once {
            raft.raft.runtime_config().elect(false);
            let drawn = f64::from(environment.draw().to_le_bytes()[1]) / 256.0;
            tokio::time::sleep(timeout.mul_f64(0.5 + drawn)).await;
            raft.raft.runtime_config().elect(true);
        }
        let in_vain = {
            let seen = metrics.borrow();
            seen.state == ServerState::Candidate && seen.vote == vote
        };
        if in_vain {
            raft.stand().await;
        }
    }
}
