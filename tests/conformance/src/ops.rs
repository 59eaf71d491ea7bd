//! Single ops at the store: what each does, and when each is refused.

use divider_core::{
    Aside, Blob, Declaration, Key, Op, Outcome, Refusal, SessionId, State, StopReason, Store, Text, Token, Work,
};

use super::{Backend, Clerk, Trial};

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
    work.not_before_ms = divider_core::limits::MAX_NOT_BEFORE_MS;
    assert_eq!(clerk.one(Op::Add(work.clone())).await, Outcome::Done);
    let view = clerk.record(&work.key).await.unwrap().view;
    assert_eq!((view.weight, view.priority, view.not_before_ms), (1_000_000, i32::MIN, 1 << 52));
}

pub async fn a_batch_is_applied_in_order<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let key = Key::new("a").unwrap();
    let assign = Op::assign(clerk.term, key.clone(), clerk.session);
    let remove = Op::Remove { key: key.clone() };
    let ops = [assign.clone(), Op::Add(key.clone().into()), assign.clone(), assign, remove.clone(), remove];
    let outcomes = clerk.apply(&ops).await.outcomes;
    assert_eq!((outcomes[0], outcomes[1]), (UNKNOWN, Outcome::Done));
    assert!(matches!(outcomes[2], Outcome::Granted(_)), "{outcomes:?}");
    assert_eq!(outcomes[3..], [Outcome::Refused(Refusal::NotFree), Outcome::Done, Outcome::Unchanged]);
}

pub async fn a_late_copy_of_a_batch_changes_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let session = clerk.session;
    let sender = |serial| Op::Sender { session, serial };
    let add = |payload: &[u8]| Op::Add(Work::new("a").unwrap().payload(Blob::from(payload.to_vec())));
    let (old, new) = ([sender(1), add(b"old")], [sender(3), add(b"new")]);
    assert_eq!(clerk.apply(&old).await.outcomes, [Outcome::Unchanged, Outcome::Done]);
    assert_eq!(clerk.apply(&new).await.outcomes, [Outcome::Unchanged, Outcome::Done]);
    assert_eq!(clerk.one(add(b"newest")).await, Outcome::Done);
    let before = clerk.poll(divider_core::Claim::Follow).await.revision;
    let superseded = Outcome::Refused(Refusal::Superseded);
    let late = [add(b"as ever"), sender(2), add(b"old"), Op::Rebalance, sender(4), Op::Remove { key: "a".parse().unwrap() }];
    // Of the newest batch as well: the network may double a request that was answered.
    for copy in [&old[..], &new, &late[1..]] {
        let applied = clerk.apply(copy).await;
        assert_eq!((applied.outcomes, applied.revision), (vec![superseded; copy.len()], before), "{copy:?}");
    }
    // What stands before the sender is none of its business.
    let outcomes = clerk.apply(&late).await.outcomes;
    assert_eq!((outcomes[0], &outcomes[1..]), (Outcome::Done, &[superseded; 5][..]));
    assert_eq!(&clerk.record(&"a".parse().unwrap()).await.unwrap().payload[..], b"as ever");

    let other = Clerk::join(&trial).await;
    let sender = Op::Sender { session: other.session, serial: 1 };
    other.one(Op::End { session: other.session }).await;
    let ended = Outcome::Refused(Refusal::SessionEnded);
    assert_eq!(clerk.apply(&[sender, add(b"of an ended session")]).await.outcomes, [ended; 2]);
    assert_eq!(&clerk.record(&"a".parse().unwrap()).await.unwrap().payload[..], b"as ever");
}

pub async fn an_empty_batch_changes_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let before = clerk.poll(divider_core::Claim::Follow).await;
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
    let declare = Op::Add(Work::from(key.clone()).how(Declaration::Declare));
    assert_eq!(clerk.apply(&[declare.clone(), declare]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
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
        .one(Op::assign(clerk.term, key.clone(), session))
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
    let early = Op::assign(divider_core::Term(clerk.term.0 - 1), b.clone(), clerk.session);
    assert_eq!(clerk.one(early).await, Outcome::Refused(Refusal::OldTerm));
    let late = Op::assign(divider_core::Term(clerk.term.0 + 1), b.clone(), clerk.session);
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
        assert!(clerk.poll(divider_core::Claim::Follow).await.token >= token);
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
            Op::confirm(session, of(&key), token),
            Op::decline(session, of(&key), token),
            Op::give_up(session, of(&key), token),
            Op::complete(session, of(&key), token),
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
        Op::give_up(clerk.session, z.clone(), token),
        Op::complete(clerk.session, z.clone(), token),
        Op::Checkpoint { session: clerk.session, key: z.clone(), token, bytes: Blob::default() },
        Op::Revoke { term: clerk.term, key: z.clone(), token },
        Op::Force { term: clerk.term, key: z.clone(), token },
        Op::Retry { key: z.clone() },
        Op::Quarantine { term: clerk.term, key: z },
    ];
    assert_eq!(clerk.apply(&ops).await.outcomes, [UNKNOWN; 8]);
}

