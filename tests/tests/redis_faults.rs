//! The Redis backend where servers, addresses and rights change under it.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use divider_core::{Claim, Group, Outcome, Store, StoreError, Topic};
use divider_redis::{Credentials, RedisStore};
use divider_support::{
    certificates::Authority,
    ops::{add, joined},
    wait::eventually,
};
use divider_tests::{
    redis::{RedisCluster, RedisServer, url_by},
    way::Way,
};
use futures_util::{StreamExt, future::join_all};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn group(name: &str) -> Group {
    Group::new(name).unwrap()
}

fn store(url: impl Into<String>, name: &str) -> RedisStore {
    RedisStore::builder(url, group(name)).build().unwrap()
}

#[tokio::test]
async fn a_store_that_was_led_to_a_replica_finds_the_primary_again() {
    let (primary, replica) = (RedisServer::start(), RedisServer::start());
    let name = "/astray/";
    let direct = store(primary.url(), name);
    direct.open().await.unwrap();
    replica.follow(&primary).await;
    let address = Way::to(replica.port(), Duration::ZERO).await;
    let astray = store(url_by(&address), name);
    for refused in [astray.open().await.unwrap_err(), astray.apply(&[add("k")]).await.unwrap_err()] {
        assert!(refused.is_transient() && refused.to_string().contains("replica"), "{refused}");
    }
    address.lead(primary.port());
    eventually("the primary is found", async || astray.apply(&[add("k")]).await.is_ok()).await;
    let session = joined(&astray).await;
    astray.renew(session).await.unwrap();

    // The primary becomes a replica of the other under open connections, and the address leads on.
    let mut hints = astray.hints(Topic::Group).await.unwrap();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    primary.follow(&replica).await;
    address.lead(replica.port());
    eventually("the new primary is found", async || astray.apply(&[add("k2")]).await.is_ok()).await;
    eventually("so it is by the renewals", async || {
        matches!(astray.renew(session).await, Err(StoreError::SessionEnded))
    })
    .await;
    // A subscription on the old one would hear nothing of what is said on the new one if that one were gone.
    let ended = async { while hints.next().await.is_some() {} };
    timeout(PATIENCE, ended).await.expect("the subscription ends with the move");
}

#[tokio::test]
async fn a_server_is_checked_at_every_connect() {
    let server = RedisServer::start();
    let address = Way::to(server.port(), Duration::ZERO).await;
    let store = store(url_by(&address), "/checked/");
    store.open().await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    address.cut();
    eventually("the cut is noticed", async || {
        matches!(store.apply(&[add("k")]).await, Err(StoreError::Misconfigured(text)) if text.contains("allkeys-lru"))
    })
    .await;
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    eventually("it is in use again", async || store.apply(&[add("k")]).await.is_ok()).await;
}

#[tokio::test]
async fn rights_that_were_gone_for_a_while_are_no_trouble_afterwards() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "divider", "on", ">word", "~*", "&*", "+@all"]);
    let store = store(server.url_as("divider", "word"), "/rights/");
    let session = joined(&store).await;
    store.renew(session).await.unwrap();
    let before = store.scan(None).await.unwrap().revision;
    server.cli(&["ACL", "SETUSER", "divider", "-evalsha", "-eval"]);
    // What says that there was no effect has none.
    let refused = store.apply(&[add("refused")]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused:?}");
    assert!(store.renew(session).await.is_err());
    server.cli(&["ACL", "SETUSER", "divider", "+evalsha", "+eval"]);
    eventually("commands work again", async || store.apply(&[]).await.is_ok()).await;
    assert_eq!(store.scan(None).await.unwrap().revision, before);
    eventually("renewals work again", async || store.renew(session).await.is_ok()).await;
}

#[tokio::test]
async fn a_script_that_broke_off_in_its_middle_is_an_unknown_effect() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "divider", "on", ">word", "~*", "&*", "+@all"]);
    let store = store(server.url_as("divider", "word"), "/broken/");
    store.open().await.unwrap();
    server.cli(&["ACL", "SETUSER", "divider", "-hmget"]);
    let broken = store.apply(&[add("k")]).await.unwrap_err();
    assert!(matches!(broken, StoreError::Unavailable { .. }), "{broken:?}");
    server.cli(&["ACL", "SETUSER", "divider", "+hmget"]);
    server.cli(&["SET", "{divider:/broken/}:log", "somebody else's"]);
    let broken = store.apply(&[add("k")]).await.unwrap_err();
    assert!(matches!(broken, StoreError::Corrupt(_)) && !broken.has_no_effect(), "{broken:?}");
    // And so it is: this much has happened.
    assert_eq!(server.cli(&["HEXISTS", "{divider:/broken/}:views", "k"]), "1");
}

