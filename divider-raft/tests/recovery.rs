//! The way out of a lost majority.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, path::Path, time::Duration};

use divider_core::{Claim, Group, Key, Op, Outcome, Refusal, SessionId, Store, StoreError, Term, Work};
use divider_raft::{DataError, RaftStore, Recovered};
use divider_support::ops::joined;
use tempfile::TempDir;

fn addresses() -> Vec<String> {
    let bound: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn voter(at: usize, seeds: &[String], directory: &Path) -> RaftStore {
    let builder = RaftStore::builder(directory, Group::new("/test/").unwrap()).name(format!("node-{at}")).unwrap();
    builder.listen(&seeds[at]).seeds(seeds).plaintext().build().unwrap()
}

async fn open_all(stores: &[RaftStore]) {
    let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
    opened.into_iter().for_each(Result::unwrap);
}

async fn assign(store: &RaftStore, term: Term, key: &Key, session: SessionId) -> Outcome {
    store.apply(&[Op::Assign { term, key: key.clone(), session }]).await.unwrap().outcomes[0]
}

/// Joins and leads.
async fn lead(store: &RaftStore) -> (SessionId, Term) {
    let session = joined(store).await;
    let term = store.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap().term;
    (session, term)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_survivor_of_a_lost_majority_begins_a_new_life() {
    let seeds = addresses();
    let parent = TempDir::new().unwrap();
    let directory = |at: usize| parent.path().join(format!("node-{at}"));
    let stores: Vec<_> = (0..3).map(|at| voter(at, &seeds, &directory(at))).collect();
    open_all(&stores).await;
    let key = Key::new("k").unwrap();
    stores[0].apply(&[Op::Add(Work::from(key.clone()).payload(*b"kept"))]).await.unwrap();
    let leader = stores.iter().find(|store| store.leads_raft()).unwrap();
    let (old_session, term) = lead(leader).await;
    // A cluster that was founded may have had a life before, too.
    stores[0].apply(&[Op::ResumeGrants { term }]).await.unwrap();
    let Outcome::Granted(old) = assign(leader, term, &key, old_session).await else { panic!() };
    let refused = RaftStore::recover(directory(0)).unwrap_err();
    assert!(matches!(refused, DataError::InUse { .. }), "{refused}");
    let id = stores[0].me().unwrap().id;
    // What was decided last reaches every one.
    while stores[0].owner_of(&key).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    for store in &stores {
        store.close().await;
    }
    drop(stores);

    let recovered = RaftStore::recover(directory(0)).unwrap();
    assert_eq!((recovered.member.name.as_str(), recovered.groups), ("node-0", 1));
    assert_ne!(recovered.member.id, id);
    assert!(recovered.former.is_dir());
    let survivor = voter(0, &seeds, &directory(0));
    survivor.open().await.unwrap();
    assert_eq!(survivor.stats().await.unwrap().registered, 1);
    assert!(matches!(survivor.renew(old_session).await, Err(StoreError::SessionEnded)), "all sessions are over");
    let (session, term) = lead(&survivor).await;
    // Whoever owned it may believe so for a lease, which whoever leads waits for.
    assert_eq!(assign(&survivor, term, &key, session).await, Outcome::Refused(Refusal::GrantsHeld));
    survivor.apply(&[Op::ResumeGrants { term }]).await.unwrap();
    let Outcome::Granted(new) = assign(&survivor, term, &key, session).await else { panic!("the key was free again") };
    assert!(new > old && new.0 > 1_600_000_000_000_000, "{old:?} {new:?}");

    // Another one that comes back as it was is refused, and as a newcomer it is welcome.
    let old = voter(1, &seeds, &directory(1));
    let waits = tokio::time::timeout(std::time::Duration::from_secs(2), old.open()).await;
    assert!(!matches!(waits, Ok(Ok(()))));
    assert_eq!(survivor.members().await.unwrap().len(), 1);
    old.close().await;
    drop(old);
    let fresh: Vec<_> = (1..3).map(|at| voter(at, &seeds, &parent.path().join(format!("new-{at}")))).collect();
    open_all(&fresh).await;
    assert_eq!(fresh[0].stats().await.unwrap().registered, 1);
    let record = fresh[1].records(&[key]).await.unwrap().remove(0).unwrap();
    assert_eq!(record.payload.as_ref(), b"kept");
    assert!(RaftStore::recover(directory(0)).unwrap_err().to_string().contains("before-recovery"));
}

/// A store that has just been closed may still be letting go.
fn recover(directory: &Path) -> Recovered {
    loop {
        match RaftStore::recover(directory) {
            Err(DataError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            recovered => return recovered.unwrap(),
        }
    }
}

fn soon(at: usize, seeds: &[String], directory: &Path) -> RaftStore {
    let config = voter(at, seeds, directory).config().clone();
    let builder = RaftStore::builder(directory, Group::new("/test/").unwrap()).configure(|new| *new = config);
    builder.configure(|config| config.open_time_limit = Duration::from_millis(800)).build().unwrap()
}

/// Whoever recovers one member while others live, or two of them, would have two clusters that grant the same keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_life_does_not_begin_beside_another_one() {
    let seeds = addresses();
    let parent = TempDir::new().unwrap();
    let directory = |at: usize| parent.path().join(format!("node-{at}"));
    let mut stores: Vec<_> = (0..3).map(|at| voter(at, &seeds, &directory(at))).collect();
    open_all(&stores).await;
    stores.remove(0).close().await;
    // It was only away, and a majority goes on without it.
    recover(&directory(0));
    let second = soon(0, &seeds, &directory(0));
    let error = second.open().await.unwrap_err().to_string();
    assert!(error.contains("another cluster"), "{error}");
    // Nobody is served by it, in its own process or elsewhere.
    let client = RaftStore::client(&seeds[..1], Group::new("/test/").unwrap()).plaintext();
    let client = client.configure(|config| config.open_time_limit = Duration::from_millis(300)).build().unwrap();
    assert!(second.apply(&[]).await.is_err());
    assert!(client.open().await.is_err());
    stores[0].apply(&[]).await.unwrap();
    // As soon as nothing of the other life is there, it is the cluster.
    for store in &stores {
        store.close().await;
    }
    drop(stores);
    second.open().await.unwrap();
    // And another one that is recovered is none.
    recover(&directory(1));
    let third = soon(1, &seeds, &directory(1));
    assert!(third.open().await.unwrap_err().to_string().contains("another cluster"));
    second.apply(&[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_is_cut_short_can_be_done_again() {
    let seeds = addresses();
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("node-0");
    let alone = voter(0, &seeds[..1], &directory);
    alone.open().await.unwrap();
    alone.apply(&[Op::Add(Work::new("k").unwrap())]).await.unwrap();
    alone.close().await;
    drop(alone);
    let first = recover(&directory);
    // It ended after it had put the old directory away, and before the new one had taken its place.
    std::fs::rename(&directory, parent.path().join("node-0.recovering")).unwrap();
    let again = RaftStore::recover(&directory).unwrap();
    assert_eq!((again.last_entry, again.groups), (first.last_entry, first.groups));
    let survivor = voter(0, &seeds[..1], &directory);
    survivor.open().await.unwrap();
    assert_eq!(survivor.stats().await.unwrap().registered, 1);
}

#[test]
fn where_no_member_has_lived_nothing_is_recovered() {
    let parent = TempDir::new().unwrap();
    assert!(RaftStore::recover(parent.path().join("nobody")).is_err());
    let empty = parent.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(RaftStore::recover(&empty).unwrap_err().to_string().contains("no member"));
}
