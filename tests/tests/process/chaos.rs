//! Everything at once, from a seed: nodes that die, freeze, drain and join, keys that come and go and are given up, a store
//! that dies, stalls and cuts connections, networks that hold up, lose and tear what they carry, disks that are full.
//!
//! A run lists the kinds of fault that are possible where it takes place, goes through all of them in a random order, and
//! then draws on. Every now and then there is a calm: everything is put right, and every key must run, in one place, in time.
//! A kind that is listed and was not done fails the run; what was not listed is said, with the reason.
//!
//! `DIVIDER_SEED=7 DIVIDER_CHAOS_SECONDS=60` replays a choice of faults (not their exact interleaving) and lasts longer.

mod ground;
mod kind;
mod strike;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use divider_conformance::Dice;
use divider_examples::line::Kind as Said;
use divider_support::seeds::number;
use divider_tests::{
    history::{ProcessId, quantile},
    process::{Fleet, Network, Proxy, alone, now},
    sink::Sink,
};

use super::pause;
use ground::{Ground, Route, Terrain};
use kind::{Kind, Needs};

/// Keys that nobody ever ends: whatever becomes of them is not the callers' doing.
const KEEP: usize = 100;
/// Keys that come and go.
const COME: usize = 100;
const LEASE: Duration = Duration::from_millis(1000);
/// What the promise adds to a lease.
const SLACK: Duration = Duration::from_millis(500);
/// How long the group may take to get over everything, on a slow machine.
const BOUND: Duration = Duration::from_secs(20);
/// From one calm to the next.
const STORM: Duration = Duration::from_secs(15);
/// The fewest and the most nodes that chaos leaves alone.
const NODES: (usize, usize) = (4, 7);

/// A fault that lasts.
struct Active {
    kind: Kind,
    until: Instant,
    what: What,
    /// It stands for the fault where several are one.
    counts: bool,
}

/// What is to be done when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Frozen(ProcessId),
    /// The proxy, and how often it had harmed something before.
    Wire(usize, u64),
    /// The namespace that is cut off.
    Partition(usize),
    Store,
    /// The voter whose disk is full.
    Disk(usize),
}

struct Chaos<'a, B> {
    fleet: Fleet,
    store: B,
    terrain: &'a Terrain,
    proxies: Vec<Proxy>,
    sink: Sink,
    dice: Dice,
    /// The store may be made to forget.
    forgets: bool,
    /// It was, since the last calm.
    forgot: bool,
    /// Of all nodes that ever were.
    routes: HashMap<ProcessId, Route>,
    names: HashMap<ProcessId, String>,
    active: Vec<Active>,
    /// Nodes that a supervisor is about to start.
    due: Vec<(Instant, Route)>,
    listed: Vec<Kind>,
    counts: BTreeMap<Kind, u64>,
    began: Instant,
    log: VecDeque<String>,
    /// Sudden ends since the last calm: what happened, to whom, and when.
    losses: Vec<(Kind, ProcessId, u64)>,
    /// From a sudden end to each key's start elsewhere: with nothing else going on, and in the storm.
    quiet: Vec<Duration>,
    stormy: BTreeMap<Kind, Vec<Duration>>,
    calms: u64,
    /// How often a removal whose outcome nobody knew was seen to have come after the keys had been declared again.
    late_removals: u64,
}

impl<'a, B: Ground> Chaos<'a, B> {
    fn new(terrain: &'a Terrain, seed: u64, listed: Vec<Kind>, forgets: bool) -> Self {
        let (store, proxies) = B::on(terrain);
        let sink = Sink::at(terrain.address().into());
        let (address, lease) = (sink.address().to_string(), LEASE.as_millis().to_string());
        // A write takes a while, as those of a real program do: that is what tokens are for.
        let writes = ["--sink", &address, "--sink-ms", "30", "--sink-delay-ms", "5"];
        let common = ["--tick-ms", "40", "--lease-ms", &lease, "--no-quarantine"];
        let fleet = Fleet::new("", "/process/", &[&common[..], &writes].concat());
        Self {
            fleet,
            store,
            terrain,
            proxies,
            sink,
            dice: Dice(seed),
            forgets,
            forgot: false,
            routes: HashMap::new(),
            names: HashMap::new(),
            active: Vec::new(),
            due: Vec::new(),
            listed,
            counts: BTreeMap::new(),
            began: Instant::now(),
            log: VecDeque::new(),
            losses: Vec::new(),
            quiet: Vec::new(),
            stormy: BTreeMap::new(),
            calms: 0,
            late_removals: 0,
        }
    }

