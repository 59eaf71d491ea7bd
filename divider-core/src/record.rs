//! The durable record of a key, and what a user says of it when declaring work.

use std::{fmt, ops::Deref, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    error::InvalidInput,
    ids::{Key, SessionId, Token},
    limits,
    op::{Finding, Verdict},
};

/// Bytes that belong to the user. Cloning is cheap; `Debug` prints only the length, since payloads may be secret.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
// `None` for no bytes, so that the common empty blob costs no allocation; and one word, since there are two of it in
// each of a million records.
pub struct Blob(Option<Arc<Box<[u8]>>>);

impl Blob {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |bytes| bytes)
    }
}

impl Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl<T: Into<Box<[u8]>>> From<T> for Blob {
    fn from(bytes: T) -> Self {
        Self(Some(bytes.into()).filter(|bytes| !bytes.is_empty()).map(Arc::new))
    }
}

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> serde::de::Visitor<'de> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob::from(bytes))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Blob, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(Blob::from(bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Work as a user declares it: a key and what goes with it.
///
/// ```
/// # use divider_core as divider;
/// use divider::Work;
/// let work = Work::new("tenant-17")?.weight(3).priority(10).payload(*b"hello");
/// # Ok::<(), divider::InvalidInput>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// The key.
    pub key: Key,
    /// How much of a node's affinity it takes: 1 to [`MAX_WEIGHT`](limits::MAX_WEIGHT), default 1.
    pub weight: u32,
    /// Higher goes first where not all work has room. Default 0.
    pub priority: i32,
    /// Not to be started before this time, in milliseconds since the Unix epoch, read on the leader's wall clock. 0
    /// means at once.
    pub not_before_ms: u64,
    /// Handed to whoever starts the key. Up to [`MAX_PAYLOAD_BYTES`](limits::MAX_PAYLOAD_BYTES).
    pub payload: Blob,
    /// What the declaration does where the key is there already. Default [`Declaration::Again`].
    pub how: Declaration,
}

/// What declaring work does where the key is there already. [`Work::new`] chooses [`Again`](Self::Again), the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Declaration {
    /// The work runs after this, whatever the key is doing: an owner that is about to complete it completes what it was
    /// given before. A key that was set aside is free again.
    #[default]
    Again,
    /// Nothing happens to a key that is there. One that is being removed is as good as gone: it runs again after that.
    Once,
    /// As a source does it, which says the same again and again: only a changed payload, or a removal that is under way,
    /// makes it run again.
    Declare,
    /// As [`Declare`](Self::Declare), where the key is there; otherwise nothing happens.
    Refresh,
}

impl Work {
    /// Work of weight 1 and priority 0, without payload, due at once, that is declared as [`Declaration::Again`].
    ///
    /// # Errors
    /// [`InvalidInput`] where the key is outside of its limits.
    pub fn new(key: impl AsRef<str>) -> Result<Self, InvalidInput> {
        Ok(Self::from(Key::new(key)?))
    }

    /// Sets the weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the earliest time of a start. Times before 1970 mean at once.
    #[must_use]
    pub fn not_before(mut self, time: SystemTime) -> Self {
        self.not_before_ms = crate::clock::unix_ms(time);
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: impl Into<Blob>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Sets what happens where the key is there already.
    #[must_use]
    pub fn how(mut self, how: Declaration) -> Self {
        self.how = how;
        self
    }

    /// Checks every limit.
    ///
    /// # Errors
    /// [`InvalidInput`] that names the first limit that is broken.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        range("weight", self.weight.into(), 1, limits::MAX_WEIGHT.into())?;
        range("not_before_ms", self.not_before_ms.into(), 0, limits::MAX_NOT_BEFORE_MS.into())?;
        size("payload", self.payload.len(), limits::MAX_PAYLOAD_BYTES)
    }
}

impl From<Key> for Work {
    fn from(key: Key) -> Self {
        Self { key, weight: 1, priority: 0, not_before_ms: 0, payload: Blob::default(), how: Declaration::Again }
    }
}

/// Checks that `value` is between `min` and `max`, both included.
pub(crate) fn range(what: &'static str, value: i128, min: i128, max: i128) -> Result<(), InvalidInput> {
    if value < min || value > max {
        return Err(InvalidInput::OutOfRange { what, value, min, max });
    }
    Ok(())
}

/// Checks a length in bytes.
pub(crate) fn size(what: &'static str, bytes: usize, limit: usize) -> Result<(), InvalidInput> {
    if bytes > limit {
        return Err(InvalidInput::TooLong { what, bytes, limit });
    }
    Ok(())
}

