//! Too much of something, and what is said at a bad moment: against members that run.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::{Blob, Group, Key, Op, Store, StoreError, Topic, Work, limits};
use futures_util::future::join_all;

use crate::{
    RaftStore,
    ground::ThisMachine,
    link::{Class, Dialer, LinkError, Links, Target},
    security::Security,
    server,
    wire::{Answer, Call, Fault, Query, Request, Status},
};

const LIMIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(20);

fn addresses(count: usize) -> Vec<String> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn voter(name: &str, address: &str, seeds: &[String]) -> RaftStore {
    let builder = RaftStore::builder("/test/").unwrap().name(name).unwrap().in_memory();
    builder.listen(address).seeds(seeds).plaintext().build().unwrap()
}

async fn opened(seeds: &[String]) -> Vec<RaftStore> {
    let stores: Vec<_> = seeds.iter().enumerate().map(|(at, seed)| voter(&format!("node-{at}"), seed, seeds)).collect();
    join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);
    stores
}

/// What anybody has who reaches the port.
fn links() -> Links {
    Links::new(Dialer {
        cluster: "divider".into(),
        cluster_id: Arc::default(),
        me: None,
        security: Security::Plaintext,
        ground: Arc::new(ThisMachine),
        book: Default::default(),
        too_old: Default::default(),
    })
}

async fn ask(address: &str, call: Call) -> Answer {
    links().call(&Target::seed(address), Class::Calls, &Request::Call(call), LIMIT).await.unwrap()
}

