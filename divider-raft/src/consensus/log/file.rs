//! The file of the log: opening and making it, and how large it may become.

use std::{
    fs::{self, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{Database, StorageBackend, backends::FileBackend};

use super::{
    mark::{MARK, Mark},
    recovering::objection,
};
use crate::error::DataError;

pub(super) const FILE: &str = "log.redb";
/// What redb may keep of the file in memory: little is ever read again.
const PAGES_BYTES: usize = 4 << 20;
/// The first bytes of a file before redb has made it whole: what stands there otherwise is written last.
const UNBORN: [u8; 9] = [0; 9];
/// redb never makes its file smaller by itself. That is done where the file is larger than this,
const COMPACT_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 32 << 20 };
/// and so many times as large as the entries in it: it takes as long as it takes to write what is left, so it costs little
/// where little is left.
const COMPACT_RATIO: u64 = 4;

/// Runs what redb does; it panics on some damaged files, which is as good as an error.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Err(redb::Error::Io(error))) => Err(error),
        Ok(result) => result.map_err(io::Error::other),
        Err(_) => Err(io::Error::other("its structure is broken")),
    }
}

/// A disk that is full has damaged nothing.
pub(super) fn unusable(path: &Path, error: io::Error) -> DataError {
    match error.kind() {
        io::ErrorKind::StorageFull => DataError::io(path, error),
        _ => DataError::Corrupt { path: path.to_owned(), problem: error.to_string() },
    }
}

pub(super) fn open_file(directory: &Path, path: &Path) -> Result<Database, DataError> {
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
pub(super) fn begin_anew(file: &mut dyn StorageBackend) -> io::Result<()> {
    let mut first = UNBORN;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(UNBORN.len());
    file.read(0, &mut first[..len])?;
    if len > 0 && first == UNBORN { file.set_len(0) } else { Ok(()) }
}

/// Opens a database, and looks whether it is whole. An error is what redb says, or what is wrong.
pub(super) fn checked(
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
pub(super) struct Backend(pub(super) Box<dyn StorageBackend>);

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

/// Whose length is looked at.
pub(super) enum LogFile {
    Path(PathBuf),
    Backend(Box<dyn StorageBackend>),
    Memory,
}

impl LogFile {
    /// Whether it is worth while to make it smaller, where so many bytes of entries are in it.
    pub(super) fn is_too_large(&self, entries: u64) -> bool {
        let length = match self {
            Self::Path(path) => fs::metadata(path).map_or(0, |metadata| metadata.len()),
            Self::Backend(backend) => backend.len().unwrap_or(0),
            Self::Memory => 0,
        };
        length > COMPACT_BYTES.max(entries * COMPACT_RATIO)
    }
}
