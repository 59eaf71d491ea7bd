//! What the scripts answer and publish.

use divider_core::{
    Aside, Batch, Beat, Blame, Blob, Change, Deaths, GroupView, Hint, Holding, Key, KeyView, Message, NodeId, Notice,
    Op, Outcome, Record, Refusal, Revision, SessionId, SessionView, State, StopReason, StoreError, Term, Text, Token,
    Verdict,
};
use rmp::decode::{read_array_len, read_int, read_str_len};
use uuid::Uuid;

/// The scripts send 64 KiB and a few bytes at most (`LARGEST_HINT` in ledger.lua). What is longer is not ours.
const LARGEST_HINT: usize = 65 * 1024;

type Read<T> = Result<T, StoreError>;

/// What the stored or published bytes should have been.
pub(crate) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("expected {what}"))
}

/// Reads values one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn int<T: rmp_num::Int>(&mut self) -> Read<T> {
        read_int::<i64, _>(&mut self.0).ok().and_then(T::of).ok_or_else(|| corrupt("a number"))
    }

    fn bytes(&mut self) -> Read<&'a [u8]> {
        let len = read_str_len(&mut self.0).map_err(|_| corrupt("bytes"))? as usize;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or_else(|| corrupt("more bytes"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array(&mut self) -> Read<u32> {
        read_array_len(&mut self.0).map_err(|_| corrupt("an array"))
    }

    fn flag(&mut self) -> Read<bool> {
        Ok(self.int::<u64>()? != 0)
    }

    fn session(&mut self) -> Read<SessionId> {
        session(self.bytes()?)
    }

    fn maybe_session(&mut self) -> Read<Option<SessionId>> {
        maybe_session(self.bytes()?)
    }

    fn key(&mut self) -> Read<Key> {
        key(self.bytes()?)
    }

    fn token(&mut self) -> Read<Token> {
        self.int().map(Token)
    }

    /// An array of its own, or 0 where all of it is as in a new record.
    fn rare(&mut self) -> Read<Rare> {
        if self.0.first() == Some(&0) {
            self.0 = &self.0[1..];
            return Ok(Rare::default());
        }
        if self.array()? < 8 {
            return Err(corrupt("at least 8 fields of what few keys have"));
        }
        let (not_before_ms, retry_at_ms, failures) = (self.int()?, self.int()?, self.int()?);
        let deaths = Deaths { count: self.int()?, alone: self.int()?, token: self.token()? };
        Ok((not_before_ms, retry_at_ms, failures, deaths, self.maybe_session()?))
    }

    /// What the end of a session means for its keys; -1 where it lives.
    fn verdict(&mut self) -> Read<Option<Verdict>> {
        let healthy_below = self.int::<i64>()?;
        let blame = match (self.int::<u64>()?, self.int::<u64>()?) {
            (0, _) => Blame::Nobody,
            (1, _) => Blame::Young,
            (2, from) => Blame::Suspects(from.try_into().map_err(|_| corrupt("a number of deaths"))?),
            (3, token) => Blame::Only(Token(token)),
            _ => return Err(corrupt("whom a death is held against")),
        };
        Ok(u64::try_from(healthy_below).ok().map(|token| Verdict { healthy_below: Token(token), blame }))
    }
}

/// The integers that a record consists of.
mod rmp_num {
    pub(super) trait Int: Sized {
        fn of(number: i64) -> Option<Self>;
    }
    impl Int for u16 {
        fn of(number: i64) -> Option<Self> {
            number.try_into().ok()
        }
    }
    impl Int for u32 {
        fn of(number: i64) -> Option<Self> {
            number.try_into().ok()
        }
    }
    impl Int for i32 {
        fn of(number: i64) -> Option<Self> {
            number.try_into().ok()
        }
    }
    impl Int for u64 {
        fn of(number: i64) -> Option<Self> {
            number.try_into().ok()
        }
    }
    impl Int for i64 {
        fn of(number: i64) -> Option<Self> {
            Some(number)
        }
    }
}

pub(crate) fn session(bytes: &[u8]) -> Read<SessionId> {
    Uuid::from_slice(bytes).map(SessionId).map_err(|_| corrupt("a session of 16 bytes"))
}

pub(crate) fn maybe_session(bytes: &[u8]) -> Read<Option<SessionId>> {
    if bytes.is_empty() { Ok(None) } else { session(bytes).map(Some) }
}

pub(crate) fn key(bytes: &[u8]) -> Read<Key> {
    Key::from_bytes(bytes).map_err(|_| corrupt("a key"))
}

fn stop_reason(code: u64) -> Read<StopReason> {
    match code {
        2 => Ok(StopReason::Rebalanced),
        3 => Ok(StopReason::Removed),
        _ => Err(corrupt("a reason to stop")),
    }
}

/// What few keys have: due time, end of the pause, failures, deaths, and who gave it up last.
type Rare = (u64, u64, u32, Deaths, Option<SessionId>);

/// A key's view as it is stored. Later versions may append fields; the ones that are unknown here are left alone.
pub(crate) fn view(key: Key, packed: &[u8]) -> Read<KeyView> {
    let mut r = Reader(packed);
    if r.array()? < 9 {
        return Err(corrupt("a view of at least 9 fields"));
    }
    let (weight, priority, since, generation, attempts) = (r.int()?, r.int()?, r.int()?, r.int()?, r.int()?);
    let state = r.int::<u64>()?;
    let (owner, token) = (r.bytes()?, r.token()?);
    let state = match state {
        0 => State::Pending,
        1 => State::Assigned { session: session(owner)?, token },
        2 | 3 => State::Stopping { session: session(owner)?, token, reason: stop_reason(state)? },
        4 => State::Quarantined(Aside::Deaths),
        5 => State::Quarantined(Aside::Failed),
        _ => return Err(corrupt("a key's state")),
    };
    let (not_before_ms, retry_at_ms, failures, deaths, avoid) = r.rare()?;
    Ok(KeyView {
        key,
        weight,
        priority,
        not_before_ms,
        retry_at_ms,
        generation,
        since,
        attempts,
        failures,
        deaths,
        avoid,
        state,
    })
}

/// A session as it is stored.
pub(crate) fn session_view(session: SessionId, packed: &[u8]) -> Read<SessionView> {
    let mut r = Reader(packed);
    if r.array()? < 11 {
        return Err(corrupt("a session of at least 11 fields"));
    }
    let node = NodeId::from_bytes(r.bytes()?).map_err(|_| corrupt("a node's name"))?;
    Ok(SessionView {
        session,
        node,
        affinity: r.int()?,
        capacity: u32::try_from(r.int::<i64>()?).ok(),
        lease_ms: r.int()?,
        draining: r.flag()?,
        settled: r.flag()?,
        reads: r.int()?,
        joined: r.token()?,
        ended: r.verdict()?,
    })
}

/// What went wrong, as it is stored.
pub(crate) fn why(bytes: &[u8]) -> Read<Text> {
    std::str::from_utf8(bytes).map(Text::new).map_err(|_| corrupt("a text"))
}

/// What a record's owner is handed; `None` where nobody owns it.
pub(crate) fn holding(record: Record) -> Option<Holding> {
    let Record { view, payload, checkpoint, .. } = record;
    let KeyView { key, weight, priority, generation, attempts, failures, state, .. } = view;
    let (_, token) = state.owner()?;
    let stopping = match state {
        State::Stopping { reason, .. } => Some(reason),
        _ => None,
    };
    Some(Holding { key, token, attempts, generation, failures, weight, priority, payload, checkpoint, stopping })
}

/// A batch of changes as it is logged and published.
pub(crate) fn batch(bytes: &[u8]) -> Read<Batch> {
    let mut r = Reader(bytes);
    let revision = Revision(r.int()?);
    let count = r.int::<u32>()?;
    // Not allocated by a number that somebody else may have written.
    let mut changes = Vec::new();
    for _ in 0..count {
        changes.push(match r.int::<u64>()? {
            0 => {
                let key = r.key()?;
                Change::Key(view(key, r.bytes()?)?)
            }
            1 => Change::KeyGone(r.key()?),
            2 => {
                let session = r.session()?;
                Change::Session(session_view(session, r.bytes()?)?)
            }
            3 => Change::SessionGone(r.session()?),
            4 => {
                let (term, leader, grants_held) = (Term(r.int()?), r.maybe_session()?, r.flag()?);
                Change::Group(GroupView { term, leader, grants_held, time_ms: r.int()?, format: r.int()? })
            }
            _ => return Err(corrupt("a kind of change")),
        });
    }
    Ok(Batch { revision, changes })
}

/// A message to a session as it is published.
pub(crate) fn message(bytes: &[u8]) -> Read<Message> {
    let mut r = Reader(bytes);
    // The last message to a session that is forgotten has no number.
    let seq = u64::try_from(r.int::<i64>()?).unwrap_or(u64::MAX);
    let count = r.int::<u32>()?;
    let mut notices = Vec::new();
    for _ in 0..count {
        notices.push(match r.int::<u64>()? {
            0 => {
                let key = r.key()?;
                let view = view(key, r.bytes()?)?;
                let (payload, checkpoint) = (Blob::from(r.bytes()?), Blob::from(r.bytes()?));
                let granted = holding(Record { view, why: Text::default(), payload, checkpoint });
                Notice::Granted(granted.ok_or_else(|| corrupt("an owner"))?)
            }
            1 => Notice::Stop { key: r.key()?, token: r.token()?, reason: stop_reason(r.int()?)? },
            2 => Notice::Taken { key: r.key()?, token: r.token()? },
            3 => Notice::Ended,
            _ => return Err(corrupt("a kind of notice")),
        });
    }
    Ok(Message { seq, notices })
}

/// A hint out of what was published; whatever is empty, too large or cannot be read is a [`Hint::Gap`].
pub(crate) fn hint<T>(bytes: &[u8], decode: fn(&[u8]) -> Read<T>, hint: fn(T) -> Hint) -> Hint {
    if bytes.is_empty() || bytes.len() > LARGEST_HINT {
        return Hint::Gap;
    }
    decode(bytes).map_or(Hint::Gap, hint)
}

/// The answers to a batch: a code and a number for each op.
pub(crate) fn outcomes(ops: &[Op], packed: &[u8]) -> Read<Vec<Outcome>> {
    let mut r = Reader(packed);
    if r.array()? as usize != 2 * ops.len() {
        return Err(corrupt("an outcome for each op"));
    }
    ops.iter()
        .map(|op| {
            let (code, value) = (r.int::<u64>()?, r.int::<u64>()?);
            outcome(op, code, value)
        })
        .collect()
}

fn outcome(op: &Op, code: u64, value: u64) -> Read<Outcome> {
    Ok(Outcome::Refused(match code {
        0 => return Ok(Outcome::Done),
        1 => return Ok(Outcome::Unchanged),
        2 => return u32::try_from(value).map(Outcome::Affinity).map_err(|_| corrupt("an affinity")),
        3 => return Ok(Outcome::Granted(Token(value))),
        10 => Refusal::UnknownKey,
        11 => Refusal::StaleToken,
        12 => Refusal::SessionEnded,
        13 => Refusal::NotTaking,
        14 => Refusal::NoRoom,
        15 => Refusal::NotFree,
        16 => Refusal::NotQuarantined,
        17 => Refusal::NotStopping,
        18 => Refusal::OldTerm,
        19 => Refusal::StillBeating,
        20 => Refusal::GrantsHeld,
        // The script tells the affinity as it is; the sum is made here, since Lua's numbers cannot hold every i64.
        21 => Refusal::AffinityOutOfRange(match op {
            Op::AlterAffinity { delta, .. } => i64::try_from(value).unwrap_or(i64::MAX).saturating_add(*delta),
            Op::SetAffinity { affinity, .. } => i64::from(*affinity),
            _ => return Err(corrupt("another outcome")),
        }),
        22 => Refusal::Late,
        23 => Refusal::TooOld { needs: value.try_into().map_err(|_| corrupt("a format"))? },
        _ => return Err(corrupt("an outcome")),
    }))
}

/// A beat that is kept as text.
pub(crate) fn beat(text: &[u8]) -> Read<Beat> {
    std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).map(Beat).ok_or_else(|| corrupt("a beat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One group change, one new key with a long name, as the script packs them.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0xcf, 0, 6, 0, 0, 0, 0, 0, 1, 3, 4, 7, 0xa0, 1, 5, 2, 0, 0xd9, 40];
        bytes.extend([b'k'; 40]);
        bytes.extend([0xac, 0x9b, 1, 0xff, 7, 1, 0, 0, 0xa0, 0, 0, 0, 0]);
        // One that was set aside, and has what few keys have.
        bytes.extend([0, 0xa1, b'r', 0xb4, 0x9b, 1, 0, 8, 2, 3, 4, 0xa0, 0, 0x98, 1, 2, 3, 4, 5, 6, 0xa0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn a_batch_is_read_as_it_was_packed() {
        let batch = batch(&sample()).unwrap();
        assert_eq!(batch.revision, Revision((6 << 48) + 1));
        let group = GroupView { term: Term(7), leader: None, grants_held: true, time_ms: 5, format: 2 };
        assert_eq!(batch.changes[0], Change::Group(group));
        assert!(matches!(&batch.changes[1], Change::Key(view) if view.priority == -1 && view.key.as_str().len() == 40));
        let Change::Key(rare) = &batch.changes[2] else { panic!("{batch:?}") };
        assert_eq!((rare.not_before_ms, rare.retry_at_ms, rare.failures, rare.avoid), (1, 2, 3, None));
        assert_eq!(rare.deaths, Deaths { count: 4, alone: 5, token: Token(6) });
        assert_eq!((rare.since, rare.generation, rare.state), (8, 2, State::Quarantined(Aside::Deaths)));
    }

    #[test]
    fn whatever_is_published_is_a_hint_or_a_gap() {
        let sample = sample();
        for at in 0..sample.len() {
            assert_eq!(hint(&sample[..at], batch, Hint::Batch), Hint::Gap, "cut at {at}");
            for byte in 0..=255 {
                let mut bytes = sample.clone();
                bytes[at] = byte;
                // Any answer will do, as long as there is one.
                hint(&bytes, batch, Hint::Batch);
                hint(&bytes, message, Hint::Message);
            }
        }
        assert_eq!(hint(&vec![0; LARGEST_HINT + 1], message, Hint::Message), Hint::Gap);
    }
}
