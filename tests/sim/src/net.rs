//! The network between the nodes and the store: every call is a request and an answer, each of which may be late, lost or
//! doubled, and a request that is on its way goes on when its sender dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use divider_conformance::Dice;
use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Hint, HintStream, Holdings, Key, Op, Outcome, Page, PollReply, Record,
    Revision, SessionId, Stats, Store, StoreError, Term, Topic, Work,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    exec::{Exec, Pid, WORLD, panic_on_purpose},
    mood::Mood,
    server::{Loss, Server},
    trace::Trace,
};

/// Called with each session that its own node's word has ended while its lease ran.
type OnEnd = Box<dyn Fn(SessionId) + Send + Sync>;

/// How often things go wrong, in thousandths, and by how much, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Usual way of a request or an answer.
    pub latency: u64,
    /// Requests and answers that take much longer, and how long.
    pub late: u64,
    /// See `late`.
    pub lateness: u64,
    /// Requests that are lost.
    pub lost_requests: u64,
    /// Answers that are lost: the effect is unknown.
    pub lost_answers: u64,
    /// Batches that the server gets once more, later.
    pub doubled: u64,
    /// Hints that are lost.
    pub lost_hints: u64,
    /// Hints that come twice.
    pub doubled_hints: u64,
    /// Hints that are overtaken by others.
    pub late_hints: u64,
}

/// Whether a process's node still counts on a session.
type HasSession = Box<dyn Fn(Pid, SessionId) -> bool + Send + Sync>;

/// The network and the server behind it.
pub struct Net {
    /// What runs it.
    pub exec: Arc<Exec>,
    /// What happened.
    pub trace: Trace,
    /// The server.
    pub server: Mutex<Server>,
    state: Mutex<State>,
    on_end: OnceLock<OnEnd>,
    has_session: OnceLock<HasSession>,
    /// The server stands still: what arrives is looked at when it goes on.
    stalled: watch::Sender<bool>,
    /// After this long without an answer a call has failed.
    call_limit: Duration,
}

struct State {
    dice: Dice,
    weather: Weather,
    /// Nothing answers.
    down: bool,
    /// Raised when the server restarts and when all is healed: what was on its way then has been lost.
    spell: u64,
    /// Processes that reach nobody.
    cut_off: BTreeSet<Pid>,
    feeds: BTreeMap<u64, mpsc::UnboundedSender<Hint>>,
    /// How the store answers some calls, by number.
    moods: BTreeMap<u64, Mood>,
    mooded: u64,
    /// Processes in which a call of the node's own tasks is to panic, after so many calls of these.
    panics: BTreeMap<Pid, u64>,
    /// How many more times the feeds are cut when a leader reads the group.
    cuts: u64,
    /// The term that each process leads in, as it has been told.
    leads: BTreeMap<Pid, Term>,
    /// Processes that have read the whole group in that term, if they can go on from there by the changes alone.
    read: BTreeSet<Pid>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").finish_non_exhaustive()
    }
}

/// What becomes of a message.
enum Way {
    Lost,
    After(Duration),
}

impl Net {
    /// A network around a new server.
    pub fn new(exec: &Arc<Exec>, trace: &Trace, dice: Dice, weather: Weather, call_limit: Duration) -> Arc<Self> {
        let state = State {
            dice,
            weather,
            down: false,
            spell: 0,
            cut_off: BTreeSet::new(),
            feeds: BTreeMap::new(),
            moods: BTreeMap::new(),
            mooded: 0,
            panics: BTreeMap::new(),
            cuts: 0,
            leads: BTreeMap::new(),
            read: BTreeSet::new(),
        };
        Arc::new(Self {
            exec: exec.clone(),
            trace: trace.clone(),
            server: Mutex::default(),
            state: Mutex::new(state),
            on_end: OnceLock::new(),
            has_session: OnceLock::new(),
            stalled: watch::Sender::new(false),
            call_limit,
        })
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state.lock().weather = weather;
    }

