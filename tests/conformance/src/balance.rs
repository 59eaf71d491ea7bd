//! What moves for the sake of balance, and that nothing else does.

use std::time::Duration;

use divider_core::{Balance, Claim, MaxInFlight, StopReason, Store};

use super::{Backend, Call, Fault, Trial, seat::Played};

fn counts(nodes: &[Played]) -> Vec<usize> {
    nodes.iter().map(Played::count).collect()
}

fn starts(nodes: &[Played]) -> usize {
    nodes.iter().map(Played::started).sum()
}

pub async fn a_newcomer_gets_its_share_with_the_fewest_moves<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut nodes = vec![trial.node(|_| {}).await.play()];
    nodes[0].add((0..60).map(|i| format!("key {i}"))).await;
    nodes[0].starts_soon(&trial, 60).await;
    for (expected, moves) in [(vec![30, 30], 30), (vec![20, 20, 20], 20)] {
        let before = starts(&nodes);
        nodes.push(trial.node(|_| {}).await.play());
        trial.until("the newcomer has its share", async || counts(&nodes) == expected).await;
        assert_eq!(starts(&nodes) - before, moves, "as few moves as can be");
    }
    // A leave moves the leaver's keys alone.
    let before: usize = nodes[1..].iter().map(Played::started).sum();
    nodes.remove(0).leave().await;
    trial.until("the others have them", async || counts(&nodes) == [30, 30]).await;
    assert_eq!(starts(&nodes) - before, 20);
    assert!(nodes.iter().all(|node| node.stopped(StopReason::Lost) == 0));
}

pub async fn few_keys_are_between_owners_at_a_time<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let configure = |config: &mut divider_core::NodeConfig| config.max_in_flight = MaxInFlight::Keys(3);
    let first = trial.node(configure).await.play_after(Duration::from_millis(10));
    first.add((0..40).map(|i| format!("key {i}"))).await;
    first.starts_soon(&trial, 40).await;
    let second = trial.node(configure).await.play();
    let balanced = async || {
        let stats = first.stats().await.unwrap();
        assert!(stats.stopping <= 3, "{stats:?}");
        assert_eq!(stats.registered, stats.assigned + stats.pending + stats.stopping + stats.quarantined);
        second.count() == 20
    };
    trial.until("the newcomer has its share", balanced).await;
}

pub async fn balance_is_restored_on_request<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let nodes = [trial.node(|_| {}).await.play(), trial.node(|_| {}).await.play()];
    nodes[0].add((0..40).map(|i| format!("key {i}"))).await;
    trial.until("all run", async || counts(&nodes) == [20, 20]).await;
    nodes[0].set_affinity(3000).await.unwrap();
    nodes[1].rebalance().await.unwrap();
    trial.until("balance is restored", async || counts(&nodes) == [30, 10]).await;
    assert_eq!(starts(&nodes), 50, "as few moves as can be");
    assert_eq!(nodes[1].stopped(StopReason::Rebalanced), 10);
}

pub async fn a_group_that_balances_all_the_time_follows_affinity<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let configure = |config: &mut divider_core::NodeConfig| config.balance = Balance::Continuous { tolerance: 0.0 };
    let nodes = [trial.node(configure).await.play(), trial.node(configure).await.play()];
    nodes[0].add((0..40).map(|i| format!("key {i}"))).await;
    trial.until("all run", async || counts(&nodes) == [20, 20]).await;
    nodes[1].set_affinity(3000).await.unwrap();
    trial.until("the division follows", async || counts(&nodes) == [10, 30]).await;
    nodes[1].set_affinity(0).await.unwrap();
    trial.until("also to zero", async || counts(&nodes) == [40, 0]).await;
}

pub async fn with_a_stop_timeout_a_stuck_program_loses_the_key<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let configure = |config: &mut divider_core::NodeConfig| (config.lease, config.stop_timeout) = (lease, Some(lease));
            let mut stuck = trial.node(configure).await;
            stuck.add(&["a"]).await;
            let start = stuck.start().await;
            let other = trial.node(configure).await.play();
            stuck.send_stop_processing(&start.key, start.token).await.unwrap();
            stuck.stop_of(&start, StopReason::Rebalanced).await;
            // That is the bargain of this setting: the next owner may start before the stuck one has heard of it.
            stuck.history.let_go(stuck.player, &start.key, start.token);
            trial.until("it runs elsewhere", async || other.runs(&start.key).is_some()).await;
            trial.until("it is known", async || !stuck.is_current(&start.key, start.token)).await;
            assert_eq!((stuck.stop_at_hand(), stuck.assigned().len()), (None, 0));
            stuck.confirm(&start.key, start.token).await;
            assert!(other.runs(&start.key).is_some());
        })
        .await;
}

pub async fn an_unconfirmed_stop_is_waited_for<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let mut stuck = trial.node(|config| config.lease = lease).await;
            stuck.add(&["a"]).await;
            let start = stuck.start().await;
            let other = trial.node(|config| config.lease = lease).await.play();
            stuck.send_stop_processing(&start.key, start.token).await.unwrap();
            let stop = stuck.stop().await;
            tokio::time::sleep(lease * 2).await;
            // Otherwise its next session may well be the one that the key is given to.
            assert!(stuck.is_current(&stop.key, stop.token), "the lease was lost, and nothing can be told");
            assert_eq!(other.started(), 0, "never on a time limit by default");
            stuck.confirm(&stop.key, stop.token).await;
            other.starts_soon(&trial, 1).await;
        })
        .await;
}

pub async fn a_stable_group_does_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let (first, one) = trial.faulty_node(|config| config.lease = lease).await;
    let (second, two) = trial.faulty_node(|config| config.lease = lease).await;
    let nodes = [first.play(), second.play()];
    nodes[0].add((0..100).map(|i| format!("key {i}"))).await;
    trial.until("all run", async || counts(&nodes) == [50, 50]).await;
    let store = trial.store().await;
    store.open().await.unwrap();
    // Once both are settled there is nothing left to do.
    trial.until_settled().await;
    let sessions = [nodes[0].inner.session(), nodes[1].inner.session()];
    let looks = async || {
        let standing = store.poll(sessions[0].unwrap(), Claim::Follow).await;
        standing.map(|standing| (standing.revision, standing.token)).ok()
    };
    let before = looks().await;
    let writes = [one, two].map(|faults| faults.always(Fault::Count, |call| matches!(call, Call::Apply(_))));
    tokio::time::sleep(lease * 2).await;
    let same = sessions == [nodes[0].inner.session(), nodes[1].inner.session()];
    // On a machine so busy that a lease was lost, nothing can be said.
    if same {
        assert_eq!(looks().await, before);
        assert_eq!((writes[0].hits(), writes[1].hits(), starts(&nodes)), (0, 0, 100));
    }
}
