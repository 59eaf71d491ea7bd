//! The log of Raft, its vote, and who this member is, in one redb file.
//!
//! # Why it is built like this
//! Nothing may be acknowledged before it is on the disk, and a disk takes its time for each commit, however small. So one
//! thread writes, and whatever has gathered while it committed goes into the next commit together: the price of a commit
//! is shared by all who wait. The newest entries stay in memory, where followers' senders and the machine read them.
//!
//! # Who waits for the disk
//! openraft's core stands still until an append is reported as done: with it the leader's heartbeats, and a follower's
//! notice of them, so that a disk that stalls would cost an election. So entries are reported as done when the writing
//! thread has them, and whatever would let anybody rely on them waits for the disk instead, by [`Log::durable`]:
//!
//! - a follower's word that it has them, before it goes out ([`Raft::answer`](super::Raft)),
//! - a leader's use of them: before they are applied, and with that before any caller has an answer, and before followers
//!   are told that they may be applied (`network.rs`).
//!
//! So a leader sends entries while its own disk still writes them, and nothing counts before it is on the disks of a
//! quorum, the leader's among them. Two things keep that sound. Changes of membership are reported as done only when they
//! are on disk, since the next change relies on the one before. And a leader that starts again may lack entries that it
//! had sent, so it never goes on in its old term, where it could send others under the same number: it stands for
//! election like anybody else. Votes are waited for, and all entries before a vote are on disk when it is.
//!
//! Each value carries a checksum over its key and its bytes, and the whole log is read and checked at the start, so that
//! a damaged file is noticed before anything in it counts.
//!
//! # Why there is a second, tiny file
//! After a crash redb goes back to the commit before the last, if the last one is not whole: it was torn, and nobody was
//! told of it. But a commit that was acknowledged, and of which a bit was flipped later, looks just the same. So the
//! number of the last commit is also written beside the log once it is on disk. It is not waited for, since it is only a
//! guard: where it is missing or unreadable nothing is lost but the guard; where it is ahead of the log the log has lost
//! what was acknowledged, and is refused.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    fs::{self, OpenOptions},
    io::{self, SeekFrom},
    ops::{Bound, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, LogState, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use parking_lot::{Mutex, RwLock};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    backends::{FileBackend, InMemoryBackend},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{oneshot, watch};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    environment::{DataDir, LogWriter, Rewritable},
    error::{DataError, Unreadable},
    format::{NEWEST, OLDEST},
    protocol::{
        command::Step,
        types::{Entry, LogId, StorageError, Types, Vote},
    },
};

/// How many milliseconds each commit takes longer than it would, in all tests of this process.
#[cfg(test)]
pub(super) static STALL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
const FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts");
const FILE: &str = "log.redb";
const MARK: &str = "log.mark";
/// The newest entries are kept in memory up to this many bytes of it, which has room for all that are on their way to the
/// followers and the machine.
const CACHE_BYTES: usize = 4 << 20;
/// What redb may keep of the file in memory: little is ever read again.
const PAGES_BYTES: usize = 4 << 20;
/// Most bytes that one read gives to a sender, unless a single entry is larger.
const READ_BYTES: usize = 1 << 20;
/// Most bytes in one commit, unless a single write is larger.
const COMMIT_BYTES: usize = 16 << 20;
/// The first bytes of a file before redb has made it whole: what stands there otherwise is written last.
const UNBORN: [u8; 9] = [0; 9];
/// redb never makes its file smaller by itself. That is done where the file is larger than this,
const COMPACT_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 32 << 20 };
/// and so many times as large as the entries in it: it takes as long as it takes to write what is left, so it costs little
/// where little is left.
const COMPACT_RATIO: u64 = 4;

/// Who a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// The name of the cluster in the configuration.
    pub(crate) cluster: String,
    /// The cluster itself, once this member has founded or joined it.
    pub(crate) cluster_id: Option<Uuid>,
}

/// The log. Clones read and write the same one.
#[derive(Clone)]
pub(crate) struct Log(Arc<Shared>);

struct Shared {
    /// Held alone only while the file is made smaller.
    database: Arc<RwLock<Database>>,
    path: PathBuf,
    cache: Arc<RwLock<Cache>>,
    /// To the writing thread, which ends when this is dropped.
    writes: Mutex<Option<mpsc::Sender<Write>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Number of the last append that is on disk, or why none will be any more. Told by the writing thread.
    written: watch::Receiver<Result<u64, String>>,
    /// Index of the last entry in the snapshot that is on disk, or why none will be any more.
    snapshot: watch::Sender<Result<u64, String>>,
    #[cfg(test)]
    trips: std::sync::atomic::AtomicBool,
}

