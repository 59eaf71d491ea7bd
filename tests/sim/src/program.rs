//! The program around a simulated node: it reads the streams at its own pace, works, answers late, and gives up, completes
//! and writes as it pleases. Whatever it is told is checked at the moment at which it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_conformance::{Dice, History};
use divider_core::{Assignment, Divider, Error, Event, Events, Key, Node, SessionId, Stop, StopReason, Token};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::{
    exec::{Exec, Pid},
    trace::Trace,
};

/// Called with a process that the work for a key has killed.
pub type OnKill = Box<dyn Fn(Pid, &Key) + Send + Sync>;

/// What the programs of a run have in common.
pub struct Common {
    /// What runs it.
    pub exec: Arc<Exec>,
    /// What happened.
    pub trace: Trace,
    /// What the programs were told.
    pub history: History,
    /// Where the work goes: the highest token that was written, by key.
    pub sink: Mutex<BTreeMap<Key, Token>>,
    /// Faults are over: programs answer at once, and only work.
    pub calm: AtomicBool,
    /// The length of a lease.
    pub lease: Duration,
    /// Keys that a program may have ended.
    pub ended: Mutex<std::collections::BTreeSet<Key>>,
    /// Writes so far, and those among the unchecked ones that came after a newer owner's.
    pub writes: Mutex<(u64, u64)>,
    /// What programs were told to start, and still act on or are winding up, with the session that it belongs to.
    pub acts: Mutex<BTreeMap<(Pid, Key, Token), SessionId>>,
    /// The highest token that any program was told to start, of keys that are ordered again and again, and which orders
    /// came with the starts.
    pub begun: Mutex<BTreeMap<Key, (Token, BTreeSet<u64>)>>,
    /// Every key has run since faults are over: nobody winds up what was lost any longer.
    pub reached: watch::Sender<bool>,
    /// Keys whose work kills its process.
    pub killers: BTreeSet<Key>,
    /// Who is told of that.
    pub on_kill: OnceLock<OnKill>,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").finish_non_exhaustive()
    }
}

impl Common {
    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// A part of a lease.
    pub fn lease_part(&self, dice: &mut Dice, percent: u64) -> Duration {
        let most = u64::try_from(self.lease.as_micros()).unwrap_or(u64::MAX) * percent / 100;
        Duration::from_micros(dice.below(most.max(1)))
    }
}

/// How a program behaves, in thousandths and in hundredths of a lease.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Longest time from a stop to its confirmation.
    pub slow_stop: u64,
    /// Longest time between two looks at the streams; 0 for none.
    pub slow_reader: u64,
    /// Reads two streams rather than one.
    pub two_streams: bool,
    /// How often work gives itself up.
    pub give_up: u64,
    /// How often work completes.
    pub complete: u64,
    /// How often work keeps a checkpoint.
    pub checkpoint: u64,
    /// How often something stale is said.
    pub stale: u64,
    /// Longest time that work goes on winding up after it has heard of its loss.
    pub wind_up: u64,
    /// Work that was lost is wound up for as long as anybody waits.
    pub stubborn: bool,
    /// How often the future of a call is dropped before its answer.
    pub abort: u64,
}

/// Which readers a program is to have.
#[derive(Clone, Copy, Debug, Default)]
struct Readers {
    /// Those of any other number are to be dropped.
    number: u64,
    /// After how long they are to be taken.
    after: Duration,
}

/// A stream that is being read: from the first look at it until it is dropped.
struct Reads<'a>(&'a AtomicUsize, bool);

impl Reads<'_> {
    fn note<T>(&mut self, looked: T) -> T {
        if !std::mem::replace(&mut self.1, true) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        looked
    }
}

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(usize::from(self.1), Ordering::Relaxed);
    }
}

/// One program around its node.
#[derive(Debug)]
pub struct Program {
    /// Its process.
    pub pid: Pid,
    /// Its node.
    pub node: Node,
    /// Its number in the history.
    pub player: usize,
    /// What all programs share.
    pub common: Arc<Common>,
    manners: Manners,
    dice: Mutex<Dice>,
    running: Mutex<BTreeMap<Key, Token>>,
    started: AtomicBool,
    leaving: AtomicBool,
    draining: AtomicBool,
    /// Affinity 0 has been acknowledged.
    wants_nothing: AtomicBool,
    /// Changes of affinity that are under way.
    asking: AtomicUsize,
    /// Number of the newest change of affinity: an older one whose task comes late has nothing more to say.
    wish: AtomicUsize,
    readers: watch::Sender<Readers>,
    /// How many streams have been looked at and not been dropped.
    reading: AtomicUsize,
    /// Nobody reads any more: the streams have ended, or were dropped for good, or the runtime has ended.
    over: AtomicBool,
}

