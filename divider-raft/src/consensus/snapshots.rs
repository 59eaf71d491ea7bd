//! Snapshots: all ledgers at one entry of the log, in one file with a checksum.
//!
//! A snapshot is written beside the one before and takes its place by a rename, so that at every moment one whole
//! snapshot is there. What does not carry its own checksum is never believed.
//!
//! # Why nothing is found by its name twice
//! A newer snapshot takes the name of the one before while that is still being sent, perhaps for minutes. So whoever knows
//! what a snapshot is of also holds its file open, both taken under one lock: the bytes stay those of the snapshot that was
//! announced. Whoever receives one compares what is inside with what was announced before anything is replaced by it, and
//! each stream is received into a file of its own, so that nobody writes into what somebody else reads.

use std::{
    fmt,
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde::Serialize;

use crate::{
    environment::{DataDir, Files, StoredFile},
    error::{DataError, Unreadable},
    protocol::snapshot::{CURRENT, PartialFile, SnapshotContent, SnapshotData, SnapshotMeta, StoredSnapshot, decode},
};

/// How the names of files end that are not whole yet.
const PART: &str = ".part";
/// Where a member keeps its newest snapshot.
#[derive(Debug)]
pub(crate) struct Snapshots {
    data_dir: DataDir,
    /// `None` where nothing outlives the process.
    files: Option<Arc<dyn Files>>,
    /// What it is of, and its bytes: changed together with the name of the file.
    current: Mutex<Option<(SnapshotMeta, SnapshotData)>>,
    /// Numbers the files that are not whole yet.
    parts: AtomicU64,
}

impl Snapshots {
    /// Opens the directory, and reads the newest snapshot if there is one.
    pub(crate) fn open(data_dir: DataDir) -> Result<(Self, Option<SnapshotContent>), DataError> {
        let path = data_dir.directory.clone().unwrap_or_default().join(CURRENT);
        let files = data_dir.files();
        let found = files.as_deref().map_or(Ok(None), |files| open(files, &path, data_dir.reads))?;
        let (content, data) = found.unzip();
        let current = content.as_ref().map(|content| content.meta.clone()).zip(data);
        Ok((Self { data_dir, files, current: Mutex::new(current), parts: AtomicU64::new(0) }, content))
    }

    pub(crate) fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotData)> {
        self.current.lock().clone()
    }

    /// Writes a snapshot, synced, and not in its place yet. Blocks on the disk.
    pub(crate) fn write<L: Serialize>(&self, content: &SnapshotContent<L>) -> io::Result<StoredSnapshot> {
        let mut spool = self.spool()?;
        match &mut spool.part {
            Some((file, _)) => content.write(file)?,
            None => content.write(&mut spool.bytes)?,
        }
        spool.finish()
    }

    /// Puts a whole, checked snapshot in the place of the one before, and says which one is there now: a newer one stays,
    /// since the log may have been purged up to it. Blocks on the disk.
    pub(crate) fn adopt(&self, meta: SnapshotMeta, kept: StoredSnapshot) -> io::Result<(SnapshotMeta, SnapshotData)> {
        let current = {
            let mut current = self.current.lock();
            match current.clone().filter(|(known, _)| known.last_log_id > meta.last_log_id) {
                Some(newer) => newer,
                None => {
                    let data = kept.place()?;
                    current.insert((meta, data)).clone()
                }
            }
        };
        // Nothing is purged before this returns, and whoever put a newer one there may not have come to this yet.
        self.files.as_deref().map_or(Ok(()), Files::sync)?;
        Ok(current)
    }

    /// Somewhere to gather a snapshot, chunk by chunk.
    pub(crate) fn spool(&self) -> io::Result<Spool> {
        let part = match &self.files {
            None => None,
            Some(files) => {
                let name = format!("{CURRENT}.{}{PART}", self.parts.fetch_add(1, Ordering::Relaxed));
                let file = files.create(&name)?;
                Some((file, PartialFile { files: files.clone(), name }))
            }
        };
        Ok(Spool { part, bytes: Vec::new(), received: 0 })
    }
}

/// The snapshot that is there, for a program that reads no newer format than `known`.
fn open(files: &dyn Files, path: &Path, known: u8) -> Result<Option<(SnapshotContent, SnapshotData)>, DataError> {
    let io = |error| DataError::io(path, error);
    // What an earlier life did not finish, whatever it was called then.
    let left = |name: &String| name.ends_with(PART) || name == "snapshot.new" || name == "snapshot.receiving";
    for name in files.names().map_err(io)?.into_iter().filter(left) {
        files.remove(&name).map_err(io)?;
    }
    let file = match files.open(CURRENT) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let data = SnapshotData::File(Arc::new(Mutex::new(file)));
    let bytes = data.read().map_err(io)?;
    let content = decode(&bytes).map_err(|unreadable| unreadable.at(path))?;
    if content.format > known {
        return Err(Unreadable::Newer { found: content.format, known }.at(path));
    }
    Ok(Some((content, data)))
}

/// A snapshot that is being gathered, chunk by chunk.
pub(crate) struct Spool {
    part: Option<(Box<dyn StoredFile>, PartialFile)>,
    bytes: Vec<u8>,
    received: u64,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("received", &self.received).finish_non_exhaustive()
    }
}

impl Spool {
    /// Takes the next chunk, which must begin where the last one ended.
    pub(crate) fn write(&mut self, offset: u64, mut chunk: Vec<u8>) -> io::Result<()> {
        if offset != self.received {
            return Err(io::Error::other(format!("a chunk at {offset} came after {} bytes", self.received)));
        }
        self.received += chunk.len() as u64;
        match &mut self.part {
            Some((file, _)) => file.write_all(&chunk)?,
            None if self.bytes.is_empty() => self.bytes = chunk,
            None => self.bytes.append(&mut chunk),
        }
        Ok(())
    }

    /// All of it is there. Blocks on the disk.
    pub(crate) fn finish(self) -> io::Result<StoredSnapshot> {
        let Some((mut file, part)) = self.part else {
            return Ok(StoredSnapshot { data: SnapshotData::Memory(Arc::new(self.bytes)), part: None });
        };
        file.sync()?;
        Ok(StoredSnapshot { data: SnapshotData::File(Arc::new(Mutex::new(file))), part: Some(part) })
    }
}
