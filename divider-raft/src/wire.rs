//! What goes over a connection: a handshake, and after it frames.
//!
//! # Why it looks like this
//! The first bytes say which protocol, which formats, which cluster and which member is meant, and nothing else is decoded
//! before they fit: both sides go on with the highest format that both read, and a program that was pointed at the wrong
//! port, cluster or successor of a member finds out at once. Every length is compared with a cap before memory is taken. Long bodies are cut into parts, so that a page of keys does not hold
//! up a heartbeat, and so that the cap of a frame can be low.
//!
//! Variants and fields are only ever appended; recorded bytes of the first version are kept as fixtures.

use std::{fmt, io, marker::PhantomData, time::Duration};

use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Group, Hint, Holdings, Key, NodeId, Op, Page, PollReply, Record, Revision,
    SessionId, Stats, Term, Token, Topic, limits,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _, SeqAccess, Visitor},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use crate::{
    error::TooOld,
    raft::{Peer, RaftAnswer, RaftRequest},
};

/// The first bytes of a connection, both ways.
const MAGIC: [u8; 4] = *b"DVDR";
/// Most bytes of a handshake.
const MAX_HELLO: u32 = 4096;
/// Most bytes of a body in one frame; longer ones come in parts.
pub(crate) const PART: usize = 256 << 10;
/// Most bytes of a frame.
const MAX_FRAME: u32 = (PART + 64) as u32;
/// Most bytes of a request in all its parts: a batch of ops, or entries of the log.
pub(crate) const MAX_REQUEST: usize = 16 << 20;
/// Most bytes of a batch of ops, about: the entry that it becomes must go to each member in one request.
const MAX_BATCH: usize = if cfg!(test) { 2 << 20 } else { MAX_REQUEST / 2 };
/// Most bytes of an answer in all its parts: all that a session holds may be much.
pub(crate) const MAX_ANSWER: usize = 1 << 30;
/// Most bytes of a hint; a longer one is sent as a gap.
pub(crate) const MAX_HINT: usize = PART;

/// Who speaks, and to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The name of the cluster in the configuration.
    pub(crate) cluster: String,
    /// The cluster itself, where the speaker knows it.
    pub(crate) cluster_id: Option<Uuid>,
    /// The member that is meant, where the speaker knows it.
    pub(crate) target: Option<u64>,
    /// The speaker, if it is a member.
    pub(crate) from: Option<Peer>,
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Welcome {
    /// Come in.
    Ok {
        /// Who answers.
        id: u64,
        /// The cluster, where the member belongs to one.
        cluster_id: Option<Uuid>,
    },
    /// You have the wrong one; the text says why.
    Refused(String),
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Frame<'a> {
    /// A part of a request.
    Request {
        /// Chosen by the caller, once for each request of a connection.
        id: u64,
        /// Whether this is the last part.
        last: bool,
        /// The part.
        #[serde(borrow)]
        body: &'a [u8],
    },
    /// A part of an answer.
    Answer {
        /// Of which request.
        id: u64,
        /// Whether this is the last part.
        last: bool,
        /// The part.
        #[serde(borrow)]
        body: &'a [u8],
    },
    /// A hint of a subscription.
    Hint {
        /// The request that subscribed.
        id: u64,
        /// The hint.
        #[serde(borrow)]
        body: &'a [u8],
    },
    /// From the caller: answer or hints are no longer wanted. From the member: the subscription is over.
    End {
        /// Of which request.
        id: u64,
    },
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
}

/// What can be asked of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Raft's own.
    Raft(RaftRequest),
    /// A call to a store, or about the cluster.
    Call(Call),
    /// Hints, until the caller ends it.
    Subscribe {
        /// The group.
        group: Group,
        /// About what.
        topic: Topic,
    },
}

