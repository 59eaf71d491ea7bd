//! The beat thread: renews the lease on a thread and a runtime of its own, so that a program that blocks every thread of
//! its runtime still keeps its keys.

use std::{io, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

use super::{
    observe::{Observer, target},
    shared::Shared,
};
use crate::{Clock, Instant, Store, StoreError, lease::Lease};

/// What the thread needs; nothing that would keep the node alive.
struct Beat {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    observer: Observer,
    /// From the sending of a renewal to the deadline that it earns.
    believed: Duration,
    interval: Duration,
    leases: watch::Receiver<Option<Arc<Lease>>>,
    died: Arc<Notify>,
}

/// Starts the thread. It ends when the node does.
pub(crate) fn spawn(shared: &Shared) -> io::Result<()> {
    let beat = Beat {
        store: shared.store.clone(),
        clock: shared.clock.clone(),
        observer: shared.observer.clone(),
        believed: shared.deadline(Instant(0)).since(Instant(0)),
        interval: shared.config.beat_interval(),
        leases: shared.lease.subscribe(),
        died: shared.lease_died.clone(),
    };
    shared.machine.beat(Box::pin(beat.run()))
}

impl Beat {
    async fn run(mut self) {
        loop {
            let lease = self.leases.borrow_and_update().clone();
            let over = match lease {
                Some(lease) => {
                    let mut leases = self.leases.clone();
                    tokio::select! {
                        biased;
                        changed = leases.changed() => changed.is_err(),
                        () = self.keep(&lease) => self.leases.changed().await.is_err(),
                    }
                }
                None => self.leases.changed().await.is_err(),
            };
            if over {
                return;
            }
        }
    }

    /// Renews until the lease is dead.
    async fn keep(&self, lease: &Lease) {
        let session = lease.session();
        loop {
            let sent = self.clock.now();
            // A renewal that is not back after two intervals is given up: its connection may be dead, and the next one
            // still has the rest of the lease.
            let limit = self.interval * 2;
            let renewal = async {
                let timed_out = |_| StoreError::Timeout { limit };
                tokio::time::timeout(limit, self.store.renew(session)).await.map_err(timed_out)?
            };
            let result = self.observer.call("renew", renewal).await;
            let now = self.clock.now();
            let alive = match &result {
                Ok(_) => lease.extend(now, sent + self.believed),
                Err(StoreError::SessionEnded) => {
                    lease.kill();
                    false
                }
                Err(_) => lease.is_valid(now),
            };
            if !alive {
                tracing::warn!(
                    target: target::SESSION, node = %self.observer.node, %session, error = ?result.err(),
                    "the session is lost: its lease could not be renewed in time"
                );
                self.died.notify_one();
                return;
            }
            let spent = now.since(sent);
            if result.is_err() || spent > self.interval {
                self.observer.beat_late();
            }
            let pause = match result {
                Ok(_) => self.interval.saturating_sub(spent),
                Err(_) => self.interval / 8,
            };
            tokio::time::sleep(pause).await;
        }
    }
}
