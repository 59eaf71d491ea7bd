//! The planner by its public face: what it promises, case by case.

use divider_core::{
    Balance, MaxInFlight,
    sim::{KeyIx, KeyState, NodeIx, NodeSpec, Planner},
};

fn node(affinity: u32) -> NodeSpec {
    NodeSpec { affinity, capacity: None, accepting: true }
}

fn on_join() -> Planner {
    Planner::new(Balance::OnJoin, MaxInFlight::Keys(u32::MAX))
}

fn board(affinities: &[u32]) -> (Planner, Vec<NodeIx>) {
    let mut planner = on_join();
    let nodes = affinities.iter().map(|&affinity| planner.join(node(affinity), true)).collect();
    (planner, nodes)
}

fn add(planner: &mut Planner, weights: impl IntoIterator<Item = u32>) -> Vec<KeyIx> {
    let add_one = |weight| {
        let k = planner.add_key(weight, 0);
        planner.ready(k, None);
        k
    };
    weights.into_iter().map(add_one).collect()
}

/// Assigns all that can be, and makes it so.
fn assign(planner: &mut Planner) -> Vec<(KeyIx, NodeIx)> {
    let mut out = Vec::new();
    planner.assignments(usize::MAX, &mut out);
    for &(k, n) in &out {
        planner.own(k, n);
    }
    out
}

/// Moves until nothing moves any more, with every revoke and assignment done at once.
fn balance(planner: &mut Planner) -> usize {
    let mut moved = 0;
    for _ in 0..10_000 {
        let mut out = Vec::new();
        planner.moves(&mut out);
        if out.is_empty() {
            return moved;
        }
        moved += out.len();
        for k in out {
            planner.stopping(k);
            let old = planner.owner(k);
            planner.ready(k, old);
        }
        assign(planner);
    }
    panic!("moves never end");
}

fn loads(planner: &Planner, nodes: &[NodeIx]) -> Vec<u64> {
    nodes.iter().map(|&n| planner.load(n)).collect()
}

fn settled(planner: &mut Planner) -> Vec<NodeIx> {
    let mut out = Vec::new();
    planner.take_settled(&mut out);
    out
}

fn within_one_key_of_its_exact_share(planner: &Planner, nodes: &[NodeIx], affinities: &[u32]) {
    let loads = loads(planner, nodes);
    let (sum, total): (u64, u64) = (loads.iter().sum(), affinities.iter().map(|&a| u64::from(a)).sum());
    for (load, &affinity) in loads.iter().zip(affinities) {
        let exact = u128::from(sum) * u128::from(affinity);
        let (low, high) = (exact / u128::from(total), exact.div_ceil(u128::from(total)));
        assert!((low..=high).contains(&u128::from(*load)), "{loads:?} by {affinities:?}");
    }
}

#[test]
fn keys_follow_affinity_in_bulk() {
    let (mut planner, nodes) = board(&[1000, 2000, 3000, 0, 1000]);
    add(&mut planner, std::iter::repeat_n(1, 700));
    assert_eq!(assign(&mut planner).len(), 700);
    assert_eq!(loads(&planner, &nodes), [100, 200, 300, 0, 100]);
}

#[test]
fn keys_follow_affinity_one_at_a_time() {
    let top = i32::MAX as u32;
    let mut small = vec![6; 100];
    small.push(1000);
    for affinities in
        [vec![1000, 2000, 3000, 0, 1000], vec![1, 1], vec![top, 1, 1, 0], vec![top; 3], vec![7, 11, 13, 1000], small]
    {
        let (mut planner, nodes) = board(&affinities);
        for _ in 0..500 {
            add(&mut planner, [1]);
            assign(&mut planner);
            within_one_key_of_its_exact_share(&planner, &nodes, &affinities);
        }
    }
}

#[test]
fn equal_keys_of_any_weight_are_counted_as_keys() {
    let (mut planner, nodes) = board(&[1, 1, 1]);
    add(&mut planner, std::iter::repeat_n(777, 100));
    assign(&mut planner);
    assert_eq!(loads(&planner, &nodes), [34 * 777, 33 * 777, 33 * 777]);
    let late = planner.join(node(1), false);
    assert_eq!(balance(&mut planner), 25);
    assert_eq!(planner.load(late), 25 * 777);
}

