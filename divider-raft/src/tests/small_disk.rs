//! A member whose disk is full for a while.

use std::{
    io::{self, Cursor},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use divider_core::{Op, Store, StoreError, Topic, Work};
use divider_support::wait::{PATIENCE, eventually};
use futures_util::StreamExt;
use parking_lot::{Mutex, MutexGuard};
use redb::StorageBackend;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{
    Condition,
    environment::{DataDir, Directory, Disk, Environment, Files, Rewritable, StoredFile, ThisMachine},
    tests::{
        machine::Machine,
        voters::{addresses, voter},
    },
};

#[derive(Clone, Debug)]
pub(crate) struct SmallDisk(Arc<Inner>);

impl Default for SmallDisk {
    fn default() -> Self {
        let files = TempDir::new().unwrap();
        Self(Arc::new(Inner {
            full: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            log: Mutex::default(),
            files,
            asked: watch::Sender::new(0),
            held: Mutex::default(),
        }))
    }
}

#[derive(Debug)]
struct Inner {
    full: AtomicBool,
    refused: AtomicBool,
    log: Mutex<Vec<u8>>,
    files: TempDir,
    /// How many files were to be made so far.
    asked: watch::Sender<u64>,
    /// While this is locked none is made.
    held: Mutex<()>,
}

impl SmallDisk {
    fn fill(&self, full: bool) {
        self.0.full.store(full, Ordering::Relaxed);
    }

    pub(crate) fn data_dir(&self) -> DataDir {
        Machine::with_disk(self.clone()).data_dir()
    }

    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.held.lock()
    }

    /// How many files were to be made so far, and from now on.
    pub(crate) fn asked(&self) -> watch::Receiver<u64> {
        self.0.asked.subscribe()
    }

    fn room(&self) -> io::Result<()> {
        if !self.0.full.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.0.refused.store(true, Ordering::Relaxed);
        Err(io::ErrorKind::StorageFull.into())
    }
}

impl Disk for SmallDisk {
    fn log(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }

    fn mark(&self) -> io::Result<Box<dyn Rewritable>> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    fn files(&self) -> Arc<dyn Files> {
        Arc::new(self.clone())
    }
}

impl SmallDisk {
    fn directory(&self) -> Directory {
        Directory(self.0.files.path().to_owned())
    }
}

impl Files for SmallDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        self.0.asked.send_modify(|asked| *asked += 1);
        drop(self.hold());
        self.room()?;
        self.directory().create(name)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        self.directory().open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.room()?;
        self.directory().rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory().remove(name)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.directory().names()
    }

    fn sync(&self) -> io::Result<()> {
        self.room()
    }
}

impl StorageBackend for SmallDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.log.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.log.lock()[from..from + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.0.log.lock().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        let from = usize::try_from(offset).unwrap();
        self.0.log.lock()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn add(key: &str) -> [Op; 1] {
    [Op::Add(Work::new(key).unwrap())]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_disk_was_full_for_a_moment_is_a_client_meanwhile_and_opened_again() {
    let seeds = addresses(3);
    let disk = SmallDisk::default();
    let build = |at: usize| {
        let builder = voter(at, &seeds);
        let small: Arc<dyn Environment> = Arc::new(Machine::with_disk(disk.clone()));
        let environment = if at == 2 { small } else { Arc::new(ThisMachine) };
        builder.configure(|config| config.environment = environment).build().unwrap()
    };
    let stores: Vec<_> = (0..3).map(build).collect();
    futures_util::future::join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);
    let small = &stores[2];
    small.apply(&add("before")).await.unwrap();
    let owner = async || small.owner_of(&divider_core::Key::new("before").unwrap()).await;
    assert_eq!(owner().await.unwrap(), None);
    let mut hints = small.hints(Topic::Group).await.unwrap();

    disk.fill(true);
    eventually("it stops", async || {
        // Where it leads, nobody knows what becomes of this.
        let _ = stores[0].apply(&add("while it is full")).await;
        matches!(small.condition(), Condition::Stopped(_))
    })
    .await;
    eventually("its calls are answered by the others", async || small.apply(&add("through a client")).await.is_ok())
        .await;
    assert!(small.stats().await.unwrap().registered >= 2);
    assert_eq!(owner().await.unwrap(), None, "and so are its questions");
    let heard = async { while hints.next().await.is_some() {} };
    tokio::time::timeout(PATIENCE, heard).await.expect("what it heard has ended, so that it is read again");

    disk.fill(false);
    eventually("it is a member again", async || small.condition() == Condition::Member).await;
    eventually("it has caught up", async || {
        let (Some(mine), Some(theirs)) = (small.replica(), stores[0].replica()) else { return false };
        mine == theirs
    })
    .await;
    eventually("it answers", async || small.apply(&add("after")).await.is_ok()).await;
    small.close().await;
    assert!(matches!(small.stats().await, Err(StoreError::Closed)));
}

/// A newcomer writes down whose cluster it joins: until then it takes in nothing that Raft says, so it writes nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_whose_disk_was_full_as_it_came_is_taken_in_once_there_is_space() {
    let seeds = addresses(2);
    let disk = SmallDisk::default();
    let build = |at: usize, environment: Arc<dyn Environment>| {
        let builder = voter(at, &seeds).seeds([&seeds[0]]);
        builder.configure(|config| config.environment = environment).build().unwrap()
    };
    let first = build(0, Arc::new(ThisMachine));
    first.open().await.unwrap();
    first.apply(&add("before")).await.unwrap();
    // It is full from the moment on at which its member listens: the first time only.
    let full = disk.clone();
    let binds = Box::new(move || {
        if !full.0.refused.load(Ordering::Relaxed) {
            full.fill(true);
        }
    });
    let late = build(1, Arc::new(Machine { binds, ..Machine::with_disk(disk.clone()) }));
    let opening = tokio::spawn({
        let late = late.clone();
        async move { late.open().await }
    });
    eventually("it has tried to write", async || disk.0.refused.load(Ordering::Relaxed)).await;
    disk.fill(false);
    opening.await.unwrap().expect("whoever waits for it is answered");
    eventually("it is a member", async || late.condition() == Condition::Member).await;
    eventually("it has caught up", async || {
        let (Some(mine), Some(theirs)) = (late.replica(), first.replica()) else { return false };
        mine == theirs
    })
    .await;
}
