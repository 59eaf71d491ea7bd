//! A store with faults to order: for tests of what a program does when the store behind it fails.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::watch;

use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Hint, HintStream, Holdings, Key, Op, Page, PollReply, Record, Revision,
    SessionId, Stats, Store, StoreError, Term, Topic,
};

/// A call to a store, as the condition of a fault sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call<'a> {
    /// [`Store::open`].
    Open,
    /// [`Store::apply`], and its ops.
    Apply(&'a [Op]),
    /// [`Store::renew`].
    Renew,
    /// [`Store::poll`], and its claim.
    Poll(Claim),
    /// [`Store::resign`].
    Resign,
    /// [`Store::beats`].
    Beats,
    /// [`Store::holdings`].
    Holdings,
    /// [`Store::changes`].
    Changes,
    /// [`Store::scan`].
    Scan,
    /// [`Store::records`].
    Records,
    /// [`Store::stats`].
    Stats,
    /// [`Store::quarantined`].
    Quarantined,
    /// [`Store::hints`], and what it is about.
    Hints(Topic),
    /// [`Store::close`]; that cannot fail, only be late.
    Close,
}

impl Call<'_> {
    /// Whether it applies an op for which `is` holds.
    pub fn applies(&self, is: impl Fn(&Op) -> bool) -> bool {
        matches!(self, Call::Apply(ops) if ops.iter().any(is))
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing; the call is only counted.
    Count,
    /// The call never reaches the store.
    Refuse,
    /// The call takes effect, and its answer is lost.
    LoseReply,
    /// The call takes effect twice, and the answer to the first copy is lost.
    Double,
    /// The call is made after this time.
    DelayCall(Duration),
    /// The call is made at once, and its answer comes after this time.
    DelayReply(Duration),
    /// The call has no effect, and is answered as by a store that is not set up: rights that are missing for a moment.
    Misconfigured,
    /// The call takes effect, and its answer cannot be read.
    Corrupt,
    /// The call never reaches the store, and is never answered.
    Hang,
    /// The call panics.
    Panic,
}

/// A fault that was ordered. Dropping it changes nothing; see [`lift`](Self::lift).
#[derive(Clone, Debug)]
pub struct Ordered(Arc<State>);

#[derive(Debug)]
struct State {
    hits: AtomicUsize,
    left: AtomicUsize,
}

impl Ordered {
    /// How many calls it has met.
    pub fn hits(&self) -> usize {
        self.0.hits.load(Ordering::SeqCst)
    }

    /// Ends it.
    pub fn lift(&self) {
        self.0.left.store(0, Ordering::SeqCst);
    }

    fn take(&self) -> bool {
        let one = |left: usize| left.checked_sub(1);
        let met = self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one).is_ok();
        self.0.hits.fetch_add(usize::from(met), Ordering::SeqCst);
        met
    }
}

/// Orders the faults of a [`FaultyStore`]. Clones order for the same store.
#[derive(Clone, Default)]
pub struct Faults(Arc<Plan>);

#[derive(Default)]
struct Plan {
    rules: Mutex<Vec<Rule>>,
    mistake: Mutex<Option<Mistake>>,
    deaf: AtomicBool,
    /// Counts how often all subscriptions were cut.
    cut: watch::Sender<u64>,
}

type Mistake = Box<dyn Fn(&mut Op) + Send>;
type Condition = Box<dyn Fn(&Call<'_>) -> bool + Send + Sync>;

struct Rule {
    when: Condition,
    fault: Fault,
    ordered: Ordered,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").finish_non_exhaustive()
    }
}

impl Faults {
    /// The next `times` calls for which `when` holds meet `fault`. The order of orders counts: a call meets the first that
    /// fits, and besides all that only count.
    pub fn order(
        &self,
        fault: Fault,
        times: usize,
        when: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static,
    ) -> Ordered {
        let state = State { hits: AtomicUsize::new(0), left: AtomicUsize::new(times) };
        let ordered = Ordered(Arc::new(state));
        self.0.rules.lock().push(Rule { when: Box::new(when), fault, ordered: ordered.clone() });
        ordered
    }

    /// Every call meets `fault`, until it is lifted.
    pub fn always(&self, fault: Fault, when: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static) -> Ordered {
        self.order(fault, usize::MAX, when)
    }

    /// The store takes every op for what `mistake` makes of it: a wrong store, for tests of what should notice that.
    pub fn mistake(&self, mistake: impl Fn(&mut Op) + Send + 'static) {
        *self.0.mistake.lock() = Some(Box::new(mistake));
    }

