//! openraft's own suite for stores, on the log in a file and in memory; and what becomes of damaged files.

use std::{
    path::Path,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use divider_conformance::Dice;
use divider_core::{Op, SessionId, Store, Work};
use divider_support::ops::joining;
use futures_util::FutureExt;
use openraft::{
    RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt},
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use crate::{
    RaftStore,
    consensus::{
        log::{Log, records::Identity, writer::STALL},
        snapshots::Snapshots,
        state_machine::{StateMachine, StateMachineHandle},
    },
    error::DataError,
    protocol::{
        command::{Body, Command, Step},
        snapshot::{SnapshotContent, SnapshotMeta},
        types::{Entry, LogId, StorageError, Types, Vote},
    },
    tests::voters::voters,
};

/// Copies the files of a store that was closed, once what ran on its threads has let go of them.
pub(super) fn copy(from: &Path, to: &Path) {
    while std::fs::File::open(from.join("log.redb")).unwrap().try_lock().is_err() {
        std::thread::yield_now();
    }
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Puts copied files in the place of what is there.
pub(super) fn put_back(backup: &Path, directory: &Path) {
    copy(directory, TempDir::new().unwrap().path());
    std::fs::remove_dir_all(directory).unwrap();
    std::fs::create_dir(directory).unwrap();
    copy(backup, directory);
}

struct OnDisk;
struct InMemory;

fn identity() -> Identity {
    Identity { id: 1, name: "a".into(), cluster: "test".into(), cluster_id: None }
}

pub(super) async fn build(directory: Option<std::path::PathBuf>) -> (Log, StateMachineHandle) {
    tokio::task::spawn_blocking(move || {
        let (log, _) = Log::open(&directory.clone().into(), identity).unwrap();
        let (snapshots, loaded) = Snapshots::open(directory.into()).unwrap();
        let machine = StateMachine::new(snapshots, loaded);
        machine.snapshot_end().into_iter().for_each(|last| log.goes_on_from(last).unwrap());
        // The suite purges where there is no snapshot.
        log.snapshot_is_kept(Ok(u64::MAX));
        (log.clone(), StateMachineHandle { machine, log })
    })
    .await
    .unwrap()
}

impl StoreBuilder<Types, Log, StateMachineHandle, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Log, StateMachineHandle), StorageError> {
        let directory = TempDir::new().unwrap();
        let (log, machine) = build(Some(directory.path().to_owned())).await;
        Ok((directory, log, machine))
    }
}

impl StoreBuilder<Types, Log, StateMachineHandle, ()> for InMemory {
    async fn build(&self) -> Result<((), Log, StateMachineHandle), StorageError> {
        let (log, machine) = build(None).await;
        Ok(((), log, machine))
    }
}

#[test]
fn the_suite_of_openraft_passes_on_disk() {
    Suite::test_all(OnDisk).unwrap();
}

#[test]
fn the_suite_of_openraft_passes_in_memory() {
    Suite::test_all(InMemory).unwrap();
}

fn entry(index: u64) -> Entry {
    let work = divider_core::Work::new(format!("key-{index}")).unwrap().payload(vec![7; index as usize % 300]);
    let group = divider_core::Group::new("/g/").unwrap();
    let step = Step::Apply { group, ops: vec![divider_core::Op::Add(work)] };
    let body = Body::V1 { raft_term: 1, steps: vec![step] };
    Entry {
        log_id: LogId::new(openraft::CommittedLeaderId::new(1, 1), index),
        payload: openraft::EntryPayload::Normal(Command(Arc::new(body))),
    }
}

/// What a member would go on with: its vote, its purge mark, and its entries.
type Found = (Option<Vote>, Option<LogId>, Vec<Entry>);

fn look(directory: &Path) -> Result<Found, DataError> {
    let (mut log, known) = Log::open(&directory.into(), || unreachable!("it is not a new one"))?;
    assert_eq!(known, identity());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = runtime.block_on(async {
        let vote = log.read_vote().await.unwrap();
        let state = log.get_log_state().await.unwrap();
        let entries = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(entries.last().map(|entry| entry.log_id).or(state.last_purged_log_id), state.last_log_id);
        (vote, state.last_purged_log_id, entries)
    });
    log.close();
    Ok(found)
}

