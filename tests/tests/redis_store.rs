//! The Redis backend against real servers.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use divider_core::{
    Batch, Beat, Blame, Blob, Change, Claim, Cursor, Deaths, Group, Hint, Key, Notice, Op, Outcome, Revision,
    SessionId, SessionView, Store, StoreError, Token, Topic, Verdict, Work, WorkSource, format, limits,
};
use divider_redis::{PubSubChannels, RedisConfig, RedisStore};
use divider_support::{
    ops::{add, granted, joining, key, leading},
    wait::eventually,
};
use divider_tests::{
    agree::{ENDED, Expect, agree, kept, sequences},
    redis::{RedisCluster, RedisServer},
};
use futures_util::StreamExt;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

fn group(name: &str) -> Group {
    Group::new(name).unwrap()
}

fn store(server: &RedisServer, name: &str) -> RedisStore {
    RedisStore::builder(server.url(), group(name)).build().unwrap()
}

/// What the group looks like once the store has noticed that it may have forgotten something.
async fn assert_new_lineage(store: &RedisStore, old: SessionId, last: Token, revision: Revision, registered: u64) {
    assert!(matches!(store.renew(old).await, Err(StoreError::SessionEnded)));
    assert!(matches!(store.poll(old, Claim::Follow).await, Err(StoreError::SessionEnded)));
    assert!(matches!(store.holdings(old).await, Err(StoreError::SessionEnded)));
    let page = store.scan(None).await.unwrap();
    assert!(page.group.grants_held && page.group.leader.is_none());
    assert!(page.sessions.iter().all(|session| session.ended.is_some()));
    assert!(page.revision > revision, "{:?} after {revision:?}", page.revision);
    assert_eq!(store.changes(revision).await.unwrap(), None);
    assert_eq!(store.changes(Revision(revision.0 - 1)).await.unwrap(), None);
    assert_eq!(store.stats().await.unwrap().pending, registered);
    assert_eq!(store.beats().await.unwrap(), []);

    let old_term = page.group.term;
    let session = SessionId::fresh();
    store.apply(&[joining(store, session).await, add("k")]).await.unwrap();
    let term = store.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    assert!(term > old_term);
    let assign = Op::Assign { term, key: key("k"), session };
    let outcomes = store.apply(&[assign.clone(), Op::ResumeGrants { term }, assign]).await.unwrap().outcomes;
    let [Outcome::Refused(divider_core::Refusal::GrantsHeld), Outcome::Done, Outcome::Granted(token)] = outcomes[..]
    else {
        panic!("{outcomes:?}")
    };
    assert!(token > last, "{token} after {last}");
}

/// A store for many groups at once, on a machine that may be busy.
fn patient(server: &RedisServer, name: &str) -> RedisStore {
    let patience = |config: &mut RedisConfig| {
        (config.connect_timeout, config.call_time_limit, config.ping_interval) = (SOON, SOON, SOON);
    };
    RedisStore::builder(server.url(), group(name)).configure(patience).build().unwrap()
}

#[tokio::test]
async fn it_does_what_the_ledger_does() {
    let server = RedisServer::start();
    let seen = sequences(240, Expect::ALL, async |name: String| patient(&server, &name)).await;
    assert_eq!(seen.get(ENDED), None);
}

#[tokio::test]
async fn it_does_what_the_ledger_does_where_a_store_once_did_not() {
    let server = RedisServer::start();
    kept(Expect::ALL, async |name: String| patient(&server, &name)).await;
}