    /// Ends all faults that were ordered.
    pub fn lift(&self) {
        self.0.rules.lock().drain(..).for_each(|rule| rule.ordered.lift());
    }

    /// Whether hints are swallowed, without any sign of a gap.
    pub fn lose_hints(&self, lose: bool) {
        self.0.deaf.store(lose, Ordering::SeqCst);
    }

    /// Ends all subscriptions that stand.
    pub fn cut_hints(&self) {
        self.0.cut.send_modify(|cuts| *cuts += 1);
    }

    fn meet(&self, call: Call<'_>) -> Fault {
        let mut fault = Fault::Count;
        for rule in &*self.0.rules.lock() {
            let counts = rule.fault == Fault::Count || fault == Fault::Count;
            if counts && (rule.when)(&call) && rule.ordered.take() && rule.fault != Fault::Count {
                fault = rule.fault;
            }
        }
        fault
    }
}

/// A store around another one, with faults to order.
pub struct FaultyStore<S> {
    store: S,
    faults: Faults,
}

impl<S> fmt::Debug for FaultyStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").finish_non_exhaustive()
    }
}

impl<S: Store> FaultyStore<S> {
    /// Without any faults yet.
    pub fn new(store: S) -> Self {
        Self { store, faults: Faults::default() }
    }

    /// Where faults are ordered, also after the store has been given away.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    async fn call<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        call: Call<'_>,
        arrive: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let broken = |message: &str| StoreError::Unavailable { message: message.into(), source: None };
        match self.faults.meet(call) {
            Fault::Count => arrive().await,
            Fault::Refuse => Err(broken("refused to order")),
            Fault::LoseReply => {
                // What the store says of it is what is lost.
                let _ = arrive().await;
                Err(broken("the answer was lost to order"))
            }
            Fault::Double => {
                let _ = arrive().await;
                arrive().await
            }
            Fault::DelayCall(time) => {
                tokio::time::sleep(time).await;
                arrive().await
            }
            Fault::DelayReply(time) => {
                let result = arrive().await;
                tokio::time::sleep(time).await;
                result
            }
            Fault::Misconfigured => Err(StoreError::Misconfigured("not allowed, to order".into())),
            Fault::Corrupt => {
                let _ = arrive().await;
                Err(StoreError::Corrupt("unreadable to order".into()))
            }
            Fault::Hang => std::future::pending().await,
            Fault::Panic => panic!("a panic to order"),
        }
    }
}

#[async_trait]
impl<S: Store> Store for FaultyStore<S> {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.call(Call::Open, || self.store.open()).await
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        let mut taken = Cow::from(ops);
        if let Some(mistake) = &*self.faults.0.mistake.lock() {
            taken.to_mut().iter_mut().for_each(mistake);
        }
        self.call(Call::Apply(ops), || self.store.apply(&taken)).await
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.call(Call::Renew, || self.store.renew(session)).await
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        self.call(Call::Poll(claim), || self.store.poll(session, claim)).await
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        self.call(Call::Resign, || self.store.resign(session, term)).await
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        self.call(Call::Beats, || self.store.beats()).await
    }

    async fn gone(&self) -> Result<Vec<SessionId>, StoreError> {
        self.call(Call::Beats, || self.store.gone()).await
    }

    async fn silences(&self) -> Result<Vec<(SessionId, Beat, Duration)>, StoreError> {
        self.call(Call::Beats, || self.store.silences()).await
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        self.call(Call::Holdings, || self.store.holdings(session)).await
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        self.call(Call::Changes, || self.store.changes(since)).await
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        self.call(Call::Scan, || self.store.scan(cursor.clone())).await
    }

    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        self.call(Call::Records, || self.store.records(keys)).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.call(Call::Stats, || self.store.stats()).await
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.call(Call::Quarantined, || self.store.quarantined(limit)).await
    }

    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        let hints = self.call(Call::Hints(topic), || self.store.hints(topic)).await?;
        let faults = self.faults.clone();
        let mut cut = faults.0.cut.subscribe();
        let deaf = move |_: &Hint| std::future::ready(!faults.0.deaf.load(Ordering::SeqCst));
        Ok(Box::pin(hints.filter(deaf).take_until(async move { drop(cut.changed().await) })))
    }

    async fn close(&self) {
        let closing = async || {
            self.store.close().await;
            Ok(())
        };
        let _ = self.call(Call::Close, closing).await;
    }
}
