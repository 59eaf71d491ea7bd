//! What can be asked of a ledger, what it answers, and what it tells others. All of it is plain data: in a replicated
//! store an [`Op`] is the log entry. Variants and fields are only ever appended, since older programs may read them.

use serde::{Deserialize, Serialize};

use crate::{
    error::InvalidInput,
    format,
    ids::{Beat, Key, NodeId, Revision, SessionId, Term, Token},
    limits,
    record::{Blob, KeyView, StopReason, Text, Work, range, size},
};

/// One atomic request to the authority of a group. Exhaustive: a store must know every op that there is; see
/// [`Store`](crate::Store).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Declares work, as [`Work::how`] says. A known key takes the new weight, priority, due time and payload, and stays
    /// where it is; a key that was being removed is wanted again.
    Add(Work),
    /// The work is no longer wanted. An owner is asked to stop first.
    Remove {
        /// The key.
        key: Key,
    },
    /// Lets a quarantined key run again, with a clean history.
    Retry {
        /// The key.
        key: Key,
    },
    /// Asks that balance be restored now, as if every node had just joined.
    Rebalance,

    /// A node opens a session.
    Join {
        /// The new session.
        session: SessionId,
        /// Who it is, for people.
        node: NodeId,
        /// How much work it wants, in proportion to the others.
        affinity: u32,
        /// Most keys that it holds at once.
        capacity: Option<u32>,
        /// How long it may be silent, in milliseconds.
        lease_ms: u32,
        /// A revision of the group that the node has been told. Refused as [`Late`](Refusal::Late) where a session has
        /// ended since: this may then be an old copy, of a session that has ended and been forgotten.
        seen: Revision,
        /// The newest format that the node's program reads. Refused as [`TooOld`](Refusal::TooOld) where the group is
        /// written in a newer one.
        reads: u16,
    },
    /// Sets the affinity, once for each number.
    SetAffinity {
        /// The node's session.
        session: SessionId,
        /// See [`AlterAffinity`](Self::AlterAffinity): both count together, so that a late copy of an earlier one cannot
        /// undo a later one.
        number: u64,
        /// 0 to [`MAX_AFFINITY`](limits::MAX_AFFINITY).
        affinity: u32,
    },
    /// Changes the affinity by a difference, once for each number.
    AlterAffinity {
        /// The node's session.
        session: SessionId,
        /// Counts the changes of a session's affinity from 1, so that one which is sent again for want of an answer is
        /// not done twice.
        number: u64,
        /// The difference.
        delta: i64,
    },
    /// The session takes no work any more.
    Drain {
        /// The node's session.
        session: SessionId,
    },
    /// The session is over and its node acts on none of its keys any more: they are free at once.
    End {
        /// The node's session.
        session: SessionId,
    },
    /// The owner no longer acts on the key: it is free.
    Confirm {
        /// The owner.
        session: SessionId,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
        /// False where the owner never began; it then does not count as an attempt.
        started: bool,
    },
    /// The owner wants to be asked to stop the key, which then goes to another node if any other takes it. Where the work
    /// was declared again since the grant, the pause and the failure are not kept: they are about the work of before.
    GiveUp {
        /// The owner.
        session: SessionId,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
        /// The generation that came with the grant.
        generation: u32,
        /// How long the key rests before it is started again, in milliseconds of ledger time. A duration and no time of day,
        /// so that no two clocks have to agree.
        pause_ms: u64,
        /// How often the work has failed in a row, this time included.
        failures: u32,
        /// What went wrong, for people.
        why: Text,
    },
    /// The work is done for good: the key ends. Where it was declared again since the grant, it waits for its next owner.
    Complete {
        /// The owner.
        session: SessionId,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
        /// The generation that came with the grant.
        generation: u32,
    },
    /// Keeps bytes for the next owner.
    Checkpoint {
        /// The owner.
        session: SessionId,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
        /// The bytes.
        bytes: Blob,
    },

    /// The leader gives a free key to a session.
    Assign {
        /// The leader's term.
        term: Term,
        /// The key.
        key: Key,
        /// The new owner.
        session: SessionId,
    },
    /// The leader asks an owner to stop, so that the key can move.
    Revoke {
        /// The leader's term.
        term: Term,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
    },
    /// The leader frees a key whose owner has not confirmed its stop within the time limit that the user chose, or ends one
    /// that was being removed when its owner ended.
    Force {
        /// The leader's term.
        term: Term,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
    },
    /// The leader ends a session that has been silent for its lease.
    Expire {
        /// The leader's term.
        term: Term,
        /// The silent session.
        session: SessionId,
        /// The beat at which it stood still: refused if it has moved since.
        beat: Beat,
        /// Which of its keys the death is held against.
        verdict: Verdict,
    },
    /// The leader sets a free key aside because its owners keep dying.
    Quarantine {
        /// The leader's term.
        term: Term,
        /// The key.
        key: Key,
    },
    /// A newcomer has got its share; from now on only its leave or a request moves keys for balance.
    Settle {
        /// The leader's term.
        term: Term,
        /// The newcomer.
        session: SessionId,
    },
    /// The leader has waited a lease in a new lineage; grants may go on.
    ResumeGrants {
        /// The leader's term.
        term: Term,
    },
    /// The owner sets the key aside: the work cannot succeed without a person. Like a completion it ends the ownership at
    /// once. Where the work was declared again since the grant, the key waits for its next owner instead.
    SetAside {
        /// The owner.
        session: SessionId,
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
        /// The generation that came with the grant.
        generation: u32,
        /// Why, for people.
        why: Text,
    },
    /// The leader has seen the key survive, or a death that it had no part in: nothing is held against it any more.
    Clear {
        /// The leader's term.
        term: Term,
        /// The key.
        key: Key,
        /// Forget the isolated deaths alone, and not that the key is suspect.
        blames_only: bool,
    },
    /// A node that was taken for dead had lived: the end of this ownership is held against nobody.
    Absolve {
        /// The key.
        key: Key,
        /// The token of the ownership that ended with the node's former session.
        token: Token,
    },
    /// Time has passed on the leader's clock: ledger time goes on by as much.
    Advance {
        /// The leader's term.
        term: Term,
        /// How much, in milliseconds; at most [`MAX_ADVANCE_MS`](limits::MAX_ADVANCE_MS).
        elapsed_ms: u64,
    },
    /// From now on the group is written in this format, which all its sessions read.
    Step {
        /// The leader's term; 0 for an operator's word, which counts whoever leads.
        term: Term,
        /// The format.
        format: u16,
    },
    /// Says who sends the ops that follow in this batch, and the batch's serial number, which is higher than that of every
    /// batch that the session has sent, one that is sent again included. Where the ledger knows one as high, or the session
    /// is over, this op and all that follow it in the batch are refused alike: this is then a copy, and what it says may
    /// have been replaced.
    Sender {
        /// The sender's session.
        session: SessionId,
        /// From 1.
        serial: u64,
    },
}

