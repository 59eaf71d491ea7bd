//! The Redis backend where a part of what it stands on is missing: a right, memory, room on the wire, the last writes.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use divider_core::{
    Batch, Claim, Group, Hint, Key, Op, Outcome, Refusal, Revision, SessionId, Store, StoreError, Token, Topic, Work,
    limits,
};
use divider_redis::{RedisConfig, RedisStore};
use divider_support::{
    ops::{add, assigned, joining, key, leading},
    wait::eventually,
};
use divider_tests::redis::{RedisCluster, RedisServer};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A store for a machine that may be busy.
fn store(url: impl Into<String>, name: &str) -> RedisStore {
    let patience = |config: &mut RedisConfig| {
        (config.connect_timeout, config.call_time_limit) = (Duration::from_secs(5), Duration::from_secs(5));
    };
    RedisStore::builder(url, Group::new(name).unwrap()).configure(patience).build().unwrap()
}

/// A wire to a server that counts how much the longest answer has.
struct Wire {
    port: u16,
    to: Arc<AtomicU16>,
    longest: Arc<AtomicUsize>,
}

impl Wire {
    async fn to(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU16::new(server.port())));
        let longest = Arc::new(AtomicUsize::new(0));
        let (count, leads) = (longest.clone(), to.clone());
        tokio::spawn(async move {
            loop {
                let (from, _) = listener.accept().await.unwrap();
                let Ok(onwards) = TcpStream::connect(("127.0.0.1", leads.load(Ordering::SeqCst))).await else {
                    continue;
                };
                let ((mut asked, mut answered), (mut answers, mut asks)) = (from.into_split(), onwards.into_split());
                let since = Arc::new(AtomicUsize::new(0));
                let (begun, count) = (since.clone(), count.clone());
                tokio::spawn(async move {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(len @ 1..) = asked.read(&mut bytes).await {
                        begun.store(0, Ordering::SeqCst);
                        if asks.write_all(&bytes[..len]).await.is_err() {
                            return;
                        }
                    }
                });
                tokio::spawn(async move {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(len @ 1..) = answers.read(&mut bytes).await {
                        count.fetch_max(since.fetch_add(len, Ordering::SeqCst) + len, Ordering::SeqCst);
                        if answered.write_all(&bytes[..len]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, to, longest }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Connections that are open stay where they are.
    fn lead_to(&self, server: &RedisServer) {
        self.to.store(server.port(), Ordering::SeqCst);
    }

    /// Since this was last asked.
    fn longest(&self) -> usize {
        self.longest.swap(0, Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_holds_is_read_although_it_changes_all_the_time() {
    let server = RedisServer::start();
    let reader = store(server.url(), "/busy/");
    let (session, term) = leading(&reader).await;
    // More than a page.
    let keys: Vec<Key> = (0..4500).map(|i| key(format!("key-{i}"))).collect();
    for chunk in keys.chunks(256) {
        let ops = chunk
            .iter()
            .flat_map(|key| [Op::Add(Work::from(key.clone())), Op::Assign { term, key: key.clone(), session }]);
        reader.apply(&ops.collect::<Vec<_>>()).await.unwrap();
    }
    let done = Arc::new(AtomicBool::new(false));
    let (writer, stop) = (store(server.url(), "/busy/"), done.clone());
    let busy = tokio::spawn(async move {
        for i in (0..).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("other-{}", i % 7);
            writer.apply(&[add(&name)]).await.unwrap();
            let token = assigned(&writer, term, session, &name).await;
            let confirm = Op::Confirm { session, key: key(&name), token, started: true };
            writer.apply(&[confirm]).await.unwrap();
        }
    });
    for _ in 0..3 {
        let read = reader.holdings(session).await.unwrap();
        let steady = read.holdings.iter().filter(|holding| holding.key.as_str().starts_with("key-")).count();
        assert_eq!(steady, keys.len());
        assert!(read.holdings.len() <= keys.len() + 1, "one other at most: {}", read.holdings.len());
    }
    done.store(true, Ordering::Relaxed);
    busy.await.unwrap();
}

#[tokio::test]
async fn one_right_that_is_gone_for_a_moment_leaves_nothing_half_written() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "divider", "on", ">word", "~*", "&*", "+@all"]);
    let store = store(server.url_as("divider", "word"), "/half/");
    let (session, term) = leading(&store).await;
    store.apply(&[add("k"), add("set aside"), add("gone")]).await.unwrap();
    let at = async || {
        let keys = ["k", "new", "gone", "set aside"].map(key);
        (store.records(&keys).await.unwrap(), store.scan(None).await.unwrap(), store.holdings(session).await.unwrap())
    };
    let before = at().await;
    let ops = [
        add("new"),
        Op::Remove { key: key("gone") },
        Op::Assign { term, key: key("k"), session },
        Op::Quarantine { term, key: key("set aside") },
    ];
    for right in ["zadd", "hset", "hdel", "rpush", "publish"] {
        server.cli(&["ACL", "SETUSER", "divider", &format!("-{right}")]);
        let refused = store.apply(&ops).await.unwrap_err();
        let named = |text: &str| text.contains(&format!("right to {right} on "));
        assert!(matches!(&refused, StoreError::Misconfigured(text) if named(text)), "{right}: {refused}");
        server.cli(&["ACL", "SETUSER", "divider", &format!("+{right}")]);
        assert_eq!(at().await, before, "{right}");
    }
    // Nor is anything of a new lineage.
    let lineage = server.cli(&["HGET", "{divider:/half/}:meta", "lineage"]);
    server.cli(&["HSET", "{divider:/half/}:meta", "lineage", "another"]);
    server.cli(&["ACL", "SETUSER", "divider", "-del"]);
    assert!(matches!(store.apply(&ops).await, Err(StoreError::Misconfigured(_))));
    server.cli(&["HSET", "{divider:/half/}:meta", "lineage", &lineage]);
    server.cli(&["ACL", "SETUSER", "divider", "+del"]);
    assert_eq!(at().await, before);
    store.renew(session).await.unwrap();
    assert_eq!(store.changes(before.1.revision).await.unwrap(), Some(Vec::<Batch>::new()));
    assert_eq!(store.apply(&ops).await.unwrap().revision.0, before.1.revision.0 + 1);
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_named_by_the_next_call_that_needs_it() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "divider", "on", ">word", "~*", "&*", "+@all"]);
    let store = store(server.url_as("divider", "word"), "/taken/");
    let (session, _) = leading(&store).await;
    store.renew(session).await.unwrap();
    server.cli(&["ACL", "SETUSER", "divider", "-hincrby", "-hvals"]);
    let names = |answer: Result<(), StoreError>, right: &str| matches!(&answer, Err(StoreError::Misconfigured(text)) if text.contains(right));
    eventually("a renewal names it", async || names(store.renew(session).await.map(drop), "hincrby")).await;
    eventually("a read names it", async || names(store.stats().await.map(drop), "hvals")).await;
    server.cli(&["ACL", "SETUSER", "divider", "+hincrby", "+hvals"]);
    eventually("renewals go on", async || store.renew(session).await.is_ok()).await;
    eventually("reads go on", async || store.stats().await.is_ok()).await;
}

/// Leads in a new session, and has a key granted as soon as it may be.
async fn granted_anew(store: &RedisStore) -> Token {
    let session = SessionId::fresh();
    assert_eq!(store.apply(&[joining(store, session).await, add("k")]).await.unwrap().outcomes[0], Outcome::Done);
    let term = store.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    let outcomes =
        store.apply(&[Op::Assign { term, key: key("k"), session }, Op::ResumeGrants { term }]).await.unwrap().outcomes;
    assert_eq!(outcomes, [Outcome::Refused(Refusal::GrantsHeld), Outcome::Done]);
    assigned(store, term, session, "k").await
}

#[tokio::test]
async fn a_token_is_not_issued_again_by_a_server_that_took_over_without_it_and_whose_clock_is_behind() {
    let (mut first, second) = (RedisServer::start(), RedisServer::start());
    let wire = Wire::to(&first).await;
    let survivor = store(wire.url(), "/skew/");
    let (session, term) = leading(&survivor).await;
    survivor.apply(&[add("k")]).await.unwrap();
    // An hour ahead, as it would be with the first server's clock.
    let ahead = term.0 + 3_600_000_000;
    first.cli(&["HSET", "{divider:/skew/}:meta", "token", &ahead.to_string()]);
    let token = assigned(&survivor, term, session, "k").await;
    assert!(token.0 > ahead);

    first.kill9();
    wire.lead_to(&second);
    // Somebody who knows nothing comes first.
    let newcomer = store(second.url(), "/skew/");
    let (other, _) = leading(&newcomer).await;
    eventually("the second server is found", async || survivor.open().await.is_ok()).await;
    assert!(matches!(survivor.poll(session, Claim::Follow).await, Err(StoreError::SessionEnded)));
    assert!(matches!(newcomer.renew(other).await, Err(StoreError::SessionEnded)));
    assert!(granted_anew(&newcomer).await > token);
}

#[tokio::test]
async fn older_data_under_a_running_server_is_a_new_lineage() {
    let server = RedisServer::with(&["--enable-debug-command", "yes"]);
    let store = store(server.url(), "/older/");
    let (session, term) = leading(&store).await;
    store.apply(&[add("k")]).await.unwrap();
    let token = assigned(&store, term, session, "k").await;
    // This writes all and reads it again.
    server.cli(&["DEBUG", "RELOAD"]);
    store.renew(session).await.unwrap();
    let reply = store.poll(session, Claim::Lead { term }).await.unwrap();
    assert_eq!((reply.token, reply.leader.map(|leader| leader.term)), (token, Some(term)));

    let confirm = Op::Confirm { session, key: key("k"), token, started: true };
    store.apply(&[confirm]).await.unwrap();
    let token = assigned(&store, term, session, "k").await;
    server.cli(&["DEBUG", "RELOAD", "NOSAVE"]);
    assert!(matches!(store.poll(session, Claim::Lead { term }).await, Err(StoreError::SessionEnded)));
    assert!(matches!(store.renew(session).await, Err(StoreError::SessionEnded)));
    assert!(granted_anew(&store).await > token);
}

#[tokio::test]
async fn a_full_server_that_was_started_again_is_opened_read_and_emptied() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let first = store(server.url(), "/full/");
    let (_, _) = leading(&first).await;
    first.apply(&[add("k")]).await.unwrap();
    server.restart();
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let store = store(server.url(), "/full/");
    assert_eq!(store.stats().await.unwrap().registered, 1);
    store.open().await.unwrap();
    let session = SessionId::fresh();
    assert_eq!(store.apply(&[joining(&store, session).await]).await.unwrap().outcomes, [Outcome::Done]);
    store.renew(session).await.unwrap();
    assert_eq!(store.apply(&[Op::Remove { key: key("k") }]).await.unwrap().outcomes, [Outcome::Done]);
    assert_eq!(store.stats().await.unwrap().registered, 0);
}

#[tokio::test]
async fn no_answer_is_much_longer_than_a_page_however_long_the_names_are() {
    let server = RedisServer::start();
    let wire = Wire::to(&server).await;
    let store = store(wire.url(), "/long/");
    let (session, term) = leading(&store).await;
    let keys: Vec<Key> = (0..2100).map(|i| key(format!("{i:0>1000}"))).collect();
    for chunk in keys.chunks(256) {
        let ops = chunk
            .iter()
            .flat_map(|key| [Op::Add(Work::from(key.clone())), Op::Assign { term, key: key.clone(), session }]);
        store.apply(&ops.collect::<Vec<_>>()).await.unwrap();
    }
    wire.longest();
    let longest = |what: &str| {
        // A page ends with the record that is too much, and a batch is not divided.
        let bytes = wire.longest();
        assert!(bytes < 2 * limits::MAX_BATCH_BYTES, "{what}: {bytes} bytes at once");
    };
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), keys.len());
    longest("holdings");
    assert_eq!(store.records(&keys).await.unwrap().len(), keys.len());
    longest("records");
    let (mut cursor, mut scanned) = (None, BTreeSet::new());
    loop {
        let page = store.scan(cursor).await.unwrap();
        scanned.extend(page.keys.into_iter().map(|view| view.key));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(scanned.len(), keys.len());
    longest("scan");
    let now = store.apply(&[]).await.unwrap().revision;
    let mut read = Revision(now.0 - 6);
    while read < now {
        read = store.changes(read).await.unwrap().unwrap().last().unwrap().revision;
    }
    longest("changes");

    store.apply(&[Op::End { session }]).await.unwrap();
    for chunk in keys.chunks(256) {
        let ops: Vec<Op> = chunk.iter().map(|key| Op::Quarantine { term, key: key.clone() }).collect();
        store.apply(&ops).await.unwrap();
    }
    wire.longest();
    assert_eq!(store.quarantined(usize::MAX).await.unwrap(), keys);
    assert_eq!(store.quarantined(1500).await.unwrap(), keys[..1500]);
    assert_eq!(store.quarantined(0).await.unwrap(), []);
    longest("what was set aside");
}

