//! The interface that programs use, the same for every backend.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::Stream;

use crate::{
    error::Error,
    ids::{Key, NodeId, SessionId, Token},
    op::Holding,
    record::{Blob, Record, StopReason, Work},
    store::Stats,
};

/// One node of a group: reads which keys to start and to stop, and says how much work it wants.
///
/// Object-safe, so that `Arc<dyn Divider>` lets a program choose its backend from its configuration. See
/// [`Node`](crate::Node) for the implementation, which is the same for every backend.
///
/// A program's own tests may implement it, too: whatever it hands out can be made ([`Assignment::new`], [`Stop::new`],
/// [`Events::new`], ...). Methods that are added later have a default, so that such an implementation goes on to compile.
///
/// # The rules of delivery
/// 1. For each key the program reads start (token t1), stop (t1), start (t2), ... with rising tokens, never two starts in
///    a row. A start is held back until the stop before it has been read and confirmed.
/// 2. The queues hold at most one event per key, so a slow reader costs no memory and delays nobody. A start that was
///    revoked before it was read is never seen.
/// 3. After a lost session, a stop with reason [`Lost`](StopReason::Lost) is read for every key that had been started,
///    before any new start.
/// 4. Every stop wants a [`confirm_stop_processing`](Self::confirm_stop_processing), `Lost` ones too.
/// 5. Each queue has one reader at a time: whoever reads stops is who confirms, and two of them would confirm each other's
///    keys while they run. A stream is the reader from its first read on, or at once if it comes from
///    [`take_events`](Self::take_events), and until it is dropped.
///
/// # Dropping
/// Dropping the last handle is safe: the node stops renewing, and its keys move when its lease has run out. Awaiting
/// [`flush_and_cancel`](Self::flush_and_cancel) first is graceful: they move at once.
#[async_trait]
pub trait Divider: Send + Sync + 'static {
    /// Joins the group; nothing is delivered before. Idempotent: on a started node it does nothing.
    ///
    /// # Errors
    /// [`Error::Store`] where the store cannot be reached or is not set up for Divider: the node is not started, and the
    /// call may be repeated. [`Error::Cancelled`] after [`cancel`](Self::cancel), [`Error::Died`] where a part of the node has
    /// died; so do all others.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have started the node; call it again.
    async fn start(&self) -> Result<(), Error>;

    /// Keys to start. The stream ends after [`cancel`](Self::cancel). A second stream that reads starts while this one does
    /// ends at once, and an error is logged.
    fn start_processing(&self) -> Events<Assignment>;

    /// Keys to stop. The stream ends after [`cancel`](Self::cancel). A second stream that reads stops while this one does
    /// ends at once, and an error is logged.
    fn stop_processing(&self) -> Events<Stop>;

    /// Starts and stops in one stream, in the order in which they came about. It reads both queues: read either this one,
    /// or [`start_processing`](Self::start_processing) and [`stop_processing`](Self::stop_processing). A second reader of
    /// either queue ends at once, and an error is logged; [`take_events`](Self::take_events) says so in its answer.
    fn events(&self) -> Events<Event>;

    /// As [`events`](Self::events), and from now on nobody else reads, until the stream is dropped.
    ///
    /// # Errors
    /// [`Error::AlreadyRead`] where somebody reads a queue of this node already: nothing has changed.
    fn take_events(&self) -> Result<Events<Event>, Error>;

    /// The name of this node, for people.
    fn node(&self) -> &NodeId;

    /// Whether this node leads its group at the moment, as far as it knows. Local: no I/O, no waiting.
    fn is_leader(&self) -> bool {
        false
    }

    /// The current session; `None` before the start, after the end, and between a loss and the next join. A node with a
    /// session is ready for work, so this is what a readiness probe should ask. Local: no I/O, no waiting.
    fn session(&self) -> Option<SessionId>;

    /// Waits until [`session`](Self::session) is not `from`: until the node has lost it, or has the next one. On a node that has
    /// ended it returns at once.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn session_changed(&self, from: Option<SessionId>);

    /// The program no longer acts on the key. Once this has returned, the key is free for its next owner. For a stop with
    /// reason [`Lost`](StopReason::Lost) it returns at once: the key may now be started here again. Where the session is lost
    /// before the store has heard of it, it returns as well: then the key is free when the lease is over.
    ///
    /// # Errors
    /// [`Error::NotStopping`] where no stop has been read for it (it is still yours), [`Error::UnknownKey`] and
    /// [`Error::StaleToken`] where it is not held under this token. None of them changes anything.
    ///
    /// # Cancel safety
    /// Once polled, the confirmation is carried out even if the future is dropped.
    async fn confirm_stop_processing(&self, key: &Key, token: Token) -> Result<(), Error>;

    /// Gives the key up: a stop follows in the stream, and after its confirmation the key goes to another node, or comes
    /// back if no other takes it.
    ///
    /// # Errors
    /// As [`give_up`](Self::give_up).
    async fn send_stop_processing(&self, key: &Key, token: Token) -> Result<(), Error> {
        self.give_up(key, token, Duration::ZERO).await
    }

    /// Like [`send_stop_processing`](Self::send_stop_processing), but nobody starts the key again before `pause` has passed.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    async fn give_up(&self, key: &Key, token: Token, pause: Duration) -> Result<(), Error> {
        self.release(key, token, Release::after(pause)).await
    }

    /// Like [`send_stop_processing`](Self::send_stop_processing), with a pause and a failure that stay with the key. They are
    /// not kept where the work was declared again since it was given to this node: they would be about the work of before.
    ///
    /// # Errors
    /// [`Error::UnknownKey`], [`Error::StaleToken`] or [`Error::Lost`]; nothing has changed.
    async fn release(&self, key: &Key, token: Token, release: Release) -> Result<(), Error>;

    /// Sets the key aside: the work cannot succeed without a person. Nobody starts it before it is [retried](Self::retry) or
    /// declared again. Nothing more needs to be confirmed. `why` is kept with the key, up to
    /// [`MAX_WHY_BYTES`](crate::limits::MAX_WHY_BYTES); the rest is cut. Where the work was declared again since it was given
    /// to this node, it goes to its next owner instead.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    async fn set_aside(&self, key: &Key, token: Token, why: &str) -> Result<(), Error>;

    /// The work is done for good: the key ends, everywhere. Nothing more needs to be confirmed.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] and [`Error::StaleToken`]: nothing has changed. [`Error::Lost`]: the ownership ended before
    /// the store answered; the work may count as done or may be given to another node.
    async fn complete(&self, key: &Key, token: Token) -> Result<(), Error>;

    /// Keeps bytes for the key's next owner, up to [`MAX_CHECKPOINT_BYTES`](crate::limits::MAX_CHECKPOINT_BYTES). It returns
    /// when the store has kept them: while the store does not answer it waits, until the session is lost. It works for as long as the key is yours, also between a stop and its confirmation. That is the moment for the last
    /// checkpoint: the work has ended, and the next owner starts only after the confirmation.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::UnknownKey`] and [`Error::StaleToken`]: nothing has changed. [`Error::Lost`]: the
    /// bytes may or may not have been kept.
    ///
    /// # Cancel safety
    /// Once polled, the bytes are kept even if the future is dropped, unless those of a later call take their place.
    async fn checkpoint(&self, key: &Key, token: Token, bytes: Blob) -> Result<(), Error>;

    /// What this node holds now, from memory, in no particular order. The list is as of the call and shared among callers:
    /// it is made anew, O(keys held), only when something has changed since the last call.
    fn assigned(&self) -> Arc<[Assigned]>;

    /// Whether this node may act on the key now: it was started under this token, the stop is not confirmed, and the
    /// lease has not run out. Local: no I/O, no waiting.
    fn is_current(&self, key: &Key, token: Token) -> bool;

    /// The token under which this node may act on the key now, if it may; see [`is_current`](Self::is_current). Local: no
    /// I/O, no waiting.
    fn token(&self, key: &Key) -> Option<Token> {
        let token = self.assigned().iter().find(|assigned| assigned.key == *key)?.token;
        self.is_current(key, token).then_some(token)
    }

    /// The node's affinity, as last acknowledged by the store.
    fn affinity(&self) -> u32;

    /// Sets how much work the node wants, in proportion to the other nodes. 0 means no new work; to give up what runs
    /// as well, [`flush`](Self::flush).
    ///
    /// Under [`Balance::OnJoin`](crate::Balance::OnJoin), the default, nothing that runs is moved by it: it decides
    /// who is given keys that become free, and what the next join, or [`rebalance`](Self::rebalance), moves. With
    /// [`Balance::Continuous`](crate::Balance::Continuous) on the node that leads, running keys move as soon as a node
    /// is above its quota by more than the tolerance; with affinity 0, its quota is nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is below 0 or above [`MAX_AFFINITY`](crate::limits::MAX_AFFINITY): nothing has changed.
    async fn set_affinity(&self, affinity: i64) -> Result<(), Error>;

    /// Changes the affinity by a difference, atomically in the store, and returns the new one.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it would leave its range: nothing has changed.
    async fn alter_affinity(&self, by: i64) -> Result<u32, Error>;

    /// Drains the node: no new work, a stop with reason [`Flushed`](StopReason::Flushed) for every key, and a return when
    /// all are confirmed, or when the flush time limit has passed. Final for this node; calling it again waits again.
    ///
    /// Many keys are stopped part by part, so that each is without an owner for a short time only; a part that takes longer
    /// to stop holds the next one up by no more than 20 ms.
    ///
    /// The stops are told whether the store answers or not. Where it does not answer until the lease has run out, the session is
    /// lost, and with it every key whose end the store has not acknowledged: the flush ends when their work has, and
    /// [`Flushed::lost`] names them. That is no error, so look at [`Flushed::is_clean`].
    ///
    /// # Errors
    /// [`Error::NotStarted`], [`Error::Cancelled`], [`Error::Died`].
    ///
    /// # Cancel safety
    /// Once polled, the drain goes on even if the future is dropped; call again to wait for its end.
    async fn flush(&self) -> Result<Flushed, Error>;

    /// What [`flush`](Self::flush) would return if it returned now: what is not confirmed, and what was lost since a flush
    /// began. Also of a node that has ended, as of then. From memory: no I/O, no waiting.
    fn flushed(&self) -> Flushed;

    /// Leaves the group, closes connections and ends the streams. If the store does not answer, it hears of nothing, and the lease
    /// runs out. Keys that are not confirmed yet are not freed: their work
    /// may still be running, so they wait until the lease has run out. A node that leads first gives out what it has freed,
    /// which may take it up to half a second. Idempotent.
    ///
    /// # Errors
    /// None at present.
    ///
    /// # Cancel safety
    /// Once polled, the node ends even if the future is dropped, perhaps without a word to the store.
    async fn cancel(&self) -> Result<(), Error>;

    /// Ends the node at once and without a word to the store, as if its process had died: nothing is current any more, the
    /// streams end, and the keys move when the lease has run out. Idempotent. For whoever cannot wait;
    /// [`cancel`](Self::cancel) is kinder.
    fn abandon(&self);

    /// [`flush`](Self::flush), then [`cancel`](Self::cancel), whatever became of the flush. [`Flushed::is_clean`] says whether
    /// every key was given back in an orderly way.
    ///
    /// # Errors
    /// Those of `flush`.
    async fn flush_and_cancel(&self) -> Result<Flushed, Error> {
        let flushed = self.flush().await;
        self.cancel().await?;
        flushed
    }

    /// Declares work by hand. Known keys take the new weight, priority, due time and payload, and stay where they are.
    /// Works on a node that was started and has not been cancelled, whether it takes work or not. A node that has just lost
    /// its session joins again first, so that no late copy of the declaration can undo a newer one.
    ///
    /// # Errors
    /// [`Error::Invalid`]: nothing has been added. [`Error::Store`], or [`Error::NoSession`] where the node had no session
    /// within [`call_time_limit`](crate::NodeConfig::call_time_limit): some may have been added; the call may be repeated.
    async fn add_work(&self, work: Vec<Work>) -> Result<(), Error>;

    /// The keys are no longer wanted. Owners are asked to stop first. Unknown keys are passed over. Waits for a session as
    /// [`add_work`](Self::add_work) does.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::NoSession`]: some may have been removed; the call may be repeated.
    async fn remove_work(&self, keys: Vec<Key>) -> Result<(), Error>;

    /// Lets a quarantined key run again, for whatever reason it was set aside. Waits for a session as
    /// [`add_work`](Self::add_work) does.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] where it is not quarantined: nothing has changed. [`Error::Store`]: it may have been done.
    /// [`Error::NoSession`]: nothing has changed.
    async fn retry(&self, key: &Key) -> Result<(), Error>;

    /// The quarantined keys, at most `limit` of them, for whatever reason they were set aside.
    ///
    /// # Errors
    /// [`Error::Store`].
    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, Error>;

    /// Asks the leader to restore balance now, as if every node had just joined.
    ///
    /// # Errors
    /// [`Error::Store`].
    async fn rebalance(&self) -> Result<(), Error>;

    /// Lets the group be written in the newest [format](crate::format) that this node's program reads, without waiting for
    /// [`step_after`](crate::NodeConfig::step_after). Whether it is so now: not where a living session's program does not read
    /// it, and then nothing has changed. A group that has stepped up never goes back: from then on no older version of the
    /// program can join.
    ///
    /// Any node may say it, whether it leads or not: an operator's word replaces the wait, and nothing else.
    ///
    /// # Errors
    /// [`Error::Store`]: it may have been done; the call may be repeated.
    async fn step_up(&self) -> Result<bool, Error>;

    /// Reads a key's record from the store, whoever owns it.
    ///
    /// # Errors
    /// [`Error::Store`].
    async fn record(&self, key: &Key) -> Result<Option<Record>, Error>;

    /// Counts the group's keys by state.
    ///
    /// # Errors
    /// [`Error::Store`].
    async fn stats(&self) -> Result<Stats, Error>;
}

