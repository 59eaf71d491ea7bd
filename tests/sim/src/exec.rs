//! Runs all tasks of a simulation on one thread, and chooses which goes on next.
//!
//! # Why not the runtime itself
//! A simulation has to suspend a machine and go on with it, kill it between any two steps, and try orders of its tasks that
//! a queue never shows; and all of it has to repeat from the seed, whatever order the runtime wakes tasks in. So the tasks
//! are kept here, by number, and the dice choose among all that can go on. Of the runtime only its paused clock is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use divider_core::Task;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::dice::Dice;

/// A process of the simulation, which owns tasks. 0 is the simulation itself.
pub type Pid = u64;

/// The tasks of the simulation itself: network, faults, checks.
pub const WORLD: Pid = 0;

/// Steps at one moment of simulated time after which somebody is going round in circles.
const DIZZY: u64 = 100_000;

const SERIAL_BITS: u32 = 40;
/// Set in the number of a task that runs on a thread of its own.
const THREAD: u64 = 1 << (SERIAL_BITS - 1);

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

    /// Adds a task. Threads go on where the program's runtime is blocked.
    pub fn spawn(&self, pid: Pid, thread: bool, task: Task) -> u64 {
        let mut state = self.state.lock();
        state.serial += 1;
        let id = pid << SERIAL_BITS | if thread { THREAD } else { 0 } | state.serial;
        let waker = Waker::from(Arc::new(TaskWaker { id, woken: self.woken.clone() }));
        state.tasks.insert(id, Slot { task: Some(task), waker, waits: None });
        drop(state);
        self.woken.ready.lock().insert(id);
        self.woken.rouse();
        id
    }

    /// Adds a task of the simulation itself.
    pub fn spawn_world(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(WORLD, false, Box::pin(task));
    }

    /// Adds a task, and returns what stands for it: it completes when the task does, and ends it when it is dropped.
    pub fn stand_in(self: &Arc<Self>, pid: Pid, task: Task) -> Task {
        let id = self.spawn(pid, false, task);
        Box::pin(StandIn { exec: Arc::downgrade(self), id })
    }

    /// Drops all tasks of a process, wherever they are. Whoever is told of crashes is told.
    pub fn crash(&self, pid: Pid) {
        let mut state = self.state.lock();
        state.frozen.remove(&pid);
        state.doomed.remove(&pid);
        let mut dead = state.tasks.split_off(&(pid << SERIAL_BITS));
        let mut alive = dead.split_off(&((pid + 1) << SERIAL_BITS));
        state.tasks.append(&mut alive);
        let hook = state.on_crash.clone();
        drop(state);
        for waits in dead.values_mut().filter_map(|slot| slot.waits.take()) {
            waits.wake();
        }
        drop(dead);
        if let Some(hook) = hook {
            hook(pid);
        }
    }

    /// Who is told of crashes.
    pub fn on_crash(&self, hook: impl Fn(Pid) + Send + Sync + 'static) {
        self.state.lock().on_crash = Some(Arc::new(Box::new(hook)));
    }

    /// The process dies after so many steps of its tasks.
    pub fn doom(&self, pid: Pid, steps: u64) {
        self.state.lock().doomed.insert(pid, steps);
    }

    /// The process does not die after all.
    pub fn pardon(&self, pid: Pid) {
        self.state.lock().doomed.remove(&pid);
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
        let taken = {
            let mut state = self.state.lock();
            state.steps += 1;
            state.steps_at_once += 1;
            state.tasks.get_mut(&id).and_then(|slot| Some((slot.task.take()?, slot.waker.clone())))
        };
        let Some((mut task, waker)) = taken else { return };
        let polled = {
            // Otherwise the runtime would want its turn after so many steps, which are not its own.
            let unconstrained = std::pin::pin!(tokio::task::coop::unconstrained(task.as_mut()));
            unconstrained.poll(&mut Context::from_waker(&waker))
        };
        let mut state = self.state.lock();
        let left = match state.tasks.get_mut(&id) {
            Some(slot) if polled.is_pending() => {
                slot.task = Some(task);
                None
            }
            Some(_) => {
                let slot = state.tasks.remove(&id);
                Some((task, slot))
            }
            // It ended itself, or its process.
            None => Some((task, None)),
        };
        let pid = id >> SERIAL_BITS;
        let dies = state.doomed.get_mut(&pid).is_some_and(|steps| {
            *steps = steps.saturating_sub(1);
            *steps == 0
        });
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
        match state.tasks.get_mut(&self.id) {
            Some(slot) => {
                slot.waits = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(exec) = self.exec.upgrade() {
            exec.remove(self.id);
        }
    }
}
