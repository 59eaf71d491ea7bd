//! What is on the disk when the power fails at any of the things that a member does to it.

use std::{
    collections::BTreeSet,
    io::{self, Cursor, Read, Seek, SeekFrom, Write},
    path::Path,
    pin::pin,
    sync::Arc,
};

use divider_core::{Group, Store};
use divider_support::wait::eventually;
use futures_util::FutureExt;
use openraft::{
    CommittedLeaderId, EntryPayload, RaftLogReader, RaftSnapshotBuilder,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine, StorageHelper},
};
use parking_lot::Mutex;
use redb::StorageBackend;
use tempfile::TempDir;

use crate::{
    Data, RaftStore,
    consensus::{
        log::{Log, records::Identity},
        snapshots::Snapshots,
        state_machine::{StateMachine, StateMachineHandle},
        tests::storage,
    },
    environment::{DataDir, Disk, Files, Rewritable, StoredFile},
    error::DataError,
    protocol::{
        snapshot::{SnapshotContent, SnapshotData, SnapshotMeta},
        types::{Entry, LogId, Vote},
    },
    tests::{machine::Machine, voters::addresses},
};

/// A disk that loses in a crash what was not synced, or a part of it, and whose power fails after so many changes.
#[derive(Clone, Debug, Default)]
struct Frail(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    synced: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
    mark: Vec<u8>,
    /// So many changes are left.
    fuse: Option<u64>,
    /// How often the names were synced.
    names: u64,
    /// What was refused: the next so many times that names are synced.
    refuse: u64,
    files: std::collections::BTreeMap<String, Arc<Mutex<Vec<u8>>>>,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(from, data) => {
                bytes.resize(bytes.len().max(from + data.len()), 0);
                bytes[*from..from + data.len()].copy_from_slice(data);
            }
            Self::Length(len) => bytes.resize(*len, 0),
        }
    }
}

impl Frail {
    fn data_dir(&self) -> DataDir {
        Machine::with_disk(self.clone()).data_dir()
    }

    fn step(&self) -> io::Result<parking_lot::MutexGuard<'_, Inner>> {
        let mut inner = self.0.lock();
        match &mut inner.fuse {
            Some(0) => return Err(io::Error::other("the power has failed")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(inner)
    }

    /// The power was off: of what was not synced that is there which `kept` says, by its place. False where it never failed.
    fn crash(&self, kept: impl Fn(usize) -> bool) -> bool {
        let mut inner = self.0.lock();
        let failed = inner.fuse.take() == Some(0);
        let pending = std::mem::take(&mut inner.pending);
        for (_, change) in pending.iter().enumerate().filter(|(at, _)| kept(*at)) {
            change.make(&mut inner.synced);
        }
        inner.current = inner.synced.clone();
        failed
    }
}

impl Disk for Frail {
    fn log(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }

    fn mark(&self) -> io::Result<Box<dyn Rewritable>> {
        Ok(Box::new(Mark(self.clone(), Cursor::new(self.0.lock().mark.clone()))))
    }

    fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }
}

impl StorageBackend for Frail {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.lock().current[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.step()?;
        let change = Change::Length(usize::try_from(len).unwrap());
        change.make(&mut inner.current);
        inner.pending.push(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.step()?;
        let pending = std::mem::take(&mut inner.pending);
        pending.iter().for_each(|change| change.make(&mut inner.synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.step()?;
        let change = Change::Write(usize::try_from(offset).unwrap(), data.to_vec());
        change.make(&mut inner.current);
        inner.pending.push(change);
        Ok(())
    }
}

struct Mark(Frail, Cursor<Vec<u8>>);

impl Read for Mark {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1.read(buf)
    }
}

impl Seek for Mark {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.1.seek(to)
    }
}

impl Write for Mark {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.1.write(buf)?;
        self.0.step()?.mark.clone_from(self.1.get_ref());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file of snapshots. What these lose in a crash is no matter here.
struct OpenFile(Arc<Mutex<Vec<u8>>>, usize);

impl Read for OpenFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.lock();
        let many = bytes[self.1.min(bytes.len())..].as_ref().read(buf)?;
        self.1 += many;
        Ok(many)
    }
}

