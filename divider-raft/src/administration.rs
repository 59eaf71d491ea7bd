//! What an operator does to a cluster: who is a member of it, in which format it is written, and a new life of it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use divider_core::StoreError;

use crate::{
    consensus::recover::{self, Recovered},
    environment::{DataDir, ThisMachine},
    error::DataError,
    format::NEWEST,
    net::pool::TrafficClass,
    protocol::{
        messages::{Answer, Call, Status},
        peer::Peer,
    },
    store::{RaftStore, unexpected},
};

impl RaftStore {
    /// All members, and whether each votes. Cancel safe.
    ///
    /// # Errors
    /// [`StoreError`] where the cluster cannot be reached.
    pub async fn members(&self) -> Result<Vec<(Peer, bool)>, StoreError> {
        match self.call(Call::Status, TrafficClass::Calls, true).await? {
            Answer::Status(Status { members, .. }) => Ok(members),
            _ => Err(unexpected()),
        }
    }

    /// Removes a member for good, such as one whose disk is lost. Its data directory cannot come back.
    ///
    /// # Errors
    /// [`StoreError`]; nobody knows whether it was done where the cluster could not be reached in time. Calling it again
    /// is safe.
    ///
    /// # Cancel safety
    /// A dropped future leaves it unknown whether the member was removed.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        self.call(Call::Leave { id }, TrafficClass::Calls, true).await.map(drop)
    }

    /// Makes a learner a voter, whatever [`RaftConfig::voters`](crate::RaftConfig::voters) says. Calling it again is safe.
    ///
    /// # Errors
    /// As [`remove_member`](Self::remove_member).
    ///
    /// # Cancel safety
    /// As [`remove_member`](Self::remove_member).
    pub async fn promote(&self, id: u64) -> Result<(), StoreError> {
        self.call(Call::Promote { id }, TrafficClass::Calls, true).await.map(drop)
    }

    /// Makes the learner `new` a voter in the place of `old`, which leaves for good. Calling it again is safe.
    ///
    /// # Errors
    /// As [`remove_member`](Self::remove_member).
    ///
    /// # Cancel safety
    /// As [`remove_member`](Self::remove_member).
    pub async fn replace_voter(&self, old: u64, new: u64) -> Result<(), StoreError> {
        self.call(Call::Replace { old, new }, TrafficClass::Calls, true).await.map(drop)
    }

    /// Lets the cluster be written in the newest format of the log and the snapshots that all its members read, without waiting
    /// for [`step_after`](crate::RaftConfig::step_after), and says which that is. A cluster that has stepped up never goes back: from
    /// then on no older version of the program can be a member. Nothing happens where a member, reachable or not, does not
    /// read a newer one; remove those that do not come back. Calling it again is safe.
    ///
    /// A member or an administrator may say it, as it may change the membership. Groups have formats of their own, see
    /// [`divider_core::format`].
    ///
    /// # Errors
    /// As [`remove_member`](Self::remove_member).
    ///
    /// # Cancel safety
    /// As [`remove_member`](Self::remove_member).
    pub async fn step_up(&self) -> Result<u64, StoreError> {
        match self.call(Call::StepUp, TrafficClass::Calls, true).await? {
            Answer::Index(format) => Ok(format),
            _ => Err(unexpected()),
        }
    }

    /// Removes this member from the cluster for good; close the store after it. Not the way to restart: a member that
    /// comes back soon just stops and starts.
    ///
    /// # Errors
    /// As [`remove_member`](Self::remove_member).
    ///
    /// # Cancel safety
    /// As [`remove_member`](Self::remove_member).
    pub async fn leave(&self) -> Result<(), StoreError> {
        match self.me() {
            Some(me) => self.remove_member(me.id).await,
            None => Ok(()),
        }
    }

    /// **Begins a new life of the cluster, with one member, from the data directory of one that has survived. For when a
    /// majority of the voters is lost for good, and for nothing else.**
    ///
    /// What was acknowledged and had not reached this member is lost: take the survivor whose log goes furthest. All sessions
    /// are ended, and tokens go on far above all that were ever given. Nothing of the old life may run any more, or there
    /// would be two: end all other members first, and give them empty directories before they start again. Those that come
    /// back with their old ones are refused. While a member of any other cluster answers at its seeds, the new life serves
    /// nobody, and `open` says so.
    ///
    /// The member must not be running. Its directory is replaced, and kept as `<directory>.before-recovery`. Start it after
    /// that as always, and the others after it, as newcomers. Blocks on the disk; the clock must not be behind.
    ///
    /// # Errors
    /// [`DataError`] where the directory is in use, damaged or not of a member; then nothing has been changed.
    pub fn recover(directory: impl AsRef<Path>) -> Result<Recovered, DataError> {
        let directory = directory.as_ref().to_owned();
        let data_dir =
            |directory| DataDir { directory: Some(directory), environment: Arc::new(ThisMachine), reads: NEWEST };
        // On a thread of its own, so that it does not matter whether the caller is on a runtime.
        let recovering = std::thread::spawn(move || recover::recover(&directory, data_dir));
        let recovered = recovering.join().unwrap_or_else(|_| {
            Err(DataError::Corrupt { path: PathBuf::new(), problem: "reading it failed unexpectedly".into() })
        })?;
        tracing::warn!(
            target: "divider::raft",
            ?recovered,
            "A NEW LIFE OF THE CLUSTER BEGINS FROM ONE MEMBER: what had not reached it is lost"
        );
        Ok(recovered)
    }
}