#[test]
fn a_join_moves_exactly_the_newcomers_quota() {
    let (mut planner, nodes) = board(&[1000, 2000, 3000, 0, 1000]);
    add(&mut planner, std::iter::repeat_n(1, 800));
    assign(&mut planner);
    let before = loads(&planner, &nodes);
    let late = planner.join(node(1000), false);
    assert_eq!(balance(&mut planner), 100);
    assert_eq!(planner.load(late), 100);
    for (now, before) in loads(&planner, &nodes).iter().zip(before) {
        assert!(*now <= before);
    }
    assert_eq!(settled(&mut planner), [late]);
    assert_eq!(balance(&mut planner), 0);
}

#[test]
fn several_newcomers_share_the_moves() {
    let (mut planner, nodes) = board(&[1, 1]);
    add(&mut planner, std::iter::repeat_n(1, 100));
    assign(&mut planner);
    let late = [planner.join(node(1), false), planner.join(node(2), false)];
    assert_eq!(balance(&mut planner), 60);
    assert_eq!(loads(&planner, &nodes), [20, 20]);
    assert_eq!(loads(&planner, &late), [20, 40]);
    assert_eq!(settled(&mut planner), late);
}

#[test]
fn a_leave_moves_only_the_leavers_keys() {
    let (mut planner, nodes) = board(&[1; 10]);
    let keys = add(&mut planner, std::iter::repeat_n(1, 1000));
    assign(&mut planner);
    let before: Vec<_> = keys.iter().map(|&k| planner.owner(k)).collect();
    planner.leave(nodes[3]);
    assert_eq!(assign(&mut planner).len(), 100);
    assert_eq!(balance(&mut planner), 0);
    for (k, before) in keys.iter().zip(before) {
        assert!(before == Some(nodes[3]) || planner.owner(*k) == before);
    }
    assert!(nodes.iter().all(|&n| n == nodes[3] || (111..=112).contains(&planner.load(n))));
}

#[test]
fn affinity_alone_moves_nothing_and_rebalance_does() {
    let (mut planner, nodes) = board(&[1, 1]);
    add(&mut planner, std::iter::repeat_n(1, 100));
    assign(&mut planner);
    planner.set_node(nodes[0], node(3));
    assert_eq!(balance(&mut planner), 0);
    planner.rebalance();
    assert_eq!(balance(&mut planner), 25);
    assert_eq!(loads(&planner, &nodes), [75, 25]);
}

/// The fewest keys that any plan could move: those that lost their owner, or what the newcomers lack of their quotas, if that
/// is more.
fn fewest(planner: &Planner, nodes: &[NodeIx], orphans: usize) -> usize {
    let newcomers = nodes.iter().copied().filter(|&n| planner.is_newcomer(n));
    let lacking: u64 = newcomers.map(|n| planner.quota(n).saturating_sub(planner.load(n))).sum();
    orphans.max(lacking as usize)
}

#[test]
fn no_plan_for_a_join_or_a_leave_moves_fewer_keys() {
    let uneven = |n: usize| [1000, 2000, 3000, 500, 1000][n % 5];
    let all = [(0, 1), (1, 0), (2, 2), (3, 1), (1, 3)];
    let boards = [
        (vec![1000; 50], 10_000),
        ((0..50).map(uneven).collect::<Vec<_>>(), 10_000),
        (vec![1000; 1000], 50_000),
        ((0..1000).map(uneven).collect(), 50_000),
    ];
    for (affinities, keys) in boards {
        for (out, new) in all {
            let (mut planner, nodes) = board(&affinities);
            add(&mut planner, std::iter::repeat_n(1, keys));
            assign(&mut planner);
            for n in nodes.iter().skip(10).take(out) {
                planner.leave(*n);
            }
            let mut all = nodes.clone();
            all.extend((0..new).map(|_| planner.join(node(1000), false)));
            // The place of one that left is used again.
            all.sort();
            all.dedup();
            let fewest = fewest(&planner, &all, planner.counters().ready);
            let moved = assign(&mut planner).len() + balance(&mut planner);
            assert_eq!(moved, fewest, "{out} out, {new} in, {} nodes", nodes.len());
        }
    }
}

