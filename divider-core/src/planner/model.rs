//! Random histories, each step checked against sums made from scratch.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::board::{BUSY, LISTS, NONE, State};
use super::{Balance, KeyIx, KeyState, MaxInFlight, NodeIx, NodeSpec, Planner};

#[derive(Clone, Debug)]
enum Step {
    Join(NodeSpec, bool),
    Leave(Index),
    SetNode(Index, NodeSpec),
    Add(u8, u32, i32),
    SetKey(Index, u32, i32),
    Remove(Index),
    Ready(Index, Option<Index>),
    ReadyAll,
    Park(Index),
    Own(Index, Index),
    OwnProposed,
    Stopping(Index),
    Assign(usize),
    Moves,
    Follow,
    Rebalance,
}

fn spec() -> impl Strategy<Value = NodeSpec> {
    let affinity = prop_oneof![4 => Just(1000), 1 => Just(0), 2 => 1..4000u32, 1 => Just(i32::MAX as u32)];
    let capacity = prop_oneof![3 => Just(None), 1 => (0..12u32).prop_map(Some)];
    (affinity, capacity, prop::bool::weighted(0.85)).prop_map(|(affinity, capacity, accepting)| NodeSpec {
        affinity,
        capacity,
        accepting,
    })
}

fn step(weight: BoxedStrategy<u32>) -> impl Strategy<Value = Step> {
    let some = any::<Index>;
    prop_oneof![
        3 => (spec(), any::<bool>()).prop_map(|(spec, settled)| Step::Join(spec, settled)),
        2 => some().prop_map(Step::Leave),
        2 => (some(), spec()).prop_map(|(n, spec)| Step::SetNode(n, spec)),
        6 => (1..40u8, weight.clone(), -1..2i32).prop_map(|(count, weight, priority)| Step::Add(count, weight, priority)),
        1 => (some(), weight, -1..2i32).prop_map(|(k, weight, priority)| Step::SetKey(k, weight, priority)),
        2 => some().prop_map(Step::Remove),
        3 => (some(), any::<Option<Index>>()).prop_map(|(k, n)| Step::Ready(k, n)),
        3 => Just(Step::ReadyAll),
        2 => some().prop_map(Step::Park),
        3 => (some(), some()).prop_map(|(k, n)| Step::Own(k, n)),
        3 => Just(Step::OwnProposed),
        3 => some().prop_map(Step::Stopping),
        6 => prop_oneof![0..4usize, Just(usize::MAX)].prop_map(Step::Assign),
        4 => Just(Step::Moves),
        2 => Just(Step::Follow),
        1 => Just(Step::Rebalance),
    ]
}

struct Model {
    planner: Planner,
    nodes: BTreeMap<NodeIx, NodeSpec>,
    keys: BTreeMap<KeyIx, (u32, i32)>,
}

impl Model {
    fn new(balance: Balance, max: MaxInFlight) -> Self {
        Self { planner: Planner::new(balance, max), nodes: BTreeMap::new(), keys: BTreeMap::new() }
    }

    fn node(&self, at: Index) -> Option<NodeIx> {
        (!self.nodes.is_empty()).then(|| *self.nodes.keys().nth(at.index(self.nodes.len())).unwrap())
    }

    fn key(&self, at: Index) -> Option<KeyIx> {
        (!self.keys.is_empty()).then(|| *self.keys.keys().nth(at.index(self.keys.len())).unwrap())
    }