    fn note(&mut self, what: &str) {
        self.log.push_back(format!("{:8.3} s, {} ns: {what}", self.began.elapsed().as_secs_f64(), now()));
        if self.log.len() > 300 {
            self.log.pop_front();
        }
    }

    fn count(&mut self, kind: Kind) {
        *self.counts.entry(kind).or_default() += 1;
    }

    // ---- who is there

    fn living(&self) -> Vec<ProcessId> {
        self.fleet.living()
    }

    fn is_frozen(&self, id: ProcessId) -> bool {
        self.active.iter().any(|active| active.what == What::Frozen(id))
    }

    /// Those that can be told something.
    fn awake(&self) -> Vec<ProcessId> {
        self.living().into_iter().filter(|id| !self.is_frozen(*id)).collect()
    }

    /// Those that nothing is being done to but by the store.
    fn unharmed(&self) -> Vec<ProcessId> {
        let harmed = |id: &ProcessId| match self.routes[id] {
            Route::Direct => false,
            Route::Proxy(at) => self.is_wire_harmed(at),
            Route::Place(at) => self.is_cut_off(at),
            Route::Voter(at) => self.is_wire_harmed(at) || self.is_cut_off(at),
        };
        self.awake().into_iter().filter(|id| !harmed(id)).collect()
    }

    fn is_wire_harmed(&self, at: usize) -> bool {
        self.active.iter().any(|active| matches!(active.what, What::Wire(wire, _) if wire == at))
    }

    fn is_disk_full(&self, at: usize) -> bool {
        self.active.iter().any(|active| active.what == What::Disk(at))
    }

    fn is_cut_off(&self, at: usize) -> bool {
        self.active.iter().any(|active| active.what == What::Partition(at))
    }

    fn on_route(&self, route: Route) -> Option<ProcessId> {
        self.living().into_iter().find(|id| self.routes[id] == route)
    }

    fn leader(&self) -> Option<ProcessId> {
        self.fleet.leader().filter(|id| !self.is_frozen(*id))
    }

    // ---- population

    fn spawn(&mut self, route: Route, args: &[&str]) -> ProcessId {
        let url = self.store.url_for(route, self.terrain, &self.proxies);
        let place = match route {
            Route::Place(at) | Route::Voter(at) => self.terrain.network.as_ref().map(|network| network.command(at)),
            Route::Direct | Route::Proxy(_) => None,
        };
        let id = match place {
            Some(place) => self.fleet.spawn_in(place, &url, args),
            None => self.fleet.spawn_at(&url, args),
        };
        let name = args.iter().position(|arg| *arg == "--node").map(|at| args[at + 1].to_owned());
        self.names.insert(id, name.unwrap_or_else(|| format!("node-{id}")));
        self.routes.insert(id, route);
        self.note(&format!("{id}: starts, {route:?} {}", args.join(" ")));
        id
    }

    /// One that is free.
    fn a_route(&mut self) -> Route {
        let mut routes = vec![Route::Direct];
        if B::VOTERS == 0 {
            routes.extend((0..self.proxies.len()).map(Route::Proxy));
        }
        if let Some(network) = &self.terrain.network {
            routes.extend((B::VOTERS..network.hub()).map(Route::Place));
        }
        let taken = |route: &Route| self.on_route(*route).is_some() || self.due.iter().any(|(_, due)| due == route);
        routes.retain(|route| *route == Route::Direct || !taken(route));
        self.dice.pick(&routes)
    }