/// What can be used as a [`Divider`]: a [`Node`](crate::Node) or any other implementation, or an `Arc` of one.
pub trait IntoDivider {
    /// A handle to it.
    fn into_divider(self) -> Arc<dyn Divider>;
}

impl<D: Divider> IntoDivider for D {
    fn into_divider(self) -> Arc<dyn Divider> {
        Arc::new(self)
    }
}

impl<D: Divider> IntoDivider for Arc<D> {
    fn into_divider(self) -> Arc<dyn Divider> {
        self
    }
}

impl IntoDivider for Arc<dyn Divider> {
    fn into_divider(self) -> Self {
        self
    }
}

/// How a key that is given up goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    pub(crate) pause: Duration,
    pub(crate) failed: Option<(u32, String)>,
}

impl Release {
    /// Nobody starts the key before `pause` has passed, counted by whoever leads from when it hears of this. A change of
    /// leader may shorten what is left by up to a second. Longer ones than
    /// [`MAX_PAUSE_MS`](crate::limits::MAX_PAUSE_MS) are cut.
    pub fn after(pause: Duration) -> Self {
        Self { pause, failed: None }
    }

    /// The work has failed for the reason `why`, which makes so many `failures` in a row. The next owner is told of the number
    /// ([`Assignment::failures`]), and the [record](Divider::record) says why.
    #[must_use]
    pub fn failed(mut self, failures: u32, why: impl Into<String>) -> Self {
        self.failed = Some((failures, why.into()));
        self
    }
}

