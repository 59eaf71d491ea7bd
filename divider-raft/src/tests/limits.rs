//! Too much of something, and what is said at a bad moment: against members that run.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::{
    Blob, Claim, Divider, FnSource, Group, Key, Node, Op, Outcome, Refusal, SessionId, SourceConfig, SourceMode, Store,
    StoreError, Term, Topic, Work, limits,
};
use divider_support::{
    ops::joined,
    wait::{PATIENCE, eventually},
};
use futures_util::future::join_all;

use crate::{
    Data, RaftStore,
    cluster::server,
    environment::ThisMachine,
    format::{Formats, NEWEST},
    net::{
        client::CallError,
        pool::{ConnectionPool, Dialer, Target, TrafficClass},
        security::Security,
    },
    protocol::messages::{Answer, Call, Fault, Query, Request, Status},
    tests::{
        machine::Machine,
        voters::{addresses, opened, voter, voters},
    },
};

const LIMIT: Duration = Duration::from_secs(5);

/// What anybody has who reaches the port.
fn pool() -> ConnectionPool {
    ConnectionPool::new(Dialer {
        cluster: "divider".into(),
        cluster_id: Arc::default(),
        me: None,
        formats: Formats::of_client(NEWEST),
        security: Security::Plaintext,
        environment: Arc::new(ThisMachine),
        binding: Default::default(),
        address_book: Default::default(),
        too_old: Default::default(),
    })
}

async fn ask(address: &str, call: Call) -> Answer {
    pool().call(&Target::seed(address), TrafficClass::Calls, &Request::Call(call), LIMIT).await.unwrap()
}

async fn status(address: &str) -> Status {
    match ask(address, Call::Status).await {
        Answer::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

fn group() -> Group {
    Group::new("/test/").unwrap()
}

/// A request of some bytes could ask for any number of copies of what is large.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_more_records_at_once_than_a_batch_has_ops() {
    let (stores, seeds) = voters(1).await;
    let key = Key::new("k").unwrap();
    stores[0].apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    for query in [Query::Records, Query::Owners] {
        let many = |count| Call::Read { group: group(), query: query(vec![key.clone(); count]) };
        let answer = ask(&seeds[0], many(limits::MAX_BATCH_OPS + 1)).await;
        assert!(matches!(answer, Answer::Fault(Fault::Refused(_))), "{answer:?}");
        assert!(!matches!(ask(&seeds[0], many(limits::MAX_BATCH_OPS)).await, Answer::Fault(_)));
    }
    // A program may ask for as many as it likes.
    let client = RaftStore::client(&seeds, Group::new("/test/").unwrap()).plaintext().build().unwrap();
    client.open().await.unwrap();
    let records = client.records(&vec![key; 3 * limits::MAX_BATCH_OPS]).await.unwrap();
    assert_eq!(records.iter().flatten().count(), 3 * limits::MAX_BATCH_OPS);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_has_only_so_many_subscriptions() {
    let seeds = addresses(1);
    let _stores = opened(&seeds).await;
    let (pool, target) = (pool(), Target::seed(&seeds[0]));
    let mut heard = Vec::new();
    let subscribe = || pool.subscribe(&target, group(), Topic::Group, LIMIT);
    for _ in 0..server::SUBSCRIPTIONS {
        heard.push(subscribe().await.unwrap());
    }
    let refused = subscribe().await.err().unwrap();
    assert!(matches!(&refused, CallError::Lost(why) if why.contains("refused")), "{refused}");
    // One that nobody reads any more makes room, though nothing happens.
    heard.pop();
    eventually("there is room again", async || subscribe().await.is_ok()).await;
}

fn megabytes(count: usize) -> Vec<Op> {
    let payload: Blob = vec![7; limits::MAX_PAYLOAD_BYTES].into();
    let work = |at: usize| Op::Add(Work::new(format!("{at}")).unwrap().payload(payload.clone()));
    (0..count * 16).map(work).collect()
}

/// An entry that no follower can be sent would be the last one of its cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_refused_with_the_limit_and_nothing_is_lost() {
    let (stores, seeds) = voters(3).await;
    let client = RaftStore::client(&seeds, Group::new("/test/").unwrap()).plaintext().build().unwrap();
    client.open().await.unwrap();
    for store in stores.iter().chain([&client]) {
        let many = vec![Op::Remove { key: Key::new("k").unwrap() }; limits::MAX_BATCH_OPS + 1];
        for batch in [many, megabytes(3), megabytes(17)] {
            let began = Instant::now();
            let refused = store.apply(&batch).await.unwrap_err();
            assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused}");
            assert!(refused.to_string().contains("limit"), "{refused}");
            assert!(began.elapsed() < store.config().call_time_limit, "it is not tried again");
        }
        store.apply(&[Op::Add(Work::new("small").unwrap())]).await.unwrap();
    }
    assert_eq!(client.stats().await.unwrap().registered, 1);
    // What another program sends without looking is refused as well.
    let leader = stores.iter().position(RaftStore::leads_raft).unwrap();
    let answer = ask(&seeds[leader], Call::Apply { group: group(), ops: megabytes(3) }).await;
    assert!(matches!(answer, Answer::Fault(Fault::Refused(_))), "{answer:?}");
    for store in &stores {
        store.apply(&[Op::Add(Work::new("at the end").unwrap())]).await.unwrap();
    }
}

