//! Single ops at the store: what each does, and when each is refused.

use super::{Backend, Clerk, Trial};
use crate::{Blob, Key, Op, Outcome, Refusal, SessionId, State, StopReason, Store, Token, Work};

const STALE: Outcome = Outcome::Refused(Refusal::StaleToken);
const UNKNOWN: Outcome = Outcome::Refused(Refusal::UnknownKey);

pub async fn work_is_declared_once_and_takes_new_fields<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let work = Work::new("a").unwrap().weight(3).priority(-7).payload(*b"one");
    assert_eq!(clerk.one(Op::Add(work.clone())).await, Outcome::Done);
    assert_eq!(clerk.one(Op::Add(work.clone())).await, Outcome::Unchanged);
    let record = clerk.record(&work.key).await.unwrap();
    assert_eq!((record.view.weight, record.view.priority, &record.payload[..]), (3, -7, &b"one"[..]));
    assert_eq!((record.view.attempts, record.view.state), (0, State::Pending));
    let mut work = work.weight(1_000_000).priority(i32::MIN).payload(Blob::default());
    work.not_before_ms = crate::limits::MAX_NOT_BEFORE_MS;
    assert_eq!(clerk.one(Op::Add(work.clone())).await, Outcome::Done);
    let view = clerk.record(&work.key).await.unwrap().view;
    assert_eq!((view.weight, view.priority, view.not_before_ms), (1_000_000, i32::MIN, 1 << 52));
}

pub async fn a_batch_is_applied_in_order<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let key = Key::new("a").unwrap();
    let assign = Op::Assign { term: clerk.term, key: key.clone(), session: clerk.session };
    let remove = Op::Remove { key: key.clone() };
    let ops = [assign.clone(), Op::Add(key.clone().into()), assign.clone(), assign, remove.clone(), remove];
    let outcomes = clerk.apply(&ops).await.outcomes;
    assert_eq!((outcomes[0], outcomes[1]), (UNKNOWN, Outcome::Done));
    assert!(matches!(outcomes[2], Outcome::Granted(_)), "{outcomes:?}");
    assert_eq!(outcomes[3..], [Outcome::Refused(Refusal::NotFree), Outcome::Done, Outcome::Unchanged]);
}

pub async fn an_empty_batch_changes_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let before = clerk.poll(crate::Claim::Follow).await;
    assert_eq!(clerk.apply(&[]).await.revision, before.revision);
}

pub async fn a_free_key_is_removed_at_once<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let key = clerk.add("a").await;
    assert_eq!(clerk.one(Op::Remove { key: key.clone() }).await, Outcome::Done);
    assert_eq!(clerk.record(&key).await, None);
    assert_eq!(clerk.one(Op::Remove { key }).await, UNKNOWN);
}

pub async fn an_owned_key_is_removed_once_its_owner_confirms<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let key = clerk.add("a").await;
    let token = clerk.assign(&key, clerk.session).await;
    assert_eq!(clerk.one(Op::Remove { key: key.clone() }).await, Outcome::Done);
    let stopping = State::Stopping { session: clerk.session, token, reason: StopReason::Removed };
    assert_eq!(clerk.state(&key).await, Some(stopping));
    assert_eq!(clerk.one(clerk.confirm(&key, token)).await, Outcome::Done);
    assert_eq!(clerk.record(&key).await, None);
    assert_eq!(clerk.one(clerk.confirm(&key, token)).await, UNKNOWN);
}

pub async fn a_key_that_is_wanted_again_before_the_confirm_stays<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let key = clerk.add("a").await;
    let token = clerk.assign(&key, clerk.session).await;
    clerk.one(Op::Remove { key: key.clone() }).await;
    assert_eq!(clerk.one(Op::Add(key.clone().into())).await, Outcome::Done);
    assert_eq!(clerk.one(Op::Add(key.clone().into())).await, Outcome::Unchanged);
    assert_eq!(clerk.one(clerk.confirm(&key, token)).await, Outcome::Done);
    assert_eq!(clerk.state(&key).await, Some(State::Pending));
}