    /// Whether the server answers.
    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// Whether the server stands still.
    pub fn set_stalled(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Whether a process reaches the server.
    pub fn cut_off(&self, pid: Pid, cut: bool) {
        let mut state = self.state.lock();
        if cut {
            state.cut_off.insert(pid);
        } else {
            state.cut_off.remove(&pid);
        }
    }

    /// The store answers some calls differently from now on. Returns the number of this.
    pub fn set_mood(&self, mood: Mood) -> u64 {
        let mut state = self.state.lock();
        state.mooded += 1;
        let number = state.mooded;
        state.moods.insert(number, mood);
        number
    }

    /// That is over.
    pub fn lift_mood(&self, number: u64) {
        self.state.lock().moods.remove(&number);
    }

    /// How the store answers a call, if not as it was asked.
    fn mood(&self, pid: Pid, what: &'static str) -> Option<Mood> {
        let mut state = self.state.lock();
        let State { dice, moods, .. } = &mut *state;
        let mood = *moods.values().find(|mood| mood.covers(pid, what))?;
        dice.permille(mood.often).then_some(mood)
    }

    /// A call of the process's node panics, after so many calls of the node's own tasks.
    pub fn panic_after(&self, pid: Pid, calls: u64) {
        self.state.lock().panics.insert(pid, calls);
    }

    /// Cuts the feeds whenever a leader reads the group, so many times.
    pub fn cut_when_read(&self, times: u64) {
        self.state.lock().cuts = times;
    }

    /// The payload of a key changes: somebody declares it again and again.
    pub fn declare_again(&self, work: Work) {
        self.trace.fault("work declared in a busy group");
        self.serve(WORLD, "busy", move |server| server.apply(&[Op::Add(work.clone())]));
    }

    /// Whoever is to be told of sessions that end by their own node's word while their lease runs.
    pub fn on_end(&self, hook: impl Fn(SessionId) + Send + Sync + 'static) {
        let set = self.on_end.set(Box::new(hook));
        debug_assert!(set.is_ok(), "one is told");
    }

    /// Who knows whether a process's node still counts on a session.
    pub fn ask_for_sessions(&self, ask: impl Fn(Pid, SessionId) -> bool + Send + Sync + 'static) {
        let set = self.has_session.set(Box::new(ask));
        debug_assert!(set.is_ok(), "one is asked");
    }

    /// All is well again.
    pub fn heal(&self, weather: Weather) {
        let mut state = self.state.lock();
        state.moods.clear();
        state.panics.clear();
        state.cuts = 0;
        self.set_stalled(false);
        state.weather = weather;
        state.down = false;
        state.spell += 1;
        state.cut_off.clear();
    }

    /// The server comes back with what it has, in a new lineage. Its connections are gone, and what was on its way with them;
    /// only the word that empties a server leaves them standing.
    pub fn begin_lineage(&self, loss: Loss) {
        self.server.lock().begin_lineage(loss);
        if loss != Loss::Everything {
            self.state.lock().spell += 1;
        }
        self.deliver();
    }

    /// Drops all subscriptions at the server.
    pub fn cut_feeds(&self) {
        self.server.lock().cut_feeds();
        self.deliver();
    }

    /// Drops the subscription to the messages of one session.
    pub fn cut_messages(&self, session: SessionId) {
        self.server.lock().cut_messages(session);
        self.deliver();
    }

    fn way(&self, pid: Pid, answer: bool) -> Way {
        let mut state = self.state.lock();
        let State { dice, weather, down, cut_off, .. } = &mut *state;
        let lost = if answer { weather.lost_answers } else { weather.lost_requests };
        let kind = if answer { "answer lost" } else { "request lost" };
        if *down || cut_off.contains(&pid) {
            return Way::Lost;
        }
        if dice.permille(lost) {
            self.trace.fault(kind);
            return Way::Lost;
        }
        let mut micros = dice.between(weather.latency / 2, weather.latency);
        if dice.permille(weather.late) {
            self.trace.fault(if answer { "answer late" } else { "request late" });
            micros += dice.below(weather.lateness);
        }
        Way::After(Duration::from_micros(micros))
    }

    /// Passes on what the server has to tell its subscribers.
    fn deliver(&self) {
        let (hints, cut) = {
            let mut server = self.server.lock();
            if server.hints.is_empty() && server.cut.is_empty() {
                return;
            }
            (std::mem::take(&mut server.hints), std::mem::take(&mut server.cut))
        };
        let mut state = self.state.lock();
        for (to, hint) in hints {
            let Some(feed) = state.feeds.get(&to).cloned() else { continue };
            let State { dice, weather, down, .. } = &mut *state;
            if *down || dice.permille(weather.lost_hints) {
                self.trace.fault("hint lost");
                continue;
            }
            if dice.permille(weather.doubled_hints) {
                self.trace.fault("hint doubled");
                let _ = feed.send(hint.clone());
            }
            if dice.permille(weather.late_hints) {
                self.trace.fault("hint reordered");
                let late = Duration::from_micros(dice.below(weather.lateness));
                self.exec.spawn_world(async move {
                    tokio::time::sleep(late).await;
                    let _ = feed.send(hint);
                });
            } else {
                let _ = feed.send(hint);
            }
        }
        for number in cut {
            state.feeds.remove(&number);
        }
    }

    /// What the server does with a request, and what has to be looked at after it.
    fn serve<T>(&self, pid: Pid, what: &'static str, serve: impl FnOnce(&mut Server) -> T) -> T {
        let mut server = self.server.lock();
        server.now = self.exec.now();
        let answer = serve(&mut server);
        let revision = server.ledger().revision().0;
        let disagreement = server.disagreement.take();
        let ended = std::mem::take(&mut server.ended);
        drop(server);
        self.trace.note(self.exec.now(), what, &[pid, revision], || format!("by {pid}, now at revision {revision}"));
        if let Some(disagreement) = disagreement {
            self.trace.broken(disagreement);
        }
        if let Some(hook) = self.on_end.get() {
            ended.into_iter().for_each(hook);
        }
        self.deliver();
        answer
    }

    /// A leader begins to read the whole group. In one term it does so once, and again only where the changes since are no
    /// longer kept: everything else would keep the leader of a busy group from its work.
    fn reads_all(&self, pid: Pid) {
        let state = self.state.lock();
        if state.read.contains(&pid) {
            let term = state.leads.get(&pid).copied().unwrap_or_default();
            drop(state);
            self.trace
                .broken(format!("{pid} reads the whole group again in {term} although the changes since are kept"));
        }
    }

    /// A process has been told that it leads. What it read in another term it has forgotten.
    fn leads(&self, pid: Pid, term: Term) {
        let mut state = self.state.lock();
        if state.leads.insert(pid, term) != Some(term) {
            state.read.remove(&pid);
        }
    }

    /// A leader has read a part of the group: perhaps its feed is cut at that moment.
    fn was_read(&self, pid: Pid, all: bool) {
        let mut state = self.state.lock();
        if all {
            state.read.insert(pid);
        }
        if state.cuts > 0 {
            state.cuts -= 1;
            drop(state);
            self.trace.fault("feeds cut while the group is read");
            self.cut_feeds();
        }
    }

    /// Panics if it is this call's turn.
    fn perhaps_panic(&self, pid: Pid, what: &'static str) {
        let mut state = self.state.lock();
        let Some(calls) = state.panics.get_mut(&pid).filter(|_| self.exec.is_in_node()) else { return };
        *calls = calls.saturating_sub(1);
        if *calls == 0 {
            state.panics.remove(&pid);
            drop(state);
            self.trace.fault("panic in a call to the store");
            self.trace.note(self.exec.now(), "panic", &[pid], || format!("in {what} of process {pid}"));
            panic_on_purpose();
        }
    }

    /// What a process is told by a store in a mood.
    fn in_mood(&self, mood: Mood, pid: Pid, what: &'static str) -> StoreError {
        self.trace.fault(mood.name(what));
        self.trace.note(self.exec.now(), "mood", &[pid], || format!("{} to {what} of {pid}", mood.name(what)));
        mood.answer.error()
    }

    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        pid: Pid,
        what: &'static str,
        serve: impl Fn(&mut Server) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.perhaps_panic(pid, what);
        let (reply, answer) = oneshot::channel();
        let net = self.clone();
        let there = self.way(pid, false);
        let (sent, again) = {
            let mut state = self.state.lock();
            let State { dice, weather, .. } = &mut *state;
            let again = (matches!(what, "apply" | "join") && dice.permille(weather.doubled))
                .then(|| Duration::from_micros(dice.below(weather.lateness)));
            (state.spell, again)
        };
        let arrives = move |net: &Net| {
            let state = net.state.lock();
            !state.down && state.spell == sent
        };
        self.exec.spawn_world(async move {
            let Way::After(time) = there else {
                // Nobody answers, and nobody says so either.
                std::future::pending::<()>().await;
                return;
            };
            tokio::time::sleep(time).await;
            // The sender lives as long as the network.
            let _ = net.stalled.subscribe().wait_for(|stalled| !stalled).await;
            if !arrives(&net) {
                std::future::pending::<()>().await;
            }
            let result = match net.mood(pid, what) {
                None => Ok(net.serve(pid, what, &serve)),
                Some(mood) => {
                    if mood.answer.is_done() {
                        drop(net.serve(pid, what, &serve));
                    }
                    Err(net.in_mood(mood, pid, what))
                }
            };
            let mut reply = Some(reply);
            if let Way::After(time) = net.way(pid, true) {
                tokio::time::sleep(time).await;
                reply.take().map(|reply| reply.send(result));
            } else if again.is_none() {
                std::future::pending::<()>().await;
            }
            if let Some(later) = again {
                tokio::time::sleep(later).await;
                if arrives(&net) {
                    net.trace.fault("request doubled");
                    let result = net.serve(pid, "again", &serve);
                    // Where the first answer is lost, this one comes instead.
                    reply.take().map(|reply| reply.send(Ok(result)));
                }
            }
        });
        match tokio::time::timeout(self.call_limit, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(StoreError::Unavailable { message: "the answer was lost".into(), source: None }),
            Err(_) => Err(StoreError::Timeout { limit: self.call_limit }),
        }
    }
}

