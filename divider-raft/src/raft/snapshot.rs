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
    collections::BTreeMap,
    fmt,
    io::{self, BufWriter, Read, SeekFrom, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use divider_core::{Group, Ledger};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::SnapshotMeta;
use crate::{
    error::{DataError, Unreadable},
    ground::{Files, Place, StoredFile},
};

/// The first bytes of a snapshot, before the number of its format.
const MAGIC: [u8; 7] = *b"DVDRSNP";
/// The format that is written, and read.
const FORMAT: u8 = 1;
const CURRENT: &str = "snapshot";
/// How the names of files end that are not whole yet.
const PART: &str = ".part";
const CHECKSUM: usize = 8;
/// How many bytes are written at a time.
const PIECE: usize = 256 << 10;

/// What a snapshot says: with whole ledgers where it is read, and with pictures of them where it is written.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Content<L = Ledger> {
    pub(crate) meta: SnapshotMeta,
    /// See [`Sum`](super::sum::Sum).
    pub(crate) sum: Option<u64>,
    pub(crate) groups: BTreeMap<Group, L>,
}

impl<L: Serialize> Content<L> {
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let sealing = Sealing { to, sum: Xxh3Default::new(), error: None };
        let mut writer = BufWriter::with_capacity(PIECE, sealing);
        writer.write_all(&MAGIC)?;
        writer.write_all(&[FORMAT])?;
        let written = postcard::to_io(self, &mut writer).map(drop).map_err(io::Error::other);
        // Nothing is left in it where all went well, and nothing of that is wanted elsewhere.
        let (Sealing { to, sum, error }, _) = writer.into_parts();
        error.map_or(written, Err)?;
        to.write_all(&sum.digest().to_le_bytes())
    }
}

/// Keeps the checksum over what it passes on.
struct Sealing<'a> {
    to: &'a mut dyn Write,
    sum: Xxh3Default,
    /// What the disk said: the serializer keeps it to itself.
    error: Option<io::Error>,
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.to.write_all(bytes) {
            let kind = error.kind();
            self.error = Some(error);
            return Err(kind.into());
        }
        self.sum.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Content, Unreadable> {
    let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("it is cut short")?;
    let (format, body) = content.strip_prefix(&MAGIC).and_then(<[u8]>::split_first).ok_or("it is no snapshot")?;
    if xxh3_64(content).to_le_bytes() != *sum {
        return Err("its checksum does not match".into());
    }
    let text = |error: postcard::Error| Unreadable::from(error.to_string());
    match format {
        &FORMAT => postcard::from_bytes(body).map_err(text),
        newer => Err(Unreadable::Newer { found: *newer, known: FORMAT }),
    }
}

/// The bytes of a snapshot, on their way or at rest.
#[derive(Clone)]
pub(crate) enum SnapshotData {
    /// An open file.
    File(Arc<Mutex<Box<dyn StoredFile>>>),
    /// For members without a disk.
    Memory(Arc<Vec<u8>>),
    /// One that was received and is what was announced. It is taken once.
    Received(Arc<Mutex<Option<Received>>>),
}

/// A snapshot that is whole and checked, and not in its place yet.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) content: Content,
    pub(crate) kept: Kept,
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Memory(_) => "Memory",
            Self::Received(_) => "Received",
        })
    }
}

impl SnapshotData {
    /// At most so many bytes from this place on; none at the end. Blocks on the disk.
    pub(crate) fn chunk(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file) => {
                let mut file = file.lock();
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = Vec::with_capacity(most.min(1 << 20));
                Read::by_ref(&mut *file).take(most as u64).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            Self::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
                Ok(rest[..rest.len().min(most)].to_vec())
            }
            Self::Received(_) => Err(io::Error::other("what was received is not sent on before it is installed")),
        }
    }

    /// All of it.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        self.chunk(0, usize::MAX)
    }
}