/// A call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Call {
    /// Applies a batch. On the leader only.
    Apply {
        /// The group.
        group: Group,
        /// The ops.
        #[serde(deserialize_with = "few")]
        ops: Vec<Op>,
    },
    /// Renews a session. On the leader only.
    Renew {
        /// The group.
        group: Group,
        /// Whose.
        session: SessionId,
    },
    /// See [`Store::poll`](divider_core::Store::poll). On the leader only.
    Poll {
        /// The group.
        group: Group,
        /// Who asks.
        session: SessionId,
        /// For what.
        claim: Claim,
    },
    /// Gives leadership up. On the leader only.
    Resign {
        /// The group.
        group: Group,
        /// Who led.
        session: SessionId,
        /// In which term.
        term: Term,
    },
    /// All beats. On the leader only.
    Beats {
        /// The group.
        group: Group,
    },
    /// Confirms the leader with a quorum, and says up to where a reader must have applied. On the leader only.
    Confirm,
    /// A linearizable read.
    Read {
        /// The group.
        group: Group,
        /// What.
        query: Query,
    },
    /// Where the member stands. Answered before it belongs to a cluster.
    Status,
    /// Takes a member in, or takes note of where it listens now. On the leader only.
    Join {
        /// Which.
        peer: Peer,
        /// Whether it shall vote, once it has caught up.
        votes: bool,
    },
    /// Removes a member. On the leader only.
    Leave {
        /// Which.
        id: u64,
    },
    /// Makes a learner a voter. On the leader only.
    Promote {
        /// Which.
        id: u64,
    },
    /// Makes a learner a voter and removes another one in the same step. On the leader only.
    Replace {
        /// Who leaves.
        old: u64,
        /// Who takes its place.
        new: u64,
    },
    /// See [`Store::silences`](divider_core::Store::silences).
    Silences {
        /// Which group.
        group: Group,
    },
    /// Asks to be the one that founds the cluster, or takes that back. Answered before there is one.
    Found {
        /// Who asks.
        by: u64,
        /// Whether it takes back what it asked for.
        taken_back: bool,
    },
    /// Writes the newest format that all members read from now on, and says which that is. On the leader only.
    StepUp,
}

/// What can be read of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Query {
    /// See [`Store::holdings`](divider_core::Store::holdings).
    Holdings(SessionId),
    /// See [`Store::changes`](divider_core::Store::changes).
    Changes(Revision),
    /// See [`Store::scan`](divider_core::Store::scan).
    Scan(Option<Cursor>),
    /// See [`Store::records`](divider_core::Store::records).
    Records(#[serde(deserialize_with = "few")] Vec<Key>),
    /// See [`Store::stats`](divider_core::Store::stats).
    Stats,
    /// See [`Store::quarantined`](divider_core::Store::quarantined).
    Quarantined(u64),
    /// Who owns each key.
    Owners(#[serde(deserialize_with = "few")] Vec<Key>),
}

/// What is wrong with a batch that no entry of the log, or no request, has room for.
pub(crate) fn too_large(ops: &[Op]) -> Option<String> {
    if ops.len() > limits::MAX_BATCH_OPS {
        return Some(format!("a batch of {} ops; the limit is {}", ops.len(), limits::MAX_BATCH_OPS));
    }
    let bytes: usize = ops.iter().map(Op::bytes).sum();
    (bytes > MAX_BATCH).then(|| format!("a batch of {bytes} bytes; the limit is {MAX_BATCH}"))
}

/// As many as a batch may have ops. What takes two bytes on the wire takes a hundred times as many in memory, and a key may be
/// answered with very much more than it takes to ask.
fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct Few<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Few<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {} of them", limits::MAX_BATCH_OPS)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = from.next_element()? {
                if all.len() == limits::MAX_BATCH_OPS {
                    return Err(A::Error::invalid_length(all.len() + 1, &self));
                }
                all.push(one);
            }
            Ok(all)
        }
    }
    from.deserialize_seq(Few(PhantomData))
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "an answer is made, sent and gone")]
pub(crate) enum Answer {
    /// It was not done, or nobody knows.
    Fault(Fault),
    /// Of Raft's own.
    Raft(RaftAnswer),
    /// It was done.
    Done,
    /// Of an apply.
    Applied(Applied),
    /// Of a renewal.
    Beat(Beat),
    /// Of a poll.
    PollReply(PollReply),
    /// All beats.
    Beats(Vec<(SessionId, Beat)>),
    /// An index of the log.
    Index(u64),
    /// Of a read.
    Holdings(Holdings),
    /// Of a read.
    Changes(Option<Vec<Batch>>),
    /// Of a read.
    Page(Page),
    /// Of a read.
    Records(Vec<Option<Record>>),
    /// Of a read.
    Stats(Stats),
    /// Of a read.
    Keys(Vec<Key>),
    /// Where the member stands.
    Status(Status),
    /// Of a read.
    Owners(Vec<Option<Owner>>),
    /// Which sessions have been silent before which beats, and for how long.
    Silences(Vec<(SessionId, Beat, Duration)>),
}

