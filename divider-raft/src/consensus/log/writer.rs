//! The thread that writes: what has gathered while it committed goes into the next commit together.

use std::{
    io,
    sync::{Arc, mpsc},
};

use openraft::storage::LogFlushed;
use parking_lot::RwLock;
use redb::{Database, Durability};
use tokio::sync::{oneshot, watch};

use super::{
    cache::Cache,
    file::{LogFile, guarded},
    mark::Mark,
    records::{ENTRIES, FACTS, seal},
};
use crate::{environment::LogWriter, protocol::types::Types};

/// How many milliseconds each commit takes longer than it would, in all tests of this process.
#[cfg(test)]
pub(crate) static STALL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Most bytes in one commit, unless a single write is larger.
const COMMIT_BYTES: usize = 16 << 20;

pub(super) enum Write {
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

/// The writing thread.
pub(super) struct Writer {
    pub(super) writes: mpsc::Receiver<Write>,
    pub(super) database: Arc<RwLock<Database>>,
    pub(super) file: LogFile,
    pub(super) cache: Arc<RwLock<Cache>>,
    /// Number of the last commit.
    pub(super) commit: u64,
    pub(super) mark: Option<Mark>,
    pub(super) wrote: watch::Sender<Result<u64, String>>,
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

    pub(super) fn write(&mut self, group: Vec<Write>) {
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
