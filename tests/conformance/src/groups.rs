//! Groups never see each other.

use divider_core::{Error, Group};

use super::{Backend, Trial};

pub async fn groups_whose_names_share_a_prefix_are_apart<B: Backend>(trial: Trial<B>) {
    let base = uuid::Uuid::new_v4().simple().to_string();
    let suffixes = ["", "/", "/a", "/a/", "*", "%", "{", "}", ":", ":k", " ", "\n", "A", "a", "_"];
    let mut seats = Vec::new();
    for suffix in suffixes {
        let trial = trial.of(Group::new(format!("{base}{suffix}")).unwrap());
        trial.end_hold().await;
        let seat = trial.node(|_| {}).await;
        // The same key in each, and one of its own, whose full path is the same as that of a key in another group.
        seat.add(&["same", &format!("k{suffix}"), "/a/k"]).await;
        seats.push((trial, seat));
    }
    for (trial, seat) in &mut seats {
        let mut keys: Vec<String> = seat.starts(3).await.iter().map(|start| start.key.to_string()).collect();
        keys.sort();
        let suffix = &trial.group.as_str()[base.len()..];
        let mut expected = vec!["same".to_owned(), format!("k{suffix}"), "/a/k".into()];
        expected.sort();
        assert_eq!(keys, expected);
        let stats = seat.stats().await.unwrap();
        assert_eq!((stats.sessions, stats.registered, stats.assigned), (1, 3, 3));
    }
    // What happens to a key in one happens in no other.
    let (trial, mut first) = seats.remove(0);
    first.remove_work(first.assigned().iter().map(|held| held.key.clone()).collect()).await.unwrap();
    for _ in 0..3 {
        first.stop_and_confirm().await;
    }
    trial.until("the group is empty", async || first.stats().await.unwrap().registered == 0).await;
    for (_, seat) in &mut seats {
        assert_eq!(seat.stats().await.unwrap().assigned, 3);
        assert!(seat.stop_at_hand().is_none() && seat.assigned().len() == 3);
    }
}

pub async fn a_token_of_one_group_is_nothing_in_another<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let other = trial.of(Group::new(format!("{}other", trial.group)).unwrap());
    other.end_hold().await;
    let (mut here, mut there) = (trial.node(|_| {}).await, other.node(|_| {}).await);
    here.add(&["a"]).await;
    let start = here.start().await;
    assert!(matches!(there.complete(&start.key, start.token).await, Err(Error::UnknownKey { .. })));
    assert!(!there.is_current(&start.key, start.token));
    there.remove_work(vec![start.key.clone()]).await.unwrap();
    there.add(&["a"]).await;
    let theirs = there.start().await;
    assert!(here.is_current(&start.key, start.token) && there.is_current(&theirs.key, theirs.token));
    there.finish(&theirs).await;
    assert!(here.record(&start.key).await.unwrap().is_some());
}
