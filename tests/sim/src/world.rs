//! A whole run from one seed: nodes, faults, healing, and the checks at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use divider_core::{Clock, Divider, Key, Machine, Node, NodeConfig, NodeId, State, Work, conformance::History};
use parking_lot::Mutex;

use crate::{
    dice::Dice,
    exec::{Exec, Freeze, Pid},
    machine::{Clocks, Host},
    net::{Line, Net, Weather},
    program::{Common, Manners, Program},
    server::Loss,
    trace::Trace,
};

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of all that happened.
    pub hash: u64,
    /// How many faults of which kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The first rule that was broken.
    pub violation: Option<String>,
    /// What happened, where that was asked for.
    pub lines: Option<String>,
    /// Simulated time.
    pub simulated: Duration,
    /// Steps of tasks.
    pub steps: u64,
    /// Grants.
    pub grants: u64,
    /// Writes that were on their way for some time, and how many of them came after a newer owner's.
    pub writes: (u64, u64),
}

/// What a seed comes to.
#[derive(Clone, Debug)]
struct Plan {
    nodes: u64,
    keys: u64,
    passing: u64,
    lease: Duration,
    resync: Duration,
    /// How long faults go on, in leases.
    storm: u64,
    weather: Weather,
    call_limit: Duration,
    /// Kinds of faults that this seed has, and how often, relatively.
    kinds: Vec<(Trouble, u64)>,
    drift: u64,
    slow_stop: u64,
    slow_reader: u64,
    give_up: u64,
    complete: u64,
    quarantine: bool,
}

/// What is done to the nodes and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Crash,
    CrashSoon,
    Suspend,
    Block,
    CutOff,
    ServerDown,
    NewLineage,
    Backup,
    Restored,
    Flushed,
    CutFeeds,
    Depose,
    WallJump,
    Affinity,
    AddWork,
    RemoveWork,
    Leave,
    Rebalance,
    Newcomer,
}

impl Trouble {
    const ALL: [(Self, u64); 19] = [
        (Self::Crash, 6),
        (Self::CrashSoon, 6),
        (Self::Suspend, 8),
        (Self::Block, 3),
        (Self::CutOff, 8),
        (Self::ServerDown, 4),
        (Self::NewLineage, 2),
        (Self::Backup, 2),
        (Self::Restored, 1),
        (Self::Flushed, 1),
        (Self::CutFeeds, 4),
        (Self::Depose, 5),
        (Self::WallJump, 2),
        (Self::Affinity, 5),
        (Self::AddWork, 4),
        (Self::RemoveWork, 4),
        (Self::Leave, 4),
        (Self::Rebalance, 3),
        (Self::Newcomer, 8),
    ];
}

impl Plan {
    fn draw(dice: &mut Dice) -> Self {
        let long = dice.permille(20);
        let lease_ms = dice.pick(&[300, 1000, 1000, 3000]);
        let lease_us = lease_ms * 1000;
        let often = |dice: &mut Dice, rates: &[u64]| dice.pick(rates);
        let weather = Weather {
            latency: dice.pick(&[0, 500, 2000, lease_us / 30]),
            late: often(dice, &[0, 0, 10, 50, 200]),
            lateness: dice.pick(&[lease_us / 4, lease_us, lease_us * 3]),
            lost_requests: often(dice, &[0, 0, 10, 100]),
            lost_answers: often(dice, &[0, 0, 10, 100]),
            doubled: often(dice, &[0, 0, 50, 200]),
            lost_hints: often(dice, &[0, 0, 50, 500]),
            doubled_hints: often(dice, &[0, 0, 100]),
            late_hints: often(dice, &[0, 0, 100, 400]),
        };
        // A part of the kinds only, so that each is also seen without the others.
        let share = dice.pick(&[200, 400, 700]);
        let mut kinds: Vec<_> = Trouble::ALL.into_iter().filter(|_| dice.permille(share)).collect();
        kinds.push((Trouble::Newcomer, 3));
        Self {
            nodes: dice.pick(&[2, 2, 2, 3, 3, 4, 5]),
            keys: if long { dice.between(10, 40) } else { dice.between(1, 6) },
            passing: dice.pick(&[0, 0, 1, 3]),
            lease: Duration::from_millis(lease_ms),
            resync: Duration::from_millis(dice.pick(&[lease_ms / 5, lease_ms / 2, lease_ms])),
            storm: if long { dice.between(10, 40) } else { dice.between(2, 6) },
            weather,
            call_limit: Duration::from_micros(dice.pick(&[lease_us / 3, lease_us, lease_us * 2])),
            kinds,
            drift: dice.pick(&[0, 0, 24_000]),
            slow_stop: dice.pick(&[0, 5, 50, 200]),
            slow_reader: dice.pick(&[0, 0, 20, 150]),
            give_up: dice.pick(&[0, 0, 50, 200]),
            complete: dice.pick(&[0, 100, 400]),
            quarantine: dice.permille(500),
        }
    }
}

