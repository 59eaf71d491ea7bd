//! Runs all tasks of a simulation on one thread, and chooses which goes on next.
//!
//! # Why not the runtime itself
//! A simulation has to suspend a machine and go on with it, kill it between any two steps, and try orders of its tasks that
//! a queue never shows; and all of it has to repeat from the seed, whatever order the runtime wakes tasks in. So the tasks
//! are kept here, by number, and the dice choose among all that can go on. Of the runtime only its paused clock is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use divider_core::sim::Task;
use parking_lot::Mutex;
use tokio::time::Instant;

use divider_conformance::Dice;

/// A process of the simulation, which owns tasks. 0 is the simulation itself.
pub type Pid = u64;

/// The tasks of the simulation itself: network, faults, checks.
pub const WORLD: Pid = 0;

/// Steps at one moment of simulated time after which somebody is going round in circles.
const DIZZY: u64 = 100_000;

const SERIAL_BITS: u32 = 40;
/// Set in the number of a task that runs on a thread of its own.
const THREAD: u64 = 1 << (SERIAL_BITS - 1);

/// What an injected panic carries, so that no other panic is taken for one.
struct Injected;

/// Panics on purpose, without a word on standard error. Whoever runs the task takes it for the end of that task alone.
pub fn panic_on_purpose() -> ! {
    resume_unwind(Box::new(Injected))
}

/// See the [module](self).
pub struct Exec {
    began: Instant,
    now: AtomicU64,
    state: Mutex<State>,
    woken: Arc<Woken>,
}

type CrashHook = Box<dyn Fn(Pid) + Send + Sync>;

struct State {
    tasks: BTreeMap<u64, Slot>,
    serial: u64,
    dice: Dice,
    /// Processes of which nothing runs, or nothing but the threads of their own.
    frozen: BTreeMap<Pid, Freeze>,
    /// Processes that are to die after so many steps.
    doomed: BTreeMap<Pid, u64>,
    /// Processes in which one of the node's own tasks is to panic after so many steps of these.
    panics: BTreeMap<Pid, u64>,
    /// Tasks that have panicked, and whose stand-ins have still to say so.
    panicked: BTreeSet<u64>,
    /// Processes of which nothing runs any more, or only the threads of their own.
    ended: BTreeMap<Pid, Freeze>,
    /// The task that is being polled is one of a node.
    in_node: bool,
    on_crash: Option<Arc<CrashHook>>,
    over: bool,
    steps: u64,
    steps_at_once: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
/// What of a process stands still.
pub enum Freeze {
    /// All of it, as a suspended machine or a stopped process does.
    All,
    /// The program's runtime, as a handler that blocks every thread does. Threads of their own go on.
    Runtime,
}

struct Slot {
    /// `None` while it is being polled.
    task: Option<Task>,
    /// It is a task of the node, not of the program around it.
    of_node: bool,
    waker: Waker,
    /// Who waits for its end.
    waits: Option<Waker>,
}

struct Woken {
    ready: Mutex<BTreeSet<u64>>,
    outer: Mutex<Option<Waker>>,
}

struct TaskWaker {
    id: u64,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.ready.lock().insert(self.id);
        self.woken.rouse();
    }
}

impl Woken {
    fn rouse(&self) {
        if let Some(outer) = &*self.outer.lock() {
            outer.wake_by_ref();
        }
    }
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").finish_non_exhaustive()
    }
}

impl Exec {
    /// Nothing to run yet. Call it inside of a runtime whose time is paused.
    pub fn new(dice: Dice) -> Arc<Self> {
        let state = State {
            tasks: BTreeMap::new(),
            serial: 0,
            dice,
            frozen: BTreeMap::new(),
            doomed: BTreeMap::new(),
            panics: BTreeMap::new(),
            panicked: BTreeSet::new(),
            ended: BTreeMap::new(),
            in_node: false,
            on_crash: None,
            over: false,
            steps: 0,
            steps_at_once: 0,
        };
        Arc::new(Self {
            began: Instant::now(),
            now: AtomicU64::new(0),
            state: Mutex::new(state),
            woken: Arc::new(Woken { ready: Mutex::default(), outer: Mutex::default() }),
        })
    }

    /// Simulated time since the beginning, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// How many steps have been made.
    pub fn steps(&self) -> u64 {
        self.state.lock().steps
    }

    /// Adds a task of a program.
    pub fn spawn(&self, pid: Pid, task: Task) -> u64 {
        self.add(pid, false, false, task)
    }

    /// Adds a task of a node, on a thread of its own: it goes on where the program's runtime is blocked.
    pub fn spawn_thread(&self, pid: Pid, task: Task) -> u64 {
        self.add(pid, true, true, task)
    }

