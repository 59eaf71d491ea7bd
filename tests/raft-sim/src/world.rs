//! One run: three voters, a client and a learner that comes later, what is done to them, and what is looked at in the end.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use divider_conformance::Dice;
use divider_core::{Beat, Group, SessionId, Store, StoreError, Term, Token};
use divider_raft::{Data, RaftStore};
use divider_sim::trace::Trace;
use parking_lot::Mutex;
use turmoil::Sim;

use crate::{
    caller::Caller,
    disk::Full,
    environment::Environment,
    history::{Answer, Call, CallHistory, Verdict},
    panics,
};

const VOTERS: [&str; 3] = ["a", "b", "c"];
const CLIENT: &str = "client";
/// A learner. It joins some time, and may lose its disk and join anew.
const LATE: &str = "late";
const HOSTS: [&str; 5] = ["a", "b", "c", "client", LATE];
const REPLICAS: [&str; 4] = ["a", "b", "c", LATE];
const GROUPS: usize = 2;
const PORT: u16 = 7400;
/// How long they may take to found a cluster, in milliseconds of simulated time.
const FOUNDED: u64 = 20_000;
/// How long after healing every process must be served: links notice after 3.5 s that nothing comes, a dial takes up to
/// 2 s, and elections follow.
const HEALED: u64 = 15_000;
/// How long the replicas may take to hold the same once nothing is asked any more.
const SAME: u64 = 10_000;

/// Milliseconds that a moment may seem to differ by: hosts and driver count their steps for themselves.
const ROUNDED: u64 = 2;
/// In one of so many seeds, there is a quiet time after the faults.
const QUIET: u64 = 8;
/// In one of so many seeds, all lose their disks in the end, and found a cluster anew.
const LOST: u64 = 5;

/// What came of a seed.
#[derive(Debug, Default)]
pub struct Report {
    /// Of everything that happened, in each millisecond in whatever order: tokio draws the order in which it wakes those who
    /// wait for the same entry from a source of its own.
    pub hash: u64,
    /// The first rule that was broken.
    pub violation: Option<String>,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What happened, where that was wanted.
    pub lines: Option<String>,
    /// How long it took, in simulated time.
    pub simulated: Duration,
    /// Calls that were answered, and calls that were not.
    pub calls: (u64, u64),
    /// Milliseconds from healing until all were served.
    pub healed: u64,
    /// Sessions that were expired.
    pub expiries: u64,
    /// What the search for a ledger found.
    pub verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Founding,
    Busy,
    /// Nobody asks for anything that is written.
    Quiet,
    /// Everybody must be served now.
    Healed,
    /// All disks were lost.
    Reborn,
}

/// What hosts and driver share.
pub(crate) struct Shared {
    trace: Trace,
    /// Milliseconds since the beginning.
    now: AtomicU64,
    phase: Mutex<Phase>,
    history: Mutex<CallHistory>,
    /// Of each host that is open.
    stores: Mutex<BTreeMap<&'static str, RaftStore>>,
    /// Whether the learner is to join.
    late: AtomicBool,
    /// What was granted first in the new life of each group, and in which term.
    reborn: Mutex<BTreeMap<usize, (Token, Term)>>,
    served: Mutex<BTreeMap<&'static str, u64>>,
    calls: (AtomicU64, AtomicU64),
    hash: AtomicU64,
    /// Renewals and joins that counted: of which session, at which beat, and when they were sent.
    counted: Mutex<Vec<(SessionId, Beat, u64)>>,
    /// Before which beat a session was said to be silent, and since when.
    silences: Mutex<Vec<(SessionId, Beat, u64)>>,
    /// Until when each session's node believes in it.
    beliefs: Mutex<BTreeMap<SessionId, u64>>,
    /// Sessions that were expired, and when that was asked for.
    expired: Mutex<Vec<(SessionId, u64)>>,
}

