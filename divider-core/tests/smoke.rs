use std::time::{Duration, Instant};
use divider_core::*;

fn node(store: &MemoryStore, affinity: u32) -> Node {
    Node::builder(store.clone()).configure(|c| { c.affinity = affinity; c.lease = Duration::from_millis(600); }).build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn divides_and_takes_over() {
    let store = MemoryStore::new();
    let mut nodes = Vec::new();
    for a in [1000, 2000, 3000] { let n = node(&store, a); n.start().await.unwrap(); nodes.push(n); }
    let mut starts: Vec<_> = nodes.iter().map(|n| n.start_processing()).collect();
    nodes[0].add_work((0..600).map(|i| Work::new(format!("k{i}")).unwrap()).collect()).await.unwrap();
    for (i, want) in [(0, 100), (1, 200), (2, 300)] {
        for _ in 0..want { tokio::time::timeout(Duration::from_secs(5), starts[i].next()).await.unwrap().unwrap(); }
        assert_eq!(nodes[i].assigned().len(), want);
    }
    let s = nodes[0].stats().await.unwrap();
    println!("{s:?}");
    let t = Instant::now();
    let dead = nodes.iter().position(|n| n.is_leader()).unwrap();
    starts.remove(dead);
    drop(nodes.remove(dead));
    while nodes.iter().map(|n| n.assigned().len()).sum::<usize>() < 600 {
        assert!(t.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("take over {:?}", t.elapsed());
    let mut stops = nodes[0].stop_processing();
    let f = tokio::spawn({let n = nodes[0].clone(); async move { n.flush_and_cancel().await }});
    let st2 = &mut starts[0];
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(50), st2.next()).await {}
    let n0 = nodes[0].clone();
    while let Some(stop) = stops.next().await { n0.confirm_stop_processing(&stop.key, stop.token).await.unwrap(); }
    assert!(f.await.unwrap().unwrap().unconfirmed.is_empty());
    while nodes[1].assigned().len() < 600 { tokio::time::sleep(Duration::from_millis(5)).await; }
}
