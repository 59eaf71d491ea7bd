//! The PostgreSQL backend on a real server.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use divider_core::{
    Beat, Blob, Claim, Group, Hint, Key, Op, Outcome, Refusal, Revision, SessionId, Store, StoreError, Term, Token,
    Topic, Work, WorkSource, limits,
};
use divider_postgres::{PostgresConfig, PostgresStore, QuerySource, migrate};
use divider_support::{
    ops::{add, granted, joined, joining, key, leading},
    wait::until,
};
use divider_tests::{
    agree::{Expect, agree_with, kept, sequences},
    postgres::{PostgresServer, prepared},
};
use futures_util::{StreamExt, future::join_all};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

/// Longer than anything here takes that succeeds.
const SOON: Duration = Duration::from_secs(10);

/// A group name that would have to be quoted in SQL.
fn group(name: &str) -> Group {
    Group::new(format!("/{name}'\"%_\\/é\u{1f600}/")).unwrap()
}

/// A server with the schema in it.
async fn server() -> PostgresServer {
    prepared(&[]).await
}

fn store(server: &PostgresServer, name: &str) -> PostgresStore {
    PostgresStore::builder(server.url(), group(name)).build().unwrap()
}

async fn take(store: &PostgresStore, session: SessionId) -> Result<Option<Term>, StoreError> {
    let reply = store.poll(session, Claim::Take { stale: None }).await?;
    Ok(reply.leader.filter(|leader| leader.session == session).map(|leader| leader.term))
}

