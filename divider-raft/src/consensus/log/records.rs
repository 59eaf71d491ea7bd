//! What is in the log's tables: each value with a checksum over its key and its bytes, and the format that it is in.

use std::io;

use openraft::EntryPayload;
use redb::TableDefinition;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    error::Unreadable,
    format::{NEWEST, OLDEST},
    protocol::types::{Entry, LogId, Vote},
};

pub(super) const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
pub(super) const FACTS: TableDefinition<&str, &[u8]> = TableDefinition::new("facts");

/// Who a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    pub(crate) name: String,
    /// The name of the cluster in the configuration.
    pub(crate) cluster: String,
    /// The cluster itself, once this member has founded or joined it.
    pub(crate) cluster_id: Option<Uuid>,
}

/// What is put into the tables, and in which format at least.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// The oldest format that has a form for this value.
    fn format(&self) -> u8 {
        OLDEST
    }
}

impl Stored for Identity {}
impl Stored for Vote {}
impl Stored for LogId {}
impl Stored for u64 {}
impl Stored for [u8; 8] {}

impl Stored for Entry {
    fn format(&self) -> u8 {
        match &self.payload {
            EntryPayload::Normal(command) => command.0.format(),
            _ => OLDEST,
        }
    }
}

/// Puts a checksum over the key and the bytes before them.
pub(crate) fn seal<T: Stored>(key: &[u8], value: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 8];
    bytes.push(value.format());
    let mut bytes = postcard::to_extend(value, bytes).map_err(io::Error::other)?;
    let sum = checksum(key, &bytes[8..]);
    bytes[..8].copy_from_slice(&sum);
    Ok(bytes)
}

fn checksum(key: &[u8], bytes: &[u8]) -> [u8; 8] {
    (xxh3_64(bytes) ^ xxh3_64(key).rotate_left(1)).to_le_bytes()
}

pub(crate) fn unseal<T: Stored>(key: &[u8], bytes: &[u8]) -> Result<T, Unreadable> {
    unseal_up_to(NEWEST, key, bytes)
}

/// As [`unseal`], by a program that reads no newer format than `known`.
pub(super) fn unseal_up_to<T: Stored>(known: u8, key: &[u8], bytes: &[u8]) -> Result<T, Unreadable> {
    let (sum, rest) = bytes.split_first_chunk::<8>().ok_or("a value is cut short")?;
    if *sum != checksum(key, rest) {
        return Err("a checksum does not match".into());
    }
    match rest.split_first() {
        Some((format, body)) if (OLDEST..=known).contains(format) => {
            postcard::from_bytes(body).map_err(|error| error.to_string().into())
        }
        Some((newer, _)) => Err(Unreadable::Newer { found: *newer, known }),
        None => Err("a value is cut short".into()),
    }
}
