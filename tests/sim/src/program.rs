//! The program around a simulated node: it reads the streams at its own pace, works, answers late, and gives up, completes
//! and writes as it pleases. Whatever it is told is checked at the moment at which it is told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_core::{Assignment, Divider, Error, Event, Key, Node, Stop, Token, conformance::History};
use parking_lot::Mutex;

use crate::{
    dice::Dice,
    exec::{Exec, Pid},
    trace::Trace,
};

/// What the programs of a run have in common.
#[derive(Debug)]
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
        })
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
        self.common.exec.spawn(self.pid, false, Box::pin(task));
    }

    fn note(&self, what: &'static str, key: &Key, token: Token, line: impl FnOnce() -> String) {
        let key_hash = key.as_str().bytes().fold(0, |hash, byte| hash * 31 + u64::from(byte));
        self.common.trace.note(self.common.exec.now(), what, &[self.pid, key_hash, token.0], line);
    }

    /// Starts the node, and reads until the node ends.
    pub async fn run(self: Arc<Self>) {
        while let Err(error) = self.node.start().await {
            if matches!(error, Error::Cancelled) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.started.store(true, Ordering::Relaxed);
        if self.manners.two_streams {
            let starts = {
                let program = self.clone();
                async move {
                    let mut starts = program.node.start_processing();
                    while let Some(start) = starts.next().await {
                        program.read(Event::Start(start));
                        program.dawdle().await;
                    }
                }
            };
            self.spawn(starts);
            let mut stops = self.node.stop_processing();
            while let Some(stop) = stops.next().await {
                self.read(Event::Stop(stop));
                self.dawdle().await;
            }
        } else {
            let mut events = self.node.events();
            while let Some(event) = events.next().await {
                self.read(event);
                self.dawdle().await;
            }
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
        let Assignment { key, token, .. } = start;
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
        self.spawn(self.clone().work(key, token));
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
        let slow = if self.common.is_calm() { 0 } else { self.manners.slow_stop };
        let delay = self.common.lease_part(&mut self.dice.lock(), slow);
        let program = self.clone();
        self.spawn(async move {
            tokio::time::sleep(delay).await;
            program.common.history.let_go(program.player, &key, token);
            program.note("confirm", &key, token, || format!("{}: {key} with token {token}", program.pid));
            match program.node.confirm_stop_processing(&key, token).await {
                Ok(()) | Err(Error::Cancelled) => {}
                // A completion that was under way has ended it.
                Err(_) if program.common.ended.lock().contains(&key) => {}
                Err(error) => {
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
            let may_end = key.as_str().starts_with("passing");
            let (does_give_up, does_complete, does_checkpoint, is_stale) = {
                let mut dice = self.dice.lock();
                let complete = if may_end { complete } else { 0 };
                (dice.permille(give_up), dice.permille(complete), dice.permille(checkpoint), dice.permille(stale))
            };
            if does_checkpoint {
                let _ = self.node.checkpoint(&key, token, (*b"so far").into()).await;
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
                    Err(_) => self.common.history.not_completed(self.player, &key, token),
                }
            }
            if does_give_up {
                let backoff = self.common.lease_part(&mut self.dice.lock(), 50);
                let backoff = if backoff.as_micros().is_multiple_of(2) { Duration::ZERO } else { backoff };
                self.note("give up", &key, token, || format!("{}: {key} with token {token}", self.pid));
                let _ = self.node.give_up(&key, token, backoff).await;
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
                Err(Error::Cancelled) => return,
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
