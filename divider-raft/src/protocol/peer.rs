//! A member as the others know it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A member as the others know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Drawn at random when the data directory was made, so that a wiped member can never pass for the one it was.
    pub id: u64,
    /// The name in its configuration, which its certificate carries.
    pub name: String,
    /// Where it listens: `host:port`.
    pub address: String,
    /// Whether it is to vote as soon as it has caught up and a voter is wanted.
    pub wants_vote: bool,
    /// The newest format that its program reads.
    pub reads: u8,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:016x} at {})", self.name, self.id, self.address)
    }
}