struct World {
    exec: Arc<Exec>,
    net: Arc<Net>,
    trace: Trace,
    common: Arc<Common>,
    plan: Plan,
    state: Mutex<Inner>,
    me: Weak<World>,
}

struct Inner {
    dice: Dice,
    next: Pid,
    processes: BTreeMap<Pid, Process>,
    /// Keys whose declaration was acknowledged.
    declared: BTreeSet<Key>,
    /// The store has forgotten something.
    forgot: bool,
    names: u64,
}

#[derive(Clone)]
struct Process {
    name: NodeId,
    clocks: Arc<Clocks>,
    program: Arc<Program>,
    /// What the history looks at.
    _node: Arc<dyn Divider>,
}

/// Runs a seed. `lines` keeps what happened for people.
pub fn run(seed: u64, lines: bool) -> Report {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().expect("a runtime can be had");
    runtime.block_on(simulate(seed, lines))
}

async fn simulate(seed: u64, lines: bool) -> Report {
    let mut dice = Dice(seed);
    let plan = Plan::draw(&mut dice);
    let trace = Trace::new(lines);
    trace.note(0, "plan", &[], || format!("{plan:?}"));
    let exec = Exec::new(dice.split());
    let net = Net::new(&exec, &trace, dice.split(), plan.weather.clone(), plan.call_limit);
    net.server.lock().tells_silences = dice.permille(500);
    let common = Arc::new(Common {
        exec: exec.clone(),
        trace: trace.clone(),
        history: History::default(),
        sink: Mutex::default(),
        calm: false.into(),
        lease: plan.lease,
        ended: Mutex::default(),
        writes: Mutex::default(),
    });
    let inner = Inner { dice, next: 1, processes: BTreeMap::new(), declared: BTreeSet::new(), forgot: false, names: 0 };
    let world = Arc::new_cyclic(|me| World {
        exec: exec.clone(),
        net: net.clone(),
        trace: trace.clone(),
        common,
        plan,
        state: Mutex::new(inner),
        me: me.clone(),
    });
    exec.on_crash({
        let world = world.me.clone();
        move |pid| {
            if let Some(world) = world.upgrade() {
                world.bury(pid);
            }
        }
    });
    exec.spawn_world({
        let world = world.clone();
        async move {
            world.direct().await;
            world.exec.finish();
        }
    });
    exec.spawn_world(world.clone().watch());
    if !exec.run().await {
        trace.broken("the tasks go round in circles");
    }
    let processes = std::mem::take(&mut world.state.lock().processes);
    drop(processes);
    let (hash, faults, violation, lines) = trace.end();
    let grants = net.server.lock().grants;
    let writes = *world.common.writes.lock();
    let simulated = Duration::from_nanos(exec.now());
    Report { hash, faults, violation, lines, simulated, steps: exec.steps(), grants, writes }
}

impl World {
    fn part(&self, percent: u64) -> Duration {
        self.common.lease_part(&mut self.state.lock().dice, percent)
    }

    fn fault(&self, kind: &'static str, pid: Pid) {
        self.trace.fault(kind);
        self.trace.note(self.exec.now(), "FAULT", &[pid], || format!("{kind} (process {pid})"));
    }

