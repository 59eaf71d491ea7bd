//! A snapshot: all ledgers at one entry of the log, in one file with a checksum.
//!
//! What does not carry its own checksum is never believed.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, BufWriter, Read, SeekFrom, Write},
    sync::Arc,
};

use divider_core::{Group, Ledger};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::{
    environment::{Files, StoredFile},
    error::Unreadable,
    format::{NEWEST, OLDEST},
    protocol::peer::Peer,
};

/// What a snapshot is of.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Peer>;

/// The first bytes of a snapshot, before the number of its format.
const MAGIC: [u8; 7] = *b"DVDRSNP";
/// The file of the newest one.
pub(crate) const CURRENT: &str = "snapshot";
const CHECKSUM: usize = 8;
/// How many bytes are written at a time.
const PIECE: usize = 256 << 10;

/// What a snapshot says: with whole ledgers where it is read, and with pictures of them where it is written.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotContent<L = Ledger> {
    /// The format that the cluster was written in. It stands before the rest.
    #[serde(skip)]
    pub(crate) format: u8,
    pub(crate) meta: SnapshotMeta,
    /// See [`Sum`](super::sum::Sum).
    pub(crate) sum: Option<u64>,
    pub(crate) groups: BTreeMap<Group, L>,
}

impl<L: Serialize> SnapshotContent<L> {
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let sealing = Sealing { to, sum: Xxh3Default::new(), error: None };
        let mut writer = BufWriter::with_capacity(PIECE, sealing);
        writer.write_all(&MAGIC)?;
        writer.write_all(&[self.format.max(OLDEST)])?;
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

pub(crate) fn decode(bytes: &[u8]) -> Result<SnapshotContent, Unreadable> {
    let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("it is cut short")?;
    let (format, body) = content.strip_prefix(&MAGIC).and_then(<[u8]>::split_first).ok_or("it is no snapshot")?;
    if xxh3_64(content).to_le_bytes() != *sum {
        return Err("its checksum does not match".into());
    }
    let text = |error: postcard::Error| Unreadable::from(error.to_string());
    match *format {
        format @ OLDEST..=NEWEST => Ok(SnapshotContent { format, ..postcard::from_bytes(body).map_err(text)? }),
        newer => Err(Unreadable::Newer { found: newer, known: NEWEST }),
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
    Received(Arc<Mutex<Option<ReceivedSnapshot>>>),
}

/// A snapshot that is whole and checked, and not in its place yet.
#[derive(Debug)]
pub(crate) struct ReceivedSnapshot {
    pub(crate) content: SnapshotContent,
    pub(crate) kept: StoredSnapshot,
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

/// The name of a file that is not whole yet, or not in its place. It is removed with this.
pub(crate) struct PartialFile {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) name: String,
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // It has its place by now, or is removed at the next start.
        let _ = self.files.remove(&self.name);
    }
}

impl fmt::Debug for PartialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A snapshot that is whole and synced, but not in its place.
#[derive(Debug)]
pub(crate) struct StoredSnapshot {
    pub(crate) data: SnapshotData,
    pub(crate) part: Option<PartialFile>,
}

impl StoredSnapshot {
    /// Reads it, and compares what is inside with what was announced.
    pub(crate) fn check(self, meta: &SnapshotMeta) -> Result<ReceivedSnapshot, String> {
        let bytes = self.data.read().map_err(|error| error.to_string())?;
        let content = decode(&bytes).map_err(|unreadable| unreadable.to_string())?;
        if content.meta != *meta {
            let (inside, said) = (content.meta.last_log_id, meta.last_log_id);
            return Err(format!("a snapshot of {said:?} was announced, and what came is one of {inside:?}"));
        }
        Ok(ReceivedSnapshot { content, kept: self })
    }

    pub(crate) fn place(self) -> io::Result<SnapshotData> {
        if let Some(part) = &self.part {
            part.files.rename(&part.name, CURRENT)?;
        }
        Ok(self.data)
    }
}