    fn takes(&self, n: NodeIx) -> bool {
        let spec = self.nodes[&n];
        let taken = self.planner.nodes[n.0 as usize].held + self.planner.nodes[n.0 as usize].proposed;
        spec.accepting && spec.affinity > 0 && spec.capacity.is_none_or(|capacity| taken < capacity)
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Join(spec, settled) => {
                let n = self.planner.join(spec, settled);
                assert!(self.nodes.insert(n, spec).is_none(), "an index is used twice");
            }
            Step::Leave(n) => {
                let Some(n) = self.node(n) else { return };
                let others: Vec<_> = self.keys.keys().map(|&k| (k, self.planner.state(k))).collect();
                self.planner.leave(n);
                self.nodes.remove(&n);
                for (k, before) in others {
                    use KeyState::{Owned, Proposed, Ready, Stopping};
                    let its = matches!(before, Some(Proposed(m) | Owned(m) | Stopping(m)) if m == n);
                    assert_eq!(self.planner.state(k), if its { Some(Ready) } else { before });
                }
            }
            Step::SetNode(n, spec) => {
                let Some(n) = self.node(n) else { return };
                self.planner.set_node(n, spec);
                self.nodes.insert(n, spec);
            }
            Step::Add(count, weight, priority) => {
                for _ in 0..count {
                    let k = self.planner.add_key(weight, priority);
                    assert!(self.keys.insert(k, (weight, priority)).is_none(), "an index is used twice");
                    self.planner.ready(k, None);
                }
            }
            Step::SetKey(k, weight, priority) => {
                let Some(k) = self.key(k) else { return };
                self.planner.set_key(k, weight, priority);
                self.keys.insert(k, (weight, priority));
            }
            Step::Remove(k) => {
                let Some(k) = self.key(k) else { return };
                self.planner.remove_key(k);
                self.keys.remove(&k);
            }
            Step::Ready(k, avoid) => {
                let Some(k) = self.key(k) else { return };
                self.planner.ready(k, avoid.and_then(|n| self.node(n)));
            }
            Step::ReadyAll => {
                for &k in self.keys.keys() {
                    if matches!(self.planner.state(k), Some(KeyState::Parked | KeyState::Stopping(_))) {
                        self.planner.ready(k, self.planner.owner(k));
                    }
                }
            }
            Step::Park(k) => {
                if let Some(k) = self.key(k) {
                    self.planner.park(k);
                }
            }
            Step::Own(k, n) => {
                if let (Some(k), Some(n)) = (self.key(k), self.node(n)) {
                    self.planner.own(k, n);
                }
            }
            Step::OwnProposed => {
                for &k in self.keys.keys() {
                    if let Some(KeyState::Proposed(n)) = self.planner.state(k) {
                        self.planner.own(k, n);
                    }
                }
            }
            Step::Stopping(k) => {
                if let Some(k) = self.key(k) {
                    self.planner.stopping(k);
                }
            }
            Step::Assign(max) => {
                self.assign(max);
            }
            Step::Moves => {
                self.moves();
            }
            Step::Follow => {
                for k in self.moves() {
                    self.planner.stopping(k);
                    self.planner.ready(k, self.planner.owner(k));
                }
            }
            Step::Rebalance => self.planner.rebalance(),
        }
    }

    /// Assigns, and checks each proposal against the board as it was when it was made.
    fn assign(&mut self, max: usize) -> Vec<(KeyIx, NodeIx)> {
        let before = self.planner.counters().ready;
        let wishes: BTreeMap<_, _> = self.keys.keys().map(|&k| (k, self.planner.keys[k.0 as usize])).collect();
        let full: BTreeSet<_> = self.nodes.keys().copied().filter(|&n| !self.takes(n)).collect();
        let mut out = Vec::new();
        self.planner.assignments(max, &mut out);
        assert_eq!(self.planner.counters().ready, before - out.len());
        let taking: Vec<_> = self.nodes.keys().copied().filter(|&n| self.takes(n)).collect();
        assert!(out.len() == max || self.planner.counters().ready == 0 || taking.is_empty(), "a key waits beside room");
        let mut seen = BTreeSet::new();
        for &(k, n) in &out {
            assert!(seen.insert(k), "proposed twice");
            assert!(!full.contains(&n), "to a node that takes nothing");
            let node = &self.planner.nodes[n.0 as usize];
            assert!(u64::from(node.held) + u64::from(node.proposed) <= u64::from(node.capacity), "over capacity");
            let wish = wishes[&k];
            assert_eq!(wish.state, State::Ready);
            if wish.place == n.0 {
                // What has room after all of it had room before each of it.
                assert!(taking.iter().all(|&other| other == n), "not avoided");
            }
        }
        if out.len() == max {
            let worst = out.iter().map(|&(k, _)| self.keys[&k].1).min();
            let waiting = self.keys.iter().filter(|(k, _)| self.planner.state(**k) == Some(KeyState::Ready));
            assert!(waiting.map(|(_, &(_, priority))| priority).max() <= worst || max == 0, "a higher priority waits");
        }
        out
    }

    fn moves(&mut self) -> Vec<KeyIx> {
        let before: BTreeMap<_, _> = self.keys.keys().map(|&k| (k, self.planner.state(k))).collect();
        let mut out = Vec::new();
        self.planner.moves(&mut out);
        for k in &out {
            let Some(KeyState::Owned(owner)) = before[k] else { panic!("only an owned key can be moved") };
            assert!(self.nodes[&owner].accepting, "a draining node gives up its keys by itself");
            let target = self.planner.target(*k).unwrap();
            assert_ne!(target, owner);
            assert!(self.takes(target));
        }
        let limit = match self.planner.max_in_flight {
            MaxInFlight::Keys(keys) => keys as usize,
            MaxInFlight::Percent(percent) => (self.planner.planned_keys() as usize * percent as usize / 100).max(1),
        };
        assert!(out.is_empty() || self.planner.counters().in_flight <= limit);
        out
    }

    /// Everything that is kept up incrementally, against everything counted anew.
    fn check(&self) {
        let p = &self.planner;
        let mut loads = BTreeMap::new();
        let mut counts = [0usize; super::STATES];
        let (mut in_flight, mut weight, mut squares) = (0, 0u64, 0u128);
        for (&k, &(w, priority)) in &self.keys {
            let key = p.keys[k.0 as usize];
            assert_eq!((key.weight, key.priority), (w, priority));
            counts[key.state as usize] += 1;
            in_flight += usize::from(key.in_flight);
            if key.state != State::Parked {
                weight += u64::from(w);
                squares += u128::from(w) * u128::from(w);
            }
            if key.target != NONE {
                assert!(key.in_flight);
            }
            *loads.entry(p.bearer(&key)).or_insert(0u64) += u64::from(w);
        }
        assert_eq!(counts, p.counts);
        assert_eq!(counts.iter().sum::<usize>(), self.keys.len(), "a key is lost");
        assert_eq!((in_flight, weight, squares), (p.in_flight, p.weight, p.squares));
        let mut open = super::Open::default();
        for &n in self.nodes.keys() {
            let node = &p.nodes[n.0 as usize];
            assert_eq!(node.load, loads.get(&n.0).copied().unwrap_or(0), "the load of {n:?}");
            let (mut held, mut proposed) = (0, 0);
            for list in 0..LISTS {
                let mut k = p.heads[n.0 as usize * LISTS + list];
                assert_eq!(node.classes >> list & 1 == 1, k != NONE);
                let mut prev = NONE;
                while k != NONE {
                    let key = p.keys[k as usize];
                    assert_eq!((key.place, key.list(), p.prevs[k as usize]), (n.0, list, prev));
                    assert!(list != BUSY || key.state != State::Proposed);
                    if key.state == State::Proposed {
                        proposed += 1
                    } else {
                        held += 1
                    }
                    prev = std::mem::replace(&mut k, key.next);
                }
            }
            assert_eq!((held, proposed), (node.held, node.proposed));
            let named = |state: fn(State) -> bool, pick: fn(&super::Key) -> u32| {
                self.keys.keys().map(|k| &p.keys[k.0 as usize]).filter(|k| state(k.state) && pick(k) == n.0).count()
            };
            assert_eq!(named(|_| true, |key| key.target), node.inbound as usize);
            assert_eq!(named(|state| state == State::Ready, |key| key.place), node.avoided as usize);
            assert_eq!(node.open, node.takes_part() && node.room() > 0);
            if node.open {
                open.nodes += 1;
                open.load += node.load;
                open.affinity += u64::from(node.affinity);
                open.room += u64::from(node.room());
            }
        }
        assert_eq!(
            (open.nodes, open.load, open.affinity, open.room),
            (p.open.nodes, p.open.load, p.open.affinity, p.open.room)
        );
        let sum: u64 = self.nodes.keys().map(|&n| p.quota(n)).sum();
        let any = self.nodes.values().any(|spec| spec.accepting && spec.affinity > 0);
        assert_eq!(sum, if any { weight } else { 0 }, "quotas divide all there is");
    }

    /// Carries everything out until nothing is left to do.
    fn run_dry(&mut self) {
        for _ in 0..20_000 {
            self.run(Step::ReadyAll);
            for (k, n) in self.assign(usize::MAX) {
                self.planner.own(k, n);
            }
            self.run(Step::OwnProposed);
            // What somebody has revoked before is confirmed now.
            let moving: Vec<_> =
                self.keys.keys().copied().filter(|k| self.planner.keys[k.0 as usize].in_flight).collect();
            let moves = self.moves();
            if moves.is_empty() && moving.is_empty() {
                return;
            }
            for k in moving.into_iter().chain(moves) {
                self.planner.stopping(k);
                if self.planner.state(k) != Some(KeyState::Ready) {
                    self.planner.ready(k, None);
                } else if self.nodes.keys().all(|&n| !self.takes(n)) {
                    self.planner.park(k);
                }
            }
        }
        panic!("no end of moves");
    }
}

