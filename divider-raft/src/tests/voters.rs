//! Voters in this process, with everything in memory.

use std::net::TcpListener;

use divider_core::{Group, Store};

use crate::{Data, RaftBuilder, RaftStore};

/// Addresses that nobody listens at.
pub(crate) fn addresses(count: usize) -> Vec<String> {
    let bound: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// One of the voters that listen at these addresses, with its data in memory.
pub(crate) fn voter(at: usize, addresses: &[String]) -> RaftBuilder {
    let builder = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name(format!("node-{at}")).unwrap();
    builder.listen(&addresses[at]).seeds(addresses).plaintext()
}

/// The voters of the cluster that they have founded at these addresses.
pub(crate) async fn opened(addresses: &[String]) -> Vec<RaftStore> {
    let stores: Vec<_> = (0..addresses.len()).map(|at| voter(at, addresses).build().unwrap()).collect();
    let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
    opened.into_iter().for_each(Result::unwrap);
    stores
}

/// So many voters of one cluster, and where they listen.
pub(crate) async fn voters(count: usize) -> (Vec<RaftStore>, Vec<String>) {
    let addresses = addresses(count);
    (opened(&addresses).await, addresses)
}
