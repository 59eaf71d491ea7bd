//! What comes back.

use std::fmt;

use divider_core::{
    Aside, Batch, Blame, Blob, Change, Deaths, GroupView, Holding, Key, KeyView, NodeId, Notice, Outcome, Refusal,
    Revision, SessionId, SessionView, State, StopReason, StoreError, Term, Token, Verdict,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use uuid::Uuid;

/// An answer that is not what it should be.
pub(crate) fn corrupt(expected: &str) -> StoreError {
    StoreError::Corrupt(format!("expected {expected}"))
}

/// The outcomes of a batch, from their codes and values.
pub(crate) fn outcomes(codes: &[i16], values: &[Option<i64>], ops: usize) -> Result<Vec<Outcome>, StoreError> {
    if codes.len() != ops || values.len() != ops {
        return Err(corrupt("an outcome for each op"));
    }
    codes.iter().zip(values).map(|(code, value)| outcome(*code, *value).ok_or_else(|| corrupt("an outcome"))).collect()
}

fn outcome(code: i16, value: Option<i64>) -> Option<Outcome> {
    Some(Outcome::Refused(match code {
        0 => return Some(Outcome::Done),
        1 => return Some(Outcome::Unchanged),
        2 => return Some(Outcome::Affinity(u32::try_from(value?).ok()?)),
        3 => return Some(Outcome::Granted(Token(u64::try_from(value?).ok()?))),
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
        21 => Refusal::AffinityOutOfRange(value?),
        22 => Refusal::Late,
        23 => Refusal::TooOld { needs: u16::try_from(value?).ok()? },
        24 => Refusal::Superseded,
        _ => return None,
    }))
}

/// A logged batch.
pub(crate) fn batch(revision: u64, data: &str) -> Result<Batch, StoreError> {
    Ok(Batch { revision: Revision(revision), changes: changes_of(data)? })
}

/// Changes that are separated by commas, in brackets.
pub(crate) fn changes_of(data: &str) -> Result<Vec<Change>, StoreError> {
    let read: Vec<Read<Change>> = serde_json::from_str(data).map_err(|e| StoreError::Corrupt(e.to_string()))?;
    Ok(read.into_iter().map(|Read(change)| change).collect())
}

/// The keys among changes that are separated by commas.
pub(crate) fn views(data: Option<&str>) -> Result<Vec<KeyView>, StoreError> {
    let Some(data) = data else { return Ok(Vec::new()) };
    let view = |change| match change {
        Change::Key(view) => Ok(view),
        _ => Err(corrupt("a key")),
    };
    changes_of(&format!("[{data}]"))?.into_iter().map(view).collect()
}

/// The sessions among changes that are separated by commas.
pub(crate) fn sessions(data: Option<&str>) -> Result<Vec<SessionView>, StoreError> {
    let Some(data) = data else { return Ok(Vec::new()) };
    let view = |change| match change {
        Change::Session(view) => Ok(view),
        _ => Err(corrupt("a session")),
    };
    changes_of(&format!("[{data}]"))?.into_iter().map(view).collect()
}

/// A notice, and the digest of a grant's blobs where those are still to be read.
pub(crate) type Unread = (Notice, Option<String>);

/// The notices of a message.
pub(crate) fn notices(data: &str) -> Result<Vec<Unread>, StoreError> {
    let read: Vec<Read<Unread>> = serde_json::from_str(data).map_err(|e| StoreError::Corrupt(e.to_string()))?;
    Ok(read.into_iter().map(|Read(notice)| notice).collect())
}

/// A row of what a session holds.
#[derive(Debug)]
pub(crate) struct HoldingRow {
    pub(crate) key: String,
    pub(crate) token: i64,
    pub(crate) attempts: i64,
    pub(crate) generation: i64,
    pub(crate) failures: i64,
    pub(crate) weight: i64,
    pub(crate) priority: i32,
    pub(crate) payload: Vec<u8>,
    pub(crate) checkpoint: Vec<u8>,
    pub(crate) stopping: i16,
}

/// What a session holds, from its row.
pub(crate) fn holding(row: HoldingRow) -> Result<Holding, StoreError> {
    Ok(Holding {
        key: Key::new(row.key).map_err(|e| StoreError::Corrupt(e.to_string()))?,
        token: Token(super::unsigned(row.token)?),
        attempts: small(row.attempts)?,
        generation: small(row.generation)?,
        failures: small(row.failures)?,
        weight: small(row.weight)?,
        priority: row.priority,
        payload: Blob::from(row.payload),
        checkpoint: Blob::from(row.checkpoint),
        stopping: stop_reason(row.stopping)?,
    })
}

/// A number that this version does not know is no reason that it does know.
fn stop_reason(stopping: i16) -> Result<Option<StopReason>, StoreError> {
    match stopping {
        0 => Ok(None),
        1 => Ok(Some(StopReason::Rebalanced)),
        2 => Ok(Some(StopReason::Removed)),
        _ => Err(corrupt("a reason to stop")),
    }
}

/// A key's state, from its columns.
fn state(owner: Option<Uuid>, token: Option<u64>, stopping: i16, aside: i16) -> Result<State, StoreError> {
    let stopping = stop_reason(stopping)?;
    Ok(match (aside, owner.map(SessionId), token.map(Token), stopping) {
        (1, ..) => State::Quarantined(Aside::Deaths),
        (2, ..) => State::Quarantined(Aside::Failed),
        (0, Some(session), Some(token), None) => State::Assigned { session, token },
        (0, Some(session), Some(token), Some(reason)) => State::Stopping { session, token, reason },
        (0, None, None, _) => State::Pending,
        _ => return Err(corrupt("a key's state")),
    })
}

/// What the end of a session means for its keys, from its columns.
fn verdict((healthy_below, whom, suspect): (u64, i16, u64)) -> Option<Verdict> {
    let blame = match whom {
        0 => Blame::Nobody,
        1 => Blame::Young,
        2 => Blame::Suspects(u32::try_from(suspect).ok()?),
        3 => Blame::Only(Token(suspect)),
        _ => return None,
    };
    Some(Verdict { healthy_below: Token(healthy_below), blame })
}

/// A number of all keys, or one for each where they differ.
pub(crate) type Each<T> = (T, Option<Vec<T>>);

/// What is held against keys, one of each for each of them.
#[derive(Debug)]
pub(crate) struct Past {
    pub(crate) retry_at_ms: Vec<i64>,
    pub(crate) failures: Vec<i64>,
    pub(crate) deaths: Vec<i32>,
    pub(crate) alone: Vec<i32>,
    pub(crate) death: Vec<i64>,
}

impl Past {
    /// Puts what is held against one of them into its view.
    fn tell(&self, ix: usize, view: &mut KeyView) -> Result<(), StoreError> {
        view.retry_at_ms = super::unsigned(nth(&self.retry_at_ms, ix)?)?;
        view.failures = small(nth(&self.failures, ix)?)?;
        let (count, alone) = (nth(&self.deaths, ix)?.into(), nth(&self.alone, ix)?.into());
        let token = Token(super::unsigned(nth(&self.death, ix)?)?);
        view.deaths = Deaths { count: small(count)?, alone: small(alone)?, token };
        Ok(())
    }
}

fn nth<T: Copy>(list: &[T], ix: usize) -> Result<T, StoreError> {
    list.get(ix).copied().ok_or_else(|| corrupt("lists of one length"))
}

/// Keys of a page that stand in the same way.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) owner: Option<Uuid>,
    pub(crate) stopping: i16,
    pub(crate) aside: i16,
    pub(crate) avoid: Option<Uuid>,
    pub(crate) keys: Vec<String>,
    pub(crate) tokens: Vec<Option<i64>>,
    pub(crate) weight: Each<i64>,
    pub(crate) priority: Each<i32>,
    pub(crate) not_before_ms: Each<i64>,
    pub(crate) generation: Each<i64>,
    pub(crate) attempts: Each<i64>,
    pub(crate) since: Vec<i64>,
    /// What few keys have.
    pub(crate) past: Option<Past>,
}

