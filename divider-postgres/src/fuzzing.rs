//! What must hold of every decoder, whatever it is given. For `tests/fuzz` alone.
//!
//! **Outside of semantic versioning**: anything here may change or go with any release. Only with the Cargo feature
//! `unstable-fuzz`.
//!
//! Each function says whether anything could be decoded. What is written is written by the database, so nothing is encoded
//! again here; but no more may come out than went in.

use crate::codec::{self, HoldingRow};

/// Changes and sessions as the tables hold them, and the rows of a scan.
pub fn rows(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let batch = codec::batch(7, text);
    if let Ok(batch) = &batch {
        assert!(batch.changes.len() < text.len());
    }
    let views = codec::views(Some(text));
    let sessions = codec::sessions(Some(text));
    batch.is_ok() | views.is_ok() | sessions.is_ok()
}

/// Messages to a session.
pub fn notices(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let notices = codec::notices(text);
    if let Ok(notices) = &notices {
        assert!(notices.len() < text.len());
    }
    notices.is_ok()
}

/// The answers to a batch, and what a session holds.
pub fn columns(bytes: &[u8]) -> bool {
    let numbers: Vec<i64> =
        bytes.chunks_exact(8).map(|n| i64::from_le_bytes(n.try_into().unwrap_or_default())).collect();
    let codes: Vec<i16> = numbers.iter().map(|n| (n & 0x1f) as i16).collect();
    let values: Vec<Option<i64>> = numbers.iter().map(|n| (n & 0x20 != 0).then_some(n >> 6)).collect();
    let outcomes = codec::outcomes(&codes, &values, codes.len());
    if let Ok(outcomes) = &outcomes {
        assert_eq!(outcomes.len(), codes.len());
    }
    let [token, attempts, generation, failures, weight, rest, ..] = numbers[..] else { return outcomes.is_ok() };
    let holding = codec::holding(HoldingRow {
        key: String::from_utf8_lossy(&bytes[48..]).into_owned(),
        token,
        attempts,
        generation,
        failures,
        weight,
        priority: rest as i32,
        payload: bytes.to_vec(),
        checkpoint: Vec::new(),
        stopping: (rest >> 32) as i16,
    });
    outcomes.is_ok() | holding.is_ok()
}
