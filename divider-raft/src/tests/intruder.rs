//! A client with a certificate of the same authority, and every request that there is: against members that run.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, sync::Arc, time::Duration};

use divider_core::{Group, Store};
use divider_support::certificates::Authority;
use openraft::raft::{AppendEntriesRequest, VoteRequest};

use crate::{
    Data, RaftStore, Tls,
    cluster::running::{Running, Threads},
    environment::ThisMachine,
    net::{
        client::CallError,
        pool::{ConnectionPool, Dialer, Target, TrafficClass},
        security::Security,
    },
    protocol::{
        messages::{Answer, Call, Fault, Request},
        peer::Peer,
        raft_messages::RaftRequest,
        snapshot::SnapshotMeta,
        types::{Entry, LogId, Vote},
    },
};

const LIMIT: Duration = Duration::from_secs(5);

fn issued(authority: &Authority, name: &str) -> Tls {
    let [authority, certificate, key] = authority.issue(name);
    Tls::from_pem(authority.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
}

struct Bed {
    authority: Authority,
    seeds: Vec<String>,
    stores: Vec<RaftStore>,
}

impl Bed {
    async fn new() -> Self {
        let authority = Authority::new();
        let bound: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |listener: &TcpListener| format!("localhost:{}", listener.local_addr().unwrap().port());
        let seeds: Vec<String> = bound.iter().map(port).collect();
        drop(bound);
        let build = |at: usize| {
            let builder = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap())
                .name(format!("node-{at}.example"))
                .unwrap();
            let builder =
                builder.listen(&seeds[at]).seeds(&seeds).tls(issued(&authority, &format!("node-{at}.example")));
            let configured = builder.configure(|config| {
                config.advertise = Some(seeds[at].clone());
                config.members = ["node-0.example", "node-1.example", "node-2.example"].map(Into::into).into();
                config.administrators = vec!["operator.example".into()];
            });
            configured.build().unwrap()
        };
        let stores: Vec<_> = (0..3).map(build).collect();
        let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
        opened.into_iter().for_each(Result::unwrap);
        Self { authority, seeds, stores }
    }

    /// What somebody has who holds a certificate in this name, and says to be that member. It knows the cluster's id: every
    /// client is told.
    async fn pool(&self, certificate: &str, me: Option<Peer>) -> ConnectionPool {
        let cluster_id = Arc::default();
        let dialer = |me| Dialer {
            cluster: "divider".into(),
            cluster_id: Arc::clone(&cluster_id),
            me,
            formats: crate::format::Formats::of_client(2),
            security: Security::Tls(issued(&self.authority, certificate)),
            environment: Arc::new(ThisMachine),
            binding: Default::default(),
            address_book: Default::default(),
            too_old: Default::default(),
        };
        let status = Request::Call(Call::Status);
        let answer = ConnectionPool::new(dialer(None))
            .call(&Target::seed(&self.seeds[0]), TrafficClass::Calls, &status, LIMIT)
            .await;
        let Ok(Answer::Status(status)) = answer else { panic!("{answer:?}") };
        assert!(status.cluster_id.is_some());
        *cluster_id.write() = status.cluster_id;
        ConnectionPool::new(dialer(me))
    }

    /// Which terms the members are in, and who votes.
    async fn state(&self) -> (Vec<Option<u64>>, Vec<(Peer, bool)>) {
        let terms = self.stores.iter().map(RaftStore::raft_term).collect();
        (terms, self.stores[0].members().await.unwrap())
    }
}

