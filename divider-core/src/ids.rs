//! Names and numbers: each is a type of its own, so that a term is never taken for a token.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use triomphe::Arc;
use uuid::Uuid;

use crate::{error::InvalidInput, limits};

/// Checks a text against the rules that all names share: 1 to `limit` bytes, no NUL.
fn checked(what: &'static str, text: &str, limit: usize) -> Result<(), InvalidInput> {
    if text.is_empty() {
        return Err(InvalidInput::Empty { what });
    }
    if text.len() > limit {
        return Err(InvalidInput::TooLong { what, bytes: text.len(), limit });
    }
    match text.bytes().position(|b| b == 0) {
        Some(at) => Err(InvalidInput::Nul { what, at }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        // Without the second count that the standard library's has, which is 8 bytes for each of a million names.
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is: no trimming, no Unicode normalisation.
            ///
            /// # Errors
            /// [`InvalidInput`] where it is empty, too long or contains a NUL.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidInput> {
                checked($what, text.as_ref(), $limit)?;
                Ok(Self(text.as_ref().into()))
            }

            /// Takes bytes, which must be UTF-8.
            ///
            /// # Errors
            /// [`InvalidInput`] where they are not UTF-8, or as [`new`](Self::new).
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidInput> {
                if bytes.len() > $limit {
                    return Err(InvalidInput::TooLong { what: $what, bytes: bytes.len(), limit: $limit });
                }
                let text = std::str::from_utf8(bytes)
                    .map_err(|e| InvalidInput::NotUtf8 { what: $what, valid_up_to: e.valid_up_to() })?;
                Self::new(text)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidInput;
            fn try_from(text: String) -> Result<Self, InvalidInput> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidInput;
            fn try_from(text: &str) -> Result<Self, InvalidInput> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidInput;
            fn from_str(text: &str) -> Result<Self, InvalidInput> {
                Self::new(text)
            }
        }

        // Not by way of a string of its own: a snapshot writes a million of them.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name! {
    /// What is divided: the part of a path that follows the group. 1 to [`MAX_KEY_BYTES`](limits::MAX_KEY_BYTES) bytes
    /// of UTF-8 without NUL, compared byte by byte. Cloning is cheap.
    Key, "key", limits::MAX_KEY_BYTES
}
name! {
    /// A path prefix that sets one division of work apart from all others, such as `/process/me/`. 1 to
    /// [`MAX_GROUP_BYTES`](limits::MAX_GROUP_BYTES) bytes of UTF-8 without NUL.
    Group, "group", limits::MAX_GROUP_BYTES
}
name! {
    /// The name that a node goes by in logs and answers. Two live processes with one name are two sessions, and never
    /// both act on a key.
    NodeId, "node", limits::MAX_NODE_BYTES
}

/// One incarnation of a node: made anew at every join, so that nothing an earlier incarnation left behind can speak for
/// a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Uuid);

impl SessionId {
    /// A new one, which nobody has used before.
    pub fn fresh() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_simple().fmt(f)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Fencing token of one ownership. Rises strictly from grant to grant in a group, so also per key; never reused.
    Token
}
number! {
    /// Number of a leadership. Every op of a leader carries it, and the ledger refuses an old one.
    Term
}
number! {
    /// Number of a group's change. Rises by exactly one with every batch that changed anything.
    Revision
}
number! {
    /// How often a session, or a leadership, has been renewed.
    Beat
}

impl Token {
    /// Higher than every token that is ever issued, and exact in every backend's number type.
    pub const ABOVE_ALL: Token = Token(1 << 53);
}
