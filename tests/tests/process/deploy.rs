//! A rolling deploy: programs that read an older format beside programs that read a newer one.

use std::{
    ops::Range,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use divider_core::{
    Group,
    format::{NEWEST, OLDEST},
};
use divider_examples::line::{Kind, Line};
use divider_tests::{
    history::ProcessId,
    process::{Fleet, Said, example, now},
};

use super::{Bed, figure, pause};
use crate::backend::TestBackend;

const NODES: usize = 5;
const KEYS: usize = 200;
/// How long all must have been able to read a newer format.
const STEP_AFTER: Duration = Duration::from_secs(1);
/// How many keys of the load run at a time.
const LOAD: usize = 20;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Adds keys and removes them again, one after the other.
#[derive(Default)]
struct Load {
    /// All that was added, with whom it was asked of and whether it was asked to be removed.
    asked: Vec<(ProcessId, bool)>,
}

impl Load {
    fn key(number: usize) -> String {
        format!("load-{number}")
    }

    /// One more key, and one less, unless the last one is still waited for.
    fn go_on(&mut self, fleet: &mut Fleet, by: ProcessId) {
        let waits = |number: usize| {
            let asked = self.asked[number].0;
            fleet.lives(asked) && !said(&fleet.said(), asked, "add", &Self::key(number))
        };
        if self.asked.len().checked_sub(1).is_some_and(waits) {
            return;
        }
        fleet.send(by, &format!("add {}", Self::key(self.asked.len())));
        self.asked.push((by, false));
        let Some(oldest) = self.asked.len().checked_sub(LOAD) else { return };
        // What nobody has said to be there might be added after its removal.
        if said(&fleet.said(), self.asked[oldest].0, "add", &Self::key(oldest)) {
            fleet.send(by, &format!("remove {}", Self::key(oldest)));
            self.asked[oldest].1 = true;
        }
    }

    /// The keys that were accepted and not removed again.
    fn owed(&self, said_: &Said) -> Vec<String> {
        let kept = self.asked.iter().enumerate().filter(|(_, (_, removed))| !removed);
        let kept = kept.map(|(number, (by, _))| (Self::key(number), *by));
        kept.filter(|(key, by)| said(said_, *by, "add", key)).map(|(key, _)| key).collect()
    }
}

/// Whether a process has said that a command about a key was carried out.
fn said(said: &Said, by: ProcessId, command: &str, key: &str) -> bool {
    let is_it = |line: &Line<'_>| {
        line.event == Kind::Done && line.command.as_deref() == Some(command) && line.key.as_deref() == Some(key)
    };
    said.notes[by].iter().rev().any(is_it)
}

struct Deploy<B> {
    bed: Bed<B>,
    /// Who runs in each place.
    nodes: Vec<ProcessId>,
    load: Load,
}

impl<B: TestBackend> Deploy<B> {
    fn begin() -> Self {
        let step_after = STEP_AFTER.as_millis().to_string();
        let mut bed = Bed::<B>::new(&["--tick-ms", "100", "--step-after-ms", &step_after]);
        let nodes: Vec<_> = (0..NODES).map(|place| spawn(&mut bed, place, OLDEST)).collect();
        bed.fleet.wait_ready(&nodes);
        bed.settle(nodes[0]);
        bed.add(nodes[0], KEYS, PATIENCE);
        Self { bed, nodes, load: Load::default() }
    }

    /// Goes on with the load until something holds.
    fn until(&mut self, what: &str, by: ProcessId, mut holds: impl FnMut(&mut Bed<B>) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&mut self.bed) {
            assert!(Instant::now() < deadline, "waited in vain for {what}; {}", self.bed.fleet.standing());
            self.load.go_on(&mut self.bed.fleet, by);
            pause(10);
        }
    }

    /// Drains the program in each of these places, and starts another one in its stead that takes its share.
    fn roll(&mut self, places: Range<usize>, reads: u16) {
        for place in places {
            let (old, by) = (self.nodes[place], self.nodes[(place + 1) % NODES]);
            self.bed.fleet.begin_to_end(old);
            self.until("a node to end", by, |bed| bed.fleet.is_gone(old));
            self.bed.fleet.kill9(old);
            let new = spawn(&mut self.bed, place, reads);
            self.nodes[place] = new;
            self.until("a node to have its share", by, |bed| {
                let said = bed.fleet.said();
                let running = said.history.running(|id| bed.fleet.lives(id));
                let once = |key: usize| running[&*format!("key-{key}")].len() == 1;
                running.values().any(|owners| owners.contains(&new)) && (0..KEYS).all(once)
            });
        }
    }

    /// Nobody is to feel any of the moves since then.
    fn check_moves(&self, since: u64) {
        let fleet = &self.bed.fleet;
        let said = fleet.said();
        let failed: Vec<_> = said.notes.iter().flatten().filter(|note| note.event == Kind::Error).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let mut gaps: Vec<_> = (0..said.notes.len()).flat_map(|id| said.history.gaps(id, since)).collect();
        figure(&format!("{}: a deploy under load, confirmation to next start", B::NAME), &mut gaps);
        let (usual, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        // A slow machine is slow for all keys. What takes some of them so much longer than the others is ours.
        assert!(usual <= fleet.allowing(Duration::from_millis(100)), "most keys were without an owner for {usual:?}");
        let bound = fleet.allowing(Duration::from_millis(100) + usual * 5);
        assert!(longest <= bound, "a key was without an owner for {longest:?}, where most were for {usual:?}");
    }
}

