//! To which cluster a client belongs.
//!
//! It learns that when it first asks all of its seeds, if those that answer say the same: whoever writes the seeds of two
//! clusters into one list is told so. From then on it takes the word of no other cluster, while any member of its own is
//! there. Where none has been for a while and all that answer are of one other cluster, it goes on with that: all disks were
//! lost and it was founded anew, or it was recovered. Sessions of before are over there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use uuid::Uuid;

/// How long nothing may have been heard of its cluster before a client goes on with another one.
const FAREWELL: Duration = if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };

/// What a client knows of it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterBinding(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    /// Open connections to members of its cluster, and when the last one ended.
    open: usize,
    last: Instant,
    /// Other clusters, and when a member of theirs was met last.
    others: BTreeMap<Uuid, Instant>,
}

impl Default for Known {
    fn default() -> Self {
        Self { open: 0, last: Instant::now(), others: BTreeMap::new() }
    }
}

/// An open connection to a member of its cluster.
#[derive(Debug)]
pub(crate) struct BoundConnection(ClusterBinding);

impl Drop for BoundConnection {
    fn drop(&mut self) {
        let mut known = self.0.0.lock();
        known.open -= 1;
        known.last = Instant::now();
    }
}

impl ClusterBinding {
    /// A member has said to which cluster it belongs: `None` where that is not the client's, which may have none yet.
    pub(crate) fn bind(&self, mine: &RwLock<Option<Uuid>>, theirs: Uuid) -> Option<BoundConnection> {
        let mut known = self.0.lock();
        if mine.read().is_some_and(|mine| mine != theirs) {
            known.others.insert(theirs, Instant::now());
            return None;
        }
        known.open += 1;
        Some(BoundConnection(self.clone()))
    }

    /// All have been asked, and those that answered `said` to which cluster they belong. `new` says that the client
    /// belonged to none when they were asked.
    ///
    /// # Errors
    /// That nobody can tell to which one the client belongs.
    pub(crate) fn asked(&self, mine: &RwLock<Option<Uuid>>, new: bool, said: BTreeSet<Uuid>) -> Result<(), String> {
        let mut known = self.0.lock();
        known.others.retain(|_, met| met.elapsed() < FAREWELL);
        let others: BTreeSet<Uuid> = known.others.keys().copied().collect();
        let clusters = match new {
            true => &said | &others,
            false if known.is_over() => others,
            false => return Ok(()),
        };
        let mut mine = mine.write();
        match (clusters.first(), clusters.len()) {
            (None, _) => Ok(()),
            (Some(cluster), 1) => {
                if !new {
                    let problem =
                        "no member of the former cluster is there any more: this client goes on with another one";
                    tracing::warn!(target: "divider::raft", %cluster, problem);
                }
                *mine = Some(*cluster);
                Ok(())
            }
            (_, count) => {
                *mine = mine.filter(|_| !new);
                Err(format!("the seeds belong to {count} clusters; only those of one may be seeds"))
            }
        }
    }
}

impl Known {
    fn is_over(&self) -> bool {
        self.open == 0 && self.last.elapsed() >= FAREWELL
    }
}