impl Seek for OpenFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let len = self.0.lock().len() as u64;
        let SeekFrom::Start(to) = to else { return Ok(len) };
        self.1 = usize::try_from(to).unwrap();
        Ok(to)
    }
}

impl Write for OpenFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Change::Write(self.1, buf.to_vec()).make(&mut self.0.lock());
        self.1 += buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StoredFile for OpenFile {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Files for Frail {
    fn create(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let file: Arc<Mutex<Vec<u8>>> = Arc::default();
        self.0.lock().files.insert(name.to_owned(), file.clone());
        Ok(Box::new(OpenFile(file, 0)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let file = self.0.lock().files.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(OpenFile(file, 0)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        let file = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().files.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().files.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.0.lock();
        if inner.refuse > 0 {
            inner.refuse -= 1;
            return Err(io::Error::other("the disk says no"));
        }
        inner.names += 1;
        Ok(())
    }
}

fn identity() -> Identity {
    Identity { id: 1, name: "a".into(), cluster: "test".into(), cluster_id: None }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: id(term, index), payload: EntryPayload::Blank }
}

fn meta(log: LogId) -> SnapshotMeta {
    SnapshotMeta { last_log_id: Some(log), snapshot_id: log.to_string(), ..Default::default() }
}

/// What is there of what was not synced: nothing, and every other change.
const KEPT: [fn(usize) -> bool; 2] = [|_| false, |at| at % 2 == 0];

#[test]
fn a_member_that_lost_its_power_while_its_log_was_made_begins_anew() {
    for kept in KEPT {
        for fuse in 0.. {
            let disk = Frail::default();
            disk.0.lock().fuse = Some(fuse);
            let opened = Log::open(&disk.data_dir(), identity).map(|(log, _)| log.close());
            if !disk.crash(kept) {
                opened.unwrap();
                assert!(fuse > 5);
                break;
            }
            let again = Log::open(&disk.data_dir(), identity);
            let (log, _) = again.unwrap_or_else(|error| panic!("after {fuse} changes: {error}"));
            log.close();
        }
    }
}

#[test]
fn what_was_acknowledged_is_there_wherever_the_power_fails() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut tried = BTreeSet::new();
    for kept in KEPT {
        for fuse in (0..).step_by(3) {
            let disk = Frail::default();
            let (mut log, _) = Log::open(&disk.data_dir(), identity).unwrap();
            disk.0.lock().fuse = Some(fuse);
            let (mut vote, mut last, mut purged) = (None, None, None);
            // Whatever fails ends it, as it ends a member.
            let _: Result<(), Box<dyn std::error::Error>> = runtime.block_on(async {
                log.save_vote(&Vote::new(1, 1)).await?;
                vote = Some(Vote::new(1, 1));
                log.blocking_append((0..=9).map(|index| blank(1, index))).await?;
                log.durable(9).await?;
                // From here on it may be gone.
                last = Some(id(1, 4));
                log.truncate(id(1, 5)).await?;
                log.save_vote(&Vote::new(2, 1)).await?;
                vote = Some(Vote::new(2, 1));
                log.blocking_append((5..=20).map(|index| blank(2, index))).await?;
                log.durable(20).await?;
                last = Some(id(2, 20));
                log.snapshot_is_kept(Ok(12));
                log.purge(id(2, 12)).await?;
                purged = Some(id(2, 12));
                log.save_vote(&Vote::new(3, 1)).await?;
                vote = Some(Vote::new(3, 1));
                Ok(())
            });
            log.close();
            drop(log);
            let failed = disk.crash(kept);
            let opened = Log::open(&disk.data_dir(), || unreachable!("it is not a new one"));
            let (mut log, _) = opened.unwrap_or_else(|error| panic!("after {fuse} changes: {error}"));
            let (found, state) =
                runtime.block_on(async { (log.read_vote().await.unwrap(), log.get_log_state().await.unwrap()) });
            assert!(found >= vote, "after {fuse} changes: {found:?} of {vote:?}");
            // What was cut off is none of it, and what was not waited for may be there.
            assert!(state.last_log_id >= last || state.last_log_id == Some(id(1, 9)), "{state:?} of {last:?}");
            assert!(state.last_purged_log_id <= purged.max(Some(id(2, 12))));
            let entries = runtime.block_on(log.try_get_log_entries(..)).unwrap();
            let first = state.last_purged_log_id.map_or(0, |log| log.index + 1);
            assert!(entries.iter().zip(first..).all(|(entry, index)| entry.log_id.index == index));
            log.close();
            tried.insert(fuse);
            if !failed {
                assert_eq!((found, state.last_log_id), (Some(Vote::new(3, 1)), Some(id(2, 20))));
                break;
            }
        }
    }
    assert!(tried.len() > 10);
}

#[test]
fn the_name_of_a_new_log_is_on_the_disk_before_anything_in_it_counts() {
    let disk = Frail::default();
    let (log, _) = Log::open(&disk.data_dir(), identity).unwrap();
    assert!(disk.0.lock().names > 0, "a crash may take the file away");
    log.close();
}

fn empty(meta: &SnapshotMeta) -> SnapshotContent {
    SnapshotContent { meta: meta.clone(), ..Default::default() }
}

/// Whoever is told that a newer snapshot is there purges the log up to it.
#[test]
fn an_older_snapshot_does_not_say_that_a_newer_one_is_there_before_its_name_is_on_the_disk() {
    let disk = Frail::default();
    let (snapshots, _) = Snapshots::open(disk.data_dir()).unwrap();
    let adopt = |index| {
        let meta = meta(id(1, index));
        let kept = snapshots.write(&empty(&meta)).unwrap();
        snapshots.adopt(meta, kept)
    };
    disk.0.lock().refuse = 1;
    adopt(20).unwrap_err();
    let (newest, _) = adopt(15).unwrap();
    assert_eq!((newest.last_log_id, disk.0.lock().names), (Some(id(1, 20)), 1));
}

/// A crash after a snapshot came in, and before the log was purged: what is left of the log is of a leader that was lost.
#[tokio::test]
async fn a_log_that_ends_before_the_snapshot_in_a_later_term_is_none_that_goes_on_from_it() {
    let directory = TempDir::new().unwrap();
    let (mut log, _) = storage::build(Some(directory.path().to_owned())).await;
    log.blocking_append((0..=9).map(|index| blank(1, index)).chain([blank(5, 10)])).await.unwrap();
    log.durable(10).await.unwrap();
    log.close();
    drop(log);
    let (snapshots, _) = Snapshots::open(directory.path().into()).unwrap();
    let meta = meta(id(4, 20));
    let kept = snapshots.write(&empty(&meta)).unwrap();
    snapshots.adopt(meta, kept).unwrap();

    let (mut log, mut machine) = storage::build(Some(directory.path().to_owned())).await;
    StorageHelper::new(&mut log, &mut machine).get_initial_state().await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(4, 20)));
    log.blocking_append([blank(6, 21)]).await.unwrap();
    log.durable(21).await.unwrap();
    log.close();
    drop((log, machine));
    let (mut log, _) = storage::build(Some(directory.path().to_owned())).await;
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(6, 21)));
    log.close();
}