/// Who owns a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The name of the owning node.
    pub node: NodeId,
    /// Its session.
    pub session: SessionId,
    /// The token of the ownership.
    pub token: Token,
}

/// Where a member stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The member.
    pub(crate) me: Peer,
    /// The cluster that it belongs to.
    pub(crate) cluster_id: Option<Uuid>,
    /// The leader, as far as it knows.
    pub(crate) leader: Option<Peer>,
    /// All members, and whether each votes.
    pub(crate) members: Vec<(Peer, bool)>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// Nothing was done: another member leads, perhaps this one.
    NotLeader(Option<Peer>),
    /// Nothing was done, but it may be soon.
    Busy(String),
    /// Nobody knows whether it was done.
    Unknown(String),
    /// Nothing was done: the session is over.
    SessionEnded,
    /// Nothing was done, and trying again does not help.
    Refused(String),
    /// Nothing was done: whoever asked may not ask for that.
    Denied(String),
}

pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A hint as it is sent.
pub(crate) fn encode_hint(hint: &Hint) -> io::Result<Vec<u8>> {
    let body = encode(hint)?;
    if body.len() > MAX_HINT { encode(&Hint::Gap) } else { Ok(body) }
}

impl Frame<'_> {
    /// The frame with its length in front.
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = postcard::to_extend(self, vec![0; 4]).map_err(io::Error::other)?;
        let len = u32::try_from(bytes.len() - 4).ok().filter(|len| *len <= MAX_FRAME);
        let len = len.ok_or_else(|| io::Error::other("a frame is too long"))?;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        Ok(bytes)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Frame<'_>> {
        postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Cuts a body into frames, with their lengths in front.
pub(crate) fn parts<'a>(body: &'a [u8], frame: impl Fn(bool, &'a [u8]) -> Frame<'a>) -> io::Result<Vec<Vec<u8>>> {
    let count = body.len().div_ceil(PART).max(1);
    (0..count)
        .map(|at| {
            let part = &body[at * PART..body.len().min((at + 1) * PART)];
            frame(at + 1 == count, part).to_bytes()
        })
        .collect()
}

/// Reads one frame's bytes. Not cancel safe.
pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    let len = from.read_u32_le().await?;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes is over the limit")));
    }
    buffer.resize(len as usize, 0);
    from.read_exact(buffer).await?;
    Ok(())
}

/// What a program can read and writes, as numbers of the format of everything that crosses a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speaks {
    /// The lowest format that it reads.
    pub(crate) lowest: u16,
    /// The highest format that it reads.
    pub(crate) highest: u16,
    /// The format of what its cluster writes for all members to read: a member that does not read this one is too old. 0 from
    /// a client, which reads nothing of that.
    pub(crate) writes: u16,
}

impl Speaks {
    /// The highest format that both sides read.
    pub(crate) fn settle(self, theirs: Self) -> Result<u16, TooOld> {
        let (mine_needed, theirs_needed) = (theirs.asks_of(self), self.asks_of(theirs));
        if self.highest < mine_needed {
            return Err(TooOld { needs: mine_needed, reads: self.highest, here: true });
        }
        if theirs.highest < theirs_needed {
            return Err(TooOld { needs: theirs_needed, reads: theirs.highest, here: false });
        }
        Ok(self.highest.min(theirs.highest))
    }

    /// What the other one must read at least.
    fn asks_of(self, other: Self) -> u16 {
        if other.writes == 0 { self.lowest } else { self.lowest.max(self.writes) }
    }

    fn to_bytes(self) -> [u8; 6] {
        let [l, h, w] = [self.lowest, self.highest, self.writes].map(u16::to_le_bytes);
        [l[0], l[1], h[0], h[1], w[0], w[1]]
    }
}