#[test]
fn newcomers_share_a_batch_that_is_less_than_all_of_them_lack() {
    let mut planner = on_join();
    let nodes: Vec<_> = [1, 1, 2].iter().map(|&affinity| planner.join(node(affinity), false)).collect();
    add(&mut planner, std::iter::repeat_n(1, 4000));
    let mut out = Vec::new();
    planner.assignments(400, &mut out);
    assert_eq!(loads(&planner, &nodes), [100, 100, 200]);
}

#[test]
fn continuous_relieves_a_node_beyond_the_tolerance() {
    let mut planner = Planner::new(Balance::Continuous { tolerance: 0.2 }, MaxInFlight::Percent(10));
    let nodes: Vec<_> = (0..2).map(|_| planner.join(node(10), true)).collect();
    add(&mut planner, std::iter::repeat_n(1, 100));
    assign(&mut planner);
    planner.set_node(nodes[0], node(11));
    assert_eq!(balance(&mut planner), 0, "52 to 48 is within the tolerance");
    planner.set_node(nodes[0], node(30));
    assert!(balance(&mut planner) >= 20);
    assert!(planner.load(nodes[1]) <= 30);
    planner.set_node(nodes[1], node(0));
    balance(&mut planner);
    assert_eq!(loads(&planner, &nodes), [100, 0], "no affinity is no quota");
}

#[test]
fn a_draining_node_is_left_alone() {
    for policy in [Balance::OnJoin, Balance::Continuous { tolerance: 0.0 }] {
        let mut planner = Planner::new(policy, MaxInFlight::Keys(100));
        let drained = planner.join(node(1), true);
        add(&mut planner, [1; 10]);
        assign(&mut planner);
        planner.set_node(drained, NodeSpec { accepting: false, ..node(1) });
        let other = planner.join(node(1), false);
        assert_eq!(balance(&mut planner), 0);
        assert_eq!(planner.quota(drained), 0);
        add(&mut planner, [1; 3]);
        assert!(assign(&mut planner).iter().all(|&(_, n)| n == other));
    }
}

#[test]
fn moves_are_paced_and_new_keys_are_not() {
    let mut planner = Planner::new(Balance::OnJoin, MaxInFlight::Keys(3));
    planner.join(node(1), true);
    add(&mut planner, [1; 20]);
    assign(&mut planner);
    let late = planner.join(node(1), false);
    let mut out = Vec::new();
    planner.moves(&mut out);
    assert_eq!(out.len(), 3);
    planner.moves(&mut out);
    assert_eq!(out.len(), 3, "three are in flight");
    for &k in &out {
        planner.stopping(k);
    }
    add(&mut planner, [1; 2]);
    assert_eq!(assign(&mut planner).len(), 2);
    planner.ready(out[0], None);
    planner.moves(&mut out);
    assert_eq!(out.len(), 3, "ready is still between owners");
    assert_eq!(assign(&mut planner), [(out[0], late)]);
    planner.moves(&mut out);
    assert_eq!(out.len(), 4);
    assert_eq!(planner.counters().in_flight, 3);
    assert!(settled(&mut planner).is_empty());
}

#[test]
fn a_moved_key_goes_to_its_target_even_if_another_is_emptier_by_then() {
    let (mut planner, _) = board(&[1]);
    add(&mut planner, [1; 4]);
    assign(&mut planner);
    let late = planner.join(node(1), false);
    let mut out = Vec::new();
    planner.moves(&mut out);
    planner.join(node(1000), true);
    for &k in &out {
        planner.stopping(k);
    }
    assert_eq!(planner.load(late), 2, "they count for their target all the way");
    for &k in &out {
        planner.ready(k, None);
    }
    assert_eq!(assign(&mut planner), [(out[0], late), (out[1], late)]);
}

#[test]
fn a_newcomer_is_settled_only_when_its_keys_have_arrived() {
    let (mut planner, _) = board(&[1]);
    add(&mut planner, [1; 4]);
    assign(&mut planner);
    let late = planner.join(node(1), false);
    let mut out = Vec::new();
    for _ in 0..2 {
        planner.moves(&mut out);
        assert_eq!(settled(&mut planner), []);
        out.iter().for_each(|&k| planner.stopping(k));
    }
    out.iter().for_each(|&k| planner.ready(k, None));
    assign(&mut planner);
    planner.moves(&mut out);
    assert_eq!(settled(&mut planner), [late]);
    assert!(!planner.is_newcomer(late));
}