impl Shared {
    pub(crate) fn is_busy(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Busy | Phase::Quiet)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        *self.phase.lock() == Phase::Quiet
    }

    /// Milliseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// A renewal was counted, or a join, whose beat is 0.
    pub(crate) fn counted(&self, session: SessionId, beat: Beat, sent: u64) {
        self.counted.lock().push((session, beat, sent));
    }

    /// Notes silences that the store tells of at this moment.
    pub(crate) fn silent(&self, silences: &[(SessionId, Beat, Duration)]) {
        let now = self.now();
        let since = |silent: &Duration| now.saturating_sub(silent.as_millis() as u64);
        self.silences.lock().extend(silences.iter().map(|(session, beat, silent)| (*session, *beat, since(silent))));
    }

    /// Nothing that counted before a beat was sent in a silence before it, whoever counted it.
    fn broken_silence(&self) -> Option<String> {
        let mut counted: BTreeMap<SessionId, Vec<(Beat, u64)>> = BTreeMap::new();
        for (session, beat, sent) in self.counted.lock().iter() {
            counted.entry(*session).or_default().push((*beat, *sent));
        }
        self.silences.lock().iter().find_map(|(session, told, since)| {
            let breaks = |(beat, sent): &&(Beat, u64)| beat < told && *sent > since + ROUNDED;
            let (beat, sent) = counted.get(session)?.iter().find(breaks)?;
            Some(format!(
                "{session} was said to be silent since {since} before {told:?}, and {beat:?} was sent at {sent}"
            ))
        })
    }

    pub(crate) fn believes(&self, session: SessionId, until: u64) {
        self.beliefs.lock().insert(session, until);
    }

    pub(crate) fn believes_until(&self, session: SessionId) -> u64 {
        self.beliefs.lock().get(&session).copied().unwrap_or_default()
    }

    pub(crate) fn expired(&self, session: SessionId, asked: u64) {
        self.note("expired", &[session.0.as_u64_pair().0], || format!("{session} at {asked}"));
        self.expired.lock().push((session, asked));
    }

    /// Nobody is expired who may still believe: neither then, nor by an answer that comes later.
    fn premature(&self) -> Option<String> {
        let beliefs = self.beliefs.lock();
        let expired = self.expired.lock();
        let premature = |(session, asked): &&(SessionId, u64)| beliefs.get(session).is_some_and(|until| until > asked);
        let (session, asked) = expired.iter().find(premature)?;
        Some(format!("{session} was expired at {asked} and believed in itself until {}", beliefs[session]))
    }

    fn note(&self, what: &'static str, numbers: &[u64], line: impl FnOnce() -> String) {
        let now = self.now.load(Ordering::Relaxed);
        let mix = |hash: u64, number: u64| (hash.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash
            .fetch_add(numbers.iter().fold(mix(now, text(what)), |hash, number| mix(hash, *number)), Ordering::Relaxed);
        self.trace.note(now * 1_000_000, what, numbers, line);
    }

    pub(crate) fn asked(&self, who: &str, group: usize, call: Call) -> usize {
        let number = self.history.lock().asked(group, call.clone());
        self.note("asks", &[text(who), text(&format!("{call:?}"))], || format!("{number} {who} in {group}: {call:?}"));
        number
    }

    pub(crate) fn answered(&self, who: &str, number: usize, answer: Answer) {
        self.calls.0.fetch_add(1, Ordering::Relaxed);
        let said = match &answer {
            Answer::Applied(applied) => format!("{:?} at {}", applied.outcomes, applied.revision.0),
            Answer::Page(page) => format!("{} keys at {}, {:?}", page.keys.len(), page.revision.0, page.group),
            other => format!("{other:?}"),
        };
        self.note("answer", &[text(who), text(&said)], || format!("{number} {who}: {said}"));
        self.history.lock().answered(number, answer);
    }

    pub(crate) fn failed(&self, who: &str, number: usize, error: &StoreError) {
        self.calls.1.fetch_add(1, Ordering::Relaxed);
        self.note("fails", &[text(who)], || format!("{number} {who}: {error}"));
        self.history.lock().answered(number, Answer::Unknown);
    }
}