type Waiting = Arc<Mutex<Vec<Box<dyn FnOnce() + Send>>>>;

/// A directory on a disk that does nothing until it is told to.
fn idle(directory: &Path) -> (DataDir, Waiting) {
    let waiting = Waiting::default();
    let waits = waiting.clone();
    let machine = Machine { blocking: Box::new(move |work| waits.lock().push(work)), ..Machine::default() };
    (DataDir { environment: Arc::new(machine), ..directory.into() }, waiting)
}

/// A process may close its store and open it again while its disk is slow.
#[tokio::test]
async fn nobody_opens_a_directory_into_which_an_earlier_life_still_puts_a_snapshot() {
    let directory = TempDir::new().unwrap();
    let (data_dir, waiting) = idle(directory.path());
    let (log, _) = Log::open(&data_dir, identity).unwrap();
    let (snapshots, loaded) = Snapshots::open(data_dir.clone()).unwrap();
    let machine = StateMachine::new(snapshots, loaded);
    let mut handle = StateMachineHandle { machine: machine.clone(), log: log.clone() };
    let meta = meta(id(1, 5));
    let bytes = empty(&meta).encode().unwrap();
    let data = SnapshotData::Memory(Arc::new(bytes));
    assert!(handle.install_snapshot(&meta, Box::new(data)).now_or_never().is_none());
    log.close();
    drop((log, handle, machine));
    let refused = Log::open(&data_dir, identity).map(|_| ()).unwrap_err();
    assert!(matches!(refused, DataError::InUse { .. }), "{refused}");
    let waiting = std::mem::take(&mut *waiting.lock());
    waiting.into_iter().for_each(|work| work());
    Log::open(&data_dir, || unreachable!("it is there")).unwrap().0.close();
}

