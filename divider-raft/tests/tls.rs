//! Mutual TLS: who has no certificate of the same authority, or one with another name, is kept out.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, time::Duration};

use divider_core::{Group, Op, Store, Work};
use divider_raft::{Data, RaftBuilder, RaftStore, Tls};
use divider_support::certificates::Authority;

fn issued(authority: &Authority, name: &str) -> Tls {
    let [authority, certificate, key] = authority.issue(name);
    Tls::from_pem(authority.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
}

fn addresses(count: usize) -> Vec<String> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| format!("localhost:{}", listener.local_addr().unwrap().port())).collect()
}

fn member(name: &str, address: &str, seeds: &[String]) -> RaftBuilder {
    let builder = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name(name).unwrap();
    builder.listen(address).seeds(seeds).configure(|config| {
        config.advertise = Some(address.to_owned());
        config.open_time_limit = Duration::from_secs(5);
        config.members = vec!["node-a".into(), "node-b".into(), "node-c".into(), "node-d".into()];
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_clients_with_certificates_come_together_and_others_do_not() {
    let authority = Authority::new();
    let seeds = addresses(3);
    let names = ["node-a", "node-b", "node-c"];
    let build = |at: usize| member(names[at], &seeds[at], &seeds).tls(issued(&authority, names[at])).build().unwrap();
    let stores: Vec<RaftStore> = (0..3).map(build).collect();
    let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
    opened.into_iter().for_each(Result::unwrap);

    let soon = |builder: RaftBuilder| {
        builder.configure(|config| config.open_time_limit = Duration::from_millis(900)).build().unwrap()
    };
    let client = || RaftStore::client(&seeds, Group::new("/test/").unwrap());
    let good = soon(client().tls(issued(&authority, "client-1")));
    good.open().await.unwrap();
    good.apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    assert_eq!(stores[0].stats().await.unwrap().registered, 1);

    // By a name in the DNS: what it stands for is an address, and the certificates carry the name.
    let by_name = soon(
        client()
            .configure(|config| {
                config.seed_names = std::mem::take(&mut config.seeds);
            })
            .tls(issued(&authority, "client-2")),
    );
    by_name.open().await.unwrap();

    // Of another authority, or without any.
    assert!(soon(client().tls(issued(&Authority::new(), "client-1"))).open().await.is_err());
    assert!(soon(client().plaintext()).open().await.is_err());
    // A member must carry the name it goes by.
    let address = &addresses(1)[0];
    let liar = soon(member("node-d", address, &seeds).tls(issued(&authority, "node-e")));
    assert!(liar.open().await.is_err());
    // And a name of a member: a certificate alone makes a client.
    let address = &addresses(1)[0];
    assert!(soon(member("node-e", address, &seeds).tls(issued(&authority, "node-e"))).open().await.is_err());
    let honest = member("node-d", &addresses(1)[0], &seeds).tls(issued(&authority, "node-d")).build().unwrap();
    honest.open().await.unwrap();
    assert_eq!(honest.stats().await.unwrap().registered, 1);
}

#[test]
fn neither_certificates_nor_keys_are_printed() {
    let tls = issued(&Authority::new(), "node-a");
    assert_eq!(format!("{tls:?}"), "Tls { .. }");
    let store = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).tls(tls);
    assert!(format!("{store:?}").contains("security: Tls,"));
    assert!(Tls::from_pem(b"", b"", b"-----BEGIN SECRET").is_err());
}