impl Program {
    /// A program that has still to be [run](Self::run).
    pub fn new(
        pid: Pid,
        node: Node,
        player: usize,
        common: &Arc<Common>,
        manners: Manners,
        dice: Dice,
        affinity: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            pid,
            node,
            player,
            common: common.clone(),
            manners,
            dice: Mutex::new(dice),
            running: Mutex::default(),
            started: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            wants_nothing: AtomicBool::new(affinity == 0),
            asking: AtomicUsize::new(0),
            wish: AtomicUsize::new(0),
            readers: watch::Sender::default(),
            reading: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        })
    }

    /// Whether nobody reads any more.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Nobody reads any more.
    pub fn is_now_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// What it was told to start and not told to stop.
    pub fn running(&self) -> BTreeMap<Key, Token> {
        self.running.lock().clone()
    }

    /// Whether the node has been started.
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Whether a change of its affinity is under way.
    pub fn is_asking(&self) -> bool {
        self.asking.load(Ordering::Relaxed) > 0
    }

    /// Whether it is to leave.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// It is to leave, though it may not know yet.
    pub fn will_leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether its flush has begun.
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Adds a task to the program's process.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.common.exec.spawn(self.pid, Box::pin(task));
    }

    fn note(&self, what: &'static str, key: &Key, token: Token, line: impl FnOnce() -> String) {
        let key_hash = key.as_str().bytes().fold(0, |hash, byte| hash * 31 + u64::from(byte));
        self.common.trace.note(self.common.exec.now(), what, &[self.pid, key_hash, token.0], line);
    }

    /// Starts the node, and reads until the node ends.
    pub async fn run(self: Arc<Self>) {
        while let Err(error) = self.node.start().await {
            match error {
                Error::Cancelled => return,
                // As where it dies later: its process ends.
                Error::Died { .. } => return self.ends(),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        self.started.store(true, Ordering::Relaxed);
        let mut number = 0;
        loop {
            self.clone().read_all(number).await;
            let wanted = *self.readers.borrow();
            if wanted.number == number {
                break;
            }
            number = wanted.number;
            tokio::time::sleep(wanted.after).await;
        }
        self.ends();
    }

    fn ends(&self) {
        self.is_now_over();
        self.note("over", &Key::new("-").expect("a key"), Token(0), || format!("{}: nobody reads", self.pid));
    }

    /// Reads until the streams end or are to be dropped.
    async fn read_all(self: Arc<Self>, number: u64) {
        if self.manners.two_streams {
            let (alive, gone) = oneshot::channel::<()>();
            let starts = self.clone().follow(self.node.start_processing(), Event::Start, number);
            self.spawn(async move {
                starts.await;
                drop(alive);
            });
            self.clone().follow(self.node.stop_processing(), Event::Stop, number).await;
            let _ = gone.await;
        } else {
            self.clone().follow(self.node.events(), |event| event, number).await;
        }
    }

    /// Reads a stream until it ends or is to be dropped.
    async fn follow<T>(self: Arc<Self>, mut stream: Events<T>, event: fn(T) -> Event, number: u64) {
        let mut readers = self.readers.subscribe();
        let mut reads = Reads(&self.reading, false);
        let read = async {
            while let Some(next) = poll_fn(|cx| reads.note(pin!(stream.next()).poll(cx))).await {
                self.read(event(next));
                self.dawdle().await;
            }
        };
        tokio::select! {
            biased;
            _ = readers.wait_for(|readers| readers.number != number) => {}
            () = read => {}
        }
    }

    /// The readers are dropped, and taken anew after a while.
    pub fn drop_readers(&self, after: Duration) {
        self.readers.send_modify(|readers| *readers = Readers { number: readers.number + 1, after });
    }

    /// Takes one more reader for a while. It must be given nothing: whoever reads beside another would confirm its keys.
    pub async fn double_readers(self: Arc<Self>, time: Duration) {
        let first = self.readers.subscribe();
        if self.reading.load(Ordering::Relaxed) < if self.manners.two_streams { 2 } else { 1 } {
            return;
        }
        let mut second = self.node.events();
        let event = tokio::time::timeout(time, second.next()).await;
        if let Ok(Some(event)) = event
            && first.has_changed().is_ok_and(|changed| !changed)
        {
            self.common.trace.broken(format!("{}: a second reader was given {event:?}", self.pid));
        }
    }

    async fn dawdle(&self) {
        if self.manners.slow_reader > 0 && !self.common.is_calm() {
            let time = self.common.lease_part(&mut self.dice.lock(), self.manners.slow_reader);
            tokio::time::sleep(time).await;
        }
    }

    fn read(self: &Arc<Self>, event: Event) {
        self.common.history.read(self.player, &event);
        match event {
            Event::Start(start) => self.start(start),
            Event::Stop(stop) => self.stop(stop),
            other => unreachable!("{other:?}"),
        }
        if let Some(violation) = self.common.history.violation() {
            self.common.trace.broken(violation);
        }
    }

    fn start(self: &Arc<Self>, start: Assignment) {
        let Assignment { key, token, payload, .. } = start;
        self.note("start", &key, token, || format!("{}: {key} with token {token}", self.pid));
        if !self.node.is_current(&key, token) {
            self.common.trace.broken(format!("{} was told to start {key}, on which it may not act", self.pid));
        }
        if self.is_draining() {
            self.common.trace.broken(format!("{} was told to start {key} after its flush had begun", self.pid));
        }
        if self.wants_nothing.load(Ordering::Relaxed) && !self.is_asking() {
            self.common.trace.broken(format!("{} was told to start {key} at affinity 0", self.pid));
        }
        self.running.lock().insert(key.clone(), token);
        self.acts(&key, token, self.node.session());
        if key.as_str().starts_with("again") {
            let mut begun = self.common.begun.lock();
            let (highest, orders) = begun.entry(key.clone()).or_default();
            *highest = token.max(*highest);
            orders.insert(crate::server::order_of(&payload));
        }
        if let Some(kill) = self.common.on_kill.get().filter(|_| self.common.killers.contains(&key)) {
            kill(self.pid, &key);
        }
        self.spawn(self.clone().work(key, token));
    }

    /// Notes in whose name the program acts on a key, or that it acts no more.
    fn acts(&self, key: &Key, token: Token, session: Option<SessionId>) {
        let what = (self.pid, key.clone(), token);
        let mut acts = self.common.acts.lock();
        match session {
            Some(session) => acts.insert(what, session),
            None => acts.remove(&what),
        };
    }

    /// Completes when a program that was told to stop has done so.
    async fn wound_up(&self, reason: StopReason) {
        let lost = reason == StopReason::Lost;
        if lost && self.manners.stubborn {
            self.common.trace.fault("work that nobody can wind up");
            // The sender lives as long as the program.
            let _ = self.common.reached.subscribe().wait_for(|reached| *reached).await;
        }
        let calm = self.common.is_calm() && !lost;
        let slow =
            if lost { self.manners.wind_up.max(self.manners.slow_stop.min(100)) } else { self.manners.slow_stop };
        if lost && slow > 0 {
            self.common.trace.fault("winding up after a loss");
        }
        let delay = self.common.lease_part(&mut self.dice.lock(), if calm { 0 } else { slow });
        tokio::time::sleep(delay).await;
    }

    /// Whether a call is to be dropped before its answer, and when.
    fn aborts(&self) -> Duration {
        let mut dice = self.dice.lock();
        if !self.common.is_calm() && dice.permille(self.manners.abort) {
            self.common.trace.fault("call aborted");
            return self.common.lease_part(&mut dice, 10);
        }
        Duration::MAX
    }

    fn stop(self: &Arc<Self>, stop: Stop) {
        let Stop { key, token, reason, .. } = stop;
        self.note("stop", &key, token, || format!("{}: {key} with token {token}: {reason}", self.pid));
        {
            let mut running = self.running.lock();
            if running.get(&key) == Some(&token) {
                running.remove(&key);
            }
        }
        let program = self.clone();
        self.spawn(async move {
            program.wound_up(reason).await;
            program.common.history.let_go(program.player, &key, token);
            program.acts(&key, token, None);
            program.note("confirm", &key, token, || format!("{}: {key} with token {token}", program.pid));
            let confirm = program.node.confirm_stop_processing(&key, token);
            match tokio::time::timeout(program.aborts(), confirm).await {
                // Whatever the store says, the node settles it. Nobody asks a second time.
                Ok(Ok(()) | Err(Error::Cancelled | Error::Died { .. } | Error::Store(_))) | Err(_) => {}
                // A completion that was under way has ended it.
                Ok(Err(_)) if program.common.ended.lock().contains(&key) => {}
                Ok(Err(error)) => {
                    let pid = program.pid;
                    program.common.trace.broken(format!("{pid} could not confirm the stop of {key}, {token}: {error}"));
                }
            }
        });
    }

    fn runs(&self, key: &Key, token: Token) -> bool {
        self.running.lock().get(key) == Some(&token)
    }

    /// The work for one key.
    async fn work(self: Arc<Self>, key: Key, token: Token) {
        loop {
            let pause = self.common.lease_part(&mut self.dice.lock(), 60);
            tokio::time::sleep(pause + Duration::from_millis(1)).await;
            if !self.runs(&key, token) {
                return;
            }
            if self.common.is_calm() {
                return;
            }
            // Checked and written at one moment, so whoever believes is never late.
            if self.node.is_current(&key, token) {
                let mut sink = self.common.sink.lock();
                let highest = sink.entry(key.clone()).or_default();
                if *highest > token {
                    let highest = *highest;
                    drop(sink);
                    let pid = self.pid;
                    self.common.trace.broken(format!("{pid} wrote {key} with token {token} after token {highest}"));
                    return;
                }
                *highest = token;
            }
            self.write_later(&key, token);
            let Manners { give_up, complete, checkpoint, stale, .. } = self.manners;
            let may_end = ["passing", "again"].iter().any(|family| key.as_str().starts_with(family));
            let (does_give_up, does_complete, does_checkpoint, is_stale) = {
                let mut dice = self.dice.lock();
                let complete = if may_end { complete } else { 0 };
                (dice.permille(give_up), dice.permille(complete), dice.permille(checkpoint), dice.permille(stale))
            };
            if does_checkpoint {
                let checkpoint = self.node.checkpoint(&key, token, (*b"so far").into());
                let _ = tokio::time::timeout(self.aborts(), checkpoint).await;
            }
            if is_stale {
                let stale = Token(token.0.saturating_sub(1));
                let confirmed = self.node.confirm_stop_processing(&key, stale).await;
                let completed = self.node.complete(&key, stale).await;
                if confirmed.is_ok() || completed.is_ok() {
                    self.common.trace.broken(format!("{}: a stale word about {key} was taken", self.pid));
                }
            }
            if does_complete {
                self.common.ended.lock().insert(key.clone());
                self.common.history.completing(self.player, &key, token);
                let session = self.common.acts.lock().remove(&(self.pid, key.clone(), token));
                self.note("complete", &key, token, || format!("{}: {key} with token {token}", self.pid));
                match self.node.complete(&key, token).await {
                    Ok(()) => {
                        self.common.history.completed(self.player, &key, token);
                        let mut running = self.running.lock();
                        if running.get(&key) == Some(&token) {
                            running.remove(&key);
                        }
                        return;
                    }
                    Err(_) => {
                        self.common.history.not_completed(self.player, &key, token);
                        if self.runs(&key, token) {
                            self.acts(&key, token, session);
                        }
                    }
                }
            }
            if does_give_up {
                let backoff = self.common.lease_part(&mut self.dice.lock(), 50);
                let backoff = if backoff.as_micros().is_multiple_of(2) { Duration::ZERO } else { backoff };
                self.note("give up", &key, token, || format!("{}: {key} with token {token}", self.pid));
                let _ = tokio::time::timeout(self.aborts(), self.node.give_up(&key, token, backoff)).await;
            }
        }
    }

    /// A write that is on its way for some time, to a sink that checks tokens.
    fn write_later(&self, key: &Key, token: Token) {
        let way = self.common.lease_part(&mut self.dice.lock(), 30);
        let (common, key) = (self.common.clone(), key.clone());
        let exec = common.exec.clone();
        exec.spawn_world(async move {
            tokio::time::sleep(way).await;
            let highest = common.sink.lock().get(&key).copied().unwrap_or_default();
            let mut writes = common.writes.lock();
            writes.0 += 1;
            writes.1 += u64::from(token < highest);
        });
    }

    /// Changes the node's affinity, if patient again and again until that succeeds.
    pub fn want(self: &Arc<Self>, affinity: u32, patient: bool) {
        self.asking.fetch_add(1, Ordering::Relaxed);
        let wish = self.wish.fetch_add(1, Ordering::Relaxed) + 1;
        let program = self.clone();
        self.spawn(async move {
            program.ask(wish, affinity, patient).await;
            program.asking.fetch_sub(1, Ordering::Relaxed);
        });
    }

    async fn ask(&self, wish: usize, affinity: u32, patient: bool) {
        while self.wish.load(Ordering::Relaxed) == wish {
            match self.node.set_affinity(affinity.into()).await {
                Ok(()) => {
                    self.note("affinity", &Key::new("-").expect("a key"), Token(affinity.into()), || {
                        format!("{}: {affinity}", self.pid)
                    });
                    self.wants_nothing.store(self.node.affinity() == 0, Ordering::Relaxed);
                    return;
                }
                Err(Error::Cancelled | Error::Died { .. }) => return,
                Err(_) if patient && !self.is_draining() => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => return,
            }
        }
    }

    /// Drains the node and leaves; returns when the process may end.
    pub async fn leave(self: Arc<Self>) {
        self.draining.store(true, Ordering::Relaxed);
        self.note("flush", &Key::new("-").expect("a key"), Token(0), || format!("{}", self.pid));
        let flushed = self.node.flush_and_cancel().await;
        self.note("left", &Key::new("-").expect("a key"), Token(0), || format!("{}: {flushed:?}", self.pid));
    }
}
