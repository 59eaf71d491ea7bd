//! The way out of a lost majority: a new life of the cluster, from what one member has on its disk.
//!
//! # What it costs
//! The survivor may lack the newest of what was acknowledged, and may have what never was. So nobody who was with the old
//! life may go on as if it were the same: the cluster and the member get new ids, all sessions are ended, nothing is granted
//! for a lease, within which whoever is left of the old life stops by itself, and all that is numbered goes on far above:
//! the log's indices, and with them the tokens, at the clock in microseconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use divider_core::{Group, Ledger};
use openraft::{
    CommittedLeaderId, RaftLogReader,
    storage::{RaftLogStorage, RaftStateMachine},
};
use uuid::Uuid;

use crate::{
    consensus::{
        log::{
            Log,
            records::Identity,
            recovering::{FORMER, NEW, beside, objection},
        },
        snapshots::Snapshots,
        state_machine::{StateMachine, StateMachineHandle},
    },
    environment::DataDir,
    error::DataError,
    protocol::{
        peer::Peer,
        snapshot::{SnapshotContent, SnapshotMeta, decode},
        types::{LogId, Membership, StorageError, Vote},
    },
};

/// What a recovery has made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The one member and voter of the new life.
    pub member: Peer,
    /// The log's last entry that the survivor had: what was decided after it is lost.
    pub last_entry: u64,
    /// How many groups there are.
    pub groups: usize,
    /// Where the directory is now as it was before.
    pub former: PathBuf,
}

/// What the survivor knows.
struct Survivor {
    identity: Identity,
    last: LogId,
    vote: Option<Vote>,
    me: Option<Peer>,
    groups: BTreeMap<Group, Ledger>,
    format: u8,
}

/// Puts a new directory in the place of the survivor's, which is kept beside it. Blocks on the disk.
pub(crate) fn recover(directory: &Path, data_dir: impl Fn(PathBuf) -> DataDir) -> Result<Recovered, DataError> {
    let failed = |error: io::Error| DataError::io(directory, error);
    let (new, former) = (beside(directory, NEW), beside(directory, FORMER));
    if objection(directory).is_err() {
        // It was cut short after it had moved the survivor's away. Nobody has used the new one, and it is made once more.
        std::fs::rename(&former, directory).map_err(failed)?;
    }
    if former.exists() {
        let source = io::Error::new(io::ErrorKind::AlreadyExists, "move it away: it is of an earlier recovery");
        return Err(DataError::io(former, source));
    }
    if !directory.join("log.redb").exists() {
        let problem = "no member of a cluster has ever lived here".to_owned();
        return Err(DataError::Corrupt { path: directory.to_owned(), problem });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(failed)?;
    let survivor = runtime.block_on(read(data_dir(directory.to_owned())))?;
    if new.exists() {
        // Of a recovery that was cut short before anything was changed.
        std::fs::remove_dir_all(&new).map_err(failed)?;
    }
    std::fs::create_dir_all(&new).map_err(failed)?;
    let recovered = runtime.block_on(write(survivor, data_dir(new.clone()), former.clone()))?;
    std::fs::rename(directory, &former).map_err(failed)?;
    std::fs::rename(&new, directory).map_err(failed)?;
    if let Some(above) = directory.canonicalize().map_err(failed)?.parent() {
        std::fs::File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
    }
    Ok(recovered)
}

async fn read(data_dir: DataDir) -> Result<Survivor, DataError> {
    let path = data_dir.directory.clone().unwrap_or_default();
    let corrupt = |problem: String| DataError::Corrupt { path: path.clone(), problem };
    let mut stranger = false;
    let fresh = || {
        stranger = true;
        Identity { id: 1, name: String::new(), cluster: String::new(), cluster_id: None }
    };
    let (mut log, identity) = Log::open(&data_dir, fresh)?;
    let (snapshots, loaded) = Snapshots::open(data_dir)?;
    let machine = StateMachine::new(snapshots, loaded);
    let text = |error: StorageError| corrupt(error.to_string());
    let after = machine.snapshot_index().map_or(0, |index| index + 1);
    let entries = log.try_get_log_entries(after..).await.map_err(text)?;
    let mut handle = StateMachineHandle { machine: machine.clone(), log: log.clone() };
    handle.apply(entries).await.map_err(text)?;
    let (last, membership) = handle.applied_state().await.map_err(text)?;
    let vote = log.read_vote().await.map_err(text)?;
    log.close();
    let nothing = || corrupt("no member of a cluster has ever lived here".into());
    let last = last.filter(|_| !stranger && identity.cluster_id.is_some()).ok_or_else(nothing)?;
    let me = membership.membership().get_node(&identity.id).cloned();
    let (_, bytes) = machine.encoded().ok_or_else(nothing)?;
    let SnapshotContent { groups, format, .. } = decode(&bytes).map_err(|unreadable| unreadable.at(&path))?;
    Ok(Survivor { identity, last, vote, me, groups, format })
}

/// Where the numbers of a new life begin.
fn start(last: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now).unwrap_or(u64::MAX / 2).max(last + 1)
}

async fn write(survivor: Survivor, data_dir: DataDir, former: PathBuf) -> Result<Recovered, DataError> {
    let Survivor { identity, last, vote, me, mut groups, format } = survivor;
    let path = data_dir.directory.clone().unwrap_or_default();
    let failed = |error: io::Error| DataError::io(&path, error);
    let index = start(last.index);
    groups.values_mut().for_each(|ledger| _ = ledger.new_lineage());
    let id = Uuid::from_u128(data_dir.environment.draw()).as_u64_pair().0.max(1);
    let member = Peer { id, name: identity.name.clone(), wants_vote: true, ..me.unwrap_or_default() };
    let term = vote.map_or(0, |vote| vote.leader_id().term).max(last.leader_id.term) + 1;
    let log_id = LogId::new(CommittedLeaderId::new(term, id), index);
    let membership = openraft::Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, member.clone())]));
    let meta = SnapshotMeta {
        last_log_id: Some(log_id),
        last_membership: Membership::new(Some(log_id), membership),
        snapshot_id: log_id.to_string(),
    };
    let cluster_id = Some(Uuid::from_u128(data_dir.environment.draw()));
    let count = groups.len();
    // A new life begins its own count of what its entries did.
    let content = SnapshotContent { format, meta, sum: Some(0), groups };
    let (mut log, _) = Log::open(&data_dir, || Identity { id, cluster_id, ..identity })?;
    let (snapshots, _) = Snapshots::open(data_dir.clone())?;
    let kept = snapshots.write(&content).map_err(failed)?;
    snapshots.adopt(content.meta, kept).map_err(failed)?;
    log.snapshot_is_kept(Ok(index));
    let storage = |error: StorageError| failed(io::Error::other(error));
    log.save_vote(&Vote::new(term, id)).await.map_err(storage)?;
    log.purge(log_id).await.map_err(storage)?;
    log.close();
    Ok(Recovered { member, last_entry: last.index, groups: count, former })
}