    /// What a supervisor does: nodes that are missing are started again, after a while.
    fn tend(&mut self, at_once: bool) {
        let wait = |dice: &mut Dice| match at_once {
            true => Duration::ZERO,
            false => Duration::from_millis(dice.pick(&[0, 100, 500, 2000])),
        };
        for voter in (0..B::VOTERS).filter(|at| !self.is_disk_full(*at)).map(Route::Voter).collect::<Vec<_>>() {
            if self.on_route(voter).is_none() && !self.due.iter().any(|(_, route)| *route == voter) {
                let wait = wait(&mut self.dice);
                self.due.push((Instant::now() + wait, voter));
            }
        }
        while self.living().len() + self.due.len() < NODES.0 + B::VOTERS.min(1) {
            let (route, wait) = (self.a_route(), wait(&mut self.dice));
            self.due.push((Instant::now() + wait, route));
        }
        for (_, route) in self.due.extract_if(.., |(at, _)| at_once || *at <= Instant::now()).collect::<Vec<_>>() {
            self.spawn(route, &[]);
        }
    }

    // ---- ends of faults

    /// Puts right what has lasted long enough, or everything.
    fn lift(&mut self, which: impl Fn(&Active) -> bool) {
        for active in self.active.extract_if(.., |active| which(active)).collect::<Vec<_>>() {
            let done = match active.what {
                What::Frozen(id) => {
                    if self.fleet.lives(id) {
                        self.fleet.resume(id);
                    }
                    true
                }
                What::Wire(at, before) => {
                    self.proxies[at].set(Network::Fine);
                    self.proxies[at].harmed() > before
                }
                What::Partition(_) => {
                    let network = self.terrain.network.as_ref().expect("it was cut");
                    let dropped = network.dropped();
                    network.heal();
                    dropped > 0
                }
                What::Store => {
                    self.store.mend(active.kind, self.terrain);
                    true
                }
                What::Disk(at) => self.make_room(at),
            };
            // One that was ended early was not what its name says.
            if done && active.counts && active.until <= Instant::now() {
                self.count(active.kind);
            }
            self.note(&format!("over: {} {:?}", active.kind.name(), active.what));
        }
    }

    /// A member whose disk was full has stopped, and has said so; its supervisor makes room and starts it again.
    /// Returns whether it had stopped.
    fn make_room(&mut self, at: usize) -> bool {
        self.terrain.disks[at].free();
        let Some(voter) = self.on_route(Route::Voter(at)) else { return false };
        let stopped = self.fleet.said().complaints[voter].iter().any(|line| line.contains("this member stops"));
        self.fleet.kill9(voter);
        stopped
    }

    fn lift_all(&mut self) {
        self.lift(|_| true);
    }

    // ---- calm

    /// Everything is put right, and must be right in time.
    fn calm(&mut self) {
        self.note("calm");
        self.lift_all();
        self.tend(true);
        let living = self.living();
        self.fleet.wait_ready_within(&living, B::START);
        for id in &living {
            // What was asked before it comes before this.
            self.fleet.wait_call(*id, "affinity 1000", Duration::from_secs(60));
        }
        if !std::mem::take(&mut self.forgot) {
            self.all_run("keep-", KEEP, BOUND, "what nobody ended");
        } else {
            self.insist(&format!("keys {KEEP} keep-"));
        }
        self.insist(&format!("keys {COME} come-"));
        self.come_back("keys that were added again");
        self.all_run("keep-", KEEP, BOUND, "what nobody ended");
        self.conserve();
        self.check();
        self.die_quietly();
        self.gather();
        // Lines that were stamped before that have arrived.
        self.fleet.fold(now().saturating_sub(10_000_000_000));
        self.calms += 1;
        self.note("calm is over");
    }

    /// Has some node do it, however often that takes.
    fn insist(&mut self, command: &str) {
        let deadline = Instant::now() + BOUND;
        for id in self.unharmed().into_iter().cycle() {
            let answer = self.fleet.wait_call(id, command, BOUND);
            if answer.event != Said::Error {
                return;
            }
            assert!(Instant::now() < deadline, "{command:?} fails: {answer:?}");
            pause(50);
        }
    }