#[tokio::test]
async fn nothing_is_left_of_keys_and_sessions_that_are_gone() {
    let server = RedisServer::start();
    for seed in 100..103 {
        let store = store(&server, "/left/");
        agree(&store, seed, 75).await;
        let page = store.scan(None).await.unwrap();
        // Owners first: what they still hold is then free, and goes at once.
        let end = |view: &SessionView| Op::End { session: view.session };
        let ends = page.sessions.iter().filter(|view| view.ended.is_none()).map(end);
        let removes = page.keys.iter().map(|view| Op::Remove { key: view.key.clone() });
        let outcomes = store.apply(&ends.chain(removes).collect::<Vec<_>>()).await.unwrap().outcomes;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done), "{outcomes:?}");
        let left = server.cli(&["KEYS", "*"]);
        let mut left: Vec<&str> = left.lines().collect();
        left.sort_unstable();
        assert_eq!(left, ["{divider:/left/}:log", "{divider:/left/}:meta"], "after seed {seed}");
        server.cli(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn a_key_keeps_what_the_deaths_of_its_owners_say() {
    let server = RedisServer::start();
    let store = store(&server, "/deaths/");
    let (_, term) = leading(&store).await;
    let mut expected = Deaths::default();
    for i in 0..40 {
        let session = SessionId::fresh();
        store.apply(&[joining(&store, session).await]).await.unwrap();
        let token = granted(&store, term, session, "k").await;
        // A death is written down with the grant after it.
        let record = store.records(&[key("k")]).await.unwrap().remove(0).unwrap();
        assert_eq!((record.view.deaths, record.view.attempts), (expected, i + 1));
        let blame = match i % 5 {
            0 => Blame::Young,
            1 => Blame::Only(token),
            2 => Blame::Suspects(expected.count),
            3 => Blame::Suspects(expected.count + 1),
            _ => Blame::Only(Token(token.0 + 1)),
        };
        let verdict = Verdict { healthy_below: Token(token.0 + u64::from(i == 20)), blame };
        let end = Op::Expire { term, session, beat: Beat(0), verdict };
        assert_eq!(store.apply(&[end]).await.unwrap().outcomes, [Outcome::Done]);
        expected = expected.after(verdict, token);
    }
    assert_eq!((expected.count, expected.alone), (11, 4));
}

#[tokio::test]
async fn tokens_keep_up_with_the_servers_clock() {
    let server = RedisServer::start();
    let store = store(&server, "/clock/");
    let (session, term) = leading(&store).await;
    for i in 0..3 {
        let time = server.cli(&["TIME"]);
        let (seconds, micros) = time.split_once('\n').unwrap();
        let now = seconds.parse::<u64>().unwrap() * 1_000_000 + micros.parse::<u64>().unwrap();
        let Token(token) = granted(&store, term, session, &format!("{i}")).await;
        assert!(token >= now, "{token} at {now}");
    }
}

#[tokio::test]
async fn a_restart_that_kept_its_data_ends_every_session() {
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = store(&server, "/restart/");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;
    server.restart();
    assert_new_lineage(&store, session, token, revision, 1).await;
}

#[tokio::test]
async fn a_restart_that_lost_everything_never_goes_back() {
    let mut server = RedisServer::start();
    let store = store(&server, "/loss/");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;
    server.restart();
    assert_new_lineage(&store, session, token, revision, 0).await;
}

#[tokio::test]
async fn a_restart_from_an_older_snapshot_never_goes_back() {
    let mut server = RedisServer::start();
    let store = store(&server, "/snapshot/");
    let (session, term) = leading(&store).await;
    granted(&store, term, session, "saved").await;
    server.cli(&["SAVE"]);
    for i in 0..100 {
        granted(&store, term, session, &format!("lost-{i}")).await;
    }
    let token = granted(&store, term, session, "k").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;
    server.kill9();
    assert!(store.poll(session, Claim::Follow).await.unwrap_err().is_transient());
    server.restart();
    assert_new_lineage(&store, session, token, revision, 1).await;
}

#[tokio::test]
async fn a_flushed_server_is_a_new_lineage() {
    let server = RedisServer::start();
    let store = store(&server, "/flush/");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;
    server.cli(&["FLUSHALL"]);
    assert_new_lineage(&store, session, token, revision, 0).await;
}

#[tokio::test]
async fn a_promoted_replica_and_a_returned_primary_are_new_lineages() {
    let (first, second) = (RedisServer::start(), RedisServer::start());
    second.follow(&first).await;
    let at_first = store(&first, "/failover/");
    let (session, term) = leading(&at_first).await;
    let token = granted(&at_first, term, session, "k").await;
    let revision = at_first.poll(session, Claim::Follow).await.unwrap().revision;
    second.catch_up(&first).await;

    let at_second = store(&second, "/failover/");
    let refused = at_second.apply(&[add("x")]).await.unwrap_err();
    assert!(refused.is_transient() && refused.to_string().contains("read only replica"), "{refused}");
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    assert_new_lineage(&at_second, session, token, revision, 1).await;

    // The first one never ended, so its run id is the same; but its data has been somebody else's meanwhile.
    let (session, term) = leading(&at_second).await;
    let token = granted(&at_second, term, session, "k2").await;
    let revision = at_second.poll(session, Claim::Follow).await.unwrap().revision;
    first.follow(&second).await;
    first.cli(&["REPLICAOF", "NO", "ONE"]);
    assert_new_lineage(&at_first, session, token, revision, 2).await;
}

#[tokio::test]
async fn a_backup_a_first_replica_and_the_end_of_the_backlog_end_no_session() {
    let server = RedisServer::with(&["--repl-backlog-ttl", "1"]);
    let store = store(&server, "/backup/");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;
    let last = std::cell::Cell::new(revision);
    let unharmed = async |what: &str| {
        store.renew(session).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let reply = store.poll(session, Claim::Lead { term }).await.unwrap();
        assert_eq!(reply.leader.map(|leader| (leader.session, leader.term)), Some((session, term)), "{what}");
        assert_eq!(store.holdings(session).await.unwrap().holdings[0].token, token, "{what}");
        last.set(store.apply(&[add(what)]).await.unwrap().revision);
        assert_eq!(store.changes(revision).await.unwrap().unwrap().len() as u64, last.get().0 - revision.0, "{what}");
    };
    let id = || server.info("master_replid:");

    let before = id();
    let file = tempfile::NamedTempFile::new().unwrap();
    let backup = std::process::Command::new("redis-cli")
        .args(["-p", &server.port().to_string(), "--rdb"])
        .arg(file.path())
        .output()
        .unwrap();
    assert!(backup.status.success());
    let after = id();
    assert_ne!(before, after, "the backup leaves a trace, or this tests nothing");
    unharmed("a backup").await;
    eventually("the backlog is given up", async || id() != after).await;
    unharmed("the end of the backlog").await;

    let before = id();
    let replica = RedisServer::start();
    replica.follow(&server).await;
    assert_ne!(before, id());
    unharmed("a first replica").await;

    // A promotion after all that is noticed as ever.
    replica.catch_up(&server).await;
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let promoted = RedisStore::builder(replica.url(), group("/backup/")).build().unwrap();
    assert_new_lineage(&promoted, session, token, last.get(), 4).await;
}

/// The first primary takes over the data of the second, which had lost what came last, and is promoted again; nobody wrote
/// to the second in between, so that its data still names the first one.
#[tokio::test]
async fn a_primary_that_took_its_own_older_data_back_is_a_new_lineage() {
    let (first, second) = (RedisServer::start(), RedisServer::start());
    let store = store(&first, "/back/");
    let (session, term) = leading(&store).await;
    second.follow(&first).await;
    second.cli(&["REPLICAOF", "NO", "ONE"]);
    let token = granted(&store, term, session, "lost").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;
    first.follow(&second).await;
    first.cli(&["REPLICAOF", "NO", "ONE"]);
    assert_new_lineage(&store, session, token, revision, 0).await;
}

#[tokio::test]
async fn a_killed_subscription_ends_and_can_be_opened_anew() {
    let server = RedisServer::start();
    let store = store(&server, "/kill/");
    let (session, _) = leading(&store).await;
    for topic in [Topic::Group, Topic::Session(session)] {
        let mut hints = store.hints(topic).await.unwrap();
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(timeout(SOON, hints.next()).await.unwrap(), None);
    }
    let mut hints = store.hints(Topic::Group).await.unwrap();
    let revision = store.apply(&[add("k")]).await.unwrap().revision;
    let hint = timeout(SOON, hints.next()).await.unwrap();
    assert!(matches!(hint, Some(Hint::Batch(Batch { revision: hinted, .. })) if hinted == revision), "{hint:?}");
}

#[tokio::test]
async fn a_subscription_whose_server_says_nothing_ends() {
    let server = RedisServer::start();
    let store = RedisStore::builder(server.url(), group("/silent/"))
        .configure(|config| config.ping_interval = Duration::from_millis(200))
        .build()
        .unwrap();
    let mut hints = store.hints(Topic::Group).await.unwrap();
    server.freeze();
    assert_eq!(timeout(SOON, hints.next()).await.unwrap(), None);
    server.thaw();
}

#[tokio::test]
async fn a_slow_reader_finds_a_gap_and_an_untrusted_hint_is_one() {
    let server = RedisServer::start();
    let store = store(&server, "/slow/");
    let (session, term) = leading(&store).await;
    let mut mine = store.hints(Topic::Session(session)).await.unwrap();
    let mut all = store.hints(Topic::Group).await.unwrap();
    for i in 0..600 {
        store.apply(&[add(format!("{i}"))]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(all.next().await, Some(Hint::Gap));
    while timeout(Duration::from_millis(200), all.next()).await.is_ok() {}

    let channel = format!("{{divider:/slow/}}:s:{session}");
    let huge = "x".repeat(100_000);
    for garbage in ["", "hello", "\u{1}", huge.as_str(), "\u{1}\u{1}\u{7f}"] {
        server.cli(&["PUBLISH", &channel, garbage]);
        server.cli(&["PUBLISH", "{divider:/slow/}:g", garbage]);
        assert_eq!(timeout(SOON, mine.next()).await.unwrap(), Some(Hint::Gap), "{:.10}", garbage);
        assert_eq!(timeout(SOON, all.next()).await.unwrap(), Some(Hint::Gap), "{:.10}", garbage);
    }

    // Too large to be sent: announced all the same.
    let payload = Blob::from(vec![7; limits::MAX_PAYLOAD_BYTES]);
    let work = Work::from(key("large")).payload(payload.clone());
    store.apply(&[Op::Add(work), Op::Assign { term, key: key("large"), session }]).await.unwrap();
    assert_eq!(timeout(SOON, mine.next()).await.unwrap(), Some(Hint::Gap));
    assert_eq!(store.holdings(session).await.unwrap().holdings[0].payload, payload);
    // And what fits comes with its number, so that the gap shows.
    granted(&store, term, session, "small").await;
    let Some(Hint::Message(message)) = timeout(SOON, mine.next()).await.unwrap() else { panic!() };
    assert_eq!(message.seq, 2);
    assert!(matches!(&message.notices[..], [Notice::Granted(holding)] if holding.key == key("small")));
}

#[tokio::test]
async fn a_leader_that_resigns_or_ends_is_announced() {
    let server = RedisServer::start();
    let store = store(&server, "/leader/");
    let (leader, term) = leading(&store).await;
    let other = SessionId::fresh();
    store.apply(&[joining(&store, other).await]).await.unwrap();
    let mut hints = store.hints(Topic::Session(other)).await.unwrap();
    store.resign(leader, term).await.unwrap();
    assert_eq!(timeout(SOON, hints.next()).await.unwrap(), Some(Hint::LeaderGone));
    let reply = store.poll(leader, Claim::Take { stale: None }).await.unwrap();
    assert!(reply.leader.unwrap().term > term);
    store.apply(&[Op::End { session: leader }]).await.unwrap();
    assert_eq!(timeout(SOON, hints.next()).await.unwrap(), Some(Hint::LeaderGone));
    assert_eq!(store.poll(other, Claim::Follow).await.unwrap().leader, None);
}

#[tokio::test]
async fn groups_never_see_each_other_whatever_they_are_called() {
    let server = RedisServer::start();
    let long = "}".repeat(limits::MAX_GROUP_BYTES);
    let names =
        ["a", "a}", "{a}", "a*", "a?", "[a]", "a\\", "a%7D", "a:keys", "a}:views", "*", " ", "é", "A", "a/", &long];
    let session = SessionId::fresh();
    let mut all = Vec::new();
    for name in names {
        let store = store(&server, name);
        store.open().await.unwrap();
        let hints = store.hints(Topic::Group).await.unwrap();
        all.push((name, store, hints));
    }
    for (name, store, _) in &all {
        store.apply(&[joining(store, session).await, add(name)]).await.unwrap();
    }
    for (name, store, hints) in &mut all {
        let page = store.scan(None).await.unwrap();
        assert_eq!(page.keys.iter().map(|view| view.key.as_str()).collect::<Vec<_>>(), [*name]);
        let Some(Hint::Batch(batch)) = timeout(SOON, hints.next()).await.unwrap() else { panic!() };
        assert!(matches!(batch.changes.last(), Some(Change::Key(view)) if view.key.as_str() == *name));
        assert!(timeout(Duration::from_millis(20), hints.next()).await.is_err());
    }
    all[0].1.apply(&[Op::End { session }]).await.unwrap();
    assert!(all[0].1.renew(session).await.is_err());
    assert!(all[1].1.renew(session).await.is_ok());
}

#[tokio::test]
async fn the_largest_keys_and_payloads_come_back_as_they_were() {
    let server = RedisServer::start();
    let store = store(&server, "/limits/");
    let (session, term) = leading(&store).await;
    let mut expected = BTreeMap::new();
    for i in 0..40_u32 {
        // Random text of many scripts, cut to at most 1024 bytes.
        let mut name = String::new();
        let mut seed = i.wrapping_mul(2_654_435_761) | 1;
        loop {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            let Some(c) = char::from_u32(1 + seed % 0x10_fffe) else { continue };
            if name.len() + c.len_utf8() > limits::MAX_KEY_BYTES {
                break;
            }
            name.push(c);
        }
        let payload: Vec<u8> = (0..limits::MAX_PAYLOAD_BYTES).map(|at| (at as u32 ^ i) as u8).collect();
        expected.insert(key(name), Blob::from(payload));
    }
    for (key, payload) in &expected {
        let add = Op::Add(Work::from(key.clone()).payload(payload.clone()));
        let assign = Op::Assign { term, key: key.clone(), session };
        let outcomes = store.apply(&[add, assign]).await.unwrap().outcomes;
        let Outcome::Granted(token) = outcomes[1] else { panic!("{outcomes:?}") };
        let bytes = payload.clone();
        store.apply(&[Op::Checkpoint { session, key: key.clone(), token, bytes }]).await.unwrap();
    }
    // 5 MiB of blobs: both reads go page by page.
    let holdings = store.holdings(session).await.unwrap().holdings;
    let held: BTreeMap<Key, Blob> = holdings.iter().map(|h| (h.key.clone(), h.payload.clone())).collect();
    assert_eq!(held, expected);
    assert!(holdings.iter().all(|h| h.checkpoint == h.payload));
    let mut keys: Vec<Key> = expected.keys().cloned().collect();
    keys.insert(3, key("nobody"));
    let records = store.records(&keys).await.unwrap();
    assert_eq!(records.len(), keys.len());
    assert_eq!(records[3], None);
    assert!(records.iter().flatten().all(|record| record.payload == expected[&record.view.key]));
    // The largest batch that may be.
    let work = |i: usize| Work::from(key(format!("{i}"))).payload(vec![1; limits::MAX_BATCH_BYTES / 600]);
    let ops: Vec<Op> = (0..limits::MAX_BATCH_OPS).map(|i| Op::Add(work(i))).collect();
    assert!(store.apply(&ops).await.unwrap().outcomes.iter().all(|outcome| *outcome == Outcome::Done));
}

#[tokio::test]
async fn a_hundred_thousand_keys_are_scanned_held_and_told_while_they_change() {
    const KEYS: usize = 100_000;
    let server = RedisServer::start();
    let store = patient(&server, "/many/");
    let (session, term) = leading(&store).await;
    let keys: Vec<Key> = (0..KEYS).map(|i| key(format!("key-{i}"))).collect();
    let since = Instant::now();
    for chunk in keys.chunks(256) {
        let ops: Vec<Op> = chunk.iter().map(|key| Op::Add(Work::from(key.clone()))).collect();
        store.apply(&ops).await.unwrap();
    }
    println!("added {:.0} keys/s", KEYS as f64 / since.elapsed().as_secs_f64());
    let since = Instant::now();
    for chunk in keys.chunks(256) {
        let assign = |key: &Key| Op::Assign { term, key: key.clone(), session };
        store.apply(&chunk.iter().map(assign).collect::<Vec<_>>()).await.unwrap();
    }
    println!("assigned {:.0} keys/s", KEYS as f64 / since.elapsed().as_secs_f64());
    let since = Instant::now();
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), KEYS);
    println!("read {KEYS} holdings in {:?}", since.elapsed());

    // Changes between the pages are in the batches that follow the first page.
    let since = Instant::now();
    let (mut state, mut cursor, mut first, mut at) = (BTreeMap::new(), None, None, 0);
    loop {
        let page = store.scan(cursor.take()).await.unwrap();
        first.get_or_insert(page.revision);
        state.extend(page.keys.into_iter().map(|view| (view.key.clone(), view)));
        cursor = page.next;
        store.apply(&[Op::Remove { key: keys[at].clone() }, add(format!("new-{at}"))]).await.unwrap();
        at += 1;
        if cursor.is_none() {
            break;
        }
    }
    println!("scanned {KEYS} keys in {:?}", since.elapsed());
    let mut revision = first.unwrap();
    loop {
        let batches = store.changes(revision).await.unwrap().unwrap();
        let Some(last) = batches.last() else { break };
        revision = last.revision;
        for change in batches.into_iter().flat_map(|batch| batch.changes) {
            match change {
                Change::Key(view) => _ = state.insert(view.key.clone(), view),
                Change::KeyGone(key) => _ = state.remove(&key),
                _ => {}
            }
        }
    }
    assert_eq!(state.len(), KEYS + at);
    let stopping = state.values().filter(|view| matches!(view.state, divider_core::State::Stopping { .. })).count();
    assert_eq!(stopping, at);
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.registered, stats.stopping), ((KEYS + at) as u64, at as u64));
    let bytes = log_bytes(&server, "{divider:/many/}:log");
    assert!(bytes <= 8 << 20, "{bytes}");
}

