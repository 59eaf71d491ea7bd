//! What members and clients say to one another: a greeting, requests, and answers.
//!
//! Variants and fields are only ever appended; recorded bytes of the first version are kept as fixtures.

use std::{fmt, marker::PhantomData, time::Duration};

use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Group, Holdings, Key, NodeId, Op, Page, PollReply, Record, Revision,
    SessionId, Stats, Term, Token, Topic, limits,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, SeqAccess, Visitor},
};
use uuid::Uuid;

use crate::protocol::{
    peer::Peer,
    raft_messages::{RaftAnswer, RaftRequest},
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::wire::{decode, encode};

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
}
