//! Everything at once, from a seed: nodes that die, freeze, drain and join, keys that come and go and are given up, and a
//! store that stalls, forgets and cuts connections.
//!
//! `DIVIDER_SEED=7 DIVIDER_CHAOS_SECONDS=60` replays a choice of faults (not their exact interleaving) and lasts longer.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use divider_examples::line::Kind;
use divider_tests::history::ProcessId;

use super::{Bed, pause};
use crate::backend::Server;

const KEYS: u64 = 300;
const LEASE_MS: &str = "800";
/// How long the group may take to get over everything.
const BOUND: Duration = Duration::from_secs(8);

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        let at = self.roll(all.len() as u64);
        all[usize::try_from(at).expect("a list has fewer")]
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Makes a store forget everything: while it runs, or else by restarting it.
pub(crate) type Forget<B> = fn(&mut B, bool);

struct Chaos<B> {
    bed: Bed<B>,
    dice: Dice,
    frozen: Vec<(ProcessId, Instant)>,
    forget: Option<Forget<B>>,
    log: Vec<String>,
}

impl<B: Server> Chaos<B> {
    /// One that can be talked to.
    fn awake(&mut self) -> ProcessId {
        let frozen: Vec<_> = self.frozen.iter().map(|(id, _)| *id).collect();
        let awake: Vec<_> = self.bed.fleet.living().into_iter().filter(|id| !frozen.contains(id)).collect();
        self.dice.pick(&awake)
    }

    fn awake_count(&self) -> usize {
        self.bed.fleet.living().len() - self.frozen.len()
    }

    fn send(&mut self, command: String) {
        let id = self.awake();
        self.log.push(format!("{id}: {command}"));
        self.bed.fleet.send(id, &command);
    }

    fn step(&mut self) {
        // Only the lower half is ever ended on purpose: whatever becomes of the upper half is the store's doing.
        let (key, ended) = (self.dice.roll(KEYS), self.dice.roll(KEYS / 2));
        match self.dice.roll(100) {
            0..15 => self.send(format!("add key-{key} again")),
            15..25 => self.send(format!("remove key-{ended}")),
            25..35 => self.send(format!("giveup key-{key}")),
            35..45 => self.send(format!("complete key-{ended}")),
            45..50 => {
                let affinity = self.dice.pick(&[0, 500, 1000, 3000]);
                self.send(format!("affinity {affinity}"));
            }
            50..55 => self.send("rebalance".into()),
            55..62 if self.awake_count() > 2 => {
                let id = self.awake();
                self.log.push(format!("{id}: kill -9"));
                self.bed.fleet.kill9(id);
            }
            62..70 if self.awake_count() > 2 => {
                let id = self.awake();
                let ms = self.dice.pick(&[100, 500, 760, 800, 900, 1700]);
                self.log.push(format!("{id}: frozen for {ms} ms"));
                self.bed.fleet.pause(id);
                self.frozen.push((id, Instant::now() + Duration::from_millis(ms)));
            }
            70..74 if self.awake_count() > 2 => {
                let id = self.awake();
                self.log.push(format!("{id}: SIGTERM"));
                self.bed.fleet.terminate(id);
            }
            74..82 if self.bed.fleet.living().len() < 6 => {
                let delay = self.dice.pick(&["0", "0", "5", "300", "1200"]);
                let mut args = vec!["--confirm-delay-ms", delay];
                // A name that another process may go by.
                args.extend(self.dice.pick(&[&[][..], &["--node", "node-0"], &["--node", "x"]]));
                args.extend(self.dice.pick(&[&[][..], &["--tolerance", "0.1"], &["--max-in-flight", "100%"]]));
                args.extend(self.dice.pick(&[&[][..], &["--capacity", "300"], &["--worker-threads", "1"]]));
                let id = self.bed.spawn(&args);
                self.log.push(format!("{id}: joins with {args:?}"));
            }
            82..86 => {
                self.log.push("subscriptions cut".into());
                self.bed.store.cut_hints();
            }
            86..88 => {
                self.log.push("all connections cut".into());
                self.bed.store.cut_all();
            }
            88..91 => {
                let ms = self.dice.pick(&[50, 300, 700, 1000]);
                self.log.push(format!("store frozen for {ms} ms"));
                self.bed.store.freeze();
                pause(ms);
                self.bed.store.thaw();
            }
            91..94 => {
                self.log.push("store restarted".into());
                self.bed.store.restart();
            }
            94..96 => {
                if let Some(forget) = self.forget {
                    self.log.push("store emptied, keys added again".into());
                    forget(&mut self.bed.store, self.dice.roll(2) == 0);
                    self.send(format!("keys {KEYS}"));
                }
            }
            _ => {}
        }
        self.thaw(false);
        let wait = self.dice.pick(&[0, 0, 1, 5, 20, 100]);
        pause(wait);
    }

