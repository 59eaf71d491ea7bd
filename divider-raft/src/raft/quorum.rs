//! A leader that no quorum answers falls silent.
//!
//! openraft's leader goes on for as long as nobody tells it of a higher term. Where it is heard but hears nobody, its
//! heartbeats would keep the others from electing one that works, for as long as its network is broken in this way. So it
//! stops sending when no quorum has answered for a while, long enough for an election, and then tries again: it may be
//! that nobody else could win one.
//!
//! Answers count however late they come: a machine that is slow is no broken network.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{ServerState, metrics::RaftServerMetrics};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::Peer;

/// What a leader hears of the others. Clones look at the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Quorum(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// When each member answered last.
    heard: Mutex<HashMap<u64, Instant>>,
    /// No quorum has answered for too long.
    lost: AtomicBool,
    /// And now is a time to be silent.
    silent: AtomicBool,
}

impl Quorum {
    /// A member has answered.
    pub(super) fn heard(&self, id: u64) {
        self.0.heard.lock().insert(id, Instant::now());
    }

    /// Whether this member leads without a quorum: it may have been replaced.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Whether this member should say nothing as a leader.
    pub(super) fn is_silent(&self) -> bool {
        self.0.silent.load(Ordering::Relaxed)
    }

    /// Looks after it until Raft ends. `patience` is how long a leader goes on without answers.
    pub(super) async fn watch(self, mut metrics: watch::Receiver<RaftServerMetrics<u64, Peer>>, patience: Duration) {
        let mut since = Instant::now();
        while metrics.has_changed().is_ok() {
            let (leads, me, voters) = {
                let metrics = metrics.borrow();
                let voters = metrics.membership_config.membership().get_joint_config().clone();
                (metrics.state == ServerState::Leader, metrics.id, voters)
            };
            if !leads {
                self.0.lost.store(false, Ordering::Relaxed);
                self.0.silent.store(false, Ordering::Relaxed);
                // An error means that Raft has stopped.
                let _ = metrics.wait_for(|metrics| metrics.state == ServerState::Leader).await;
                since = Instant::now();
                continue;
            }
            since = since.max(self.last_quorum(me, &voters).unwrap_or(since));
            let unheard = since.elapsed();
            self.0.lost.store(unheard >= patience, Ordering::Relaxed);
            self.0.silent.store(hushed(unheard, patience), Ordering::Relaxed);
            // Where nothing is heard, somebody may be at any moment.
            tokio::time::sleep(patience.saturating_sub(unheard).max(patience / 10)).await;
        }
    }

    /// Since when a majority of each of these has answered.
    fn last_quorum(&self, me: u64, voters: &[BTreeSet<u64>]) -> Option<Instant> {
        let heard = self.0.heard.lock();
        let now = Instant::now();
        let of = |voters: &BTreeSet<u64>| {
            let last = |id: &u64| if *id == me { Some(now) } else { heard.get(id).copied() };
            let mut times: Vec<_> = voters.iter().map(last).collect();
            times.sort_unstable();
            times.get(times.len().saturating_sub(1) / 2).copied().flatten()
        };
        voters.iter().map(of).min().flatten()
    }
}

/// Whether a leader is silent so long after it last had a quorum, or began to lead: it speaks for as long as its patience
/// lasts, and is silent for twice as long.
fn hushed(unheard: Duration, patience: Duration) -> bool {
    unheard.as_millis() % (3 * patience).as_millis().max(1) >= patience.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_falls_silent_and_tries_again() {
        let at = |ms| hushed(Duration::from_millis(ms), Duration::from_millis(600));
        assert_eq!([0, 599, 600, 1799, 1800, 2399, 2400].map(at), [false, false, true, true, false, false, true]);
    }

    #[test]
    fn a_quorum_is_a_majority_of_the_old_voters_and_of_the_new_ones() {
        let quorum = Quorum::default();
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert!(quorum.last_quorum(1, &[set(&[1])]).is_some());
        assert!(quorum.last_quorum(1, &[set(&[1, 2, 3])]).is_none());
        quorum.heard(2);
        let second = quorum.0.heard.lock()[&2];
        assert_eq!(quorum.last_quorum(1, &[set(&[1, 2, 3])]), Some(second));
        assert_eq!(quorum.last_quorum(1, &[set(&[1, 2])]), Some(second));
        assert!(quorum.last_quorum(1, &[set(&[1, 2, 3, 4])]).is_none());
        assert!(quorum.last_quorum(1, &[set(&[1, 2, 3]), set(&[1, 4, 5])]).is_none());
        quorum.heard(4);
        assert_eq!(quorum.last_quorum(1, &[set(&[1, 2, 3]), set(&[1, 4, 5])]), Some(second));
    }
}