/// What the change log consists of.
fn log_bytes(server: &RedisServer, log: &str) -> u64 {
    let sum = "local n = 0 for _, e in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do n = n + #e end return n";
    server.cli(&["EVAL", sum, "1", log]).parse().unwrap()
}

#[tokio::test]
async fn the_change_log_of_a_small_group_is_small() {
    let server = RedisServer::start();
    let store = store(&server, "/small/");
    let (session, term) = leading(&store).await;
    store.apply(&[add("k")]).await.unwrap();
    let mut revisions = Vec::new();
    for _ in 0..1000 {
        let assign = Op::Assign { term, key: key("k"), session };
        let Outcome::Granted(token) = store.apply(&[assign]).await.unwrap().outcomes[0] else { panic!() };
        let confirm = Op::Confirm { session, key: key("k"), token, started: true };
        revisions.push(store.apply(&[confirm]).await.unwrap().revision);
    }
    // 512 changes, each a batch of its own.
    let [.., last] = revisions[..] else { panic!() };
    assert_eq!(store.changes(Revision(last.0 - 513)).await.unwrap(), None);
    assert!(store.changes(Revision(last.0 - 512)).await.unwrap().is_some());
    assert_eq!(server.cli(&["LLEN", "{divider:/small/}:log"]), "512");
    let counted = server.cli(&["HGET", "{divider:/small/}:meta", "log_bytes"]);
    let bytes = log_bytes(&server, "{divider:/small/}:log");
    assert_eq!(counted, bytes.to_string());
    assert!(bytes < 65_536, "{bytes}");

    // A large group's may have two changes for each key, but no more than 8 MiB.
    for batch in 0..40 {
        let ops: Vec<Op> = (0..256).map(|i| add(format!("{batch}-{i}-{}", "x".repeat(1000)))).collect();
        store.apply(&ops).await.unwrap();
    }
    let bytes = log_bytes(&server, "{divider:/small/}:log");
    assert!((7 << 20..=8 << 20).contains(&bytes), "{bytes}");
    assert!(store.changes(last).await.unwrap().is_none());
}

