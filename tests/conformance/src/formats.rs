//! Old programs beside new ones: a rolling deploy, its way back, and who is too old afterwards.

use std::time::Duration;

use divider_core::{
    Divider, Error, NodeConfig, Op, Outcome, Refusal, StoreError, Term,
    format::{NEWEST, OLDEST},
};

use super::{Backend, Clerk, Trial, seat::Played};

const KEYS: usize = 30;

/// A node of a program that reads no newer format. The group steps up as soon as it may.
async fn node<B: Backend>(trial: &Trial<B>, reads: u16) -> Played {
    trial.node(program(reads)).await.play()
}

fn program(reads: u16) -> impl FnOnce(&mut NodeConfig) {
    move |config| (config.reads, config.step_after) = (reads, Duration::ZERO)
}

/// The format that the group is written in.
async fn written<B: Backend>(trial: &Trial<B>) -> u16 {
    let store = trial.store().await;
    divider_core::Store::open(&store).await.unwrap();
    divider_core::Store::scan(&store, None).await.unwrap().group.format
}

/// One after the other is replaced, and all keys run all the time; the history is checked at the end.
async fn roll<B: Backend>(trial: &Trial<B>, kept: &Played, nodes: &mut Vec<Played>, reads: u16) {
    for _ in 0..nodes.len() {
        nodes.push(node(trial, reads).await);
        nodes.remove(0).leave().await;
        all_run(trial, nodes.iter().chain([kept])).await;
    }
}

async fn all_run<'a, B: Backend>(trial: &Trial<B>, nodes: impl Iterator<Item = &'a Played> + Clone) {
    trial.until("all keys run", async || nodes.clone().map(Played::count).sum::<usize>() == KEYS).await;
}

pub async fn a_deploy_rolls_from_an_old_format_to_a_new_one_and_back_before_the_step<B: Backend>(trial: Trial<B>) {
    // A group begins in the format of whoever joins first.
    let mut first = Clerk::reading(&trial, OLDEST).await;
    first.lead().await;
    first.leave().await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(node(&trial, OLDEST).await);
    }
    nodes[0].add((0..KEYS).map(|i| format!("key {i}"))).await;
    all_run(&trial, nodes.iter()).await;
    // One old program is left, so the group stays as it can read it.
    let kept = nodes.remove(0);
    roll(&trial, &kept, &mut nodes, NEWEST).await;
    assert_eq!(written(&trial).await, OLDEST);
    roll(&trial, &kept, &mut nodes, OLDEST).await;
    roll(&trial, &kept, &mut nodes, NEWEST).await;
    assert_eq!(written(&trial).await, OLDEST);
    kept.leave().await;
    trial.until("the group steps up", async || written(&trial).await == NEWEST).await;
    let late = trial.seat(trial.store().await, program(OLDEST));
    match late.inner.start().await {
        Err(Error::Store(StoreError::TooOld { needs: NEWEST, reads: OLDEST })) => {}
        other => panic!("an old program was not told that it is: {other:?}"),
    }
    all_run(&trial, nodes.iter()).await;
}

pub async fn an_operator_lets_a_group_step_up_whoever_leads<B: Backend>(trial: Trial<B>) {
    let old = Clerk::reading(&trial, OLDEST).await;
    let mut boss = Clerk::join(&trial).await;
    boss.lead().await;
    let seat = trial.node(|_| {}).await;
    assert!(!seat.step_up().await.unwrap(), "a program of before is there");
    assert_eq!(written(&trial).await, OLDEST);
    old.leave().await;
    // An operator is nobody who has led before.
    let step = Op::Step { term: Term(boss.term.0 + 1), format: NEWEST };
    assert_eq!(boss.one(step).await, Outcome::Refused(Refusal::OldTerm));
    assert_eq!(written(&trial).await, OLDEST);
    for _ in 0..2 {
        assert!(seat.step_up().await.unwrap());
        assert_eq!(written(&trial).await, NEWEST);
    }
    boss.leave().await;
}
