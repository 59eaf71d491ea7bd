//! Random lives of a group: nodes come, die, are cut off and leave, keys come and go, and all the while every start, stop
//! and confirmation is checked against the rules; in the end everything must run once.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use divider_core::{Balance, Key, Work};

use super::{Backend, Dice, Fault, Faults, FaultyStore, Ordered, Trial, seat::Played};

const NODES: usize = 4;
const KEYS: usize = 50;
const ACTIONS: usize = 250;

/// Says how to repeat a run that fails.
struct Seed(u64);

impl Drop for Seed {
    #[allow(clippy::print_stderr, reason = "a test that fails says how to repeat it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the run that failed is repeated with DIVIDER_SEED={}", self.0);
        }
    }
}

struct Life<'a, B> {
    trial: &'a Trial<B>,
    dice: Dice,
    /// One in how many calls to the store fails.
    failing: Option<u64>,
    nodes: Vec<(Played, Faults)>,
    cuts: Vec<Ordered>,
}

impl<B: Backend> Life<'_, B> {
    async fn join(&mut self) {
        let store = FaultyStore::new(self.trial.store().await);
        let faults = store.faults();
        let (lease, roll) = (self.trial.short(), self.dice.roll());
        let seat = self.trial.seat(store, |config| {
            config.lease = lease;
            config.resync = Duration::from_millis(100);
            config.affinity = 1 + (roll % 3000) as u32;
            config.capacity = (roll % 5 == 0).then_some(KEYS as u32 / 2);
            if roll % 3 == 0 {
                config.balance = Balance::Continuous { tolerance: 0.1 };
            }
        });
        seat.start_node().await;
        if let Some(one_in) = self.failing {
            for fault in [Fault::LoseReply, Fault::Refuse, Fault::DelayReply(Duration::from_millis(20))] {
                let dice = AtomicU64::new(self.dice.roll());
                faults.always(fault, move |_| {
                    Dice(dice.fetch_add(1, Ordering::Relaxed)).roll().is_multiple_of(one_in * 3)
                });
            }
        }
        let delay = Duration::from_millis(self.dice.roll() % 3 * 7);
        self.nodes.push((seat.play_after(delay), faults));
    }

    fn pick(&mut self) -> usize {
        self.dice.index(self.nodes.len())
    }

    fn some_keys(&mut self, most: usize) -> Vec<Key> {
        let count = 1 + self.dice.index(most);
        let keys: HashSet<usize> = (0..count).map(|_| self.dice.index(KEYS)).collect();
        keys.into_iter().map(|i| Key::new(format!("key {i}")).unwrap()).collect()
    }

    /// One random thing. What it returns does not matter: every error that can come here is an honest one.
    async fn act(&mut self) {
        let at = self.pick();
        let (keys, roll) = (self.some_keys(6), self.dice.roll());
        let node = &self.nodes[at].0;
        let running = node.running();
        let start = (!running.is_empty()).then(|| running[self.dice.index(running.len())].clone());
        match self.dice.index(20) {
            0..=3 => {
                let work = keys.into_iter().map(|key| Work::from(key).weight(1 + (roll % 3) as u32)).collect();
                drop(node.add_work(work).await);
            }
            4..=5 => drop(node.remove_work(keys).await),
            6..=8 => {
                if let Some(start) = start {
                    let backoff = Duration::from_millis(roll % 2 * 30);
                    drop(node.give_up(&start.key, start.token, backoff).await);
                }
            }
            9..=10 => {
                if let Some(start) = start {
                    node.finish(&start).await;
                }
            }
            11 => {
                if let Some(start) = start {
                    drop(node.checkpoint(&start.key, start.token, roll.to_le_bytes().into()).await);
                }
            }
            12 => drop(node.set_affinity((roll % 3000) as i64).await),
            13 => drop(node.alter_affinity((roll % 1000) as i64 - 500).await),
            14 => drop(node.rebalance().await),
            15 if self.nodes.len() > 1 => self.nodes.swap_remove(at).0.kill().await,
            16 if self.nodes.len() > 1 => {
                self.cuts.iter().for_each(Ordered::lift);
                self.nodes.swap_remove(at).0.leave().await;
            }
            17 => self.nodes[at].1.lose_hints(roll % 2 == 0),
            18 => {
                // Cut off for about as long as a lease lasts, sometimes only from renewing.
                let all = roll % 2 == 0;
                let cut = self.nodes[at].1.always(Fault::Refuse, move |call| all || *call == super::Call::Renew);
                let time = self.trial.short().mul_f64((roll % 150) as f64 / 100.0);
                self.cuts.push(cut.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    cut.lift();
                });
            }
            _ if self.nodes.len() < NODES => self.join().await,
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(self.dice.roll() % 15)).await;
    }

    async fn converge(&mut self) {
        self.cuts.iter().for_each(Ordered::lift);
        for (_, faults) in &self.nodes {
            faults.lose_hints(false);
            faults.lift();
        }
        if self.nodes.iter().all(|(node, _)| node.inner.config().capacity.is_some()) {
            self.join().await;
            self.nodes.iter().for_each(|(_, faults)| faults.lift());
        }
        let willing = async || {
            for (node, _) in &self.nodes {
                if node.set_affinity(1000).await.is_err() {
                    return false;
                }
            }
            true
        };
        self.trial.until("every node has a session", willing).await;
        let all: Vec<Key> = (0..KEYS).map(|i| Key::new(format!("key {i}")).unwrap()).collect();
        self.nodes[0].0.add_work(all.iter().cloned().map(Work::from).collect()).await.unwrap();
        let once = async || {
            let node = &self.nodes[0].0;
            for key in node.quarantined(KEYS).await.unwrap() {
                drop(node.retry(&key).await);
            }
            // One that was being removed when it was declared may have gone since.
            for key in &all {
                if node.record(key).await.unwrap().is_none() {
                    node.add_work(vec![Work::from(key.clone())]).await.unwrap();
                }
            }
            let mut owners: HashMap<Key, usize> = HashMap::new();
            for (node, _) in &self.nodes {
                for start in node.running() {
                    if node.is_current(&start.key, start.token) {
                        *owners.entry(start.key).or_default() += 1;
                    }
                }
            }
            let stats = node.stats().await.unwrap();
            assert_eq!(stats.registered, stats.assigned + stats.pending + stats.stopping + stats.quarantined);
            owners.len() == KEYS && owners.values().all(|count| *count == 1) && stats.assigned == KEYS as u64
        };
        self.trial.until("every key runs once", once).await;
    }
}

async fn live<B: Backend>(trial: Trial<B>, failing: Option<u64>) {
    trial.end_hold().await;
    let given = std::env::var("DIVIDER_SEED").ok().and_then(|seed| seed.parse().ok());
    let dice = given.map_or_else(Dice::seeded, Dice);
    let _seed = Seed(dice.0);
    let mut life = Life { trial: &trial, dice, failing, nodes: Vec::new(), cuts: Vec::new() };
    for _ in 0..NODES {
        life.join().await;
    }
    for _ in 0..ACTIONS {
        life.act().await;
        trial.history.check();
    }
    life.converge().await;
}

pub async fn a_random_life_keeps_every_rule<B: Backend>(trial: Trial<B>) {
    live(trial, None).await;
}

pub async fn a_random_life_over_a_failing_store_keeps_every_rule<B: Backend>(trial: Trial<B>) {
    live(trial, Some(25)).await;
}