/// The least that a user must be allowed; the same line stands in the README.
const ACL: &str = "~{divider:/acl/}:* &{divider:/acl/}:* -@all +info +time +eval +evalsha +hget +hmget +hset +hdel \
                   +hincrby +hgetall +hvals +hlen +hexists +hscan +zadd +zrem +zcard +zrangebylex +rpush +lpop \
                   +llen +lrange +del +publish +subscribe +ping";

#[tokio::test]
async fn the_least_permissions_of_the_readme_are_enough_and_no_group_beside_it_is_open() {
    let readme = include_str!("../../divider-redis/README.md").replace("\\\n", "").replace("/process/me/", "/acl/");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&readme).contains(&words(ACL)), "the README shows another line than {ACL}");

    let server = RedisServer::start();
    let mut args = vec!["ACL", "SETUSER", "divider", "on", ">s3cret-word"];
    args.extend(ACL.split_whitespace());
    server.cli(&args);
    let url = server.url_as("divider", "s3cret-word");
    let at = |name: &str| RedisStore::builder(url.clone(), group(name)).build().unwrap();
    agree(&at("/acl/"), 4711, 150).await;
    let store = at("/acl/");
    assert!(store.hints(Topic::Group).await.is_ok());
    store.poll(SessionId::fresh(), Claim::Follow).await.unwrap_err();

    // What the README asks for beyond that, each for its own purpose.
    assert!(PubSubChannels::new(&store).fetch().await.is_err());
    let database = RedisStore::builder(format!("{url}/1"), group("/acl/")).build().unwrap();
    let refused = database.open().await.unwrap_err();
    assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused:?}");
    server.cli(&["ACL", "SETUSER", "divider", "+pubsub", "+select"]);
    assert!(PubSubChannels::new(&store).fetch().await.is_ok());
    agree(&database, 4712, 25).await;

    let other = at("/other/");
    for refused in [other.open().await.unwrap_err(), other.hints(Topic::Group).await.err().unwrap()] {
        assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused:?}");
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_when_the_store_is_opened() {
    let server = RedisServer::start();
    let mut admin = redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut user = async |rules: &[&str]| -> () {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER").arg("divider").arg(&["reset", "on", ">word"]).arg(rules);
        set.query_async(&mut admin).await.unwrap()
    };
    let all: Vec<&str> = ACL.split_whitespace().collect();
    for lacking in &all {
        if *lacking == "-@all" {
            continue;
        }
        let rules: Vec<&str> = all.iter().filter(|rule| *rule != lacking).copied().collect();
        user(&rules).await;
        let store = RedisStore::builder(server.url_as("divider", "word"), group("/acl/")).build().unwrap();
        let refused = store.open().await.unwrap_err();
        let told = refused.to_string();
        let words: Vec<&str> = told.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let named = match &lacking[..1] {
            "+" => words.contains(&&lacking[1..]),
            "&" => told.contains("publish on {divider:/acl/}:g") && told.contains("subscribe on {divider:/acl/}:l"),
            _ => words.contains(&"keys"),
        };
        assert!(matches!(refused, StoreError::Misconfigured(_)) && named, "{lacking}: {told}");
    }
    user(&all).await;
    store(&server, "/acl/").open().await.unwrap();
}

