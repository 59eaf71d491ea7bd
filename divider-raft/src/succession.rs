//! When the leader's process dies, somebody stands for election without waiting until its heartbeats are missed.
//!
//! # How a death is told from a silence
//! The system closes the connections of a process that ends, however it ends, and nobody listens at its address then. So
//! where a connection of the leader ends and its address refuses the next one, its process is not there any more. A machine
//! or a network that fails closes and refuses nothing: then the missing heartbeats tell, which takes longer. To be wrong
//! costs an election, no more.
//!
//! # Who stands
//! Nobody votes while the lease of the last heartbeat runs, so nobody stands before that; and two who stand at the same
//! moment keep each other from winning. So the voters stand one after the other, in the order of their ids: each long
//! enough after the one before it that it has heard of an election that was won.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use tokio::time::{sleep_until, timeout};

use crate::member::Member;

/// How long the address of a leader may take to refuse a connection.
const PROBE: Duration = Duration::from_millis(200);
/// How much later than here the last heartbeat may have come elsewhere.
const SKEW: Duration = Duration::from_millis(10);
/// Between two voters that stand.
const TURN: Duration = Duration::from_millis(60);

/// An open connection of another member to this one; says so when it ends.
pub(crate) struct Presence {
    member: Arc<Member>,
    id: u64,
}

impl Presence {
    pub(crate) fn new(member: &Arc<Member>, id: u64) -> Self {
        Self { member: member.clone(), id }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.member.raft.view().leader == Some(self.id) {
            self.member.leader_left.notify_one();
        }
    }
}

/// Stands for election when the leader has died, until it is aborted.
pub(crate) async fn watch(member: Arc<Member>) {
    loop {
        member.leader_left.notified().await;
        let view = member.raft.view();
        let Some((leader, _)) = view.leader.and_then(|id| view.members.get(&id)) else { continue };
        let mut heirs = view.members.iter().filter(|(id, (_, votes))| *votes && **id != leader.id);
        let Some(turn) = heirs.position(|(id, _)| *id == member.me.id) else { continue };
        match timeout(PROBE, member.config.ground.connect(&member.links.book().placed(leader).address)).await {
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {}
            _ => continue,
        }
        let last = member.raft.last_heard();
        let turn = TURN * u32::try_from(turn).unwrap_or(u32::MAX);
        sleep_until(last + member.config.election.1 + SKEW + turn).await;
        let now = member.raft.view();
        if (now.term, now.leader) == (view.term, view.leader) && member.raft.last_heard() == last {
            tracing::info!(target: "divider::raft", member = %member.me, %leader, "the leader has died: stands for election");
            member.raft.stand().await;
        }
    }
}
