//! The tiny file beside the log.
//!
//! # Why there is a second file
//! After a crash redb goes back to the commit before the last, if the last one is not whole: it was torn, and nobody was
//! told of it. But a commit that was acknowledged, and of which a bit was flipped later, looks just the same. So the
//! number of the last commit is also written beside the log once it is on disk. It is not waited for, since it is only a
//! guard: where it is missing or unreadable nothing is lost but the guard; where it is ahead of the log the log has lost
//! what was acknowledged, and is refused.

use std::{
    fs::OpenOptions,
    io::{self, SeekFrom},
    path::Path,
};

use super::records::{seal, unseal};
use crate::environment::Rewritable;

pub(super) const MARK: &str = "log.mark";

/// The file with the number of the last commit.
pub(super) struct Mark {
    file: Box<dyn Rewritable>,
    pub(super) last: u64,
}

impl Mark {
    pub(super) fn file(path: &Path) -> io::Result<Self> {
        Self::open(Box::new(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?))
    }

    pub(super) fn open(mut file: Box<dyn Rewritable>) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self { file, last: Self::read(&bytes) })
    }

    pub(super) fn read(bytes: &[u8]) -> u64 {
        unseal(b"mark", bytes).map_or(0, u64::from_le_bytes)
    }

    pub(super) fn write(&mut self, commit: u64) -> io::Result<()> {
        // Always of the same length, so that a shorter number leaves nothing of a longer one behind.
        let bytes = seal(b"mark", &commit.to_le_bytes())?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)
    }
}