/// However large the work is that a source knows: what is declared fits into batches.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_large_work_is_declared_in_batches_that_the_store_takes() {
    let store = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).build().unwrap();
    let source = FnSource(|| async {
        let payload: Blob = vec![7; limits::MAX_PAYLOAD_BYTES].into();
        let work = |at: usize| Work::new(format!("{at}")).unwrap().payload(payload.clone());
        Ok((0..200).map(work).collect())
    });
    let source = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_millis(50));
    let node = Node::builder(store.clone()).source(source).build().unwrap();
    node.start().await.unwrap();
    eventually("all is declared", async || store.stats().await.unwrap().registered == 200).await;
    node.cancel().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_lost_its_quorum_does_not_say_that_it_leads() {
    let (stores, seeds) = voters(3).await;
    let at = stores.iter().position(RaftStore::leads_raft).unwrap();
    assert_eq!(status(&seeds[at]).await.leader, stores[at].me());
    for (other, store) in stores.iter().enumerate() {
        if other != at {
            store.die().await;
        }
    }
    eventually("nobody is said to lead", async || status(&seeds[at]).await.leader.is_none()).await;
    assert!(stores[at].leads_raft(), "nobody has told it of another one");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_are_removed_at_the_same_moment_are_all_removed() {
    let (stores, _) = voters(5).await;
    eventually("all vote", async || stores[0].members().await.unwrap().iter().all(|(_, votes)| *votes)).await;
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
    let founder = voter(0, &seeds).seeds(&seeds[..1]).build().unwrap();
    founder.open().await.unwrap();
    let builder = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name("node-1").unwrap().learner();
    let learner = builder.listen(&seeds[1]).seeds(&seeds[..1]).plaintext().build().unwrap();
    learner.open().await.unwrap();
    let id = learner.me().unwrap().id;
    learner.die().await;
    let member = founder.member().unwrap();
    eventually("it is missed", async || {
        member.raft.answered(id).is_none_or(|last| last.elapsed() > Duration::from_millis(2100))
    })
    .await;
    let refused = founder.promote(id).await.unwrap_err();
    assert!(refused.to_string().contains("heard"), "{refused}");
    founder.apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    founder.remove_member(id).await.unwrap();
}

async fn lead(store: &RaftStore) -> (SessionId, Term) {
    let session = joined(store).await;
    let reply = store.poll(session, Claim::Take { stale: None }).await.unwrap();
    (session, reply.leader.unwrap().term)
}

/// All disks are lost, and processes that were clients may believe in their keys for a lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_may_have_had_a_life_before_grants_nothing_for_a_lease() {
    let seeds = addresses(3);
    for first_life in [true, false] {
        let build = |at: usize| {
            let builder = voter(at, &seeds);
            builder.configure(|config| config.first_life = first_life).build().unwrap()
        };
        let stores: Vec<_> = (0..3).map(build).collect();
        join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);
        let leader = stores.iter().find(|store| store.leads_raft()).unwrap();
        let (session, term) = lead(leader).await;
        let key = Key::new("k").unwrap();
        let assign = || [Op::Add(Work::from(key.clone())), Op::Assign { term, key: key.clone(), session }];
        let granted = async || leader.apply(&assign()).await.unwrap().outcomes[1];
        if !first_life {
            assert_eq!(granted().await, Outcome::Refused(Refusal::GrantsHeld));
            leader.apply(&[Op::ResumeGrants { term }]).await.unwrap();
        }
        assert!(matches!(granted().await, Outcome::Granted(_)));
        // Not once more, whoever leads.
        let held = leader.scan(None).await.unwrap().group.grants_held;
        assert!(!held);
        join_all(stores.iter().map(|store| store.die())).await;
    }
    // Nobody else can have been in a cluster that is one process.
    let alone = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).build().unwrap();
    alone.open().await.unwrap();
    lead(&alone).await;
    assert!(!alone.scan(None).await.unwrap().group.grants_held);
}

