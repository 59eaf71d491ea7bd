//! How much work a node wants, and what it is given.

use std::time::{Duration, SystemTime};

use divider_core::{Error, InvalidInput, Key, Work, limits::MAX_AFFINITY};

use super::{Backend, Trial, seat::Played, trial::soon};

async fn counts(nodes: &[Played]) -> Vec<usize> {
    nodes.iter().map(Played::count).collect()
}

pub async fn keys_are_divided_in_proportion<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut nodes = Vec::new();
    for affinity in [1000, 2000, 3000, 0, 1000] {
        nodes.push(trial.node(|config| config.affinity = affinity).await.play());
    }
    nodes[0].add((0..700).map(|i| format!("key {i}"))).await;
    trial.until("all keys run", async || counts(&nodes).await.iter().sum::<usize>() == 700).await;
    let counts = counts(&nodes).await;
    for (count, quota) in counts.iter().zip([100_usize, 200, 300, 0, 100]) {
        assert!(count.abs_diff(quota) <= usize::from(quota > 0), "{counts:?}");
    }
}

pub async fn weights_count_and_not_keys<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let nodes = [trial.node(|_| {}).await.play(), trial.node(|_| {}).await.play()];
    let work = (0..200_u32).map(|i| Work::new(format!("key {i}")).unwrap().weight(if i < 100 { 9 } else { 1 }));
    nodes[0].add_work(work.collect()).await.unwrap();
    trial.until("all keys run", async || counts(&nodes).await.iter().sum::<usize>() == 200).await;
    let loads: Vec<u32> = nodes.iter().map(|node| node.running().iter().map(|start| start.weight).sum()).collect();
    assert!(loads[0].abs_diff(loads[1]) <= 20, "{loads:?}");
}

pub async fn affinity_zero_is_given_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let idle = trial.node(|config| config.affinity = 0).await;
    idle.add(&["a", "b", "c"]).await;
    let other = trial.node(|_| {}).await.play();
    trial.until("the other runs all", async || other.count() == 3).await;
    trial.until_settled().await;
    assert!(idle.assigned().is_empty());
    // All at zero: the keys wait, and nobody is bothered.
    other.set_affinity(0).await.unwrap();
    idle.add(&["d"]).await;
    other.add_work(vec![Work::new("e").unwrap()]).await.unwrap();
    assert_eq!(idle.stats().await.unwrap().pending, 2);
    idle.set_affinity(1).await.unwrap();
    let idle = idle.play();
    trial.until("the one that wants some has the rest", async || idle.count() == 2).await;
    assert_eq!(other.count(), 3, "what runs stays");
}

pub async fn going_to_zero_gives_back_unread_starts_and_keeps_the_rest<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut first = trial.node(|_| {}).await;
    first.add(&["a", "b", "c", "d"]).await;
    trial.until("the keys are here", async || first.assigned().len() == 4).await;
    let read = first.start().await;
    let second = trial.node(|config| config.affinity = 0).await.play();
    trial.until_settled().await;
    first.set_affinity(0).await.unwrap();
    assert_eq!(first.affinity(), 0);
    assert_eq!(first.start_at_hand(), None, "no start is read at affinity 0");
    assert_eq!(first.assigned().len(), 1);
    second.set_affinity(1).await.unwrap();
    trial.until("the others run elsewhere", async || second.count() == 3).await;
    assert!(second.running().iter().all(|start| start.attempts == 1), "unread starts are no attempts");
    assert!(first.is_current(&read.key, read.token) && first.stop_at_hand().is_none());
}

pub async fn changing_affinity_moves_nothing_that_runs<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let nodes = [trial.node(|_| {}).await.play(), trial.node(|_| {}).await.play()];
    nodes[0].add((0..40).map(|i| format!("key {i}"))).await;
    trial.until("all keys run", async || counts(&nodes).await == [20, 20]).await;
    nodes[0].set_affinity(1).await.unwrap();
    nodes[1].set_affinity(1_000_000).await.unwrap();
    // New keys follow the new affinities, which shows that the leader knows of them.
    nodes[0].add((40..60).map(|i| format!("key {i}"))).await;
    trial.until("the new keys run", async || counts(&nodes).await == [20, 40]).await;
    assert_eq!(nodes[0].started() + nodes[1].started(), 60, "nothing has moved");
}

pub async fn affinity_is_refused_outside_of_its_range<B: Backend>(trial: Trial<B>) {
    let seat = trial.node(|_| {}).await;
    let max = i64::from(MAX_AFFINITY);
    let refused = |result: Result<u32, Error>, would_be: i128| match result {
        Err(Error::Invalid(InvalidInput::OutOfRange { what, value, min, max })) => {
            assert_eq!((what, value, min, max), ("affinity", would_be, 0, i128::from(MAX_AFFINITY)));
        }
        other => panic!("should have been refused: {other:?}"),
    };
    for bad in [-1, -1000, i64::MIN, max + 1, i64::MAX] {
        refused(seat.set_affinity(bad).await.map(|()| 0), bad.into());
    }
    for by in [-1001, max - 999, max, -max] {
        refused(seat.alter_affinity(by).await, i128::from(by) + 1000);
    }
    for by in [i64::MIN, i64::MAX] {
        let result = seat.alter_affinity(by).await;
        assert!(matches!(result, Err(Error::Invalid(InvalidInput::OutOfRange { .. }))), "{result:?}");
    }
    assert_eq!(seat.affinity(), 1000);
    assert_eq!(seat.alter_affinity(-1000).await.unwrap(), 0);
    assert_eq!(seat.alter_affinity(max).await.unwrap(), MAX_AFFINITY);
    refused(seat.alter_affinity(1).await, i128::from(max) + 1);
    assert_eq!(seat.affinity(), MAX_AFFINITY);
    seat.set_affinity(max).await.unwrap();
    assert_eq!(seat.alter_affinity(0).await.unwrap(), MAX_AFFINITY);
}

