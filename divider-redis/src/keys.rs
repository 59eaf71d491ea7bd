//! How a group's keys and channels are named.
//!
//! All names of a group share one hash tag, so that in a Redis Cluster they live on one node and one script can touch
//! them all. The group's text may hold anything, braces and glob characters included; every byte that could mean
//! something to Redis is written as `%XX`, so that two groups can never share a name, and none is a prefix of another's.

use std::fmt::Write;

use divider_core::{Group, SessionId};

/// The names that every script is given as `KEYS`, in this order.
const KEYS: [&str; 10] =
    ["meta", "views", "payloads", "checkpoints", "sessions", "beats", "held", "log", "quarantined", "whys"];

/// The names of one group.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// `{divider:<group>}`, what all names begin with.
    pub(crate) prefix: String,
    pub(crate) keys: Vec<String>,
}

impl Names {
    pub(crate) fn new(group: &Group) -> Self {
        let prefix = prefix(group);
        let keys = KEYS.iter().map(|key| format!("{prefix}:{key}")).collect();
        Self { prefix, keys }
    }

    /// What `HSCAN` of all keys begins with.
    pub(crate) fn views(&self) -> &str {
        &self.keys[1]
    }

    /// Where the messages to a session are published.
    pub(crate) fn session_channel(&self, session: SessionId) -> String {
        format!("{}:s:{session}", self.prefix)
    }

    /// Where it is said that leadership has become free.
    pub(crate) fn leader_channel(&self) -> String {
        format!("{}:l", self.prefix)
    }

    /// Where every batch is published.
    pub(crate) fn group_channel(&self) -> String {
        format!("{}:g", self.prefix)
    }
}

fn prefix(group: &Group) -> String {
    let mut prefix = String::from("{divider:");
    for byte in group.as_str().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'_' | b'.' | b'-' => prefix.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => _ = write!(prefix, "%{byte:02X}"),
        }
    }
    prefix.push('}');
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_can_never_end_its_hash_tag_or_look_like_a_pattern() {
        let of = |group: &str| prefix(&Group::new(group).unwrap());
        assert_eq!(of("/process/me/"), "{divider:/process/me/}");
        assert_eq!(of("a}:meta*[x]?\\é"), "{divider:a%7D%3Ameta%2A%5Bx%5D%3F%5C%C3%A9}");
        assert_ne!(of("a%7D"), of("a}"));
    }
}