#[test]
fn a_refused_revoke_ends_the_move() {
    let (mut planner, nodes) = board(&[1]);
    add(&mut planner, [1; 4]);
    assign(&mut planner);
    planner.join(node(1), false);
    let mut out = Vec::new();
    planner.moves(&mut out);
    assert_eq!(loads(&planner, &nodes), [2]);
    planner.own(out[0], nodes[0]);
    assert_eq!(planner.counters().in_flight, 1);
    assert_eq!(loads(&planner, &nodes), [3]);
}

#[test]
fn the_target_of_a_move_may_die_meanwhile() {
    let (mut planner, nodes) = board(&[1, 1]);
    add(&mut planner, [1; 6]);
    assign(&mut planner);
    let late = planner.join(node(1), false);
    let mut out = Vec::new();
    planner.moves(&mut out);
    assert_eq!(out.len(), 2);
    planner.stopping(out[0]);
    planner.leave(late);
    let again = planner.join(node(0), true);
    assert_ne!(again, late, "a session that keys still name is not mixed up with a new one");
    for &k in &out {
        planner.ready(k, None);
    }
    assign(&mut planner);
    assert_eq!(loads(&planner, &nodes), [3, 3]);
    assert_eq!(planner.counters().in_flight, 0);
    assert_eq!(planner.join(node(0), true), late, "and now it is free");
}

#[test]
fn a_key_given_up_goes_elsewhere_if_anywhere_takes_it() {
    let (mut planner, nodes) = board(&[1000, 1]);
    let k = add(&mut planner, [1])[0];
    planner.ready(k, Some(nodes[0]));
    assert_eq!(assign(&mut planner), [(k, nodes[1])]);
    planner.ready(k, Some(nodes[1]));
    assert_eq!(assign(&mut planner), [(k, nodes[0])]);
    planner.set_node(nodes[1], NodeSpec { capacity: Some(0), ..node(1) });
    planner.ready(k, Some(nodes[0]));
    assert_eq!(assign(&mut planner), [(k, nodes[0])], "nowhere else");
}

#[test]
fn keys_wait_until_there_is_room() {
    let mut planner = on_join();
    let keys = add(&mut planner, [1; 5]);
    assert!(assign(&mut planner).is_empty());
    let a = planner.join(NodeSpec { capacity: Some(2), ..node(1) }, true);
    assert_eq!(assign(&mut planner), [(keys[0], a), (keys[1], a)]);
    assert!(assign(&mut planner).is_empty());
    planner.stopping(keys[0]);
    assert!(assign(&mut planner).is_empty(), "a key being stopped is still there");
    planner.remove_key(keys[0]);
    assert_eq!(assign(&mut planner), [(keys[2], a)]);
    planner.set_node(a, NodeSpec { capacity: Some(3), ..node(1) });
    assert_eq!(assign(&mut planner), [(keys[3], a)]);
    let b = planner.join(node(1), false);
    assert_eq!(assign(&mut planner), [(keys[4], b)]);
}

#[test]
fn a_batch_fills_around_nodes_that_have_too_much_or_too_little_room() {
    let mut planner = on_join();
    let full = planner.join(node(1), true);
    add(&mut planner, [1; 100]);
    assign(&mut planner);
    let small = planner.join(NodeSpec { capacity: Some(10), ..node(1) }, true);
    let rest = [planner.join(node(1), true), planner.join(node(2), true)];
    add(&mut planner, [1; 70]);
    assert_eq!(assign(&mut planner).len(), 70);
    assert_eq!(loads(&planner, &[full, small]), [100, 10]);
    assert_eq!(loads(&planner, &rest), [20, 40]);
}