    fn all_run(&self, prefix: &str, keys: usize, limit: Duration, what: &str) {
        self.fleet.wait(what, limit, |fleet, said| runs_once(fleet, said, prefix, keys));
    }

    /// Waits until the keys that come and go run. A removal whose outcome nobody knew may be on its way for as long as a
    /// network keeps it, and undo what was declared after it: where the store knows fewer keys than it was told of, that has
    /// come to pass, and they are declared again. Keys that it does know must run.
    fn come_back(&mut self, what: &str) {
        let deadline = Instant::now() + BOUND;
        let runs = |fleet: &Fleet, said: &divider_tests::process::Said| runs_once(fleet, said, "come-", COME);
        while !self.fleet.within(Duration::from_secs(4), runs) {
            assert!(Instant::now() < deadline, "{what} do not run; {}", self.fleet.standing());
            self.declare_removed();
        }
    }

    /// The store's counts; what it does not know any more is declared again.
    fn declare_removed(&mut self) -> serde_json::Value {
        let by = self.unharmed()[0];
        let stats = self.fleet.wait_call(by, "stats", BOUND).detail.unwrap_or_default();
        if stats["registered"].as_u64().is_some_and(|registered| registered < (KEEP + COME) as u64) {
            self.late_removals += 1;
            self.note("a removal has come late");
            self.insist(&format!("keys {COME} come-"));
        }
        stats
    }

    /// The store's own count agrees, and what is declared is there.
    fn conserve(&mut self) {
        let deadline = Instant::now() + BOUND;
        loop {
            let stats = self.declare_removed();
            let of = |state: &str| stats[state].as_u64().unwrap_or_default();
            let sum = of("assigned") + of("pending") + of("stopping") + of("quarantined");
            assert_eq!(of("registered"), sum, "the states do not add up: {stats}");
            if of("registered") == (KEEP + COME) as u64 && of("assigned") == sum {
                return;
            }
            assert!(Instant::now() < deadline, "not every key is registered and assigned: {stats}");
            pause(50);
        }
    }

    fn check(&self) {
        self.fleet.check();
        let writes = self.sink.writes();
        assert_eq!((writes.stale_accepted, writes.current_refused), (0, 0), "the fenced sink: {writes:?}");
    }

    /// One node dies, every second time the leader, and nothing else is wrong: this is what a takeover takes.
    fn die_quietly(&mut self) {
        let leader = self.leader();
        let others: Vec<_> = self.living().into_iter().filter(|id| Some(*id) != leader).collect();
        let victim = match leader {
            Some(leader) if self.calms.is_multiple_of(2) => leader,
            _ => self.dice.pick(&others),
        };
        let was_leader = Some(victim) == leader;
        let at = self.fleet.kill9(victim);
        self.note(&format!("{victim}: killed -9 in the calm"));
        self.count(if was_leader { Kind::KillLeader } else { Kind::KillNode });
        self.all_run("keep-", KEEP, LEASE + B::ELECTION + BOUND, "the keys of a killed node");
        self.come_back("the keys of a killed node");
        let said = self.fleet.said();
        let bound = LEASE + SLACK + B::ELECTION;
        let takeovers = said.history.takeovers(victim, at).into_iter();
        let taken: Vec<_> = takeovers.filter_map(|(key, time)| Some((key, time?))).collect();
        let late: Vec<_> = taken.iter().filter(|(_, time)| *time > bound).collect();
        if !late.is_empty() {
            // Not asserted, since the machine may be slow; but to be looked into.
            let after = |time: u64| Duration::from_nanos(time.saturating_sub(at));
            let led = said.notes.iter().flatten().filter(|note| note.event == Said::Leading && note.at_ns > at);
            let led: Vec<_> = led.map(|note| format!("{} after {:?}", note.node, after(note.at_ns))).collect();
            println!(
                "late: {} of {} keys of {victim} (led: {was_leader}) in calm {}; leading: {led:?}; among them: {:?}",
                late.len(),
                taken.len(),
                self.calms,
                &late[..late.len().min(5)]
            );
        }
        let taken: Vec<_> = taken.into_iter().map(|(_, time)| time).collect();
        drop(said);
        self.quiet.extend(taken);
        self.tend(true);
    }

