//! Real processes: a fleet of `worker`s on one store, whose lines are read as they come.

mod binary;
mod one;
mod proxy;
mod stalls;

use std::{
    collections::{HashMap, VecDeque},
    process::Command,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use divider_core::{Clock, SystemClock};
use divider_examples::line::{Kind, Line};
use parking_lot::{Mutex, MutexGuard};

use crate::history::{FleetHistory, ProcessId};
pub use binary::example;
use one::Process;
pub use proxy::{Network, Proxy};
use stalls::Stalls;

/// How often a wait looks again. Figures come from the lines' own times, so it does not show in them.
const LOOK: Duration = Duration::from_millis(10);

/// Everything that the processes have said.
#[derive(Debug, Default)]
pub struct Said {
    /// What became of the keys.
    pub history: FleetHistory,
    /// The other lines of each process, in order.
    pub notes: Vec<Vec<Line<'static>>>,
    /// The last lines that each process has written to its standard error.
    pub complaints: Vec<VecDeque<String>>,
    /// All lines about keys of the processes that are recorded, in order.
    pub recorded: HashMap<ProcessId, Vec<Line<'static>>>,
    /// Processes that ended without being told to.
    pub accidents: Vec<String>,
}

/// Several `worker` processes of one group. Dropping it kills them all.
#[derive(Debug)]
pub struct Fleet {
    url: String,
    group: String,
    args: Vec<String>,
    processes: Vec<Process>,
    said: Arc<Mutex<Said>>,
    stalls: Stalls,
}

/// What a process has taken of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Time on a processor, of all its threads.
    pub cpu: Duration,
    /// Bytes of memory that are its own.
    pub resident: usize,
}

/// The time as it stands in the lines.
pub fn now() -> u64 {
    SystemClock.now().0
}