#[tokio::test]
async fn ten_calls_wait_for_one_connect() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            kept.push(silent.accept().await.unwrap());
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let store = store(format!("redis://127.0.0.1:{port}"), "/silent/");
    let since = Instant::now();
    for error in join_all((0..10).map(|_| store.stats())).await {
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    }
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_tried_ever_more_rarely_and_found_soon() {
    let server = RedisServer::start();
    let address = Way::to(server.port(), Duration::ZERO).await;
    let store = Arc::new(store(url_by(&address), "/storm/"));
    let session = joined(&store).await;
    address.lead(0);
    address.cut();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                loop {
                    _ = store.stats().await;
                    sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    let attempts = async |time: Duration| {
        let before = address.came.load(Ordering::Relaxed);
        sleep(time).await;
        address.came.load(Ordering::Relaxed) - before
    };
    let first = attempts(Duration::from_secs(3)).await;
    assert!((5..=60).contains(&first), "{first} in the first three seconds");
    address.lead(server.port());
    let since = Instant::now();
    eventually("the server is found", async || store.poll(session, Claim::Follow).await.is_ok()).await;
    assert!(since.elapsed() < Duration::from_millis(600), "{:?} after three seconds", since.elapsed());

    address.lead(0);
    address.cut();
    sleep(Duration::from_secs(10)).await;
    let later = attempts(Duration::from_secs(3)).await;
    assert!(later <= 8, "{later} in three seconds, after ten");
    callers.into_iter().for_each(|caller| caller.abort());
}

#[tokio::test]
async fn subscriptions_are_not_tried_without_end_and_a_refused_one_is_an_error() {
    let server = RedisServer::start();
    server.cli(&["ACL", "SETUSER", "divider", "on", ">word", "~*", "&*", "+@all"]);
    let store = store(server.url_as("divider", "word"), "/deaf/");
    store.open().await.unwrap();
    server.cli(&["ACL", "SETUSER", "divider", "resetchannels"]);
    let since = Instant::now();
    let mut tries = 0;
    while since.elapsed() < Duration::from_secs(3) {
        let refused = store.hints(Topic::Group).await.err().unwrap();
        assert!(matches!(refused, StoreError::Misconfigured(_)), "{refused:?}");
        tries += 1;
    }
    assert!(tries < 60, "{tries} in three seconds");
    // One that cannot be watched would end at once, and again.
    server.cli(&["ACL", "SETUSER", "divider", "allchannels", "-ping"]);
    assert!(store.hints(Topic::Group).await.is_err());
    server.cli(&["ACL", "SETUSER", "divider", "+ping"]);
    eventually("it is let in", async || store.hints(Topic::Group).await.is_ok()).await;
    server.cli(&["CONFIG", "SET", "maxclients", "1"]);
    let refused = store.hints(Topic::Group).await.err().unwrap();
    assert!(refused.to_string().contains(&server.port().to_string()), "{refused}");
}

#[tokio::test]
async fn a_cluster_is_found_again_although_the_one_node_that_was_named_is_gone() {
    let mut cluster = RedisCluster::start();
    let slot = |n: &u32| -> usize {
        let key = format!("{{divider:/seed/{n}/}}:meta");
        cluster.nodes[0].cli(&["CLUSTER", "KEYSLOT", &key]).parse().unwrap()
    };
    let n = (0..).find(|n| slot(n) * 3 / 16384 == 1).unwrap();
    let seed = [cluster.nodes[0].url()];
    let store = RedisStore::cluster(seed, group(&format!("/seed/{n}/"))).build().unwrap();
    let session = joined(&store).await;
    store.renew(session).await.unwrap();
    let calls = async || store.apply(&[]).await.is_ok() && store.renew(session).await.is_ok();
    let other = cluster.nodes[1].port().to_string();
    eventually("the nodes have been asked for", async || format!("{store:?}").contains(&other)).await;
    cluster.nodes[0].kill9();
    for node in &cluster.nodes[1..] {
        node.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    eventually("the rest is found", calls).await;
    let mut hints = store.hints(Topic::Group).await.expect("another node takes subscriptions");
    store.apply(&[add("k")]).await.unwrap();
    assert!(timeout(PATIENCE, hints.next()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_password_that_changes_is_asked_for_at_each_connect() {
    let server = RedisServer::start();
    let password = Arc::new(Mutex::new("first".to_owned()));
    let set = |word: &str| {
        server.cli(&["ACL", "SETUSER", "divider", "on", "resetpass", &format!(">{word}"), "~*", "&*", "+@all"]);
        word.clone_into(&mut password.lock().unwrap());
    };
    set("first");
    let asked = password.clone();
    let credentials = Credentials::new(move || {
        let password = asked.lock().unwrap().clone();
        async move { Ok(("divider".to_owned(), password)) }
    });
    let store = RedisStore::builder(server.url(), group("/rotated/")).credentials(credentials).build().unwrap();
    assert!(!format!("{store:?}").contains("first"));
    let session = joined(&store).await;
    assert!(store.hints(Topic::Group).await.is_ok());
    for word in ["second", "third"] {
        set(word);
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        eventually("it logs in again", async || store.apply(&[]).await.is_ok()).await;
        eventually("so do renewals", async || store.renew(session).await.is_ok()).await;
        assert!(store.hints(Topic::Group).await.is_ok());
    }
    assert!(server.cli(&["CLIENT", "LIST"]).contains("user=divider"));
}

/// Collects what is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

#[tokio::test]
async fn a_server_that_was_started_again_is_told_of_with_what_it_kept() {
    for (options, told) in [(&["--appendonly", "yes"][..], "1 keys"), (&[], "no data of this group")] {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _here = tracing::subscriber::set_default(subscriber);
        let mut server = RedisServer::with(options);
        let store = store(server.url(), "/told/");
        let session = joined(&store).await;
        store.apply(&[add("k")]).await.unwrap();
        assert!(!log.text().contains("started again"), "{}", log.text());
        server.stop();
        server.restart();
        eventually("the end is noticed", async || matches!(store.renew(session).await, Err(StoreError::SessionEnded)))
            .await;
        eventually("commands work again", async || store.apply(&[]).await.is_ok()).await;
        let text = log.text();
        assert!(text.contains("started again") && text.contains(told), "{text}");
        assert!(text.contains(&server.port().to_string()), "{text}");
    }
}

#[tokio::test]
async fn a_private_authority_and_a_client_certificate_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let [ca, certificate, secret] = authority.issue("server");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("ca.pem", &ca);
    let (certificate, secret) = (file("server.pem", &certificate), file("server.key", &secret));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = free.to_string();
    let options = ["--tls-port", &port, "--tls-ca-cert-file", &ca, "--tls-cert-file", &certificate];
    let _server = RedisServer::with(&[&options[..], &["--tls-key-file", &secret]].concat());

    let [root, certificate, secret] = authority.issue("client").map(String::into_bytes);
    let build = |knows_root: bool, has_own: bool| {
        let change = |config: &mut divider_redis::RedisConfig| {
            config.root_certificates = knows_root.then(|| root.clone());
            config.client_certificate = has_own.then(|| (certificate.clone(), secret.clone()));
        };
        RedisStore::builder(format!("rediss://localhost:{port}"), group("/tls/")).configure(change).build().unwrap()
    };
    let store = build(true, true);
    let session = joined(&store).await;
    store.renew(session).await.unwrap();
    let mut hints = store.hints(Topic::Group).await.unwrap();
    store.apply(&[add("k")]).await.unwrap();
    assert!(timeout(PATIENCE, hints.next()).await.unwrap().is_some());
    for (root, client) in [(false, true), (true, false)] {
        assert!(build(root, client).open().await.is_err(), "{root} {client}");
    }
}

#[tokio::test]
async fn an_error_names_the_server_that_it_is_about() {
    let mut server = RedisServer::start();
    let at = format!("127.0.0.1:{}", server.port());
    let store = store(server.url(), "/where/");
    let session = joined(&store).await;
    assert_eq!(store.apply(&[add("k")]).await.unwrap().outcomes, [Outcome::Done]);
    server.kill9();
    for _ in 0..3 {
        let errors = [
            store.apply(&[]).await.unwrap_err(),
            store.poll(session, Claim::Follow).await.unwrap_err(),
            store.hints(Topic::Group).await.err().unwrap(),
        ];
        for error in errors {
            assert!(error.to_string().contains(&at), "{error}");
        }
    }
}