/// Which keys of a session that has ended its death is held against. Without evidence it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Ownerships with lower tokens had run for long enough: their keys have survived.
    pub healthy_below: Token,
    /// Whom of the others.
    pub blame: Blame,
}

/// Whom a death is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// Nobody: the node left of its own accord, or the death says nothing about its keys.
    Nobody,
    /// Every young ownership.
    Young,
    /// Those of them whose keys have had at least this many deaths in a row.
    Suspects(u32),
    /// The one suspect that was aboard.
    Only(Token),
}

impl Verdict {
    /// Nothing is held against any key, and none has proved anything.
    pub const NONE: Self = Self { healthy_below: Token(0), blame: Blame::Nobody };

    /// Every ownership from this token on is blamed.
    pub const fn young(healthy_below: Token) -> Self {
        Self { healthy_below, blame: Blame::Young }
    }

    /// What the verdict means for an ownership of a key with so many deaths in a row.
    pub fn on(self, token: Token, deaths: u32) -> Finding {
        match self.blame {
            _ if token < self.healthy_below => Finding::Survived,
            Blame::Young => Finding::Died,
            Blame::Suspects(from) if deaths >= from => Finding::Died,
            Blame::Only(only) if only == token => Finding::DiedAlone,
            Blame::Nobody | Blame::Suspects(_) | Blame::Only(_) => Finding::Nothing,
        }
    }
}