/// One process's way to the store.
#[derive(Debug)]
pub struct Line {
    net: Arc<Net>,
    pid: Pid,
}

impl Line {
    /// A line of a process.
    pub fn new(net: &Arc<Net>, pid: Pid) -> Self {
        Self { net: net.clone(), pid }
    }
}

/// Ops in a few words.
fn brief(ops: &[Op], outcomes: &[Outcome]) -> String {
    let each = ops.iter().zip(outcomes).map(|(op, outcome)| {
        let op = format!("{op:?}");
        format!("\n      {op} => {outcome:?}")
    });
    each.collect()
}

#[async_trait]
impl Store for Line {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn open(&self) -> Result<(), StoreError> {
        self.net.call(self.pid, "open", |_| ()).await
    }

    async fn apply(&self, ops: &[Op]) -> Result<Applied, StoreError> {
        let what = if ops.iter().any(|op| matches!(op, Op::Join { .. })) { "join" } else { "apply" };
        let (ops, pid, net) = (ops.to_vec(), self.pid, self.net.clone());
        if let Some(Op::Join { session, lease_ms, .. }) = ops.first() {
            let mut server = self.net.server.lock();
            server.now = self.net.exec.now();
            server.joins(*session, Duration::from_millis((*lease_ms).into()));
        }
        let serve = move |server: &mut Server| {
            let applied = server.apply(&ops);
            net.trace.note(net.exec.now(), "ops", &[pid, ops.len() as u64], || brief(&ops, &applied.outcomes));
            applied
        };
        self.net.call(self.pid, what, serve).await
    }

