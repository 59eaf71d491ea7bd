//! A newcomer beside very many connections that say nothing.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use divider_core::{Group, Store};
use divider_raft::{Data, RaftStore};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet};

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_hold_up_no_newcomer() {
    let bound: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let seeds: Vec<_> = bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    drop(bound);
    let build = |at: usize| {
        let builder =
            RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).name(format!("node-{at}")).unwrap();
        builder.listen(&seeds[at]).seeds(&seeds).plaintext().build().unwrap()
    };
    let stores: Vec<_> = (0..3).map(build).collect();
    futures_util::future::join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);
    // Each is opened again when it is closed.
    let mut silent = JoinSet::new();
    for seed in seeds.iter().flat_map(|seed| std::iter::repeat_n(seed, 400)) {
        let seed = seed.clone();
        silent.spawn(async move {
            loop {
                if let Ok(mut stream) = TcpStream::connect(&seed).await {
                    let _ = stream.read(&mut [0; 1]).await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    // Until they have taken what places there are.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let began = Instant::now();
        let client = RaftStore::client(&seeds, Group::new("/test/").unwrap()).plaintext().build().unwrap();
        client.open().await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    println!("figure: a newcomer beside 1200 silent connections: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    silent.abort_all();
}
