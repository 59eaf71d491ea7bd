//! What sets a key aside and what does not: keys that kill their process, and processes that die by themselves.

use super::*;

const STEP_MS: u64 = 100;

/// A node's process, which is started again whenever it dies.
struct Process {
    name: String,
    session: Option<SessionId>,
    /// When it dies, where that is certain.
    dies_at: Option<Instant>,
    starts_at: Instant,
}

/// A seeded generator.
struct Dice(u64);

impl Dice {
    /// From the first to the last, both included.
    fn between(&mut self, first: u64, last: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        first + (mixed ^ (mixed >> 31)) % (last - first + 1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len() as u64 - 1) as usize]
    }
}

/// Nodes over a group whose leader is one of them, so that it may die as well.
struct Fleet {
    group: Group,
    processes: Vec<Process>,
    killers: Vec<String>,
    /// From the start of a killer to the death: at least, and at most.
    kills_after_ms: (u64, u64),
    dice: Dice,
    /// How long a process takes to start again.
    restarts_after_ms: u64,
    /// A process that starts again has a new name.
    renamed: bool,
    /// Who leads, by number.
    leads: Option<usize>,
    deaths: usize,
    /// The keys that no living process has, and for how long.
    unowned: BTreeMap<String, u64>,
    /// The longest that a key was unowned which does not kill, and how long all of them waited after their time.
    longest_ms: u64,
    waited_ms: u64,
    waited: BTreeSet<String>,
}

/// How long a key of a process that dies may be unowned: the lease, half a second, and one round of planning.
const UNOWNED_MS: u64 = LEASE_MS as u64 + 500 + STEP_MS;

impl Fleet {
    fn new(nodes: usize, keys: usize, killers: usize) -> Self {
        let group = Group::new(config());
        let start = |n: usize| Process { name: format!("n{n}"), session: None, dies_at: None, starts_at: Instant(0) };
        let killers: Vec<String> = (0..killers).map(|n| format!("key-{}", n * 37)).collect();
        let mut fleet = Self {
            group,
            processes: (0..nodes).map(start).collect(),
            killers,
            kills_after_ms: (300, 300),
            dice: Dice(1),
            restarts_after_ms: 100,
            renamed: false,
            leads: None,
            deaths: 0,
            unowned: BTreeMap::new(),
            longest_ms: 0,
            waited_ms: 0,
            waited: BTreeSet::new(),
        };
        fleet.pass(STEP_MS);
        let names: Vec<String> = (0..keys).map(|n| format!("key-{n}")).collect();
        fleet.group.add(&refs(&names));
        fleet.unowned = names.into_iter().map(|name| (name, 0)).collect();
        fleet
    }

    /// Counts for how long each key has been unowned.
    fn watch(&mut self) {
        let Self { group, processes, unowned, killers, longest_ms, waited_ms, waited, .. } = self;
        let living: BTreeSet<SessionId> = processes.iter().filter_map(|process| process.session).collect();
        if living.is_empty() {
            return;
        }
        for (name, ms) in unowned.iter_mut().filter(|(name, _)| !killers.contains(name)) {
            let runs = group.owner(name).is_some_and(|(session, _)| living.contains(&session));
            *ms = if runs { 0 } else { *ms + STEP_MS };
            *longest_ms = *ms.max(longest_ms);
            if *ms > UNOWNED_MS {
                *waited_ms += STEP_MS;
                waited.insert(name.clone());
            }
        }
    }

    fn now(&self) -> Instant {
        self.group.now.mono
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(STEP_MS) {
            self.start_and_die();
            let alive: Vec<SessionId> = self.processes.iter().filter_map(|process| process.session).collect();
            self.group.pass(STEP_MS, &alive);
            self.group.confirm_all(&alive);
            self.watch();
        }
    }