/// A call may be carried late: past a restart, and past the grants that followed on its first copy.
#[tokio::test]
async fn a_late_word_of_a_leader_does_not_end_the_hold_of_the_next_lineage() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let before = store(server.url(), "/late/");
    let (session, term) = leading(&before).await;
    before.apply(&[add("k")]).await.unwrap();
    let token = assigned(&before, term, session, "k").await;
    server.restart();
    let store = store(server.url(), "/late/");
    // Whether it is the first word that the server hears or not.
    for _ in 0..2 {
        let outcomes = store.apply(&[Op::ResumeGrants { term }]).await.unwrap().outcomes;
        assert_eq!(outcomes, [Outcome::Refused(Refusal::OldTerm)]);
        assert!(store.scan(None).await.unwrap().group.grants_held);
    }
    assert!(granted_anew(&store).await > token);
}

#[tokio::test]
async fn a_part_of_the_data_that_is_gone_is_a_new_lineage() {
    let server = RedisServer::start();
    for part in ["views", "sessions", "held"] {
        let store = store(server.url(), "/part/");
        let (session, term) = leading(&store).await;
        let other = SessionId::fresh();
        store.apply(&[joining(&store, other).await, add("k"), add("k2")]).await.unwrap();
        let token = assigned(&store, term, session, "k").await;
        server.cli(&["DEL", &format!("{{divider:/part/}}:{part}")]);
        // Whoever holds it still believes in it.
        let again = [add("k"), Op::Assign { term, key: key("k"), session: other }];
        let outcome = store.apply(&again).await.unwrap().outcomes[1];
        assert_eq!(outcome, Outcome::Refused(Refusal::OldTerm), "{part}");
        assert!(matches!(store.renew(session).await, Err(StoreError::SessionEnded)), "{part}");
        assert!(granted_anew(&store).await > token);
        let ends = store.scan(None).await.unwrap().sessions.into_iter().filter(|view| view.ended.is_none());
        let ends: Vec<Op> = ends.map(|view| Op::End { session: view.session }).collect();
        store.apply(&[ends, ["k", "k2"].map(|name| Op::Remove { key: key(name) }).to_vec()].concat()).await.unwrap();
        let mut left: Vec<_> = server.cli(&["KEYS", "*"]).lines().map(str::to_owned).collect();
        left.sort_unstable();
        assert_eq!(left, ["{divider:/part/}:log", "{divider:/part/}:meta"], "after {part}");
        server.cli(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn bytes_that_are_gone_are_an_error_and_never_none_until_the_work_is_added_again() {
    let server = RedisServer::start();
    let store = store(server.url(), "/bytes/");
    leading(&store).await;
    let work = || Op::Add(Work::from(key("k")).payload(*b"precious"));
    store.apply(&[work()]).await.unwrap();
    server.cli(&["DEL", "{divider:/bytes/}:payloads"]);
    let records = async || store.records(&[key("k")]).await;
    let session = SessionId::fresh();
    store.apply(&[joining(&store, session).await]).await.unwrap();
    let mut hints = store.hints(Topic::Session(session)).await.unwrap();
    let term = store.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    store.apply(&[Op::ResumeGrants { term }]).await.unwrap();
    assigned(&store, term, session, "k").await;
    assert_eq!(timeout(PATIENCE, hints.next()).await.unwrap(), Some(Hint::Gap));
    for error in [records().await.unwrap_err(), store.holdings(session).await.unwrap_err()] {
        assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("payloads")), "{error}");
    }
    assert_eq!(store.apply(&[work()]).await.unwrap().outcomes, [Outcome::Done]);
    assert_eq!(&*records().await.unwrap()[0].as_ref().unwrap().payload, b"precious");
    assert_eq!(&*store.holdings(session).await.unwrap().holdings[0].payload, b"precious");
}

/// A cluster of three, and a replica of the one that has the group; which one that is.
async fn with_a_replica(cluster: &RedisCluster, name: &str) -> (usize, RedisServer) {
    let slot: usize =
        cluster.nodes[0].cli(&["CLUSTER", "KEYSLOT", &format!("{{divider:{name}}}:meta")]).parse().unwrap();
    let at = slot * 3 / 16384;
    let bus = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port().to_string();
    let replica = RedisServer::with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    cluster.nodes[at].cli(&["CLUSTER", "MEET", "127.0.0.1", &replica.port().to_string(), &bus]);
    cluster.nodes[at].cli(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]);
    let primary = cluster.nodes[at].cli(&["CLUSTER", "MYID"]);
    let all = || cluster.nodes.iter().chain([&replica]);
    let know = ["cluster_known_nodes:4", "cluster_slots_ok:16384"];
    let knows = |node: &RedisServer| know.iter().all(|line| node.cli(&["CLUSTER", "INFO"]).contains(line));
    eventually("all know each other", async || all().all(knows)).await;
    replica.cli(&["CLUSTER", "REPLICATE", &primary]);
    eventually("the replica follows", async || replica.cli(&["INFO"]).contains("master_link_status:up")).await;
    (at, replica)
}

