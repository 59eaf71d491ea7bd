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

use crate::cluster::member::{Member, SKEW};

/// How long the address of a leader may take to refuse a connection.
const PROBE: Duration = Duration::from_millis(200);
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
        let mut successors = view.members.iter().filter(|(id, (_, votes))| *votes && **id != leader.id);
        let Some(turn) = successors.position(|(id, _)| *id == member.me.id) else { continue };
        match timeout(PROBE, member.config.environment.connect(&member.pool.address_book().placed(leader).address))
            .await
        {
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use divider_core::{Op, Store, Work};
    use openraft::raft::VoteRequest;

    use crate::{
        RaftStore,
        protocol::{
            raft_messages::{RaftAnswer, RaftRequest},
            types::Vote,
        },
        tests::voters::voters,
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_leader_of_five_voters_hands_over_within_one_term() {
        let (mut stores, _) = voters(5).await;
        // Twice: three voters are left then, and one after the other is a majority of five.
        for round in 0..2 {
            let leader = stores.iter().position(RaftStore::leads_raft).unwrap();
            let before = stores[leader].raft_term();
            let began = Instant::now();
            stores.remove(leader).close().await;
            let add = [Op::Add(Work::new(format!("{round}")).unwrap())];
            while stores[0].apply(&add).await.is_err() {
                assert!(began.elapsed() < Duration::from_secs(10));
            }
            println!("figure: five voters, hand-over: {:?}", began.elapsed());
            assert_eq!(stores[0].raft_term(), before.map(|term| term + 1));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_voter_stands_in_a_term_in_which_nobody_has_asked_for_its_vote() {
        let (mut stores, _) = voters(3).await;
        let follower = stores.iter().position(|store| !store.leads_raft()).unwrap();
        let store = stores.swap_remove(follower);
        for other in &stores {
            other.member().unwrap().raft.stop().await;
        }
        let member = store.member().unwrap();
        // As from a voter that has nothing in its log, and whom many have refused.
        let term = member.raft.view().term + 1000;
        let request = VoteRequest::new(Vote::new(term, 1), None);
        let answer = member.raft.answer(RaftRequest::Vote(request), &member.machine, &member.receiving).await;
        let RaftAnswer::Vote(answer, _) = answer else { panic!("{answer:?}") };
        assert!(!answer.vote_granted);
        let began = Instant::now();
        while member.raft.view().term <= term {
            assert!(began.elapsed() < Duration::from_secs(5), "it stands in term {}", member.raft.view().term);
            // Nobody votes, not even a voter for itself, while the lease of a leader that it has just heard of runs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            member.raft.stand().await;
        }
    }
}
