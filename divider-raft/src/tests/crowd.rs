//! A newcomer beside very many connections that say nothing.

use std::time::{Duration, Instant};

use divider_core::{Group, Store};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet};

use crate::{RaftStore, tests::voters::voters};

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_hold_up_no_newcomer() {
    let (_stores, seeds) = voters(3).await;
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