/// A key to start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assignment {
    /// The key.
    pub key: Key,
    /// Send this along with every write that the work makes, and let the sink refuse tokens lower than the highest it
    /// has seen: then no old owner can overwrite a newer one.
    pub token: Token,
    /// Which attempt this is, from 1.
    pub attempts: u32,
    /// See [`KeyView::generation`](crate::KeyView::generation).
    pub generation: u32,
    /// See [`KeyView::failures`](crate::KeyView::failures).
    pub failures: u32,
    /// See [`Work::weight`].
    pub weight: u32,
    /// See [`Work::priority`].
    pub priority: i32,
    /// See [`Work::payload`].
    pub payload: Blob,
    /// What the owner before wanted this one to know.
    pub checkpoint: Blob,
}

impl Assignment {
    /// The first attempt at work of the first generation, with nothing but a name.
    pub fn new(key: Key, token: Token) -> Self {
        let (payload, checkpoint) = (Blob::default(), Blob::default());
        Self { key, token, attempts: 1, generation: 1, failures: 0, weight: 1, priority: 0, payload, checkpoint }
    }
}

impl From<Holding> for Assignment {
    fn from(holding: Holding) -> Self {
        let Holding { key, token, attempts, generation, failures, weight, priority, payload, checkpoint, .. } = holding;
        Self { key, token, attempts, generation, failures, weight, priority, payload, checkpoint }
    }
}