    fn add(&self, pid: Pid, thread: bool, of_node: bool, task: Task) -> u64 {
        let mut state = self.state.lock();
        state.serial += 1;
        let id = pid << SERIAL_BITS | if thread { THREAD } else { 0 } | state.serial;
        if state.ended.get(&pid).is_some_and(|ended| *ended == Freeze::All || !thread) {
            // Dropped without the lock: whatever it holds may have something to do when it goes.
            drop(state);
            drop(task);
            return id;
        }
        let waker = Waker::from(Arc::new(TaskWaker { id, woken: self.woken.clone() }));
        state.tasks.insert(id, Slot { task: Some(task), of_node, waker, waits: None });
        drop(state);
        self.woken.ready.lock().insert(id);
        self.woken.rouse();
        id
    }

    /// Adds a task of the simulation itself.
    pub fn spawn_world(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(WORLD, Box::pin(task));
    }

    /// Adds a task of a node, and returns what stands for it: it completes when the task does, panics when it does, and ends
    /// it when it is dropped.
    pub fn stand_in(self: &Arc<Self>, pid: Pid, task: Task) -> Task {
        let id = self.add(pid, false, true, task);
        Box::pin(StandIn { exec: Arc::downgrade(self), id })
    }

    /// Drops all tasks of a process, wherever they are. Whoever is told of crashes is told.
    pub fn crash(&self, pid: Pid) {
        self.end(pid, Freeze::All);
        let hook = self.state.lock().on_crash.clone();
        if let Some(hook) = hook {
            hook(pid);
        }
    }

    /// Ends the program's runtime: all tasks on it are dropped where they are. The process and its threads go on.
    pub fn end_runtime(&self, pid: Pid) {
        self.end(pid, Freeze::Runtime);
    }

    fn end(&self, pid: Pid, what: Freeze) {
        let mut state = self.state.lock();
        state.frozen.remove(&pid);
        state.doomed.remove(&pid);
        state.panics.remove(&pid);
        state.ended.insert(pid, what);
        let mut dead = state.tasks.split_off(&(pid << SERIAL_BITS));
        let mut alive = dead.split_off(&((pid + 1) << SERIAL_BITS));
        state.tasks.append(&mut alive);
        if what == Freeze::Runtime {
            let mut threads = dead.split_off(&(pid << SERIAL_BITS | THREAD));
            state.tasks.append(&mut threads);
        }
        drop(state);
        for waits in dead.values_mut().filter_map(|slot| slot.waits.take()) {
            waits.wake();
        }
        drop(dead);
    }

    /// Who is told of crashes.
    pub fn on_crash(&self, hook: impl Fn(Pid) + Send + Sync + 'static) {
        self.state.lock().on_crash = Some(Arc::new(Box::new(hook)));
    }

    /// The process dies after so many steps of its tasks.
    pub fn doom(&self, pid: Pid, steps: u64) {
        self.state.lock().doomed.insert(pid, steps);
    }

    /// One of the node's own tasks panics after so many steps of these: whichever goes on then.
    pub fn panic_after(&self, pid: Pid, steps: u64) {
        self.state.lock().panics.insert(pid, steps);
    }

    /// Whether whoever asks is a task of a node, and not of the program around it.
    pub fn is_in_node(&self) -> bool {
        self.state.lock().in_node
    }

    /// The process does not die after all, and none of its tasks panics.
    pub fn pardon(&self, pid: Pid) {
        let mut state = self.state.lock();
        state.doomed.remove(&pid);
        state.panics.remove(&pid);
    }

    /// Freezes or thaws a process.
    pub fn freeze(&self, pid: Pid, freeze: Option<Freeze>) {
        let mut state = self.state.lock();
        match freeze {
            Some(freeze) => state.frozen.insert(pid, freeze),
            None => state.frozen.remove(&pid),
        };
        drop(state);
        self.woken.rouse();
    }

    /// Ends the run after the current step.
    pub fn finish(&self) {
        self.state.lock().over = true;
        self.woken.rouse();
    }

    /// Runs until [`finish`](Self::finish), then drops all tasks. False where the tasks went round in circles.
    pub async fn run(&self) -> bool {
        let sane = Run(self).await;
        let mut state = self.state.lock();
        state.on_crash = None;
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        drop(tasks);
        sane
    }