/// Where a member keeps its newest snapshot.
#[derive(Debug)]
pub(crate) struct Snapshots {
    place: Place,
    /// `None` where nothing outlives the process.
    files: Option<Arc<dyn Files>>,
    /// What it is of, and its bytes: changed together with the name of the file.
    current: Mutex<Option<(SnapshotMeta, SnapshotData)>>,
    /// Numbers the files that are not whole yet.
    parts: AtomicU64,
}

impl Snapshots {
    /// Opens the place, and reads the newest snapshot if there is one.
    pub(crate) fn open(place: Place) -> Result<(Self, Option<Content>), DataError> {
        let path = place.directory.clone().unwrap_or_default().join(CURRENT);
        let files = place.files();
        let found = files.as_deref().map_or(Ok(None), |files| open(files, &path))?;
        let (content, data) = found.unzip();
        let current = content.as_ref().map(|content| content.meta.clone()).zip(data);
        Ok((Self { place, files, current: Mutex::new(current), parts: AtomicU64::new(0) }, content))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotData)> {
        self.current.lock().clone()
    }

    /// Writes a snapshot, synced, and not in its place yet. Blocks on the disk.
    pub(crate) fn write<L: Serialize>(&self, content: &Content<L>) -> io::Result<Kept> {
        let mut spool = self.spool()?;
        match &mut spool.part {
            Some((file, _)) => content.write(file)?,
            None => content.write(&mut spool.bytes)?,
        }
        spool.finish()
    }

    /// Puts a whole, checked snapshot in the place of the one before, and says which one is there now: a newer one stays,
    /// since the log may have been purged up to it. Blocks on the disk.
    pub(crate) fn adopt(&self, meta: SnapshotMeta, kept: Kept) -> io::Result<(SnapshotMeta, SnapshotData)> {
        let current = {
            let mut current = self.current.lock();
            if let Some(newer) = current.clone().filter(|(known, _)| known.last_log_id > meta.last_log_id) {
                return Ok(newer);
            }
            let data = kept.place()?;
            current.insert((meta, data)).clone()
        };
        // Nothing is purged before this returns.
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
                Some((file, Part { files: files.clone(), name }))
            }
        };
        Ok(Spool { part, bytes: Vec::new(), received: 0 })
    }
}

/// The snapshot that is there.
fn open(files: &dyn Files, path: &Path) -> Result<Option<(Content, SnapshotData)>, DataError> {
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
    Ok(Some((content, data)))
}

/// The name of a file that is not whole yet, or not in its place. It is removed with this.
struct Part {
    files: Arc<dyn Files>,
    name: String,
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has its place by now, or is removed at the next start.
        let _ = self.files.remove(&self.name);
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A snapshot that is being gathered, chunk by chunk.
pub(crate) struct Spool {
    part: Option<(Box<dyn StoredFile>, Part)>,
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
    pub(crate) fn finish(self) -> io::Result<Kept> {
        let Some((mut file, part)) = self.part else {
            return Ok(Kept { data: SnapshotData::Memory(Arc::new(self.bytes)), part: None });
        };
        file.sync()?;
        Ok(Kept { data: SnapshotData::File(Arc::new(Mutex::new(file))), part: Some(part) })
    }
}

/// A snapshot that is whole and synced, but not in its place.
#[derive(Debug)]
pub(crate) struct Kept {
    data: SnapshotData,
    part: Option<Part>,
}

impl Kept {
    /// Reads it, and compares what is inside with what was announced.
    pub(crate) fn check(self, meta: &SnapshotMeta) -> Result<Received, String> {
        let bytes = self.data.read().map_err(|error| error.to_string())?;
        let content = decode(&bytes).map_err(|unreadable| unreadable.to_string())?;
        if content.meta != *meta {
            let (inside, said) = (content.meta.last_log_id, meta.last_log_id);
            return Err(format!("a snapshot of {said:?} was announced, and what came is one of {inside:?}"));
        }
        Ok(Received { content, kept: self })
    }

    fn place(self) -> io::Result<SnapshotData> {
        if let Some(part) = &self.part {
            part.files.rename(&part.name, CURRENT)?;
        }
        Ok(self.data)
    }
}