/// What is known without the disk.
#[derive(Default)]
struct Cache {
    /// The newest entries, without gaps up to the last one: at least all that are not on disk yet.
    entries: BTreeMap<u64, CachedEntry>,
    /// Bytes of memory that they take, about.
    memory: usize,
    last: Option<LogId>,
    purged: Option<LogId>,
    /// Of all entries in the log.
    sizes: Sizes,
    vote: Option<Vote>,
    /// At which entry this replica was found to be another one than the others'.
    differs: Option<u64>,
    /// Number of the last append.
    appends: u64,
    /// Number of the last commit.
    commit: u64,
}

/// How many bytes each entry takes in the log.
#[derive(Debug, Default)]
struct Sizes {
    /// Index of the first.
    first: u64,
    each: VecDeque<u32>,
    all: u64,
}

impl Sizes {
    fn push(&mut self, index: u64, bytes: usize) {
        if self.each.is_empty() {
            self.first = index;
        }
        self.truncate(index);
        self.each.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.all += bytes as u64;
    }

    /// Those from this index on are gone.
    fn truncate(&mut self, from: u64) {
        while self.first + self.each.len() as u64 > from
            && let Some(bytes) = self.each.pop_back()
        {
            self.all -= u64::from(bytes);
        }
    }

    /// Those up to this index are gone.
    fn purge(&mut self, to: u64) {
        while self.first <= to
            && let Some(bytes) = self.each.pop_front()
        {
            self.all -= u64::from(bytes);
            self.first += 1;
        }
    }

    /// Up to which index entries must go, so that the rest takes no more than so many bytes.
    fn surplus(&self, most: u64) -> Option<u64> {
        let mut rest = self.all;
        let gone = self.each.iter().take_while(|bytes| {
            let over = rest > most;
            rest -= u64::from(**bytes);
            over
        });
        (self.first + gone.count() as u64).checked_sub(1).filter(|upto| *upto >= self.first)
    }
}

struct CachedEntry {
    entry: Entry,
    /// In the log.
    bytes: usize,
    /// In memory, about: several times as much where its ops are small.
    memory: usize,
    /// Number of the append that it came with; zero if it was there at the start.
    append: u64,
}

enum Write {
    /// `done` only where the core must wait.
    Append {
        number: u64,
        entries: Vec<(u64, Vec<u8>)>,
        bytes: usize,
        done: Option<LogFlushed<Types>>,
    },
    Fact {
        name: &'static str,
        value: Vec<u8>,
        done: oneshot::Sender<io::Result<()>>,
    },
    Truncate {
        from: u64,
        done: oneshot::Sender<io::Result<()>>,
    },
    Purge {
        to: u64,
        value: Vec<u8>,
    },
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("path", &self.0.path).finish_non_exhaustive()
    }
}

/// What is put into the tables, and in which format at least.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// The oldest format that has a form for this value.
    fn format(&self) -> u8 {
        OLDEST
    }
}

impl Stored for Identity {}
impl Stored for Vote {}
impl Stored for LogId {}
impl Stored for u64 {}
impl Stored for [u8; 8] {}

impl Stored for Entry {
    fn format(&self) -> u8 {
        match &self.payload {
            EntryPayload::Normal(command) => command.0.format(),
            _ => OLDEST,
        }
    }
}

/// Puts a checksum over the key and the bytes before them.
pub(crate) fn seal<T: Stored>(key: &[u8], value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 8];
    bytes.push(value.format());
    let mut bytes = postcard::to_extend(value, bytes).map_err(io::Error::other)?;
    let sum = checksum(key, &bytes[8..]);
    bytes[..8].copy_from_slice(&sum);
    Ok(bytes)
}

fn checksum(key: &[u8], bytes: &[u8]) -> [u8; 8] {
    (xxh3_64(bytes) ^ xxh3_64(key).rotate_left(1)).to_le_bytes()
}

pub(crate) fn unseal<T: Stored>(key: &[u8], bytes: &[u8]) -> Result<T, Unreadable> {
    unseal_up_to(NEWEST, key, bytes)
}

/// As [`unseal`], by a program that reads no newer format than `known`.
fn unseal_up_to<T: Stored>(known: u8, key: &[u8], bytes: &[u8]) -> Result<T, Unreadable> {
    let (sum, rest) = bytes.split_first_chunk::<8>().ok_or("a value is cut short")?;
    if *sum != checksum(key, rest) {
        return Err("a checksum does not match".into());
    }
    match rest.split_first() {
        Some((format, body)) if (OLDEST..=known).contains(format) => {
            postcard::from_bytes(body).map_err(|error| error.to_string().into())
        }
        Some((newer, _)) => Err(Unreadable::Newer { found: *newer, known }),
        None => Err("a value is cut short".into()),
    }
}

