//! A leader that no quorum answers falls silent.
//!
//! openraft's leader goes on for as long as nobody tells it of a higher term. Where it is heard but hears nobody, its
//! heartbeats would keep the others from electing one that works, for as long as its network is broken in this way. So it
//! stops sending when no quorum has answered for a while, long enough for an election, and then tries again: it may be
//! that nobody else could win one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use openraft::{RaftMetrics, ServerState};
use tokio::sync::watch;

use super::Peer;

/// Whether this member should say nothing as a leader. Clones look at the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Quorum {
    silent: Arc<AtomicBool>,
}

impl Quorum {
    pub(super) fn is_lost(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Looks after it until Raft ends. `patience` is how long a leader goes on without answers.
    pub(super) async fn watch(self, metrics: watch::Receiver<RaftMetrics<u64, Peer>>, patience: Duration) {
        let mut since = Instant::now();
        while metrics.has_changed().is_ok() {
            let (leads, unheard) = {
                let metrics = metrics.borrow();
                (metrics.state == ServerState::Leader, metrics.millis_since_quorum_ack.map(Duration::from_millis))
            };
            if !leads || unheard.is_some_and(|unheard| unheard < patience) {
                since = Instant::now();
            }
            self.silent.store(hushed(since.elapsed(), patience), Ordering::Relaxed);
            tokio::time::sleep(patience / 10).await;
        }
    }
}

/// Whether a leader is silent so long after it last had a quorum, or began to lead: it speaks for as long as its patience
/// lasts, and is silent for twice as long.
fn hushed(since: Duration, patience: Duration) -> bool {
    since.as_millis() % (3 * patience).as_millis().max(1) >= patience.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_speaks_falls_silent_and_tries_again() {
        let at = |ms| hushed(Duration::from_millis(ms), Duration::from_millis(600));
        assert_eq!([0, 599, 600, 1799, 1800, 2399, 2400].map(at), [false, false, true, true, false, false, true]);
    }
}