    fn next(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let mut ready = self.woken.ready.lock();
        let State { frozen, dice, .. } = &mut *state;
        let id = if frozen.is_empty() {
            let at = if ready.len() > 1 { dice.below(ready.len() as u64) } else { 0 };
            *ready.iter().nth(usize::try_from(at).ok()?)?
        } else {
            let can_go_on = |id: &&u64| match frozen.get(&(**id >> SERIAL_BITS)) {
                None => true,
                Some(Freeze::All) => false,
                Some(Freeze::Runtime) => **id & THREAD != 0,
            };
            let able: Vec<u64> = ready.iter().filter(can_go_on).copied().collect();
            if able.is_empty() {
                return None;
            }
            dice.pick(&able)
        };
        ready.remove(&id);
        Some(id)
    }

    fn step(&self, id: u64) {
        let pid = id >> SERIAL_BITS;
        let (taken, panics) = {
            let mut state = self.state.lock();
            state.steps += 1;
            state.steps_at_once += 1;
            let of_node = state.tasks.get(&id).is_some_and(|slot| slot.of_node);
            state.in_node = of_node;
            let panics = of_node && run_down(&mut state.panics, pid);
            (state.tasks.get_mut(&id).and_then(|slot| Some((slot.task.take()?, slot.waker.clone()))), panics)
        };
        let Some((task, waker)) = taken else { return };
        let polled = if panics { unwind(task) } else { poll(task, &waker) };
        let mut state = self.state.lock();
        state.in_node = false;
        let panicked = polled.is_none();
        let left = match (state.tasks.get_mut(&id), polled) {
            (Some(slot), Some((task, Poll::Pending))) => {
                slot.task = Some(task);
                None
            }
            // It has ended, or it ended itself, or its process.
            (_, polled) => Some((polled.map(|(task, _)| task), state.tasks.remove(&id))),
        };
        if panicked && left.as_ref().is_some_and(|(_, slot)| slot.is_some()) {
            state.panicked.insert(id);
        }
        let dies = run_down(&mut state.doomed, pid);
        drop(state);
        if let Some((task, slot)) = left {
            drop(task);
            if let Some(waits) = slot.and_then(|slot| slot.waits) {
                waits.wake();
            }
        }
        if dies {
            self.crash(pid);
        }
    }

    fn remove(&self, id: u64) {
        let removed = self.state.lock().tasks.remove(&id);
        drop(removed);
    }
}

/// Counts down for a process. True when that has come to its end.
fn run_down(left: &mut BTreeMap<Pid, u64>, pid: Pid) -> bool {
    let Some(steps) = left.get_mut(&pid) else { return false };
    *steps = steps.saturating_sub(1);
    let over = *steps == 0;
    if over {
        left.remove(&pid);
    }
    over
}

/// One step of a task. `None` where it has panicked on purpose; any other panic goes on.
fn poll(mut task: Task, waker: &Waker) -> Option<(Task, Poll<()>)> {
    // Otherwise the runtime would want its turn after so many steps, which are not its own.
    let step = || {
        let unconstrained = std::pin::pin!(tokio::task::coop::unconstrained(task.as_mut()));
        unconstrained.poll(&mut Context::from_waker(waker))
    };
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(polled) => Some((task, polled)),
        Err(payload) if payload.is::<Injected>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// Unwinds through a task where it waits, as a panic in whatever it waits for does.
fn unwind(task: Task) -> Option<(Task, Poll<()>)> {
    let unwound: Result<(), _> = catch_unwind(AssertUnwindSafe(move || {
        let _task = task;
        panic_on_purpose();
    }));
    debug_assert!(unwound.is_err(), "it has panicked");
    None
}

struct Run<'a>(&'a Exec);

impl Future for Run<'_> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let exec = self.0;
        {
            let mut outer = exec.woken.outer.lock();
            if outer.as_ref().is_none_or(|outer| !outer.will_wake(cx.waker())) {
                *outer = Some(cx.waker().clone());
            }
        }
        let now = u64::try_from(exec.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if exec.now.swap(now, Ordering::Relaxed) != now {
            exec.state.lock().steps_at_once = 0;
        }
        loop {
            {
                let state = exec.state.lock();
                if state.over {
                    return Poll::Ready(true);
                }
                if state.steps_at_once > DIZZY {
                    return Poll::Ready(false);
                }
            }
            match exec.next() {
                Some(id) => exec.step(id),
                None => return Poll::Pending,
            }
        }
    }
}

struct StandIn {
    exec: Weak<Exec>,
    id: u64,
}

impl Future for StandIn {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(exec) = self.exec.upgrade() else { return Poll::Ready(()) };
        let mut state = exec.state.lock();
        if let Some(slot) = state.tasks.get_mut(&self.id) {
            slot.waits = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let panicked = state.panicked.remove(&self.id);
        drop(state);
        if panicked {
            panic_on_purpose();
        }
        Poll::Ready(())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.upgrade() {
            exec.remove(self.id);
        }
    }
}