fn text(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What a process runs, from its start.
async fn process(name: &'static str, shared: Arc<Shared>, environment: Arc<Environment>, mut dice: Dice, plan: Plan) {
    let life = dice.roll();
    let store = store(name, &environment, &plan);
    while name == LATE && !shared.late.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    loop {
        match store.open().await {
            Ok(()) => break,
            Err(error @ StoreError::Misconfigured(_)) if !environment.disk.has_failed() => {
                shared.trace.broken(format!("{name} does not open what it wrote itself: {error}"));
                return std::future::pending().await;
            }
            Err(error) => shared.note("opens", &[], || format!("{name}: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shared.note("open", &[], || name.to_owned());
    shared.stores.lock().insert(name, store.clone());
    let caller = |at: usize, dice: Dice, of: &str| Caller {
        // The checker trusts that no two lives of a process name the same key.
        name: format!("{name}{at}{of}-{life:016x}"),
        group: at % GROUPS,
        store: store.group(format!("/group/{}/", at % GROUPS)).expect("a short name"),
        lease: plan.lease,
        dice,
        shared: shared.clone(),
    };
    while *shared.phase.lock() == Phase::Founding {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if *shared.phase.lock() == Phase::Reborn {
        for at in 0..GROUPS {
            let mut caller = caller(at, dice.split(), "r");
            while !shared.reborn.lock().contains_key(&at) {
                if let Some(granted) = caller.grant().await {
                    shared.reborn.lock().entry(at).or_insert(granted);
                }
            }
        }
        return std::future::pending().await;
    }
    for at in 0..plan.callers {
        tokio::spawn(caller(at, dice.split(), "").run());
    }
    while shared.is_busy() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for at in 0..GROUPS {
        let mut caller = caller(at, dice.split(), "z");
        for round in 0.. {
            if caller.works(round).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    shared.served.lock().insert(name, shared.now.load(Ordering::Relaxed));
    std::future::pending().await
}

fn store(name: &'static str, environment: &Arc<Environment>, plan: &Plan) -> RaftStore {
    let seeds: Vec<String> = VOTERS.iter().map(|voter| format!("{voter}:{PORT}")).collect();
    let group = Group::new("/group/0/").expect("a short name");
    let builder = if name == CLIENT {
        RaftStore::client(&seeds, group)
    } else {
        let builder = RaftStore::builder(Data::Memory, group).seeds(&seeds);
        // The learner comes back under another name where it has lost its disk.
        let builder = if name == LATE { builder.learner() } else { builder.name(name).expect("a short name") };
        let builder = builder.listen(format!("0.0.0.0:{PORT}"));
        builder.configure(|config| config.advertise = Some(format!("{name}:{PORT}")))
    };
    let builder = builder.plaintext();
    let patience = VOTERS.iter().position(|voter| *voter == name).map_or(300, |at| plan.elections[at]);
    let builder = builder.configure(|config| {
        config.environment = environment.clone();
        // The history begins each group as an empty ledger.
        config.first_life = true;
        config.voters = 3;
        config.snapshot_every = plan.snapshot_every;
        // openraft draws from this range by a source of its own. The range of one number is what is drawn here, so that
        // lease and timeout together are within what they are in production.
        config.election = (Duration::from_millis(patience), Duration::from_millis(patience + 1));
    });
    builder.build().expect("the configuration is right")
}

/// What is drawn for the whole run.
#[derive(Clone, Copy)]
struct Plan {
    callers: usize,
    elections: [u64; 3],
    snapshot_every: u64,
    latency: (u64, u64),
    /// Milliseconds of faults.
    busy: u64,
    /// Milliseconds between two faults, at most.
    pause: u64,
    /// Milliseconds that a commit takes at most.
    disk: u64,
    /// Which kinds of faults there are.
    kinds: u64,
    /// Of the callers' sessions, in milliseconds.
    lease: u64,
}

impl Plan {
    fn draw(dice: &mut Dice) -> Self {
        let elections = [0; 3].map(|_| dice.between(300, 499));
        let low = dice.between(0, 3);
        Self {
            callers: dice.between(2, 4) as usize,
            elections,
            snapshot_every: dice.pick(&[100, 100, 300, 20_000]),
            latency: (low, low + dice.pick(&[1, 5, 20])),
            busy: dice.between(3_000, 8_000),
            pause: dice.pick(&[200, 600, 1500]),
            disk: dice.pick(&[3, 3, 8, 40]),
            kinds: dice.roll() | dice.roll(),
            lease: dice.pick(&[800, 1500, 3_600_000]),
        }
    }
}

/// A link between two hosts that is not as it should be.
#[derive(Clone, Copy)]
enum Broken {
    Both,
    OneWay,
    Held,
    Slow,
}

struct Driver<'a> {
    sim: Sim<'a>,
    shared: Arc<Shared>,
    environments: BTreeMap<&'static str, Arc<Environment>>,
    dice: Dice,
    plan: Plan,
    /// Links by from and to, and when each is mended.
    links: BTreeMap<(&'static str, &'static str), (Broken, u64)>,
    /// Hosts that are down, when they come back, and whether they were cut off as well.
    down: BTreeMap<&'static str, u64>,
    stalled: BTreeMap<&'static str, u64>,
    /// Hosts whose disk is full, and until when.
    full: BTreeMap<&'static str, u64>,
    /// All crash as soon as more calls than this have been answered.
    trap: Option<u64>,
}

/// Runs a seed. `lines` says whether what happens is to be written down.
pub fn run(seed: u64, lines: bool) -> Report {
    let trace = Trace::new(lines);
    let shared = Arc::new(Shared {
        trace: trace.clone(),
        now: AtomicU64::new(0),
        phase: Mutex::new(Phase::Founding),
        history: Mutex::default(),
        stores: Mutex::default(),
        late: AtomicBool::new(false),
        reborn: Mutex::default(),
        served: Mutex::default(),
        calls: Default::default(),
        hash: AtomicU64::new(0),
        counted: Mutex::default(),
        silences: Mutex::default(),
        beliefs: Mutex::default(),
        expired: Mutex::default(),
    });
    let mut report = Report::default();
    panics::listen();
    let done = catch_unwind(AssertUnwindSafe(|| drive(seed, &shared, &mut report)));
    if let Some(panic) = panics::heard().or_else(|| done.is_err().then(|| "somewhere".to_owned())) {
        trace.broken(panic);
    }
    report.simulated = Duration::from_millis(shared.now.load(Ordering::Relaxed));
    report.calls = (shared.calls.0.load(Ordering::Relaxed), shared.calls.1.load(Ordering::Relaxed));
    (_, report.faults, report.violation, report.lines) = trace.end();
    report.hash = shared.hash.load(Ordering::Relaxed);
    report
}

fn drive(seed: u64, shared: &Arc<Shared>, report: &mut Report) {
    let mut dice = Dice(seed);
    let plan = Plan::draw(&mut dice);
    let ms = Duration::from_millis;
    let sim = turmoil::Builder::new()
        .rng_seed(dice.roll())
        .simulation_duration(Duration::from_secs(3600))
        .tick_duration(ms(1))
        .min_message_latency(ms(plan.latency.0))
        .max_message_latency(ms(plan.latency.1))
        .tcp_capacity(4096)
        .build();
    let environments: BTreeMap<_, _> =
        HOSTS.iter().map(|host| (*host, Arc::new(Environment::new(dice.split())))).collect();
    let (links, down, stalled, full) = Default::default();
    let mut driver =
        Driver { sim, shared: shared.clone(), environments, dice, plan, links, down, stalled, full, trap: None };
    driver.environments.values().for_each(|environment| environment.pace.store(plan.disk, Ordering::Relaxed));
    for name in HOSTS {
        let (shared, environment) = (shared.clone(), driver.environments[name].clone());
        let lives = Mutex::new(driver.dice.split());
        driver.sim.host(name, move || {
            let (shared, environment, dice) = (shared.clone(), environment.clone(), lives.lock().split());
            async move {
                process(name, shared, environment, dice, plan).await;
                Ok(())
            }
        });
    }
    let broken = |rule: String| shared.trace.broken(rule);

    if !driver.until(FOUNDED, |driver| driver.shared.stores.lock().len() == HOSTS.len() - 1) {
        return broken(format!("no cluster within {FOUNDED} ms"));
    }
    *shared.phase.lock() = Phase::Busy;
    shared.note("busy", &[], || format!("{} callers each", plan.callers));
    let end = driver.now() + plan.busy;
    let mut next = driver.now();
    while driver.now() < end && !shared.trace.is_broken() {
        if driver.now() >= next {
            driver.fault();
            next = driver.now() + driver.dice.between(1, plan.pause);
        }
        driver.step();
    }

    if seed % QUIET == 1 {
        driver.quiet();
    }
    driver.heal();
    *shared.phase.lock() = Phase::Healed;
    let healed = driver.now();
    if !driver.until(HEALED, |driver| driver.shared.served.lock().len() == HOSTS.len()) {
        let served: Vec<_> = shared.served.lock().keys().copied().collect();
        return broken(format!("{HEALED} ms after healing only {served:?} were served"));
    }
    report.healed = driver.now() - healed;
    if !driver.until(SAME, Driver::are_the_same) {
        return broken(format!(
            "{SAME} ms after the last call the replicas are not the same: {}",
            driver.differences()
        ));
    }
    if let Some(leader) =
        VOTERS.iter().find(|voter| shared.stores.lock().get(*voter).is_some_and(RaftStore::leads_raft))
    {
        shared.note("leads", &[text(leader)], || (*leader).to_owned());
    }
    if let Some(problem) = shared.broken_silence().or_else(|| shared.premature()) {
        return broken(problem);
    }
    report.expiries = shared.expired.lock().len() as u64;
    match shared.history.lock().check(GROUPS) {
        Ok(verdict) => report.verdict = verdict,
        Err(problem) => broken(problem),
    }
    if seed % LOST == 2
        && let Err(problem) = driver.lose_all()
    {
        broken(problem);
    }
    shared.stores.lock().clear();
}

impl Driver<'_> {
    fn now(&self) -> u64 {
        self.shared.now.load(Ordering::Relaxed)
    }

    /// Whether it came true in time.
    fn until(&mut self, limit: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now() + limit;
        while self.now() < end && !self.shared.trace.is_broken() {
            if done(self) {
                return true;
            }
            self.step();
        }
        self.shared.trace.is_broken()
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            self.shared.trace.broken(format!("a host ended: {error}"));
        }
        let now = self.shared.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.environments.values().for_each(|environment| environment.now.store(now, Ordering::Relaxed));
        let failed: Vec<_> =
            REPLICAS.iter().copied().filter(|host| self.environments[host].disk.has_failed()).collect();
        for host in failed {
            self.shared.trace.fault("crash in a commit");
            self.crash(host);
        }
        if self.trap.is_some_and(|calls| self.shared.calls.0.load(Ordering::Relaxed) > calls) {
            self.trap = None;
            self.power_off(&VOTERS, "crash of all after an answer");
        }
        let back: Vec<_> = self.down.iter().filter(|(_, at)| **at <= now).map(|(host, _)| *host).collect();
        back.into_iter().for_each(|host| self.restart(host));
        let mended: Vec<_> = self.links.iter().filter(|(_, (_, at))| *at <= now).map(|(link, _)| *link).collect();
        mended.into_iter().for_each(|link| self.mend(link));
        let rested: Vec<_> = self.stalled.iter().filter(|(_, at)| **at <= now).map(|(host, _)| *host).collect();
        rested.into_iter().for_each(|host| self.rest(host));
        let freed: Vec<_> = self.full.iter().filter(|(_, at)| **at <= now).map(|(host, _)| *host).collect();
        freed.into_iter().for_each(|host| self.free(host));
    }

    fn are_the_same(&self) -> bool {
        let stores = self.shared.stores.lock();
        let mut replicas = REPLICAS.iter().map(|voter| stores.get(voter).and_then(RaftStore::replica));
        let first = replicas.next().flatten();
        first.is_some() && replicas.all(|replica| replica == first)
    }

    /// How far each replica has come, of how many bytes it is and what they are.
    fn differences(&self) -> String {
        let stores = self.shared.stores.lock();
        let said = REPLICAS.map(|host| {
            let store = stores.get(host);
            let replica = store.and_then(RaftStore::replica);
            let replica = replica.map(|(index, bytes)| {
                let sum = bytes.iter().fold(0, |hash: u64, byte| hash.rotate_left(5) ^ u64::from(*byte));
                format!("entry {index}, {} bytes, {sum:016x}", bytes.len())
            });
            format!("{host}: {replica:?}, sum {:?}", store.and_then(RaftStore::sum))
        });
        said.join("; ")
    }

    fn leader(&self) -> Option<&'static str> {
        let stores = self.shared.stores.lock();
        VOTERS.iter().copied().find(|voter| stores.get(voter).is_some_and(RaftStore::leads_raft))
    }

    /// While nothing is written, a voter that has heard nothing of the leader for long has the whole log, and so may be
    /// elected by one that has. Sessions are renewed all the time.
    fn quiet(&mut self) {
        self.heal();
        for _ in 0..2 {
            self.until(HEALED, |driver| driver.shared.stores.lock().len() == HOSTS.len() && driver.leader().is_some());
            *self.shared.phase.lock() = Phase::Quiet;
            // What was asked for before may still be under way.
            self.pass(500);
            let others = |leader| VOTERS.iter().copied().filter(move |voter| *voter != leader).collect::<Vec<_>>();
            if let Some(leader) = self.leader() {
                let late = self.dice.pick(&others(leader));
                let (long, absent) = (self.dice.between(200, 3000), self.dice.between(1500, 3000));
                self.cut((leader, late), Broken::Both, self.now() + long + absent, "a voter that hears no leader");
                self.pass(long);
                self.power_off(&[leader], "crash of the leader");
                self.down.entry(leader).and_modify(|back| *back += absent);
                self.pass(absent);
            }
            *self.shared.phase.lock() = Phase::Busy;
            self.heal();
            self.pass(1000);
        }
    }

    /// All lose their disks and found a cluster anew: the numbers of before never come again.
    fn lose_all(&mut self) -> Result<(), String> {
        let before: Vec<_> = {
            let history = self.shared.history.lock();
            (0..GROUPS).map(|group| history.highest(group)).collect()
        };
        *self.shared.phase.lock() = Phase::Reborn;
        self.power_off(&HOSTS, "loss of all disks");
        REPLICAS.iter().for_each(|host| self.environments[host].disk.wipe());
        if !self.until(FOUNDED + HEALED, |driver| driver.shared.reborn.lock().len() == GROUPS) {
            return Err(format!("{} ms after all disks were lost not all groups have an owner", FOUNDED + HEALED));
        }
        let reborn = self.shared.reborn.lock();
        let back = reborn.iter().find(|(group, (token, term))| {
            let (highest, last) = before[**group];
            *token <= highest || *term <= last
        });
        back.map_or(Ok(()), |(group, now)| {
            Err(format!("group {group}: {now:?} after all disks were lost, and {:?} before", before[*group]))
        })
    }

    fn pass(&mut self, long: u64) {
        self.until(long, |_| false);
    }

    fn fault(&mut self) {
        let kind = self.dice.below(15);
        if self.plan.kinds >> kind & 1 == 0 {
            return;
        }
        let host = self.dice.pick(&VOTERS);
        let leader = self.leader();
        let long = self.dice.pick(&[30, 300, 2000, 4000]);
        let until = self.now() + self.dice.between(1, long);
        match kind {
            0 => self.power_off(&[host], "crash"),
            1 => self.power_off(leader.as_slice(), "crash of the leader"),
            2 if self.dice.permille(500) => self.trap = Some(self.shared.calls.0.load(Ordering::Relaxed)),
            2 => self.power_off(&VOTERS, "crash of all"),
            3 => {
                let other = self.dice.pick(&VOTERS);
                self.power_off(&[host, other], "crash of two");
            }
            4 => {
                let fuse = self.dice.between(0, 40);
                self.shared.note("fuse", &[text(host), fuse], || format!("{host} after {fuse}"));
                self.environments[host].disk.fail_after(fuse);
            }
            5 => self.cut_off(host, Broken::Both, until, "cut off"),
            6 => self.cut_off(leader.unwrap_or(host), Broken::Both, until, "leader cut off"),
            7 => {
                let from = self.dice.pick(&HOSTS);
                let to = self.dice.pick(&HOSTS);
                let how = self.dice.pick(&[Broken::Both, Broken::OneWay]);
                self.cut((from, to), how, until, "link cut");
            }
            8 => {
                let deaf = self.dice.permille(500);
                let host = leader.unwrap_or(host);
                for other in HOSTS.iter().copied().filter(|other| *other != host) {
                    let link = if deaf { (other, host) } else { (host, other) };
                    self.cut(link, Broken::OneWay, until, if deaf { "deaf" } else { "mute" });
                }
            }
            9 => self.cut_off(host, Broken::Held, until, "messages held"),
            10 => {
                let (from, to) = (self.dice.pick(&HOSTS), self.dice.pick(&HOSTS));
                self.cut((from, to), Broken::Slow, until, "slow link");
            }
            12 => self.learn(host, until),
            13 if self.shared.stores.lock().contains_key(LATE) => {
                self.power_off(&[LATE], "loss of a disk");
                self.environments[LATE].disk.wipe();
                self.frail_start();
            }
            13 => {}
            14 => {
                let how = self.dice.pick(&[Full::ForSnapshots, Full::ForAll]);
                let host = self.dice.pick(&REPLICAS);
                self.shared.trace.fault(if how == Full::ForAll { "full disk" } else { "no space for snapshots" });
                self.shared.note("full", &[text(host), until], || format!("{host} until {until} ms: {how:?}"));
                self.environments[host].disk.fill(how);
                self.full.insert(host, until);
            }
            _ => {
                let most = self.dice.pick(&[50, 300, 1500]);
                self.shared.trace.fault("slow disk");
                self.shared.note("disk", &[text(host), most], || format!("{host}: up to {most} ms"));
                self.environments[host].pace.store(most, Ordering::Relaxed);
                self.stalled.insert(host, until);
            }
        }
    }

    /// The learner joins, or comes back after a crash, over a link that is slow for a while.
    fn learn(&mut self, host: &'static str, until: u64) {
        if !self.shared.late.swap(true, Ordering::Relaxed) {
            self.shared.trace.fault("a learner joins");
            self.frail_start();
        } else {
            self.power_off(&[LATE], "crash of the learner");
        }
        let from = self.leader().unwrap_or(host);
        self.cut((from, LATE), Broken::Slow, until, "slow link to the learner");
    }

    /// The learner's power may fail while it makes its files.
    fn frail_start(&mut self) {
        if self.dice.permille(500) {
            let fuse = self.dice.between(0, 60);
            self.shared.note("fuse", &[text(LATE), fuse], || format!("{LATE} after {fuse}"));
            self.environments[LATE].disk.fail_after(fuse);
        }
    }

    /// There is space again. Whatever stopped for want of it is started again.
    fn free(&mut self, host: &'static str) {
        self.full.remove(host);
        if self.environments[host].disk.fill(Full::No) {
            self.power_off(&[host], "restart after a full disk");
        }
    }

    fn power_off(&mut self, hosts: &[&'static str], kind: &'static str) {
        let hosts: Vec<_> = hosts.iter().copied().filter(|host| !self.down.contains_key(host)).collect();
        if !hosts.is_empty() {
            self.shared.trace.fault(kind);
        }
        hosts.into_iter().for_each(|host| self.crash(host));
    }

    fn crash(&mut self, host: &'static str) {
        if self.down.contains_key(host) {
            return;
        }
        let lost = self.environments[host].disk.crash();
        self.shared.note("crash", &[text(host), lost], || format!("{host}, {lost} writes lost"));
        let store = self.shared.stores.lock().remove(host);
        self.sim.crash(host);
        drop(store);
        self.shared.served.lock().remove(host);
        let long = self.dice.pick(&[1, 200, 2000, 4000]);
        let back = self.now() + self.dice.between(1, long);
        self.down.insert(host, back);
    }

    fn restart(&mut self, host: &'static str) {
        self.down.remove(host);
        self.shared.note("restart", &[text(host)], || host.to_owned());
        self.sim.bounce(host);
    }

    fn cut_off(&mut self, host: &'static str, how: Broken, until: u64, kind: &'static str) {
        for other in HOSTS.iter().copied().filter(|other| *other != host) {
            self.cut((host, other), how, until, kind);
        }
    }

    fn cut(&mut self, (from, to): (&'static str, &'static str), how: Broken, until: u64, kind: &'static str) {
        // One thing at a time for a pair.
        if from == to || self.links.contains_key(&(from, to)) || self.links.contains_key(&(to, from)) {
            return;
        }
        self.shared.trace.fault(kind);
        self.shared.note("cut", &[text(from), text(to), until], || format!("{from} {to} until {until} ms: {kind}"));
        match how {
            Broken::Both => self.sim.partition(from, to),
            Broken::OneWay => self.sim.partition_oneway(from, to),
            Broken::Held => self.sim.hold(from, to),
            Broken::Slow => {
                let latency = self.dice.between(30, 400);
                self.sim.set_link_latency(from, to, Duration::from_millis(latency));
            }
        }
        self.links.insert((from, to), (how, until));
    }

    fn mend(&mut self, (from, to): (&'static str, &'static str)) {
        let Some((how, _)) = self.links.remove(&(from, to)) else { return };
        self.shared.note("mended", &[text(from), text(to)], || format!("{from} {to}"));
        match how {
            Broken::Both => self.sim.repair(from, to),
            Broken::OneWay => self.sim.repair_oneway(from, to),
            Broken::Held => self.sim.release(from, to),
            Broken::Slow => self.sim.set_link_latency(from, to, Duration::from_millis(self.plan.latency.1)),
        }
    }

    fn rest(&mut self, host: &'static str) {
        self.stalled.remove(host);
        self.environments[host].pace.store(self.plan.disk, Ordering::Relaxed);
    }

    fn heal(&mut self) {
        self.shared.note("heal", &[], String::new);
        self.trap = None;
        let links: Vec<_> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.mend(link));
        let stalled: Vec<_> = self.stalled.keys().copied().collect();
        stalled.into_iter().for_each(|host| self.rest(host));
        self.environments.values().for_each(|environment| environment.disk.fail_after(u64::MAX));
        let full: Vec<_> = self.full.keys().copied().collect();
        full.into_iter().for_each(|host| self.free(host));
        self.shared.late.store(true, Ordering::Relaxed);
        let failed: Vec<_> =
            REPLICAS.iter().copied().filter(|host| self.environments[host].disk.has_failed()).collect();
        failed.into_iter().for_each(|host| self.crash(host));
        let down: Vec<_> = self.down.keys().copied().collect();
        down.into_iter().for_each(|host| self.restart(host));
    }
}