/// Gives up work of a generation.
fn failed<S>(clerk: &Clerk<S>, key: &Key, token: Token, generation: u32, pause_ms: u64, failures: u32) -> Op {
    let (session, key, why) = (clerk.session, key.clone(), Text::new("no route"));
    Op::GiveUp { session, key, token, generation, pause_ms, failures, why }
}

pub async fn giving_up_asks_for_a_stop_and_keeps_the_pause_in_ledger_time<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let term = clerk.term;
    let mut work = Work::new("a").unwrap();
    work.not_before_ms = 500;
    let key = work.key.clone();
    clerk.one(Op::Add(work.clone())).await;
    let token = clerk.assign(&key, clerk.session).await;
    assert_eq!(clerk.one(Op::Advance { term, elapsed_ms: 70 }).await, Outcome::Done);
    assert_eq!(clerk.one(Op::Advance { term, elapsed_ms: 0 }).await, Outcome::Unchanged);
    let old = Op::Advance { term: divider_core::Term(term.0 - 1), elapsed_ms: 5 };
    assert_eq!(clerk.one(old).await, Outcome::Refused(Refusal::OldTerm));
    assert_eq!(clerk.scan().await.0.group.time_ms, 70);
    let ops = [failed(&clerk, &key, token, 1, 400, 3), failed(&clerk, &key, token, 1, 900, 4)];
    assert_eq!(clerk.apply(&ops).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    let record = clerk.record(&key).await.unwrap();
    let view = record.view;
    let reason = StopReason::Rebalanced;
    assert_eq!(view.state, State::Stopping { session: clerk.session, token, reason });
    assert_eq!((view.not_before_ms, view.retry_at_ms, view.avoid), (500, 470, Some(clerk.session)));
    assert_eq!((view.failures, record.why.as_str()), (3, "no route"));
    assert_eq!(clerk.one(clerk.confirm(&key, token)).await, Outcome::Done);
    // The same work, declared again, ends no pause; other work does.
    assert_eq!(clerk.one(Op::Add(work.clone())).await, Outcome::Unchanged);
    assert_eq!(clerk.record(&key).await.unwrap().view.retry_at_ms, 470);
    assert_eq!(clerk.one(Op::Add(work.payload(*b"other"))).await, Outcome::Done);
    let record = clerk.record(&key).await.unwrap();
    assert_eq!((record.view.retry_at_ms, record.view.failures, record.why.as_str()), (0, 0, ""));
}

pub async fn what_is_declared_while_its_owner_is_at_work_runs_after_it<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let (session, key) = (clerk.session, clerk.add("a").await);
    let add = |how| Op::Add(Work::from(key.clone()).payload(*b"2").how(how));
    // Each way in which an owner may end the work of before.
    for way in 0..3 {
        let token = clerk.assign(&key, session).await;
        let generation = clerk.record(&key).await.unwrap().view.generation;
        assert_eq!(clerk.one(add(Declaration::Once)).await, Outcome::Unchanged);
        let (same, again) = (clerk.one(add(Declaration::Declare)).await, clerk.one(add(Declaration::Again)).await);
        assert_eq!((same == Outcome::Done, again), (way == 0, Outcome::Done), "only a change is news from a source");
        let (key, why) = (key.clone(), Text::new("no"));
        let op = match way {
            0 => Op::Complete { session, key: key.clone(), token, generation },
            1 => Op::SetAside { session, key: key.clone(), token, generation, why },
            _ => failed(&clerk, &key, token, generation, 5000, 7),
        };
        assert_eq!(clerk.one(op).await, Outcome::Done);
        if way == 2 {
            clerk.one(clerk.confirm(&key, token)).await;
        }
        let record = clerk.record(&key).await.expect("it runs again");
        assert_eq!((record.view.state, record.view.failures, record.view.retry_at_ms), (State::Pending, 0, 0));
        assert!(record.view.generation > generation && &record.payload[..] == b"2");
    }
    // Nobody is at work: there is nothing that this could come after.
    assert_eq!(clerk.one(add(Declaration::Again)).await, Outcome::Unchanged);
    let token = clerk.assign(&key, session).await;
    let generation = clerk.record(&key).await.unwrap().view.generation;
    assert_eq!(clerk.one(Op::Complete { session, key: key.clone(), token, generation }).await, Outcome::Done);
    assert_eq!(clerk.record(&key).await, None);
    assert_eq!(clerk.one(add(Declaration::Refresh)).await, Outcome::Unchanged, "there is nothing to refresh");
    assert_eq!(clerk.record(&key).await, None);
    assert_eq!(clerk.one(add(Declaration::Once)).await, Outcome::Done);
}