pub async fn grants_are_refused_where_they_must_be<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let idle = Clerk::join_as(&trial, 0, None).await;
    let small = Clerk::join_as(&trial, 1, Some(1)).await;
    let draining = Clerk::join(&trial).await;
    assert_eq!(draining.one(Op::Drain { session: draining.session }).await, Outcome::Done);
    assert_eq!(draining.one(Op::Drain { session: draining.session }).await, Outcome::Unchanged);
    let gone = Clerk::join(&trial).await;
    assert_eq!(gone.one(Op::End { session: gone.session }).await, Outcome::Done);
    let (a, b) = (clerk.add("a").await, clerk.add("b").await);
    let refused = async |key: &Key, session: SessionId| match clerk
        .one(Op::Assign { term: clerk.term, key: key.clone(), session })
        .await
    {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{key} should have been refused: {other:?}"),
    };
    assert_eq!(refused(&a, idle.session).await, Refusal::NotTaking);
    assert_eq!(refused(&a, draining.session).await, Refusal::NotTaking);
    assert_eq!(refused(&a, gone.session).await, Refusal::SessionEnded);
    assert_eq!(refused(&a, SessionId::fresh()).await, Refusal::SessionEnded);
    assert_eq!(refused(&Key::new("z").unwrap(), clerk.session).await, Refusal::UnknownKey);
    clerk.assign(&a, small.session).await;
    assert_eq!(refused(&a, clerk.session).await, Refusal::NotFree);
    assert_eq!(refused(&b, small.session).await, Refusal::NoRoom);
    let early = Op::Assign { term: crate::Term(clerk.term.0 - 1), key: b.clone(), session: clerk.session };
    assert_eq!(clerk.one(early).await, Outcome::Refused(Refusal::OldTerm));
    let late = Op::Assign { term: crate::Term(clerk.term.0 + 1), key: b.clone(), session: clerk.session };
    assert_eq!(clerk.one(late).await, Outcome::Refused(Refusal::OldTerm));
    assert_eq!(clerk.state(&b).await, Some(State::Pending));
}

pub async fn tokens_rise_from_grant_to_grant<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let (a, b) = (clerk.add("a").await, clerk.add("b").await);
    let mut last = Token(0);
    for key in [&a, &b, &a, &b, &a] {
        let token = clerk.assign(key, clerk.session).await;
        assert!(token > last && token < Token::ABOVE_ALL, "{token} after {last}");
        assert!(clerk.poll(crate::Claim::Follow).await.token >= token);
        assert_eq!(clerk.one(clerk.confirm(key, token)).await, Outcome::Done);
        last = token;
    }
    // Also for a key that has ended and is declared again.
    clerk.one(Op::Remove { key: a.clone() }).await;
    let a = clerk.add("a").await;
    assert!(clerk.assign(&a, clerk.session).await > last);
}