impl Run {
    /// Appends the keys.
    pub(crate) fn views(self, views: &mut Vec<KeyView>) -> Result<(), StoreError> {
        fn at<T: Copy>((all, each): &Each<T>, at: usize) -> Result<T, StoreError> {
            each.as_ref().map_or(Ok(*all), |each| nth(each, at))
        }
        for (ix, key) in self.keys.into_iter().enumerate() {
            let token = self.tokens.get(ix).ok_or_else(|| corrupt("a token for each key"))?;
            let mut view = KeyView {
                key: Key::new(key).map_err(|e| StoreError::Corrupt(e.to_string()))?,
                weight: small(at(&self.weight, ix)?)?,
                priority: at(&self.priority, ix)?,
                not_before_ms: super::unsigned(at(&self.not_before_ms, ix)?)?,
                retry_at_ms: 0,
                generation: small(at(&self.generation, ix)?)?,
                since: super::unsigned(nth(&self.since, ix)?)?,
                attempts: small(at(&self.attempts, ix)?)?,
                failures: 0,
                deaths: Deaths::default(),
                avoid: self.avoid.map(SessionId),
                state: state(self.owner, token.map(super::unsigned).transpose()?, self.stopping, self.aside)?,
            };
            if let Some(past) = &self.past {
                past.tell(ix, &mut view)?;
            }
            views.push(view);
        }
        Ok(())
    }
}

fn small(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| corrupt("a number of 32 bits"))
}

/// Reads `T` from an array that begins with its kind.
struct Read<T>(T);

struct ByKind<T>(std::marker::PhantomData<T>);

/// What can be read by kind.
trait Kinds: Sized {
    fn of<'de, A: SeqAccess<'de>>(kind: &str, fields: Fields<A>) -> Result<Self, A::Error>;
}

/// The elements after the kind.
struct Fields<A>(A);

impl<'de, A: SeqAccess<'de>> Fields<A> {
    fn next<T: Deserialize<'de>>(&mut self) -> Result<T, A::Error> {
        self.0.next_element()?.ok_or_else(|| A::Error::custom("too few elements"))
    }
}

