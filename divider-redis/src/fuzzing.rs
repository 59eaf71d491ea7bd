//! What must hold of every decoder, whatever it is given. For `tests/fuzz` alone.
//!
//! **Outside of semantic versioning**: anything here may change or go with any release. Only with the Cargo feature
//! `unstable-fuzz`.
//!
//! Each function says whether anything could be decoded. What is written is written by scripts, so nothing is encoded again
//! here; but no more may come out than went in.

use divider_core::{Batch, Hint, Key, Message, Op, SessionId, Term};
use redis::Value;

use crate::{codec, reply};

fn key() -> Key {
    Key::new("key").expect("a valid key")
}

/// Whatever is published.
pub fn hints(bytes: &[u8]) -> bool {
    let batch = codec::hint(bytes, codec::batch, Hint::Batch);
    let message = codec::hint(bytes, codec::message, Hint::Message);
    if let Hint::Batch(Batch { changes, .. }) = &batch {
        assert!(changes.len() < bytes.len());
    }
    if let Hint::Message(Message { notices, .. }) = &message {
        assert!(notices.len() < bytes.len());
    }
    (batch, message) != (Hint::Gap, Hint::Gap)
}

/// What is stored in the fields of a hash, and what the apply script answers.
pub fn rows(bytes: &[u8]) -> bool {
    let session = SessionId(uuid::Uuid::nil());
    let kinds = [
        Op::AlterAffinity { session, number: 1, delta: i64::MIN },
        Op::SetAffinity { session, number: 1, affinity: 5 },
        Op::Assign { term: Term(1), key: key(), session },
    ];
    let ops: Vec<Op> =
        kinds.iter().cycle().take(bytes.first().map_or(0, |len| usize::from(len & 15) / 2)).cloned().collect();
    let outcomes = codec::outcomes(&ops, bytes);
    if let Ok(outcomes) = &outcomes {
        assert_eq!(outcomes.len(), ops.len());
    }
    outcomes.is_ok()
        | codec::view(key(), bytes).is_ok()
        | codec::session_view(session, bytes).is_ok()
        | codec::maybe_session(bytes).is_ok()
        | codec::key(bytes).is_ok()
        | codec::why(bytes).is_ok()
        | codec::beat(bytes).is_ok()
}

/// The answer to a read, from the bytes that the server sends.
pub fn replies(bytes: &[u8]) -> bool {
    let Ok(answer) = redis::parse_redis_value(bytes) else { return false };
    let Value::Array(rows) = answer else {
        let reply = reply::Reply(answer);
        return reply.number().is_ok() | reply.slice().is_ok();
    };
    let most = rows.len();
    let records = reply::records(rows.into_iter().map(reply::Reply));
    if let Ok(records) = &records {
        assert!(records.len() * 5 == most);
    }
    records.is_ok_and(|records| !records.is_empty())
}