pub async fn whatever_is_not_the_owners_changes_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let key = clerk.add("a").await;
    let old = clerk.assign(&key, clerk.session).await;
    clerk.one(clerk.confirm(&key, old)).await;
    let token = clerk.assign(&key, clerk.session).await;
    let before = clerk.record(&key).await;
    let future = Token(token.0 + 1);
    for (session, token) in [(clerk.session, old), (clerk.session, future), (other.session, token)] {
        let of = |key: &Key| key.clone();
        let ops = [
            Op::Confirm { session, key: of(&key), token, started: true },
            Op::Confirm { session, key: of(&key), token, started: false },
            Op::GiveUp { session, key: of(&key), token, not_before_ms: 0 },
            Op::Complete { session, key: of(&key), token },
            Op::Checkpoint { session, key: of(&key), token, bytes: Blob::from(*b"stale") },
        ];
        assert_eq!(clerk.apply(&ops).await.outcomes, [STALE; 5]);
    }
    for token in [old, future] {
        let revoke = Op::Revoke { term: clerk.term, key: key.clone(), token };
        let force = Op::Force { term: clerk.term, key: key.clone(), token };
        assert_eq!(clerk.apply(&[revoke, force]).await.outcomes, [STALE, STALE]);
    }
    assert_eq!(clerk.record(&key).await, before);
    let z = Key::new("z").unwrap();
    let ops = [
        clerk.confirm(&z, token),
        Op::GiveUp { session: clerk.session, key: z.clone(), token, not_before_ms: 0 },
        Op::Complete { session: clerk.session, key: z.clone(), token },
        Op::Checkpoint { session: clerk.session, key: z.clone(), token, bytes: Blob::default() },
        Op::Revoke { term: clerk.term, key: z.clone(), token },
        Op::Force { term: clerk.term, key: z.clone(), token },
        Op::Retry { key: z.clone() },
        Op::Quarantine { term: clerk.term, key: z },
    ];
    assert_eq!(clerk.apply(&ops).await.outcomes, [UNKNOWN; 8]);
}

pub async fn giving_up_asks_for_a_stop_and_keeps_the_later_time<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let mut work = Work::new("a").unwrap();
    work.not_before_ms = 500;
    let key = work.key.clone();
    clerk.one(Op::Add(work)).await;
    let token = clerk.assign(&key, clerk.session).await;
    let give_up = |not_before_ms| Op::GiveUp { session: clerk.session, key: key.clone(), token, not_before_ms };
    assert_eq!(clerk.apply(&[give_up(400), give_up(900)]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    let view = clerk.record(&key).await.unwrap().view;
    let reason = StopReason::Rebalanced;
    assert_eq!(view.state, State::Stopping { session: clerk.session, token, reason });
    assert_eq!((view.not_before_ms, view.avoid), (500, Some(clerk.session)));
    assert_eq!(clerk.one(clerk.confirm(&key, token)).await, Outcome::Done);
    let token = clerk.assign(&key, clerk.session).await;
    let op = Op::GiveUp { session: clerk.session, key: key.clone(), token, not_before_ms: 900 };
    assert_eq!(clerk.one(op).await, Outcome::Done);
    assert_eq!(clerk.record(&key).await.unwrap().view.not_before_ms, 900);
}

pub async fn a_checkpoint_is_kept_and_completion_ends_the_key<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let key = clerk.add("a").await;
    let token = clerk.assign(&key, clerk.session).await;
    let session = clerk.session;
    for bytes in [&b"one"[..], &[0, 255, 10, 13, 128], &[]] {
        let op = Op::Checkpoint { session, key: key.clone(), token, bytes: bytes.into() };
        assert_eq!(clerk.one(op).await, Outcome::Done);
        assert_eq!(&clerk.record(&key).await.unwrap().checkpoint[..], bytes);
    }
    // Also while it is being stopped, and a stop does not keep it from being completed.
    clerk.one(Op::Revoke { term: clerk.term, key: key.clone(), token }).await;
    let op = Op::Checkpoint { session, key: key.clone(), token, bytes: Blob::from(*b"last") };
    assert_eq!(clerk.one(op).await, Outcome::Done);
    clerk.one(clerk.confirm(&key, token)).await;
    let token = clerk.assign(&key, session).await;
    let holdings = clerk.store.holdings(session).await.unwrap().holdings;
    assert_eq!(&holdings[0].checkpoint[..], b"last");
    let complete = Op::Complete { session, key: key.clone(), token };
    assert_eq!(clerk.apply(&[complete.clone(), complete]).await.outcomes, [Outcome::Done, UNKNOWN]);
    assert_eq!(clerk.record(&key).await, None);
    // Declared again it is new.
    let key = clerk.add("a").await;
    let record = clerk.record(&key).await.unwrap();
    assert_eq!((record.checkpoint.len(), record.view.attempts), (0, 0));
}

