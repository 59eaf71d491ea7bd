//! What can go wrong, one enum per family of operations.

use std::{sync::Arc, time::Duration};

use crate::ids::{Key, Token};

/// An input that is outside of its limits. Nothing has been changed anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInput {
    /// The text is empty.
    #[error("the {what} is empty; it needs at least 1 byte")]
    Empty {
        /// Which input.
        what: &'static str,
    },
    /// The text or the bytes are too long.
    #[error("the {what} has {bytes} bytes; the limit is {limit}")]
    TooLong {
        /// Which input.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The text contains a NUL, which not every store can keep.
    #[error("the {what} contains a NUL at byte {at}; NUL is not allowed")]
    Nul {
        /// Which input.
        what: &'static str,
        /// Where the first NUL stands.
        at: usize,
    },
    /// The bytes are not UTF-8.
    #[error("the {what} is not UTF-8 (valid up to byte {valid_up_to}); encode binary names, for example as hex")]
    NotUtf8 {
        /// Which input.
        what: &'static str,
        /// Length of the valid prefix.
        valid_up_to: usize,
    },
    /// The number is outside of its range.
    #[error("{what} would be {value}; it must be between {min} and {max}")]
    OutOfRange {
        /// Which input.
        what: &'static str,
        /// The value that was asked for.
        value: i128,
        /// The lowest allowed.
        min: i128,
        /// The highest allowed.
        max: i128,
    },
    /// One batch names a key twice.
    #[error("the key {key} is named twice in one call; name each key once")]
    Twice {
        /// The key.
        key: Key,
    },
}

/// A configuration that contradicts itself or a limit. Nothing has been started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration field `{field}`: {problem}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field to change.
    pub field: &'static str,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl ConfigError {
    /// What is wrong with a field.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// A failed call to a store. Unless a variant says otherwise the effect of the call is *unknown*: it may have been
/// applied, may be applied later, or never.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be reached or broke off. Unknown effect; try again.
    #[error("the store is unavailable: {message}")]
    Unavailable {
        /// What happened, without secrets.
        message: String,
        /// The library error behind it.
        #[source]
        source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    },
    /// No answer within the time limit. Unknown effect; try again.
    #[error("the store did not answer within {limit:?}")]
    Timeout {
        /// The limit that passed.
        limit: Duration,
    },
    /// The session has ended (expired, ended by its node, or forgotten in a new lineage). No effect.
    #[error("the session has ended")]
    SessionEnded,
    /// The store cannot be used as it is set up. No effect; trying again without a change does not help.
    #[error("the store is not set up for Divider: {0}")]
    Misconfigured(String),
    /// The store answered something that this version does not understand. Unknown effect.
    #[error("the store's answer cannot be read: {0}")]
    Corrupt(String),
    /// The group, or on Raft the cluster that this process is to be a member of, is written in a format that this program does
    /// not read. No effect; a newer version of the program is needed.
    #[error(
        "what is stored needs a program that reads format {needs}; this one reads up to {reads}: deploy a newer version"
    )]
    TooOld {
        /// The format that is written.
        needs: u16,
        /// The newest that this program reads.
        reads: u16,
    },
    /// The store handle has been closed. No effect.
    #[error("the store handle is closed")]
    Closed,
}

impl StoreError {
    /// An [`Unavailable`](Self::Unavailable) that keeps the error behind it.
    pub fn unavailable<E: std::error::Error + Send + Sync + 'static>(source: E) -> Self {
        Self::Unavailable { message: source.to_string(), source: Some(Arc::new(source)) }
    }

    /// Whether the same call may succeed later without anybody changing the set-up. Says nothing of the effect of this one:
    /// for that, see [`has_no_effect`](Self::has_no_effect).
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. })
    }

    /// Whether it is certain that the call has changed nothing. Otherwise its effect is unknown: it may have happened, it
    /// may still happen later, or never. Says nothing of earlier tries of the same call.
    pub fn has_no_effect(&self) -> bool {
        matches!(self, Self::SessionEnded | Self::Misconfigured(_) | Self::TooOld { .. } | Self::Closed)
    }
}

/// A failed call of the [`Divider`](crate::Divider) trait.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input is outside of its limits. Nothing has changed.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// `start` has not been called. Nothing has changed.
    #[error("the node has not been started; call start() first")]
    NotStarted,
    /// The configuration contradicts itself or a limit. Nothing has been started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Somebody reads this node's starts or stops already. Nothing has changed.
    #[error("this node's starts or stops have a reader already; two would confirm each other's keys")]
    AlreadyRead,
    /// The node has been cancelled before the call. Nothing has changed. One that was under way is answered with
    /// [`StoreError::Unavailable`]: its effect is unknown.
    #[error("the node has been cancelled; build a new one to join again")]
    Cancelled,
    /// A part of the node has died: a task of it or the reader of its events has panicked, or the runtime that it ran on has
    /// ended. The node has ended with it. Nothing has changed.
    #[error("the node has ended, because a part of it died ({part}); build a new one to join again")]
    Died {
        /// Which part, for people.
        part: String,
    },
    /// This node does not hold the key: it never did, or the key has ended or moved on since. For
    /// [`retry`](crate::Divider::retry): the key is not set aside. Nothing has changed.
    #[error("this node does not hold the key {key}")]
    UnknownKey {
        /// The key.
        key: Key,
    },
    /// The token is not the one of the key's current assignment on this node. Nothing has changed.
    #[error("token {given} is not the current one of the key {key}")]
    StaleToken {
        /// The key.
        key: Key,
        /// The token of the call.
        given: Token,
    },
    /// Nobody has asked to stop the key. It is still yours.
    #[error("the key {key} has not been asked to stop; it is still yours")]
    NotStopping {
        /// The key.
        key: Key,
    },
    /// The key's ownership ended with the session before the call took effect; a `Stop` with reason `Lost` tells so in
    /// the stream.
    #[error("the session that held the key {key} is lost")]
    Lost {
        /// The key.
        key: Key,
    },
    /// The node has no session at the moment: it lost the last one, and is joining again. Nothing has changed.
    #[error("the node has no session at the moment and is joining again; try again shortly")]
    NoSession,
    /// The store failed; what that says of the effect stands at the variant.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// Whether the same call may succeed later without anybody changing anything. Says nothing of the effect of this one.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoSession => true,
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }
}
