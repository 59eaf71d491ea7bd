//! The machine that a simulated process runs on: clocks that drift and jump, and names from the seed.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use divider_conformance::Dice;
use divider_core::{Clock, Instant, SessionId, sim::Task};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::exec::{Exec, Pid};

/// Simulated wall time at the beginning.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// Clocks of one machine. They outlive the processes on it.
#[derive(Debug)]
pub struct Clocks {
    /// What the monotonic clock shows at the beginning, in nanoseconds.
    base: u64,
    /// How much faster it runs than simulated time, in millionths.
    drift: i64,
    /// How far the wall clock is off, in milliseconds.
    wall_off: AtomicI64,
    /// How long the machine has been suspended, in nanoseconds.
    pub suspended: AtomicU64,
}

impl Clocks {
    /// A clock that drifts by at most `most` millionths in either direction.
    pub fn new(dice: &mut Dice, most: u64) -> Arc<Self> {
        let drift = i64::try_from(dice.between(0, 2 * most)).unwrap_or(0) - i64::try_from(most).unwrap_or(0);
        let base = dice.below(1 << 50);
        Arc::new(Self { base, drift, wall_off: AtomicI64::new(0), suspended: AtomicU64::new(0) })
    }

    /// What the monotonic clock shows after `elapsed` nanoseconds. It goes on while the machine is suspended.
    fn at(&self, elapsed: u64) -> Instant {
        let shown = i128::from(elapsed) * i128::from(1_000_000 + self.drift) / 1_000_000;
        Instant(self.base + u64::try_from(shown).unwrap_or(0))
    }

    /// Sets the wall clock off by so many milliseconds.
    pub fn jump(&self, off_ms: i64) {
        self.wall_off.store(off_ms, Ordering::Relaxed);
    }
}

/// One process on a machine.
#[derive(Debug)]
pub struct Host {
    exec: Arc<Exec>,
    pid: Pid,
    clocks: Arc<Clocks>,
    names: Mutex<Dice>,
}

impl Host {
    /// A process that starts now.
    pub fn new(exec: &Arc<Exec>, pid: Pid, clocks: &Arc<Clocks>, names: Dice) -> Arc<Self> {
        Arc::new(Self { exec: exec.clone(), pid, clocks: clocks.clone(), names: Mutex::new(names) })
    }
}

impl Clock for Host {
    fn now(&self) -> Instant {
        self.clocks.at(self.exec.now())
    }

    fn unix_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.exec.now() / 1_000_000).unwrap_or(i64::MAX);
        u64::try_from(EPOCH_MS + elapsed + self.clocks.wall_off.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

impl divider_core::sim::Environment for Host {
    fn session(&self) -> SessionId {
        let mut names = self.names.lock();
        SessionId(Uuid::from_u64_pair(names.roll(), names.roll()))
    }

    fn task(&self, task: Task) -> Task {
        self.exec.stand_in(self.pid, task)
    }

    fn beat(&self, beat: Task) -> io::Result<()> {
        self.exec.spawn_thread(self.pid, beat);
        Ok(())
    }
}