impl<'de, T: Kinds> Visitor<'de> for ByKind<T> {
    type Value = Read<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array that begins with its kind")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Read<T>, A::Error> {
        let mut fields = Fields(seq);
        let kind: &str = fields.next()?;
        T::of(kind, fields).map(Read)
    }
}

impl<'de, T: Kinds> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ByKind(std::marker::PhantomData))
    }
}

impl Kinds for Change {
    fn of<'de, A: SeqAccess<'de>>(kind: &str, mut f: Fields<A>) -> Result<Self, A::Error> {
        Ok(match kind {
            "k" => {
                let (key, weight, priority, not_before_ms) = (f.next()?, f.next()?, f.next()?, f.next()?);
                let (generation, since, attempts) = (f.next()?, f.next()?, f.next()?);
                let past: Option<(u64, u32, u32, u32, u64)> = f.next()?;
                let (retry_at_ms, failures, count, alone, token) = past.unwrap_or_default();
                Change::Key(KeyView {
                    key,
                    weight,
                    priority,
                    not_before_ms,
                    retry_at_ms,
                    generation,
                    since,
                    attempts,
                    failures,
                    deaths: Deaths { count, alone, token: Token(token) },
                    avoid: f.next::<Option<Uuid>>()?.map(SessionId),
                    state: state(f.next()?, f.next()?, f.next()?, f.next()?).map_err(A::Error::custom)?,
                })
            }
            "K" => Change::KeyGone(f.next()?),
            "s" => Change::Session(SessionView {
                session: SessionId(f.next()?),
                node: f.next::<NodeId>()?,
                affinity: f.next()?,
                capacity: f.next()?,
                lease_ms: f.next()?,
                draining: f.next()?,
                settled: f.next()?,
                ended: match f.next::<Option<(u64, i16, u64)>>()? {
                    Some(ended) => Some(verdict(ended).ok_or_else(|| A::Error::custom("no verdict"))?),
                    None => None,
                },
                reads: f.next()?,
                joined: Token(f.next()?),
            }),
            "S" => Change::SessionGone(SessionId(f.next()?)),
            "g" => Change::Group(GroupView {
                term: Term(f.next()?),
                leader: f.next::<Option<Uuid>>()?.map(SessionId),
                grants_held: f.next()?,
                time_ms: f.next()?,
                format: f.next()?,
            }),
            _ => return Err(A::Error::custom("a change of an unknown kind")),
        })
    }
}

impl Kinds for Unread {
    fn of<'de, A: SeqAccess<'de>>(kind: &str, mut f: Fields<A>) -> Result<Self, A::Error> {
        let notice = match kind {
            "g" => {
                let mut holding = Holding {
                    key: f.next()?,
                    token: Token(f.next()?),
                    attempts: f.next()?,
                    generation: f.next()?,
                    failures: f.next()?,
                    weight: f.next()?,
                    priority: f.next()?,
                    payload: Blob::default(),
                    checkpoint: Blob::default(),
                    stopping: None,
                };
                let blobs: Option<String> = f.next()?;
                match blobs.as_deref().map(|blobs| blobs.split_once('/')) {
                    None => {}
                    Some(None) => return Ok((Notice::Granted(holding), blobs)),
                    Some(Some((payload, checkpoint))) => {
                        let bytes = |hex| unhex(hex).ok_or_else(|| A::Error::custom("bytes that are not hexadecimal"));
                        (holding.payload, holding.checkpoint) = (bytes(payload)?, bytes(checkpoint)?);
                    }
                }
                Notice::Granted(holding)
            }
            "s" => {
                let (key, token) = (f.next()?, Token(f.next()?));
                let reason =
                    stop_reason(f.next()?).map_err(A::Error::custom)?.ok_or_else(|| A::Error::custom("no reason"))?;
                Notice::Stop { key, token, reason }
            }
            "t" => Notice::Taken { key: f.next()?, token: Token(f.next()?) },
            "e" => Notice::Ended,
            _ => return Err(A::Error::custom("a notice of an unknown kind")),
        };
        Ok((notice, None))
    }
}

fn unhex(hex: &str) -> Option<Blob> {
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>().map(Blob::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A later version may know more than this one, which must not take it for something else.
    #[test]
    fn what_this_version_does_not_know_is_taken_for_nothing_that_it_knows() {
        let owner = Some(Uuid::from_u128(7));
        for (token, stopping, aside) in [(Some(1), 3, 0), (Some(1), -1, 0), (Some(1), 0, 3), (None, 0, 0), (None, 1, 0)]
        {
            assert!(matches!(state(owner, token, stopping, aside), Err(StoreError::Corrupt(_))));
        }
        assert!(matches!(state(None, None, 3, 0), Err(StoreError::Corrupt(_))));
        let removed =
            State::Stopping { session: SessionId(Uuid::from_u128(7)), token: Token(1), reason: StopReason::Removed };
        assert_eq!(state(owner, Some(1), 2, 0).unwrap(), removed);
        assert_eq!(state(None, None, 0, 2).unwrap(), State::Quarantined(Aside::Failed));
    }
}