/// Runs what redb does; it panics on some damaged files, which is as good as an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Err(redb::Error::Io(error))) => Err(error),
        Ok(result) => result.map_err(io::Error::other),
        Err(_) => Err(io::Error::other("its structure is broken")),
    }
}

/// A disk that is full has damaged nothing.
fn unusable(path: &Path, error: io::Error) -> DataError {
    match error.kind() {
        io::ErrorKind::StorageFull => DataError::io(path, error),
        _ => DataError::Corrupt { path: path.to_owned(), problem: error.to_string() },
    }
}

impl Log {
    /// Opens the log in `directory`, or one in memory, and says whose it is. `fresh` makes the identity of a new one.
    pub(crate) fn open(data_dir: &DataDir, fresh: impl FnOnce() -> Identity) -> Result<(Self, Identity), DataError> {
        let (directory, disk) = (data_dir.directory.as_deref(), data_dir.environment.disk());
        let path = directory.map(|directory| directory.join(FILE)).unwrap_or_default();
        let corrupt = |problem: String| DataError::Corrupt { path: path.clone(), problem };
        let mut database = match (directory, &disk) {
            (Some(directory), _) => open_file(directory, &path)?,
            (None, Some(disk)) => {
                let mut backend = disk.log().map_err(|error| DataError::io(&path, error))?;
                if disk.mark().and_then(Mark::open).is_ok_and(|mark| mark.last == 0) {
                    begin_anew(&mut *backend).map_err(|error| DataError::io(&path, error))?;
                }
                let existed = backend.len().is_ok_and(|len| len > 0);
                checked(existed, || Database::builder().create_with_backend(Backend(backend))).map_err(|what| {
                    match what {
                        Ok(redb::DatabaseError::Storage(redb::StorageError::Io(error))) => unusable(&path, error),
                        Ok(error) => corrupt(error.to_string()),
                        Err(problem) => corrupt(problem),
                    }
                })?
            }
            (None, None) => {
                let backend = InMemoryBackend::new();
                Database::builder().create_with_backend(backend).map_err(|error| corrupt(error.to_string()))?
            }
        };
        // The tables are there from now on.
        let identity = guarded(|| {
            let write = database.begin_write()?;
            let known = {
                write.open_table(ENTRIES)?;
                let facts = write.open_table(FACTS)?;
                facts.get("identity")?.map(|value| value.value().to_vec())
            };
            write.commit()?;
            Ok(known)
        });
        let identity = identity.map_err(|error| unusable(&path, error))?;
        let mut cache = Cache::default();
        let found = guarded(|| Ok(load(&database, &mut cache, data_dir.reads)));
        found.map_err(|error| unusable(&path, error))?.map_err(|unreadable| unreadable.at(&path))?;
        let mark = match (directory, &disk) {
            (Some(directory), _) => Mark::file(&directory.join(MARK)).map(Some),
            (None, Some(disk)) => disk.mark().and_then(Mark::open).map(Some),
            (None, None) => Ok(None),
        };
        let mark = mark.map_err(|error| DataError::io(&path, error))?;
        if mark.as_ref().is_some_and(|mark| mark.last > cache.commit) {
            return Err(corrupt("what it acknowledged last is not in it any more".into()));
        }
        if let Some(index) = cache.differs {
            return Err(DataError::Differs { path: directory.unwrap_or(Path::new("")).to_owned(), index });
        }
        let known = match identity {
            Some(bytes) => Some(unseal::<Identity>(b"identity", &bytes).map_err(|unreadable| unreadable.at(&path))?),
            None if cache.last.is_some() || cache.vote.is_some() => {
                return Err(corrupt("it does not say whose it is".into()));
            }
            None => None,
        };
        if let (Some(known), Some(vote)) = (&known, &mut cache.vote)
            && vote.leader_id().voted_for() == Some(known.id)
        {
            // Whatever it led is over: see above.
            vote.committed = false;
        }
        let file = match (directory, &disk) {
            (Some(_), _) => LogFile::Path(path.clone()),
            (None, Some(disk)) => LogFile::Backend(disk.log().map_err(|error| DataError::io(&path, error))?),
            (None, None) => LogFile::Memory,
        };
        if file.is_too_large(cache.sizes.all) {
            guarded(|| Ok(database.compact()))
                .map_err(|error| unusable(&path, error))?
                .map_err(|e| corrupt(e.to_string()))?;
        }
        let database = Arc::new(RwLock::new(database));
        let cache = Arc::new(RwLock::new(cache));
        let (writes, receiver) = mpsc::channel();
        let commit = cache.read().commit;
        let (wrote, written) = watch::channel(Ok(0));
        let mut writer =
            Writer { writes: receiver, database: database.clone(), file, cache: cache.clone(), commit, mark, wrote };
        let identity = match known {
            Some(identity) => identity,
            None => {
                // Nothing that is in a file counts before its name is on the disk.
                data_dir.files().map_or(Ok(()), |files| files.sync()).map_err(|error| DataError::io(&path, error))?;
                let identity = fresh();
                let value = seal(b"identity", &identity).map_err(|error| DataError::io(&path, error))?;
                let (done, mut written) = oneshot::channel();
                writer.write(vec![Write::Fact { name: "identity", value, done }]);
                let written = written.try_recv().unwrap_or_else(|_| Err(io::Error::other("the writer ended")));
                written.map_err(|error| DataError::io(&path, error))?;
                identity
            }
        };
        let thread = data_dir.environment.write_log(Box::new(writer)).map_err(|error| DataError::io(&path, error))?;
        let shared = Shared {
            database,
            path: path.clone(),
            cache,
            writes: Mutex::new(Some(writes)),
            thread: Mutex::new(thread),
            written,
            snapshot: watch::Sender::new(Ok(0)),
            #[cfg(test)]
            trips: Default::default(),
        };
        Ok((Self(Arc::new(shared)), identity))
    }