/// Says hello or welcome.
pub(crate) async fn greet<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    mine: Speaks,
    greeting: &T,
) -> io::Result<()> {
    let body = encode(greeting)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_HELLO);
    let len = len.ok_or_else(|| io::Error::other("the names are too long for a handshake"))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(mine.to_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(body);
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Hears hello or welcome. Nothing is decoded before magic, formats and length fit; where the formats do not, the error is
/// a [`TooOld`] inside.
pub(crate) async fn greeted<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), mine: Speaks) -> io::Result<T> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut magic = [0; 4];
    from.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(invalid("the other side does not speak Divider's protocol (or speaks it through TLS)".into()));
    }
    let (lowest, highest, writes) = (from.read_u16_le().await?, from.read_u16_le().await?, from.read_u16_le().await?);
    mine.settle(Speaks { lowest, highest, writes }).map_err(io::Error::other)?;
    let len = from.read_u32_le().await?;
    if len > MAX_HELLO {
        return Err(invalid(format!("a handshake of {len} bytes is over the limit")));
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body).await?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(lowest: u16, highest: u16, writes: u16) -> Speaks {
        Speaks { lowest, highest, writes }
    }

    #[test]
    fn two_programs_settle_on_the_highest_format_that_both_read() {
        for (mine, theirs, settled) in [
            (speaks(2, 3, 2), speaks(2, 2, 2), 2),
            (speaks(2, 3, 3), speaks(2, 4, 3), 3),
            (speaks(3, 5, 4), speaks(2, 4, 3), 4),
            (speaks(1, 1, 0), speaks(1, 2, 2), 1),
        ] {
            assert_eq!(mine.settle(theirs), Ok(settled), "{mine:?} {theirs:?}");
            assert_eq!(theirs.settle(mine), Ok(settled), "{theirs:?} {mine:?}");
        }
    }

    #[test]
    fn whoever_is_too_old_is_told_what_is_needed() {
        for (old, new, needs) in [
            (speaks(2, 2, 2), speaks(3, 4, 3), 3),
            // It could still be read, but does not read what is written.
            (speaks(2, 2, 2), speaks(2, 4, 4), 4),
            (speaks(1, 1, 1), speaks(2, 2, 2), 2),
            // A client reads nothing of what is written.
            (speaks(1, 1, 0), speaks(2, 3, 3), 2),
        ] {
            let reads = old.highest;
            assert_eq!(old.settle(new), Err(TooOld { needs, reads, here: true }));
            assert_eq!(new.settle(old), Err(TooOld { needs, reads, here: false }));
        }
    }

    /// An op takes two bytes on the wire and a hundred times as many in memory.
    #[test]
    fn no_more_ops_or_keys_are_decoded_than_may_be_asked_for_at_once() {
        let (group, key) = (Group::new("/g/").unwrap(), Key::new("k").unwrap());
        let ops = |count| Call::Apply { group: group.clone(), ops: vec![Op::ResumeGrants { term: Term(1) }; count] };
        let read = |query| Call::Read { group: group.clone(), query };
        let records = |count| read(Query::Records(vec![key.clone(); count]));
        let owners = |count| read(Query::Owners(vec![key.clone(); count]));
        let decoded = |call| decode::<Request>(&encode(&Request::Call(call)).unwrap());
        let most = limits::MAX_BATCH_OPS;
        for call in [ops(most), records(most), owners(most)] {
            assert_eq!(decoded(call.clone()).unwrap(), Request::Call(call));
        }
        for call in [ops(most + 1), records(most + 1), owners(most + 1)] {
            assert!(decoded(call).is_err());
        }
    }

    #[tokio::test]
    async fn what_announces_too_much_is_refused_before_memory_is_taken() {
        let mut said = MAGIC.to_vec();
        said.extend(speaks(1, 1, 1).to_bytes());
        said.extend(u32::MAX.to_le_bytes());
        let error = greeted::<Hello>(&mut &said[..], speaks(1, 1, 1)).await.unwrap_err();
        assert!(error.to_string().contains("over the limit"), "{error}");
    }
}
