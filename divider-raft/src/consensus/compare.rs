//! Replicas are compared: the leader asks each member for its number at an index that all should have come to, and what
//! most voters say is right. Where there is no majority for anything although all have answered, the leader's own counts, since
//! it was elected. Where some do not answer it waits for them: it may be the leader that is wrong, and it would stop those that
//! are well, one after the other.
//!
//! A member that differs tells nobody of what is in it any more, and stops. What is wrong may be in its snapshot, so it writes
//! down that it differs, and its directory is not opened again. It can only have come to that by a fault of this program or of
//! its machine, so nothing else is done about it without a person; its process goes on as a client of the others.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use futures_util::future::join_all;

use crate::{
    consensus::{raft::Raft, state_machine::StateMachine},
    net::pool::{ConnectionPool, Target, TrafficClass},
    protocol::{
        messages::{Answer, Request},
        peer::Peer,
        raft_messages::{RaftAnswer, RaftRequest},
    },
};

/// How often. In between, followers come to where the leader was.
const ROUND: Duration = Duration::from_secs(1);
/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Compares the replicas, while this member leads and until it stops.
pub(crate) async fn watch(raft: Raft, machine: Arc<StateMachine>, pool: Arc<ConnectionPool>) {
    let mut metrics = raft.raft.metrics();
    let mut next = None;
    let mut settled = None;
    // An error says that Raft has stopped, too.
    while tokio::time::timeout(ROUND, metrics.wait_for(|metrics| metrics.running_state.is_err())).await.is_err() {
        let leads = metrics.borrow().state == openraft::ServerState::Leader;
        let Some((index, sum)) = mem::replace(&mut next, machine.sum()).filter(|_| leads) else { continue };
        if settled != Some(index) && raft.compare_at(&machine, &pool, index, sum).await {
            settled = Some(index);
        }
    }
}

impl Raft {
    /// Whether all others have answered.
    async fn compare_at(&self, machine: &StateMachine, pool: &ConnectionPool, index: u64, own: u64) -> bool {
        let mut members = self.view().members;
        members.remove(&self.id);
        let asked = members.values().map(|(peer, votes)| async move {
            (peer, *votes, ask(pool, peer, RaftRequest::Compare { index }).await.flatten())
        });
        let answers = join_all(asked).await;
        let voters = 1 + members.values().filter(|(_, votes)| *votes).count();
        let votes: Vec<u64> =
            answers.iter().filter_map(|(_, votes, sum)| sum.filter(|_| *votes)).chain([own]).collect();
        let Some(right) = right(own, &votes, voters) else {
            if votes.iter().any(|sum| *sum != own) {
                let problem = "replicas differ, and too few voters say what they have to tell which one is wrong";
                tracing::error!(target: "divider::raft", index, problem);
            }
            return false;
        };
        for (peer, ..) in answers.iter().filter(|(.., sum)| sum.is_some_and(|sum| sum != right)) {
            tracing::error!(target: "divider::raft", member = %peer, index, "this replica is not what the others are");
            ask(pool, peer, RaftRequest::Differs { index, sum: right }).await;
        }
        if own != right {
            self.stop_differing(machine, index);
        }
        answers.iter().all(|(.., sum)| sum.is_some())
    }

    /// This replica is another one than the others': nobody is told of what is in it, and it stops.
    pub(super) fn stop_differing(&self, machine: &StateMachine, index: u64) {
        tracing::error!(
            target: "divider::raft", index,
            "this replica differs from the others', although it applied the same entries. It stops: move its data directory \
             away, remove the member, and let it join again with an empty one; and please report this"
        );
        machine.set_differs();
        let raft = self.clone();
        // Not waited for: the core may be waiting for whoever called this.
        tokio::spawn(async move {
            if let Err(error) = raft.log.differs(index).await {
                tracing::error!(target: "divider::raft", %error, "it could not be written down that this replica differs");
            }
            raft.stop().await;
        });
    }
}

/// What is right, where so many voters say this: what most of all say, and where there is no majority for anything and nobody
/// is left to ask, what the leader says. `None` where others may still say who of these is wrong.
fn right(own: u64, said: &[u64], of: usize) -> Option<u64> {
    most(said, of).or_else(|| (said.len() == of).then_some(own))
}

/// What most of so many say.
fn most(said: &[u64], of: usize) -> Option<u64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    said.iter().for_each(|sum| *counts.entry(*sum).or_default() += 1);
    counts.into_iter().find(|(_, count)| count * 2 > of).map(|(sum, _)| sum)
}

/// The outer `None` where nobody answers.
async fn ask(pool: &ConnectionPool, peer: &Peer, request: RaftRequest) -> Option<Option<u64>> {
    match pool.call(&Target::member(peer), TrafficClass::Raft, &Request::Raft(request), LIMIT).await {
        Ok(Answer::Raft(RaftAnswer::Compared(sum))) => Some(sum),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{most, right};

    #[test]
    fn what_most_voters_say_is_right_and_nothing_is_where_there_is_no_majority() {
        assert_eq!(most(&[1, 2, 2], 3), Some(2));
        assert_eq!(most(&[1, 1], 3), Some(1));
        assert_eq!(most(&[1, 2], 3), None);
        assert_eq!(most(&[1, 2], 2), None);
        assert_eq!(most(&[1], 3), None);
    }

    #[test]
    fn a_leader_is_not_right_before_all_who_may_contradict_it_have_spoken() {
        assert_eq!(right(1, &[2, 2, 1], 3), Some(2), "it is wrong itself");
        assert_eq!(right(1, &[1], 3), None);
        assert_eq!(right(1, &[2, 1], 3), None, "the third one may say the same as the other");
        assert_eq!(right(1, &[2, 3, 1], 5), None);
        // Nobody is left who could tell them apart.
        assert_eq!(right(1, &[2, 1], 2), Some(1));
        assert_eq!(right(1, &[2, 3, 1], 3), Some(1));
    }
}