    /// What the deaths of the storm led to.
    fn gather(&mut self) {
        let said = self.fleet.said();
        for (kind, id, at) in self.losses.drain(..) {
            let taken = said.history.takeovers(id, at).into_iter().filter_map(|(_, time)| time);
            self.stormy.entry(kind).or_default().extend(taken);
        }
    }

    // ---- the run

    fn run(&mut self, seconds: u64) {
        for route in (0..B::VOTERS).map(Route::Voter) {
            self.spawn(route, &[]);
        }
        self.tend(true);
        let living = self.living();
        self.fleet.wait_ready(&living);
        self.insist(&format!("keys {KEEP} keep-"));
        self.insist(&format!("keys {COME} come-"));
        self.all_run("keep-", KEEP, BOUND, "the first starts");
        self.all_run("come-", COME, BOUND, "the first starts");

        let (end, limit) = (Duration::from_secs(seconds), Duration::from_secs(seconds * 3 + 120));
        let mut deck = self.listed.clone();
        self.dice.shuffle(&mut deck);
        let mut deck = VecDeque::from(deck);
        let mut last_calm = Instant::now();
        loop {
            if last_calm.elapsed() > STORM {
                self.calm();
                last_calm = Instant::now();
            }
            let missing: Vec<_> = self.listed.iter().filter(|kind| !self.counts.contains_key(kind)).copied().collect();
            if self.began.elapsed() > end && missing.is_empty() {
                break;
            }
            let names: Vec<_> = missing.iter().map(|kind| kind.name()).collect();
            assert!(self.began.elapsed() < limit, "listed, and never done: {names:#?}");
            if deck.is_empty() {
                // What has not worked yet, or is not over yet.
                let is_on = |kind: &Kind| self.active.iter().any(|active| active.kind == *kind);
                deck.extend(missing.into_iter().filter(|kind| !is_on(kind)));
            }
            let is_first = !deck.is_empty();
            let kind = deck.pop_front().unwrap_or_else(|| self.draw());
            self.step(kind);
            self.lift(|active| active.until <= Instant::now());
            self.tend(false);
            // Once each has been done there is time for the group to work in between.
            let waits = if is_first { [0, 5, 20, 100, 300] } else { [5, 100, 300, 600, 1500] };
            let wait = self.dice.pick(&waits);
            pause(wait);
        }
        self.calm();
    }

    fn draw(&mut self) -> Kind {
        let mut at = self.dice.below(self.listed.iter().map(|kind| kind.weight()).sum());
        for kind in &self.listed {
            match at.checked_sub(kind.weight()) {
                Some(rest) => at = rest,
                None => return *kind,
            }
        }
        unreachable!("it is less than all weights together")
    }

    fn report(&self, seed: u64) {
        let name = if self.forgets { "redis, forgetting" } else { B::NAME };
        let faults: u64 = self.counts.values().sum();
        let seconds = self.began.elapsed().as_secs();
        let starts = self.fleet.said().history.starts();
        println!(
            "figure: {name}: {faults} faults of {} kinds in {seconds} s, {} calms, {} removals that came late, {starts} starts, 0 violations, 0 lost keys",
            self.counts.len(),
            self.calms,
            self.late_removals
        );
        let kinds: Vec<_> = self.counts.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
        println!("figure: {name}: faults by kind: {}", kinds.join("; "));
        let took = |what: &str, mut times: Vec<Duration>| {
            if !times.is_empty() {
                let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&mut times, part).as_secs_f64() * 1e3);
                let bound = LEASE + SLACK + B::ELECTION;
                let late = times.iter().filter(|time| **time > bound).count();
                println!(
                    "figure: {name}: {what} to start elsewhere, lease {LEASE:?}: p50 {p50:.0} ms, p99 {p99:.0} ms, max \
                     {max:.0} ms ({} keys, {late} later than {bound:?})",
                    times.len()
                );
            }
        };
        took("kill -9 in the calm", self.quiet.clone());
        for (kind, times) in &self.stormy {
            took(&format!("in the storm, {}", kind.name()), times.clone());
        }
        let writes = self.sink.writes();
        println!(
            "figure: {name}: fenced sink: {} stale writes accepted of {}; unfenced sink: {} stale writes of {}",
            writes.stale_accepted, writes.all, writes.stale, writes.all
        );
        println!("row: {starts} starts|{seed}|{}|0|{seconds}", kinds.join("; "));
    }
}

