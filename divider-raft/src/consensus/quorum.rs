//! A leader that no quorum answers falls silent.
//!
//! openraft's leader goes on for as long as nobody tells it of a higher term. Where it is heard but hears nobody, its
//! heartbeats would keep the others from electing one that works, for as long as its network is broken in this way. So it
//! stops sending when no quorum has answered for a while, long enough for an election, and then tries again: it may be
//! that nobody else could win one.
//!
//! Answers count however late they come: a machine that is slow is no broken network.
//!
//! The same answers say until when this member has led for certain: whoever answers an append of a term without a higher one
//! has not voted in a later election when it does. So where a quorum has answered what was sent after some moment, nobody
//! else had been elected at that moment. That is what a round of confirmation finds out, without one.

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
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::protocol::peer::Peer;

/// What a leader hears of the others. Clones look at the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Quorum(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<HashMap<u64, Heard>>,
    /// Another answer is in.
    more: Notify,
    /// No quorum has answered for too long.
    lost: AtomicBool,
    /// And now is a time to be silent.
    silent: AtomicBool,
    /// This member hands over, and leads no more.
    over: AtomicBool,
}

/// What was heard of a member.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// When it answered last.
    last: Instant,
    /// The newest term whose leader it has followed, and when the latest request that it answered in it was sent.
    followed: Option<(u64, Instant)>,
}

impl Quorum {
    /// A member has answered, as a follower of the leader of a term what was sent at that moment, if so.
    pub(super) fn heard(&self, id: u64, followed: Option<(u64, Instant)>) {
        let mut heard = self.0.heard.lock();
        let last = Instant::now();
        let before = heard.get(&id).and_then(|heard| heard.followed);
        heard.insert(id, Heard { last, followed: before.max(followed) });
        self.0.more.notify_one();
    }

    /// When a member answered last.
    pub(super) fn last(&self, id: u64) -> Option<Instant> {
        self.0.heard.lock().get(&id).map(|heard| heard.last)
    }

    /// Waits for another answer. One at a time may wait. Cancel safe.
    pub(super) async fn more(&self) {
        self.0.more.notified().await;
    }

    /// A moment at which this member led for certain in `term`, as late as is known.
    pub(super) fn led(&self, me: u64, term: u64, voters: &[BTreeSet<u64>]) -> Option<Instant> {
        self.latest(me, voters, |heard| heard.followed.filter(|(of, _)| *of == term).map(|(_, sent)| sent))
    }

    /// Whether this member leads without a quorum: it may have been replaced.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Whether this member should say nothing as a leader.
    pub(super) fn is_silent(&self) -> bool {
        self.0.silent.load(Ordering::Relaxed) || self.0.over.load(Ordering::Relaxed)
    }

    /// From now on this member says nothing as a leader: it hands over.
    pub(super) fn hush(&self) {
        self.0.over.store(true, Ordering::Relaxed);
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
            since = since.max(self.latest(me, &voters, |heard| Some(heard.last)).unwrap_or(since));
            let unheard = since.elapsed();
            self.0.lost.store(unheard >= patience, Ordering::Relaxed);
            self.0.silent.store(hushed(unheard, patience), Ordering::Relaxed);
            // Where nothing is heard, somebody may be at any moment.
            tokio::time::sleep(patience.saturating_sub(unheard).max(patience / 10)).await;
        }
    }

    /// The latest moment that a majority of each of these has reached; this member has reached every one.
    fn latest(
        &self,
        me: u64,
        voters: &[BTreeSet<u64>],
        reached: impl Fn(&Heard) -> Option<Instant>,
    ) -> Option<Instant> {
        let heard = self.0.heard.lock();
        let now = Instant::now();
        let of = |voters: &BTreeSet<u64>| {
            let last = |id: &u64| if *id == me { Some(now) } else { heard.get(id).and_then(&reached) };
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
        let latest = |voters: &[BTreeSet<u64>]| quorum.latest(1, voters, |heard| Some(heard.last));
        assert!(latest(&[set(&[1])]).is_some());
        assert!(latest(&[set(&[1, 2, 3])]).is_none());
        quorum.heard(2, None);
        let second = quorum.0.heard.lock()[&2].last;
        assert_eq!(latest(&[set(&[1, 2, 3])]), Some(second));
        assert_eq!(latest(&[set(&[1, 2])]), Some(second));
        assert!(latest(&[set(&[1, 2, 3, 4])]).is_none());
        assert!(latest(&[set(&[1, 2, 3]), set(&[1, 4, 5])]).is_none());
        quorum.heard(4, None);
        assert_eq!(latest(&[set(&[1, 2, 3]), set(&[1, 4, 5])]), Some(second));
    }

    #[test]
    fn it_led_when_what_a_quorum_has_answered_was_sent_and_in_that_term_alone() {
        let quorum = Quorum::default();
        let voters = [BTreeSet::from([1, 2, 3])];
        let second = Instant::now();
        let first = second.checked_sub(Duration::from_millis(5)).unwrap();
        quorum.heard(2, None);
        assert_eq!(quorum.led(1, 7, &voters), None, "it answered, and followed somebody else");
        quorum.heard(2, Some((7, second)));
        assert_eq!(quorum.led(1, 7, &voters), Some(second));
        quorum.heard(2, Some((7, first)));
        assert_eq!(quorum.led(1, 7, &voters), Some(second), "answers may come in another order");
        assert_eq!((quorum.led(1, 6, &voters), quorum.led(1, 8, &voters)), (None, None));
        quorum.heard(2, Some((8, first)));
        quorum.heard(2, Some((7, second)));
        assert_eq!((quorum.led(1, 7, &voters), quorum.led(1, 8, &voters)), (None, Some(first)));
    }
}
