//! A whole run from one seed: nodes, faults, healing, and the checks at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use divider_conformance::{Dice, History};
use divider_core::{Clock, Divider, Key, Node, NodeConfig, NodeId, SessionId, Work, sim::Environment};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    check::{Deaf, Goal},
    exec::{Exec, Pid},
    machine::{Clocks, Host},
    mood::{Answer, Calls, Mood},
    net::{Line, Net, Weather},
    plan::{EVIDENCE, Plan},
    program::{Common, Manners, Program},
    trace::Trace,
};

/// Most deaths until one killer is set aside, and until two are.
const KILLS: [u64; 3] = [0, 8, 16];

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

pub(crate) struct World {
    pub(crate) exec: Arc<Exec>,
    pub(crate) net: Arc<Net>,
    pub(crate) trace: Trace,
    pub(crate) common: Arc<Common>,
    pub(crate) plan: Plan,
    pub(crate) state: Mutex<Inner>,
    pub(crate) me: Weak<World>,
}

pub(crate) struct Inner {
    pub(crate) dice: Dice,
    next: Pid,
    pub(crate) processes: BTreeMap<Pid, Process>,
    /// Keys whose declaration was acknowledged.
    pub(crate) declared: BTreeSet<Key>,
    /// Orders so far, and those that were acknowledged.
    pub(crate) orders: (u64, BTreeSet<(Key, u64)>),
    /// The store has forgotten something.
    pub(crate) forgot: bool,
    names: u64,
    /// Until when trouble goes on that must not be cut short, and, when all is well, until when its last calls may hang.
    pub(crate) busy: u64,
    /// Declarations that are under way.
    pub(crate) declaring: u64,
    /// Processes, or nodes, that are no more.
    pub(crate) gone: u64,
    /// How often a process died with a key, and how often of the key itself.
    pub(crate) deaths: BTreeMap<Key, u64>,
    pub(crate) kills: u64,
    /// The process that hears nothing although all else is well.
    pub(crate) deaf: Option<Deaf>,
}

#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) name: NodeId,
    pub(crate) clocks: Arc<Clocks>,
    pub(crate) program: Arc<Program>,
    /// It is known that nobody reads there any more.
    pub(crate) buried: bool,
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
    {
        let mut server = net.server.lock();
        server.tells_silences = dice.permille(500);
        (server.page, server.reach) = plan.reading;
    }
    let common = Arc::new(Common {
        exec: exec.clone(),
        trace: trace.clone(),
        history: History::default(),
        sink: Mutex::default(),
        calm: false.into(),
        lease: plan.lease,
        ended: Mutex::default(),
        writes: Mutex::default(),
        acts: Mutex::default(),
        begun: Mutex::default(),
        reached: watch::Sender::new(false),
        killers: (0..plan.killers).map(lasting).collect(),
        on_kill: std::sync::OnceLock::new(),
    });
    let inner = Inner {
        dice,
        next: 1,
        processes: BTreeMap::new(),
        declared: BTreeSet::new(),
        orders: (0, BTreeSet::new()),
        forgot: false,
        names: 0,
        busy: 0,
        declaring: 0,
        gone: 0,
        deaths: BTreeMap::new(),
        kills: 0,
        deaf: None,
    };
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
    net.on_end({
        let world = world.me.clone();
        move |session| {
            if let Some(world) = world.upgrade() {
                world.ended_by_word(session);
            }
        }
    });
    net.ask_for_sessions({
        let world = world.me.clone();
        move |pid, session| {
            let process = world.upgrade().and_then(|world| world.state.lock().processes.get(&pid).cloned());
            process.is_some_and(|process| process.program.node.session() == Some(session))
        }
    });
    let on_kill = {
        let world = world.me.clone();
        move |pid, _: &Key| {
            if let Some(world) = world.upgrade() {
                world.killed(pid);
            }
        }
    };
    let _ = world.common.on_kill.set(Box::new(on_kill));
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

/// A key that nobody ever ends.
pub(crate) fn lasting(n: u64) -> Key {
    Key::new(format!("lasting-{n}")).expect("a key")
}