    fn thaw(&mut self, all: bool) {
        let due: Vec<_> = self.frozen.extract_if(.., |(_, until)| all || *until <= Instant::now()).collect();
        for (id, _) in due {
            self.bed.fleet.resume(id);
        }
    }
}

/// Everything at once, on a store that forgets if it is told how.
pub(crate) fn run<B: Server>(store: fn() -> B, forget: Option<Forget<B>>) {
    let seed = number("DIVIDER_SEED").unwrap_or_else(|| divider_tests::process::now() % 1_000_000);
    let seconds = number("DIVIDER_CHAOS_SECONDS").unwrap_or(12);
    println!("figure: {}: chaos with DIVIDER_SEED={seed} for {seconds} s", B::NAME);
    let mut bed = Bed::on(store, &["--tick-ms", "10", "--lease-ms", LEASE_MS, "--no-quarantine"]);
    let ids = bed.nodes(4, &[]);
    bed.add(ids[0], usize::try_from(KEYS).expect("few"), Duration::from_secs(10));
    let mut chaos = Chaos { bed, dice: Dice(seed), frozen: Vec::new(), forget, log: Vec::new() };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        chaos.step();
    }
    chaos.thaw(true);

    // The faults are over. What was never ended runs by itself, unless the store forgot it. What the callers want is then
    // said once more, and all of it runs, and nothing else.
    let Chaos { mut bed, log, .. } = chaos;
    let living = bed.fleet.living();
    bed.fleet.wait_ready(&living);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for id in &living {
            // What was asked before it comes before this.
            bed.fleet.wait_call(*id, "affinity 1000", Duration::from_secs(60));
        }
        if forget.is_none() {
            bed.fleet.wait("all keys that nobody ended to run", BOUND, |fleet, said| {
                let running = said.history.running(|id| fleet.lives(id));
                (KEYS / 2..KEYS).all(|k| running.get(&*format!("key-{k}")).is_some_and(|owners| owners.len() == 1))
            });
        }
        let keys = format!("keys {KEYS}");
        bed.fleet.wait_call(living[0], &keys, Duration::from_secs(10));
        bed.fleet.wait_all_run(usize::try_from(KEYS).expect("few"), BOUND);
        bed.fleet.check();
    }));
    if let Err(panic) = outcome {
        println!("the last that was done: {:#?}", &log[log.len().saturating_sub(40)..]);
        std::panic::resume_unwind(panic);
    }
    let stats = bed.fleet.call(living[0], "stats").detail.unwrap_or_default();
    assert_eq!((&stats["registered"], &stats["assigned"]), (&KEYS.into(), &KEYS.into()), "{stats}");
    let said = bed.fleet.said();
    let kinds: BTreeSet<_> = said
        .notes
        .iter()
        .flatten()
        .filter(|note| note.event == Kind::Error)
        .filter_map(|note| {
            Some(
                note.message
                    .as_deref()?
                    .split(['"', ' '])
                    .filter(|word| !word.contains("key-"))
                    .take(8)
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        })
        .collect();
    println!("figure: {}: {} starts, {} things done; errors: {kinds:#?}", B::NAME, said.history.starts(), log.len());
}

pub(crate) fn whatever_happens_to_the_nodes_no_key_runs_twice_and_none_is_lost<B: Server>() {
    run(B::start_durable, None);
}