/// What the end of an ownership says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing.
    Nothing,
    /// The owner lived for long enough with the key.
    Survived,
    /// The owner died soon after the grant, as others' owners may have.
    Died,
    /// The owner died soon after the grant, and nothing else that is suspect was aboard.
    DiedAlone,
}

/// Makes an [`Op::Join`], whose fields have defaults: those of [`NodeConfig`](crate::NodeConfig), of a session that was told
/// of no revision yet, and of a program as new as this library.
#[derive(Clone, Debug)]
#[must_use]
pub struct Join {
    session: SessionId,
    node: NodeId,
    affinity: u32,
    capacity: Option<u32>,
    lease_ms: u32,
    seen: Revision,
    reads: u16,
}

impl Join {
    /// How much work it wants.
    pub fn affinity(mut self, affinity: u32) -> Self {
        self.affinity = affinity;
        self
    }

    /// Most keys that it holds at once.
    pub fn capacity(mut self, capacity: Option<u32>) -> Self {
        self.capacity = capacity;
        self
    }

    /// How long it may be silent, in milliseconds.
    pub fn lease_ms(mut self, lease_ms: u32) -> Self {
        self.lease_ms = lease_ms;
        self
    }

    /// A revision of the group that the node has been told.
    pub fn seen(mut self, seen: Revision) -> Self {
        self.seen = seen;
        self
    }

    /// The newest format that the node's program reads.
    pub fn reads(mut self, reads: u16) -> Self {
        self.reads = reads;
        self
    }

    /// The op.
    pub fn build(self) -> Op {
        let Self { session, node, affinity, capacity, lease_ms, seen, reads } = self;
        Op::Join { session, node, affinity, capacity, lease_ms, seen, reads }
    }
}

impl Op {
    /// A node opens a session.
    pub fn join(session: SessionId, node: NodeId) -> Join {
        let (affinity, capacity, lease_ms) = (1000, None, 3000);
        Join { session, node, affinity, capacity, lease_ms, seen: Revision(0), reads: format::NEWEST }
    }

    /// The leader gives a free key to a session.
    pub fn assign(term: Term, key: Key, session: SessionId) -> Self {
        Self::Assign { term, key, session }
    }

    /// The owner, which had begun, no longer acts on the key.
    pub fn confirm(session: SessionId, key: Key, token: Token) -> Self {
        Self::Confirm { session, key, token, started: true }
    }

    /// The owner gives a key back that it never began.
    pub fn decline(session: SessionId, key: Key, token: Token) -> Self {
        Self::Confirm { session, key, token, started: false }
    }

    /// An owner gives up work of the first generation, without a pause or a failure.
    pub fn give_up(session: SessionId, key: Key, token: Token) -> Self {
        Self::GiveUp { session, key, token, generation: 1, pause_ms: 0, failures: 0, why: Text::default() }
    }

    /// An owner completes work of the first generation.
    pub fn complete(session: SessionId, key: Key, token: Token) -> Self {
        Self::Complete { session, key, token, generation: 1 }
    }

