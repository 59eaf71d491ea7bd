//! The beat thread: renews the lease on a thread and a runtime of its own, so that a program that blocks every thread of
//! its runtime still keeps its keys.

use std::{io, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{Notify, oneshot, watch};

use super::{observe::Observer, part::Part, shared::Shared};
use crate::{Clock, Instant, SessionId, Store, StoreError, lease::Lease};

/// What the thread needs; nothing that would keep the node alive.
struct BeatThread {
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
pub(crate) fn spawn(shared: &Arc<Shared>) -> io::Result<()> {
    let beat = BeatThread {
        store: shared.store.clone(),
        clock: shared.clock.clone(),
        observer: shared.observer.clone(),
        believed: shared.deadline(Instant(0)).since(Instant(0)),
        interval: shared.config.beat_interval(),
        leases: shared.lease.subscribe(),
        died: shared.lease_died.clone(),
    };
    let (begin, begun) = oneshot::channel::<Part>();
    shared.environment.beat(Box::pin(async move {
        if let Ok(part) = begun.await {
            beat.run().await;
            part.done();
        }
    }))?;
    // Made here and not in the task: one that is dropped before its first step has died as well. But not before there is a
    // thread: where none can be had, that may be tried again.
    drop(begin.send(Part::of(Arc::downgrade(shared), "the renewal of the lease")));
    Ok(())
}

impl BeatThread {
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

    /// Renews until the lease is dead. A renewal that is not back when the next one is due does not hold it up.
    async fn keep(&self, lease: &Lease) {
        let mut renewals = FuturesUnordered::new();
        let mut due = self.clock.now();
        loop {
            let now = self.clock.now();
            if due <= now {
                renewals.push(self.renewal(lease.session(), now));
                due = now + self.interval;
            }
            tokio::select! {
                biased;
                Some((sent, result)) = renewals.next() => {
                    if !self.alive(lease, sent, &result) {
                        return self.died.notify_one();
                    }
                    if result.is_err() {
                        due = due.min(self.clock.now() + self.interval / 8);
                    }
                }
                () = tokio::time::sleep(due.since(now)) => {}
            }
        }
    }

    /// One renewal, and when it was sent.
    async fn renewal(&self, session: SessionId, sent: Instant) -> (Instant, Result<crate::Beat, StoreError>) {
        // One that is not back after two intervals is given up, since its connection may be dead: and early enough that
        // one more has its time, on a connection that it does not have to share with this one.
        let left = self.believed.saturating_sub(self.interval);
        let limit = (self.interval * 2).min(left * 2 / 3);
        let renewal = async {
            let timed_out = |_| StoreError::Timeout { limit };
            tokio::time::timeout(limit, self.store.renew(session)).await.map_err(timed_out)?
        };
        (sent, self.observer.call("renew", renewal).await)
    }

    /// What an answer does to the lease.
    fn alive(&self, lease: &Lease, sent: Instant, result: &Result<crate::Beat, StoreError>) -> bool {
        let now = self.clock.now();
        if result.is_err() || now.since(sent) > self.interval {
            self.observer.beat_late();
        }
        lease.note(result.as_ref().err().cloned());
        match result {
            Ok(_) => lease.extend(now, sent + self.believed),
            Err(StoreError::SessionEnded) => {
                lease.kill();
                false
            }
            Err(_) => lease.is_valid(now),
        }
    }
}