/// One may be received while another one is being made.
#[test]
fn an_older_snapshot_does_not_take_the_place_of_a_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    let snapshot = |index| {
        let meta = SnapshotMeta { last_log_id: Some(entry(index).log_id), ..Default::default() };
        SnapshotContent::<divider_core::Ledger> { meta, ..Default::default() }
    };
    let (snapshots, _) = Snapshots::open(directory.path().into()).unwrap();
    for (index, kept) in [(20, 20), (15, 20), (21, 21)] {
        let content = snapshot(index);
        let written = snapshots.write(&content).unwrap();
        assert_eq!(snapshots.adopt(content.meta, written).unwrap().0.last_log_id, Some(entry(kept).log_id));
        let (_, loaded) = Snapshots::open(directory.path().into()).unwrap();
        assert_eq!(loaded.unwrap().meta.last_log_id, Some(entry(kept).log_id));
    }
}

/// openraft asks for a purge while the snapshot is still being written.
#[tokio::test]
async fn nothing_is_purged_before_the_snapshot_that_has_it_is_on_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(&directory.path().into(), identity).unwrap();
    log.blocking_append((1..=20).map(entry)).await.unwrap();
    log.snapshot_is_kept(Ok(9));
    let mut purging = log.clone();
    let mut purge = pin!(purging.purge(entry(10).log_id));
    assert!(purge.as_mut().now_or_never().is_none(), "the snapshot lacks an entry");
    assert_eq!(log.purged(), None);
    log.snapshot_is_kept(Ok(10));
    purge.await.unwrap();
    assert_eq!(log.purged(), Some(10));
    log.snapshot_is_kept(Err("the disk is full".into()));
    log.purge(entry(11).log_id).await.unwrap_err();
    assert_eq!(log.purged(), Some(10));
    log.close();
}

/// Writes a log as a member would, and copies its file as it stands after each acknowledgement.
fn written(directory: &Path, copy: &Path) -> Found {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut log, _) = Log::open(&directory.into(), identity).unwrap();
    let found = runtime.block_on(async {
        log.save_vote(&Vote::new_committed(1, 2)).await.unwrap();
        for batch in 0..40 {
            log.blocking_append((1 + batch * 10..=10 + batch * 10).map(entry)).await.unwrap();
        }
        log.snapshot_is_kept(Ok(100));
        log.purge(LogId::new(openraft::CommittedLeaderId::new(1, 1), 100)).await.unwrap();
        log.truncate(entry(395).log_id).await.unwrap();
        log.blocking_append((395..=420).map(entry)).await.unwrap();
        log.durable(420).await.unwrap();
        let entries = log.try_get_log_entries(..).await.unwrap();
        (log.read_vote().await.unwrap(), log.get_log_state().await.unwrap().last_purged_log_id, entries)
    });
    assert_eq!((found.2.first().unwrap().log_id.index, found.2.len()), (101, 320));
    // As after kill -9: everything is acknowledged, and nothing was closed.
    for file in ["log.redb", "log.mark"] {
        std::fs::copy(directory.join(file), copy.join(file)).unwrap();
    }
    log.close();
    found
}

#[test]
fn torn_and_flipped_bytes_are_refused_or_make_no_difference() {
    let (clean, killed, work) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let truth = written(clean.path(), killed.path());
    // redb panics on some damaged files; that is caught, and need not be read by whoever runs the tests.
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut dice = Dice(1);
    let (mut same, mut refused, mut lost) = (0, 0, Vec::new());
    for (how, source) in [("clean", clean.path()), ("killed", killed.path())] {
        let bytes = std::fs::read(source.join("log.redb")).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        for round in 0..500 {
            std::fs::copy(source.join("log.mark"), work.path().join("log.mark")).unwrap();
            let mut broken = bytes.clone();
            // Mostly where something is; the head of the file, where a bit means most, gets its share.
            let at = match round % 4 {
                0 => dice.index(512),
                _ => dice.index(used),
            };
            let what = if round % 2 == 0 {
                broken[at] ^= 1 << dice.index(8);
                "flipped"
            } else {
                broken.truncate(at);
                "cut"
            };
            std::fs::write(work.path().join("log.redb"), &broken).unwrap();
            match std::panic::catch_unwind(|| look(work.path())) {
                Ok(Ok(found)) if found == truth => same += 1,
                Ok(Ok(found)) => lost.push(format!("{how}, {what} at {at}: {} entries", found.2.len())),
                Ok(Err(_)) => refused += 1,
                Err(_) => lost.push(format!("{how}, {what} at {at}: panicked")),
            }
        }
    }
    std::panic::set_hook(loud);
    println!("{same} made no difference, {refused} were refused, {} were believed: {lost:#?}", lost.len());
    assert!(lost.is_empty());
    assert!(refused > 500);
}

