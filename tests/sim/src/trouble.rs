//! What is done to the nodes and the store while faults last.

use std::{sync::Arc, time::Duration};

use divider_core::{Divider, Key, Work};

use crate::{
    exec::Freeze,
    mood::Mood,
    plan::Trouble,
    program::Program,
    server::Loss,
    world::{Process, World},
};

impl World {
    /// Does something, whatever the dice say.
    pub(crate) fn trouble(&self) {
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
            Trouble::Stall => {
                self.fault("store stalled", 0);
                let time = self.part(200);
                self.net.set_stalled(true);
                self.later(time, |world| world.net.set_stalled(false));
            }
            Trouble::Backup => self.net.server.lock().back_up(),
            Trouble::Outages => self.outages(),
            Trouble::CutReading => {
                let times = self.state.lock().dice.between(1, 12);
                self.net.cut_when_read(times);
                // Somebody has to read it.
                self.net.server.lock().depose();
            }
            Trouble::Mood | Trouble::Deaf => {
                let draw = if kind == Trouble::Mood { Mood::draw } else { Mood::deaf };
                let mood = draw(&mut self.state.lock().dice, pid);
                self.trace.note(self.exec.now(), "FAULT", &[pid], || format!("{mood:?}"));
                let (number, time) = (self.net.set_mood(mood), self.part(200));
                if kind == Trouble::Deaf {
                    self.net.cut_feeds();
                }
                self.later(time, move |world| world.net.lift_mood(number));
            }
            Trouble::Panic => {
                self.fault("panic in a task of the node", pid);
                let steps = self.state.lock().dice.between(1, 60);
                self.exec.panic_after(pid, steps);
            }
            Trouble::PanicInCall => {
                let calls = self.state.lock().dice.between(1, 20);
                self.net.panic_after(pid, calls);
            }
            Trouble::EndRuntime => {
                self.fault("runtime ended, a handle kept", pid);
                program.is_now_over();
                self.exec.end_runtime(pid);
                self.forget_acts(pid);
            }
            Trouble::DropReaders => {
                self.fault("readers dropped and taken anew", pid);
                program.drop_readers(self.part(300));
            }
            Trouble::DoubleReaders => {
                self.fault("one more reader", pid);
                let time = self.part(200);
                program.spawn(program.clone().double_readers(time));
            }
            Trouble::Order => self.order(),
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

    /// The store goes away again and again, and each time for long enough that every lease runs out.
    fn outages(&self) {
        if self.state.lock().busy > 0 {
            return;
        }
        let count = self.state.lock().dice.between(5, 7);
        let mut at = Duration::ZERO;
        let stalls = self.state.lock().dice.permille(500);
        for _ in 0..count {
            let (gone, back) = (self.plan.lease + self.part(200), self.plan.lease / 4 + self.part(100));
            self.later(at, move |world| {
                world.fault(if stalls { "store stalled again and again" } else { "store down again and again" }, 0);
                world.set_away(stalls, true);
            });
            self.later(at + gone, move |world| world.set_away(stalls, false));
            at += gone + back;
        }
        self.state.lock().busy = self.exec.now() + u64::try_from(at.as_nanos()).unwrap_or(0);
    }

    fn set_away(&self, stalls: bool, away: bool) {
        if stalls { self.net.set_stalled(away) } else { self.net.set_down(away) }
    }

    /// Orders work that may be done, running, or just about to end.
    fn order(&self) {
        let key = {
            let mut state = self.state.lock();
            Key::new(format!("again-{}", state.dice.below(2))).expect("a key")
        };
        let world = self.me.clone();
        self.state.lock().declaring += 1;
        self.exec.spawn_world(async move {
            loop {
                let Some(world) = world.upgrade() else { return };
                if world.is_calm() {
                    world.state.lock().declaring -= 1;
                    return;
                }
                let able = |process: &Process| process.program.is_started() && !process.program.is_over();
                let process = world.any().filter(able);
                let number = {
                    let mut state = world.state.lock();
                    state.orders.0 += 1;
                    state.orders.0
                };
                if let Some(process) = process {
                    let node = process.program.node.clone();
                    drop(process);
                    let work = Work::from(key.clone()).payload(number.to_be_bytes());
                    if node.add_work(vec![work]).await.is_ok() {
                        world.fault("work ordered again", 0);
                        if let Some(orders) = world.net.server.lock().orders.get_mut(&key) {
                            orders.acknowledged.insert(number);
                        }
                        let mut state = world.state.lock();
                        state.orders.1.insert((key, number));
                        state.declaring -= 1;
                        return;
                    }
                }
                drop(world);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Perhaps the process comes back, perhaps under its old name, perhaps on its old machine's clocks.
    pub(crate) fn restart_later(&self, process: &Process) {
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
}
