//! A store and a fleet of processes on it.

use std::{sync::MutexGuard, time::Duration};

use crate::{
    backend::TestBackend,
    history::ProcessId,
    process::{Fleet, alone},
};

/// A store, a fleet on it, and the machine for oneself.
#[derive(Debug)]
pub struct Bed<B> {
    /// The processes.
    pub fleet: Fleet,
    /// Where the group is kept.
    pub store: B,
    /// Who was last in each slot of the store.
    slots: Vec<ProcessId>,
    _alone: MutexGuard<'static, ()>,
}

impl<B: TestBackend> Bed<B> {
    /// A new store, and a fleet without processes yet. All get the arguments given.
    pub fn new(args: &[&str]) -> Self {
        Self::on(B::start, args)
    }

    /// As [`new`](Self::new), on a store of one's own.
    pub fn on(store: impl FnOnce() -> B, args: &[&str]) -> Self {
        let alone = alone();
        let store = store();
        // Every process is given a URL of its own, so this one is never used.
        let fleet = Fleet::new("", "/process/", args);
        Self { fleet, store, slots: Vec::new(), _alone: alone }
    }

    /// Starts one more node, with further arguments.
    pub fn spawn(&mut self, args: &[&str]) -> ProcessId {
        let free = self.slots.iter().position(|id| !self.fleet.lives(*id));
        let slot = free.unwrap_or(self.slots.len());
        let id = self.fleet.spawn_at(&self.store.url(slot), args);
        match self.slots.get_mut(slot) {
            Some(last) => *last = id,
            None => self.slots.push(id),
        }
        id
    }

    /// Starts several, and waits until all have joined and one of them leads.
    ///
    /// # Panics
    /// Where they do not within the time.
    pub fn spawn_ready(&mut self, count: usize, args: &[&str]) -> Vec<ProcessId> {
        let new: Vec<_> = (0..count).map(|_| self.spawn(args)).collect();
        self.fleet.wait_ready(&new);
        new
    }

    /// As many nodes as arguments, in a group that has got over its beginning: grants may be held back for the first lease
    /// of a group, since its store may be one that has forgotten it.
    ///
    /// # Panics
    /// Where they do not within the time.
    pub fn nodes(&mut self, count: usize, args: &[&str]) -> Vec<ProcessId> {
        let ids = self.spawn_ready(count, args);
        self.settle(ids[0]);
        ids
    }

    /// Waits until grants are given out, by way of a key that is then removed again.
    ///
    /// # Panics
    /// Where that takes longer than 20 s.
    pub fn settle(&mut self, by: ProcessId) {
        self.fleet.call(by, "add warm-up");
        self.fleet.wait_all_run(1, Duration::from_secs(20));
        self.fleet.call(by, "remove warm-up");
        self.fleet.wait("the first key to be gone", Duration::from_secs(5), |_, said| {
            said.history.claims("warm-up").all(|claim| claim.ended.is_some())
        });
    }

    /// Adds keys, and waits until each runs in one place beside the one that the group began with.
    ///
    /// # Panics
    /// Where they do not within the time.
    pub fn add(&mut self, by: ProcessId, keys: usize, limit: Duration) {
        self.fleet.call(by, &format!("keys {keys}"));
        self.fleet.wait_all_run(keys, limit);
    }

    /// Adds keys one after the other, each by the next of the nodes, and times each from the moment before the call to its
    /// start.
    ///
    /// # Panics
    /// Where a key is not started within 10 s.
    pub fn time_adds(&mut self, by: &[ProcessId], count: usize) -> Vec<Duration> {
        let mut times = Vec::with_capacity(count);
        for (k, by) in by.iter().cycle().take(count).enumerate() {
            let key = format!("one-{k}");
            let before = self.fleet.said().notes[*by].len();
            self.fleet.send(*by, &format!("add {key}"));
            let started = self.wait_started(&key);
            self.fleet.wait("the add to be answered", Duration::from_secs(5), |_, said| said.notes[*by].len() > before);
            let added = self.fleet.said().notes[*by][before].clone();
            assert_eq!(added.key.as_deref(), Some(&*key), "{added:?}");
            times.push(Duration::from_nanos(started - added.at_ns));
        }
        times
    }

    /// Looks often: many of these are waited for one after the other.
    fn wait_started(&self, key: &str) -> u64 {
        for _ in 0..20_000 {
            if let Some(claim) = self.fleet.said().history.claims(key).next() {
                return claim.started;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        panic!("{key} was not started within 10 s; {}", self.fleet.standing());
    }
}

impl<B> Drop for Bed<B> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.fleet.check();
        }
    }
}