/// Under the name of the one before, as a supervisor does it.
fn spawn<B: TestBackend>(bed: &mut Bed<B>, place: usize, reads: u16) -> ProcessId {
    bed.spawn(&["--node", &format!("place-{place}"), "--reads", &reads.to_string()])
}

pub(crate) fn a_deploy_under_load_rolls_to_a_new_format_and_back_and_forward_again<B: TestBackend>() {
    let mut deploy = Deploy::<B>::begin();
    let group = Group::new("/process/").expect("a valid group");
    let began = now();
    deploy.roll(0..3, NEWEST);
    assert_eq!(deploy.bed.store.format(&group), OLDEST, "two programs of before are left");
    // The way back.
    deploy.roll(0..3, OLDEST);
    let first_new = deploy.bed.fleet.said().notes.len();
    deploy.roll(0..NODES, NEWEST);
    let left_at =
        |notes: &Vec<Line<'_>>| notes.iter().find(|note| note.event == Kind::Cancelled).map(|note| note.at_ns);
    let last_left = deploy.bed.fleet.said().notes[..first_new].iter().filter_map(left_at).max();
    let by = deploy.nodes[0];
    deploy.until("the group to step up", by, |bed| bed.store.format(&group) == NEWEST);
    let waited = Duration::from_nanos(now() - last_left.expect("they have left"));
    println!("figure: {}: the group steps up {waited:?} after the last old program has left", B::NAME);
    assert!(waited >= STEP_AFTER, "a deploy of a moment ago cannot be rolled back");

    is_told_that_it_is_too_old(&deploy.bed.store.url(NODES));
    let owed = deploy.load.owed(&deploy.bed.fleet.said());
    deploy.until("all that was accepted to run", by, |bed| {
        let said = bed.fleet.said();
        let running = said.history.running(|id| bed.fleet.lives(id));
        owed.iter().all(|key| running.get(&**key).is_some_and(|owners| owners.len() == 1))
    });
    let stats = deploy.bed.fleet.call(by, "stats").detail.expect("stats have details");
    assert_eq!(stats["quarantined"], 0, "{stats}");
    let took = Duration::from_nanos(now() - began);
    println!("figure: {}: the deploy took {took:?}, with {} keys that came and went", B::NAME, deploy.load.asked.len());
    deploy.check_moves(began);
    // Where it lived before, it finds what was written since, if it has a disk.
    deploy.bed.fleet.terminate(by);
    is_told_that_it_is_too_old(&deploy.bed.store.url(0));
}

/// A program of before ends by itself, and says why.
fn is_told_that_it_is_too_old(url: &str) {
    let mut late = Command::new(example("worker"));
    late.args(["--store", url, "--group", "/process/", "--node", "late", "--die-with-parent"]);
    late.args(["--reads", &OLDEST.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut late = late.spawn().expect("the worker can be started");
    let deadline = Instant::now() + PATIENCE;
    while late.try_wait().expect("it is a child").is_none() {
        if Instant::now() > deadline {
            late.kill().expect("it is a child");
            panic!("a program that is too old goes on");
        }
        pause(10);
    }
    let ended = late.wait_with_output().expect("it has ended");
    let words = String::from_utf8_lossy(&ended.stdout);
    assert!(!ended.status.success(), "it was told nothing");
    let says = |what: String| assert!(words.contains(&what), "{what:?} is not in {words}");
    says(format!("format {NEWEST}"));
    says(format!("up to {OLDEST}"));
    says("newer version".to_owned());
}