    /// Starts a process, on a machine of its own or on one that there was.
    fn launch(&self, again: Option<(NodeId, Arc<Clocks>)>) -> Pid {
        let mut state = self.state.lock();
        let pid = state.next;
        state.next += 1;
        let (name, clocks) = again.unwrap_or_else(|| {
            state.names += 1;
            let name = NodeId::new(format!("n{}", state.names)).expect("a name");
            (name, Clocks::new(&mut state.dice, self.plan.drift))
        });
        let host = Host::new(&self.exec, pid, &clocks, state.dice.split());
        let mut config = NodeConfig::new(name.clone());
        config.lease = self.plan.lease;
        config.resync = self.plan.resync;
        config.affinity = state.dice.pick(&[500, 1000, 1000, 2000]);
        config.flush_time_limit = self.plan.lease * 2;
        config.call_time_limit = self.plan.lease * 2;
        if !self.plan.quarantine {
            config.quarantine = None;
        }
        let affinity = config.affinity;
        let builder = Node::builder(Line::new(&self.net, pid)).config(config);
        let node = builder.clock(host.clone() as Arc<dyn Clock>).machine(host as Arc<dyn Machine>).build();
        let node = node.expect("a valid configuration");
        let seen: Arc<dyn Divider> = Arc::new(node.clone());
        let player = self.common.history.player(&seen);
        let manners = Manners {
            slow_stop: self.plan.slow_stop,
            slow_reader: self.plan.slow_reader,
            two_streams: state.dice.permille(500),
            give_up: self.plan.give_up,
            complete: self.plan.complete,
            checkpoint: 100,
            stale: 50,
        };
        let program = Program::new(pid, node, player, &self.common, manners, state.dice.split(), affinity);
        let process = Process { name, clocks, program: program.clone(), _node: seen };
        self.trace.note(self.exec.now(), "launch", &[pid], || format!("process {pid} as {}", process.name));
        state.processes.insert(pid, process);
        drop(state);
        program.spawn(program.clone().run());
        pid
    }

    /// A process is no more.
    fn bury(&self, pid: Pid) {
        let process = self.state.lock().processes.remove(&pid);
        if let Some(process) = process {
            self.common.history.gone(process.program.player);
            self.trace.note(self.exec.now(), "gone", &[pid], || format!("process {pid}"));
        }
    }

    fn processes(&self) -> Vec<Process> {
        self.state.lock().processes.values().cloned().collect()
    }

    fn any(&self) -> Option<Process> {
        let mut state = self.state.lock();
        let count = state.processes.len() as u64;
        let at = state.dice.below(count);
        state.processes.values().nth(usize::try_from(at).ok()?).cloned()
    }

    fn later(&self, delay: Duration, act: impl FnOnce(&World) + Send + 'static) {
        let world = self.me.clone();
        self.exec.spawn_world(async move {
            tokio::time::sleep(delay).await;
            if let Some(world) = world.upgrade() {
                act(&world);
            }
        });
    }

