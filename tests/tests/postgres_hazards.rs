//! The PostgreSQL backend where the past comes back (dumps, copies, restored disks), and under settings that roles and
//! databases have.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use divider_core::{Claim, Hint, Op, Outcome, SessionId, Store, StoreError, Token, Topic, Work};
use divider_postgres::{PostgresConfig, PostgresStore, QuerySource, migrate};
use divider_support::{
    ops::{add, granted, joined, key, leading},
    wait::until,
};
use divider_tests::postgres::{self, PostgresServer, builder, prepared, store};
use futures_util::{StreamExt, future::join_all};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{sleep, timeout};

/// Longer than anything here takes that succeeds.
const SOON: Duration = Duration::from_secs(10);

/// Tries until the session is said to be over.
async fn over(store: &PostgresStore, session: SessionId) {
    until(|| async {
        match store.poll(session, Claim::Follow).await {
            Err(StoreError::SessionEnded) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

/// Puts the group's numbers back to what they were at some time, as a restored disk does.
fn forget(server: &PostgresServer, token: Token) {
    server.psql(&format!("UPDATE divider.groups SET token = {token}"));
}

#[tokio::test]
async fn a_dump_that_is_loaded_into_its_own_server_is_a_new_lineage() {
    let server = prepared(&[]).await;
    let before = store(&server);
    let (session, term) = leading(&before).await;
    granted(&before, term, session, "k").await;
    let dump = server.dump("divider");
    let last = granted(&before, term, session, "l").await;
    before.close().await;
    server.psql("DROP SCHEMA divider CASCADE");
    server.load(&dump);
    let after = store(&server);
    after.open().await.unwrap();
    assert!(matches!(after.poll(session, Claim::Follow).await, Err(StoreError::SessionEnded)));
    assert!(matches!(after.renew(session).await, Err(StoreError::SessionEnded)));
    let (heir, term) = leading(&after).await;
    let token = granted(&after, term, heir, "l").await;
    assert!(token > last, "{token} after {last}");
}

#[tokio::test]
async fn a_copy_of_the_database_in_the_same_server_is_a_new_lineage() {
    let server = prepared(&[]).await;
    let before = store(&server);
    let (session, term) = leading(&before).await;
    granted(&before, term, session, "k").await;
    before.close().await;
    let nobody = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'divider'";
    until(|| async { if server.psql(nobody) == "0" { Ok(()) } else { Err("still connected") } }).await;
    server.psql("CREATE DATABASE copied TEMPLATE postgres");
    let later = store(&server);
    let (heir, term) = leading(&later).await;
    let last = granted(&later, term, heir, "l").await;
    let copy = builder(server.url().replace("/postgres?", "/copied?")).build().unwrap();
    let (heir, term) = leading(&copy).await;
    let token = granted(&copy, term, heir, "l").await;
    assert!(token > last, "{token} after {last}");
    assert!(matches!(copy.renew(session).await, Err(StoreError::SessionEnded)));
}

/// The clock is behind the tokens: it was ahead when they were issued, and has been set right since.
#[tokio::test]
async fn tokens_rise_past_what_a_node_has_seen_also_where_the_clock_went_back() {
    let mut server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    let old = granted(&store, term, session, "k").await;
    forget(&server, Token(old.0 + 1_000_000_000_000));
    let last = granted(&store, term, session, "l").await;
    assert!(last.0 > old.0 + 1_000_000_000_000);
    forget(&server, old);
    server.restart();
    over(&store, session).await;
    let (heir, term) = leading(&store).await;
    let token = granted(&store, term, heir, "l").await;
    assert!(token > last, "{token} after {last}");
}

/// Rows that were put back are in the same tables of the same server, and no connection breaks.
#[tokio::test]
async fn a_leader_that_has_seen_a_token_lets_nobody_issue_it_again() {
    let server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    let old = granted(&store, term, session, "k").await;
    let last = granted(&store, term, session, "l").await;
    forget(&server, old);
    let again = store.apply(&[add("m"), Op::Assign { term, key: key("m"), session }]).await.unwrap().outcomes;
    assert!(matches!(again[1], Outcome::Refused(_)), "{again:?}");
    over(&store, session).await;
    let (heir, term) = leading(&store).await;
    let token = granted(&store, term, heir, "m").await;
    assert!(token > last, "{token} after {last}");
}

#[tokio::test]
async fn what_a_server_has_forgotten_ends_the_sessions_once_and_not_with_each_node_that_remembers() {
    let mut server = prepared(&[]).await;
    let (one, other) = (store(&server), store(&server));
    let (session, term) = leading(&one).await;
    let old = granted(&one, term, session, "k").await;
    granted(&one, term, session, "l").await;
    // Both have heard of the last token.
    let follower = joined(&other).await;
    other.poll(follower, Claim::Follow).await.unwrap();
    forget(&server, old);
    server.restart();
    over(&one, session).await;
    let heir = joined(&one).await;
    over(&other, follower).await;
    until(|| other.open()).await;
    assert!(one.poll(heir, Claim::Follow).await.is_ok(), "it began after what was forgotten");
}

#[tokio::test]
async fn what_another_past_says_of_a_session_is_not_read() {
    let server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    granted(&store, term, session, "k").await;
    server.psql("UPDATE divider.groups SET lineage = 'elsewhere'");
    // Nobody has written since, so nobody has begun the new lineage yet.
    let held = store.holdings(session).await;
    assert!(matches!(held, Err(StoreError::SessionEnded)), "{held:?}");
}

/// The standby has stood still since before the key was confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_where_a_pool_leads_to_a_standby() {
    let server = prepared(&[]).await;
    let replica = server.replica();
    let pool = PgPoolOptions::new().max_connections(4).connect(&server.url()).await.unwrap();
    let mut config = PostgresConfig::with_pool(pool.clone(), postgres::group());
    config.leader_timeout = Some(Duration::from_secs(600));
    let store = PostgresStore::new(config).unwrap();
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let caught_up = "SELECT count(*) FROM divider.keys WHERE owner IS NOT NULL";
    until(|| async { if replica.psql(caught_up) == "1" { Ok(()) } else { Err("not yet") } }).await;
    replica.psql("SELECT pg_wal_replay_pause()");
    store.apply(&[Op::Confirm { session, key: key("k"), token, started: true }]).await.unwrap();
    // The pool's name means the other server from now on.
    let elsewhere: PgConnectOptions = replica.url().parse().unwrap();
    pool.set_connect_options(elsewhere);
    server.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name <> 'divider' AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    );
    let (held, _) = until(|| async {
        match store.holdings(session).await {
            Ok(held) => Ok(Ok(held)),
            Err(error) if error.to_string().contains("recovery") => Ok(Err(error)),
            Err(error) => Err(error),
        }
    })
    .await;
    assert!(held.is_err(), "{held:?}");
    assert!(store.scan(None).await.is_err() && store.beats().await.is_err() && store.gone().await.is_err());
}

#[tokio::test]
async fn a_beat_that_was_seen_does_not_come_again_when_the_disk_is_another_days() {
    let server = prepared(&[]).await;
    let store = store(&server);
    let session = joined(&store).await;
    let first = store.renew(session).await.unwrap();
    let second = store.renew(session).await.unwrap();
    server.psql(&format!("UPDATE divider.beats SET beat = {}", first.0));
    let third = store.renew(session).await.unwrap();
    assert!(second > first && third > second, "{third} after {second}");
}

#[tokio::test]
async fn a_server_that_begins_anew_has_seen_no_connection_end() {
    let mut server = prepared(&[]).await;
    let (leader, node) = (store(&server), store(&server));
    leading(&leader).await;
    let session = joined(&node).await;
    node.renew(session).await.unwrap();
    server.restart();
    assert_eq!(until(|| leader.gone()).await.0, []);
    // Also once somebody has written.
    until(|| leader.apply(&[])).await;
    assert_eq!(leader.gone().await.unwrap(), []);
    until(|| node.renew(session)).await;
    node.close().await;
    until(|| async { if leader.gone().await.unwrap() == [session] { Ok(()) } else { Err("not yet") } }).await;
}

#[tokio::test]
async fn a_schema_that_was_made_anew_is_listened_to() {
    let server = prepared(&[]).await;
    let store = store(&server);
    let session = joined(&store).await;
    drop(store.hints(Topic::Session(session)).await.unwrap());
    server.psql("DROP SCHEMA divider CASCADE");
    migrate(&server.url().parse().unwrap(), "divider").await.unwrap();
    over(&store, session).await;
    let ((heir, term), _) = until(|| async {
        store.apply(&[]).await?;
        Ok::<_, StoreError>(leading(&store).await)
    })
    .await;
    let mut hints = store.hints(Topic::Session(heir)).await.unwrap();
    granted(&store, term, heir, "k").await;
    let heard = timeout(Duration::from_secs(2), hints.next()).await;
    assert!(matches!(heard, Ok(Some(Hint::Message(_)))), "{heard:?}");
}

#[tokio::test]
async fn programs_may_migrate_at_once_whatever_their_role_says_of_transactions() {
    let server = PostgresServer::start();
    for (at, setting) in [
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_isolation = 'serializable'",
        "statement_timeout = '20ms'",
        "lock_timeout = '20ms'",
    ]
    .iter()
    .enumerate()
    {
        let role = format!("owner{at}");
        server.psql(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE postgres TO {role}; ALTER ROLE {role} SET {setting}"
        ));
        let url: PgConnectOptions = server.url_as(&role).parse().unwrap();
        let migrations = (0..3).map(|_| {
            let (url, schema) = (url.clone(), role.clone());
            tokio::spawn(async move { migrate(&url, &schema).await })
        });
        for migrated in join_all(migrations).await {
            assert!(migrated.as_ref().unwrap().is_ok(), "{setting}: {migrated:?}");
        }
    }
}

#[tokio::test]
async fn a_batch_waits_for_its_turn_whatever_the_role_says_of_locks() {
    let server = prepared(&[]).await;
    server.psql("ALTER ROLE postgres SET lock_timeout = '1ms'");
    let store = std::sync::Arc::new(store(&server));
    store.open().await.unwrap();
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    // What the role says holds for this connection too, and the store may be at work on the group.
    sqlx::raw_sql("SET lock_timeout = 0").execute(&mut other).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM divider.groups FOR UPDATE").execute(&mut *held).await.unwrap();
    let batch = tokio::spawn({
        let store = std::sync::Arc::clone(&store);
        async move { store.apply(&[add("k")]).await }
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let ready = || async { if batch.is_finished() || server.psql(waiting) == "1" { Ok(()) } else { Err("not yet") } };
    until(ready).await;
    sleep(Duration::from_millis(20)).await;
    held.rollback().await.unwrap();
    assert_eq!(batch.await.unwrap().unwrap().outcomes, [Outcome::Done]);
}

#[tokio::test]
async fn a_source_may_be_given_all_the_time_there_is() {
    let server = PostgresServer::start();
    let pool = PgPoolOptions::new().connect(&server.url()).await.unwrap();
    let source = QuerySource::new(pool, "SELECT 'k' AS key").time_limit(Duration::MAX);
    assert_eq!(source.fetch().await.unwrap().len(), 1);
}

/// One connection, which somebody else's call has for most of the time.
#[tokio::test]
async fn the_time_limit_of_a_call_counts_from_when_it_is_asked() {
    let limit = Duration::from_millis(600);
    let server = prepared(&[]).await;
    let store = builder(server.url()).call_time_limit(limit).configure(|config| config.max_connections = 1);
    let store = store.build().unwrap();
    store.open().await.unwrap();
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    let mut held = other.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE divider.groups").execute(&mut *held).await.unwrap();
    let first = store.stats();
    let second = async {
        sleep(limit / 6).await;
        let since = Instant::now();
        let refused = store.stats().await;
        (refused, since.elapsed())
    };
    let (first, (second, took)) = tokio::join!(first, second);
    assert!(first.is_err() && second.is_err());
    assert!(took < limit * 3 / 2, "{took:?}");
}

/// A listener anywhere in the server that does not come to listen lets the queue of notifications fill up.
#[tokio::test]
async fn a_full_queue_of_notifications_costs_hints_and_nothing_else() {
    let server = prepared(&[]).await;
    server.psql(
        "SET allow_system_table_mods = on;
        ALTER FUNCTION pg_catalog.pg_notification_queue_usage() RENAME TO hidden_usage;
        CREATE FUNCTION pg_catalog.pg_notification_queue_usage() RETURNS float8 LANGUAGE sql RETURN 0.95;
        ALTER FUNCTION pg_catalog.pg_notify(text, text) RENAME TO hidden_notify;
        CREATE FUNCTION pg_catalog.pg_notify(text, text) RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000'; END $$",
    );
    let store = store(&server);
    let (session, term) = leading(&store).await;
    granted(&store, term, session, "k").await;
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), 1);
}

#[tokio::test]
async fn a_store_that_opens_has_the_connections_that_a_node_needs() {
    let server = prepared(&[]).await;
    server.psql(
        "CREATE ROLE app LOGIN CONNECTION LIMIT 2; GRANT USAGE ON SCHEMA divider TO app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA divider TO app",
    );
    let store = builder(server.url_as("app")).build().unwrap();
    let refused = store.open().await;
    assert!(matches!(&refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    server.psql("ALTER ROLE app CONNECTION LIMIT 3");
    let (session, _) = until(|| async {
        store.open().await?;
        Ok::<_, StoreError>(joined(&store).await)
    })
    .await;
    store.poll(session, Claim::Follow).await.unwrap();
    store.renew(session).await.unwrap();
}

#[tokio::test]
async fn a_pool_of_one_connection_will_do() {
    let server = prepared(&[]).await;
    let pool = PgPoolOptions::new().max_connections(1).connect(&server.url()).await.unwrap();
    let store = PostgresStore::new(PostgresConfig::with_pool(pool, postgres::group())).unwrap();
    let (session, term) = leading(&store).await;
    granted(&store, term, session, "k").await;
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), 1);
}

/// Each message is of some 800 kB.
#[tokio::test]
async fn the_messages_that_are_kept_for_a_session_are_bounded_by_bytes() {
    let server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    let long = |i: usize| key(format!("{i:0>1000}"));
    let mut hints = store.hints(Topic::Session(session)).await.unwrap();
    let each = |op: &dyn Fn(usize) -> Op| (0..500).map(op).collect::<Vec<_>>();
    for i in [0, 250] {
        let add = |i| Op::Add(Work::from(long(i)).payload(vec![7; 250]));
        store.apply(&(i..i + 250).map(add).collect::<Vec<_>>()).await.unwrap();
    }
    for _ in 0..6 {
        let granted = store.apply(&each(&|i| Op::Assign { term, key: long(i), session })).await.unwrap().outcomes;
        let token = |i: usize| match granted[i] {
            Outcome::Granted(token) => token,
            other => panic!("{other:?}"),
        };
        let confirm = |i| Op::Confirm { session, key: long(i), token: token(i), started: true };
        store.apply(&each(&confirm)).await.unwrap();
    }
    let kept: u64 = server.psql("SELECT sum(octet_length(data)) FROM divider.messages").parse().unwrap();
    assert!(kept < 3_000_000, "{kept} bytes");
    let late = timeout(SOON, hints.next()).await.unwrap();
    assert_eq!(late, Some(Hint::Gap), "some were missed");
}

#[tokio::test]
async fn a_source_goes_on_when_its_table_is_altered() {
    let server = PostgresServer::start();
    server.psql("CREATE TABLE tenant (key text)");
    server.psql("INSERT INTO tenant VALUES ('k')");
    let pool = PgPoolOptions::new().max_connections(1).connect(&server.url()).await.unwrap();
    let source = QuerySource::new(pool, "SELECT * FROM tenant");
    assert_eq!(source.fetch().await.unwrap().len(), 1);
    server.psql("ALTER TABLE tenant ADD COLUMN weight integer DEFAULT 7");
    assert_eq!(source.fetch().await.unwrap()[0].weight, 7);
    server.psql("ALTER TABLE tenant ALTER COLUMN weight TYPE bigint");
    assert_eq!(source.fetch().await.unwrap()[0].weight, 7);
}

/// As a pool has it that gives up its oldest connections: what a batch finds there was planned for the tables of before.
#[tokio::test]
async fn a_program_that_stays_connected_works_with_a_schema_that_was_made_anew() {
    let server = prepared(&[]).await;
    let pool = PgPoolOptions::new().max_connections(2).connect(&server.url()).await.unwrap();
    let mut config = PostgresConfig::with_pool(pool, postgres::group());
    config.leader_timeout = Some(Duration::from_secs(600));
    let store = PostgresStore::new(config).unwrap();
    for _ in 0..2 {
        let (session, term) = leading(&store).await;
        let token = granted(&store, term, session, "k").await;
        store.renew(session).await.unwrap();
        let checkpoint = Op::Checkpoint { session, key: key("k"), token, bytes: vec![1].into() };
        let ops = [checkpoint, Op::Revoke { term, key: key("k"), token }];
        assert_eq!(store.apply(&ops).await.unwrap().outcomes, [Outcome::Done, Outcome::Done]);
        assert_eq!(store.holdings(session).await.unwrap().holdings.len(), 1);
        assert!(store.scan(None).await.unwrap().keys.len() == 1 && store.stats().await.unwrap().registered == 1);
        assert!(store.records(&[key("k")]).await.unwrap()[0].is_some());
        server.psql("DROP SCHEMA divider CASCADE");
        migrate(&server.url().parse().unwrap(), "divider").await.unwrap();
        over(&store, session).await;
    }
}
