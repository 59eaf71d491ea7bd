//! What can happen to a Raft cluster: members that die, hang, join, leave, and come back.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use divider_core::{Claim, Group, Key, Op, Outcome, SessionId, Store, StoreError, Topic, Work};
use divider_raft::{RaftStore, Role};
use divider_support::ops::{add, joining};
use divider_tests::raft::{Cluster, free_addresses};
use futures_util::{StreamExt, future::join_all};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

/// Does something until it succeeds.
async fn insist<T, F: Future<Output = Result<T, StoreError>>>(mut work: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match work().await {
            Ok(done) => return done,
            Err(error) => assert!(began.elapsed() < SOON, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn keys(store: &RaftStore) -> BTreeSet<Key> {
    let (mut keys, mut cursor) = (BTreeSet::new(), None);
    loop {
        let page = insist(|| store.scan(cursor.clone())).await;
        keys.extend(page.keys.into_iter().map(|view| view.key));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return keys,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_each_member_dies_in_turn() {
    let mut cluster = Cluster::start(3).await;
    let acknowledged: Arc<Mutex<BTreeSet<Key>>> = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (client, acknowledged, over) = (cluster.client(), acknowledged.clone(), over.clone());
            tokio::spawn(async move {
                client.open().await.unwrap();
                for at in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return at;
                    }
                    let name = format!("{writer}/{at}");
                    if client.apply(&[add(&name)]).await.is_ok() {
                        acknowledged.lock().unwrap().insert(Key::new(&name).unwrap());
                    }
                }
                0
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let dead = if round % 2 == 0 { cluster.leader().await } else { (cluster.leader().await + 1) % 3 };
        cluster.kill(dead);
        let began = Instant::now();
        let witness = cluster.client();
        insist(|| witness.open()).await;
        insist(|| async { witness.apply(&[Op::Rebalance]).await.map(drop) }).await;
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.restart(dead).await;
    }
    over.store(true, Ordering::Relaxed);
    join_all(writers).await;
    let acknowledged = acknowledged.lock().unwrap().clone();
    for at in 0..3 {
        let there = keys(cluster.store(at)).await;
        assert!(acknowledged.is_subset(&there), "member {at} has lost something");
    }
    println!("{} writes acknowledged through 4 deaths; away for at most {longest:?}", acknowledged.len());
    assert!(acknowledged.len() > 100);
}

/// A node on a member hears of its keys from the replica beside it, so what it were given before would run nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_starts_again_is_open_when_its_replica_has_caught_up() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let late = (leader + 1) % 3;
        cluster.kill(late);
        for at in 0..50 {
            insist(|| async { cluster.store(leader).apply(&[add(format!("{round}/{at}"))]).await }).await;
        }
        let (decided, _) = cluster.store(leader).replica().unwrap();
        cluster.restart(late).await;
        let (applied, _) = cluster.store(late).replica().unwrap();
        assert!(applied >= decided, "it is open at entry {applied} of {decided}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_die_at_once_and_nothing_acknowledged_is_gone() {
    let mut cluster = Cluster::start(3).await;
    let ops: Vec<Op> = (0..200).map(|at| add(format!("{at}"))).collect();
    for batch in ops.chunks(10) {
        cluster.store(0).apply(batch).await.unwrap();
    }
    for at in 0..3 {
        cluster.kill(at);
    }
    // A majority comes first, the last one later.
    let opening = join_all((0..2).map(|at| cluster.build(at)).map(|store| async move {
        insist(|| store.open()).await;
        store
    }));
    for (at, store) in opening.await.into_iter().enumerate() {
        cluster.stores[at] = Some(store);
    }
    assert_eq!(keys(cluster.store(1)).await.len(), 200);
    cluster.restart(2).await;
    assert_eq!(keys(cluster.store(2)).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_renews_nothing_and_grants_nothing() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let store = cluster.store(leader).clone();
    let session = SessionId::fresh();
    store.apply(&[joining(&store, session).await, add("k")]).await.unwrap();
    let term = store.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    store.renew(session).await.unwrap();
    for at in (0..3).filter(|at| *at != leader) {
        cluster.kill(at);
    }
    let began = Instant::now();
    let assign = Op::Assign { term, key: Key::new("k").unwrap(), session };
    assert!(store.renew(session).await.unwrap_err().is_transient());
    assert!(store.apply(&[assign]).await.unwrap_err().is_transient());
    assert!(store.stats().await.unwrap_err().is_transient());
    assert!(began.elapsed() < Duration::from_secs(5), "calls have time limits");
    // Its group's leader steps down by itself.
    tokio::time::sleep(Duration::from_secs(1)).await;
    if let Ok(reply) = store.poll(session, Claim::Lead { term }).await {
        assert_eq!(reply.leader, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_accepts_and_never_answers_stalls_nobody() {
    let mut cluster = Cluster::start(3).await;
    let hung = (cluster.leader().await + 1) % 3;
    cluster.kill(hung);
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Somebody listens there, takes everything in, and says nothing.
    let listener = tokio::net::TcpListener::bind(cluster.address(hung)).await.unwrap();
    let swallow = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let store = cluster.store(cluster.leader().await).clone();
    let mut slowest = Duration::ZERO;
    let session = SessionId::fresh();
    store.apply(&[joining(&store, session).await]).await.unwrap();
    for at in 0..200 {
        let began = Instant::now();
        store.apply(&[add(format!("{at}"))]).await.unwrap();
        store.renew(session).await.unwrap();
        slowest = slowest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("slowest of 200 writes and renewals beside a hanging member: {slowest:?}");
    assert!(slowest < Duration::from_secs(1));
    swallow.abort();
    let _ = swallow.await;
    cluster.restart(hung).await;
    assert_eq!(keys(cluster.store(hung)).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_and_an_expiry_exclude_each_other() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.store(cluster.leader().await);
    let client = cluster.client();
    client.open().await.unwrap();
    let boss = SessionId::fresh();
    leader.apply(&[joining(leader, boss).await]).await.unwrap();
    let term = leader.poll(boss, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    let (mut renewed, mut expired) = (0, 0);
    for _ in 0..100 {
        let session = SessionId::fresh();
        insist(|| async { client.apply(&[joining(&client, session).await]).await.map(drop) }).await;
        let beat = insist(|| client.renew(session)).await;
        let expire = Op::Expire { term, session, beat, verdict: divider_core::Verdict::NONE };
        let ops = [expire];
        let (renewal, expiry) = tokio::join!(client.renew(session), leader.apply(&ops));
        // On a disk that stalls for a second nobody may know what became of them.
        let (Ok(expiry), false) = (expiry, renewal.as_ref().is_err_and(StoreError::is_transient)) else { continue };
        match (renewal, expiry.outcomes[0]) {
            (Ok(_), Outcome::Refused(_)) => renewed += 1,
            (Err(StoreError::SessionEnded), Outcome::Done) => expired += 1,
            other => panic!("both or none: {other:?}"),
        }
    }
    println!("{renewed} renewed, {expired} expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_of_one_leader_say_nothing_under_the_next() {
    let mut cluster = Cluster::start(3).await;
    let old = cluster.leader().await;
    let session = SessionId::fresh();
    let boss = SessionId::fresh();
    let other = (old + 1) % 3;
    let other = cluster.store(other);
    other.apply(&[joining(other, session).await, joining(other, boss).await]).await.unwrap();
    let before = other.renew(session).await.unwrap();
    cluster.kill(old);
    cluster.leader().await;
    let store = cluster.store(cluster.leader().await);
    let polled = insist(|| store.poll(boss, Claim::Take { stale: None })).await;
    let term = polled.leader.unwrap().term;
    let expire = Op::Expire { term, session, beat: before, verdict: divider_core::Verdict::NONE };
    let applied = insist(|| store.apply(std::slice::from_ref(&expire))).await;
    assert_eq!(applied.outcomes[0], Outcome::Refused(divider_core::Refusal::StillBeating));
    let after = insist(|| store.renew(session)).await;
    assert!(after > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_are_promoted_and_leave_at_run_time() {
    let cluster = Cluster::start(3).await;
    cluster.store(0).apply(&[add("before")]).await.unwrap();
    let directory = TempDir::new().unwrap();
    let addresses = free_addresses(1);
    let seeds: Vec<String> = (0..3).map(|at| cluster.address(at).to_owned()).collect();
    let learner = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("late").unwrap();
    let learner = learner.listen(&addresses[0]).seeds(&seeds).plaintext().learner().build().unwrap();
    learner.open().await.unwrap();
    assert_eq!(keys(&learner).await.len(), 1);
    let id = learner.me().unwrap().id;
    let votes = |members: Vec<(divider_raft::Peer, bool)>| members.iter().filter(|(_, votes)| *votes).count();
    assert_eq!(votes(learner.members().await.unwrap()), 3);
    let leader = cluster.leader().await;
    let old = cluster.store((leader + 1) % 3).me().unwrap().id;
    learner.replace_voter(old, id).await.unwrap();
    let members = learner.members().await.unwrap();
    assert!(members.iter().any(|(peer, votes)| peer.id == id && *votes));
    assert!(!members.iter().any(|(peer, _)| peer.id == old));
    learner.apply(&[add("after")]).await.unwrap();
    learner.leave().await.unwrap();
    let store = cluster.store(leader);
    assert_eq!(votes(insist(|| store.members()).await), 2);
    assert_eq!(keys(store).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_voter_is_replaced_by_a_learner_where_the_user_says_so() {
    let mut cluster =
        Cluster::start_with(3, |config| config.replace_dead_after = Some(Duration::from_millis(800))).await;
    let seeds: Vec<String> = (0..3).map(|at| cluster.address(at).to_owned()).collect();
    let directory = TempDir::new().unwrap();
    let spare = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("spare").unwrap();
    let spare = spare.listen(&free_addresses(1)[0]).seeds(&seeds).plaintext().learner().build().unwrap();
    spare.open().await.unwrap();
    let dead = (cluster.leader().await + 1) % 3;
    let id = cluster.store(dead).me().unwrap().id;
    cluster.kill(dead);
    let began = Instant::now();
    loop {
        let members = insist(|| spare.members()).await;
        let spare_votes = members.iter().any(|(peer, votes)| peer.name == "spare" && *votes);
        if spare_votes && !members.iter().any(|(peer, votes)| peer.id == id && *votes) {
            break;
        }
        assert!(began.elapsed() < SOON, "{members:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("replaced after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_far_behind_is_brought_up_by_a_snapshot() {
    let cluster = Cluster::start_with(1, |config| config.snapshot_every = 100).await;
    let store = cluster.store(0);
    for at in 0..400 {
        let payload = vec![7; 8000];
        let work = Work::new(format!("{at}")).unwrap().payload(payload);
        store.apply(&[Op::Add(work)]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let directory = TempDir::new().unwrap();
    let late = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("late").unwrap();
    let late = late.listen(&free_addresses(1)[0]).seeds([cluster.address(0)]).plaintext();
    let late = late.build().unwrap();
    late.open().await.unwrap();
    assert_eq!(keys(&late).await.len(), 400);
    assert!(directory.path().join("snapshot").exists(), "it was sent as a snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_of_everything_or_of_a_gap() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    client.open().await.unwrap();
    let mut hints = client.hints(Topic::Group).await.unwrap();
    for at in 0..50 {
        cluster.store(at % 3).apply(&[add(format!("{at}"))]).await.unwrap();
    }
    for at in 0..50 {
        let hint = tokio::time::timeout(SOON, hints.next()).await.unwrap().unwrap();
        let divider_core::Hint::Batch(batch) = hint else { panic!("{hint:?}") };
        assert_eq!(batch.revision.0, at + 1);
    }
    assert_eq!(client.owner_of(&Key::new("1").unwrap()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let cluster = Cluster::start(1).await;
    let seeds = [cluster.address(0).to_owned()];
    // Another cluster by name.
    let client = RaftStore::client(&seeds, Group::new("/test/").unwrap()).plaintext();
    let client = client.configure(|config| {
        config.cluster = "another".into();
        config.open_time_limit = Duration::from_millis(700);
    });
    assert!(client.build().unwrap().open().await.is_err());
    // A second member with a name that is taken.
    let directory = TempDir::new().unwrap();
    let twin = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("node-0").unwrap();
    let twin = twin.listen(&free_addresses(1)[0]).seeds(&seeds).plaintext();
    let twin = twin.configure(|config| config.open_time_limit = Duration::from_millis(1500)).build().unwrap();
    let error = twin.open().await.unwrap_err().to_string();
    assert!(error.contains("another data directory"), "{error}");
    // What does not speak the protocol, and what announces too much.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"DVDR\x63\x00\x04\x00\x00\x00abcd", b"DVDR\x01\x00\xff\xff\xff\xff"]
    {
        let mut stream = tokio::net::TcpStream::connect(&seeds[0]).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        // Who speaks of other formats is told which ones there are.
        assert!(ended.is_ok() && (rest.is_empty() || rest.starts_with(b"DVDR")), "{rest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_serves_its_own_member_only() {
    let directory = TempDir::new().unwrap();
    let build = |name: &str, cluster: &str| {
        let builder = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name(name).unwrap();
        let cluster = cluster.to_owned();
        builder.configure(|config| config.cluster = cluster).build().unwrap()
    };
    let store = build("a", "one");
    store.open().await.unwrap();
    let twin = build("a", "one").open().await.unwrap_err();
    assert!(matches!(&twin, StoreError::Misconfigured(problem) if problem.contains("in use")), "{twin}");
    store.close().await;
    for (name, cluster) in [("b", "one"), ("a", "two")] {
        let error = build(name, cluster).open().await.unwrap_err();
        assert!(matches!(&error, StoreError::Misconfigured(problem) if problem.contains("belongs to")), "{error}");
    }
    build("a", "one").open().await.unwrap();
    assert_eq!(build("a", "one").config().role, Role::Voter);
}

/// As a program does that is told to end while it starts.
#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_is_given_up_does_not_panic_and_can_be_tried_again() {
    let (directory, addresses) = (TempDir::new().unwrap(), free_addresses(1));
    let builder = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("alone").unwrap();
    let store = builder.listen(&addresses[0]).seeds(&addresses).plaintext().build().unwrap();
    let given_up = tokio::time::timeout(Duration::ZERO, store.open()).await;
    assert!(given_up.is_err(), "it had begun, and was not over");
    insist(|| store.open()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closing_that_is_given_up_does_not_panic() {
    let (directory, addresses) = (TempDir::new().unwrap(), free_addresses(1));
    let builder = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("alone").unwrap();
    let store = builder.listen(&addresses[0]).seeds(&addresses).plaintext().build().unwrap();
    insist(|| store.open()).await;
    let given_up = tokio::time::timeout(Duration::ZERO, store.close()).await;
    assert!(given_up.is_err(), "it had begun, and was not over");
}