/// A key to stop. Confirm it when nothing acts on the key any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stop {
    /// The key.
    pub key: Key,
    /// The token that it was started with.
    pub token: Token,
    /// Why.
    pub reason: StopReason,
}

impl Stop {
    /// For those who implement [`Divider`] themselves, and for tests of programs.
    pub fn new(key: Key, token: Token, reason: StopReason) -> Self {
        Self { key, token, reason }
    }
}

/// A start or a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A key to start.
    Start(Assignment),
    /// A key to stop.
    Stop(Stop),
}

/// A key that this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assigned {
    /// The key.
    pub key: Key,
    /// The token of this ownership.
    pub token: Token,
    /// Whether the start has been read from the stream.
    pub started: bool,
    /// Set where it has been asked to stop.
    pub stopping: Option<StopReason>,
}

impl Assigned {
    /// A key that is held.
    pub fn new(key: Key, token: Token, started: bool, stopping: Option<StopReason>) -> Self {
        Self { key, token, started, stopping }
    }
}

/// How a flush ended, or how it stands.
///
/// [`is_clean`](Self::is_clean) says in one word whether everything has gone as it should; a program that ends should say so in
/// its log and in its exit code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "it names the keys that were not stopped, not handed over, or lost"]
#[non_exhaustive]
pub struct Flushed {
    /// Keys that were not confirmed within the time limit, or of which the store has not acknowledged the confirmation. They move
    /// when the lease has run out; those that are being stopped as [`Lost`](StopReason::Lost) may have moved already.
    pub unconfirmed: Vec<Assigned>,
    /// Keys that the node still had when its session was lost after the flush had begun, such as in an outage of the store: the
    /// store had not acknowledged their end, so they moved only when the lease had run out, and whatever was not kept by then
    /// was not handed over. Where their work may still be running, they are among the unconfirmed as well. Keys that were lost
    /// before the flush began are none of this.
    pub lost: Vec<Assigned>,
    /// Keys whose owner here may have left less to the next one than it meant to; the key itself moves all the same. A
    /// [`Worker`](crate::Worker) fills this in; a node alone does not know.
    pub not_handed_over: Vec<NotHandedOver>,
}

