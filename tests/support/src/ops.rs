//! Ops, and sessions at a store without a node.

use divider_core::{Claim, Key, NodeId, Op, Outcome, Revision, SessionId, Store, Term, Token, Work, format};

/// A key of this name.
///
/// # Panics
/// Where no key may be called so.
pub fn key(name: impl AsRef<str>) -> Key {
    Key::new(name).unwrap()
}

/// Declares a key.
///
/// # Panics
/// Where no key may be called so.
pub fn add(name: impl AsRef<str>) -> Op {
    Op::Add(Work::from(key(name)))
}

/// A join with affinity 1000, without a capacity, with a lease of three seconds, of a node that reads the newest format.
///
/// # Panics
/// Never.
pub fn join(session: SessionId, seen: Revision) -> Op {
    let (node, reads) = (NodeId::new("node").unwrap(), format::NEWEST);
    Op::Join { session, node, affinity: 1000, capacity: None, lease_ms: 3000, seen, reads }
}

/// A [`join`] of one who knows where the group stands.
///
/// # Panics
/// If the store does not say it.
pub async fn joining(store: &impl Store, session: SessionId) -> Op {
    join(session, store.apply(&[]).await.unwrap().revision)
}

/// Opens the store and joins.
///
/// # Panics
/// If that fails.
pub async fn joined(store: &impl Store) -> SessionId {
    store.open().await.unwrap();
    let session = SessionId::fresh();
    assert_eq!(store.apply(&[joining(store, session).await]).await.unwrap().outcomes, [Outcome::Done]);
    session
}

/// Opens the store, joins and leads, unless another one does, and ends a hold if there is one. The term is the leader's.
///
/// # Panics
/// If that fails.
pub async fn leading(store: &impl Store) -> (SessionId, Term) {
    let session = joined(store).await;
    let leader = store.poll(session, Claim::Take { stale: None }).await.unwrap().leader.unwrap();
    store.apply(&[Op::ResumeGrants { term: leader.term }]).await.unwrap();
    (session, leader.term)
}

/// Declares a key where it is not there yet, and gives it to a session.
///
/// # Panics
/// If it is not granted.
pub async fn granted(store: &impl Store, term: Term, session: SessionId, name: &str) -> Token {
    let ops = [add(name), Op::Assign { term, key: key(name), session }];
    match store.apply(&ops).await.unwrap().outcomes[1] {
        Outcome::Granted(token) => token,
        other => panic!("{other:?}"),
    }
}

/// Gives a key that is there to a session.
///
/// # Panics
/// If it is not granted.
pub async fn assigned(store: &impl Store, term: Term, session: SessionId, name: &str) -> Token {
    match store.apply(&[Op::Assign { term, key: key(name), session }]).await.unwrap().outcomes[0] {
        Outcome::Granted(token) => token,
        other => panic!("{other:?}"),
    }
}