    fn start_and_die(&mut self) {
        let now = self.now();
        for n in 0..self.processes.len() {
            let process = &mut self.processes[n];
            if process.dies_at.is_some_and(|at| at <= now) {
                self.kill(n);
            } else if process.session.is_none() && process.starts_at <= now {
                let name = process.name.clone();
                let session = self.group.session(&name, 1000, None);
                self.processes[n].session = Some(session);
            }
        }
        if self.leads.is_none() {
            self.leads = self.processes.iter().position(|process| process.session.is_some());
            if let Some(session) = self.leads.and_then(|n| self.processes[n].session) {
                self.group.hand_over(session, config(), None);
                self.group.apply(&[Op::End { session: self.group.boss }]);
            }
        }
        for process in &mut self.processes {
            let owns = |killer: &String| process.session == self.group.owner(killer).map(|(session, _)| session);
            if !self.killers.iter().any(owns) {
                process.dies_at = None;
            }
        }
        for killer in &self.killers {
            let owner = self.group.owner(killer).map(|(session, _)| session);
            for process in self.processes.iter_mut().filter(|process| owner.is_some() && process.session == owner) {
                let after_ms = self.dice.between(self.kills_after_ms.0, self.kills_after_ms.1);
                process.dies_at.get_or_insert(now + Duration::from_millis(after_ms));
            }
        }
    }

    fn kill(&mut self, n: usize) {
        self.deaths += 1;
        let starts_at = self.now() + Duration::from_millis(self.restarts_after_ms);
        let process = &mut self.processes[n];
        (process.session, process.dies_at, process.starts_at) = (None, None, starts_at);
        if self.renamed {
            process.name = format!("n{n}-{}", self.deaths);
        }
        if self.leads == Some(n) {
            self.leads = None;
        }
    }

    fn aside(&self) -> Vec<String> {
        self.group.ledger.quarantined(1000).iter().map(|key| key.as_str().to_owned()).collect()
    }

    /// How many keys some living process has.
    fn running(&self) -> usize {
        self.processes.iter().filter_map(|process| process.session).map(|session| self.group.held(session)).sum()
    }

    /// Runs until every killer has been set aside and all else runs.
    fn is_calm_within(&mut self, keys: usize, steps: usize) -> bool {
        (0..steps).any(|_| {
            self.pass(STEP_MS);
            self.aside().len() == self.killers.len() && self.running() == keys - self.killers.len()
        })
    }

    fn until_calm(&mut self, keys: usize) {
        if self.is_calm_within(keys, 6000) {
            return;
        }
        let (aside, running, tracker) = (self.aside(), self.running(), &self.group.leader.tracker);
        panic!("after {} deaths {aside:?} are set aside, and {running} run: {tracker:?}", self.deaths);
    }
}

fn a_killer_is_found(nodes: usize, keys: usize, killers: usize, kills_after_ms: u64, most: usize) {
    let mut fleet = Fleet::new(nodes, keys, killers);
    fleet.kills_after_ms = (kills_after_ms, kills_after_ms);
    fleet.until_calm(keys);
    let mut aside = fleet.aside();
    aside.sort();
    let mut expected = fleet.killers.clone();
    expected.sort();
    assert_eq!(aside, expected, "only what kills is set aside");
    assert!(fleet.deaths <= most, "{} deaths, {most} allowed", fleet.deaths);
}

#[test]
fn a_key_that_kills_its_process_is_set_aside_after_few_deaths_and_no_neighbour_is() {
    for kills_after_ms in [100, 200, 300] {
        a_killer_is_found(3, 100, 1, kills_after_ms, 8);
    }
    for kills_after_ms in [1000, 2000, 2500, 5000, 6000] {
        a_killer_is_found(3, 100, 1, kills_after_ms, 10);
    }
}

#[test]
fn two_keys_that_kill_are_both_found() {
    for kills_after_ms in [100, 200, 300] {
        a_killer_is_found(3, 100, 2, kills_after_ms, 16);
    }
}