impl Flushed {
    /// Keys that were not confirmed, and keys that were lost.
    pub fn new(unconfirmed: Vec<Assigned>, lost: Vec<Assigned>) -> Self {
        Self { unconfirmed, lost, ..Self::default() }
    }

    /// Whether every key was confirmed and handed over, and the store knows of it.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unconfirmed.is_empty() && self.lost.is_empty() && self.not_handed_over.is_empty()
    }
}

/// A key whose task did not end as it should after its stop, or whose last checkpoint was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotHandedOver {
    /// The key.
    pub key: Key,
    /// The token that it was started with.
    pub token: Token,
    /// What went wrong, for people.
    pub why: String,
}

impl NotHandedOver {
    /// That the key was left with less than was meant.
    pub fn new(key: Key, token: Token, why: impl Into<String>) -> Self {
        Self { key, token, why: why.into() }
    }
}

/// A stream of events. Ends after [`Divider::cancel`]. Dropping it loses nothing: unread events wait for the next one.
pub struct Events<T>(Pin<Box<dyn Stream<Item = T> + Send>>);

impl<T> Events<T> {
    /// Wraps any stream.
    pub fn new(stream: impl Stream<Item = T> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }

    /// The next event; `None` after the end.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped call has read nothing.
    pub async fn next(&mut self) -> Option<T> {
        std::future::poll_fn(|cx| self.0.as_mut().poll_next(cx)).await
    }
}

impl<T> Stream for Events<T> {
    type Item = T;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl<T> std::fmt::Debug for Events<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
