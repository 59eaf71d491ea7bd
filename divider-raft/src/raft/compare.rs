//! Replicas are compared: the leader asks each member for its number at an index that all should have come to, and what
//! most voters say is right. Where there is no majority for anything the leader's own counts, since it was elected.
//!
//! A member that differs tells nobody of what is in it any more, and stops. It can only have come to that by a fault of
//! this program or of its machine, so nothing else is done about it without a person.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::{Machine, Peer, Raft, RaftAnswer, RaftRequest};
use crate::{
    link::{Class, Links, Target},
    wire::{Answer, Request},
};

/// How often. In between, followers come to where the leader was.
const ROUND: Duration = Duration::from_secs(1);
/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(1);

impl Raft {
    /// Compares the replicas, while this member leads and until it stops.
    pub(super) async fn compare(self, machine: Arc<Machine>, links: Arc<Links>) {
        let mut metrics = self.raft.metrics();
        let mut next = None;
        let mut settled = None;
        // An error says that Raft has stopped, too.
        while tokio::time::timeout(ROUND, metrics.wait_for(|metrics| metrics.running_state.is_err())).await.is_err() {
            let leads = metrics.borrow().state == openraft::ServerState::Leader;
            let Some((index, sum)) = mem::replace(&mut next, machine.sum()).filter(|_| leads) else { continue };
            if settled != Some(index) && self.compare_at(&machine, &links, index, sum).await {
                settled = Some(index);
            }
        }
    }

    /// Whether all others have answered.
    async fn compare_at(&self, machine: &Machine, links: &Links, index: u64, own: u64) -> bool {
        let mut members = self.view().members;
        members.remove(&self.id);
        let asked = members.values().map(|(peer, votes)| async move {
            (peer, *votes, ask(links, peer, RaftRequest::Compare { index }).await.flatten())
        });
        let answers = join_all(asked).await;
        let voters = 1 + members.values().filter(|(_, votes)| *votes).count();
        let votes = answers.iter().filter_map(|(_, votes, sum)| sum.filter(|_| *votes));
        let right = most(votes.chain([own]), voters).unwrap_or(own);
        for (peer, ..) in answers.iter().filter(|(.., sum)| sum.is_some_and(|sum| sum != right)) {
            tracing::error!(target: "divider::raft", member = %peer, index, "this replica is not what the others are");
            ask(links, peer, RaftRequest::Differs { index, sum: right }).await;
        }
        if own != right {
            self.stop_differing(machine, index);
        }
        answers.iter().all(|(.., sum)| sum.is_some())
    }

    /// This replica is another one than the others': nobody is told of what is in it, and it stops.
    pub(super) fn stop_differing(&self, machine: &Machine, index: u64) {
        tracing::error!(
            target: "divider::raft", index,
            "this replica differs from the others', although it applied the same entries. It stops: move its data directory \
             away, remove the member, and let it join again with an empty one; and please report this"
        );
        machine.set_differs();
        let raft = self.clone();
        // Not waited for: the core may be waiting for whoever called this.
        tokio::spawn(async move { raft.stop().await });
    }
}

/// What most of so many say.
fn most(said: impl Iterator<Item = u64>, of: usize) -> Option<u64> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    said.for_each(|sum| *counts.entry(sum).or_default() += 1);
    counts.into_iter().find(|(_, count)| count * 2 > of).map(|(sum, _)| sum)
}

/// The outer `None` where nobody answers.
async fn ask(links: &Links, peer: &Peer, request: RaftRequest) -> Option<Option<u64>> {
    match links.call(&Target::member(peer), Class::Raft, &Request::Raft(request), LIMIT).await {
        Ok(Answer::Raft(RaftAnswer::Compared(sum))) => Some(sum),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::most;

    #[test]
    fn what_most_voters_say_is_right_and_nothing_is_where_there_is_no_majority() {
        assert_eq!(most([1, 2, 2].into_iter(), 3), Some(2));
        assert_eq!(most([1, 1].into_iter(), 3), Some(1));
        assert_eq!(most([1, 2].into_iter(), 3), None);
        assert_eq!(most([1, 2].into_iter(), 2), None);
        assert_eq!(most([1].into_iter(), 3), None);
    }
}