    /// Remembers whose the directory is.
    pub(crate) async fn identify(&self, identity: &Identity) -> io::Result<()> {
        let value = seal(b"identity", identity)?;
        self.write(|done| Write::Fact { name: "identity", value, done }).await
    }

    /// Remembers that this replica was found to be another one than the others' at an entry: it is not opened again.
    pub(crate) async fn differs(&self, index: u64) -> io::Result<()> {
        let value = seal(b"differs", &index)?;
        self.write(|done| Write::Fact { name: "differs", value, done }).await
    }

    /// Forgets a log that a crash has left as it was before a snapshot came in: what is left in it may be of a leader that was
    /// lost, and nothing in it goes on from there.
    pub(crate) fn goes_on_from(&self, snapshot: LogId) -> io::Result<()> {
        let ends_before = self.0.cache.read().last.is_some_and(|last| last.index < snapshot.index);
        if ends_before { self.forget(snapshot) } else { Ok(()) }
    }

    /// Forgets all up to an entry. Not waited for: what is lost of that in a crash leaves what a snapshot has anyway.
    fn forget(&self, upto: LogId) -> io::Result<()> {
        self.send(Write::Purge { to: upto.index, value: seal(b"purged", &upto)? })?;
        let mut cache = self.0.cache.write();
        cache.entries = cache.entries.split_off(&(upto.index + 1));
        cache.sizes.purge(upto.index);
        cache.recount();
        cache.purged = Some(upto);
        if cache.last.is_none_or(|last| last.index <= upto.index) {
            cache.last = Some(upto);
        }
        Ok(())
    }

    /// The next append panics, in the task that is openraft's core.
    #[cfg(test)]
    pub(crate) fn trip(&self) {
        self.0.trips.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Waits until nothing is written any more. Cancel safe.
    pub(crate) async fn broken(&self) {
        // An error means that it was closed.
        let _ = self.0.written.clone().wait_for(Result::is_err).await;
    }

    /// Why nothing is written any more, where that is so.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.written.borrow().as_ref().err().cloned()
    }