#[test]
fn higher_priority_first_then_first_come_first_served() {
    let mut planner = on_join();
    let n = planner.join(NodeSpec { capacity: Some(3), ..node(1) }, true);
    let keys: Vec<_> = [0, 5, 0, 5].iter().map(|&priority| planner.add_key(1, priority)).collect();
    keys.iter().for_each(|&k| planner.ready(k, None));
    assert_eq!(assign(&mut planner), [(keys[1], n), (keys[3], n), (keys[0], n)]);
}

#[test]
fn the_first_keys_of_a_big_batch_do_not_all_land_on_one_node() {
    let (mut planner, nodes) = board(&[1; 4]);
    for i in 0..400 {
        let k = planner.add_key(1, if i < 40 { 9 } else { 0 });
        planner.ready(k, None);
    }
    let urgent = assign(&mut planner)[..40].iter().filter(|&&(_, n)| n == nodes[0]).count();
    assert!(urgent <= 20, "{urgent}");
    assert_eq!(loads(&planner, &nodes), [100; 4]);
}

#[test]
fn parked_keys_count_for_nobody() {
    let (mut planner, nodes) = board(&[1, 1]);
    let keys = add(&mut planner, [1; 10]);
    assign(&mut planner);
    for &k in &keys {
        if planner.owner(k) == Some(nodes[0]) {
            planner.park(k);
        }
    }
    assert_eq!(loads(&planner, &nodes), [0, 5]);
    assert_eq!(
        [planner.quota(nodes[0]), planner.quota(nodes[1])],
        [2, 3],
        "five keys, and the tie goes to whoever has more"
    );
}

#[test]
fn facts_win_over_proposals() {
    let (mut planner, nodes) = board(&[1, 1]);
    let k = add(&mut planner, [1])[0];
    let mut out = Vec::new();
    planner.assignments(1, &mut out);
    assert_eq!(planner.state(k), Some(KeyState::Proposed(nodes[0])));
    planner.own(k, nodes[1]);
    assert_eq!(loads(&planner, &nodes), [0, 1]);
    planner.leave(nodes[1]);
    planner.own(k, nodes[1]);
    assert_eq!(planner.state(k), Some(KeyState::Ready), "the dead own nothing");
}

#[test]
fn mixed_weights_are_even_to_two_per_cent() {
    for affinities in [vec![1; 20], vec![1, 2, 3, 4, 5, 0, 7]] {
        let (mut planner, nodes) = board(&affinities);
        let weights = (0..2000u32).map(|i| 10u32.pow(i * 7 % 4) * (1 + i * 13 % 9));
        add(&mut planner, weights);
        assert_eq!(assign(&mut planner).len(), 2000);
        for (&n, &affinity) in nodes.iter().zip(&affinities) {
            let exact = planner.weight() * u64::from(affinity) / affinities.iter().map(|&a| u64::from(a)).sum::<u64>();
            assert!(planner.load(n) * 100 <= exact * 102, "{} of {exact}", planner.load(n));
        }
        let late = planner.join(node(1), false);
        balance(&mut planner);
        assert_eq!(settled(&mut planner), [late]);
        assert!(planner.load(late).abs_diff(planner.quota(late)) * 50 <= planner.quota(late));
        assert_eq!(balance(&mut planner), 0);
    }
}

#[test]
fn fifty_keys_a_node_over_three_orders_of_magnitude_are_even_to_two_per_cent() {
    for affinities in [[1000; 5], [1000, 2000, 3000, 500, 1000]] {
        let (mut planner, nodes) = board(&affinities.repeat(80));
        // Evenly over the logarithms, by the golden ratio.
        let weight = |k: u32| 10f64.powf(f64::from(k.wrapping_mul(2_654_435_769)) / f64::from(u32::MAX) * 3.0) as u32;
        add(&mut planner, (0..20_000).map(weight));
        assert_eq!(assign(&mut planner).len(), 20_000);
        for n in nodes {
            assert!(planner.load(n) * 100 <= planner.quota(n) * 102, "{} of {}", planner.load(n), planner.quota(n));
        }
    }
}

#[test]
fn a_million_keys_cost_at_most_sixty_bytes_each() {
    let (mut planner, _) = board(&[1; 100]);
    let keys = 1_000_000;
    for _ in 0..keys {
        planner.add_key(1, 0);
    }
    assert!(planner.heap_bytes() <= 60 * keys, "{}", planner.heap_bytes() / keys);
}