fn history(weight: BoxedStrategy<u32>) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(weight), 1..60)
}

fn policy() -> impl Strategy<Value = (Balance, MaxInFlight)> {
    let balance = prop_oneof![
        2 => Just(Balance::OnJoin),
        1 => (0..300u32).prop_map(|t| Balance::Continuous { tolerance: f64::from(t) / 1000.0 }),
    ];
    let max = prop_oneof![(0..=100u8).prop_map(MaxInFlight::Percent), (1..50u32).prop_map(MaxInFlight::Keys)];
    (balance, max)
}

fn equal() -> BoxedStrategy<u32> {
    Just(1).boxed()
}

fn mixed() -> BoxedStrategy<u32> {
    prop_oneof![Just(1), 1..1000u32, Just(super::MAX_WEIGHT)].boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_books(
        (balance, max) in policy(),
        steps in prop_oneof![history(equal()), history(mixed())],
    ) {
        let mut model = Model::new(balance, max);
        for step in steps {
            model.run(step);
            model.check();
        }
        model.run_dry();
        model.check();
        prop_assert_eq!(model.moves(), [], "stable membership, no moves");
    }

    #[test]
    fn the_same_calls_give_the_same_answers((balance, max) in policy(), steps in history(mixed())) {
        let run = || {
            let mut model = Model::new(balance, max);
            steps.iter().cloned().for_each(|step| model.run(step));
            (0..model.planner.keys.len() as u32).map(|k| (model.planner.state(KeyIx(k)), model.planner.target(KeyIx(k)))).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn joins_and_leaves_keep_equal_keys_within_one_of_the_quota(
        affinities in prop::collection::vec(prop_oneof![Just(1000u32), 1..5000u32, Just(0)], 1..12),
        weight in prop_oneof![Just(1u32), 2..1000u32],
        keys in 1..600usize,
        changes in prop::collection::vec(prop_oneof![
            (1..5000u32).prop_map(Change::Join),
            any::<Index>().prop_map(Change::Leave),
            (1..90usize).prop_map(Change::Add),
        ], 0..12),
    ) {
        let mut model = Model::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
        for affinity in affinities {
            model.run(Step::Join(NodeSpec { affinity, capacity: None, accepting: true }, true));
        }
        model.add(keys, weight);
        model.run_dry();
        model.within_one(weight);
        for change in changes {
            match change {
                Change::Join(affinity) => {
                    let spec = NodeSpec { affinity, capacity: None, accepting: true };
                    model.run(Step::Join(spec, false));
                    let newcomer = *model.planner.newcomers.last().unwrap();
                    let before = model.owners();
                    let above: u64 = model.nodes.keys().map(|&n| {
                        model.planner.load(n).saturating_sub(model.planner.quota(n))
                    }).sum();
                    let due = model.planner.quota(NodeIx(newcomer)).min(above) / u64::from(weight);
                    let waiting = model.planner.counters().ready > 0;
                    model.run_dry();
                    let moved: Vec<_> = model.owners().into_iter().filter(|(k, n)| before.get(k) != Some(n)).collect();
                    if !waiting {
                        prop_assert_eq!(moved.len() as u64, due);
                        prop_assert!(moved.iter().all(|(_, n)| n.0 == newcomer));
                    }
                    let mut settled = Vec::new();
                    model.planner.take_settled(&mut settled);
                    prop_assert_eq!(settled, [NodeIx(newcomer)]);
                }
                Change::Leave(n) => {
                    model.run(Step::Leave(n));
                    model.run_dry();
                }
                Change::Add(keys) => {
                    for _ in 0..keys {
                        model.add(1, weight);
                        model.run_dry();
                    }
                }
            }
            model.check();
            model.within_one(weight);
        }
    }

    #[test]
    fn a_full_plan_of_mixed_weights_is_as_even_as_its_heaviest_key_allows(
        affinities in prop::collection::vec(1..4u32, 1..9),
        weights in prop::collection::vec(prop_oneof![1..10u32, 10..100u32, 100..1000u32], 500..800),
    ) {
        let mut model = Model::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
        for &affinity in &affinities {
            model.run(Step::Join(NodeSpec { affinity, capacity: None, accepting: true }, true));
        }
        weights.into_iter().for_each(|weight| model.add(1, weight));
        model.run_dry();
        for &n in model.nodes.keys() {
            let (load, quota) = (model.planner.load(n), model.planner.quota(n));
            prop_assert!(load * 100 <= quota * 102, "{load} of {quota}");
        }
    }

    /// The minimum: each key that lost its owner moves, and each newcomer is brought what its quota asks for, by orphans as
    /// far as there are any. Quotas are the ones that `Planner::quota` gives before anything has moved.
    #[test]
    fn leaves_and_joins_at_once_move_the_fewest_keys_that_can_serve_the_newcomers(
        affinities in prop_oneof![
            (2..120usize).prop_map(|nodes| vec![1000; nodes]),
            prop::collection::vec(prop_oneof![Just(1000u32), Just(500), Just(2000), 1..5000u32], 2..120),
        ],
        keys in 1..3000usize,
        leave in prop::collection::vec(any::<Index>(), 0..5),
        join in prop::collection::vec(prop_oneof![Just(1000u32), 1..5000u32], 0..5),
        more in prop::collection::vec((prop::collection::vec(any::<Index>(), 0..3), prop::collection::vec(1..3000u32, 0..3)), 0..3),
    ) {
        let mut model = Model::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
        for affinity in affinities {
            model.run(Step::Join(NodeSpec { affinity, capacity: None, accepting: true }, true));
        }
        model.add(keys, 1);
        model.run_dry();
        for (leave, join) in std::iter::once((leave, join)).chain(more) {
            for n in leave {
                if model.nodes.len() > 1 {
                    model.run(Step::Leave(n));
                }
            }
            // Without the orphans. The place of a node that left is used again.
            let before = model.owners();
            for affinity in join {
                model.run(Step::Join(NodeSpec { affinity, capacity: None, accepting: true }, false));
            }
            let orphans = model.planner.counters().ready;
            let due: u64 = model.planner.newcomers.iter().map(|&n| model.planner.quota(NodeIx(n))).sum();
            let newcomers = model.planner.newcomers.clone();
            // Who is above its quota gives; survivors that are below it are entitled to nothing.
            model.run_dry();
            let moved = model.owners().into_iter().filter(|(k, n)| before.get(k) != Some(n)).count();
            prop_assert_eq!(moved, orphans.max(due as usize), "{} orphans, {} due to {:?}", orphans, due, newcomers);
            model.check();
            model.within_one(1);
        }
    }

    #[test]
    fn runs_leave_a_full_plan_even_to_two_per_cent_or_nearly_as_even_as_heaviest_first_would(
        affinities in prop_oneof![(1..40usize).prop_map(|nodes| vec![1; nodes]), prop::collection::vec(1..7u32, 1..40)],
        // Of each class some keys or none, so that there are gaps, heavy keys without light ones, and single heavy keys.
        classes in prop::collection::vec((0..20u32, prop_oneof![0..4usize, 0..40usize, 100..400usize, 400..1500usize]), 1..5),
        seed in any::<u32>(),
    ) {
        let mut random = seed;
        let mut weights = Vec::new();
        for (class, keys) in classes {
            for _ in 0..keys {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                weights.push(((1 << class) + (random >> 8) % (1 << class)).min(super::MAX_WEIGHT));
            }
        }
        // Keys of several priorities are all dealt heaviest first. Both ways are off by a part of a key, and not by the same:
        // where nodes have a few dozen keys of nearly one weight that has come to 3.7 % beside 0.7 %.
        let [ours, lpt] = [0, 1].map(|priority| {
            let mut model = Model::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
            for &affinity in &affinities {
                model.run(Step::Join(NodeSpec { affinity, capacity: None, accepting: true }, true));
            }
            for (at, &weight) in weights.iter().enumerate() {
                model.run(Step::Add(1, weight, if at == 0 { priority } else { 0 }));
            }
            model.assign(usize::MAX);
            model.check();
            let fullest = model.nodes.iter().map(|(&n, spec)| model.planner.load(n) as f64 / f64::from(spec.affinity));
            let affinities: u32 = affinities.iter().sum();
            fullest.fold(0.0, f64::max) * f64::from(affinities) / (model.planner.weight().max(1) as f64)
        });
        prop_assert!(ours <= 1.02 || ours <= lpt * 1.05, "{ours}, by heaviest first {lpt}");
    }
}

#[derive(Clone, Debug)]
enum Change {
    Join(u32),
    Leave(Index),
    Add(usize),
}

impl Model {
    fn add(&mut self, keys: usize, weight: u32) {
        for _ in 0..keys {
            self.run(Step::Add(1, weight, 0));
        }
    }

    fn owners(&self) -> BTreeMap<KeyIx, NodeIx> {
        self.keys.keys().filter_map(|&k| Some((k, self.planner.owner(k)?))).collect()
    }

    fn within_one(&self, weight: u32) {
        for &n in self.nodes.keys() {
            let (load, quota) = (self.planner.load(n), self.planner.quota(n));
            if self.planner.counters().ready == 0 {
                assert!(load.abs_diff(quota) <= u64::from(weight), "{n:?} has {load} of {quota}");
            }
        }
    }
}