    async fn renew(&self, session: SessionId) -> Result<Beat, StoreError> {
        let sent = self.net.exec.now();
        let renewed = self.net.call(self.pid, "renew", move |server| server.renew(session)).await?;
        // Whoever has given the session up meanwhile counts on nothing that it is told of it.
        if renewed.is_ok() && self.net.has_session.get().is_none_or(|has| has(self.pid, session)) {
            self.net.server.lock().renewed(session, sent, self.net.exec.now());
        }
        renewed
    }

    async fn poll(&self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        let reply = self.net.call(self.pid, "poll", move |server| server.poll(session, claim)).await??;
        if let Some(leader) = reply.leader.filter(|leader| leader.session == session) {
            self.net.leads(self.pid, leader.term);
        }
        Ok(reply)
    }

    async fn resign(&self, session: SessionId, term: Term) -> Result<(), StoreError> {
        // It leads no more by its own reckoning. Where this is lost, it may take up the same term again.
        self.net.state.lock().read.remove(&self.pid);
        self.net.call(self.pid, "resign", move |server| server.resign(session, term)).await
    }

    async fn beats(&self) -> Result<Vec<(SessionId, Beat)>, StoreError> {
        self.net.call(self.pid, "beats", |server| server.beats()).await
    }

    async fn silences(&self) -> Result<Vec<(SessionId, Beat, Duration)>, StoreError> {
        self.net.call(self.pid, "silences", |server| server.silences()).await
    }

    async fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        self.net.call(self.pid, "holdings", move |server| server.holdings(session)).await?
    }

    async fn changes(&self, since: Revision) -> Result<Option<Vec<Batch>>, StoreError> {
        let changes = self.net.call(self.pid, "changes", move |server| server.changes(since)).await?;
        if changes.is_none() {
            self.net.state.lock().read.remove(&self.pid);
        }
        Ok(changes)
    }

    async fn scan(&self, cursor: Option<Cursor>) -> Result<Page, StoreError> {
        if cursor.is_none() {
            self.net.reads_all(self.pid);
        }
        let page = self.net.call(self.pid, "scan", move |server| server.scan(cursor.as_ref())).await?;
        self.net.was_read(self.pid, page.as_ref().is_ok_and(|page| page.next.is_none()));
        page
    }

    async fn records(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, StoreError> {
        let keys = keys.to_vec();
        let serve = move |server: &mut Server| keys.iter().map(|key| server.ledger().record(key)).collect();
        self.net.call(self.pid, "records", serve).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.net.call(self.pid, "stats", |server| server.stats()).await
    }

    async fn quarantined(&self, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.net.call(self.pid, "listed", move |server| server.ledger().quarantined(limit)).await
    }

    async fn hints(&self, topic: Topic) -> Result<HintStream, StoreError> {
        let net = self.net.clone();
        let serve = move |server: &mut Server| {
            let (sender, receiver) = mpsc::unbounded_channel();
            net.state.lock().feeds.insert(server.subscribe(topic), sender);
            receiver
        };
        let what = if topic == Topic::Group { "follow" } else { "subscribe" };
        let receiver = self.net.call(self.pid, what, serve).await?;
        Ok(Box::pin(UnboundedReceiverStream::new(receiver)))
    }

    async fn close(&self) {}
}