    /// Index of the last entry that was purged: the machine must know everything up to there from a snapshot.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.0.cache.read().purged.map(|log| log.index)
    }

    /// Waits until the log takes more than so many bytes, and says up to which index entries must go until it takes half of
    /// that. An error where nothing is written any more. Cancel safe.
    pub(crate) async fn outgrows(&self, most: u64) -> Result<u64, watch::error::RecvError> {
        let mut written = self.0.written.clone();
        loop {
            written.mark_unchanged();
            let surplus = {
                let cache = self.0.cache.read();
                (cache.sizes.all > most).then(|| cache.sizes.surplus(most / 2)).flatten()
            };
            match surplus {
                Some(upto) => return Ok(upto),
                None => written.changed().await?,
            }
        }
    }

    /// There is a snapshot on disk with everything up to this entry, or there will be none.
    pub(crate) fn snapshot_is_kept(&self, upto: Result<u64, String>) {
        self.0.snapshot.send_if_modified(|kept| {
            // A failure is more than any index.
            let more = *kept < upto;
            if more {
                *kept = upto;
            }
            more
        });
    }

    /// Waits until the entry at `index`, and so all before it, is on disk. Cancel safe.
    pub(crate) async fn durable(&self, index: u64) -> io::Result<()> {
        let Some(number) = self.0.cache.read().entries.get(&index).map(|held| held.append) else { return Ok(()) };
        let mut written = self.0.written.clone();
        let written = written.wait_for(|written| written.as_ref().map_or(true, |last| *last >= number)).await;
        let written = written.map_err(|_| io::Error::other("the log is closed"))?;
        written.as_ref().map(|_| ()).map_err(|problem| io::Error::other(problem.clone()))
    }

    /// The last entry up to `last` that is on disk, as far as the memory knows; `None` where it does not, as in a log that is
    /// broken.
    pub(crate) fn durable_until(&self, last: LogId) -> Option<LogId> {
        let cache = self.0.cache.read();
        let written = *self.0.written.borrow().as_ref().ok()?;
        match cache.entries.get(&last.index) {
            Some(held) if held.append > written => {
                let on_disk = |held: &&CachedEntry| held.append <= written;
                cache
                    .entries
                    .range(..last.index)
                    .rev()
                    .map(|(_, held)| held)
                    .find(on_disk)
                    .map(|held| held.entry.log_id)
            }
            _ => Some(last),
        }
    }

    /// Ends the writing thread after all that was sent to it. Blocks on the disk.
    pub(crate) fn close(&self) {
        self.0.writes.lock().take();
        if let Some(thread) = self.0.thread.lock().take() {
            // It has panicked at worst, and then there is nothing left to wait for.
            let _ = thread.join();
        }
    }

    /// Bytes of all entries.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.0.cache.read().sizes.all
    }

    /// Whether nothing is written any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.writes.lock().is_none()
    }

    fn send(&self, write: Write) -> io::Result<()> {
        let ended = || io::Error::other("the log is closed");
        self.0.writes.lock().as_ref().ok_or_else(ended)?.send(write).map_err(|_| ended())
    }

    async fn write(&self, write: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Write) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.send(write(done))?;
        written.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has ended")))
    }

    /// Entries `from..to` that are no longer in memory.
    fn read_disk(&self, from: u64, to: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        let read = guarded(|| {
            let database = self.0.database.read();
            let read = database.begin_read()?;
            let table = read.open_table(ENTRIES)?;
            let mut entries = Vec::new();
            let mut size = 0;
            for row in table.range(from..to)? {
                let (index, value) = row?;
                let (index, value) = (index.value(), value.value());
                size += value.len();
                if size > bytes && !entries.is_empty() {
                    break;
                }
                entries.push(unseal::<Entry>(&index.to_be_bytes(), value));
            }
            Ok(entries)
        });
        read?.into_iter().map(|entry| entry.map_err(io::Error::other)).collect()
    }

    fn read(&self, from: u64, to: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        let (mut found, start) = {
            let cache = self.0.cache.read();
            let mut size = 0;
            let mut found = Vec::new();
            for (_, CachedEntry { entry, bytes: len, .. }) in cache.entries.range(from..to.max(from)) {
                size += len;
                if size > bytes && !found.is_empty() {
                    break;
                }
                found.push(entry.clone());
            }
            (found, cache.entries.first_key_value().map_or(u64::MAX, |(index, _)| *index))
        };
        if from < to && from < start {
            let mut older = self.read_disk(from, to.min(start), bytes)?;
            let size: usize = older.len();
            if older.last().is_some_and(|entry| entry.log_id.index + 1 == to.min(start)) && bytes == usize::MAX {
                older.append(&mut found);
            } else if size == 0 {
                return Ok(found);
            }
            return Ok(older);
        }
        Ok(found)
    }
}

/// How the directory is called that a recovery makes,
pub(super) const NEW: &str = ".recovering";
/// and what was the survivor's.
pub(super) const FORMER: &str = ".before-recovery";

/// The directory of that name beside this one.
pub(super) fn beside(directory: &Path, ending: &str) -> PathBuf {
    let mut name = directory.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    directory.with_file_name(name)
}

/// Why nobody may begin with an empty directory here: it is gone only because a recovery was cut short.
pub(super) fn objection(directory: &Path) -> Result<(), DataError> {
    if directory.exists() || !beside(directory, NEW).exists() || !beside(directory, FORMER).exists() {
        return Ok(());
    }
    Err(DataError::Unrecovered { path: directory.to_owned() })
}

fn open_file(directory: &Path, path: &Path) -> Result<Database, DataError> {
    let io = |error| DataError::io(directory, error);
    if !directory.exists() {
        objection(directory)?;
        fs::create_dir_all(directory).map_err(io)?;
        // Whoever may not read what is above has to trust its file system.
        let _ = directory.parent().map(|above| fs::File::open(above)?.sync_all());
    }
    let existed = path.exists();
    let snapshot = directory.join("snapshot").exists();
    if !existed && snapshot {
        let problem = "there is a snapshot, but the log beside it is missing".to_owned();
        return Err(DataError::Corrupt { path: path.to_owned(), problem });
    }
    let acknowledged = fs::read(directory.join(MARK)).is_ok_and(|bytes| Mark::read(&bytes) > 0);
    if existed && !snapshot && !acknowledged {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        // Where somebody else has it open, that is found out below.
        if file.try_lock().is_ok() {
            begin_anew(&mut FileBackend::new(file).map_err(|error| io(io::Error::other(error)))?).map_err(io)?;
        }
    }
    let corrupt = |problem: String| DataError::Corrupt { path: path.to_owned(), problem };
    checked(existed, || Database::builder().set_cache_size(PAGES_BYTES).create(path)).map_err(|what| match what {
        Ok(redb::DatabaseError::DatabaseAlreadyOpen) => DataError::InUse { path: directory.to_owned() },
        Ok(redb::DatabaseError::Storage(redb::StorageError::Io(error))) if !existed => DataError::io(path, error),
        Ok(redb::DatabaseError::Storage(redb::StorageError::Io(error))) => unusable(path, error),
        Ok(error) => corrupt(error.to_string()),
        Err(problem) => corrupt(problem),
    })
}