#[tokio::test]
async fn a_replica_of_a_cluster_that_takes_over_is_found_and_is_a_new_lineage() {
    let mut cluster = RedisCluster::start();
    let name = "/takeover/";
    let (at, replica) = with_a_replica(&cluster, name).await;
    let store = RedisStore::cluster(cluster.urls(), Group::new(name).unwrap()).build().unwrap();
    let (session, term) = leading(&store).await;
    store.apply(&[add("k")]).await.unwrap();
    let token = assigned(&store, term, session, "k").await;
    cluster.nodes[at].kill9();
    replica.cli(&["CLUSTER", "FAILOVER", "TAKEOVER"]);
    let ended = |answer: Result<(), StoreError>| matches!(answer, Err(StoreError::SessionEnded));
    eventually("the replica is found", async || ended(store.poll(session, Claim::Follow).await.map(drop))).await;
    eventually("so it is by renewals", async || ended(store.renew(session).await.map(drop))).await;
    assert!(granted_anew(&store).await > token);
    let mut hints = store.hints(Topic::Group).await.unwrap();
    store.apply(&[add("k2")]).await.unwrap();
    assert!(matches!(timeout(PATIENCE, hints.next()).await.unwrap(), Some(Hint::Batch(_))));
}

/// So many that they are written in more than one call.
#[tokio::test]
async fn a_thousand_sessions_end_with_their_lineage() {
    let mut server = RedisServer::with(&["--appendonly", "yes"]);
    let store = store(server.url(), "/sessions/");
    store.open().await.unwrap();
    let Op::Join { node, seen, reads, .. } = joining(&store, SessionId::fresh()).await else { panic!() };
    let joins: Vec<Op> = (0..1024)
        .map(|_| {
            let (session, node) = (SessionId::fresh(), node.clone());
            Op::Join { session, node, affinity: 1, capacity: None, lease_ms: 3000, seen, reads }
        })
        .collect();
    for joins in joins.chunks(limits::MAX_BATCH_OPS) {
        store.apply(joins).await.unwrap();
    }
    assert_eq!(store.stats().await.unwrap().sessions, 1024);
    server.stop();
    server.restart();
    eventually("it is in use again", async || store.stats().await.is_ok()).await;
    assert_eq!(store.stats().await.unwrap().sessions, 0);
    assert_eq!(store.scan(None).await.unwrap().sessions, []);
}

#[tokio::test]
async fn nothing_stays_open_where_a_store_is_closed_while_it_connects() {
    let server = RedisServer::start();
    let store = Arc::new(store(server.url(), "/closing/"));
    server.freeze();
    let opening = tokio::spawn({
        let store = store.clone();
        async move { store.open().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    store.close().await;
    server.thaw();
    assert!(opening.await.unwrap().is_err());
    let clients = async || server.cli(&["CLIENT", "LIST"]).lines().count();
    eventually("all is closed but the one who asks", async || clients().await == 1).await;
    assert!(matches!(store.open().await, Err(StoreError::Closed)));
}
