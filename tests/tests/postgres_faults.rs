//! The PostgreSQL backend where something goes wrong around it: a fail-over, a restored disk, a slow line, a transaction
//! that stays open.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use divider_core::{
    Claim, Hint, Holding, Key, Notice, Op, Outcome, Refusal, SessionId, Store, StoreError, Term, Token, Topic, Work,
};
use divider_postgres::{Credentials, PostgresStore, QuerySource, migrate};
use divider_support::{
    ops::{add, granted, joined, key, leading},
    wait::until,
};
use divider_tests::{
    postgres::{PostgresServer, builder, prepared, store, url_by},
    way::Way,
};
use futures_util::{StreamExt, future::join_all};
use sqlx::{Connection, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

/// Longer than anything here takes that succeeds.
const SOON: Duration = Duration::from_secs(10);

/// Leads again, once the server is back.
async fn leading_again(store: &PostgresStore, session: SessionId) -> Term {
    let lead = || async {
        let reply = store.poll(session, Claim::Take { stale: None }).await?;
        Ok::<_, StoreError>(reply.leader.filter(|leader| leader.session == session).unwrap().term)
    };
    until(lead).await.0
}

async fn open_fence(other: &mut PgConnection, token: Token) -> sqlx::Transaction<'_, sqlx::Postgres> {
    let mut held = other.begin().await.unwrap();
    let fence = sqlx::query("SELECT divider.assert_current('/test/', 'k', $1)").bind(token.0 as i64);
    fence.execute(&mut *held).await.unwrap();
    held
}