/// A name in the DNS stands for some of the members only. Each of the first two sees three founders, of which it is the one that all would choose.
#[tokio::test(flavor = "multi_thread")]
async fn founders_that_see_different_parts_of_the_dns_found_one_cluster() {
    let seeds = addresses(4);
    let all: Vec<SocketAddr> = seeds.iter().map(|seed| seed.parse().unwrap()).collect();
    let parts = [0..3, 1..4, 0..3, 1..4].map(|part| all[part].to_vec());
    let machine = |(id, part)| Machine { draws: Some(id), names: Some(part), ..Machine::default() };
    let machines: Vec<_> = (1..).zip(parts).map(|of| Arc::new(machine(of))).collect();
    let build = |at: usize| {
        let builder =
            RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name(format!("node-{at}")).unwrap();
        let builder = builder.listen(&seeds[at]).plaintext().configure(|config| {
            config.seed_names = vec!["voters:1".into()];
            config.voters_to_found = Some(3);
            config.environment = machines[at].clone();
        });
        builder.build().unwrap()
    };
    let stores: Vec<_> = (0..4).map(build).collect();
    join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);
    let mut clusters = BTreeSet::new();
    for seed in &seeds {
        clusters.insert(status(seed).await.cluster_id);
    }
    assert_eq!(clusters.len(), 1, "{clusters:?}");
    assert_eq!(stores[3].members().await.unwrap().len(), 4);
}

/// A container often cannot reach itself at the address at which the others reach it.
#[tokio::test(flavor = "multi_thread")]
async fn a_founder_need_not_reach_itself_at_its_own_address() {
    let outside = "node.invalid:7400";
    let builder =
        RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name("node-0").unwrap().listen("127.0.0.1:0");
    let store = builder.seeds([outside]).plaintext().configure(|config| config.advertise = Some(outside.into()));
    store.build().unwrap().open().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_goes_on_with_the_cluster_that_is_founded_after_all_was_lost() {
    let seeds = addresses(1);
    let first = opened(&seeds).await;
    let client = RaftStore::client(&seeds, Group::new("/test/").unwrap()).plaintext().build().unwrap();
    client.open().await.unwrap();
    first[0].die().await;
    let _second = opened(&seeds).await;
    let began = Instant::now();
    while let Err(error) = client.stats().await {
        assert!(began.elapsed() < PATIENCE, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_seeds_belong_to_two_clusters_is_a_client_of_none() {
    let seeds = addresses(2);
    let _stores = (opened(&seeds[..1]).await, opened(&seeds[1..]).await);
    let client = RaftStore::client(&seeds, Group::new("/test/").unwrap()).plaintext();
    let client = client.configure(|config| config.open_time_limit = Duration::from_millis(500)).build().unwrap();
    eventually("it is told so", async || client.open().await.unwrap_err().to_string().contains("2 clusters")).await;
    assert!(client.stats().await.is_err());
}

/// The seeds of a client lead to nobody any more, and the members that it knew have been replaced one by one.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_the_members_that_replace_the_ones_it_knew() {
    let seeds = addresses(6);
    let mut stores = opened(&seeds[..3]).await;
    let client = RaftStore::client(&seeds[..3], Group::new("/test/").unwrap()).plaintext().build().unwrap();
    client.open().await.unwrap();
    for at in 3..6 {
        let next = voter(at, &seeds).seeds(&seeds[..at]).build().unwrap();
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
            assert!(began.elapsed() < PATIENCE, "{:?}", client.stats().await);
        }
    }
    drop(stores);
}