async fn status(address: &str) -> Status {
    match ask(address, Call::Status).await {
        Answer::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

async fn wait(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn group() -> Group {
    Group::new("/test/").unwrap()
}

/// A request of some bytes could ask for any number of copies of what is large.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_more_records_at_once_than_a_batch_has_ops() {
    let seeds = addresses(1);
    let stores = opened(&seeds).await;
    let key = Key::new("k").unwrap();
    stores[0].apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    for query in [Query::Records, Query::Owners] {
        let many = |count| Call::Read { group: group(), query: query(vec![key.clone(); count]) };
        let answer = ask(&seeds[0], many(limits::MAX_BATCH_OPS + 1)).await;
        let Answer::Fault(Fault::Refused(problem)) = answer else { panic!("{answer:?}") };
        assert!(problem.contains(&limits::MAX_BATCH_OPS.to_string()), "{problem}");
        assert!(!matches!(ask(&seeds[0], many(limits::MAX_BATCH_OPS)).await, Answer::Fault(_)));
    }
    // A program may ask for as many as it likes.
    let client = RaftStore::builder("/test/").unwrap().client(&seeds).plaintext().build().unwrap();
    client.open().await.unwrap();
    let records = client.records(&vec![key; 3 * limits::MAX_BATCH_OPS]).await.unwrap();
    assert_eq!(records.iter().flatten().count(), 3 * limits::MAX_BATCH_OPS);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_has_only_so_many_subscriptions() {
    let seeds = addresses(1);
    let _stores = opened(&seeds).await;
    let (links, target) = (links(), Target::seed(&seeds[0]));
    let mut heard = Vec::new();
    let subscribe = || links.subscribe(&target, group(), Topic::Group, LIMIT);
    for _ in 0..server::SUBSCRIPTIONS {
        heard.push(subscribe().await.unwrap());
    }
    let refused = subscribe().await.err().unwrap();
    assert!(matches!(&refused, LinkError::Lost(why) if why.contains("refused")), "{refused}");
    // One that nobody reads any more makes room, though nothing happens.
    heard.pop();
    wait("there is room again", async || subscribe().await.is_ok()).await;
}

fn megabytes(count: usize) -> Vec<Op> {
    let payload: Blob = vec![7; limits::MAX_PAYLOAD_BYTES].into();
    let work = |at: usize| Op::Add(Work::new(format!("{at}")).unwrap().payload(payload.clone()));
    (0..count * 16).map(work).collect()
}

/// An entry that no follower can be sent would be the last one of its cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_refused_with_the_limit_and_nothing_is_lost() {
    let seeds = addresses(3);
    let stores = opened(&seeds).await;
    let client = RaftStore::builder("/test/").unwrap().client(&seeds).plaintext().build().unwrap();
    client.open().await.unwrap();
    for store in stores.iter().chain([&client]) {
        for count in [9, 17, 32] {
            let began = Instant::now();
            let refused = store.apply(&megabytes(count)).await.unwrap_err();
            assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused}");
            assert!(refused.to_string().contains("limit"), "{refused}");
            assert!(began.elapsed() < store.config().call_time_limit, "it is not tried again");
        }
        store.apply(&[Op::Add(Work::new("small").unwrap())]).await.unwrap();
    }
    assert_eq!(client.stats().await.unwrap().registered, 1);
    // What another program sends without looking is refused as well.
    let leader = stores.iter().position(RaftStore::leads_raft).unwrap();
    let answer = ask(&seeds[leader], Call::Apply { group: group(), ops: megabytes(9) }).await;
    assert!(matches!(answer, Answer::Fault(Fault::Refused(_))), "{answer:?}");
    for store in &stores {
        store.apply(&[Op::Add(Work::new("at the end").unwrap())]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_lost_its_quorum_does_not_say_that_it_leads() {
    let seeds = addresses(3);
    let stores = opened(&seeds).await;
    let at = stores.iter().position(RaftStore::leads_raft).unwrap();
    assert_eq!(status(&seeds[at]).await.leader, stores[at].me());
    for (other, store) in stores.iter().enumerate() {
        if other != at {
            store.die().await;
        }
    }
    wait("nobody is said to lead", async || status(&seeds[at]).await.leader.is_none()).await;
    assert!(stores[at].leads_raft(), "nobody has told it of another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_removed_at_the_same_moment_are_all_removed() {
    let seeds = addresses(5);
    let stores = opened(&seeds).await;
    wait("all vote", async || stores[0].members().await.unwrap().iter().all(|(_, votes)| *votes)).await;
    let leader = stores.iter().find(|store| store.leads_raft()).unwrap();
    let others: Vec<_> = stores.iter().filter(|store| !store.leads_raft()).collect();
    let gone: BTreeSet<u64> = others[..2].iter().map(|store| store.me().unwrap().id).collect();
    for removed in join_all(gone.iter().map(|id| leader.remove_member(*id))).await {
        removed.unwrap();
    }
    let left: BTreeSet<u64> = leader.members().await.unwrap().iter().map(|(peer, _)| peer.id).collect();
    assert_eq!(left.len(), 3);
    assert!(left.is_disjoint(&gone));
}

/// A voter that cannot be heard makes the majority larger, and the change itself has to be decided by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_be_heard_is_not_given_a_vote_that_would_end_all_decisions() {
    let seeds = addresses(2);
    let founder = voter("node-0", &seeds[0], &seeds[..1]);
    founder.open().await.unwrap();
    let builder = RaftStore::builder("/test/").unwrap().name("node-1").unwrap().in_memory().learner();
    let learner = builder.listen(&seeds[1]).seeds(&seeds[..1]).plaintext().build().unwrap();
    learner.open().await.unwrap();
    let id = learner.me().unwrap().id;
    learner.die().await;
    let member = founder.member().unwrap();
    wait("it is missed", async || {
        member.raft.answered(id).is_none_or(|last| last.elapsed() > Duration::from_millis(2100))
    })
    .await;
    let refused = founder.promote(id).await.unwrap_err();
    assert!(refused.to_string().contains("heard"), "{refused}");
    founder.apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    founder.remove_member(id).await.unwrap();
}

/// The seeds of a client lead to nobody any more, and the members that it knew have been replaced one by one.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_the_members_that_replace_the_ones_it_knew() {
    let seeds = addresses(6);
    let mut stores = opened(&seeds[..3]).await;
    let client = RaftStore::builder("/test/").unwrap().client(&seeds[..3]).plaintext().build().unwrap();
    client.open().await.unwrap();
    for at in 3..6 {
        let next = voter(&format!("node-{at}"), &seeds[at], &seeds[..at]);
        next.open().await.unwrap();
        stores.push(next);
    }
    // The leader last.
    let (leaders, others): (Vec<_>, Vec<_>) = stores.drain(..3).partition(RaftStore::leads_raft);
    for old in others.into_iter().chain(leaders) {
        old.leave().await.unwrap();
        old.close().await;
        let began = Instant::now();
        while client.stats().await.is_err() {
            assert!(began.elapsed() < SOON, "{:?}", client.stats().await);
        }
    }
    drop(stores);
}