/// Everything that a node does goes through.
async fn works(store: &PostgresStore, session: SessionId) -> Result<(), StoreError> {
    store.apply(&[add("works"), Op::Remove { key: key("works") }]).await?;
    store.renew(session).await?;
    store.poll(session, Claim::Follow).await?;
    store.holdings(session).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_led_to_a_standby_finds_back_to_the_primary() {
    let primary = prepared(&[]).await;
    let replica = primary.replica();
    let way = Way::to(primary.port(), Duration::ZERO).await;
    let store = builder(url_by(&way)).build().unwrap();
    let session = joined(&store).await;
    store.renew(session).await.unwrap();
    way.lead(replica.port());
    way.cut();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        let refused = store.apply(&[add("k")]).await.unwrap_err();
        // Whoever waits for the fail-over must not take it for a set-up that will never do.
        assert!(refused.is_transient(), "{refused}");
        assert!(store.renew(session).await.is_err());
    }
    // The connections to the standby stay open: nothing but the node itself can find out.
    way.lead(primary.port());
    let (_, took) = until(|| works(&store, session)).await;
    // At most the longest pause, and the work itself.
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_opened_while_the_default_was_read_only_is_not_kept() {
    let server = prepared(&[]).await;
    let pool = PgPool::connect(&server.url()).await.unwrap();
    for pooled in [false, true] {
        let builder = builder(server.url());
        let store = if pooled { builder.pool(pool.clone()) } else { builder }.build().unwrap();
        let session = joined(&store).await;
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
                         AND backend_type = 'client backend'";
        server.psql("ALTER DATABASE postgres SET default_transaction_read_only = on");
        server.psql(terminate);
        for _ in 0..5 {
            let refused = store.apply(&[add("k")]).await.unwrap_err();
            assert!(refused.is_transient(), "{refused}");
        }
        server.psql("BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT");
        let (_, took) = until(|| works(&store, session)).await;
        // At most the longest pause, and the work itself.
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_default_is_refused_at_the_opening_with_the_remedy() {
    let server = prepared(&[]).await;
    server.psql("CREATE ROLE reader LOGIN SUPERUSER; ALTER ROLE reader SET default_transaction_read_only = on");
    let own = builder(server.url_as("reader")).build().unwrap().open().await.unwrap_err();
    let pool = PgPool::connect(&server.url_as("reader")).await.unwrap();
    let pooled = builder(server.url()).pool(pool).build().unwrap().open().await.unwrap_err();
    for refused in [own, pooled] {
        assert!(
            matches!(&refused, StoreError::Misconfigured(text) if text.contains("default_transaction_read_only")),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_of_any_default_isolation_do() {
    let server = prepared(&[]).await;
    for isolation in ["repeatable read", "serializable"] {
        let options: sqlx::postgres::PgConnectOptions = server.url().parse().unwrap();
        let options = options.options([("default_transaction_isolation", isolation)]);
        let mut stores = Vec::new();
        for _ in 0..4 {
            let pool = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.unwrap();
            stores.push(builder(server.url()).pool(pool).build().unwrap());
        }
        let writers = stores.iter().enumerate().map(|(writer, store)| async move {
            store.open().await.unwrap();
            for i in 0..50 {
                store.apply(&[add(format!("{isolation}-{writer}-{i}"))]).await.unwrap();
            }
        });
        join_all(writers).await;
    }
    assert_eq!(server.psql("SELECT registered FROM divider.groups"), "400");
}

#[tokio::test]
async fn tokens_rise_past_a_restored_disk_and_what_was_lost_is_a_new_lineage() {
    let mut server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    granted(&store, term, session, "k0").await;
    server.stop();
    let (data, copy) = (server.dir().join("data"), server.dir().join("copy"));
    let copied = std::process::Command::new("cp").arg("-a").arg(&data).arg(&copy).status().unwrap();
    assert!(copied.success());
    server.restart();
    let term = leading_again(&store, session).await;
    let last = granted(&store, term, session, "k1").await;
    server.stop();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    server.restart();
    // This node has seen a token that the server knows nothing of, so the server has forgotten something.
    let ended = |result: Result<_, StoreError>| match result {
        Err(StoreError::SessionEnded) => Ok(()),
        other => Err(other),
    };
    until(|| async { ended(store.poll(session, Claim::Follow).await.map(drop)) }).await;
    assert!(matches!(store.renew(session).await, Err(StoreError::SessionEnded)));
    assert!(store.scan(None).await.unwrap().group.grants_held);
    let (heir, term) = leading(&store).await;
    let token = granted(&store, term, heir, "k1").await;
    assert!(token > last, "{token} after {last}");
}

#[tokio::test]
async fn tokens_rise_past_a_schema_that_was_dropped() {
    let server = prepared(&[]).await;
    let before = store(&server);
    let (session, term) = leading(&before).await;
    let last = granted(&before, term, session, "k").await;
    before.close().await;
    server.psql("DROP SCHEMA divider CASCADE");
    migrate(&server.url().parse().unwrap(), "divider").await.unwrap();
    let after = store(&server);
    let (session, term) = leading(&after).await;
    let token = granted(&after, term, session, "k").await;
    assert!(token > last, "{token} after {last}");
}

#[tokio::test]
async fn a_restart_raises_tokens_and_ends_nothing() {
    let mut server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    let last = granted(&store, term, session, "k").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    server.restart();
    let term = leading_again(&store, session).await;
    let token = granted(&store, term, session, "l").await;
    assert!(token > last && token.0 > now, "{token} after {last}, at {now}");
    assert_eq!(store.holdings(session).await.unwrap().holdings.len(), 2);
}

/// 256 keys of 64 KiB over a line that carries some 3 MB/s, and three seconds for each call.
#[tokio::test(flavor = "multi_thread")]
async fn holdings_and_grants_of_any_size_are_read_over_a_slow_line() {
    const KEYS: usize = 256;
    let server = prepared(&["fsync=off"]).await;
    let leader = store(&server);
    let (_, term) = leading(&leader).await;
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(15) {
        let payload = |i: usize| vec![u8::try_from(i % 251).unwrap(); 65536];
        let ops: Vec<Op> =
            chunk.iter().map(|&i| Op::Add(Work::from(key(format!("k{i}"))).payload(payload(i)))).collect();
        leader.apply(&ops).await.unwrap();
    }
    let way = Way::to(server.port(), Duration::from_millis(20)).await;
    let slow = builder(url_by(&way)).call_time_limit(Duration::from_secs(3)).build().unwrap();
    let session = joined(&slow).await;
    let mut hints = slow.hints(Topic::Session(session)).await.unwrap();
    let assign = |i| Op::Assign { term, key: key(format!("k{i}")), session };
    leader.apply(&(0..KEYS).map(assign).collect::<Vec<_>>()).await.unwrap();
    let Some(Hint::Message(message)) = timeout(SOON * 3, hints.next()).await.unwrap() else { panic!("a message") };
    assert_eq!(message.notices.len(), KEYS);
    assert!(message.notices.iter().all(|n| matches!(n, Notice::Granted(holding) if holding.payload.len() == 65536)));
    let holdings = slow.holdings(session).await.unwrap();
    assert_eq!((holdings.holdings.len(), holdings.seq), (KEYS, 1));
    for holding in &holdings.holdings {
        let i: usize = holding.key.as_str()[1..].parse().unwrap();
        assert!(holding.payload.len() == 65536 && usize::from(holding.payload[0]) == i % 251, "{i}");
    }
    let keys: Vec<Key> = (0..KEYS).map(|i| key(format!("k{i}"))).collect();
    let records = slow.records(&keys).await.unwrap();
    assert!(records.iter().all(|record| record.as_ref().is_some_and(|record| record.payload.len() == 65536)));
}

/// A line of some 8 MB/s, and 300 ms for each call: no time for 3000 keys of a kilobyte each.
#[tokio::test(flavor = "multi_thread")]
async fn pages_are_as_long_as_the_time_limit_allows_whatever_they_are_full_of() {
    const KEYS: usize = 3000;
    let server = prepared(&["fsync=off"]).await;
    let leader = store(&server);
    let (_, term) = leading(&leader).await;
    let way = Way::to(server.port(), Duration::from_millis(8)).await;
    let node = builder(url_by(&way)).call_time_limit(Duration::from_millis(300)).build().unwrap();
    let session = joined(&node).await;
    let names: Vec<String> = (0..KEYS).map(|i| format!("{i:0>1000}")).collect();
    for chunk in names.chunks(250) {
        let adds = chunk.iter().map(add);
        let assigns = chunk.iter().map(|name| Op::Assign { term, key: key(name), session });
        leader.apply(&adds.chain(assigns).collect::<Vec<_>>()).await.unwrap();
    }
    let (held, _) = until(|| node.holdings(session)).await;
    let mut held: Vec<String> = held.holdings.iter().map(|holding| holding.key.as_str().to_owned()).collect();
    held.sort();
    assert_eq!(held, names);
    let (mut scanned, mut cursor) = (Vec::new(), None);
    loop {
        let (page, _) = until(|| node.scan(cursor.clone())).await;
        assert!(page.keys.len() < 1000, "{} keys", page.keys.len());
        scanned.extend(page.keys.into_iter().map(|view| view.key.as_str().to_owned()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    scanned.sort();
    assert_eq!(scanned, names);
}

#[tokio::test]
async fn holdings_of_many_pages_are_sent_once() {
    const KEYS: u64 = 5000;
    let server = prepared(&["fsync=off"]).await;
    let leader = store(&server);
    let (_, term) = leading(&leader).await;
    let way = Way::to(server.port(), Duration::ZERO).await;
    let node = builder(url_by(&way)).build().unwrap();
    let session = joined(&node).await;
    for chunk in (0..KEYS).collect::<Vec<_>>().chunks(256) {
        let add = |i: &u64| Op::Add(Work::from(key(format!("k{i}"))).payload(vec![(i % 251) as u8; 512]));
        let assign = |i: &u64| Op::Assign { term, key: key(format!("k{i}")), session };
        leader.apply(&chunk.iter().map(add).chain(chunk.iter().map(assign)).collect::<Vec<_>>()).await.unwrap();
    }
    let before = way.sent.load(Ordering::Relaxed);
    let holdings = node.holdings(session).await.unwrap().holdings;
    let sent = way.sent.load(Ordering::Relaxed) - before;
    let right = |holding: &Holding| {
        let i: u64 = holding.key.as_str()[1..].parse().unwrap();
        holding.payload.len() == 512 && holding.payload[0] == (i % 251) as u8
    };
    assert!(holdings.len() as u64 == KEYS && holdings.iter().all(right));
    assert!(sent < KEYS * (512 + 200), "{sent} bytes");
}

#[tokio::test]
async fn a_temporary_table_does_not_stand_in_for_the_keys_where_the_files_were_run_by_hand() {
    let server = PostgresServer::start();
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../divider-postgres/migrations");
    let mut all = String::from("BEGIN; CREATE SCHEMA divider; SET LOCAL search_path TO divider;\n");
    let mut names: Vec<_> = std::fs::read_dir(files).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    for name in names {
        all.push_str(&std::fs::read_to_string(name).unwrap());
    }
    server.psql(&(all + "COMMIT;"));
    let pinned = "SELECT count(*) FILTER (WHERE NOT 'search_path=divider, pg_temp' = ANY (proconfig)), count(*)
                  FROM pg_proc WHERE pronamespace = 'divider'::regnamespace AND proconfig IS NOT NULL";
    assert_eq!(server.psql(pinned).split('|').next(), Some("0"));
    let store = store(&server);
    let (session, term) = leading(&store).await;
    let token = granted(&store, term, session, "k").await;
    let stand_in = "CREATE TEMP TABLE keys (LIKE divider.keys); INSERT INTO keys SELECT * FROM divider.keys;
                    UPDATE keys SET token = 1;";
    let assert_current = |token| format!("{stand_in} SELECT divider.assert_current('/test/', 'k', {token})");
    assert!(!server.try_psql("postgres", &assert_current(1)).status.success());
    assert!(server.try_psql("postgres", &assert_current(token.0)).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_under_a_token_holds_up_nobody_but_the_next_grant_of_its_key() {
    let server = prepared(&[]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    let mut other = PgConnection::connect(&server.url()).await.unwrap();
    for removed in [false, true] {
        let token = granted(&store, term, session, "k").await;
        let held = open_fence(&mut other, token).await;
        let since = Instant::now();
        let (remove, confirm) =
            (Op::Remove { key: key("k") }, Op::Confirm { session, key: key("k"), token, started: true });
        let end = if removed { vec![remove, confirm] } else { vec![Op::complete(session, key("k"), token)] };
        let outcomes = store.apply(&end).await.unwrap().outcomes;
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done), "{outcomes:?}");
        assert_eq!(store.records(&[key("k")]).await.unwrap(), [None]);
        assert!(store.scan(None).await.unwrap().keys.is_empty());
        assert_eq!(store.stats().await.unwrap().registered, 0);
        let assign = Op::Assign { term, key: key("k"), session };
        let outcomes = store.apply(&[assign.clone(), Op::Remove { key: key("k") }]).await.unwrap().outcomes;
        let unknown = Outcome::Refused(Refusal::UnknownKey);
        assert_eq!(outcomes, [unknown, unknown]);
        // It may come back at once, as new, but has no owner before that transaction has ended.
        let outcomes = store.apply(&[add("k"), assign.clone()]).await.unwrap().outcomes;
        assert_eq!(outcomes, [Outcome::Done, Outcome::Refused(Refusal::NotFree)]);
        let record = store.records(&[key("k")]).await.unwrap().pop().unwrap().unwrap();
        assert_eq!((record.view.attempts, record.checkpoint.len()), (0, 0));
        assert_eq!(store.apply(&[Op::Remove { key: key("k") }]).await.unwrap().outcomes, [Outcome::Done]);
        store.apply(&[add("k")]).await.unwrap();
        assert_eq!(
            store.apply(std::slice::from_ref(&assign)).await.unwrap().outcomes,
            [Outcome::Refused(Refusal::NotFree)]
        );
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        held.commit().await.unwrap();
        let Outcome::Granted(next) = store.apply(&[assign]).await.unwrap().outcomes[0] else { panic!("a grant") };
        assert!(next > token);
        store.apply(&[Op::complete(session, key("k"), next)]).await.unwrap();
        // Nothing is left behind.
        let (_, _) = until(|| async {
            store.apply(&[add("other"), Op::Remove { key: key("other") }]).await.unwrap();
            let left = server.psql("SELECT count(*) FROM divider.keys");
            if left == "0" { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_connect_become_rarer_and_a_short_outage_is_over_quickly() {
    let server = prepared(&[]).await;
    let way = Way::to(server.port(), Duration::ZERO).await;
    let store = Arc::new(builder(url_by(&way)).build().unwrap());
    let session = joined(&store).await;
    store.renew(session).await.unwrap();
    let _hints = store.hints(Topic::Session(session)).await.unwrap();
    // As busy as a node can be.
    let asking = |store: Arc<PostgresStore>| async move {
        loop {
            let _ = tokio::join!(store.apply(&[]), store.renew(session), store.poll(session, Claim::Follow));
            sleep(Duration::from_millis(5)).await;
        }
    };
    let askers: Vec<_> = (0..4).map(|_| tokio::spawn(asking(Arc::clone(&store)))).collect();
    let outage = |seconds: u64| {
        let way = way.clone();
        async move {
            way.lead(0);
            way.cut();
            let mut each = Vec::new();
            for _ in 0..seconds {
                way.came.store(0, Ordering::Relaxed);
                sleep(Duration::from_secs(1)).await;
                each.push(way.came.load(Ordering::Relaxed));
            }
            each
        }
    };
    let short = outage(1).await;
    assert!(short[0] <= 40, "{short:?}");
    let back = async |limit| {
        way.came.store(0, Ordering::Relaxed);
        way.lead(server.port());
        let (_, took) =
            until(|| async { if way.came.load(Ordering::Relaxed) > 0 { Ok(()) } else { Err("nobody") } }).await;
        assert!(took < limit, "{took:?}");
        until(|| works(&store, session)).await;
    };
    back(Duration::from_millis(300)).await;
    let long = outage(6).await;
    assert!(long[5] <= 6, "{long:?}");
    back(Duration::from_secs(3)).await;
    askers.into_iter().for_each(|asker| asker.abort());
}

/// Of three servers the first takes connections and never answers, and the second cannot write.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_can_write_is_found() {
    let primary = prepared(&[]).await;
    let replica = primary.replica();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hosts = [silent.local_addr().unwrap().port(), replica.port(), primary.port()].map(|p| format!("127.0.0.1:{p}"));
    for (hosts, more) in [(hosts.join(","), "&target_session_attrs=read-write"), (hosts.join(","), "")] {
        let url = format!("postgres://postgres@{hosts}/postgres?sslmode=disable{more}");
        let store = builder(url).build().unwrap();
        let since = Instant::now();
        let session = joined(&store).await;
        works(&store, session).await.unwrap();
        assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
        store.close().await;
    }
    drop(primary);
    let url = format!("postgres://postgres@{}/postgres?sslmode=disable", hosts[1..].join(","));
    let refused = builder(url).build().unwrap().open().await.unwrap_err().to_string();
    assert!(hosts[1..].iter().all(|host| refused.contains(host)) && refused.contains("standby"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_query_of_a_source_takes_one_connection_and_ends_at_the_server() {
    let server = prepared(&[]).await;
    let pool = PgPoolOptions::new().max_connections(3).connect(&server.url()).await.unwrap();
    let slow = QuerySource::new(pool.clone(), "SELECT 'k' AS key FROM pg_sleep(20) /* slow */");
    let slow = slow.time_limit(Duration::from_secs(2));
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%/* slow */%' AND state = 'active' \
                  AND pid <> pg_backend_pid()";
    for _ in 0..8 {
        // Whoever asks gives up sooner than the query.
        assert!(timeout(Duration::from_millis(100), slow.fetch()).await.is_err());
        assert!(server.psql(active).parse::<u32>().unwrap() <= 1);
        drop(timeout(Duration::from_secs(1), pool.acquire()).await.expect("the program gets a connection").unwrap());
    }
    let (_, took) = until(|| async { if server.psql(active) == "0" { Ok(()) } else { Err("still there") } }).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    let refused = slow.fetch().await.unwrap_err();
    assert!(matches!(refused, StoreError::Timeout { .. }), "{refused}");
    let shown = server.psql("SHOW statement_timeout");
    assert_eq!(sqlx::query_scalar::<_, String>("SHOW statement_timeout").fetch_one(&pool).await.unwrap(), shown);
}

#[tokio::test]
async fn the_log_of_a_group_is_as_long_as_the_group_is_large() {
    let server = prepared(&["fsync=off", "synchronous_commit=local"]).await;
    let store = store(&server);
    let (session, term) = leading(&store).await;
    store.apply(&[add("k")]).await.unwrap();
    let first = store.apply(&[]).await.unwrap().revision;
    for _ in 0..500 {
        let assign = Op::Assign { term, key: key("k"), session };
        let Outcome::Granted(token) = store.apply(&[assign]).await.unwrap().outcomes[0] else { panic!("a grant") };
        store.apply(&[Op::Confirm { session, key: key("k"), token, started: true }]).await.unwrap();
    }
    let last = store.apply(&[]).await.unwrap().revision;
    assert_eq!(last.0, first.0 + 1000);
    let kept: u64 = server.psql("SELECT count(*) FROM divider.changes").parse().unwrap();
    assert!((512..=640).contains(&kept), "{kept}");
    assert_eq!(store.changes(first).await.unwrap(), None);
    assert!(store.changes(divider_core::Revision(last.0 - 500)).await.unwrap().is_some());
}

#[tokio::test]
async fn an_error_names_host_and_port_and_no_password() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let store = builder(format!("postgres://app:hunter2@127.0.0.1:{free}/db?sslmode=disable")).build().unwrap();
    let error = store.open().await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains(&format!("127.0.0.1:{free}")) && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_only_follows_keeps_two_connections() {
    let server = prepared(&[]).await;
    let follower = builder(server.url()).configure(|c| c.idle_timeout = Duration::from_millis(500)).build().unwrap();
    let session = joined(&follower).await;
    follower.renew(session).await.unwrap();
    // By then it has opened those that it makes ready in advance.
    let opened = "SELECT count(*) >= 4 FROM pg_stat_activity WHERE application_name = 'divider'";
    until(|| async { if server.psql(opened) == "t" { Ok(()) } else { Err("not yet") } }).await;
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'divider'";
    until(|| async {
        follower.renew(session).await.unwrap();
        follower.poll(session, Claim::Follow).await.unwrap();
        let left = server.psql(count);
        if left == "2" { Ok(()) } else { Err(left) }
    })
    .await;
    works(&follower, session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_before_each_connection() {
    let server = prepared(&[]).await;
    server.psql("CREATE ROLE first LOGIN SUPERUSER; CREATE ROLE second LOGIN SUPERUSER");
    let name = Arc::new(parking_lot::Mutex::new("first"));
    let asked = Arc::clone(&name);
    let credentials = Credentials::new(move || {
        let name = *asked.lock();
        async move { Ok((name.to_owned(), "secret".to_owned())) }
    });
    let store = builder(server.url_as("nobody-of-this-name"));
    let store = store.configure(|config| config.credentials = Some(credentials)).build().unwrap();
    let session = joined(&store).await;
    assert!(!format!("{store:?}").contains("secret"));
    *name.lock() = "second";
    server.psql(
        "ALTER ROLE first NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'first'",
    );
    until(|| works(&store, session)).await;
    let users = "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'divider'";
    until(|| async { if server.psql(users) == "second" { Ok(()) } else { Err(server.psql(users)) } }).await;
}

/// The server answers, and then the connection breaks while it waits for a standby.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_cut_off_is_of_unknown_effect_and_a_refused_one_of_none() {
    let server = prepared(&[]).await;
    server.psql(
        "CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA divider TO app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA divider TO app;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA divider TO app",
    );
    let store = builder(server.url_as("app")).build().unwrap();
    store.open().await.unwrap();
    server.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server.psql("SELECT pg_reload_conf()");
    until(|| async {
        let shown = server.psql("SHOW synchronous_standby_names");
        if shown == "nobody" { Ok(()) } else { Err(shown) }
    })
    .await;
    let done = tokio::spawn({
        let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let url = server.url();
        async move {
            let mut other = PgConnection::connect(&url).await.unwrap();
            loop {
                let ended = sqlx::query(waiting).fetch_all(&mut other).await.unwrap();
                if !ended.is_empty() {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        }
    });
    let unknown = store.apply(&[add("k")]).await.unwrap_err();
    assert!(matches!(unknown, StoreError::Unavailable { .. }), "{unknown:?}");
    done.await.unwrap();
    let reset = "ALTER SYSTEM RESET synchronous_standby_names";
    server.psql(reset);
    server.psql("SELECT pg_reload_conf()");
    let (records, _) = until(|| async { store.records(&[key("k")]).await }).await;
    assert!(records[0].is_some(), "what nobody knew of had happened");
    server.psql("REVOKE INSERT ON divider.keys FROM app");
    let none = store.apply(&[add("l")]).await.unwrap_err();
    assert!(matches!(none, StoreError::Misconfigured(_)), "{none:?}");
    server.psql("GRANT INSERT ON divider.keys TO app");
    assert_eq!(store.records(&[key("l")]).await.unwrap(), [None]);
}

/// Aurora has a function of that name, and its log has no position unless logical replication is on.
#[tokio::test]
async fn a_server_that_does_not_tell_the_logs_position_will_do_where_it_is_aurora() {
    let server = PostgresServer::start();
    server.psql(
        "SET allow_system_table_mods = on;
        CREATE FUNCTION pg_catalog.aurora_version() RETURNS text LANGUAGE sql RETURN '15.4';
        ALTER FUNCTION pg_catalog.pg_current_wal_lsn() RENAME TO hidden;
        CREATE FUNCTION pg_catalog.pg_current_wal_lsn() RETURNS pg_lsn LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'there is no position of the log'; END $$",
    );
    migrate(&server.url().parse().unwrap(), "divider").await.unwrap();
    let store = store(&server);
    let session = joined(&store).await;
    works(&store, session).await.unwrap();
}
