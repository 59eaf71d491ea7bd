//! The narrow waist: all that Divider asks of a backend.
//!
//! # Why it looks like this
//! A backend only stores. It applies [`Op`]s exactly as the [`Ledger`](crate::Ledger) does, and it passes on what
//! changed. It decides nothing: who gets a key, who is dead, and who should lead are decided above it, by code that is the
//! same for every backend. What differs between a shared server, a database and a replicated log is only how a batch is
//! made atomic, how a renewal comes to count, and how a leader is found; each of these is one method.
//!
//! # What every implementation promises
//! - [`apply`](Store::apply) is atomic and linearizable: all ops of a batch in order, nothing in between, and the effect
//!   is as durable as the backend can make it when the call returns.
//! - Revisions rise by one with every batch that changed something, and messages to a session are numbered from 1
//!   without gaps, so that a reader can tell by itself that it has missed something.
//! - Hints may be lost, delayed, doubled or reordered. The reads are the truth.
//! - A call that fails with [`StoreError::Unavailable`] or [`StoreError::Timeout`] may have happened.
//! - Every call has a time limit of the backend's own, well below the lease.
//! - No clock of the backend decides anything.
//! - A new *lineage* (a store that may have forgotten something) ends every session and sets
//!   [`GroupView::grants_held`] before anything else is applied.
//!
//! # What may be added later
//! Methods of [`Store`] get a default. [`Op`], [`Outcome`](crate::Outcome), [`Change`](crate::Change),
//! [`Notice`](crate::Notice), [`Claim`] and [`Topic`] are exhaustive on purpose, and what a store keeps or reads back
//! ([`Record`], [`KeyView`], [`SessionView`], [`GroupView`], [`Holding`], ...) is plain data: a store must know every op
//! and keep every field, so one more of them is a new major version, which a backend notices by no longer compiling.
//! What is only passed on ([`Refusal`](crate::Refusal), [`StoreError`], [`Stats`]) may grow in any release.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

use crate::{
    error::StoreError,
    ids::{Beat, Key, Revision, SessionId, Term, Token},
    op::{Applied, Batch, GroupView, Holding, Message, Op, SessionView},
    record::{KeyView, Record},
};

/// Wake-ups of a backend. The end of the stream is a gap, like [`Hint::Gap`]: subscribe again, then read.
pub type HintStream = Pin<Box<dyn Stream<Item = Hint> + Send>>;

/// The authority of one group, as a backend offers it. One value serves one node and one group.
///
/// # Cancel safety
/// A dropped future of a writing call leaves its effect unknown, like a time limit that passed. Reads are cancel safe.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Name of the backend, as a metric label: `memory`, `redis`, ...
    fn name(&self) -> &'static str;

    /// Connects and checks that the backend is set up so that the promises above can be kept. May be called again after a
    /// failure.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`] with what to change; [`StoreError::Unavailable`] where it cannot be reached.
    async fn open(&self) -> Result<(), StoreError>;

    /// Applies a batch, as [`Ledger::apply`](crate::Ledger::apply) does. At most
    /// [`MAX_BATCH_OPS`](crate::limits::MAX_BATCH_OPS) ops, each valid by [`Op::validate`].
    ///
    /// # Errors
    /// As a whole, with nothing applied or unknown; a refused op is an [`Outcome`](crate::Outcome), not an error.
    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError>;

    /// Raises the session's beat. Once this has returned, no leader that saw an earlier beat can expire the session.
    ///
    /// Called on a thread and an asynchronous runtime of its own, which goes on when the program's runtimes are blocked:
    /// an implementation must not depend on tasks that were spawned elsewhere, so it opens a connection of its own here.
    /// The beat is no change: it wakes nobody and does not raise the revision.
    ///
    /// # Errors
    /// [`StoreError::SessionEnded`] where the session is unknown or over.
    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError>;

    /// Looks at leadership and at how far the group and the session have come, and claims leadership where `claim` says
    /// so. This is the only regular call of an idle node beside [`renew`](Self::renew), so it must be cheap.
    ///
    /// # Errors
    /// [`StoreError::SessionEnded`] where the session is unknown or over.
    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError>;

    /// Gives leadership up, so that another node can take it at once. Nothing happens where the term is over already.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError>;

    /// The beats of all living sessions. One that has never been renewed may be left out: its beat is 0.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError>;

    /// The living sessions whose connection the store has seen end, and whose node has not come back since. Asked for by a
    /// leader with a [`lock_delay`](crate::NodeConfig::lock_delay) only. A store that does not notice such a thing knows of
    /// none.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn gone(&self) -> Result<Vec<SessionId>, StoreError> {
        Ok(Vec::new())
    }

    /// Living sessions of which the store can tell how long, at least, nothing was sent that counts before this beat: no
    /// renewal, and no join. Asked for once by each new leader, whose own watches begin only then, after it has read
    /// [`beats`](Self::beats). It is told with the beat, since whoever answers may not be the one who told the beats, and may
    /// not know of later ones. A store that cannot tell, as most cannot without a clock, knows of none.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn silences(&self) -> Result<Vec<(SessionId, Beat, Duration)>, StoreError> {
        Ok(Vec::new())
    }

    /// All that a session holds: the truth behind the messages to it.
    ///
    /// # Errors
    /// [`StoreError::SessionEnded`] where the session is unknown or over.
    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError>;

    /// The batches that follow `since`, in order and without gaps; perhaps not all, but at least one if there is any.
    /// `None` where they are no longer kept, or `since` is not in this lineage's past: then only
    /// [`scan`](Self::scan) helps.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError>;

    /// Reads the whole group, page by page, beginning with `None`. Pages may be of different revisions: every key that
    /// existed all the while appears at least once, and applying all batches after the *first* page's revision, up to the
    /// last page's or beyond, gives an exact state.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError>;

    /// Reads single records, `None` for each key that does not exist.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError>;

    /// Counts the keys by state.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn stats(&self) -> Result<Stats, StoreError>;

    /// The quarantined keys, at most `limit` of them, for whatever reason they were set aside.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError>;

    /// Subscribes. When this returns the subscription stands: whatever is applied from now on is hinted at, or lost to
    /// a gap.
    ///
    /// # Errors
    /// Only those of the connection.
    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError>;

    /// Closes what this value opened itself. Later calls fail with [`StoreError::Closed`]. A node waits 10 s for it, at most.
    async fn close(&self);
}

