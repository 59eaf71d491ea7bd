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
//! - a follower's word that it has them, before it goes out ([`Raft::answer`](super::raft::Raft)),
//! - a leader's use of them: before they are applied, and with that before any caller has an answer, and before followers
//!   are told that they may be applied (`network.rs`).
//!
//! So a leader sends entries while its own disk still writes them, and nothing counts before it is on the disks of a
//! quorum, the leader's among them. Two things keep that sound. Changes of membership are reported as done only when they
//! are on disk, since the next change relies on the one before. And a leader that starts again may lack entries that it
//! had sent, so it never goes on in its old term, where it could send others under the same number: it stands for
//! election like anybody else. Votes are waited for, and all entries before a vote are on disk when it is.
//!
//! # What stands where
//! - `records.rs`: what is in the tables, and its checksums
//! - `file.rs`, `mark.rs`: the log's file, and the tiny one that guards it
//! - `open.rs`: reads and checks all of it at the start
//! - `cache.rs`: what is known without the disk
//! - `writer.rs`: the thread that writes
//! - `recovering.rs`: what a recovery leaves beside the directory

mod cache;
mod file;
mod mark;
mod open;
pub(crate) mod records;
pub(crate) mod recovering;
pub(crate) mod writer;

use std::{
    fmt, io,
    ops::{Bound, RangeBounds},
    path::PathBuf,
    sync::{Arc, mpsc},
};

use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, LogState, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase};
use tokio::sync::{oneshot, watch};

use self::{
    cache::{Cache, CachedEntry},
    file::guarded,
    open::{Opened, open},
    records::{ENTRIES, Identity, seal, unseal},
    writer::Write,
};
use crate::{
    environment::DataDir,
    error::DataError,
    protocol::types::{Entry, LogId, StorageError, Types, Vote},
};

/// Most bytes that one read gives to a sender, unless a single entry is larger.
const READ_BYTES: usize = 1 << 20;

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

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("path", &self.0.path).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in `directory`, or one in memory, and says whose it is. `fresh` makes the identity of a new one.
    pub(crate) fn open(data_dir: &DataDir, fresh: impl FnOnce() -> Identity) -> Result<(Self, Identity), DataError> {
        let Opened { identity, database, path, cache, writes, writer, written } = open(data_dir, fresh)?;
        let thread = data_dir.environment.write_log(Box::new(writer)).map_err(|error| DataError::io(&path, error))?;
        let shared = Shared {
            database,
            path,
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