#[tokio::test]
async fn no_password_is_ever_shown() {
    let mut server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "divider", "on", ">s3cret-word", "-@all"]);
    let mut texts = Vec::new();
    for url in [
        server.url_as("divider", "s3cret-word"),
        server.url_as("divider", "wrong-s3cret-word"),
        "redis://divider:s3cret-word@no-such-host.invalid:1".to_owned(),
    ] {
        let builder = RedisStore::builder(url, group("/secret/"));
        texts.push(format!("{builder:?}"));
        let store = builder.build().unwrap();
        let errors = [store.open().await.unwrap_err(), store.hints(Topic::Group).await.err().unwrap()].map(|error| {
            let source = std::error::Error::source(&error).map(|source| format!("{source} {source:?}"));
            format!("{error} {error:?} {source:?}")
        });
        texts.extend(errors);
        texts.push(format!("{store:?}"));
    }
    server.kill9();
    let store = RedisStore::builder(server.url_as("divider", "s3cret-word"), group("/secret/")).build().unwrap();
    texts.push(format!("{:?}", store.open().await.unwrap_err()));
    for bad in ["redis://divider:s3cret-word@host:99999999", "http://divider:s3cret-word@host", "s3cret-word"] {
        let builder = RedisStore::builder(bad, group("/secret/"));
        texts.push(format!("{:?}", builder.build().unwrap_err()));
    }
    for text in texts {
        assert!(!text.contains("s3cret-word"), "{text}");
    }
}

