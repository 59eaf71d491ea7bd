//! Opens a log. All of it is read and checked, so that a damaged file is noticed before anything in it counts.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use parking_lot::RwLock;
use redb::{Database, ReadableDatabase, ReadableTable, backends::InMemoryBackend};
use tokio::sync::{oneshot, watch};

use super::{
    cache::Cache,
    file::{Backend, FILE, LogFile, begin_anew, checked, guarded, open_file, unusable},
    mark::{MARK, Mark},
    records::{ENTRIES, FACTS, Identity, seal, unseal, unseal_up_to},
    writer::{Write, Writer},
};
use crate::{
    environment::DataDir,
    error::{DataError, Unreadable},
    protocol::types::Entry,
};

/// A log that nothing writes to yet: its writer has no thread.
pub(super) struct Opened {
    pub(super) identity: Identity,
    pub(super) database: Arc<RwLock<Database>>,
    pub(super) path: PathBuf,
    pub(super) cache: Arc<RwLock<Cache>>,
    pub(super) writes: mpsc::Sender<Write>,
    pub(super) writer: Writer,
    pub(super) written: watch::Receiver<Result<u64, String>>,
}

/// Opens the log in the directory, or one in memory, and says whose it is. `fresh` makes the identity of a new one.
pub(super) fn open(data_dir: &DataDir, fresh: impl FnOnce() -> Identity) -> Result<Opened, DataError> {
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
            checked(existed, || Database::builder().create_with_backend(Backend(backend))).map_err(
                |what| match what {
                    Ok(redb::DatabaseError::Storage(redb::StorageError::Io(error))) => unusable(&path, error),
                    Ok(error) => corrupt(error.to_string()),
                    Err(problem) => corrupt(problem),
                },
            )?
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
        // Whatever it led is over: `log.rs` says why.
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
    Ok(Opened { identity, database, path, cache, writes, writer, written })
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
