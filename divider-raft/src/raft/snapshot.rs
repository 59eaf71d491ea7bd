//! Snapshots: all ledgers at one entry of the log, in one file with a checksum.
//!
//! A snapshot is written beside the one before and takes its place by a rename, so that at every moment one whole
//! snapshot is there. What does not carry its own checksum is never believed.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use divider_core::{Group, Ledger};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::SnapshotMeta;
use crate::{error::DataError, ground::Place};

/// The first bytes of a snapshot; the last one counts versions of the format.
const MAGIC: [u8; 8] = *b"DVDRSNP\x01";
const CURRENT: &str = "snapshot";
const CHECKSUM: usize = 8;

/// The bytes of a snapshot, on their way or at rest.
#[derive(Clone, Debug)]
pub(crate) enum SnapshotData {
    /// A file in the data directory.
    File(PathBuf),
    /// For members without a disk.
    Memory(Arc<Vec<u8>>),
}

impl SnapshotData {
    pub(crate) fn read(&self) -> io::Result<Arc<Vec<u8>>> {
        match self {
            Self::File(path) => fs::read(path).map(Arc::new),
            Self::Memory(bytes) => Ok(bytes.clone()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Content {
    meta: SnapshotMeta,
    groups: BTreeMap<Group, Ledger>,
}

/// As [`Content`], without owning the ledgers.
#[derive(Serialize)]
struct ContentRef<'a> {
    meta: &'a SnapshotMeta,
    groups: &'a BTreeMap<Group, Ledger>,
}

pub(crate) fn encode(meta: &SnapshotMeta, groups: &BTreeMap<Group, Ledger>) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(&ContentRef { meta, groups }, MAGIC.to_vec()).map_err(io::Error::other)?;
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<(SnapshotMeta, BTreeMap<Group, Ledger>), String> {
    let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("it is cut short")?;
    let body = content.strip_prefix(&MAGIC).ok_or("it does not begin like a snapshot of this version")?;
    if xxh3_64(content).to_le_bytes() != *sum {
        return Err("its checksum does not match".into());
    }
    let content: Content = postcard::from_bytes(body).map_err(|error| error.to_string())?;
    Ok((content.meta, content.groups))
}

/// Where a member keeps its newest snapshot.
#[derive(Debug)]
pub(crate) struct Snapshots {
    place: Place,
    current: Mutex<Option<(SnapshotMeta, SnapshotData)>>,
    /// Held while one is being written: one may be received while another one is being made.
    writing: Mutex<()>,
}

impl Snapshots {
    /// Opens the place, and reads the newest snapshot if there is one.
    pub(crate) fn open(place: Place) -> Result<(Self, Option<Loaded>), DataError> {
        let mut loaded = None;
        let mut current = None;
        if let Some(disk) = place.ground.disk() {
            let path = PathBuf::from(CURRENT);
            if let Some(bytes) = disk.snapshot().map_err(|error| DataError::io(&path, error))? {
                let (meta, groups) = decode(&bytes).map_err(|problem| DataError::Corrupt { path, problem })?;
                current = Some((meta.clone(), SnapshotData::Memory(Arc::new(bytes))));
                loaded = Some((meta, groups));
            }
        } else if let Some(path) =
            place.directory.as_ref().map(|directory| directory.join(CURRENT)).filter(|path| path.exists())
        {
            let bytes = fs::read(&path).map_err(|error| DataError::io(&path, error))?;
            let (meta, groups) =
                decode(&bytes).map_err(|problem| DataError::Corrupt { path: path.clone(), problem })?;
            current = Some((meta.clone(), SnapshotData::File(path)));
            loaded = Some((meta, groups));
        }
        Ok((Self { place, current: Mutex::new(current), writing: Mutex::default() }, loaded))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotData)> {
        self.current.lock().clone()
    }

    /// Puts a whole, checked snapshot in the place of the one before, and says which one is there now: a newer one stays,
    /// since the log may have been purged up to it. Blocks on the disk.
    pub(crate) fn replace(&self, meta: SnapshotMeta, bytes: Vec<u8>) -> io::Result<(SnapshotMeta, SnapshotData)> {
        let _writing = self.writing.lock();
        if let Some(newer) = self.current().filter(|(known, _)| known.last_log_id > meta.last_log_id) {
            return Ok(newer);
        }
        let data = match &self.place.directory {
            None => {
                self.place.ground.disk().map_or(Ok(()), |disk| disk.replace_snapshot(&bytes))?;
                SnapshotData::Memory(Arc::new(bytes))
            }
            Some(directory) => {
                let path = directory.join(CURRENT);
                write_atomically(&path, &bytes)?;
                SnapshotData::File(path)
            }
        };
        *self.current.lock() = Some((meta.clone(), data.clone()));
        Ok((meta, data))
    }

    /// Somewhere to gather the chunks of a snapshot that is being received.
    pub(crate) fn spool(&self) -> io::Result<Spool> {
        match &self.place.directory {
            None => Ok(Spool { file: None, bytes: Vec::new(), received: 0 }),
            Some(directory) => {
                let path = directory.join("snapshot.receiving");
                let file = File::create(&path)?;
                Ok(Spool { file: Some((file, path)), bytes: Vec::new(), received: 0 })
            }
        }
    }
}

/// What [`Snapshots::open`] found.
pub(crate) type Loaded = (SnapshotMeta, BTreeMap<Group, Ledger>);

/// A snapshot that is being received, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Spool {
    file: Option<(File, PathBuf)>,
    bytes: Vec<u8>,
    received: u64,
}

impl Spool {
    /// Takes the next chunk, which must begin where the last one ended.
    pub(crate) fn write(&mut self, offset: u64, chunk: &[u8]) -> io::Result<()> {
        if offset != self.received {
            return Err(io::Error::other(format!("a chunk at {offset} came after {} bytes", self.received)));
        }
        match &mut self.file {
            Some((file, _)) => file.write_all(chunk)?,
            None => self.bytes.extend_from_slice(chunk),
        }
        self.received += chunk.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(self) -> SnapshotData {
        match self.file {
            Some((_, path)) => SnapshotData::File(path),
            None => SnapshotData::Memory(Arc::new(self.bytes)),
        }
    }
}

/// Writes a file so that after a crash either the old or the new one is there, whole.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads a snapshot piece by piece, to send it.
pub(crate) fn chunks(data: &SnapshotData) -> io::Result<Box<dyn Read + Send>> {
    Ok(match data {
        SnapshotData::File(path) => Box::new(File::open(path)?),
        SnapshotData::Memory(bytes) => Box::new(io::Cursor::new(bytes.as_ref().clone())),
    })
}
