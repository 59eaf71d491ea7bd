//! Declaring work, removing it, and keys that keep killing their owners.

use divider_core::{Error, Key, Quarantine, StopReason, Work};

use super::{Backend, Trial};

pub async fn declaring_again_changes_fields_and_moves_nothing<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add_work(vec![Work::new("a").unwrap().payload(*b"old")]).await.unwrap();
    let start = seat.start().await;
    seat.checkpoint(&start.key, start.token, (*b"kept").into()).await.unwrap();
    let work = Work::new("a").unwrap().payload(*b"new").weight(5).priority(6);
    seat.add_work(vec![work]).await.unwrap();
    let view = seat.record(&start.key).await.unwrap().unwrap().view;
    assert_eq!((view.weight, view.priority, view.state.owner().unwrap().1), (5, 6, start.token));
    assert!(seat.is_current(&start.key, start.token) && seat.stop_at_hand().is_none());
    seat.send_stop_processing(&start.key, start.token).await.unwrap();
    seat.stop_and_confirm().await;
    let next = seat.start().await;
    assert_eq!(
        (next.weight, next.priority, &next.payload[..], &next.checkpoint[..]),
        (5, 6, &b"new"[..], &b"kept"[..])
    );
}

pub async fn removing_a_running_key_stops_it_and_ends_it<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a", "b"]).await;
    let starts = seat.starts(2).await;
    let unknown = Key::new("nobody's").unwrap();
    seat.remove_work(vec![unknown, starts[0].key.clone(), starts[0].key.clone()]).await.unwrap();
    seat.remove_work(vec![starts[0].key.clone()]).await.unwrap();
    seat.stop_of(&starts[0], StopReason::Removed).await;
    assert!(seat.is_current(&starts[0].key, starts[0].token));
    let stats = seat.stats().await.unwrap();
    assert_eq!((stats.registered, stats.assigned, stats.stopping), (2, 1, 1));
    seat.confirm(&starts[0].key, starts[0].token).await;
    assert_eq!(seat.record(&starts[0].key).await.unwrap(), None);
    assert_eq!((seat.stop_at_hand(), seat.start_at_hand()), (None, None));
    assert!(seat.is_current(&starts[1].key, starts[1].token));
}

pub async fn a_key_wanted_again_before_the_confirm_is_started_again<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    seat.add(&["a"]).await;
    let start = seat.start().await;
    seat.remove_work(vec![start.key.clone()]).await.unwrap();
    seat.stop_of(&start, StopReason::Removed).await;
    seat.add_work(vec![Work::new("a").unwrap().payload(*b"again")]).await.unwrap();
    assert_eq!(seat.start_at_hand(), None);
    seat.confirm(&start.key, start.token).await;
    let next = seat.start().await;
    assert!(next.token > start.token && &next.payload[..] == b"again");
}

pub async fn a_key_removed_by_one_node_stops_on_another<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut owner = trial.node(|_| {}).await;
    let other = trial.node(|config| config.affinity = 0).await;
    other.add(&["a"]).await;
    let start = owner.start().await;
    assert_eq!(other.record(&start.key).await.unwrap().unwrap().view.state.owner().unwrap().0, owner.session());
    other.remove_work(vec![start.key.clone()]).await.unwrap();
    owner.stop_of(&start, StopReason::Removed).await;
    owner.finish(&start).await;
    assert_eq!(other.record(&start.key).await.unwrap(), None);
}

pub async fn a_removed_key_whose_owner_dies_ends<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            let watcher = trial.node(|config| (config.lease, config.affinity) = (lease, 0)).await;
            let mut owner = trial.node(|config| config.lease = lease).await;
            owner.add(&["a"]).await;
            let start = owner.start().await;
            watcher.remove_work(vec![start.key.clone()]).await.unwrap();
            owner.kill();
            trial.until("it has ended", async || watcher.record(&start.key).await.unwrap().is_none()).await;
            assert_eq!(watcher.stats().await.unwrap().registered, 0);
        })
        .await;
}

pub async fn a_key_whose_owners_keep_dying_is_set_aside_until_it_is_retried<B: Backend>(trial: Trial<B>) {
    trial
        .unhurried(async |trial| {
            trial.end_hold().await;
            let lease = trial.short();
            // The first node leads, and it is the leader's settings that count.
            let leader = trial.node(|config| {
                let mut quarantine = Quarantine::default();
                (quarantine.suspect, quarantine.deaths, quarantine.within) = (1, 1, lease * 4);
                (config.lease, config.affinity, config.quarantine) = (lease, 0, Some(quarantine));
            });
            let leader = leader.await;
            trial.until("it leads", async || leader.inner.is_leader()).await;
            leader.add(&["poison"]).await;
            let key = Key::new("poison").unwrap();
            assert!(matches!(leader.retry(&key).await, Err(Error::UnknownKey { .. })));
            // It becomes suspect, is held back, and dies alone.
            for deaths in 1..=3 {
                let mut victim = trial.node(|config| config.lease = lease).await;
                let start = victim.start().await;
                assert_eq!(start.attempts, deaths);
                assert_eq!(leader.quarantined(10).await.unwrap(), []);
                victim.kill();
                trial.until("the death is noticed", async || leader.stats().await.unwrap().sessions == 1).await;
            }
            let healthy = trial.node(|config| config.lease = lease).await.play();
            trial.until("it is set aside", async || leader.quarantined(10).await.unwrap() == [key.clone()]).await;
            healthy.add(["harmless".into()]).await;
            healthy.starts_soon(&trial, 1).await;
            let stats = leader.stats().await.unwrap();
            assert_eq!((stats.registered, stats.assigned, stats.quarantined), (2, 1, 1));
            assert!(healthy.runs(&key).is_none());
            leader.retry(&key).await.unwrap();
            healthy.starts_soon(&trial, 2).await;
            assert!(healthy.runs(&key).unwrap().attempts >= 4);
            assert!(matches!(leader.retry(&key).await, Err(Error::UnknownKey { .. })));
            assert_eq!(leader.quarantined(10).await.unwrap(), []);
        })
        .await;
}