fn add(key: u64) -> [divider_core::Op; 1] {
    [divider_core::Op::Add(divider_core::Work::new(format!("k{key}")).unwrap())]
}

/// Three members, each with a directory of its own.
fn three(parent: &Path) -> impl Fn(usize) -> RaftStore {
    let seeds = addresses(3);
    let parent = parent.to_owned();
    move |at| {
        let builder = RaftStore::builder(parent.join(at.to_string()), Group::new("/test/").unwrap())
            .name(format!("node-{at}"))
            .unwrap();
        let builder = builder.listen(&seeds[at]).seeds(&seeds);
        builder.plaintext().build().unwrap()
    }
}

/// A backup that was put back. What it forgot, it may have promised; but nobody else is to suffer for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_comes_back_with_an_older_directory_stops_nobody_and_catches_up() {
    let parent = TempDir::new().unwrap();
    let build = three(parent.path());
    let mut stores: Vec<_> = (0..3).map(&build).collect();
    let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
    opened.into_iter().for_each(Result::unwrap);
    let leader = stores.iter().position(RaftStore::leads_raft).unwrap();
    let follower = (leader + 1) % 3;
    let same =
        |stores: &[RaftStore]| stores[leader].replica().is_some_and(|all| stores[follower].replica() == Some(all));
    stores[leader].apply(&add(1)).await.unwrap();
    eventually("it has the first", async || same(&stores)).await;
    let term = stores[leader].raft_term();
    let (directory, backup) = (parent.path().join(follower.to_string()), parent.path().join("backup"));
    stores[follower].close().await;
    std::fs::create_dir(&backup).unwrap();
    storage::copy(&directory, &backup);
    stores[follower] = build(follower);
    stores[follower].open().await.unwrap();
    for key in 2..40 {
        stores[leader].apply(&add(key)).await.unwrap();
    }
    eventually("it has them all", async || same(&stores)).await;
    stores[follower].close().await;
    storage::put_back(&backup, &directory);
    stores[follower] = build(follower);
    stores[follower].open().await.unwrap();
    eventually("it has them all again", async || same(&stores)).await;
    assert!(stores[leader].leads_raft() && stores[leader].raft_term() == term, "the leader goes on");
    stores[leader].apply(&add(40)).await.unwrap();
    for store in &stores {
        store.close().await;
    }
}

/// Whatever a core ends by, its member is opened again.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_core_has_panicked_is_no_member_until_it_is_opened_again() {
    for applying in [false, true] {
        let store = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).build().unwrap();
        store.open().await.unwrap();
        store.apply(&add(1)).await.unwrap();
        store.trip(applying);
        let unanswered = tokio::spawn({
            let store = store.clone();
            async move { store.apply(&add(2)).await }
        });
        eventually("it is noticed", async || matches!(store.condition(), crate::Condition::Stopped(_))).await;
        unanswered.await.unwrap().unwrap_err();
        let began = std::time::Instant::now();
        while store.apply(&add(3)).await.is_err() {
            assert!(began.elapsed().as_secs() < 20, "it is opened again");
        }
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_is_given_up_leaves_nobody_behind_who_keeps_the_directory() {
    let parent = TempDir::new().unwrap();
    let store = three(parent.path())(1);
    // Nobody else is there, so it waits.
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(100), store.open()).await;
    assert!(given_up.is_err());
    store.close().await;
    drop(store);
    let log = std::fs::File::open(parent.path().join("1/log.redb")).unwrap();
    eventually("it is let go of", async || log.try_lock().is_ok()).await;
}

