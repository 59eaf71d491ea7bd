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

use openraft::{CommittedLeaderId, ServerState, raft::VoteRequest};

use crate::{
    consensus::silence::Silence,
    environment::Environment,
    protocol::types::{LogId, Types, Vote},
};

/// No member: the vote of a term in which this one must not give it to anybody.
const NOBODY: u64 = 0;

/// Stands for election, unless this member leads. Only fails where Raft has stopped.
///
/// It does so in a term in which nobody has asked for its vote. Raft takes over every newer term that it hears of;
/// openraft does not where it refuses its vote, for example to a log that is too short. Whoever asked in that term has
/// voted for itself, so the two would keep each other from winning.
pub(super) async fn stand(raft: &openraft::Raft<Types>, silence: &Silence) -> bool {
    let seen = raft.server_metrics().borrow().clone();
    let asked = silence.newest_asked();
    if seen.state != ServerState::Leader && asked > seen.vote.leader_id().term {
        let longest = LogId::new(CommittedLeaderId::new(asked, NOBODY), u64::MAX);
        // Where it is refused, a leader has been heard of meanwhile, and no election is won anyway.
        let _ = raft.vote(VoteRequest::new(Vote::new(asked, NOBODY), Some(longest))).await;
    }
    raft.trigger().elect().await.is_ok()
}

/// Sees to it until Raft ends. `timeout` is the longest election timeout.
pub(super) async fn watch(
    raft: openraft::Raft<Types>,
    silence: Silence,
    timeout: Duration,
    environment: Arc<dyn Environment>,
) {
    let mut metrics = raft.server_metrics();
    let (mut stood, mut at_once) = (None, false);
    loop {
        let stands = metrics.wait_for(|seen| seen.state == ServerState::Candidate && Some(seen.vote) != stood).await;
        // An error means that Raft has stopped.
        let Ok(vote) = stands.map(|seen| seen.vote) else { return };
        stood = Some(vote);
        at_once = !at_once && silence.newest_asked() >= vote.leader_id().term;
        if !at_once {
            raft.runtime_config().elect(false);
            let drawn = f64::from(environment.draw().to_le_bytes()[1]) / 256.0;
            tokio::time::sleep(timeout.mul_f64(0.5 + drawn)).await;
            raft.runtime_config().elect(true);
        }
        let in_vain = {
            let seen = metrics.borrow();
            seen.state == ServerState::Candidate && seen.vote == vote
        };
        if in_vain {
            stand(&raft, &silence).await;
        }
    }
}
