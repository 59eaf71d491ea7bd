//! A disk that loses in a crash what was not synced: all of it, some of it, or nothing, and parts of a single write.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    io::{self, Cursor, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use divider_conformance::Dice;
use divider_raft::environment;
use parking_lot::Mutex;
use redb::StorageBackend;

/// What a power failure writes whole or not at all.
const SECTOR: usize = 512;

/// See the [module](self). Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Inner>>);

struct Inner {
    dice: Dice,
    /// Counts crashes: whoever opened a file before the last one has nothing to do with the disk any more.
    life: u64,
    /// After so many more operations the power fails.
    fuse: Option<u64>,
    failed: bool,
    log: File,
    mark: Vec<Vec<u8>>,
    /// What each name stands for, on the disk and now. A file without a name lives for as long as somebody has it open.
    names: [BTreeMap<String, usize>; 2],
    /// Of snapshots: what is on the disk, and what was written.
    files: Vec<[Vec<u8>; 2]>,
    full: Full,
    /// The log was refused space.
    refused: bool,
    syncs: u64,
}

/// For what there is no space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There is space.
    No,
    /// For no snapshot.
    ForSnapshots,
    /// For nothing.
    ForAll,
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    current: Vec<u8>,
    /// What was done since the last sync.
    pending: VecDeque<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let from = *offset as usize;
                if bytes.len() < from + data.len() {
                    bytes.resize(from + data.len(), 0);
                }
                bytes[from..from + data.len()].copy_from_slice(data);
            }
            Self::Length(len) => bytes.resize(*len as usize, 0),
        }
    }
}

impl Inner {
    fn new(dice: Dice) -> Self {
        Self {
            dice,
            life: 0,
            fuse: None,
            failed: false,
            log: File::default(),
            mark: vec![Vec::new()],
            names: Default::default(),
            files: Vec::new(),
            full: Full::No,
            refused: false,
            syncs: 0,
        }
    }

    fn space(&mut self, full: bool) -> io::Result<()> {
        self.refused |= full && self.full == Full::ForAll;
        if full { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(()) }
    }