async fn hint(hints: &mut divider_core::HintStream) -> Hint {
    timeout(SOON, hints.next()).await.expect("a hint").expect("the stream goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_the_ledger_does() {
    let server = server().await;
    let pool = shared(&server).await;
    sequences(240, EXPECT, async |name: String| pooled(&pool, &name)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_the_ledger_does_where_a_store_once_did_not() {
    let server = server().await;
    let pool = shared(&server).await;
    kept(EXPECT, async |name: String| pooled(&pool, &name)).await;
}

/// Leadership is a lock here, and every hint comes as long as the connection stands.
const EXPECT: Expect = Expect { leases: false, hints: true };

/// The runner polls only now and then, and a leader that does not loses its leadership: so give it time.
fn agreeing(url: &str, schema: &str, name: &str) -> PostgresStore {
    let config = |config: &mut PostgresConfig| config.leader_timeout = Some(Duration::from_secs(600));
    PostgresStore::builder(url, group(name)).schema(schema).configure(config).build().unwrap()
}

/// Connections for a run of many short-lived stores: each would have the server plan all statements for itself.
async fn shared(server: &PostgresServer) -> PgPool {
    let options: PgConnectOptions = server.url().parse().unwrap();
    // What a store sets on connections of its own.
    let planning = [("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off"), ("jit", "off")];
    let pool = PgPoolOptions::new().max_connections(4).test_before_acquire(false);
    pool.connect_with(options.options(planning)).await.unwrap()
}

fn pooled(pool: &PgPool, name: &str) -> PostgresStore {
    let mut config = PostgresConfig::with_pool(pool.clone(), group(name));
    config.leader_timeout = Some(Duration::from_secs(600));
    // Many wait for few connections.
    config.call_time_limit = SOON;
    PostgresStore::new(config).unwrap()
}

#[tokio::test]
async fn a_restart_keeps_sessions_and_grants() {
    let mut server = server().await;
    let store = store(&server, "restart");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let beat = store.renew(session).await.unwrap();
    for kill in [false, true] {
        let mut hints = store.hints(Topic::Session(session)).await.unwrap();
        if kill {
            server.kill9()
        } else {
            server.stop_immediate()
        }
        assert!(store.apply(&[]).await.is_err());
        server.restart();
        let (renewed, took) = until(|| store.renew(session)).await;
        assert!(renewed > beat && took < Duration::from_secs(2), "{renewed} after {took:?}");
        assert_eq!(hint(&mut hints).await, Hint::Gap);
        let (holdings, _) = until(|| store.holdings(session)).await;
        assert_eq!(holdings.holdings[0].token, token);
        until(|| store.apply(&[])).await;
        assert!(!store.scan(None).await.unwrap().group.grants_held);
        // The lock went with the connection, and with it the leadership, though nobody else has it.
        let (reply, _) = until(|| store.poll(session, Claim::Follow)).await;
        assert_eq!(reply.leader, None);
        assert!(take(&store, session).await.unwrap().unwrap() > term);
    }
    // Numbers jump ahead where a server begins, which makes no grant of before younger than a session of after.
    assert_eq!(store.poll(session, Claim::Follow).await.unwrap().token, token);
    let newcomer = SessionId::fresh();
    store.apply(&[joining(&store, newcomer).await]).await.unwrap();
    let sessions = store.scan(None).await.unwrap().sessions;
    assert_eq!(sessions.iter().find(|view| view.session == newcomer).unwrap().joined, token);
    assert!(granted(&store, term_of(&store, session).await, newcomer, "l").await > token);
}

/// The term in which a session leads.
async fn term_of(store: &PostgresStore, session: SessionId) -> Term {
    store.poll(session, Claim::Follow).await.unwrap().leader.unwrap().term
}

/// What the group looks like once the store has noticed that the server may have forgotten something.
async fn assert_new_lineage(store: &PostgresStore, old: SessionId, last: Token, revision: Revision) {
    assert!(matches!(store.renew(old).await, Err(StoreError::SessionEnded)));
    assert!(matches!(
        until(|| async {
            store.poll(old, Claim::Follow).await.map_or_else(
                |error| if error.is_transient() { Err(error) } else { Ok(error) },
                |_| panic!("the session is over"),
            )
        })
        .await
        .0,
        StoreError::SessionEnded
    ));
    assert!(matches!(store.holdings(old).await, Err(StoreError::SessionEnded)));
    let page = store.scan(None).await.unwrap();
    assert!(page.group.grants_held && page.group.leader.is_none());
    assert!(page.sessions.iter().all(|session| session.ended.is_some()));
    assert!(page.revision > revision, "{:?} after {revision:?}", page.revision);
    assert_eq!(store.changes(revision).await.unwrap(), None);
    assert_eq!(store.changes(Revision(revision.0 - 1)).await.unwrap(), None);
    assert_eq!(store.beats().await.unwrap(), []);

    let session = SessionId::fresh();
    store.apply(&[joining(store, session).await, add("k")]).await.unwrap();
    let term = take(store, session).await.unwrap().unwrap();
    assert!(term > page.group.term);
    let assign = Op::Assign { term, key: key("k"), session };
    let outcomes = store.apply(&[assign.clone(), Op::ResumeGrants { term }, assign]).await.unwrap().outcomes;
    let [Outcome::Refused(Refusal::GrantsHeld), Outcome::Done, Outcome::Granted(token)] = outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert!(token > last, "{token} after {last}");
}

#[tokio::test]
async fn a_promoted_replica_is_a_new_lineage() {
    let primary = server().await;
    let before = store(&primary, "promoted");
    let (session, term) = leading(&before).await;
    let token = granted(&before, term, session, "k").await;
    let revision = before.apply(&[]).await.unwrap().revision;
    let replica = primary.replica();
    let after = store(&replica, "promoted");
    let refused = after.open().await.unwrap_err();
    assert!(refused.to_string().contains("standby"), "{refused}");
    drop(primary);
    replica.promote();
    until(|| after.open()).await;
    assert_new_lineage(&after, session, token, revision).await;
}

#[tokio::test]
async fn a_backup_in_another_cluster_is_a_new_lineage_whatever_finds_out_first() {
    let server = server().await;
    for (name, first) in [("apply", 0), ("renew", 1), ("poll", 2), ("open", 3)] {
        let store = store(&server, name);
        let (session, term) = leading(&store).await;
        let token = granted(&store, term, session, "k").await;
        let revision = store.apply(&[]).await.unwrap().revision;
        let name = group(name).as_str().replace('\'', "''");
        server.psql(&format!("UPDATE divider.groups SET lineage = 'elsewhere' WHERE name = '{name}'"));
        match first {
            0 => drop(store.apply(&[]).await.unwrap()),
            1 => {
                // A renewal never waits for the group, so it leaves the rest to the next call.
                assert!(matches!(store.renew(session).await, Err(StoreError::SessionEnded)));
                store.apply(&[]).await.unwrap();
            }
            2 => assert!(matches!(store.poll(session, Claim::Follow).await, Err(StoreError::SessionEnded))),
            _ => store.open().await.unwrap(),
        }
        assert_new_lineage(&store, session, token, revision).await;
    }
}

#[tokio::test]
async fn any_connection_may_be_terminated_at_any_time() {
    let server = server().await;
    let (a, b) = (store(&server, "cut"), store(&server, "cut"));
    let (session, term) = leading(&a).await;
    let other = joined(&b).await;
    a.renew(session).await.unwrap();
    let mut hints = a.hints(Topic::Session(session)).await.unwrap();
    let mut changes = a.hints(Topic::Group).await.unwrap();
    server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'divider'");
    // Every one of them is opened anew, and nothing that is missed meanwhile is missed in silence.
    let added = [add("k")];
    until(|| a.apply(&added)).await;
    a.renew(session).await.unwrap();
    assert_eq!(hint(&mut hints).await, Hint::Gap);
    assert_eq!(hint(&mut changes).await, Hint::Gap);
    let (reply, _) = until(|| a.poll(session, Claim::Lead { term })).await;
    assert_eq!(reply.leader, None, "a leader whose lock is gone leads no more");
    let (next, took) = until(|| async { take(&b, other).await.and_then(|term| term.ok_or(StoreError::Closed)) }).await;
    assert!(next > term && took < Duration::from_millis(500), "{took:?}");
    assert_eq!(a.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap().session, other);
    // And they work again.
    while hint(&mut changes).await == Hint::Gap {}
    granted(&b, next, session, "k").await;
    assert!(matches!(hint(&mut hints).await, Hint::Message(message) if message.seq == 1));
}

#[tokio::test]
async fn a_dead_leader_is_replaced_at_once_and_a_silent_one_after_its_time() {
    let server = server().await;
    let config = |config: &mut PostgresConfig| config.leader_timeout = Some(Duration::from_millis(400));
    let open = || PostgresStore::builder(server.url(), group("lead")).configure(config).build().unwrap();
    let (a, b) = (open(), open());
    let leader = joined(&a).await;
    let first = take(&a, leader).await.unwrap().unwrap();
    let other = joined(&b).await;
    assert_eq!(take(&b, other).await.unwrap(), None);
    // As the end of its process would.
    drop(a);
    let (second, took) = until(|| async { take(&b, other).await.unwrap().ok_or("not yet") }).await;
    assert!(second > first && took < Duration::from_millis(500), "{took:?}");

    // One whose process hangs: it holds its connection, but asks nothing of it.
    let c = open();
    let third = joined(&c).await;
    // Its silence begins here, however long the other took to join.
    b.poll(other, Claim::Lead { term: second }).await.unwrap();
    assert_eq!(take(&c, third).await.unwrap(), None);
    let (_, took) = until(|| async { take(&c, third).await.unwrap().ok_or("not yet") }).await;
    assert!((Duration::from_millis(200)..Duration::from_millis(900)).contains(&took), "{took:?}");
    assert_eq!(take(&b, other).await.unwrap_or_default(), None);
}

#[tokio::test]
async fn a_leader_that_resigns_or_ends_is_announced() {
    let server = server().await;
    let (a, b) = (store(&server, "resign"), store(&server, "resign"));
    let (first, term) = leading(&a).await;
    let second = joined(&b).await;
    let mut hints = b.hints(Topic::Session(second)).await.unwrap();
    a.resign(second, term).await.unwrap();
    a.resign(first, Term(term.0 + 1)).await.unwrap();
    assert_eq!(take(&b, second).await.unwrap(), None);
    a.resign(first, term).await.unwrap();
    assert_eq!(hint(&mut hints).await, Hint::LeaderGone);
    let term = take(&b, second).await.unwrap().unwrap();
    let mut hints = a.hints(Topic::Session(first)).await.unwrap();
    b.apply(&[Op::End { session: second }]).await.unwrap();
    assert_eq!(hint(&mut hints).await, Hint::LeaderGone);
    assert!(take(&a, first).await.unwrap().unwrap() > term);
}

/// A node that has lost its session opens another one on the same store, and nobody else could free the lock.
#[tokio::test]
async fn a_leadership_of_an_earlier_session_does_not_stay_for_ever() {
    let server = server().await;
    let store = store(&server, "again");
    let (first, term) = leading(&store).await;
    let second = joined(&store).await;
    let reply = store.poll(second, Claim::Take { stale: None }).await.unwrap();
    let seen = reply.leader.unwrap();
    assert_eq!((seen.session, seen.term), (first, term));
    let reply = store.poll(second, Claim::Take { stale: Some((seen.term, seen.beat)) }).await.unwrap();
    assert_eq!(reply.leader.unwrap().session, second);
    let ended = Op::Expire {
        term: reply.leader.unwrap().term,
        session: first,
        beat: Beat(0),
        verdict: divider_core::Verdict::young(Token(0)),
    };
    assert_eq!(store.apply(&[ended]).await.unwrap().outcomes, [Outcome::Done]);
}

#[tokio::test]
async fn locks_are_one_for_each_node_and_one_for_each_group() {
    let server = server().await;
    let mut stores = Vec::new();
    for group in ["locks-a", "locks-b"] {
        for _ in 0..5 {
            let store = store(&server, group);
            let session = joined(&store).await;
            store.renew(session).await.unwrap();
            store.poll(session, Claim::Take { stale: None }).await.unwrap();
            stores.push((store, session));
        }
    }
    let (store, session) = &stores[0];
    let term = take(store, *session).await.unwrap().unwrap();
    let names: Vec<Key> = (0..200).map(|i| key(format!("k{i}"))).collect();
    let mut ops: Vec<Op> = names.iter().map(|key| Op::Add(Work::from(key.clone()))).collect();
    ops.extend(names.into_iter().map(|key| Op::Assign { term, key, session: *session }));
    assert!(matches!(store.apply(&ops).await.unwrap().outcomes[399], Outcome::Granted(_)));
    let count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(server.psql(count), "12");
    for (store, _) in &stores {
        store.close().await;
    }
    let (_, took) = until(|| async { if server.psql(count) == "0" { Ok(()) } else { Err("still held") } }).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_session_is_gone_while_its_connection_is() {
    let server = server().await;
    let leader = store(&server, "early");
    leading(&leader).await;
    let (node, quiet) = (store(&server, "early"), store(&server, "early"));
    // The second one has never renewed: it has no connection to lose.
    let (session, _) = (joined(&node).await, joined(&quiet).await);
    node.renew(session).await.unwrap();
    assert_eq!(leader.gone().await.unwrap(), []);
    node.close().await;
    let gone = || async {
        let gone = leader.gone().await.unwrap();
        if gone.is_empty() { Err("not yet") } else { Ok(gone) }
    };
    let (gone, took) = until(gone).await;
    assert!(gone == [session] && took < Duration::from_millis(500), "{gone:?} {took:?}");
    // A new connection of the same session takes it back.
    let again = store(&server, "early");
    again.open().await.unwrap();
    again.renew(session).await.unwrap();
    assert_eq!(leader.gone().await.unwrap(), []);
}

#[tokio::test]
async fn groups_never_see_each_other_even_with_the_same_sessions() {
    let server = server().await;
    migrate(&server.url().parse().unwrap(), "other \"one\"").await.unwrap();
    let elsewhere = PostgresStore::builder(server.url(), Group::new("/p/").unwrap()).schema("other \"one\"");
    let mut stores = vec![elsewhere.build().unwrap()];
    for name in ["/p/", "/p/q/", "/P/", "/p%/", "/p_"] {
        stores.push(PostgresStore::builder(server.url(), Group::new(name).unwrap()).build().unwrap());
    }
    let session = SessionId::fresh();
    for store in &stores {
        store.open().await.unwrap();
        store.apply(&[joining(store, session).await, add("q/k")]).await.unwrap();
        // Each has a lock of its own.
        let term = take(store, session).await.unwrap().unwrap();
        assert_eq!(store.apply(&[Op::Assign { term, key: key("q/k"), session }]).await.unwrap().outcomes.len(), 1);
    }
    let mut hints = Vec::new();
    for store in &stores {
        hints.push((store.hints(Topic::Session(session)).await.unwrap(), store.hints(Topic::Group).await.unwrap()));
    }
    stores[0].apply(&[Op::Remove { key: key("q/k") }, Op::End { session }]).await.unwrap();
    for (store, (session_hints, group_hints)) in stores.iter().zip(&mut hints).skip(1) {
        assert_eq!(store.holdings(session).await.unwrap().holdings.len(), 1);
        assert_eq!(store.stats().await.unwrap().registered, 1);
        assert!(timeout(Duration::from_millis(30), session_hints.next()).await.is_err());
        assert!(timeout(Duration::from_millis(30), group_hints.next()).await.is_err());
    }
    assert!(matches!(stores[0].holdings(session).await, Err(StoreError::SessionEnded)));
}

#[tokio::test]
async fn the_largest_keys_and_payloads_come_back_as_they_were() {
    let server = server().await;
    let store = store(&server, "limits");
    let (session, term) = leading(&store).await;
    let mut hints = store.hints(Topic::Session(session)).await.unwrap();
    let large = Blob::from((0..limits::MAX_PAYLOAD_BYTES).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    let longest = "\u{10ffff}".repeat(limits::MAX_KEY_BYTES / 4);
    let names =
        [&longest, "é", "e\u{301}", "a%", "a_", "a\\", "'; DROP TABLE keys; --", "{}", "a\u{1}\n\t\"", " ", "A", "a"];
    for name in names {
        store.apply(&[Op::Add(Work::new(name).unwrap().payload(large.to_vec()))]).await.unwrap();
        let Outcome::Granted(token) =
            store.apply(&[Op::Assign { term, key: key(name), session }]).await.unwrap().outcomes[0]
        else {
            panic!("{name:?} is not granted")
        };
        let Hint::Message(message) = hint(&mut hints).await else { panic!("a message") };
        let divider_core::Notice::Granted(holding) = &message.notices[0] else { panic!("{message:?}") };
        assert!(holding.key == key(name) && holding.payload == large, "{name:?}");
        let bytes = large.clone();
        let checkpoint = Op::Checkpoint { session, key: key(name), token, bytes };
        assert_eq!(store.apply(&[checkpoint]).await.unwrap().outcomes, [Outcome::Done]);
    }
    let keys: Vec<Key> = names.iter().map(key).collect();
    let records = store.records(&keys).await.unwrap();
    for (key, record) in keys.iter().zip(records) {
        let record = record.unwrap();
        assert!(record.view.key == *key && record.payload == large && record.checkpoint == large, "{key:?}");
    }
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), names.len());
    assert_eq!(store.stats().await.unwrap().assigned, names.len() as u64);
    // Byte by byte, whatever the database's collation.
    let scanned: Vec<Key> = store.scan(None).await.unwrap().keys.into_iter().map(|view| view.key).collect();
    let mut sorted = keys;
    sorted.sort();
    assert_eq!(scanned, sorted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_keys_are_added_granted_scanned_and_told() {
    const KEYS: usize = 100_000;
    let server = server().await;
    let store = store(&server, "many");
    let (session, term) = leading(&store).await;
    let mut hints = store.hints(Topic::Session(session)).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut told = 0;
        while told < KEYS {
            let Hint::Message(message) = hint(&mut hints).await else { return Err(told) };
            told += message.notices.len();
        }
        Ok(())
    });
    let names: Vec<Key> = (0..KEYS).map(|i| key(format!("tenant-{i}"))).collect();
    let since = Instant::now();
    for chunk in names.chunks(limits::MAX_BATCH_OPS) {
        let ops: Vec<Op> = chunk.iter().map(|key| Op::Add(Work::from(key.clone()))).collect();
        assert!(store.apply(&ops).await.unwrap().outcomes.iter().all(|outcome| *outcome == Outcome::Done));
    }
    let added = since.elapsed();
    for chunk in names.chunks(limits::MAX_BATCH_OPS) {
        let ops: Vec<Op> = chunk.iter().map(|key| Op::Assign { term, key: key.clone(), session }).collect();
        let outcomes = store.apply(&ops).await.unwrap().outcomes;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Granted(_))));
    }
    let assigned = since.elapsed() - added;
    // A reader that is far behind is told to read everything instead.
    let told = reader.await.unwrap();
    println!("{KEYS} keys: added in {added:?}, granted in {assigned:?}, all told one by one: {}", told.is_ok());
    let since = Instant::now();
    let (mut scanned, mut cursor) = (0, None);
    loop {
        let page = store.scan(cursor.take()).await.unwrap();
        scanned += page.keys.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let scan = since.elapsed();
    assert_eq!(scanned, KEYS);
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), KEYS);
    println!("scanned in {scan:?}, held in {:?}", since.elapsed() - scan);
    // What an idle node does does not depend on how many keys there are.
    let since = Instant::now();
    for _ in 0..100 {
        store.poll(session, Claim::Lead { term }).await.unwrap();
        store.beats().await.unwrap();
    }
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let since = Instant::now();
    store.apply(&[Op::End { session }]).await.unwrap();
    println!("the end of a session with {KEYS} keys: {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_programs_may_migrate_at_once_and_a_schema_that_needs_a_newer_program_is_refused() {
    let server = PostgresServer::start();
    let url: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
    let unmade = store(&server, "unmade").open().await.unwrap_err();
    assert!(matches!(&unmade, StoreError::Misconfigured(text) if text.contains("migrate()")), "{unmade}");
    for schema in ["divider", "Other; \"schema\""] {
        let migrations = (0..10).map(|_| {
            tokio::spawn({
                let (url, schema) = (url.clone(), schema.to_owned());
                async move { migrate(&url, &schema).await }
            })
        });
        for migrated in join_all(migrations).await {
            migrated.unwrap().unwrap();
        }
    }
    store(&server, "made").open().await.unwrap();
    // What a newer program has added is in nobody's way.
    server.psql("INSERT INTO divider.schema_version SELECT 1000, max(version) FROM divider.schema_version");
    migrate(&url, "divider").await.unwrap();
    store(&server, "newer, and compatible").open().await.unwrap();
    // What it has changed is.
    server.psql("INSERT INTO divider.schema_version VALUES (1001, 999)");
    let newer = [migrate(&url, "divider").await.unwrap_err(), store(&server, "newer").open().await.unwrap_err()];
    for refused in newer {
        assert!(matches!(&refused, StoreError::Misconfigured(text) if text.contains("version 999")), "{refused}");
    }
    server.psql("DELETE FROM divider.schema_version WHERE version > 3");
    let older = store(&server, "older").open().await.unwrap_err();
    assert!(matches!(&older, StoreError::Misconfigured(text) if text.contains("migrate()")), "{older}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_migrates_by_itself_makes_its_schema_when_it_is_opened() {
    let server = PostgresServer::start();
    let stores = (0..3).map(|node| {
        let store =
            PostgresStore::builder(server.url(), group(&format!("unmade {node}"))).migrates(true).build().unwrap();
        tokio::spawn(async move { store.open().await })
    });
    for opened in join_all(stores.collect::<Vec<_>>()).await {
        opened.unwrap().unwrap();
    }
    store(&server, "made").open().await.unwrap();
}

/// The files, as the first of them says that they are to be run.
#[tokio::test]
async fn the_files_can_be_run_by_hand() {
    let server = PostgresServer::start();
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../divider-postgres/migrations");
    let mut all = String::from("BEGIN; CREATE SCHEMA byhand; SET LOCAL search_path TO byhand;\n");
    let mut names: Vec<_> = std::fs::read_dir(files).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for name in names {
        all.push_str(&std::fs::read_to_string(name).unwrap());
    }
    server.psql(&(all + "COMMIT;"));
    let store = agreeing(&server.url(), "byhand", "by-hand");
    agree_with(&store, 7, 50, EXPECT).await;
}

/// The grants of the README, for a role that may do nothing else.
const GRANTS: &str = "CREATE ROLE app LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    GRANT USAGE ON SCHEMA divider TO app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA divider TO app;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA divider TO app;";

#[tokio::test]
async fn the_grants_of_the_readme_are_enough_and_less_is_a_clear_error() {
    let server = server().await;
    // As in a database where nobody may do anything by default.
    server.psql("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA divider FROM PUBLIC");
    server.psql("CREATE ROLE stranger LOGIN");
    server.psql(GRANTS);
    let store = agreeing(&server.url_as("app"), "divider", "role");
    agree_with(&store, 11, 75, EXPECT).await;
    let stranger = PostgresStore::builder(server.url_as("stranger"), group("role")).build().unwrap();
    let refused = stranger.open().await.unwrap_err();
    assert!(matches!(&refused, StoreError::Misconfigured(text) if text.contains("README")), "{refused}");
    assert!(!server.try_psql("app", "CREATE TABLE divider.mine ()").status.success());
}

/// A pgbouncer before the server.
struct Bouncer {
    port: u16,
    process: Child,
}

impl Bouncer {
    fn start(server: &PostgresServer, mode: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ini = server.dir().join(format!("{mode}.ini"));
        let users = server.dir().join("users");
        std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let text = [
            "[databases]".to_owned(),
            format!("postgres = host=127.0.0.1 port={} user=postgres", server.port()),
            "[pgbouncer]".to_owned(),
            "listen_addr = 127.0.0.1".to_owned(),
            format!("listen_port = {port}"),
            "auth_type = any".to_owned(),
            format!("auth_file = {}", users.display()),
            format!("pool_mode = {mode}"),
            "unix_socket_dir =".to_owned(),
            // It does not run as root either, and ignores this where it is not started as root.
            "user = nobody".to_owned(),
        ];
        std::fs::write(&ini, text.join("\n")).unwrap();
        let process = Command::new("pgbouncer").arg("-q").arg(ini).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.expect("pgbouncer is not installed (Debian and Ubuntu: apt-get install pgbouncer)");
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(since.elapsed() < SOON, "pgbouncer does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { port, process }
    }

    fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_pooler_is_refused_in_transaction_mode_and_used_in_session_mode() {
    let server = server().await;
    for mode in ["transaction", "statement"] {
        let bouncer = Bouncer::start(&server, mode);
        let pooled = PostgresStore::builder(bouncer.url(), group("pooled")).build().unwrap();
        let refused = pooled.open().await.unwrap_err();
        assert!(matches!(&refused, StoreError::Misconfigured(text) if text.contains("pool_mode")), "{mode}: {refused}");
    }
    // The node's own connections may be good and the program's pool not.
    let bouncer = Bouncer::start(&server, "transaction");
    let options: PgConnectOptions = bouncer.url().parse().unwrap();
    let pool = PgPool::connect_with(options.extra_float_digits(None)).await.unwrap();
    let mixed = PostgresStore::builder(server.url(), group("mixed")).pool(pool).build().unwrap();
    let refused = mixed.open().await.unwrap_err();
    assert!(matches!(&refused, StoreError::Misconfigured(text) if text.contains("pool_mode")), "{refused}");
    let bouncer = Bouncer::start(&server, "session");
    let store = agreeing(&bouncer.url(), "divider", "session-mode");
    agree_with(&store, 3, 50, EXPECT).await;
}

#[tokio::test]
async fn a_pool_of_the_program_may_be_brought() {
    let server = server().await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let mut config = PostgresConfig::with_pool(pool.clone(), group("brought"));
    config.leader_timeout = Some(Duration::from_secs(600));
    let store = PostgresStore::new(config).unwrap();
    agree_with(&store, 2, 50, EXPECT).await;
    store.close().await;
    assert!(!pool.is_closed());
}

#[tokio::test]
async fn a_frozen_server_is_a_time_limit_and_a_thawed_one_is_in_use_at_once() {
    let server = server().await;
    let limit = Duration::from_millis(300);
    let store = PostgresStore::builder(server.url(), group("frozen")).call_time_limit(limit).build().unwrap();
    let (session, term) = leading(&store).await;
    store.renew(session).await.unwrap();
    let mut hints = store.hints(Topic::Group).await.unwrap();
    for _ in 0..2 {
        server.freeze();
        let since = Instant::now();
        // Each within its limit, also where more of them hang than there are connections.
        let calls = (0..8).map(|_| store.apply(&[]));
        assert!(join_all(calls).await.iter().all(Result::is_err));
        let (renewed, polled) = tokio::join!(store.renew(session), store.poll(session, Claim::Lead { term }));
        assert!(renewed.is_err() && polled.is_err(), "{renewed:?} {polled:?}");
        assert!(store.open().await.is_err());
        assert!(since.elapsed() < limit * 8, "{:?}", since.elapsed());
        server.thaw();
        let since = Instant::now();
        until(|| store.apply(&[])).await;
        until(|| store.renew(session)).await;
        until(|| store.poll(session, Claim::Follow)).await;
        assert!(since.elapsed() < Duration::from_millis(700), "{:?}", since.elapsed());
        assert_eq!(hint(&mut hints).await, Hint::Gap);
    }
}

/// A batch holds the group's row; a renewal must not wait for it.
#[tokio::test]
async fn a_renewal_waits_for_no_batch() {
    let server = server().await;
    let store = store(&server, "waits");
    let session = joined(&store).await;
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::raw_sql("SELECT * FROM divider.groups FOR UPDATE").execute(&mut *held).await.unwrap();
    let since = Instant::now();
    store.renew(session).await.unwrap();
    assert!(since.elapsed() < Duration::from_millis(300), "{:?}", since.elapsed());
    // The batch does, and gives up in time.
    assert!(matches!(store.apply(&[add("k")]).await, Err(StoreError::Timeout { .. })));
    held.rollback().await.unwrap();
    store.apply(&[add("k")]).await.unwrap();
}

#[tokio::test]
async fn beats_stay_on_their_page_and_leave_nothing_to_clean() {
    let server = server().await;
    let store = store(&server, "hot");
    let session = joined(&store).await;
    for _ in 0..500 {
        store.renew(session).await.unwrap();
    }
    store.close().await;
    let (row, _) = until(|| async {
        let row = server.psql(
            "SELECT n_tup_upd, n_tup_hot_upd, pg_relation_size(relid) FROM pg_stat_user_tables WHERE relname = 'beats'",
        );
        if row.starts_with("500|") { Ok(row) } else { Err(row) }
    })
    .await;
    // Two pages at most: the rows with which connections are made ready are taken back, but had a place.
    assert!(matches!(&*row, "500|500|8192" | "500|500|16384"), "{row}");
}

#[tokio::test]
async fn a_transaction_commits_only_under_the_current_token() {
    let server = server().await;
    let store = store(&server, "fence");
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let assert_current = "SELECT divider.assert_current($1, $2, $3)";
    let name = group("fence");
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut check = async |key: &str, token: u64| {
        let query = sqlx::query(assert_current);
        query.bind(name.as_str()).bind(key).bind(token as i64).execute(&mut other).await.map(drop)
    };
    check("k", token.0).await.unwrap();
    for (key, token) in [("k", token.0 + 1), ("k", token.0 - 1), ("none", token.0)] {
        let refused = check(key, token).await.unwrap_err();
        assert_eq!(refused.as_database_error().and_then(|e| e.code()).as_deref(), Some("DV001"), "{refused}");
    }

    // While the old owner's transaction is open its key goes to nobody else, and nothing else waits for it.
    let mut held = other.begin().await.unwrap();
    sqlx::query(assert_current).bind(name.as_str()).bind("k").bind(token.0 as i64).execute(&mut *held).await.unwrap();
    let heir = joined(&store).await;
    let since = Instant::now();
    let revoke = Op::Revoke { term, key: key("k"), token };
    let confirm = Op::Confirm { session, key: key("k"), token, started: true };
    let assign = Op::Assign { term, key: key("k"), session: heir };
    let outcomes = store.apply(&[revoke, confirm, assign.clone()]).await.unwrap().outcomes;
    assert_eq!(outcomes, [Outcome::Done, Outcome::Done, Outcome::Refused(Refusal::NotFree)]);
    assert!(since.elapsed() < Duration::from_millis(300), "{:?}", since.elapsed());
    held.commit().await.unwrap();
    let outcomes = store.apply(&[assign]).await.unwrap().outcomes;
    let [Outcome::Granted(next)] = outcomes[..] else { panic!("{outcomes:?}") };
    let mut check = async |token: Token| {
        let query = sqlx::query(assert_current);
        query.bind(name.as_str()).bind("k").bind(token.0 as i64).execute(&mut other).await.map(drop)
    };
    check(next).await.unwrap();
    assert!(check(token).await.is_err());
    store
        .apply(&[Op::Expire { term, session: heir, beat: Beat(0), verdict: divider_core::Verdict::young(Token(0)) }])
        .await
        .unwrap();
    assert!(check(next).await.is_err());
}

#[tokio::test]
async fn a_query_finds_work() {
    let server = server().await;
    server.psql(
        "CREATE TABLE tenant (id int, size int, rank smallint, note text, active bool);
         INSERT INTO tenant VALUES (1, 3, -1, 'hello', true), (2, NULL, NULL, NULL, true), (3, 0, 0, '', false)",
    );
    let pool = PgPool::connect(&server.url()).await.unwrap();
    let fetch = |sql: &str| {
        let source = QuerySource::new(pool.clone(), sql);
        async move { WorkSource::fetch(&source).await }
    };
    let found = fetch(
        "SELECT id::text AS key, size AS weight, rank AS priority, note AS payload FROM tenant WHERE active ORDER BY id",
    );
    let expected = [Work::new("1").unwrap().weight(3).priority(-1).payload(*b"hello"), Work::new("2").unwrap()];
    assert_eq!(found.await.unwrap(), expected);
    let found =
        fetch("SELECT 'k' AS key, 7::bigint AS weight, '{\"a\": 1}'::json AS payload, now() AS other").await.unwrap();
    assert_eq!(found, [Work::new("k").unwrap().weight(7).payload(*b"{\"a\": 1}")]);
    let found = fetch("SELECT 'k' AS key, '\\x00ff'::bytea AS payload, 5::bigint AS not_before_ms").await.unwrap();
    assert_eq!((found[0].payload.to_vec(), found[0].not_before_ms), (vec![0, 255], 5));
    for wrong in [
        "SELECT 1 AS no",
        "SELECT NULL::text AS key",
        "SELECT '' AS key",
        "SELECT 'k' AS key, 0 AS weight",
        "SELECT 'k' AS key, 1.5 AS weight",
        "SELECT 'k' AS key, 'x' AS priority",
        "SELECT nonsense",
    ] {
        assert!(fetch(wrong).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn no_password_is_ever_shown() {
    let server = server().await;
    server.psql("CREATE ROLE guarded LOGIN PASSWORD 'hunter2'");
    let url = format!("postgres://guarded:hunter2@127.0.0.1:{}/postgres?sslmode=disable", server.port());
    let config = PostgresConfig::new(&url, group("secret")).unwrap();
    let store = PostgresStore::new(config.clone()).unwrap();
    let error = store.open().await.unwrap_err();
    let wrong = PostgresConfig::new("postgres://u:hunter2@[::bad/db", group("secret"));
    let builder = PostgresStore::builder(&url, group("secret"));
    let wrong = (wrong.map(drop), PostgresStore::builder("http://u:hunter2@x", group("secret")).build().map(drop));
    assert!(wrong.0.is_err() && wrong.1.is_err());
    for shown in
        [format!("{config:?}"), format!("{store:?}"), format!("{error:?} {error}"), format!("{builder:?} {wrong:?}")]
    {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let server = server().await;
    let store = store(&server, "closed");
    leading(&store).await;
    let mut hints = store.hints(Topic::Group).await.unwrap();
    store.close().await;
    assert!(matches!(store.open().await, Err(StoreError::Closed)));
    assert_eq!(timeout(SOON, hints.next()).await.unwrap(), None);
    // The server takes its time to notice.
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'divider'";
    let (_, took) = until(|| async { if server.psql(count) == "0" { Ok(()) } else { Err("still there") } }).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn what_is_answered_is_on_the_disk_whatever_the_databases_default() {
    let server = server().await;
    server.psql("ALTER DATABASE postgres SET synchronous_commit = off");
    for call in ["divider.attach('g', 0)", "divider.renew('g', gen_random_uuid(), true)"] {
        let shown = server
            .psql(&format!("BEGIN; SELECT FROM {call}; SHOW synchronous_commit; COMMIT; SHOW synchronous_commit"));
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["on", "off"], "{call}");
    }
}

/// Too rare for the dice to be relied on.
#[tokio::test]
async fn a_key_whose_owner_ended_while_it_was_removed_is_ended_by_force() {
    let server = server().await;
    let store = store(&server, "orphan");
    let (_, term) = leading(&store).await;
    let owner = joined(&store).await;
    let token = granted(&store, term, owner, "k").await;
    let remove = Op::Remove { key: key("k") };
    let end = Op::Expire { term, session: owner, beat: Beat(0), verdict: divider_core::Verdict::young(Token(0)) };
    store.apply(&[remove, end]).await.unwrap();
    let force = |token| Op::Force { term, key: key("k"), token };
    let outcomes = store.apply(&[force(Token(token.0 + 1))]).await.unwrap().outcomes;
    assert_eq!(outcomes, [Outcome::Refused(Refusal::StaleToken)]);
    assert_eq!(store.apply(&[force(token)]).await.unwrap().outcomes, [Outcome::Done]);
    let page = store.scan(None).await.unwrap();
    assert!(page.keys.is_empty() && page.sessions.iter().all(|session| session.session != owner));
}