/// Waits for the only turn: tests that measure times, or stop whole processes, want the machine for themselves.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// A fleet without processes yet. All get the arguments given.
    pub fn new(url: &str, group: &str, args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self {
            url: url.to_owned(),
            group: group.to_owned(),
            args,
            processes: Vec::new(),
            said: Arc::default(),
            stalls: Stalls::watch(),
        }
    }

    /// Starts one more, with further arguments.
    pub fn spawn(&mut self, args: &[&str]) -> ProcessId {
        self.spawn_at(&self.url.clone(), args)
    }

    /// Starts one more that reaches the store by another URL.
    pub fn spawn_at(&mut self, url: &str, args: &[&str]) -> ProcessId {
        self.launch(None, url, args)
    }

    /// Starts one more through a command that becomes it, as those of [`Netns`](crate::netns::Netns::command) do.
    pub fn spawn_in(&mut self, place: Command, url: &str, args: &[&str]) -> ProcessId {
        self.launch(Some(place), url, args)
    }

    fn launch(&mut self, through: Option<Command>, url: &str, args: &[&str]) -> ProcessId {
        let id = self.processes.len();
        let mut said = self.said.lock();
        said.notes.push(Vec::new());
        said.complaints.push(VecDeque::new());
        drop(said);
        let node = format!("node-{id}");
        let common = ["--store", url, "--group", &self.group, "--node", &node, "--die-with-parent"];
        let args = common.into_iter().chain(self.args.iter().map(String::as_str)).chain(args.iter().copied());
        self.processes.push(Process::spawn(id, through, args, &self.said));
        id
    }

    /// Starts several, and waits until all have joined and one of them leads.
    pub fn spawn_ready(&mut self, count: usize, args: &[&str]) -> Vec<ProcessId> {
        let new: Vec<_> = (0..count).map(|_| self.spawn(args)).collect();
        self.wait_ready(&new);
        new
    }

    /// Waits until these have joined, and one of the fleet leads.
    pub fn wait_ready(&self, ids: &[ProcessId]) {
        self.wait_ready_within(ids, Duration::from_secs(20));
    }

    /// As [`wait_ready`](Self::wait_ready), for so long at most.
    pub fn wait_ready_within(&self, ids: &[ProcessId], limit: Duration) {
        self.wait("all nodes to be ready", limit, |fleet, said| {
            ids.iter().all(|id| said.notes[*id].iter().any(|note| note.event == Kind::Ready))
                && fleet.leader_in(said).is_some()
        });
    }

    /// What has been said so far.
    pub fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock()
    }

    /// Whether the process runs, as far as the fleet's own doings go.
    pub fn lives(&self, id: ProcessId) -> bool {
        self.processes[id].lives()
    }

    /// The processes that live.
    pub fn living(&self) -> Vec<ProcessId> {
        (0..self.processes.len()).filter(|id| self.lives(*id)).collect()
    }

    /// Which process leads, by what they say.
    pub fn leader(&self) -> Option<ProcessId> {
        self.leader_in(&self.said.lock())
    }

    fn leader_in(&self, said: &Said) -> Option<ProcessId> {
        let about = |note: &&Line<'_>| matches!(note.event, Kind::Leading | Kind::Following);
        let last = |id: ProcessId| said.notes[id].iter().rev().find(about);
        let leading = self.living().into_iter().filter_map(|id| Some((last(id)?, id)));
        leading.filter(|(note, _)| note.event == Kind::Leading).max_by_key(|(note, _)| note.at_ns).map(|(_, id)| id)
    }

    /// Which process leads, as soon as one does: in a replicated store, another member may have to be elected.
    ///
    /// # Panics
    /// Where none does for 20 s.
    pub fn wait_leader(&self) -> ProcessId {
        self.wait("somebody to lead", Duration::from_secs(20), |fleet, said| fleet.leader_in(said).is_some());
        self.leader().expect("somebody leads")
    }

    /// A bound for what was measured, with what the machine itself has stood still for added: a disk that needs half a
    /// second for a write, or a thread that was not run, makes everything later by as much.
    pub fn allowing(&self, bound: Duration) -> Duration {
        bound + self.stalls.allowance()
    }

    /// Waits until something holds.
    ///
    /// # Panics
    /// Where it does not within the time, with what it was and how things stand.
    pub fn wait(&self, what: &str, limit: Duration, holds: impl Fn(&Self, &Said) -> bool) {
        if !self.within(limit, holds) {
            // A rule that was broken says more than what did not come of it.
            self.check();
            panic!("waited {limit:?} in vain for {what}; {}", self.standing());
        }
    }

    /// Waits until something holds, for so long at most. Whether it did.
    pub fn within(&self, limit: Duration, holds: impl Fn(&Self, &Said) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let began = Instant::now();
            if holds(self, &self.said.lock()) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            // Whoever reads what processes say waits during a look, which takes long where there are many keys; and what is
            // measured needs the processor.
            std::thread::sleep(LOOK.max(began.elapsed() * 4));
        }
    }

    /// Waits until each of so many keys runs in exactly one living process.
    pub fn wait_all_run(&self, keys: usize, limit: Duration) {
        self.wait(&format!("{keys} keys to run once each"), limit, |fleet, said| {
            let running = said.history.running(|id| fleet.lives(id));
            running.len() >= keys && running.values().filter(|owners| owners.len() == 1).count() == keys
        });
    }

    /// How many keys each process runs.
    pub fn loads(&self) -> HashMap<ProcessId, usize> {
        let said = self.said.lock();
        let mut loads: HashMap<_, _> = self.living().into_iter().map(|id| (id, 0)).collect();
        for owner in said.history.running(|id| self.lives(id)).into_values().flatten() {
            *loads.entry(owner).or_default() += 1;
        }
        loads
    }

    /// How many keys run in all, by what each process says when it is asked. For a fleet that is quiet about its keys.
    ///
    /// # Panics
    /// As [`call`](Self::call).
    pub fn running(&mut self) -> usize {
        let living = self.living();
        let counts = living.into_iter().map(|id| self.call(id, "running").count.unwrap_or_default());
        counts.map(|count| usize::try_from(count).expect("counts are small")).sum()
    }

    /// What the process has taken of the machine so far.
    ///
    /// # Panics
    /// Where it does not live, or there is no `/proc`.
    pub fn usage(&self, id: ProcessId) -> Usage {
        self.processes[id].usage()
    }

    /// Asserts that nothing has happened that must never happen.
    ///
    /// # Panics
    /// With everything that has.
    pub fn check(&self) {
        let said = self.said.lock();
        let problems = [said.history.problems(), said.accidents.clone()].concat();
        drop(said);
        assert!(
            problems.is_empty(),
            "{} things that must never be: {:#?}",
            problems.len(),
            &problems[..problems.len().min(20)]
        );
    }

    /// Gives a command without waiting.
    pub fn send(&mut self, id: ProcessId, command: &str) {
        self.processes[id].send(command);
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Panics
    /// Where there is none within 30 s, or it is an error.
    pub fn call(&mut self, id: ProcessId, command: &str) -> Line<'static> {
        self.call_for(id, command, Duration::from_secs(30))
    }

    /// As [`call`](Self::call), for a command that may take longer.
    ///
    /// # Panics
    /// As [`call`](Self::call).
    pub fn call_for(&mut self, id: ProcessId, command: &str, limit: Duration) -> Line<'static> {
        let answer = self.wait_call(id, command, limit);
        assert!(answer.event != Kind::Error, "{command:?} failed: {answer:?}");
        answer
    }

    /// Gives a command and waits for its answer, which is `done`, `error`, or a line of the command's own. Commands are
    /// carried out one after the other, so what was given before is over then.
    ///
    /// # Panics
    /// Where there is none within the time.
    pub fn wait_call(&mut self, id: ProcessId, command: &str, limit: Duration) -> Line<'static> {
        let word = command.split(' ').next().unwrap_or_default();
        let is_answer = |line: &&Line<'_>| match line.event {
            Kind::Done | Kind::Error => line.command.as_deref() == Some(word),
            Kind::Assigned => word == "assigned",
            Kind::Stats => word == "stats",
            Kind::Flushed => word == "flush",
            Kind::Cancelled => word == "cancel",
            _ => false,
        };
        // Answers to the same command that was given before may still be on their way.
        let before = self.processes[id].asked(word);
        self.send(id, command);
        let find = |said: &Said| said.notes[id].iter().filter(is_answer).nth(before).cloned();
        self.wait(&format!("the answer of {id} to {command:?}"), limit, |_, said| find(said).is_some());
        find(&self.said.lock()).expect("it was there a moment ago")
    }

    /// Ends a process without a warning. Returns when that began.
    pub fn kill9(&mut self, id: ProcessId) -> u64 {
        let at = now();
        self.processes[id].kill9();
        at
    }

    /// Keeps all lines about keys of this process from now on.
    pub fn record(&self, id: ProcessId) {
        self.said.lock().recorded.insert(id, Vec::new());
    }

    /// Stops a process in its tracks. When this returns, none of its threads goes on.
    pub fn pause(&self, id: ProcessId) {
        self.processes[id].stop();
    }

    /// Lets it go on.
    pub fn resume(&self, id: ProcessId) {
        self.processes[id].signal(rustix::process::Signal::CONT);
    }

    /// Asks a process to end gracefully and waits until it has. Returns when it was asked.
    pub fn terminate(&mut self, id: ProcessId) -> u64 {
        let asked = now();
        self.processes[id].terminate(Duration::from_secs(60));
        asked
    }

    /// Asks a process to end gracefully, and does not wait for it. It counts as ended from now on.
    pub fn begin_to_end(&mut self, id: ProcessId) {
        self.processes[id].begin_to_end();
    }

    /// Whether the process is gone from the machine.
    pub fn is_gone(&mut self, id: ProcessId) -> bool {
        self.processes[id].is_gone()
    }

    /// Forgets the details of what is over, so that a long run stays small; see [`FleetHistory::fold`].
    pub fn fold(&self, ended_before: u64) {
        let mut said = self.said.lock();
        said.history.fold(|id| !self.lives(id), ended_before);
        for id in (0..self.processes.len()).filter(|id| !self.lives(*id)) {
            said.notes[id] = Vec::new();
            said.complaints[id] = VecDeque::new();
        }
    }

    /// How things stand, for a report.
    pub fn standing(&self) -> String {
        let said = &*self.said.lock();
        let running = said.history.running(|id| self.lives(id));
        let of = |owners: usize| running.values().filter(|all| all.len() == owners).count();
        let errors: Vec<_> = said.notes.iter().flatten().filter(|note| note.event == Kind::Error).collect();
        format!(
            "{} keys were seen, {} run nowhere (among them {:?}), {} in one place, {} in several; leader {:?}; loads {:?}; {} errors, the last {:?}",
            running.len(),
            of(0),
            running.iter().filter(|(_, owners)| owners.is_empty()).map(|(key, _)| *key).min(),
            of(1),
            running.len() - of(0) - of(1),
            self.leader_in(said),
            self.living()
                .iter()
                .map(|id| (*id, running.values().flatten().filter(|owner| *owner == id).count()))
                .collect::<Vec<_>>(),
            errors.len(),
            errors.last(),
        )
    }
}
