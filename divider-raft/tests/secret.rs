//! A cluster whose members and clients know secrets, and have no certificates.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, time::Duration};

use divider_core::{Group, Op, Store, StoreError, Work};
use divider_raft::{Data, RaftBuilder, RaftStore, Secret};

const MEMBERS: [u8; 16] = *b"known to members";
const CLIENTS: [u8; 16] = *b"known to clients";

fn member(name: &str, address: &str, seeds: &[String], secret: Secret) -> RaftBuilder {
    let builder = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name(name).unwrap();
    builder.listen(address).seeds(seeds).secret(secret)
}

fn addresses(count: usize) -> Vec<String> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_the_secret_of_clients_is_one_and_who_knows_none_is_nobody() {
    let seeds = addresses(3);
    let secret = || Secret::member(MEMBERS, CLIENTS);
    let build = |at: usize| member(&format!("node-{at}"), &seeds[at], &seeds, secret()).build().unwrap();
    let stores: Vec<_> = (0..3).map(build).collect();
    futures_util::future::join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);

    let soon = |builder: RaftBuilder| {
        builder.configure(|config| config.open_time_limit = Duration::from_millis(900)).build().unwrap()
    };
    let client = || RaftStore::client(&seeds, Group::new("/test/").unwrap());
    let good = soon(client().secret(Secret::client(CLIENTS)));
    good.open().await.unwrap();
    good.apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    let id = stores[0].me().unwrap().id;
    assert!(matches!(good.remove_member(id).await, Err(StoreError::Misconfigured(_))), "a client administers nothing");
    assert_eq!(good.members().await.unwrap().len(), 3);
    stores[0].stats().await.unwrap();

    assert!(soon(client().plaintext()).open().await.is_err());
    assert!(soon(client().secret(Secret::client([7; 16]))).open().await.is_err());
    let address = &addresses(1)[0];
    // It has guessed a secret of members, and knows that of clients.
    let liar = member("node-9", address, &seeds, Secret::member([7; 16], CLIENTS));
    assert!(soon(liar).open().await.is_err());
    assert_eq!(good.members().await.unwrap().len(), 3);
}

#[test]
fn a_member_needs_the_secret_of_members() {
    let seeds = addresses(1);
    let error = member("node-0", &seeds[0], &seeds, Secret::client(CLIENTS)).build().unwrap_err();
    assert_eq!(error.field, "security");
}
