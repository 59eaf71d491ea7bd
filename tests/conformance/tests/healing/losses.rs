//! What a node lost is nobody's while its program winds up.

use divider_conformance::{Call, Fault};
use divider_core::Op;

use super::*;

/// A leader that has no work, and a node with one key, which runs; it has just renewed its lease.
async fn one_key_beside_a_leader(lease: Duration) -> (Program, Node, Faults, Events<Event>, Assignment) {
    let store = MemoryStore::new();
    let leader = Program::over(node(store.clone(), |config| {
        config.lease = lease;
        config.affinity = 0;
    }));
    leader.node.start().await.unwrap();
    until("the leader", async || leader.node.is_leader()).await;
    let (node, faults) = faulty(&store, |config| config.lease = lease);
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let first = start(&mut events).await;
    leader.node.set_affinity(1000).await.unwrap();
    (leader, node, faults, events, first)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_lost_session_are_not_freed_before_the_loss_is_confirmed_or_the_lease_is_over() {
    let lease = Duration::from_secs(4);
    let (_leader, node, faults, mut events, first) = one_key_beside_a_leader(lease).await;
    // When the last renewal that counts was sent, and when the session was ended.
    let (renewed, ended) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let note = renewed.clone();
    faults.always(Fault::Count, move |call| {
        if *call == Call::Renew {
            *note.lock() = Some(std::time::Instant::now());
        }
        true
    });
    until("a renewal", async || renewed.lock().is_some()).await;
    let last = *renewed.lock();
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    let note = ended.clone();
    faults.always(Fault::Count, move |call| {
        if call.applies(|op| matches!(op, Op::End { .. })) {
            note.lock().get_or_insert_with(std::time::Instant::now);
        }
        true
    });
    assert_eq!(stop(&mut events).await.reason, StopReason::Lost);
    renewals.lift();
    until("the end of the old session", async || ended.lock().is_some()).await;
    let after = ended.lock().unwrap().duration_since(last.unwrap());
    // Its own deadline, at which the loss is read, is a twentieth of the lease earlier.
    assert!(after > lease - lease / 40, "ended after {after:?}");
    node.confirm_stop_processing(&first.key, first.token).await.unwrap();
}

/// A leader that hears nothing of a session takes its end for a death, which is held against its keys.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_lost_session_is_told_however_many_tries_to_join_come_to_nothing() {
    let (_leader, node, faults, mut events, first) = one_key_beside_a_leader(Duration::from_millis(600)).await;
    let lost = node.session().unwrap();
    let is_join = |op: &Op| matches!(op, Op::Join { .. });
    let tries: Arc<Mutex<Vec<Vec<Op>>>> = Arc::default();
    let noted = tries.clone();
    faults.always(Fault::Count, move |call| {
        if let Call::Apply(ops) = call
            && ops.iter().any(is_join)
        {
            noted.lock().push(ops.to_vec());
        }
        true
    });
    let away = faults.always(Fault::Refuse, move |call| *call == Call::Renew || call.applies(is_join));
    assert_eq!(stop(&mut events).await.reason, StopReason::Lost);
    node.confirm_stop_processing(&first.key, first.token).await.unwrap();
    let session =
        |ops: &Vec<Op>| ops.iter().find_map(|op| if let Op::Join { session, .. } = op { Some(*session) } else { None });
    let sessions = || tries.lock().iter().map(session).collect::<std::collections::BTreeSet<_>>().len();
    until("two sessions that did not come about", async || sessions() > 2).await;
    away.lift();
    until("the node to be back", async || node.session().is_some()).await;
    let last = tries.lock().last().cloned().unwrap();
    assert!(last.contains(&Op::End { session: lost }), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_lost_session_are_freed_once_the_loss_is_confirmed() {
    let (leader, node, faults, mut events, first) = one_key_beside_a_leader(Duration::from_secs(4)).await;
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    assert_eq!(stop(&mut events).await.reason, StopReason::Lost);
    renewals.lift();
    node.confirm_stop_processing(&first.key, first.token).await.unwrap();
    until("the key to run elsewhere", async || leader.running() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_lost_its_session_does_not_sit_on_keys_that_it_cannot_start() {
    let store = MemoryStore::new();
    let (node, faults) = faulty(&store, |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    until("the leader", async || node.is_leader()).await;
    node.add_work(work((0..20).map(|key| format!("k{key}")))).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(start(&mut events).await);
    }
    let other = Program::over(super::node(store.clone(), |_| {}));
    // The other one joins just before the session is lost, so that it has had no time to get its share.
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    let revokes = faults.always(Fault::Refuse, |call| call.applies(|op| matches!(op, Op::Revoke { .. })));
    other.node.start().await.unwrap();
    for _ in 0..20 {
        assert_eq!(stop(&mut events).await.reason, StopReason::Lost);
    }
    renewals.lift();
    revokes.lift();
    // The program confirms nothing of what it lost.
    until("all keys to run elsewhere", async || other.running() == 20).await;
    for lost in held {
        node.confirm_stop_processing(&lost.key, lost.token).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_node_gets_its_keys_back_when_it_has_confirmed_their_loss() {
    let (node, faults) = faulty(&MemoryStore::new(), |_| {});
    let mut events = node.events();
    node.start().await.unwrap();
    node.add_work(work(["k"])).await.unwrap();
    let first = start(&mut events).await;
    let renewals = faults.always(Fault::Refuse, |call| *call == Call::Renew);
    stop(&mut events).await;
    renewals.lift();
    let grants = faults.always(Fault::Count, |call| call.applies(|op| matches!(op, Op::Assign { .. })));
    until("the grant", async || grants.hits() > 0).await;
    // It comes back again and again, and must not do so as fast as the store can answer.
    tokio::time::sleep(LEASE * 2).await;
    assert!(grants.hits() < 12, "granted {} times", grants.hits());
    node.confirm_stop_processing(&first.key, first.token).await.unwrap();
    assert!(start(&mut events).await.token > first.token);
}