/// A crash may have come while the file was made. Then nothing in it was ever acknowledged, and it is made once more.
fn begin_anew(file: &mut dyn StorageBackend) -> io::Result<()> {
    let mut first = UNBORN;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(UNBORN.len());
    file.read(0, &mut first[..len])?;
    if len > 0 && first == UNBORN { file.set_len(0) } else { Ok(()) }
}

/// Opens a database, and looks whether it is whole. An error is what redb says, or what is wrong.
fn checked(
    existed: bool,
    open: impl FnOnce() -> Result<Database, redb::DatabaseError>,
) -> Result<Database, Result<redb::DatabaseError, String>> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut database = open()?;
        // redb checks its pages only after a crash; a flipped bit is to be noticed after a clean end too.
        let whole = !existed || database.check_integrity()?;
        Ok((database, whole))
    }));
    match opened {
        Ok(Ok((database, true))) => Ok(database),
        Ok(Ok((_, false))) => Err(Err("some of its pages are not what was written".into())),
        Ok(Err(error)) => Err(Ok(error)),
        Err(_) => Err(Err("its structure is broken".into())),
    }
}

/// A backend behind a pointer.
#[derive(Debug)]
struct Backend(Box<dyn StorageBackend>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

/// Reads and checks everything, as a program that reads no newer format than `known`, and keeps the newest entries.
fn load(database: &Database, cache: &mut Cache, known: u8) -> Result<(), Unreadable> {
    let text = |error: redb::Error| error.to_string();
    let read = database.begin_read().map_err(|error| text(error.into()))?;
    let facts = read.open_table(FACTS).map_err(|error| text(error.into()))?;
    for row in facts.iter().map_err(|error| text(error.into()))? {
        let (name, value) = row.map_err(|error| text(error.into()))?;
        match name.value() {
            "vote" => cache.vote = Some(unseal(b"vote", value.value())?),
            "purged" => cache.purged = Some(unseal(b"purged", value.value())?),
            "commit" => cache.commit = unseal(b"commit", value.value())?,
            "differs" => cache.differs = Some(unseal(b"differs", value.value())?),
            "identity" => {}
            other => return Err(format!("it holds a fact called {other:?}, which this version does not know").into()),
        }
    }
    cache.last = cache.purged;
    let entries = read.open_table(ENTRIES).map_err(|error| text(error.into()))?;
    let mut next = cache.purged.map(|log| log.index + 1);
    for row in entries.iter().map_err(|error| text(error.into()))? {
        let (index, value) = row.map_err(|error| text(error.into()))?;
        let index = index.value();
        let entry: Entry = unseal_up_to(known, &index.to_be_bytes(), value.value())?;
        if entry.log_id.index != index || next.is_some_and(|next| next != index) {
            return Err(format!("entry {index} is not where it should be").into());
        }
        next = Some(index + 1);
        cache.last = Some(entry.log_id);
        cache.insert(entry, value.value().len(), 0);
        cache.evict(0);
    }
    Ok(())
}

impl Cache {
    fn insert(&mut self, entry: Entry, bytes: usize, append: u64) {
        self.last = Some(entry.log_id);
        self.sizes.push(entry.log_id.index, bytes);
        let memory = match &entry.payload {
            EntryPayload::Normal(command) => command.0.steps().iter().map(Step::bytes).sum(),
            EntryPayload::Blank | EntryPayload::Membership(_) => bytes,
        };
        self.memory += memory;
        if let Some(old) = self.entries.insert(entry.log_id.index, CachedEntry { entry, bytes, memory, append }) {
            self.memory -= old.memory;
        }
    }

    /// Makes room, but not of what came with an append after `written`.
    fn evict(&mut self, written: u64) {
        while self.memory > CACHE_BYTES
            && let Some(first) = self.entries.first_entry().filter(|first| first.get().append <= written)
        {
            self.memory -= first.remove().memory;
        }
    }

    fn recount(&mut self) {
        self.memory = self.entries.values().map(|held| held.memory).sum();
    }
}

/// The writing thread.
struct Writer {
    writes: mpsc::Receiver<Write>,
    database: Arc<RwLock<Database>>,
    file: LogFile,
    cache: Arc<RwLock<Cache>>,
    /// Number of the last commit.
    commit: u64,
    mark: Option<Mark>,
    wrote: watch::Sender<Result<u64, String>>,
}

/// Whose length is looked at.
enum LogFile {
    Path(PathBuf),
    Backend(Box<dyn StorageBackend>),
    Memory,
}

impl LogFile {
    /// Whether it is worth while to make it smaller, where so many bytes of entries are in it.
    fn is_too_large(&self, entries: u64) -> bool {
        let length = match self {
            Self::Path(path) => fs::metadata(path).map_or(0, |metadata| metadata.len()),
            Self::Backend(backend) => backend.len().unwrap_or(0),
            Self::Memory => 0,
        };
        length > COMPACT_BYTES.max(entries * COMPACT_RATIO)
    }
}

/// The file with the number of the last commit.
struct Mark {
    file: Box<dyn Rewritable>,
    last: u64,
}

impl Mark {
    fn file(path: &Path) -> io::Result<Self> {
        Self::open(Box::new(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?))
    }

    fn open(mut file: Box<dyn Rewritable>) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self { file, last: Self::read(&bytes) })
    }

    fn read(bytes: &[u8]) -> u64 {
        unseal(b"mark", bytes).map_or(0, u64::from_le_bytes)
    }

    fn write(&mut self, commit: u64) -> io::Result<()> {
        // Always of the same length, so that a shorter number leaves nothing of a longer one behind.
        let bytes = seal(b"mark", &commit.to_le_bytes())?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)
    }
}

