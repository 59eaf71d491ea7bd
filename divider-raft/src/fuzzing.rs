//! What must hold of every decoder, whatever it is given. For `tests/fuzz` alone.
//!
//! **Outside of semantic versioning**: anything here may change or go with any release. Only with the Cargo feature
//! `unstable-fuzz`.
//!
//! Each function takes the bytes as they are and as the inside of what a checksum protects, since a fuzzer never guesses a
//! checksum. It says whether anything could be decoded.

use divider_core::{Hint, Ledger};
use futures_util::FutureExt as _;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    consensus::log::records::{Identity, Stored, seal, unseal},
    format::{Formats, NEWEST},
    net::wire::{self, Frame},
    protocol::{
        command::{Command, Reply},
        messages::{Answer, Hello, Request, Welcome},
        snapshot::{SnapshotContent, decode as decode_snapshot},
        types::{Entry, LogId, Vote},
    },
};

const WRITES: &str = "what was decoded can be encoded";
const READS: &str = "what was encoded can be decoded";

/// What was decoded and goes out comes in as the same.
fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(value) = wire::decode::<T>(bytes) else { return false };
    let encoded = wire::encode(&value).expect(WRITES);
    let value: T = wire::decode(&encoded).expect(READS);
    assert_eq!(wire::encode(&value).expect(WRITES), encoded);
    true
}

/// The same with another bit in each input.
fn flipped(mut bytes: Vec<u8>) -> Vec<u8> {
    let bit = xxh3_64(&bytes) as usize % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// Frames, one after the other, as a connection brings them.
pub fn frames(mut bytes: &[u8]) -> bool {
    let (mut buffer, mut any) = (Vec::new(), false);
    // A slice never lets anybody wait.
    while let Some(Ok(())) = wire::read_frame(&mut bytes, &mut buffer).now_or_never() {
        let Ok(frame) = Frame::from_bytes(&buffer) else { continue };
        let encoded = frame.to_bytes().expect(WRITES);
        assert_eq!(Frame::from_bytes(&encoded[4..]).expect(READS), frame);
        any = true;
    }
    any
}

/// Both sides of a handshake.
pub fn handshakes(bytes: &[u8]) -> bool {
    fn greeted<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(mut bytes: &[u8]) -> bool {
        let mine = Formats::of_client(NEWEST).supported();
        let Some(Ok(greeting)) = wire::greeted::<T>(&mut bytes, mine).now_or_never() else { return false };
        let mut said = Vec::new();
        wire::greet(&mut said, mine, &greeting).now_or_never().expect("nothing waits").expect(WRITES);
        let heard = wire::greeted::<T>(&mut &said[..], mine).now_or_never().expect("nothing waits");
        assert_eq!(heard.expect(READS), greeting);
        true
    }
    greeted::<Hello>(bytes) | greeted::<Welcome>(bytes) | again::<Hello>(bytes) | again::<Welcome>(bytes)
}

/// What frames carry: requests, answers, and hints.
pub fn messages(bytes: &[u8]) -> bool {
    again::<Request>(bytes) | again::<Answer>(bytes) | again::<Hint>(bytes)
}

/// What is in the log's file.
pub fn records(bytes: &[u8]) -> bool {
    fn sealed<T: Stored>(key: &[u8], bytes: &[u8]) -> bool {
        let as_it_is = unseal::<T>(key, bytes).is_ok();
        let Ok(value) = wire::decode::<T>(bytes) else { return as_it_is };
        let value = seal(key, &value).expect(WRITES);
        let read = unseal::<T>(key, &value).expect(READS);
        assert_eq!(seal(key, &read).expect(WRITES), value);
        assert!(unseal::<T>(b"another", &value).is_err(), "a value under a key that is not its own");
        assert!(unseal::<T>(key, &flipped(value)).is_err(), "a value with a flipped bit");
        true
    }
    sealed::<Entry>(&7_u64.to_be_bytes(), bytes)
        | sealed::<Vote>(b"vote", bytes)
        | sealed::<LogId>(b"purged", bytes)
        | sealed::<u64>(b"commit", bytes)
        | sealed::<Identity>(b"identity", bytes)
        | sealed::<[u8; 8]>(b"mark", bytes)
        | again::<Command>(bytes)
        | again::<Reply>(bytes)
        | again::<Uuid>(bytes)
}

/// Snapshots.
pub fn snapshots(bytes: &[u8]) -> bool {
    let as_it_is = decode_snapshot(bytes);
    let mut inside = SnapshotContent::<Ledger> { format: NEWEST, ..SnapshotContent::default() }.encode().expect(WRITES);
    inside.truncate(8);
    inside.extend(bytes);
    inside.extend(xxh3_64(&inside).to_le_bytes());
    let mut any = false;
    for content in [as_it_is, decode_snapshot(&inside)].into_iter().flatten() {
        let encoded = content.encode().expect(WRITES);
        assert!(decode_snapshot(&encoded).expect(READS) == content, "a snapshot is read as it was written");
        assert!(decode_snapshot(&flipped(encoded)).is_err(), "a snapshot with a flipped bit");
        any = true;
    }
    any
}