/// A builder that waits for space would keep the directory from whoever opens it next.
#[tokio::test(start_paused = true)]
async fn whoever_waits_for_space_for_a_snapshot_gives_up_as_the_log_is_closed() {
    let directory = TempDir::new().unwrap();
    let (data_dir, waiting) = idle(directory.path());
    let (log, _) = Log::open(&data_dir, identity).unwrap();
    let (snapshots, loaded) = Snapshots::open(data_dir).unwrap();
    let mut handle = StateMachineHandle { machine: StateMachine::new(snapshots, loaded), log: log.clone() };
    // Nothing can take the place of this.
    std::fs::create_dir(directory.path().join("snapshot")).unwrap();
    let mut building = pin!(handle.build_snapshot());
    assert!(building.as_mut().now_or_never().is_none());
    let work = waiting.lock().pop().unwrap();
    work();
    assert!(building.as_mut().now_or_never().is_none(), "it waits");
    log.close();
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(50), building).await;
    given_up.expect("at once").unwrap_err();
}

/// With a broken log its member ends; to go on trying without a pause would take a whole core until then.
#[tokio::test]
async fn whoever_waits_for_space_for_a_snapshot_gives_up_as_the_log_is_broken() {
    let disk = Frail::default();
    let (mut log, _) = Log::open(&disk.data_dir(), identity).unwrap();
    let (snapshots, loaded) = Snapshots::open(disk.data_dir()).unwrap();
    let mut handle = StateMachineHandle { machine: StateMachine::new(snapshots, loaded), log: log.clone() };
    disk.0.lock().fuse = Some(0);
    let _ = log.blocking_append([blank(1, 0)]).await;
    log.broken().await;
    disk.0.lock().refuse = u64::MAX;
    let given_up = tokio::time::timeout(std::time::Duration::from_secs(2), handle.build_snapshot()).await;
    given_up.expect("it goes on for ever").unwrap_err();
}

/// What such a log has on its disk is not known any more, and much of it may have been acknowledged: a reader that was sent
/// back to what was there at the start would not see that.
#[tokio::test]
async fn a_reader_is_not_sent_back_before_what_was_acknowledged_as_the_log_breaks() {
    let disk = Frail::default();
    let (mut log, _) = Log::open(&disk.data_dir(), identity).unwrap();
    log.blocking_append((0..=3).map(|index| blank(1, index))).await.unwrap();
    log.durable(3).await.unwrap();
    log.close();
    drop(log);
    let (mut log, _) = Log::open(&disk.data_dir(), identity).unwrap();
    log.blocking_append((4..=6).map(|index| blank(2, index))).await.unwrap();
    log.durable(6).await.unwrap();
    disk.0.lock().fuse = Some(0);
    let _ = log.blocking_append([blank(2, 7)]).await;
    log.broken().await;
    for index in [6, 7] {
        // As `Raft::confirm` asks; `None` means that nothing is known, and then readers wait for all of it.
        let read = log.durable_until(id(2, index)).unwrap_or(id(2, index));
        assert!(read >= id(2, 6), "{read} of {index}");
    }
}

#[test]
fn what_somebody_has_open_is_locked_for_all_others() {
    let directory = TempDir::new().unwrap();
    let (log, _) = Log::open(&directory.path().into(), identity).unwrap();
    let file = std::fs::File::open(directory.path().join("log.redb")).unwrap();
    assert!(file.try_lock().is_err());
    log.close();
}

/// Between the two names that a recovery changes nothing is where it was.
#[test]
fn a_recovery_that_was_cut_short_is_no_empty_directory_and_can_be_done_again() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("member");
    let open = || RaftStore::builder(&directory, Group::new("/test/").unwrap()).name("alone").unwrap().build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let add = [divider_core::Op::Add(divider_core::Work::new("kept").unwrap())];
    runtime.block_on(async {
        let store = open();
        store.open().await.unwrap();
        while store.apply(&add).await.is_err() {}
        store.close().await;
    });
    let recover = || {
        // Whatever ran on the store's threads lets go of it a moment later.
        let recover = || RaftStore::recover(&directory);
        std::iter::repeat_with(recover).find(|done| !matches!(done, Err(DataError::InUse { .. }))).unwrap().unwrap()
    };
    recover();
    std::fs::rename(&directory, parent.path().join("member.recovering")).unwrap();
    runtime.block_on(async {
        let error = open().open().await.unwrap_err();
        assert!(error.to_string().contains("recover"), "{error}");
        assert!(!directory.join("log.redb").exists());
        recover();
        let store = open();
        store.open().await.unwrap();
        assert_eq!(store.stats().await.unwrap().registered, 1);
        store.close().await;
    });
}
