//! What can go wrong with a data directory or a configuration, in words that say what to do.

use std::{io, path::PathBuf};

use divider_core::StoreError;

/// Why a data directory cannot be used. Nothing in it has been changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Another process, or another store of this one, has it open.
    #[error(
        "the data directory {} is in use by another process; give each member a directory of its own",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// What is on the disk is not what was written.
    #[error(
        "{} is damaged: {problem}. Do not go on with it: move the directory away and let this member join again as a \
         new one, with an empty directory, after the others have removed the old one",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A newer version of the program has written it.
    #[error(
        "{} is in format {found}, which a newer version has written; this one reads formats up to {known}. Nothing is \
         damaged: start the newer version",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The number of its format.
        found: u8,
        /// The newest format that can be read here.
        known: u8,
    },
    /// It belongs to somebody else.
    #[error(
        "the data directory {} belongs to {theirs}, not to {ours}; use the directory of this member, or an empty one",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who wanted to use it.
        ours: String,
    },
    /// What is in it is not what the other members have, although it applied the same entries.
    #[error(
        "{} holds a replica that was found to differ from the others' at entry {index}, although it applied the same \
         entries, so it is not used: move the directory away, remove the member, and let it join again with an empty one; \
         and please report this",
        path.display()
    )]
    Differs {
        /// The directory.
        path: PathBuf,
        /// The entry at which they were compared.
        index: u64,
    },
    /// A recovery was cut short after it had moved the survivor's directory away.
    #[error(
        "{} is not there, because its recovery was cut short: do it again (`RaftStore::recover`)",
        path.display()
    )]
    Unrecovered {
        /// The directory.
        path: PathBuf,
    },
    /// The disk said no.
    #[error("{} cannot be used: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DataError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}

/// Why bytes say nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// They are not what was written.
    #[error("{0}")]
    Damaged(String),
    /// A newer version wrote them.
    #[error("it is in format {found}, and this version reads formats up to {known}")]
    Newer { found: u8, known: u8 },
}

impl Unreadable {
    pub(crate) fn at(self, path: impl Into<PathBuf>) -> DataError {
        let path = path.into();
        match self {
            Self::Damaged(problem) => DataError::Corrupt { path, problem },
            Self::Newer { found, known } => DataError::Newer { path, found, known },
        }
    }
}

impl<T: Into<String>> From<T> for Unreadable {
    fn from(problem: T) -> Self {
        Self::Damaged(problem.into())
    }
}

impl From<DataError> for StoreError {
    fn from(error: DataError) -> Self {
        match &error {
            // It heals without anybody changing the configuration.
            DataError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Self::unavailable(error),
            _ => Self::Misconfigured(error.to_string()),
        }
    }
}

/// Two programs whose formats have nothing in common: one of them is too old to be with the other. Nothing was exchanged.
///
/// It is the `source` of the [`StoreError`] of a call that failed because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is too old: it reads formats up to {reads}, and {needs} is needed; replace it by a newer one",
    if *here { "this program" } else { "the program on the other side" }
)]
#[non_exhaustive]
pub struct TooOld {
    /// The lowest format that would do.
    pub needs: u16,
    /// The highest format that the older program reads.
    pub reads: u16,
    /// Whether the older one is this program.
    pub here: bool,
}

impl TooOld {
    /// The one behind an error of a connection, if it is one.
    pub(crate) fn within(error: &io::Error) -> Option<Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).copied()
    }
}