#[tokio::test]
async fn an_evicting_server_is_refused_and_a_full_one_keeps_its_sessions() {
    let server = RedisServer::with(&["--maxmemory-policy", "allkeys-lru"]);
    let refused = store(&server, "/evict/").open().await.unwrap_err();
    assert!(matches!(&refused, StoreError::Misconfigured(text) if text.contains("noeviction")), "{refused}");

    // These drop only keys with a time to live, of which a group has none.
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    let volatile = RedisStore::builder(server.url(), group("/volatile/")).build().unwrap();
    agree(&volatile, 31, 75).await;
    for name in server.cli(&["KEYS", "*"]).lines() {
        assert_eq!(server.cli(&["TTL", name]), "-1", "{name}");
    }
    let revision = volatile.apply(&[add("kept")]).await.unwrap().revision;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(volatile.apply(&[add("more")]).await.unwrap_err().to_string().contains("OOM"));
    assert_eq!(volatile.scan(None).await.unwrap().revision, revision);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);

    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let store = store(&server, "/full/");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = store.apply(&[add("more")]).await.unwrap_err();
    assert!(matches!(&full, StoreError::Misconfigured(text) if text.contains("maxmemory")), "{full}");
    store.renew(session).await.unwrap();
    assert!(store.poll(session, Claim::Lead { term }).await.unwrap().leader.is_some());
    let complete = Op::complete(session, key("k"), token);
    assert_eq!(store.apply(&[complete]).await.unwrap().outcomes, [Outcome::Done]);
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(store.apply(&[add("more")]).await.unwrap().outcomes, [Outcome::Done]);
}