#[test]
fn a_member_that_starts_again_does_not_lead_on_in_its_old_term() {
    let directory = TempDir::new().unwrap();
    let vote_after = |saved: Vote| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut log, _) = Log::open(&directory.path().into(), identity).unwrap();
        runtime.block_on(log.save_vote(&saved)).unwrap();
        log.close();
        drop(log);
        look(directory.path()).unwrap().0.unwrap()
    };
    // Another one's leadership is remembered as it is; its own is a vote for itself, so that it cannot be given to another.
    assert_eq!(vote_after(Vote::new_committed(3, 2)), Vote::new_committed(3, 2));
    assert_eq!(vote_after(Vote::new_committed(4, 1)), Vote::new(4, 1));
}

#[test]
fn an_entry_is_durable_once_it_is_on_disk_and_not_before() {
    let directory = TempDir::new().unwrap();
    let (mut log, _) = Log::open(&directory.path().into(), identity).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for at in 1..200 {
        // Reported as done at once, so this does not wait for the disk.
        runtime.block_on(log.blocking_append([entry(at)])).unwrap();
        let id = entry(at).log_id;
        assert!(log.durable_until(id) <= Some(id));
        if at % 10 == 0 {
            runtime.block_on(log.durable(at)).unwrap();
            assert_eq!(log.durable_until(id), Some(id));
            let copy = TempDir::new().unwrap();
            for file in ["log.redb", "log.mark"] {
                std::fs::copy(directory.path().join(file), copy.path().join(file)).unwrap();
            }
            // What is durable is there after kill -9.
            assert_eq!(look(copy.path()).unwrap().2.last().unwrap().log_id, id);
        }
    }
    // An entry in the place of another one is a new one.
    let again = async {
        log.truncate(entry(150).log_id).await.unwrap();
        log.blocking_append((150..=160).map(entry)).await.unwrap();
        assert!(log.durable_until(entry(160).log_id) >= Some(entry(149).log_id));
        log.durable(160).await.unwrap();
        assert_eq!(log.durable_until(entry(160).log_id), Some(entry(160).log_id));
    };
    runtime.block_on(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_stall_for_longer_than_an_election_cost_no_election_and_no_renewal() {
    let (stores, _) = voters(3).await;
    let session = SessionId::fresh();
    stores[0].apply(&[joining(&stores[0], session).await]).await.unwrap();
    let terms = || stores.iter().map(RaftStore::raft_term).collect::<Vec<_>>();
    let before = terms();

    STALL.store(1500, Ordering::Relaxed);
    let add = |name: &str| [Op::Add(Work::new(name).unwrap())];
    let (first, second) = (add("first"), add("second"));
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    let renew = async {
        while began.elapsed() < Duration::from_millis(1400) {
            let asked = Instant::now();
            stores[1].renew(session).await.unwrap();
            slowest = slowest.max(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (early, late, ()) = tokio::join!(stores[0].apply(&first), stores[2].apply(&second), renew);
    assert!(early.is_err() && late.is_err(), "nothing is acknowledged before it is on a disk");
    STALL.store(0, Ordering::Relaxed);
    println!("slowest renewal beside disks that stalled: {slowest:?}");
    assert!(slowest < Duration::from_secs(1));
    // Nobody knew what became of them; now everybody does.
    while stores[0].stats().await.unwrap().registered < 2 {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(terms(), before, "nobody stood for election");
}