impl LogWriter for Writer {
    fn run(mut self: Box<Self>) {
        while let Ok(first) = self.writes.recv() {
            self.gather(first);
        }
    }

    fn turn(&mut self) -> bool {
        loop {
            match self.writes.try_recv() {
                Ok(first) => self.gather(first),
                Err(nothing) => return nothing == mpsc::TryRecvError::Empty,
            }
        }
    }
}

impl Writer {
    /// Writes what there is, together.
    fn gather(&mut self, first: Write) {
        let mut bytes = first.bytes();
        let mut group = vec![first];
        while bytes < COMMIT_BYTES
            && let Ok(next) = self.writes.try_recv()
        {
            bytes += next.bytes();
            group.push(next);
        }
        self.write(group);
    }

    fn write(&mut self, group: Vec<Write>) {
        // After a failure nothing is written any more: what comes later would stand on what is missing.
        let earlier = self.wrote.borrow().clone();
        let result = earlier.and_then(|_| {
            let result = guarded(|| self.commit(&group, self.commit + 1)).map_err(|error| error.to_string());
            if let Err(problem) = &result {
                tracing::error!(target: "divider::raft", problem, "the log could not be written; this member stops");
            }
            result
        });
        match &result {
            Ok(()) => {
                self.commit += 1;
                if let Some(Err(error)) = self.mark.as_mut().map(|mark| mark.write(self.commit)) {
                    tracing::warn!(target: "divider::raft", %error, "the log's mark could not be written");
                }
                let appended = group.iter().rev().find_map(|write| match write {
                    Write::Append { number, .. } => Some(*number),
                    _ => None,
                });
                if let Some(number) = appended {
                    let _ = self.wrote.send_replace(Ok(number));
                    self.cache.write().evict(number);
                }
            }
            Err(problem) => _ = self.wrote.send_replace(Err(problem.clone())),
        }
        let purges = group.iter().any(|write| matches!(write, Write::Purge { .. }));
        for write in group {
            write.answer(result.as_ref().map(|&()| ()).map_err(|problem| io::Error::other(problem.clone())));
        }
        if purges && result.is_ok() {
            self.compact();
        }
    }

    /// Makes the file smaller where that pays. Nobody reads or writes meanwhile.
    fn compact(&self) {
        if !self.file.is_too_large(self.cache.read().sizes.all) {
            return;
        }
        let began = std::time::Instant::now();
        let done = guarded(|| Ok(self.database.write().compact())).and_then(|done| done.map_err(io::Error::other));
        match done {
            Ok(_) => {
                tracing::debug!(target: "divider::raft", took = ?began.elapsed(), "the log's file was made smaller")
            }
            // Nothing is lost but the space. Where the disk fails, the next commit says so.
            Err(error) => tracing::warn!(target: "divider::raft", %error, "the log's file could not be made smaller"),
        }
    }