pub async fn an_owner_sets_its_key_aside_until_it_is_retried_or_declared_again<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let (session, key) = (clerk.session, clerk.add("a").await);
    for again in [Op::Retry { key: key.clone() }, Op::Add(key.clone().into())] {
        let token = clerk.assign(&key, session).await;
        let generation = clerk.record(&key).await.unwrap().view.generation;
        let why = Text::new("bad address");
        let aside = Op::SetAside { session, key: key.clone(), token, generation, why };
        assert_eq!(clerk.apply(&[aside.clone(), aside]).await.outcomes, [Outcome::Done, STALE]);
        let record = clerk.record(&key).await.unwrap();
        assert_eq!((record.view.state, record.why.as_str()), (State::Quarantined(Aside::Failed), "bad address"));
        assert_eq!(clerk.store.quarantined(9).await.unwrap(), std::slice::from_ref(&key));
        // A source that says the same again does not free it.
        let same = Op::Add(Work::from(key.clone()).how(Declaration::Declare));
        assert_eq!(clerk.one(same).await, Outcome::Unchanged);
        assert_eq!(clerk.one(again).await, Outcome::Done);
        let record = clerk.record(&key).await.unwrap();
        assert_eq!((record.view.state, record.why.as_str(), record.view.failures), (State::Pending, "", 0));
    }
    // What is being removed ends, whatever its owner says.
    let token = clerk.assign(&key, session).await;
    clerk.one(Op::Remove { key: key.clone() }).await;
    let aside = Op::SetAside { session, key: key.clone(), token, generation: 0, why: Text::default() };
    assert_eq!(clerk.one(aside).await, Outcome::Done);
    assert_eq!(clerk.record(&key).await, None);
}

pub async fn keys_are_numbered_in_the_order_in_which_they_were_declared<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let ops = ["b", "a", "c", "a"].map(|key| Op::Add(Work::new(key).unwrap()));
    clerk.apply(&ops).await;
    let since = async |key: &str| clerk.record(&Key::new(key).unwrap()).await.unwrap().view.since;
    let first = since("b").await;
    assert_eq!((since("a").await, since("c").await), (first + 1, first + 2));
}

pub async fn a_group_is_written_in_a_format_that_all_its_sessions_read<B: Backend>(trial: Trial<B>) {
    use divider_core::format::{NEWEST, OLDEST};
    let mut old = Clerk::reading(&trial, OLDEST).await;
    old.lead().await;
    let (key, new) = (old.add("a").await, Clerk::join(&trial).await);
    assert_eq!(old.scan().await.0.group.format, OLDEST);
    let step = Op::Step { term: old.term, format: NEWEST };
    assert_eq!(old.one(step.clone()).await, Outcome::Refused(Refusal::TooOld { needs: NEWEST }));
    // What the old format has no room for is left out.
    let token = old.assign(&key, old.session).await;
    assert_eq!(old.one(failed(&old, &key, token, 1, 1, 2)).await, Outcome::Done);
    let record = old.record(&key).await.unwrap();
    assert_eq!((record.view.failures, record.why.as_str()), (2, ""));
    let Op::Join { node, affinity, capacity, lease_ms, .. } = old.joining(1, None).await else { panic!("a join") };
    old.one(Op::End { session: old.session }).await;
    let mut new = new;
    new.lead().await;
    let step = Op::Step { term: new.term, format: NEWEST };
    assert_eq!(new.apply(&[step.clone(), step]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    assert_eq!(new.scan().await.0.group.format, NEWEST);
    let seen = new.apply(&[]).await.revision;
    let join = Op::join(SessionId::fresh(), node).affinity(affinity).capacity(capacity).lease_ms(lease_ms).seen(seen).reads(OLDEST).build();
    assert_eq!(new.one(join).await, Outcome::Refused(Refusal::TooOld { needs: NEWEST }));
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
    let complete = Op::complete(session, key.clone(), token);
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

pub async fn a_key_that_was_being_removed_when_its_owner_ended_ends_unless_it_is_wanted_again<B: Backend>(
    trial: Trial<B>,
) {
    let clerk = Clerk::leading(&trial).await;
    let term = clerk.term;
    let other = Clerk::join(&trial).await;
    let (gone, wanted) = (clerk.add("gone").await, clerk.add("wanted").await);
    let mut forces = Vec::new();
    for key in [&gone, &wanted] {
        let token = clerk.assign(key, other.session).await;
        clerk.one(Op::Remove { key: key.clone() }).await;
        forces.push(Op::Force { term, key: key.clone(), token });
    }
    other.one(Op::End { session: other.session }).await;
    // The leader decides before it hears that the work is wanted again.
    clerk.add("wanted").await;
    assert_eq!(clerk.apply(&forces).await.outcomes, [Outcome::Done, STALE]);
    assert_eq!((clerk.record(&gone).await, clerk.record(&wanted).await.is_some()), (None, true));
    clerk.assign(&wanted, clerk.session).await;
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
    let assign = Op::assign(term, key.clone(), clerk.session);
    assert_eq!(clerk.one(assign).await, Outcome::Refused(Refusal::NotFree));
    assert_eq!(clerk.store.quarantined(9).await.unwrap(), std::slice::from_ref(&key));
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