fn forged(members: &[(Peer, bool)]) -> Vec<Request> {
    let leader = members[0].0.id;
    let vote = Vote::new_committed(1000, leader);
    let entry = |index| Entry {
        log_id: LogId::new(openraft::CommittedLeaderId::new(1000, leader), index),
        payload: openraft::EntryPayload::Blank,
    };
    let append = |entries| AppendEntriesRequest { vote, prev_log_id: None, entries, leader_commit: None };
    let raft = [
        RaftRequest::Append(append(Vec::new())),
        RaftRequest::Append(append(vec![entry(500), entry(900)])),
        RaftRequest::Vote(VoteRequest::new(Vote::new(1000, leader), Some(entry(1 << 40).log_id))),
        RaftRequest::SnapshotBegin { stream: 1, vote, meta: SnapshotMeta::default() },
        RaftRequest::SnapshotChunk { stream: 1, offset: 0, bytes: vec![0] },
        RaftRequest::SnapshotEnd { stream: 1 },
        RaftRequest::TimeoutNow,
    ];
    let stranger = Peer { id: 7, name: "web.example".into(), address: "h:1".into(), wants_vote: true, reads: 2 };
    let calls = [
        Call::Join { peer: stranger, votes: true },
        Call::Leave { id: members[1].0.id },
        Call::Promote { id: members[1].0.id },
        Call::Replace { old: members[1].0.id, new: members[2].0.id },
    ];
    raft.map(Request::Raft).into_iter().chain(calls.map(Request::Call)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_authority_is_neither_a_member_nor_an_administrator() {
    let bed = Bed::new().await;
    let before = bed.state().await;
    let client = bed.pool("web.example", None).await;
    for seed in &bed.seeds {
        for request in forged(&before.1) {
            let answer = client.call(&Target::seed(seed), TrafficClass::Calls, &request, LIMIT).await;
            assert!(matches!(answer, Ok(Answer::Fault(Fault::Denied(_)))), "{request:?}: {answer:?}");
        }
    }
    // As a member of its own, or as one that there is.
    let own = Peer { id: 7, name: "web.example".into(), address: "localhost:1".into(), wants_vote: true, reads: 2 };
    for me in [own, before.1[0].0.clone()] {
        let pool = bed.pool("web.example", Some(me.clone())).await;
        let status = Request::Call(Call::Status);
        let answer = pool.call(&Target::seed(&bed.seeds[1]), TrafficClass::Calls, &status, LIMIT).await;
        assert!(matches!(answer, Err(CallError::NotSent(_))), "{me}: {answer:?}");
    }
    assert_eq!(bed.state().await, before, "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_speak_for_another_one() {
    let bed = Bed::new().await;
    let before = bed.state().await;
    let leader = bed.stores.iter().position(RaftStore::leads_raft).unwrap();
    let (me, other) = (bed.stores[(leader + 1) % 3].me().unwrap(), (leader + 2) % 3);
    let pool = bed.pool(&me.name.clone(), Some(me)).await;
    let leader = bed.stores[leader].me().unwrap();
    let vote = Vote::new_committed(1000, leader.id);
    let append = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    for request in [RaftRequest::Append(append), RaftRequest::TimeoutNow] {
        let request = Request::Raft(request);
        let answer = pool.call(&Target::seed(&bed.seeds[other]), TrafficClass::Raft, &request, LIMIT).await;
        assert!(matches!(answer, Ok(Answer::Fault(Fault::Denied(_)))), "{answer:?}");
    }
    assert_eq!(bed.state().await.0, before.0);
}

/// Its certificate is a member's, and carries its own name. Whoever had the id of another one could vote for it, and would
/// be looked for in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_take_the_id_of_another_one() {
    let bed = Bed::new().await;
    let before = bed.state().await;
    let (victim, thief) = (before.1[0].0.clone(), before.1[1].0.clone());
    let me = Peer { id: victim.id, address: "localhost:1".into(), ..thief.clone() };
    let pool = bed.pool(&thief.name, Some(me.clone())).await;
    for seed in &bed.seeds {
        for call in [Call::Status, Call::Join { peer: me.clone(), votes: true }] {
            let answer = pool.call(&Target::seed(seed), TrafficClass::Calls, &Request::Call(call), LIMIT).await;
            assert!(matches!(answer, Err(CallError::NotSent(_))), "{answer:?}");
        }
    }
    assert_eq!(bed.state().await, before);
}

/// Certificates carry names, and most often not the addresses at which members are met.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_member_has_ended_finds_the_others_by_their_names() {
    let authority = Authority::new();
    let ports: Vec<_> = {
        let bound: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        bound.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
    };
    let build = |at: usize| {
        let (name, address) = (format!("node-{at}.example"), format!("127.0.0.1:{}", ports[at]));
        let builder =
            RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name(&name).unwrap().listen(address);
        let builder = builder.seeds([format!("localhost:{}", ports[0])]).tls(issued(&authority, &name));
        builder.configure(|config| config.members = vec!["*.example".into()]).build().unwrap()
    };
    let stores: Vec<_> = (0..3).map(build).collect();
    for store in &stores {
        store.open().await.unwrap();
    }
    let member = stores[0].member().unwrap();
    stores[0].die().await;
    let threads = Threads::start(stores[0].config()).unwrap();
    let client = Running::instead_of(&member, "it has ended".into(), threads);
    let began = std::time::Instant::now();
    loop {
        match client.router.call(Call::Confirm, TrafficClass::Calls, true).await {
            Ok(_) => break,
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_configuration_names_administers_as_a_client() {
    let bed = Bed::new().await;
    let client = |name: &str| {
        RaftStore::client(&bed.seeds, Group::new("/test/").unwrap()).tls(issued(&bed.authority, name)).build().unwrap()
    };
    let (operator, web) = (client("operator.example"), client("web.example"));
    operator.open().await.unwrap();
    web.open().await.unwrap();
    let follower = bed.stores.iter().find(|store| !store.leads_raft()).unwrap().me().unwrap().id;
    let refused = web.remove_member(follower).await.unwrap_err();
    assert!(
        matches!(&refused, divider_core::StoreError::Misconfigured(why) if why.contains("administrators")),
        "{refused}"
    );
    assert_eq!(web.members().await.unwrap().len(), 3);
    operator.remove_member(follower).await.unwrap();
    assert_eq!(web.members().await.unwrap().len(), 2);
}