#[tokio::test]
async fn a_frozen_server_is_a_time_limit_and_a_restarted_one_is_in_use_at_once() {
    let mut server = RedisServer::start();
    let store = store(&server, "/frozen/");
    let (session, _) = leading(&store).await;
    store.renew(session).await.unwrap();
    server.freeze();
    let since = Instant::now();
    assert!(matches!(store.apply(&[add("x")]).await, Err(StoreError::Timeout { .. })));
    assert!(matches!(store.renew(session).await, Err(StoreError::Timeout { .. })));
    assert!(store.poll(session, Claim::Follow).await.unwrap_err().is_transient());
    assert!(store.hints(Topic::Group).await.err().unwrap().is_transient());
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    server.thaw();
    store.renew(session).await.unwrap();
    store.poll(session, Claim::Follow).await.unwrap();

    server.kill9();
    for _ in 0..20 {
        assert!(store.poll(session, Claim::Follow).await.unwrap_err().is_transient());
    }
    server.restart();
    let since = Instant::now();
    while store.apply(&[]).await.is_err() {}
    let took = since.elapsed();
    assert!(took < Duration::from_millis(400), "{took:?}");
    assert!(matches!(store.renew(session).await, Err(StoreError::SessionEnded)));
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_is_told_them_again() {
    let server = RedisServer::start();
    let store = store(&server, "/scripts/");
    let (session, _) = leading(&store).await;
    server.cli(&["SCRIPT", "FLUSH"]);
    store.renew(session).await.unwrap();
    store.apply(&[add("k")]).await.unwrap();
    assert_eq!(store.stats().await.unwrap().registered, 1);
}

#[tokio::test]
async fn commands_can_go_over_a_connection_or_a_pool_of_the_program() {
    let server = RedisServer::start();
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let over = RedisStore::builder(server.url(), group("/brought/")).commands_over(connection).build().unwrap();
    agree(&over, 1, 50).await;
    let config = deadpool_redis::Config::from_url(server.url());
    let pool = config.create_pool(Some(deadpool_redis::Runtime::Tokio1)).unwrap();
    let pooled = RedisStore::builder(server.url(), group("/pooled/")).commands_over_pool(pool).build().unwrap();
    agree(&pooled, 2, 50).await;
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let server = RedisServer::start();
    let store = store(&server, "/closed/");
    leading(&store).await;
    let mut hints = store.hints(Topic::Group).await.unwrap();
    store.close().await;
    assert_eq!(timeout(SOON, hints.next()).await.unwrap(), None);
}

#[tokio::test]
async fn channels_with_listeners_are_found_by_the_exact_prefix_of_the_group() {
    let server = RedisServer::start();
    let client = redis::Client::open(server.url()).unwrap();
    let mut listener = client.get_async_pubsub().await.unwrap();
    let prefix = "/a*[k]?\\{x}/";
    let long = format!("{prefix}{}", "l".repeat(limits::MAX_KEY_BYTES + 1));
    let named = |key: &str| format!("{prefix}{key}");
    for channel in [named("1"), named("two"), named("*"), named(""), long, "/ab[k]?{x}/3".to_owned(), "/a".to_owned()] {
        listener.subscribe(channel).await.unwrap();
    }
    listener.subscribe(&[&b"/a*[k]?\\{x}/\xff"[..]]).await.unwrap();
    listener.psubscribe(format!("{prefix}pattern")).await.unwrap();
    let store = store(&server, prefix);
    store.open().await.unwrap();
    let _hints = store.hints(Topic::Group).await.unwrap();
    let source = PubSubChannels::new(&store);
    let found = |work: Vec<Work>| work.iter().map(|work| work.key.to_string()).collect::<Vec<_>>();
    assert_eq!(found(source.fetch().await.unwrap()), ["*", "1", "two"]);
    listener.unsubscribe(named("1")).await.unwrap();
    assert_eq!(found(source.fetch().await.unwrap()), ["*", "two"]);
}

#[tokio::test]
async fn a_group_in_a_cluster_does_what_the_ledger_does() {
    let cluster = RedisCluster::start();
    // Enough groups that every node has some.
    for seed in 0..6 {
        let name = format!("/cluster/{seed}/");
        let store = RedisStore::cluster(cluster.urls(), group(&name)).build().unwrap();
        agree(&store, seed, 50).await;
        store.close().await;
    }
    let groups: Vec<u64> = cluster.nodes.iter().map(|node| node.cli(&["DBSIZE"]).parse().unwrap()).collect();
    assert!(groups.iter().all(|keys| *keys > 0), "{groups:?}");

    let store = RedisStore::cluster(cluster.urls().into_iter().take(1), group("/one url/")).build().unwrap();
    let (session, term) = leading(&store).await;
    let mut hints = store.hints(Topic::Session(session)).await.unwrap();
    granted(&store, term, session, "k").await;
    assert!(matches!(timeout(SOON, hints.next()).await.unwrap(), Some(Hint::Message(_))));

    // A single server's client says what to do instead.
    let mut told = 0;
    for i in 0..8 {
        let alone = RedisStore::builder(cluster.nodes[0].url(), group(&format!("/alone/{i}/"))).build().unwrap();
        if let Err(error) = alone.open().await {
            assert!(matches!(&error, StoreError::Misconfigured(text) if text.contains("cluster")), "{error}");
            told += 1;
        }
    }
    assert!(told > 0);

    // Listeners on different nodes are all found.
    let mut listeners = Vec::new();
    for (i, node) in cluster.nodes.iter().enumerate() {
        let client = redis::Client::open(node.url()).unwrap();
        let mut listener = client.get_async_pubsub().await.unwrap();
        listener.subscribe(format!("/one url/{i}")).await.unwrap();
        listener.subscribe("/one url/all").await.unwrap();
        listeners.push(listener);
    }
    let work = PubSubChannels::new(&store).fetch().await.unwrap();
    assert_eq!(work.iter().map(|work| work.key.as_str()).collect::<Vec<_>>(), ["0", "1", "2", "all"]);
}

#[tokio::test]
async fn a_group_that_moves_to_another_node_of_a_cluster_is_a_new_lineage() {
    let cluster = RedisCluster::start();
    let store = RedisStore::cluster(cluster.urls(), group("/moves/")).build().unwrap();
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let revision = store.poll(session, Claim::Follow).await.unwrap().revision;

    let slot = cluster.nodes[0].cli(&["CLUSTER", "KEYSLOT", "{divider:/moves/}:meta"]);
    let at = slot.parse::<usize>().unwrap() * 3 / 16384;
    let (from, to) = (&cluster.nodes[at], &cluster.nodes[(at + 1) % 3]);
    let id = |node: &RedisServer| node.cli(&["CLUSTER", "MYID"]);
    to.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
    from.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
    // An outage as any other, until the slot has arrived.
    for error in [store.renew(session).await.unwrap_err(), store.apply(&[add("x")]).await.unwrap_err()] {
        assert!(error.is_transient(), "{error}");
    }
    let keys = from.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
    let port = to.port().to_string();
    let mut args = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
    args.extend(keys.lines());
    from.cli(&args);
    for node in &cluster.nodes {
        node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &id(to)]);
    }

    let since = Instant::now();
    while let Err(error) = store.apply(&[]).await {
        assert!(error.is_transient() && since.elapsed() < SOON, "{error}");
    }
    while matches!(store.renew(session).await, Err(error) if error.is_transient()) {}
    assert_new_lineage(&store, session, token, revision, 1).await;
}