/// What a subscription is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Topic {
    /// The messages to one session, and that leadership has become free.
    Session(SessionId),
    /// Every change of the group.
    Group,
}

/// A wake-up. Never the truth by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hint {
    /// A message to the session.
    Message(Message),
    /// The changes of a batch.
    Batch(Batch),
    /// Leadership has become free.
    LeaderGone,
    /// Something was missed, or is too large to be sent: read.
    Gap,
}

/// What a node wants of leadership in a [`poll`](Store::poll).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// Only to look.
    Follow,
    /// To lead if nobody does. `stale` is a leadership that the caller has seen stand still for a whole lease on its own
    /// clock: a store whose leadership is a lease replaces it if it still stands there; a store that notices a leader's
    /// death by itself ignores it.
    Take {
        /// The leadership that stood still.
        stale: Option<(Term, Beat)>,
    },
    /// To go on leading. This renews a leadership that is a lease.
    Lead {
        /// The term that the caller leads in.
        term: Term,
    },
}

/// The answer to a [`poll`](Store::poll). The caller leads if, and only if, [`leader`](Self::leader) names its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollReply {
    /// Who leads.
    pub leader: Option<LeaderView>,
    /// The group's revision.
    pub revision: Revision,
    /// The last token that was issued: whoever remembers when it first saw which, can tell how old a grant is.
    pub token: Token,
    /// Number of the last message to the session.
    pub seq: u64,
}

/// A leadership as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderView {
    /// Its term.
    pub term: Term,
    /// Whose it is.
    pub session: SessionId,
    /// How often it has been renewed. A store that frees a dead leader's leadership by itself may always say 0.
    pub beat: Beat,
    /// The beat of the leader's own session, where it lives.
    pub session_beat: Option<Beat>,
    /// Whether the store frees the leadership by itself and sends [`Hint::LeaderGone`] when the leader's process dies, so
    /// that the others need not look after it often.
    pub watched: bool,
}

/// All that a session holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Number of the last message to the session that these holdings include.
    pub seq: u64,
    /// The keys, in no particular order.
    pub holdings: Vec<Holding>,
}

/// One page of a [`scan`](Store::scan).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The group's revision when the page was read.
    pub revision: Revision,
    /// The group, as of this page.
    pub group: GroupView,
    /// All sessions, on the first page; empty on the others.
    pub sessions: Vec<SessionView>,
    /// Some of the keys.
    pub keys: Vec<KeyView>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<Cursor>,
}

/// A place in a [`scan`](Store::scan), in a form that only its backend reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor(pub Vec<u8>);

/// How many keys stand where. `registered = assigned + pending + stopping + quarantined`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Living sessions.
    pub sessions: u64,
    /// All keys.
    pub registered: u64,
    /// Keys that a living session owns and was not asked to stop.
    pub assigned: u64,
    /// Keys without a living owner, waiting for one.
    pub pending: u64,
    /// Keys whose living owner has been asked to stop.
    pub stopping: u64,
    /// Keys set aside, for either reason: their owners kept dying ([`Aside::Deaths`](crate::Aside::Deaths)), or an owner said that
    /// the work cannot succeed ([`Aside::Failed`](crate::Aside::Failed), by [`set_aside`](crate::Divider::set_aside) or because a
    /// [`Worker`](crate::Worker)'s task failed too often in a row).
    pub quarantined: u64,
}

/// A store behind a pointer is a store, so that a program can choose one while it runs.
macro_rules! behind {
    ($pointer:ident) => {
        #[async_trait]
        impl<S: Store + ?Sized> Store for $pointer<S> {
            fn name(&self) -> &'static str {
                (**self).name()
            }
            async fn open(&self) -> Result<(), StoreError> {
                (**self).open().await
            }
            async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
                (**self).apply(ops).await
            }
            async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
                (**self).renew(session).await
            }
            async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
                (**self).poll(session, claim).await
            }
            async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
                (**self).resign(session, term).await
            }
            async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
                (**self).beats().await
            }
            async fn gone(&self) -> Result<Vec<SessionId>, StoreError> {
                (**self).gone().await
            }
            async fn silences(&self) -> Result<Vec<(SessionId, Beat, Duration)>, StoreError> {
                (**self).silences().await
            }
            async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
                (**self).holdings(session).await
            }
            async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
                (**self).changes(since).await
            }
            async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
                (**self).scan(cursor).await
            }
            async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
                (**self).records(keys).await
            }
            async fn stats(&self) -> Result<Stats, StoreError> {
                (**self).stats().await
            }
            async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
                (**self).quarantined(limit).await
            }
            async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
                (**self).hints(topic).await
            }
            async fn close(&self) {
                (**self).close().await;
            }
        }
    };
}
behind!(Arc);
behind!(Box);