/// Whether each of these keys runs in one living process.
fn runs_once(fleet: &Fleet, said: &divider_tests::process::Said, prefix: &str, keys: usize) -> bool {
    let running = said.history.running(|id| fleet.lives(id));
    (0..keys).all(|k| running.get(&*format!("{prefix}{k}")).is_some_and(|owners| owners.len() == 1))
}

/// The kinds that are possible here in so many seconds; and the others, by the reason why they are not.
fn choose<B: Ground>(
    terrain: &Terrain,
    forgets: bool,
    dice: &mut Dice,
    seconds: u64,
) -> (Vec<Kind>, BTreeMap<String, Vec<&'static str>>) {
    let mut listed = Vec::new();
    let mut left_out = BTreeMap::<_, Vec<_>>::new();
    for kind in Kind::ALL {
        let needs = kind.needs();
        let lack = terrain.lacks.iter().find(|(what, _)| *what == needs).map(|(_, why)| why.as_str());
        let why = match needs {
            Needs::Nothing => None,
            Needs::Namespaces | Needs::Disk => lack,
            Needs::Forgetting => (!forgets).then_some("the store is not to forget in this run"),
            _ => (!B::HAS.contains(&needs)).then_some("not on this store"),
        };
        match why.and_then(|why| why.lines().next()) {
            None => listed.push(*kind),
            Some(why) => left_out.entry(why.to_owned()).or_default().push(kind.name()),
        }
    }
    dice.shuffle(&mut listed);
    let late = listed.split_off(listed.len().min(usize::try_from(seconds * 3).expect("a test ends")));
    if !late.is_empty() {
        left_out.insert("no time for them".to_owned(), late.into_iter().map(Kind::name).collect());
    }
    (listed, left_out)
}

/// Everything at once, on a store that is made to forget or is not.
pub(crate) fn run<B: Ground>(forgets: bool) {
    let _alone = alone();
    let seed = number("DIVIDER_SEED").unwrap_or_else(|| now() % 1_000_000);
    let seconds = number("DIVIDER_CHAOS_SECONDS").unwrap_or(15);
    let terrain = Terrain::new::<B>();
    let (listed, left_out) = choose::<B>(&terrain, forgets, &mut Dice(seed), seconds);
    println!("figure: {}: chaos with DIVIDER_SEED={seed} for {seconds} s, {} kinds listed", B::NAME, listed.len());
    for (why, kinds) in left_out {
        println!("figure: {}: left out, {why}: {}", B::NAME, kinds.join("; "));
    }
    let storm = || {
        let mut chaos = Chaos::<B>::new(&terrain, seed, listed, forgets);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| chaos.run(seconds)));
        if let Err(panic) = outcome {
            println!("DIVIDER_SEED={seed}; the last that was done: {:#?}", chaos.log);
            std::panic::resume_unwind(panic);
        }
        chaos.report(seed);
    };
    match &terrain.network {
        // So that the store, the proxies and the sink are in the hub as well.
        Some(network) => network.within(network.hub(), storm),
        None => storm(),
    }
}

pub(crate) fn whatever_happens_to_the_nodes_no_key_runs_twice_and_none_is_lost<B: Ground>() {
    run::<B>(false);
}