#[tokio::test]
async fn what_somebody_else_wrote_is_an_error_and_not_a_crash() {
    let server = RedisServer::start();
    let store = store(&server, "/foreign/");
    let (session, _) = leading(&store).await;
    let at = |name: &str| format!("{{divider:/foreign/}}:{name}");
    for (name, field) in [("views", "k"), ("sessions", "0123456789abcdef")] {
        server.cli(&["HSET", &at(name), field, "garbage"]);
        assert!(store.scan(None).await.is_err());
        server.cli(&["HDEL", &at(name), field]);
    }
    assert!(store.scan(None).await.is_ok());
    assert!(matches!(store.scan(Some(Cursor(b"*".to_vec()))).await, Err(StoreError::Corrupt(_))));
    // As a newer program writes it, and as an older one does.
    for (field, other) in [("format", format::NEWEST + 1), ("layout", 1)] {
        let ours = server.cli(&["HGET", &at("meta"), field]);
        server.cli(&["HSET", &at("meta"), field, &other.to_string()]);
        let refused = |error| match error {
            StoreError::TooOld { needs, reads } => field == "format" && (needs, reads) == (other, format::NEWEST),
            StoreError::Misconfigured(text) => text.contains(field),
            _ => false,
        };
        assert!(refused(store.apply(&[]).await.unwrap_err()));
        assert!(refused(store.poll(session, Claim::Follow).await.unwrap_err()));
        assert!(refused(store.scan(None).await.unwrap_err()));
        server.cli(&["HSET", &at("meta"), field, &ours]);
    }
    assert!(store.scan(None).await.is_ok());
    server.cli(&["SET", &at("views"), "x"]);
    assert!(matches!(store.scan(None).await, Err(StoreError::Corrupt(_))));
    store.renew(session).await.unwrap();
}

#[tokio::test]
async fn the_least_permissions_in_a_cluster_are_one_more() {
    let cluster = RedisCluster::start();
    let mut args = vec!["ACL", "SETUSER", "divider", "on", ">s3cret-word"];
    args.extend(ACL.split_whitespace());
    args.push("+cluster|slots");
    for node in &cluster.nodes {
        node.cli(&args);
    }
    let urls = cluster.nodes.iter().map(|node| node.url_as("divider", "s3cret-word"));
    agree(&RedisStore::cluster(urls, group("/acl/")).build().unwrap(), 5, 50).await;
}
