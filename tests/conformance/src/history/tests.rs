use divider_core::{Blob, Holding, MemoryStore, Node};

use super::*;

fn history() -> (History, Arc<dyn Divider>) {
    let node: Arc<dyn Divider> = Arc::new(Node::builder(MemoryStore::new()).build().unwrap());
    let history = History::default();
    history.player(&node);
    history.player(&node);
    (history, node)
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn start(name: &str, token: u64) -> Event {
    let (payload, checkpoint) = (Blob::default(), Blob::default());
    let (attempts, weight, priority) = (1, 1, 0);
    let holding = Holding {
        key: key(name),
        token: Token(token),
        attempts,
        generation: 1,
        failures: 0,
        weight,
        priority,
        payload,
        checkpoint,
        stopping: None,
    };
    Event::Start(holding.into())
}

fn stop(name: &str, token: u64, reason: StopReason) -> Event {
    Event::Stop(Stop::new(key(name), Token(token), reason))
}

fn broken(events: &[Event]) -> Option<String> {
    let (history, _node) = history();
    events.iter().for_each(|event| history.read(0, event));
    history.violation()
}

#[test]
fn a_life_by_the_rules_passes() {
    let (history, _node) = history();
    for token in 1..4 {
        history.read(0, &start("a", token * 2));
        history.read(0, &stop("a", token * 2, StopReason::Rebalanced));
        history.let_go(0, &key("a"), Token(token * 2));
        history.read(1, &start("a", token * 2 + 1));
        history.completing(1, &key("a"), Token(token * 2 + 1));
        history.read(1, &stop("a", token * 2 + 1, StopReason::Removed));
        history.completed(1, &key("a"), Token(token * 2 + 1));
    }
    history.check();
}

#[test]
fn every_break_of_the_rules_is_found() {
    let rebalanced = StopReason::Rebalanced;
    let lives: [&[Event]; 8] = [
        &[start("a", 1), start("a", 2)],
        &[start("a", 1), stop("a", 1, rebalanced), start("a", 2)],
        &[stop("a", 1, rebalanced)],
        &[start("a", 2), stop("a", 1, rebalanced)],
        &[start("a", 1), stop("a", 1, rebalanced), stop("a", 1, StopReason::Lost)],
        &[start("a", 1), start("b", 2), stop("a", 1, StopReason::Lost), start("c", 3)],
        &[start("a", 1), start("b", 2), stop("b", 1, rebalanced)],
        &[start("a", 1), start("a", 1)],
    ];
    for life in lives {
        assert!(broken(life).is_some(), "{life:?}");
    }
}

#[test]
fn a_token_that_falls_or_is_given_twice_is_found() {
    for token in [1, 2] {
        let (history, _node) = history();
        history.read(0, &start("a", 2));
        history.read(0, &stop("a", 2, StopReason::Removed));
        history.let_go(0, &key("a"), Token(2));
        history.read(0, &start("a", token));
        assert!(history.violation().unwrap().contains("token"));
    }
}

#[tokio::test]
async fn two_believers_are_found() {
    let (history, node) = history();
    node.start().await.unwrap();
    node.add_work(vec![key("a").into()]).await.unwrap();
    let held = node.start_processing().next().await.unwrap();
    let token = held.token.0;
    history.read(0, &Event::Start(held));
    // Whoever starts it under a later token, while the first still believes in the earlier one.
    history.read(1, &start("a", token + 1));
    assert!(history.violation().unwrap().contains("no two nodes"));
}
