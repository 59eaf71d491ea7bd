//! Mutual TLS: who has no certificate of the same authority, or one with another name, is kept out.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, time::Duration};

use divider_core::{Group, Op, Store, Work};
use divider_raft::{Data, RaftBuilder, RaftStore, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> Tls {
        let mut params = CertificateParams::new([name.to_owned(), "localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Tls::from_pem(self.0.pem().as_bytes(), certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
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
    let build = |at: usize| member(names[at], &seeds[at], &seeds).tls(authority.issue(names[at])).build().unwrap();
    let stores: Vec<RaftStore> = (0..3).map(build).collect();
    let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
    opened.into_iter().for_each(Result::unwrap);

    let soon = |builder: RaftBuilder| {
        builder.configure(|config| config.open_time_limit = Duration::from_millis(900)).build().unwrap()
    };
    let client = || RaftStore::client(&seeds, Group::new("/test/").unwrap());
    let good = soon(client().tls(authority.issue("client-1")));
    good.open().await.unwrap();
    good.apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    assert_eq!(stores[0].stats().await.unwrap().registered, 1);

    // By a name in the DNS: what it stands for is an address, and the certificates carry the name.
    let by_name = soon(
        client()
            .configure(|config| {
                config.seed_names = std::mem::take(&mut config.seeds);
            })
            .tls(authority.issue("client-2")),
    );
    by_name.open().await.unwrap();

    // Of another authority, or without any.
    assert!(soon(client().tls(Authority::new().issue("client-1"))).open().await.is_err());
    assert!(soon(client().plaintext()).open().await.is_err());
    // A member must carry the name it goes by.
    let address = &addresses(1)[0];
    let liar = soon(member("node-d", address, &seeds).tls(authority.issue("node-e")));
    assert!(liar.open().await.is_err());
    // And a name of a member: a certificate alone makes a client.
    let address = &addresses(1)[0];
    assert!(soon(member("node-e", address, &seeds).tls(authority.issue("node-e"))).open().await.is_err());
    let honest = member("node-d", &addresses(1)[0], &seeds).tls(authority.issue("node-d")).build().unwrap();
    honest.open().await.unwrap();
    assert_eq!(honest.stats().await.unwrap().registered, 1);
}

#[test]
fn neither_certificates_nor_keys_are_printed() {
    let tls = Authority::new().issue("node-a");
    assert_eq!(format!("{tls:?}"), "Tls { .. }");
    let store = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).tls(tls);
    assert!(format!("{store:?}").contains("security: Tls,"));
    assert!(Tls::from_pem(b"", b"", b"-----BEGIN SECRET").is_err());
}