    /// Checks every number and length. Names are checked by their types.
    ///
    /// # Errors
    /// [`InvalidInput`] that names the first limit that is broken.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        match self {
            Self::Add(work) => work.validate(),
            Self::Join { affinity, .. } | Self::SetAffinity { affinity, .. } => affinity_in_range((*affinity).into()),
            Self::Checkpoint { bytes, .. } => size("checkpoint", bytes.len(), limits::MAX_CHECKPOINT_BYTES),
            Self::GiveUp { pause_ms, .. } => range("pause", (*pause_ms).into(), 0, limits::MAX_PAUSE_MS.into()),
            Self::Advance { elapsed_ms, .. } => {
                range("elapsed time", (*elapsed_ms).into(), 0, limits::MAX_ADVANCE_MS.into())
            }
            _ => Ok(()),
        }
    }

    /// About how many bytes of user data the op carries: what a batch is bounded by.
    pub fn bytes(&self) -> usize {
        64 + match self {
            Self::Add(work) => work.key.as_str().len() + work.payload.len(),
            Self::Checkpoint { key, bytes, .. } => key.as_str().len() + bytes.len(),
            Self::GiveUp { key, why, .. } | Self::SetAside { key, why, .. } => key.as_str().len() + why.len(),
            Self::Remove { key }
            | Self::Retry { key }
            | Self::Confirm { key, .. }
            | Self::Complete { key, .. }
            | Self::Clear { key, .. }
            | Self::Absolve { key, .. }
            | Self::Assign { key, .. }
            | Self::Revoke { key, .. }
            | Self::Force { key, .. }
            | Self::Quarantine { key, .. } => key.as_str().len(),
            _ => 0,
        }
    }
}

/// Checks an affinity.
pub(crate) fn affinity_in_range(affinity: i128) -> Result<(), InvalidInput> {
    range("affinity", affinity, 0, limits::MAX_AFFINITY.into())
}

/// What the ledger did with one [`Op`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; something changed.
    Done,
    /// It was so already; nothing changed.
    Unchanged,
    /// The affinity is now this.
    Affinity(u32),
    /// The key belongs to the session, under this token.
    Granted(Token),
    /// Refused; nothing changed.
    Refused(Refusal),
}

/// Why the ledger refused an [`Op`]. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No such key.
    #[error("no such key")]
    UnknownKey,
    /// The session does not own the key under this token.
    #[error("the session does not own the key under this token")]
    StaleToken,
    /// The session is unknown or has ended.
    #[error("the session is unknown or has ended")]
    SessionEnded,
    /// The session takes no work: it drains, or its affinity is 0.
    #[error("the session takes no work")]
    NotTaking,
    /// The session holds as many keys as it has room for.
    #[error("the session has no room")]
    NoRoom,
    /// The key is not free.
    #[error("the key is not free")]
    NotFree,
    /// The key is not quarantined.
    #[error("the key is not quarantined")]
    NotQuarantined,
    /// The key is not being stopped.
    #[error("the key is not being stopped")]
    NotStopping,
    /// The term is not the current one.
    #[error("the term is not the current one")]
    OldTerm,
    /// The session's beat has moved.
    #[error("the session's beat has moved")]
    StillBeating,
    /// A new lineage has begun, and grants are held back.
    #[error("grants are held back after a new lineage of the store")]
    GrantsHeld,
    /// The affinity would leave its range; this is what it would have become.
    #[error("the affinity would be {0}")]
    AffinityOutOfRange(i64),
    /// A session has ended since the revision that the join names, or the group has never been there: join again with the
    /// revision that came with this answer.
    #[error("a session has ended since the join was made")]
    Late,
    /// The group is, or would be, written in a format that a session does not read.
    #[error("the group needs programs that read format {needs}")]
    TooOld {
        /// The format.
        needs: u16,
    },
    /// A batch of the sender with this serial number or a higher one has been applied. What became of the ops is for that
    /// batch to say.
    #[error("a copy: this batch of the sender or a later one has been applied")]
    Superseded,
}

/// What became of a batch of ops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// One for each op, in the same order.
    pub outcomes: Vec<Outcome>,
    /// The group's revision after the batch.
    pub revision: Revision,
}