/// Three nodes, a hundred keys, and killers of any delay, the same each time or not. Says after how many deaths they were set
/// aside.
fn deaths_until_killers_are_found(killers: u64, seed: u64) -> usize {
    let mut dice = Dice(seed);
    let mut fleet = Fleet::new(3, 0, 0);
    let longest_ms = dice.pick(&[300, 1000, 2000, 3000, 5000]);
    let after_ms = dice.between(1, longest_ms / STEP_MS) * STEP_MS;
    fleet.kills_after_ms = (dice.pick(&[STEP_MS, after_ms]), after_ms);
    fleet.restarts_after_ms = dice.pick(&[100, 500, 1500, 3000, 10_000]);
    fleet.renamed = dice.pick(&[false, true]);
    fleet.killers = (0..killers).map(|n| format!("key-{}", n * 50 + dice.between(0, 49))).collect();
    fleet.killers.sort();
    fleet.dice = Dice(dice.between(0, u64::MAX - 1));
    let case = format!("seed {seed}: {:?} kill after {:?} ms", fleet.killers, fleet.kills_after_ms);
    let names: Vec<String> = (0..100).map(|n| format!("key-{n}")).collect();
    for some in names.chunks(dice.pick(&[7, 33, 100])) {
        fleet.group.add(&refs(some));
        fleet.pass(dice.pick(&[100, 1000]));
    }
    assert!(fleet.is_calm_within(100, 6000), "{case}: after {} deaths {:?} are set aside", fleet.deaths, fleet.aside());
    let mut aside = fleet.aside();
    aside.sort();
    assert_eq!(aside, fleet.killers, "{case}: only what kills is set aside");
    fleet.deaths
}

/// So many seeds: all within `most` deaths, and so many of them within `usual`.
fn killers_are_found(killers: u64, seeds: u64, most: usize, usual: usize, share: usize) {
    let deaths: Vec<usize> = (0..seeds).map(|seed| deaths_until_killers_are_found(killers, seed)).collect();
    assert!(deaths.iter().all(|deaths| *deaths <= most), "{deaths:?}");
    let within = deaths.iter().filter(|deaths| **deaths <= usual).count();
    assert!(within >= share, "{within} within {usual}: {deaths:?}");
}

#[test]
fn whatever_its_delay_a_killer_is_set_aside_after_few_deaths_and_nothing_else_is() {
    killers_are_found(1, 60, 9, 8, 58);
}

#[test]
fn two_killers_of_any_delay_are_set_aside_and_nothing_else_is() {
    killers_are_found(2, 40, 24, 16, 26);
}

#[test]
fn a_killer_is_found_on_two_nodes_and_on_ten() {
    a_killer_is_found(2, 40, 1, 300, 10);
    a_killer_is_found(10, 1000, 1, 300, 9);
}

#[test]
fn processes_that_die_by_themselves_in_turn_set_nothing_aside() {
    for (nodes, keys) in [(1, 1), (1, 30), (2, 20), (3, 12), (3, 100), (5, 100)] {
        let mut fleet = Fleet::new(nodes, keys, 0);
        for round in 0..20 {
            for n in 0..nodes {
                // A second after it was given something, or when it has been given nothing for long.
                for _ in 0..100 {
                    let session = fleet.processes[n].session;
                    if session.is_some_and(|session| fleet.group.held(session) > 0) {
                        break;
                    }
                    fleet.pass(STEP_MS);
                }
                fleet.pass(1000);
                fleet.kill(n);
                assert_eq!(fleet.aside(), Vec::<String>::new(), "{nodes} nodes, {keys} keys, round {round}");
            }
        }
        fleet.until_calm(keys);
        assert_eq!(fleet.aside(), Vec::<String>::new());
    }
}

