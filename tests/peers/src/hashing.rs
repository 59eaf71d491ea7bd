//! Hashing crates beside the planner: 10,000 string keys on 50 nodes.

use std::{collections::HashMap, hint::black_box, time::Instant};

use divider_core::{
    Balance, MaxInFlight,
    sim::{KeyIx, NodeIx, NodeSpec, Planner},
};

use crate::say;

const KEYS: usize = 10_000;
const NODES: usize = 50;
const ROUNDS: usize = 21;

/// The median time of a placement, how full the fullest node is, and how many keys move when a node leaves, for each key
/// that it had.
fn measure<N: Eq + std::hash::Hash + Copy>(name: &str, place: impl Fn(bool) -> Vec<N>, gone: N) {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            black_box(place(false));
            began.elapsed()
        })
        .collect();
    times.sort();
    let before = place(false);
    let mut loads: HashMap<N, usize> = HashMap::new();
    before.iter().for_each(|node| *loads.entry(*node).or_default() += 1);
    let fullest = loads.values().copied().max().unwrap() as f64 * NODES as f64 / KEYS as f64;
    let after = place(true);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    say(name, "10,000 keys placed on 50 nodes", times[ROUNDS / 2].as_secs_f64(), "s");
    say(name, "fullest node / mean", fullest, "ratio");
    say(name, "keys moved when a node leaves / keys that it had", moved as f64 / loads[&gone] as f64, "ratio");
}

pub fn run() {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("tenant-{key:08}")).collect();
    let nodes: Vec<usize> = (0..NODES).collect();
    let last = NODES - 1;
    let living = |without: bool| &nodes[..NODES - usize::from(without)];

    measure(
        "hash-rings 1.1, rendezvous",
        |without| {
            let mut ring = hash_rings::rendezvous::Ring::with_hasher(Steady::default());
            living(without).iter().for_each(|node| ring.insert_node(node, 1));
            keys.iter().map(|key| *ring.get_node(key)).collect()
        },
        last,
    );
    measure(
        "hash-rings 1.1, consistent, 100 points a node",
        |without| {
            let mut ring = hash_rings::consistent::Ring::with_hasher(Steady::default());
            living(without).iter().for_each(|node| ring.insert_node(node, 100));
            keys.iter().map(|key| *ring.get_node(key)).collect()
        },
        last,
    );
    measure(
        "hashring 0.3, consistent, 100 points a node",
        |without| {
            let mut ring = hashring::HashRing::new();
            ring.batch_add(living(without).iter().flat_map(|node| (0..100).map(|point| (*node, point))).collect());
            keys.iter().map(|key| ring.get(key).unwrap().0).collect()
        },
        last,
    );
    measure(
        "anchorhash 0.2",
        |without| {
            let mut anchor = anchorhash::Builder::with_hasher(Steady::default())
                .with_resources(nodes.iter().copied())
                .build::<&String>(64);
            if without {
                anchor.remove_resource(&last).unwrap();
            }
            keys.iter().map(|key| *anchor.get_resource(key).unwrap()).collect()
        },
        last,
    );
    ours(&keys);
}

/// Each run hashes alike.
type Steady = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// The planner, with a name for every key as the others have it.
fn ours(keys: &[String]) {
    struct Board {
        planner: Planner,
        nodes: Vec<NodeIx>,
        names: HashMap<String, KeyIx>,
        out: Vec<(KeyIx, NodeIx)>,
    }
    let full = || {
        let mut planner = Planner::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX));
        let spec = NodeSpec { affinity: 1000, capacity: None, accepting: true };
        let nodes = (0..NODES).map(|_| planner.join(spec, true)).collect();
        let mut board = Board { planner, nodes, names: HashMap::new(), out: Vec::new() };
        for key in keys {
            let k = board.planner.add_key(1, 0);
            board.planner.ready(k, None);
            board.names.insert(key.clone(), k);
        }
        board
    };
    let plan = |board: &mut Board| {
        board.planner.assignments(usize::MAX, &mut board.out);
        let placed: HashMap<KeyIx, NodeIx> = board.out.iter().copied().collect();
        board.out.drain(..).for_each(|(key, node)| board.planner.own(key, node));
        placed
    };
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            let mut board = full();
            board.planner.assignments(usize::MAX, &mut board.out);
            black_box(&board.out);
            began.elapsed()
        })
        .collect();
    times.sort();
    let mut board = full();
    let before = plan(&mut board);
    let mut loads: HashMap<NodeIx, usize> = HashMap::new();
    before.values().for_each(|node| *loads.entry(*node).or_default() += 1);
    let gone = board.nodes[NODES - 1];
    board.planner.leave(gone);
    let moved = plan(&mut board).len();
    let name = "Divider's planner, from nothing, names included";
    say(name, "10,000 keys placed on 50 nodes", times[ROUNDS / 2].as_secs_f64(), "s");
    say(name, "fullest node / mean", *loads.values().max().unwrap() as f64 * NODES as f64 / KEYS as f64, "ratio");
    say(name, "keys moved when a node leaves / keys that it had", moved as f64 / loads[&gone] as f64, "ratio");
}