pub async fn alterations_at_the_same_time_all_count<B: Backend>(trial: Trial<B>) {
    const EACH: usize = 5000;
    let seat = trial.node(|config| config.affinity = 0).await;
    let together = std::sync::Arc::new(std::sync::Barrier::new(2));
    let threads = [(); 2].map(|()| {
        let (node, together, runtime) = (seat.node.clone(), together.clone(), tokio::runtime::Handle::current());
        std::thread::spawn(move || {
            // All are on their way before the first is answered.
            let calls = (0..EACH).map(|_| node.alter_affinity(3));
            together.wait();
            for result in runtime.block_on(futures_util::future::join_all(calls)) {
                result.unwrap();
            }
        })
    });
    let joined = tokio::task::spawn_blocking(|| threads.map(|thread| thread.join().unwrap()));
    soon("the alterations", joined).await.unwrap();
    assert_eq!(seat.alter_affinity(0).await.unwrap(), 30_000);
    assert_eq!(seat.affinity(), 30_000);
}

pub async fn capacity_is_never_exceeded<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut small = trial.node(|config| config.capacity = Some(3)).await;
    let keys: Vec<String> = (0..20).map(|i| format!("key {i:02}")).collect();
    small.add(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut running = small.starts(3).await;
    let mut ran = 3;
    while let Some(done) = running.pop() {
        assert_eq!(small.start_at_hand(), None);
        assert!(small.assigned().len() <= 3);
        small.finish(&done).await;
        if ran < 20 {
            running.insert(0, small.start().await);
            ran += 1;
        }
    }
    assert_eq!(small.stats().await.unwrap().registered, 0);
}

pub async fn a_key_that_is_being_stopped_takes_room<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut small = trial.node(|config| config.capacity = Some(1)).await;
    small.add(&["a"]).await;
    let start = small.start().await;
    small.add(&["b"]).await;
    small.remove_work(vec![start.key.clone()]).await.unwrap();
    let stop = small.stop().await;
    assert_eq!((small.start_at_hand(), small.assigned().len()), (None, 1));
    small.confirm(&stop.key, stop.token).await;
    assert_eq!(small.start().await.key.as_str(), "b");
}

pub async fn higher_priority_goes_first_where_room_is_short<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut small = trial.node(|config| config.capacity = Some(1)).await;
    small.add(&["first"]).await;
    let mut running = small.start().await;
    let priorities = [("d", -5), ("b", 10), ("a", i32::MAX), ("c", 0), ("e", i32::MIN)];
    let work = priorities.map(|(key, priority)| Work::new(key).unwrap().priority(priority));
    small.add_work(work.to_vec()).await.unwrap();
    for expected in ["a", "b", "c", "d", "e"] {
        small.finish(&running).await;
        running = small.start().await;
        assert_eq!(running.key.as_str(), expected);
    }
}

pub async fn nothing_starts_before_its_time<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    // Before that, more than one may come due by the time that anybody decides.
    trial.until("it leads", async || seat.inner.is_leader()).await;
    let now = SystemTime::now();
    let far = now + Duration::from_secs(3600);
    let mut work = Vec::new();
    for (key, time) in [("far", far), ("soon", now + Duration::from_millis(600)), ("past", SystemTime::UNIX_EPOCH)] {
        work.push(Work::new(key).unwrap().not_before(time));
    }
    seat.add_work(work).await.unwrap();
    assert_eq!(seat.start().await.key.as_str(), "past");
    let start = seat.start().await;
    assert_eq!(start.key.as_str(), "soon");
    assert!(SystemTime::now() >= now + Duration::from_millis(599), "it was started before it was due");
    // Declared anew without a time, it is due at once.
    assert_eq!(seat.stats().await.unwrap().pending, 1);
    seat.add(&["far"]).await;
    assert_eq!(seat.start().await.key, Key::new("far").unwrap());
}

pub async fn the_next_leader_keeps_to_the_schedule<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let lease = trial.short();
    let first = trial.node(|config| (config.lease, config.affinity) = (lease, 0)).await;
    trial.until("the first leads", async || first.inner.is_leader()).await;
    let mut second = trial.node(|config| config.lease = lease).await;
    let due = SystemTime::now() + lease * 2;
    let far = SystemTime::now() + Duration::from_secs(3600);
    let work = [("soon", due), ("far", far)].map(|(key, time)| Work::new(key).unwrap().not_before(time));
    second.add_work(work.to_vec()).await.unwrap();
    first.kill();
    let start = second.start().await;
    assert!(start.key.as_str() == "soon" && SystemTime::now() + Duration::from_millis(1) >= due);
    assert_eq!(second.stats().await.unwrap().pending, 1);
}