    /// After a crash: names may be those of the last sync, and files have no more than a part of what was not synced.
    fn forget_files(&mut self) {
        let Self { dice, names: [synced, current], files, .. } = self;
        if dice.permille(500) {
            current.clone_from(synced);
        }
        synced.clone_from(current);
        for [synced, current] in files.iter_mut().filter(|[synced, current]| synced != current) {
            if dice.permille(500) {
                current.truncate(dice.below(current.len() as u64 + 1) as usize);
            } else {
                current.clone_from(synced);
            }
            synced.clone_from(current);
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl Disk {
    /// An empty one.
    pub fn new(dice: Dice) -> Self {
        Self(Arc::new(Mutex::new(Inner::new(dice))))
    }

    /// The power fails after so many more operations.
    pub fn fail_after(&self, operations: u64) {
        self.0.lock().fuse = Some(operations);
    }

    /// From here on there is no space, or there is again. Then it says whether the log was refused any meanwhile, which stops
    /// the process.
    pub fn fill(&self, full: Full) -> bool {
        let mut inner = self.0.lock();
        inner.full = full;
        full == Full::No && std::mem::take(&mut inner.refused)
    }

    /// Another disk is in its place, an empty one. The process has died.
    pub fn wipe(&self) {
        let mut inner = self.0.lock();
        let (dice, life) = (inner.dice.split(), inner.life + 1);
        *inner = Inner { life, ..Inner::new(dice) };
    }

    /// Whether the power has failed.
    pub fn has_failed(&self) -> bool {
        self.0.lock().failed
    }

    /// How often something was synced.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The power failed: from here on only what is on the disk counts. Says how many operations were lost.
    pub fn crash(&self) -> u64 {
        let mut inner = self.0.lock();
        let Inner { dice, log, mark, .. } = &mut *inner;
        // Per crash: nothing of it was written, all of it was, or each operation by itself.
        let kept = dice.pick(&[0, 0, 500, 900, 1000]);
        let mut lost = 0;
        for change in log.pending.drain(..) {
            match change {
                // A file's length is kept in order with what is written after it.
                Change::Length(_) if kept > 0 => change.make(&mut log.synced),
                Change::Write(offset, data) if dice.permille(kept) => {
                    if kept < 1000 && data.len() > SECTOR && dice.permille(200) {
                        let sectors = data.len().div_ceil(SECTOR) as u64;
                        let end = (dice.between(1, sectors) as usize * SECTOR).min(data.len());
                        Change::Write(offset, data[..end].to_vec()).make(&mut log.synced);
                    } else {
                        Change::Write(offset, data).make(&mut log.synced);
                    }
                }
                _ => lost += 1,
            }
        }
        log.current = log.synced.clone();
        // It is never synced, so any of its versions may be there.
        let version = dice.below(mark.len() as u64) as usize;
        *mark = vec![mark.swap_remove(version)];
        inner.forget_files();
        inner.life += 1;
        inner.fuse = None;
        inner.failed = false;
        lost
    }

    fn open(&self) -> Handle {
        Handle { disk: self.clone(), life: self.0.lock().life }
    }
}

impl environment::Disk for Disk {
    fn log(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.open()))
    }

    fn mark(&self) -> io::Result<Box<dyn environment::Rewritable>> {
        let bytes = self.0.lock().mark.last().cloned().unwrap_or_default();
        Ok(Box::new(Mark { handle: self.open(), bytes: Cursor::new(bytes) }))
    }

    fn files(&self) -> Arc<dyn environment::Files> {
        Arc::new(self.open())
    }
}

impl environment::Files for Handle {
    fn create(&self, name: &str) -> io::Result<Box<dyn environment::StoredFile>> {
        let at = self.touch(true, |inner| {
            inner.space(inner.full != Full::No)?;
            if let Some(at) = inner.names[1].get(name).copied() {
                inner.files[at][1].clear();
                return Ok(at);
            }
            inner.files.push(Default::default());
            let at = inner.files.len() - 1;
            inner.names[1].insert(name.to_owned(), at);
            Ok::<_, io::Error>(at)
        })??;
        Ok(Box::new(OpenFile { handle: self.again(), at, place: 0 }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn environment::StoredFile>> {
        let at = self.touch(false, |inner| inner.names[1].get(name).copied())?;
        let at = at.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Box::new(OpenFile { handle: self.again(), at, place: 0 }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.touch(true, |inner| {
            let at = inner.names[1].remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            inner.names[1].insert(to.to_owned(), at);
            Ok(())
        })?
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.touch(false, |inner| inner.names[1].remove(name))?;
        removed.map(|_| ()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.touch(false, |inner| inner.names[1].keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.touch(true, |inner| {
            let [synced, current] = &mut inner.names;
            synced.clone_from(current);
        })
    }
}

/// A snapshot's file, as one life of a process has it open.
struct OpenFile {
    handle: Handle,
    at: usize,
    place: usize,
}

impl Read for OpenFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (at, place) = (self.at, self.place);
        let many = self.handle.touch(false, |inner| {
            let rest = inner.files[at][1].get(place..).unwrap_or_default();
            let many = rest.len().min(buf.len());
            buf[..many].copy_from_slice(&rest[..many]);
            many
        })?;
        self.place += many;
        Ok(many)
    }
}

impl Write for OpenFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let (at, place) = (self.at, self.place);
        self.handle.touch(true, |inner| {
            inner.space(inner.full != Full::No)?;
            Change::Write(place as u64, buf.to_vec()).make(&mut inner.files[at][1]);
            Ok::<_, io::Error>(())
        })??;
        self.place += buf.len();
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for OpenFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let SeekFrom::Start(to) = to else { return Err(io::Error::from(io::ErrorKind::Unsupported)) };
        self.place = to as usize;
        Ok(to)
    }
}

impl environment::StoredFile for OpenFile {
    fn sync(&mut self) -> io::Result<()> {
        let at = self.at;
        self.handle.touch(true, |inner| {
            inner.syncs += 1;
            let [synced, current] = &mut inner.files[at];
            synced.clone_from(current);
        })
    }
}

/// The log's file, as one life of a process has it open.
#[derive(Debug)]
struct Handle {
    disk: Disk,
    life: u64,
}

impl Handle {
    fn again(&self) -> Self {
        Self { disk: self.disk.clone(), life: self.life }
    }

    fn touch<T>(&self, changes: bool, what: impl FnOnce(&mut Inner) -> T) -> io::Result<T> {
        let mut inner = self.disk.0.lock();
        if inner.life != self.life {
            return Err(io::Error::other("the process has died"));
        }
        if changes && let Some(fuse) = &mut inner.fuse {
            if *fuse == 0 {
                inner.failed = true;
            } else {
                *fuse -= 1;
            }
        }
        if inner.failed {
            return Err(io::Error::other("the power has failed"));
        }
        Ok(what(&mut inner))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.touch(false, |inner| inner.log.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.touch(false, |inner| {
            let from = offset as usize;
            let bytes = inner.log.current.get(from..from + out.len());
            bytes.map(|bytes| out.copy_from_slice(bytes)).ok_or_else(|| io::Error::other("beyond the end"))
        })?
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.touch(true, |inner| {
            inner.space(inner.full == Full::ForAll && len > inner.log.current.len() as u64)?;
            let change = Change::Length(len);
            change.make(&mut inner.log.current);
            inner.log.pending.push_back(change);
            Ok(())
        })?
    }

    fn sync_data(&self) -> io::Result<()> {
        self.touch(true, |inner| {
            inner.syncs += 1;
            let File { synced, pending, .. } = &mut inner.log;
            pending.drain(..).for_each(|change| change.make(synced));
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.touch(true, |inner| {
            inner.space(inner.full == Full::ForAll)?;
            let change = Change::Write(offset, data.to_vec());
            change.make(&mut inner.log.current);
            inner.log.pending.push_back(change);
            Ok(())
        })?
    }
}

struct Mark {
    handle: Handle,
    bytes: Cursor<Vec<u8>>,
}

impl Read for Mark {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buf)
    }
}

impl Seek for Mark {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

impl Write for Mark {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.bytes.write(buf)?;
        let version = self.bytes.get_ref().clone();
        self.handle.touch(true, |inner| {
            // The oldest stays: a disk may take its time.
            if inner.mark.len() > 16 {
                inner.mark.remove(1);
            }
            inner.mark.push(version);
        })?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
