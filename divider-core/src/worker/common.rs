//! What the tasks of a worker share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Retry, retry::Pause, tally::Tally};
use crate::{
    divider::{Assignment, Divider, NotHandedOver, Release},
    ids::{Key, Token},
    node::target,
};

pub(super) struct Common {
    pub(super) divider: Arc<dyn Divider>,
    pub(super) permits: Semaphore,
    pub(super) grace: Duration,
    pub(super) retry: Retry,
    pub(super) release: Pause,
    pub(super) tally: Mutex<Tally>,
    /// Whether the drain has begun.
    pub(super) draining: AtomicBool,
    /// What was not handed over in the drain.
    pub(super) not_handed_over: Mutex<Vec<NotHandedOver>>,
}

/// How a key that is given up goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// For how long nobody starts it.
    pub(super) pause: Duration,
    /// Set where its task failed.
    pub(super) failed: Option<Failure>,
}

/// A failure of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// How many in a row this makes.
    pub(super) failures: u32,
    /// Whether that is enough.
    pub(super) is_last: bool,
    pub(super) why: String,
}

impl Rest {
    pub(super) fn release(&self) -> Release {
        let release = Release::after(self.pause);
        match &self.failed {
            Some(Failure { failures, why, .. }) => release.failed(*failures, why),
            None => release,
        }
    }

    pub(super) fn why(&self) -> &str {
        self.failed.as_ref().map_or("", |failure| &failure.why)
    }

    pub(super) fn log(&self, key: &Key, token: Token) {
        let pause = self.pause;
        match &self.failed {
            None => tracing::debug!(target: target::WORKER, %key, %token, ?pause, "the task wants to run again"),
            Some(Failure { failures, why, is_last: false }) => {
                tracing::warn!(target: target::WORKER, %key, %token, failures, why, ?pause, "the task failed");
            }
            Some(Failure { failures, why, is_last: true }) => {
                tracing::error!(target: target::WORKER, %key, %token, failures, why, "the task fails again and again: it is set aside");
            }
        }
    }
}

impl Common {
    /// Decides how a key goes on whose task has ended by itself after it `ran` for so long, and has `failed` or wants to run
    /// again.
    pub(super) fn rest(&self, work: &Assignment, failed: Option<String>, ran: Duration) -> Rest {
        let Some(why) = failed else {
            let releases = self.count(&work.key, ran > self.release.most);
            return Rest { pause: self.release.after(releases), failed: None };
        };
        // A task that ran for long enough did not fail for the reason it failed for before.
        let before = if ran > self.retry.pause.most { 0 } else { work.failures };
        let failures = before.saturating_add(1);
        let is_last = failures >= self.retry.failures;
        let pause = self.retry.pause.after(failures);
        Rest { pause, failed: Some(Failure { failures, is_last, why }) }
    }

    /// How often in a row the key was released. A task that ran for long enough did not end for the reason it ended for before.
    fn count(&self, key: &Key, anew: bool) -> u32 {
        let mut tally = self.tally.lock();
        if anew {
            tally.forget(key);
        }
        tally.count(key)
    }

    pub(super) fn forget(&self, key: &Key) {
        self.tally.lock().forget(key);
    }

    /// The next owner of a key may miss something.
    pub(super) fn not_handed_over(&self, missing: NotHandedOver) {
        let NotHandedOver { key, token, why } = &missing;
        tracing::error!(target: target::WORKER, %key, %token, why, "the key moves without what was to be handed over");
        // At most the keys that this node holds when the drain begins.
        if self.draining.load(Ordering::SeqCst) {
            self.not_handed_over.lock().push(missing);
        }
    }
}