    fn is_calm(&self) -> bool {
        self.common.calm.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Looks all the time whether two processes believe in one key.
    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.plan.lease / 23).await;
            let mut believers: BTreeMap<Key, Pid> = BTreeMap::new();
            for process in self.processes() {
                for (key, token) in process.program.running() {
                    if !process.program.node.is_current(&key, token) {
                        continue;
                    }
                    if let Some(other) = believers.insert(key.clone(), process.program.pid) {
                        let pid = process.program.pid;
                        self.trace.broken(format!("{other} and {pid} both believe that they own {key}"));
                    }
                }
            }
        }
    }

    /// Declares work through some process, until that is acknowledged.
    fn declare(&self, keys: Vec<Key>) {
        let world = self.me.clone();
        self.exec.spawn_world(async move {
            loop {
                let Some(world) = world.upgrade() else { return };
                let Some(process) = world.any().filter(|process| process.program.is_started()) else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let work = keys.iter().cloned().map(Work::from).collect();
                let node = process.program.node.clone();
                drop(process);
                if node.add_work(work).await.is_ok() {
                    world.state.lock().declared.extend(keys);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn lasting(&self) -> Vec<Key> {
        (0..self.plan.keys).map(|n| Key::new(format!("lasting-{n}")).expect("a key")).collect()
    }

    /// The whole run.
    async fn direct(self: &Arc<Self>) {
        for _ in 0..self.plan.nodes {
            self.launch(None);
        }
        self.declare(self.lasting());
        let passing: Vec<Key> =
            (0..self.plan.passing).map(|n| Key::new(format!("passing-{n}")).expect("a key")).collect();
        if !passing.is_empty() {
            self.declare(passing);
        }
        let until =
            self.exec.now() + u64::try_from((self.plan.lease * self.count(self.plan.storm)).as_nanos()).unwrap_or(0);
        while self.exec.now() < until && !self.trace.is_broken() {
            let pause = self.part(60);
            tokio::time::sleep(pause).await;
            self.trouble();
        }
        if self.trace.is_broken() {
            return;
        }
        self.heal();
        for (bound, what, holds) in [
            (14, "every key runs", Self::converged as fn(&Self) -> Result<(), String>),
            (10, "the keys are balanced", Self::balanced),
        ] {
            let until = self.exec.now() + u64::try_from((self.plan.lease * bound).as_nanos()).unwrap_or(0);
            for round in 0.. {
                if bound == 10 && round % 30 == 0 {
                    // Once more where a newcomer had to wait for its share meanwhile.
                    self.rebalance();
                    tokio::time::sleep(self.plan.lease / 2).await;
                }
                if self.trace.is_broken() {
                    return;
                }
                let Err(why) = holds(self) else { break };
                if self.exec.now() >= until {
                    return self.trace.broken(format!("{bound} leases are not enough until {what}: {why}"));
                }
                self.nudge();
                tokio::time::sleep(self.plan.lease / 10).await;
            }
            self.trace.note(self.exec.now(), "reached", &[], || what.into());
        }
        let before = self.net.server.lock().grants;
        tokio::time::sleep(self.plan.lease * 2).await;
        if self.net.server.lock().grants != before {
            return self.trace.broken("nothing moves while nobody comes or goes");
        }
        if let Err(why) = self.converged().and_then(|()| self.balanced()) {
            return self.trace.broken(format!("what was reached does not last: {why}"));
        }
        self.count_keys();
    }

    /// Asks for balance, until that is acknowledged.
    fn rebalance(&self) {
        let Some(process) = self.any() else { return };
        let node = process.program.node.clone();
        process.program.spawn(async move {
            while node.rebalance().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    fn count(&self, leases: u64) -> u32 {
        u32::try_from(leases).unwrap_or(u32::MAX)
    }

    fn trouble(&self) {
        let kind = {
            let mut state = self.state.lock();
            let all: u64 = self.plan.kinds.iter().map(|(_, weight)| weight).sum();
            let mut at = state.dice.below(all);
            let found = self.plan.kinds.iter().find(|(_, weight)| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            });
            found.map_or(Trouble::Newcomer, |(kind, _)| *kind)
        };
        let alive = self.state.lock().processes.len() as u64;
        let Some(process) = self.any() else {
            self.launch(None);
            return;
        };
        let (pid, program) = (process.program.pid, process.program.clone());
        match kind {
            Trouble::Crash => {
                self.fault("crash", pid);
                self.restart_later(&process);
                drop((process, program));
                self.exec.crash(pid);
            }
            Trouble::CrashSoon => {
                self.fault("crash between two steps", pid);
                self.restart_later(&process);
                let steps = self.state.lock().dice.between(1, 60);
                self.exec.doom(pid, steps);
            }
            Trouble::Suspend | Trouble::Block => {
                let freeze = if kind == Trouble::Suspend { Freeze::All } else { Freeze::Runtime };
                self.fault(if kind == Trouble::Suspend { "suspended" } else { "runtime blocked" }, pid);
                let time = self.part(300);
                self.exec.freeze(pid, Some(freeze));
                let clocks = process.clocks.clone();
                self.later(time, move |world| {
                    world.trace.note(world.exec.now(), "thaw", &[pid], || format!("process {pid}"));
                    if freeze == Freeze::All {
                        let nanos = u64::try_from(time.as_nanos()).unwrap_or(0);
                        clocks.suspended.fetch_add(nanos, std::sync::atomic::Ordering::Relaxed);
                    }
                    world.exec.freeze(pid, None);
                });
            }
            Trouble::CutOff => {
                self.fault("cut off", pid);
                let time = self.part(250);
                self.net.cut_off(pid, true);
                self.later(time, move |world| world.net.cut_off(pid, false));
            }
            Trouble::ServerDown => {
                self.fault("store down", 0);
                let time = self.part(200);
                self.net.set_down(true);
                self.later(time, |world| world.net.set_down(false));
            }
            Trouble::Backup => self.net.server.lock().back_up(),
            Trouble::NewLineage | Trouble::Restored | Trouble::Flushed => {
                let (loss, name) = match kind {
                    Trouble::NewLineage => (Loss::Nothing, "new lineage, nothing lost"),
                    Trouble::Restored => (Loss::SinceBackup, "new lineage from a backup"),
                    _ => (Loss::Everything, "new lineage, everything lost"),
                };
                self.fault(name, 0);
                if loss != Loss::Nothing {
                    self.state.lock().forgot = true;
                    // Whoever operates the store declares again what it has lost.
                    let delay = self.part(100);
                    self.later(delay, |world| world.declare(world.lasting()));
                }
                self.net.begin_lineage(loss);
            }
            Trouble::CutFeeds => {
                self.fault("feeds cut", 0);
                self.net.cut_feeds();
            }
            Trouble::Depose => {
                if self.net.server.lock().depose() {
                    self.fault("leader deposed", 0);
                }
            }
            Trouble::WallJump => {
                self.fault("wall clock jumps", pid);
                // Work that was put off by such a clock is due again before the end.
                let far = u64::try_from(self.plan.lease.as_millis()).unwrap_or(0) * 3;
                let by = self.state.lock().dice.below(2 * far).cast_signed() - far.cast_signed();
                process.clocks.jump(by);
            }
            Trouble::Affinity => {
                self.fault("affinity changed", pid);
                let affinity = self.state.lock().dice.pick(&[0, 0, 500, 1000, 3000]);
                program.want(affinity, false);
            }
            Trouble::AddWork => self.declare(vec![self.passing()]),
            Trouble::RemoveWork => {
                let key = self.passing();
                self.common.ended.lock().insert(key.clone());
                self.fault("work removed", pid);
                let node = program.node.clone();
                program.spawn(async move {
                    let _ = node.remove_work(vec![key]).await;
                });
            }
            Trouble::Leave => {
                if alive > 1 && !program.is_leaving() {
                    self.fault("drained", pid);
                    self.leave(&program);
                }
            }
            Trouble::Rebalance => {
                self.fault("rebalance", pid);
                let node = program.node.clone();
                program.spawn(async move {
                    let _ = node.rebalance().await;
                });
            }
            Trouble::Newcomer => {
                if alive < self.plan.nodes + 1 {
                    self.fault("newcomer", 0);
                    self.launch(None);
                }
            }
        }
    }

    fn passing(&self) -> Key {
        let n = self.state.lock().dice.below(self.plan.passing + 2);
        Key::new(format!("passing-{n}")).expect("a key")
    }

    fn leave(&self, program: &Arc<Program>) {
        let (program, world) = (program.clone(), self.me.clone());
        let pid = program.pid;
        program.will_leave();
        let exec = self.exec.clone();
        program.clone().spawn(async move {
            program.leave().await;
            if let Some(world) = world.upgrade() {
                // The process ends with all that it still has.
                world.exec.spawn_world(async move { exec.crash(pid) });
            }
        });
    }

    /// Perhaps the process comes back, perhaps under its old name, perhaps on its old machine's clocks.
    fn restart_later(&self, process: &Process) {
        let (comes_back, same) = {
            let mut state = self.state.lock();
            (state.dice.permille(600), state.dice.permille(700))
        };
        if !comes_back {
            return;
        }
        let again = same.then(|| (process.name.clone(), process.clocks.clone()));
        let delay = self.part(200);
        self.later(delay, move |world| {
            if !world.is_calm() {
                world.fault("restart", 0);
                world.launch(again);
            }
        });
    }

    /// Ends all faults. Whoever lives takes work.
    fn heal(&self) {
        self.trace.note(self.exec.now(), "HEAL", &[], String::new);
        self.common.calm.store(true, std::sync::atomic::Ordering::Relaxed);
        self.net.heal(Weather { latency: 500, ..Weather::default() });
        let processes = self.processes();
        for process in &processes {
            self.exec.freeze(process.program.pid, None);
            self.exec.pardon(process.program.pid);
            process.clocks.jump(0);
        }
        let stay = processes.iter().filter(|process| !process.program.is_leaving()).count();
        for _ in stay..2 {
            self.launch(None);
        }
        for process in self.processes().iter().filter(|process| !process.program.is_leaving()) {
            let affinity = self.state.lock().dice.pick(&[500, 1000, 1000, 2000]);
            process.program.want(affinity, true);
        }
        self.declare(self.lasting());
    }

    /// What people do while they wait.
    fn nudge(&self) {
        let listed = self.net.server.lock().ledger().quarantined(100);
        if let Some(process) = self.any().filter(|_| !listed.is_empty()) {
            let node = process.program.node.clone();
            process.program.spawn(async move {
                for key in listed {
                    let _ = node.retry(&key).await;
                }
            });
        }
    }

    /// Whether every key runs where the ledger says, and nowhere else.
    fn converged(&self) -> Result<(), String> {
        let processes = self.processes();
        if let Some(process) = processes.iter().find(|process| process.program.is_leaving()) {
            return Err(format!("process {} is still leaving", process.program.pid));
        }
        if let Some(process) = processes.iter().find(|process| process.program.is_asking()) {
            return Err(format!("process {} is still asking for an affinity", process.program.pid));
        }
        let server = self.net.server.lock();
        let ledger = server.ledger();
        let alive: BTreeSet<_> = ledger.sessions().filter(|view| view.ended.is_none()).map(|v| v.session).collect();
        let known: BTreeSet<_> = processes.iter().filter_map(|process| process.program.node.session()).collect();
        if known.len() < processes.len() || known != alive {
            return Err(format!(
                "of {} processes, {known:?} have sessions; the ledger knows {alive:?}",
                processes.len()
            ));
        }
        if ledger.group().leader.is_none() || ledger.group().hold {
            return Err(format!("{:?}", ledger.group()));
        }
        for key in self.lasting() {
            if ledger.record(&key).is_none() {
                return Err(format!("{key} is not known"));
            }
        }
        let page = ledger.scan(None).map_err(|error| error.to_string())?;
        let mut runs: BTreeMap<Key, (Pid, divider_core::SessionId)> = BTreeMap::new();
        for process in &processes {
            for (key, token) in process.program.running() {
                if !process.program.node.is_current(&key, token) {
                    return Err(format!("process {} runs {key} and does not believe in it", process.program.pid));
                }
                let session = process.program.node.session().ok_or("no session")?;
                if let Some((other, _)) = runs.insert(key.clone(), (process.program.pid, session)) {
                    return Err(format!("{key} runs on {other} and {}", process.program.pid));
                }
            }
        }
        for view in page.keys {
            match (view.state, runs.remove(&view.key)) {
                (State::Assigned { session, .. }, Some((_, owner))) if session == owner => {}
                (state, runs) => return Err(format!("{} is {state:?} and runs on {runs:?}", view.key)),
            }
        }
        match runs.pop_first() {
            Some((key, (pid, _))) => Err(format!("{key} runs on {pid} and is not known")),
            None => Ok(()),
        }
    }

    /// Whether every node has its quota.
    fn balanced(&self) -> Result<(), String> {
        self.converged()?;
        let server = self.net.server.lock();
        let ledger = server.ledger();
        let sessions: Vec<_> = ledger.sessions().filter(|view| view.takes_work()).cloned().collect();
        let all: u64 = sessions.iter().map(|view| u64::from(view.affinity)).sum();
        let keys = server.stats().registered;
        for view in &sessions {
            if !view.settled {
                return Err(format!("{} is not settled", view.node));
            }
            let held = ledger.holdings(view.session).map_or(0, |holdings| holdings.holdings.len() as u64);
            // The quota is whole by largest remainder: one of the two whole numbers beside the share.
            let share = keys * u64::from(view.affinity);
            if held * all >= share + all || (held + 1) * all <= share {
                return Err(format!(
                    "{} holds {held} of {keys} keys at affinity {} of {all}",
                    view.node, view.affinity
                ));
            }
        }
        Ok(())
    }

    /// The books at the end: no key is lost, and each is in one state.
    fn count_keys(&self) {
        let server = self.net.server.lock();
        let ledger = server.ledger();
        let stats = server.stats();
        if stats.registered != stats.assigned + stats.pending + stats.stopping + stats.quarantined {
            self.trace.broken(format!("the counts do not add up: {stats:?}"));
        }
        let state = self.state.lock();
        let ended = self.common.ended.lock();
        if !state.forgot
            && let Some(key) = state.declared.iter().find(|key| !ended.contains(*key) && ledger.record(key).is_none())
        {
            self.trace.broken(format!("{key} was declared and never ended, and is lost"));
        }
    }
}