    fn commit(&self, group: &[Write], number: u64) -> Result<(), redb::Error> {
        let database = self.database.read();
        let mut write = database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut entries = write.open_table(ENTRIES)?;
            let mut facts = write.open_table(FACTS)?;
            let number = seal(b"commit", &number).map_err(redb::Error::Io)?;
            facts.insert("commit", number.as_slice())?;
            for one in group {
                match one {
                    Write::Append { entries: new, .. } => {
                        for (index, value) in new {
                            entries.insert(index, value.as_slice())?;
                        }
                    }
                    Write::Fact { name, value, .. } => _ = facts.insert(name, value.as_slice())?,
                    Write::Truncate { from, .. } => entries.retain_in(*from.., |_, _| false)?,
                    Write::Purge { to, value } => {
                        facts.insert("purged", value.as_slice())?;
                        entries.retain_in(..=*to, |_, _| false)?;
                    }
                }
            }
        }
        #[cfg(test)]
        std::thread::sleep(std::time::Duration::from_millis(STALL.load(std::sync::atomic::Ordering::Relaxed)));
        write.commit()?;
        Ok(())
    }
}

impl Write {
    /// Tells whoever waits for it.
    fn answer(self, result: io::Result<()>) {
        match self {
            Self::Append { done, .. } => {
                if let Some(done) = done {
                    done.log_io_completed(result);
                }
            }
            // Whoever asked may have given up.
            Self::Fact { done, .. } | Self::Truncate { done, .. } => _ = done.send(result),
            Self::Purge { .. } => {}
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append { bytes, .. } => *bytes,
            _ => 64,
        }
    }
}

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb, error: &io::Error) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::new(error)).into()
}

fn unread(error: io::Error) -> StorageError {
    failed(ErrorSubject::Logs, ErrorVerb::Read, &error)
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + fmt::Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX).map_err(unread)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, READ_BYTES).map_err(unread)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let cache = self.0.cache.read();
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id: cache.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let failed = |error: io::Error| failed(ErrorSubject::Vote, ErrorVerb::Write, &error);
        let value = seal(b"vote", vote).map_err(failed)?;
        self.write(|done| Write::Fact { name: "vote", value, done }).await.map_err(failed)?;
        self.0.cache.write().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.0.cache.read().vote)
    }

    async fn append<I>(&mut self, entries: I, done: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let failed = |error: io::Error| failed(ErrorSubject::Logs, ErrorVerb::Write, &error);
        if let Err(problem) = &*self.0.written.borrow() {
            return Err(failed(io::Error::other(problem.clone())));
        }
        #[cfg(test)]
        assert!(!self.0.trips.swap(false, std::sync::atomic::Ordering::Relaxed), "it was to trip");
        let (mut sealed, mut bytes) = (Vec::new(), 0);
        let mut kept = Vec::new();
        let mut waits = false;
        for entry in entries {
            waits |= matches!(entry.payload, EntryPayload::Membership(_));
            let index = entry.log_id.index;
            let value = seal(&index.to_be_bytes(), &entry).map_err(failed)?;
            bytes += value.len();
            kept.push((entry, value.len()));
            sealed.push((index, value));
        }
        let number = {
            let mut cache = self.0.cache.write();
            cache.appends += 1;
            let number = cache.appends;
            for (entry, len) in kept {
                cache.insert(entry, len, number);
            }
            number
        };
        let (waiting, done) = if waits { (Some(done), None) } else { (None, Some(done)) };
        self.send(Write::Append { number, entries: sealed, bytes, done: waiting }).map_err(failed)?;
        if let Some(done) = done {
            done.log_io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate(&mut self, log: LogId) -> Result<(), StorageError> {
        let failed = |error: io::Error| failed(ErrorSubject::Logs, ErrorVerb::Delete, &error);
        self.write(|done| Write::Truncate { from: log.index, done }).await.map_err(failed)?;
        let before = log.index.checked_sub(1);
        let last = match before {
            Some(before) => self.read(before, log.index, usize::MAX).map_err(unread)?.first().map(|entry| entry.log_id),
            None => None,
        };
        let mut cache = self.0.cache.write();
        cache.entries.split_off(&log.index);
        cache.sizes.truncate(log.index);
        cache.recount();
        cache.last = last.or(cache.purged);
        Ok(())
    }

    async fn purge(&mut self, log: LogId) -> Result<(), StorageError> {
        let failed = |error: io::Error| failed(ErrorSubject::Logs, ErrorVerb::Delete, &error);
        // openraft asks for this while a snapshot that was received is still being written. A crash in between would leave
        // neither the entries nor the snapshot.
        let mut snapshot = self.0.snapshot.subscribe();
        let kept = snapshot.wait_for(|kept| kept.as_ref().map_or(true, |upto| *upto >= log.index)).await;
        if let Ok(Err(problem)) = kept.as_deref() {
            return Err(failed(io::Error::other(problem.clone())));
        }
        drop(kept);
        self.forget(log).map_err(failed)
    }
}