impl World {
    pub(crate) fn part(&self, percent: u64) -> Duration {
        self.common.lease_part(&mut self.state.lock().dice, percent)
    }

    pub(crate) fn fault(&self, kind: &'static str, pid: Pid) {
        self.trace.fault(kind);
        self.trace.note(self.exec.now(), "FAULT", &[pid], || format!("{kind} (process {pid})"));
    }

    /// Starts a process, on a machine of its own or on one that there was.
    pub(crate) fn launch(&self, again: Option<(NodeId, Arc<Clocks>)>) -> Pid {
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
        match &mut config.quarantine {
            Some(quarantine) if self.plan.quarantine => quarantine.within = self.plan.lease * 4,
            off => *off = None,
        }
        let affinity = config.affinity;
        let builder = Node::builder(Line::new(&self.net, pid)).config(config);
        let node = builder.clock(host.clone() as Arc<dyn Clock>).environment(host as Arc<dyn Environment>).build();
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
            wind_up: self.plan.wind_up,
            // One at most, so that there are others that can run what it holds back.
            stubborn: self.plan.stubborn && pid == 1,
            abort: self.plan.abort,
        };
        let program = Program::new(pid, node, player, &self.common, manners, state.dice.split(), affinity);
        let process = Process { name, clocks, program: program.clone(), buried: false, _node: seen };
        self.trace.note(self.exec.now(), "launch", &[pid], || format!("process {pid} as {}", process.name));
        state.processes.insert(pid, process);
        drop(state);
        program.spawn(program.clone().run());
        pid
    }

    /// A process is no more.
    pub(crate) fn bury(&self, pid: Pid) {
        self.count_deaths(pid);
        let process = self.state.lock().processes.remove(&pid);
        if let Some(process) = process {
            self.forget_acts(pid);
            self.common.history.gone(process.program.player);
            self.trace.note(self.exec.now(), "gone", &[pid], || format!("process {pid}"));
        }
    }

    pub(crate) fn processes(&self) -> Vec<Process> {
        self.state.lock().processes.values().cloned().collect()
    }

    pub(crate) fn any(&self) -> Option<Process> {
        let mut state = self.state.lock();
        let count = state.processes.len() as u64;
        let at = state.dice.below(count);
        state.processes.values().nth(usize::try_from(at).ok()?).cloned()
    }

    pub(crate) fn later(&self, delay: Duration, act: impl FnOnce(&World) + Send + 'static) {
        let world = self.me.clone();
        self.exec.spawn_world(async move {
            tokio::time::sleep(delay).await;
            if let Some(world) = world.upgrade() {
                act(&world);
            }
        });
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.common.calm.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Declares work through some process, until that is acknowledged.
    pub(crate) fn declare(&self, keys: Vec<Key>) {
        let world = self.me.clone();
        self.state.lock().declaring += 1;
        self.exec.spawn_world(async move {
            loop {
                let Some(world) = world.upgrade() else { return };
                let able = |process: &Process| process.program.is_started() && !process.program.is_over();
                let Some(process) = world.any().filter(able) else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let work = keys.iter().cloned().map(Work::from).collect();
                let (pid, node) = (process.program.pid, process.program.node.clone());
                drop(process);
                let declared = tokio::select! {
                    biased;
                    declared = node.add_work(work) => declared.is_ok(),
                    () = world.is_cut_off(pid) => false,
                };
                if declared {
                    let mut state = world.state.lock();
                    state.declared.extend(keys);
                    state.declaring -= 1;
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Waits until a process is deaf and blind for good and without a session. It gets none any more, and what it is to declare
    /// waits for one until the call's time limit: somebody else has to do it.
    async fn is_cut_off(&self, pid: Pid) {
        if self.plan.deaf != 2 {
            std::future::pending::<()>().await;
        }
        let is_cut_off = || {
            let state = self.state.lock();
            let process = state.processes.get(&pid).filter(|_| state.deaf.is_some_and(|deaf| deaf.pid == pid));
            process.is_some_and(|process| process.program.node.session().is_none())
        };
        while !is_cut_off() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn lasting(&self) -> Vec<Key> {
        (0..self.plan.keys).map(lasting).collect()
    }

    /// The whole run.
    async fn direct(self: &Arc<Self>) {
        for _ in 0..self.plan.nodes {
            self.launch(None);
        }
        self.declare(self.lasting());
        if self.plan.busy > 0 {
            self.exec.spawn_world(self.clone().keep_busy());
        }
        let passing: Vec<Key> =
            (0..self.plan.passing).map(|n| Key::new(format!("passing-{n}")).expect("a key")).collect();
        if !passing.is_empty() {
            self.declare(passing);
        }
        if self.plan.killers > 0 {
            self.let_them_kill().await;
        } else {
            self.storm().await;
        }
        if self.trace.is_broken() {
            return;
        }
        self.heal();
        for goal in [Goal::EveryKeyRuns, Goal::Balanced] {
            if let Err(why) = self.reach(goal).await {
                return self.trace.broken(why);
            }
            self.trace.note(self.exec.now(), "reached", &[], || format!("{goal:?}"));
            self.common.reached.send_replace(true);
            self.deaf_no_more();
        }
        let before = self.net.server.lock().grants;
        tokio::time::sleep(self.plan.lease * 2).await;
        if self.net.server.lock().grants != before {
            return self.trace.broken("nothing moves while nobody comes or goes");
        }
        if let Err(why) = self.balanced() {
            return self.trace.broken(format!("what was reached does not last: {why}"));
        }
        self.count_keys();
        self.count_orders();
        self.count_blames();
    }

    /// Declares one key without a break, each time with another payload.
    async fn keep_busy(self: Arc<Self>) {
        let mut reached = self.common.reached.subscribe();
        for number in 0_u64.. {
            let pause = tokio::time::sleep(Duration::from_micros(self.plan.busy));
            tokio::select! {
                biased;
                _ = reached.wait_for(|reached| *reached) => return,
                () = pause => self.net.declare_again(Work::from(lasting(0)).payload(number.to_be_bytes())),
            }
        }
    }

    async fn storm(self: &Arc<Self>) {
        let until = self.exec.now() + self.leases(self.plan.storm);
        while self.exec.now() < until.max(self.state.lock().busy) && !self.trace.is_broken() {
            let pause = self.part(60);
            tokio::time::sleep(pause).await;
            self.trouble();
        }
    }

    /// Waits until every killer is set aside, for so many deaths at most.
    async fn let_them_kill(self: &Arc<Self>) {
        let most = KILLS[usize::try_from(self.plan.killers).unwrap_or(0)];
        let until = self.exec.now() + self.leases(500);
        while !self.trace.is_broken() {
            tokio::time::sleep(self.plan.lease / 10).await;
            let aside = self.net.server.lock().ledger().quarantined(1000).len() as u64;
            if aside == self.plan.killers {
                return;
            }
            let kills = self.state.lock().kills;
            if kills > most || self.exec.now() > until {
                self.trace
                    .broken(format!("after {kills} deaths {aside} of {} killers are set aside", self.plan.killers));
            }
        }
    }

    /// Waits until something holds, for as long as it may take.
    async fn reach(self: &Arc<Self>, goal: Goal) -> Result<(), String> {
        let until = self.exec.now() + self.leases(goal.bound(&self.plan));
        for round in 0.. {
            if goal == Goal::Balanced && round % 30 == 0 {
                // Once more where a newcomer had to wait for its share meanwhile.
                self.rebalance();
                tokio::time::sleep(self.plan.lease / 2).await;
            }
            self.staff();
            self.look_at_the_deaf();
            let Err(why) = self.holds(goal) else { return Ok(()) };
            if self.trace.is_broken() {
                return Err("a rule is broken".into());
            }
            if self.exec.now() >= until {
                return Err(format!("{} leases are not enough until {}: {why}", goal.bound(&self.plan), goal.name()));
            }
            self.nudge();
            tokio::time::sleep(self.plan.lease / 10).await;
        }
        Ok(())
    }

    /// So many leases, in nanoseconds.
    pub(crate) fn leases(&self, count: u64) -> u64 {
        u64::try_from(self.plan.lease.as_nanos()).unwrap_or(0) * count
    }

    /// Asks for balance, until that is acknowledged.
    fn rebalance(&self) {
        let process = self.processes().into_iter().find(|process| !process.program.is_over());
        let Some(process) = process else { return };
        let node = process.program.node.clone();
        process.program.spawn(async move {
            while node.rebalance().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Ends all faults. Whoever lives takes work.
    fn heal(&self) {
        self.trace.note(self.exec.now(), "HEAL", &[], String::new);
        self.common.calm.store(true, std::sync::atomic::Ordering::Relaxed);
        self.net.heal(Weather { latency: 500, ..Weather::default() });
        let longest = u64::try_from(self.plan.call_limit.as_nanos()).unwrap_or(0);
        self.state.lock().busy = self.exec.now() + longest + self.leases(1);
        let processes = self.processes();
        for process in &processes {
            self.exec.freeze(process.program.pid, None);
            self.exec.pardon(process.program.pid);
            process.clocks.jump(0);
        }
        self.staff();
        for process in self.processes().iter().filter(|process| process.stays()) {
            let affinity = self.state.lock().dice.pick(&[500, 1000, 1000, 2000]);
            process.program.want(affinity, true);
        }
        if self.state.lock().forgot {
            self.declare(self.lasting());
        }
        if self.plan.busy > 0 {
            // Whoever leads from now on has to read a group that does not wait for it.
            self.net.server.lock().depose();
            self.declare((0..self.plan.nodes).map(|n| Key::new(format!("late-{n}")).expect("a key")).collect());
        }
        if self.plan.deaf > 0 {
            self.deafen();
        }
    }

    /// There are always two that go on.
    fn staff(&self) {
        let stay = self.processes().iter().filter(|process| process.stays()).count();
        for _ in stay..2 {
            self.launch(None);
        }
    }

    /// From now on one process hears nothing of what it is given.
    fn deafen(&self) {
        let alive = |session: &SessionId| self.net.server.lock().ledger().is_alive(*session);
        let heard: Vec<_> = self.processes().into_iter().filter(Process::stays).collect();
        let found =
            heard.iter().find_map(|process| Some((process.program.pid, process.program.node.session().filter(alive)?)));
        let Some((pid, session)) = found.filter(|_| heard.len() > 1) else { return };
        let reads = self.plan.deaf == 1;
        self.fault(if reads { "one process is deaf for good" } else { "one process is deaf and blind for good" }, pid);
        let calls = if reads { Calls::SessionHints } else { Calls::Hearing };
        let mood = self.net.set_mood(Mood { whom: Some(pid), calls, answer: Answer::NoRight, often: 1000 });
        self.state.lock().deaf = Some(Deaf { pid, session, reads, mood });
        self.net.cut_messages(session);
        let late = (0..2 * heard.len()).map(|n| Key::new(format!("late-{n}")).expect("a key")).collect();
        self.declare(late);
    }

    /// What people do while they wait: nothing, but where a key was set aside on evidence.
    fn nudge(&self) {
        let mut listed = self.net.server.lock().ledger().quarantined(1000);
        listed.retain(|key| !self.common.killers.contains(key) && (!EVIDENCE || self.has_evidence(key)));
        if let Some(process) = self.any().filter(|_| !listed.is_empty()) {
            let node = process.program.node.clone();
            process.program.spawn(async move {
                for key in listed {
                    let _ = node.retry(&key).await;
                }
            });
        }
    }

    /// The work for a key kills its process, soon after its start.
    fn killed(&self, pid: Pid) {
        let (delay, back) = (self.part(20), self.part(50));
        self.later(delay, move |world| {
            let process = world.state.lock().processes.get(&pid).cloned();
            let Some(process) = process else { return };
            world.fault("killed by its key", pid);
            world.state.lock().kills += 1;
            let again = Some((process.name.clone(), process.clocks.clone()));
            drop(process);
            world.exec.crash(pid);
            world.later(back, move |world| {
                world.launch(again);
            });
        });
    }
}

impl Process {
    /// Whether it goes on taking part.
    pub(crate) fn stays(&self) -> bool {
        !self.program.is_leaving() && !self.program.is_over()
    }
}