/// A session, as the leader and the followers of a group see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Which.
    pub session: SessionId,
    /// Who, for people.
    pub node: NodeId,
    /// How much work it wants.
    pub affinity: u32,
    /// Most keys that it holds at once.
    pub capacity: Option<u32>,
    /// How long it may be silent, in milliseconds.
    pub lease_ms: u32,
    /// Takes no work any more.
    pub draining: bool,
    /// Has had its share since it joined.
    pub settled: bool,
    /// Set once it has ended: keys still in its name are free, and this says what its end means for them.
    pub ended: Option<Verdict>,
    /// The newest format that its program reads.
    pub reads: u16,
    /// The last token that had been issued when it joined: grants with higher ones are younger than the session.
    pub joined: Token,
}

impl SessionView {
    /// Whether the ledger would give it a key, room aside.
    pub fn takes_work(&self) -> bool {
        self.ended.is_none() && !self.draining && self.affinity > 0
    }
}

/// What is true of the group as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// The newest leadership.
    pub term: Term,
    /// Who leads, if anybody.
    pub leader: Option<SessionId>,
    /// A new lineage has begun; nothing is granted until the leader has waited a lease.
    pub grants_held: bool,
    /// Ledger time, in milliseconds: it goes on while somebody leads and a key rests, and never back.
    pub time_ms: u64,
    /// The format that the group is written in; 0 before the first session.
    pub format: u16,
}

/// One thing that is different now. Each carries the whole new state of what it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The key is new, or stands like this now.
    Key(KeyView),
    /// The key has ended.
    KeyGone(Key),
    /// The session is new, or stands like this now.
    Session(SessionView),
    /// The session has ended and no key is in its name any more.
    SessionGone(SessionId),
    /// The group stands like this now.
    Group(GroupView),
}

/// All changes of one [`apply`](crate::Store::apply), in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The group's revision with these changes; the one before it is lower by one.
    pub revision: Revision,
    /// The changes.
    pub changes: Vec<Change>,
}

/// One key that a session holds, with all that its node hands to the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The key.
    pub key: Key,
    /// The ownership's token.
    pub token: Token,
    /// Which attempt this is, from 1.
    pub attempts: u32,
    /// See [`KeyView::generation`]. Whoever says that the work is done says which.
    pub generation: u32,
    /// See [`KeyView::failures`].
    pub failures: u32,
    /// See [`Work::weight`].
    pub weight: u32,
    /// See [`Work::priority`].
    pub priority: i32,
    /// See [`Work::payload`].
    pub payload: Blob,
    /// What the owner before wanted this one to know.
    pub checkpoint: Blob,
    /// Set where it is to be stopped.
    pub stopping: Option<StopReason>,
}

/// What a session is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// The key is yours.
    Granted(Holding),
    /// Stop the key.
    Stop {
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
        /// Why.
        reason: StopReason,
    },
    /// The key has been taken without your confirmation.
    Taken {
        /// The key.
        key: Key,
        /// The ownership's token.
        token: Token,
    },
    /// The session is over.
    Ended,
}

/// All notices of one [`apply`](crate::Store::apply) to one session, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Counts the messages to a session from 1, without gaps.
    pub seq: u64,
    /// The notices.
    pub notices: Vec<Notice>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::NodeConfig, record::Work};

    #[test]
    fn a_join_has_the_defaults_of_the_configuration() {
        let (config, session, node) = (NodeConfig::default(), SessionId::fresh(), NodeId::new("n").unwrap());
        let expected = Op::Join {
            session,
            node: node.clone(),
            affinity: config.affinity,
            capacity: config.capacity,
            lease_ms: u32::try_from(config.lease.as_millis()).unwrap(),
            seen: Revision(0),
            reads: config.reads,
        };
        assert_eq!(Op::join(session, node).build(), expected);
    }

    #[test]
    fn what_was_never_begun_is_declined() {
        let (session, key, token) = (SessionId::fresh(), Work::new("k").unwrap().key, Token(3));
        let started = |op| matches!(op, Op::Confirm { started: true, .. });
        assert!(started(Op::confirm(session, key.clone(), token)));
        assert!(!started(Op::decline(session, key, token)));
    }
}