/// Why a key is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StopReason {
    /// It goes to another node: for balance, or because this node gave it up.
    Rebalanced,
    /// The work is no longer wanted at all.
    Removed,
    /// This node is draining.
    Flushed,
    /// The session that held it is over; another node may be running it already. Stop at once and write nothing more.
    Lost,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rebalanced => "Rebalanced",
            Self::Removed => "Removed",
            Self::Flushed => "Flushed",
            Self::Lost => "Lost",
        })
    }
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// Waits for an owner.
    Pending,
    /// A session owns it.
    Assigned {
        /// The owner.
        session: SessionId,
        /// The fencing token of this ownership.
        token: Token,
    },
    /// A session owns it and has been asked to stop.
    Stopping {
        /// The owner.
        session: SessionId,
        /// The fencing token of this ownership.
        token: Token,
        /// [`Rebalanced`](StopReason::Rebalanced) or [`Removed`](StopReason::Removed); no other is ever stored.
        reason: StopReason,
    },
    /// Set aside; waits for [`retry`](crate::Divider::retry), or for being declared again.
    Quarantined(Aside),
}

/// On what evidence a key was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Aside {
    /// Its owners kept dying, and nothing else explains that.
    Deaths,
    /// Its owner said that the work cannot succeed.
    Failed,
}

impl State {
    /// Owner and token, where there is an owner.
    #[inline]
    pub fn owner(&self) -> Option<(SessionId, Token)> {
        match *self {
            Self::Assigned { session, token } | Self::Stopping { session, token, .. } => Some((session, token)),
            Self::Pending | Self::Quarantined(_) => None,
        }
    }
}

/// Everything that is kept of a key, except its two blobs: what the leader and the followers of a group need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// The key.
    pub key: Key,
    /// See [`Work::weight`].
    pub weight: u32,
    /// See [`Work::priority`].
    pub priority: i32,
    /// See [`Work::not_before_ms`].
    pub not_before_ms: u64,
    /// Not to be started before ledger time has come to this, in milliseconds: a pause after a failure.
    pub retry_at_ms: u64,
    /// Raised when the work is declared again, so that a completion of what was declared before does not end it. From 1.
    pub generation: u32,
    /// Counts the declarations of new keys: lower was declared earlier.
    pub since: u64,
    /// How often it has been granted and started.
    pub attempts: u32,
    /// How often the work has failed in a row, as its owners said.
    pub failures: u32,
    /// What is held against it.
    pub deaths: Deaths,
    /// The session that gave it up last; it goes elsewhere if anywhere else takes it.
    pub avoid: Option<SessionId>,
    /// Where it stands. An owner whose session has ended owns nothing: the key is then as good as pending.
    pub state: State,
}

/// What the deaths of its owners say about a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deaths {
    /// How many owners in a row died soon after the grant.
    pub count: u32,
    /// How many in a row died with this key as the only suspect aboard.
    pub alone: u32,
    /// The last ownership that was counted.
    pub token: Token,
}

impl Deaths {
    /// What is held against the key after an ownership has ended with its session.
    #[must_use]
    pub fn after(self, verdict: Verdict, token: Token) -> Self {
        let Self { count, alone, .. } = self;
        let finding = verdict.on(token, count);
        let count = count.saturating_add(1);
        match finding {
            Finding::Nothing => self,
            Finding::Survived => Self::default(),
            Finding::Died => Self { count, alone, token },
            Finding::DiedAlone => Self { count, alone: alone.saturating_add(1), token },
        }
    }
}

/// Everything that is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// All but the blobs.
    pub view: KeyView,
    /// What went wrong last, as an owner said.
    pub why: Text,
    /// See [`Work::payload`].
    pub payload: Blob,
    /// What the last owner wanted the next one to know.
    pub checkpoint: Blob,
}

impl Record {
    /// The record of newly declared work; `since` counts the declarations.
    pub fn new(work: Work, since: u64) -> Self {
        let Work { key, weight, priority, not_before_ms, payload, how: _ } = work;
        let view = KeyView {
            key,
            weight,
            priority,
            not_before_ms,
            retry_at_ms: 0,
            generation: 1,
            since,
            attempts: 0,
            failures: 0,
            deaths: Deaths::default(),
            avoid: None,
            state: State::Pending,
        };
        Self { view, why: Text::default(), payload, checkpoint: Blob::default() }
    }
}

/// A short text for people: what went wrong. Cut at [`MAX_WHY_BYTES`](limits::MAX_WHY_BYTES), where a character ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Text(Option<Arc<str>>);

impl Text {
    /// The text, cut where it is too long, and without what not every store can keep.
    pub fn new(text: &str) -> Self {
        let clean: String = text.chars().filter(|c| *c != '\0').collect();
        let end = clean.floor_char_boundary(limits::MAX_WHY_BYTES);
        Self(Some(&clean[..end]).filter(|text| !text.is_empty()).map(Arc::from))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Deref for Text {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Serialize for Text {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}
