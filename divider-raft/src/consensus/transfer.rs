//! The transfer of leadership by a leader that ends.

use std::{sync::atomic::Ordering, time::Duration};

use crate::{
    consensus::raft::Raft,
    net::pool::{ConnectionPool, Target, TrafficClass},
    protocol::{messages::Request, raft_messages::RaftRequest},
};

/// How long a leader that ends may take to have another one lead.
const HAND_OVER: Duration = Duration::from_millis(800);
/// And how often it looks whether another one can.
const LOOK: Duration = Duration::from_millis(10);

impl Raft {
    /// If this member leads: has the voter lead that has all entries, which wins with its own vote and this member's where
    /// there are three. A leader that ends without it costs the others an election.
    pub(crate) async fn transfer_leadership(&self, pool: &ConnectionPool) {
        // An entry that came after the successor has been chosen would cost it this member's vote.
        self.ending.store(true, Ordering::Relaxed);
        let transfer_leadership = async {
            let successor = loop {
                tokio::time::sleep(LOOK).await;
                let view = self.view();
                if !view.leads {
                    return;
                }
                let (last, replicated) = (self.last_log_index(), self.replicated().unwrap_or_default());
                let has_all = |id: &u64| replicated.get(id).copied().flatten() == Some(last);
                let mut others = view.members;
                others.retain(|id, (_, votes)| *votes && *id != self.id);
                if others.is_empty() {
                    return;
                }
                if let Some((_, (peer, _))) = others.into_iter().find(|(id, _)| has_all(id)) {
                    break peer;
                }
            };
            // Each heartbeat would keep the others from voting for the successor.
            self.quorum.hush();
            let timeout_now = Request::Raft(RaftRequest::TimeoutNow);
            // One that does not know of this refuses, and an election follows as if nobody had asked.
            if pool.call(&Target::member(&successor), TrafficClass::Raft, &timeout_now, HAND_OVER).await.is_ok() {
                // It needs this member's vote, so it must be heard of before this one goes.
                loop {
                    let changed = self.changes();
                    if self.view().leader == Some(successor.id) {
                        return;
                    }
                    changed.await;
                }
            }
        };
        let _ = tokio::time::timeout(HAND_OVER, transfer_leadership).await;
    }
}
