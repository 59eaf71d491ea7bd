//! Voters that stand for election at the same moment do not do so again and again.
//!
//! openraft draws a member's election timeout once, when it starts, and looks at it at each tick of one and a half
//! heartbeats. Raft wants a new one drawn for every election: two members whose ticks and timeouts are alike would split the
//! votes for as long as they live. So a member that has stood waits for a time that is drawn anew, beside openraft's own,
//! before it stands again by itself. A first candidature is not delayed, nor one that somebody asks for.

use std::{sync::Arc, time::Duration};

use openraft::ServerState;

use crate::{environment::Environment, protocol::types::Types};

/// Draws until Raft ends. `timeout` is the longest election timeout.
pub(super) async fn run(raft: openraft::Raft<Types>, timeout: Duration, environment: Arc<dyn Environment>) {
    let mut metrics = raft.server_metrics();
    let mut stood = None;
    loop {
        let stands = metrics.wait_for(|seen| seen.state == ServerState::Candidate && Some(seen.vote) != stood).await;
        // An error means that Raft has stopped.
        let Ok(vote) = stands.map(|seen| seen.vote) else { return };
        stood = Some(vote);
        raft.runtime_config().elect(false);
        let drawn = f64::from(environment.draw().to_le_bytes()[1]) / 256.0;
        tokio::time::sleep(timeout.mul_f64(2.0 * drawn)).await;
        raft.runtime_config().elect(true);
    }
}