pub async fn revoking_asks_and_forcing_takes<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let term = clerk.term;
    let key = clerk.add("a").await;
    let token = clerk.assign(&key, clerk.session).await;
    let revoke = Op::Revoke { term, key: key.clone(), token };
    let force = Op::Force { term, key: key.clone(), token };
    assert_eq!(clerk.one(force.clone()).await, Outcome::Refused(Refusal::NotStopping));
    assert_eq!(clerk.apply(&[revoke.clone(), revoke]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    let stopping = State::Stopping { session: clerk.session, token, reason: StopReason::Rebalanced };
    assert_eq!(clerk.state(&key).await, Some(stopping));
    assert_eq!(clerk.apply(&[force.clone(), force]).await.outcomes, [Outcome::Done, STALE]);
    assert_eq!(clerk.state(&key).await, Some(State::Pending));
    assert_eq!(clerk.one(clerk.confirm(&key, token)).await, STALE);
    // Forcing a key that is being removed ends it.
    let token = clerk.assign(&key, clerk.session).await;
    clerk.one(Op::Remove { key: key.clone() }).await;
    assert_eq!(clerk.one(Op::Force { term, key: key.clone(), token }).await, Outcome::Done);
    assert_eq!(clerk.record(&key).await, None);
}

pub async fn attempts_count_starts_and_not_mere_grants<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let key = clerk.add("a").await;
    for (started, attempts) in [(true, 1), (false, 2), (true, 2), (true, 3)] {
        let token = clerk.assign(&key, clerk.session).await;
        assert_eq!(clerk.record(&key).await.unwrap().view.attempts, attempts);
        let op = Op::Confirm { session: clerk.session, key: key.clone(), token, started };
        assert_eq!(clerk.one(op).await, Outcome::Done);
    }
}

pub async fn quarantine_sets_a_free_key_aside_until_it_is_retried<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let term = clerk.term;
    let (key, other) = (clerk.add("a").await, clerk.add("b").await);
    let token = clerk.assign(&other, clerk.session).await;
    let quarantine = |key: &Key| Op::Quarantine { term, key: key.clone() };
    assert_eq!(clerk.one(quarantine(&other)).await, Outcome::Refused(Refusal::NotFree));
    let retry = Op::Retry { key: key.clone() };
    assert_eq!(clerk.one(retry.clone()).await, Outcome::Refused(Refusal::NotQuarantined));
    assert_eq!(clerk.one(quarantine(&key)).await, Outcome::Done);
    assert_eq!(clerk.one(quarantine(&key)).await, Outcome::Refused(Refusal::NotFree));
    let assign = Op::Assign { term, key: key.clone(), session: clerk.session };
    assert_eq!(clerk.one(assign).await, Outcome::Refused(Refusal::NotFree));
    assert_eq!(clerk.store.quarantined(9).await.unwrap(), [key.clone()]);
    assert_eq!(clerk.store.quarantined(0).await.unwrap(), []);
    let stats = clerk.store.stats().await.unwrap();
    assert_eq!((stats.registered, stats.assigned, stats.pending, stats.quarantined), (2, 1, 0, 1));
    assert_eq!(clerk.one(retry).await, Outcome::Done);
    assert_eq!(clerk.store.quarantined(9).await.unwrap(), []);
    assert_eq!(clerk.state(&key).await, Some(State::Pending));
    // A quarantined key can also be removed.
    assert_eq!(clerk.one(quarantine(&key)).await, Outcome::Done);
    assert_eq!(clerk.one(Op::Remove { key }).await, Outcome::Done);
    assert_eq!(clerk.store.quarantined(9).await.unwrap(), []);
    assert_eq!(clerk.state(&other).await, Some(State::Assigned { session: clerk.session, token }));
}