#[test]
fn a_crash_loop_of_everybody_sets_nothing_aside_and_all_runs_again_soon_after() {
    for seed in 0..20_u64 {
        let mut fleet = Fleet::new(3, 50, 0);
        for n in 0..60 {
            fleet.pass(300 + (seed * 7919 + n * 104_729) % 3000);
            fleet.kill(((seed + n * 7) % 3) as usize);
        }
        let healed = fleet.now();
        fleet.until_calm(50);
        let took = fleet.now().since(healed);
        assert!(took <= Duration::from_secs(30), "seed {seed}: {took:?}");
        assert_eq!(fleet.aside(), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn a_death_that_most_of_the_group_shares_is_held_against_nobody() {
    let mut fleet = Fleet::new(4, 20, 0);
    for _ in 0..10 {
        fleet.pass(5000);
        for n in 0..3 {
            fleet.kill(n);
        }
        fleet.pass(5000);
    }
    let deaths = |n: usize| fleet.group.ledger.record(&key(&format!("key-{n}"))).unwrap().view.deaths.count;
    assert_eq!((0..20).map(deaths).max(), Some(0));
}

#[test]
fn a_suspect_that_is_put_off_while_it_waits_is_not_started_before_its_time() {
    let mut group = Group::new(config());
    group.add(&["k"]);
    for _ in 0..3 {
        let victim = group.session("victim", 1000, None);
        while group.ledger.is_alive(victim) {
            group.pass(100, &[]);
        }
    }
    let node = group.session("node", 1000, None);
    assert_eq!(group.owner("k"), None, "it is to be tried, and waits until the group has been quiet");
    let mut work = Work::new("k").unwrap();
    work.not_before_ms = group.now.unix_ms + 20_000;
    group.apply(&[Op::Add(work)]);
    for _ in 0..199 {
        group.pass(100, &[node]);
        assert_eq!(group.owner("k"), None);
    }
    for _ in 0..100 {
        group.pass(100, &[node]);
    }
    assert!(group.owner("k").is_some());
}

#[test]
fn the_silence_of_an_unanswered_leader_is_held_against_nobody() {
    let mut group = Group::new(config());
    let boss = group.session("boss", 0, None);
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    // The store is away for longer than the lease; then the leader is the first that it answers.
    group.now.mono = group.now.mono + Duration::from_millis(2500);
    group.pass(1, &[boss]);
    let _ = group.session("b", 1000, None);
    group.pass(1, &[boss]);
    assert!(!group.ledger.is_alive(a));
    assert!(group.owner("k").is_some());
    assert_eq!(group.ledger.record(&key("k")).unwrap().view.deaths.count, 0);
}

/// So many of the nodes die whenever they have had work for a while, and are started again, under their names or others.
fn bad_machines_set_nothing_aside(bad: usize, nodes: usize, keys: usize, lives_ms: u64, restarts_ms: u64) {
    for renamed in [false, true] {
        let mut fleet = Fleet::new(nodes, keys, 0);
        (fleet.restarts_after_ms, fleet.renamed) = (restarts_ms, renamed);
        for death in 0..9 {
            let n = death % bad;
            for _ in 0..200 {
                if fleet.processes[n].session.is_some_and(|session| fleet.group.held(session) > 0) {
                    break;
                }
                fleet.pass(STEP_MS);
            }
            fleet.pass(lives_ms);
            fleet.kill(n);
            let case = format!("{bad} of {nodes} nodes, {keys} keys, {lives_ms} ms, {renamed}: after {death} deaths");
            assert_eq!(fleet.aside(), Vec::<String>::new(), "{case}");
        }
        fleet.until_calm(keys);
        assert_eq!(fleet.aside(), Vec::<String>::new());
    }
}

#[test]
fn a_machine_that_kills_whatever_it_runs_sets_nothing_aside() {
    bad_machines_set_nothing_aside(1, 2, 3, 2500, 2000);
    bad_machines_set_nothing_aside(1, 3, 3, 300, 100);
    bad_machines_set_nothing_aside(1, 5, 10, 4000, 100);
}

#[test]
fn two_machines_that_kill_whatever_they_run_set_nothing_aside() {
    bad_machines_set_nothing_aside(2, 5, 10, 2500, 100);
}

/// All processes but the last one live; that one is started again and again, and dies each time `lives_ms` later.
fn crashes(stable: usize, keys: usize, times: usize, lives_ms: u64, away_ms: u64) -> Fleet {
    let mut fleet = Fleet::new(stable + 1, keys, 0);
    (fleet.restarts_after_ms, fleet.renamed) = (away_ms, true);
    fleet.kill(stable);
    fleet.pass(away_ms - STEP_MS);
    fleet.longest_ms = 0;
    for _ in 0..times {
        fleet.pass(STEP_MS + lives_ms);
        fleet.kill(stable);
        fleet.pass(away_ms - STEP_MS);
    }
    fleet.processes[stable].starts_at = Instant(u64::MAX);
    fleet.pass(15_000);
    assert_eq!((fleet.deaths, fleet.aside()), (times + 1, Vec::new()));
    fleet
}

#[test]
fn no_key_waits_for_longer_than_the_lease_and_half_a_second_where_unrelated_processes_die() {
    for (stable, keys) in [(1, 20), (2, 60), (2, 12), (2, 3), (4, 30)] {
        for times in [2, 3, 4, 6] {
            let longest_ms = crashes(stable, keys, times, 4000, 5000).longest_ms;
            let case = format!("{stable} nodes live, {times} die, {keys} keys: one waited for {longest_ms} ms");
            assert!(longest_ms <= UNOWNED_MS, "{case}");
        }
    }
}

#[test]
fn no_key_waits_while_one_process_is_in_a_crash_loop() {
    for (lives_ms, away_ms) in [(4000, 5000), (1000, 2000), (300, 1300), (2500, 8000)] {
        let fleet = crashes(2, 60, 180_000 / (lives_ms + away_ms) as usize, lives_ms, away_ms);
        let (waited, longest_ms) = (fleet.waited.len(), fleet.longest_ms);
        assert!(
            waited <= 4 && longest_ms <= 15_000,
            "{lives_ms} and {away_ms} ms: {waited} waited, up to {longest_ms} ms"
        );
    }
}

#[test]
fn what_just_became_suspect_is_spread_over_all_nodes_and_stays_there_until_it_is_none() {
    let mut group = Group::new(config());
    let (a, b) = (group.session("a", 1000, None), group.session("b", 1000, None));
    for _ in 0..2 {
        let victim = group.session("victim", 1_000_000, None);
        group.add(&refs(&names(12)));
        group.confirm_all(&[a, b]);
        group.apply(&[Op::Rebalance]);
        group.confirm_all(&[a, b]);
        assert_eq!(group.held(victim), 12);
        while group.ledger.is_alive(victim) {
            group.pass(100, &[a, b]);
        }
    }
    assert_eq!((group.held(a), group.held(b)), (6, 6));
    let c = group.session("c", 1000, None);
    for _ in 0..20 {
        group.pass(100, &[a, b, c]);
        group.confirm_all(&[a, b, c]);
        assert_eq!((group.held(a), group.held(b), group.held(c)), (6, 6, 0), "they are on trial");
    }
    for _ in 0..80 {
        group.pass(100, &[a, b, c]);
        group.confirm_all(&[a, b, c]);
    }
    assert_eq!((group.held(a), group.held(b), group.held(c)), (4, 4, 4), "and then the newcomer gets its share");
}

#[test]
fn the_leader_tells_who_comes_and_goes_and_what_it_holds_back() {
    let mut group = Group::new(config());
    _ = group.leader.take_news();
    group.add(&["k"]);
    let a = group.session("a", 1000, None);
    let name = |name: &str| NodeId::new(name).unwrap();
    assert_eq!(group.leader.take_news(), [News::Joined(name("a"), a)]);
    while group.ledger.is_alive(a) {
        group.pass(100, &[]);
    }
    assert_eq!(group.leader.take_news(), [News::Expired(name("a"), a, Duration::from_millis(LEASE_MS.into()), 1)]);
    for victim in ["b", "c"] {
        let victim = group.session(victim, 1000, None);
        while group.ledger.is_alive(victim) {
            group.pass(100, &[]);
        }
    }
    _ = group.leader.take_news();
    let d = group.session("d", 1000, None);
    let held_back = News::HeldBack(1, Duration::from_secs(5));
    assert_eq!(group.leader.take_news(), [News::Joined(name("d"), d), held_back]);
    assert_eq!(group.leader.counts().held_back, 1);
    for _ in 0..60 {
        group.pass(100, &[d]);
    }
    assert_eq!(group.leader.take_news(), [News::Released]);
    group.apply(&[Op::End { session: d }]);
    assert_eq!(group.leader.take_news()[0], News::Left(name("d"), d));
}
