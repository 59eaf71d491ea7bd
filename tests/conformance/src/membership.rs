//! Sessions and affinity at the store: joining, ending, expiring, late copies of changes, and leadership.

use divider_core::{
    Applied, Aside, Beat, Blame, Claim, Key, Op, Outcome, Refusal, Revision, SessionId, State, Store, StoreError, Term,
    Token, Verdict, limits,
};

use super::{Backend, Clerk, Trial};

const ENDED: Outcome = Outcome::Refused(Refusal::SessionEnded);

pub async fn joining_again_changes_nothing_and_an_ended_session_stays_ended<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join_as(&trial, 5, Some(3)).await;
    assert_eq!(other.one(other.joining(9, None).await).await, Outcome::Unchanged);
    let (_, sessions, _) = clerk.scan().await;
    let view = sessions.iter().find(|view| view.session == other.session).unwrap();
    assert_eq!((view.affinity, view.capacity, view.lease_ms), (5, Some(3), 10_000));
    assert_eq!((view.draining, view.settled, view.ended), (false, false, None));
    // With a key in its name it is remembered, and cannot come back.
    let key = clerk.add("a").await;
    let token = clerk.assign(&key, other.session).await;
    assert_eq!(other.one(Op::End { session: other.session }).await, Outcome::Done);
    assert_eq!(other.one(other.joining(9, None).await).await, ENDED);
    assert_eq!(clerk.one(Op::confirm(other.session, key.clone(), token)).await, ENDED);
    assert_eq!(clerk.one(Op::End { session: other.session }).await, ENDED);
    // Its key is as good as pending, and the next grant lets it be forgotten.
    let stats = clerk.store.stats().await.unwrap();
    assert_eq!((stats.sessions, stats.registered, stats.assigned, stats.pending), (1, 1, 0, 1));
    assert!(clerk.assign(&key, clerk.session).await > token);
    let (_, sessions, _) = clerk.scan().await;
    assert_eq!(sessions.iter().map(|view| view.session).collect::<Vec<_>>(), [clerk.session]);
}

pub async fn a_late_copy_of_a_join_does_not_bring_a_forgotten_session_back<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let copy = clerk.joining(9, None).await;
    assert_eq!(clerk.one(Op::End { session: clerk.session }).await, Outcome::Done);
    let late = Outcome::Refused(Refusal::Late);
    let Applied { outcomes, revision } = clerk.apply(std::slice::from_ref(&copy)).await;
    assert_eq!(outcomes, [late]);
    assert!(clerk.scan().await.1.is_empty());
    // Whoever it is: all who have not seen the end are refused, and told what they have not seen; and nobody can have
    // seen what has not been yet.
    let Op::Join { node, affinity, capacity, lease_ms, .. } = copy else { panic!("a join") };
    let session = SessionId::fresh();
    for (seen, outcome) in [(revision.0 - 1, late), (revision.0 + 1, late), (revision.0, Outcome::Done)] {
        let (node, seen) = (node.clone(), Revision(seen));
        let join = Op::join(session, node).affinity(affinity).capacity(capacity).lease_ms(lease_ms).seen(seen).build();
        assert_eq!(clerk.one(join).await, outcome, "{seen:?} of {revision:?}");
    }
}

pub async fn an_unknown_or_ended_session_can_do_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let gone = Clerk::join(&trial).await;
    let key = clerk.add("a").await;
    let token = clerk.assign(&key, gone.session).await;
    gone.one(Op::End { session: gone.session }).await;
    let before = clerk.record(&key).await;
    for session in [gone.session, SessionId::fresh()] {
        let key = || key.clone();
        let ops = [
            Op::SetAffinity { session, number: 1, affinity: 1 },
            Op::AlterAffinity { session, number: 1, delta: 1 },
            Op::Drain { session },
            Op::End { session },
            Op::confirm(session, key(), token),
            Op::give_up(session, key(), token),
            Op::complete(session, key(), token),
            Op::Checkpoint { session, key: key(), token, bytes: divider_core::Blob::default() },
            Op::assign(clerk.term, key(), session),
            Op::Settle { term: clerk.term, session },
        ];
        assert_eq!(clerk.apply(&ops).await.outcomes, [ENDED; 10]);
        let ended = |error: StoreError| assert!(matches!(error, StoreError::SessionEnded), "{error}");
        ended(gone.store.renew(session).await.unwrap_err());
        ended(gone.store.poll(session, Claim::Take { stale: None }).await.unwrap_err());
        ended(gone.store.holdings(session).await.unwrap_err());
    }
    assert_eq!(clerk.record(&key).await, before);
    let leader = clerk.poll(Claim::Follow).await.leader.unwrap();
    assert_eq!((leader.session, leader.term), (clerk.session, clerk.term));
}

pub async fn a_session_is_expired_only_while_its_beat_stands_still<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let first = other.beat().await;
    assert!(other.store.renew(other.session).await.unwrap() > first);
    let now = other.beat().await;
    assert!(now > first, "a renewal shows in the beats");
    let expire = |term, beat| Op::Expire { term, session: other.session, beat, verdict: divider_core::Verdict::young(Token(0)) };
    assert_eq!(clerk.one(expire(clerk.term, first)).await, Outcome::Refused(Refusal::StillBeating));
    assert_eq!(clerk.one(expire(Term(clerk.term.0 + 1), now)).await, Outcome::Refused(Refusal::OldTerm));
    assert!(other.store.renew(other.session).await.is_ok());
    let now = other.beat().await;
    assert_eq!(clerk.one(expire(clerk.term, now)).await, Outcome::Done);
    assert!(matches!(other.store.renew(other.session).await, Err(StoreError::SessionEnded)));
    assert!(matches!(clerk.one(expire(clerk.term, now)).await, Outcome::Refused(_)));
    assert_eq!(clerk.store.beats().await.unwrap().iter().filter(|(of, _)| *of == other.session).count(), 0);
}

pub async fn renewals_wake_nobody_and_raise_no_revision<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let before = clerk.poll(Claim::Follow).await;
    let mut last = Beat(0);
    for _ in 0..5 {
        let beat = clerk.store.renew(clerk.session).await.unwrap();
        assert!(beat > last);
        last = beat;
    }
    let after = clerk.poll(Claim::Follow).await;
    assert_eq!((after.revision, after.seq), (before.revision, before.seq));
}

pub async fn a_death_is_blamed_on_young_grants_alone<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let (old, young) = (clerk.add("old").await, clerk.add("young").await);
    let dies = async |blame: fn(Token) -> Verdict| {
        let other = Clerk::join(&trial).await;
        clerk.assign(&old, other.session).await;
        let token = clerk.assign(&young, other.session).await;
        let beat = other.beat().await;
        let expire = Op::Expire { term: clerk.term, session: other.session, beat, verdict: blame(token) };
        assert_eq!(clerk.one(expire).await, Outcome::Done);
        for key in [&old, &young] {
            let token = clerk.assign(key, clerk.session).await;
            let confirm = Op::decline(clerk.session, key.clone(), token);
            assert_eq!(clerk.one(confirm).await, Outcome::Done);
        }
        token
    };
    let deaths = async |key: &Key| {
        let deaths = clerk.record(key).await.unwrap().view.deaths;
        (deaths.count, deaths.alone)
    };
    let all = async || (deaths(&old).await, deaths(&young).await);
    dies(Verdict::young).await;
    assert_eq!(all().await, ((0, 0), (1, 0)));
    dies(|_| Verdict::young(Token(0))).await;
    assert_eq!(all().await, ((1, 0), (2, 0)));
    dies(|_| Verdict::NONE).await;
    assert_eq!(all().await, ((1, 0), (2, 0)), "nobody is blamed, and nobody has proved anything");
    let token = dies(|token| Verdict { healthy_below: Token(0), blame: Blame::Only(token) }).await;
    assert_eq!(all().await, ((1, 0), (3, 1)));
    // The node comes back: it had not died. Once, and only for the ownership that was counted last.
    let absolve = |token| Op::Absolve { key: young.clone(), token };
    let ops = [absolve(Token(token.0 - 1)), absolve(token), absolve(token)];
    assert_eq!(clerk.apply(&ops).await.outcomes, [Outcome::Unchanged, Outcome::Done, Outcome::Unchanged]);
    assert_eq!(deaths(&young).await, (2, 0));
    let clear = |blames_only| Op::Clear { term: clerk.term, key: young.clone(), blames_only };
    dies(|token| Verdict { healthy_below: Token(0), blame: Blame::Only(token) }).await;
    assert_eq!(clerk.apply(&[clear(true), clear(true)]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    assert_eq!(deaths(&young).await, (3, 0));
    assert_eq!(clerk.apply(&[clear(false), clear(false)]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    assert_eq!(deaths(&young).await, (0, 0));
    // How long a run lasted that ended with a confirmation is not known here.
    dies(|_| Verdict::young(Token(0))).await;
    let token = clerk.assign(&young, clerk.session).await;
    clerk.one(clerk.confirm(&young, token)).await;
    assert_eq!(deaths(&young).await, (1, 0));
}

pub async fn a_node_that_comes_back_frees_what_was_set_aside_for_its_death<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let (owed, aside) = (clerk.add("owed").await, clerk.add("aside").await);
    let (owed_token, token) =
        (clerk.assign(&owed, other.session).await, clerk.assign(&aside, other.session).await);
    let beat = other.beat().await;
    let verdict = Verdict::young(Token(0));
    let expire = Op::Expire { term: clerk.term, session: other.session, beat, verdict };
    let quarantine = Op::Quarantine { term: clerk.term, key: aside.clone() };
    assert_eq!(clerk.apply(&[expire, quarantine]).await.outcomes, [Outcome::Done, Outcome::Done]);
    assert_eq!(clerk.state(&aside).await, Some(State::Quarantined(Aside::Deaths)));
    let ops = [Op::Absolve { key: aside.clone(), token }, Op::Absolve { key: owed.clone(), token: owed_token }];
    assert_eq!(clerk.apply(&ops).await.outcomes, [Outcome::Done, Outcome::Done]);
    for key in [&aside, &owed] {
        let view = clerk.record(key).await.unwrap().view;
        assert_eq!((view.state, view.deaths.count), (State::Pending, 0));
    }
    assert_eq!(clerk.store.quarantined(9).await.unwrap(), []);
    let (_, sessions, _) = clerk.scan().await;
    assert_eq!(sessions.len(), 1, "no key is in the ended session's name any more");
}

pub async fn late_copies_of_affinity_changes_change_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let session = clerk.session;
    let set = |number, affinity| Op::SetAffinity { session, number, affinity };
    let alter = |number, delta| Op::AlterAffinity { session, number, delta };
    let is = Outcome::Affinity;
    assert_eq!(clerk.apply(&[alter(1, 5), alter(1, 5)]).await.outcomes, [is(1005), is(1005)]);
    assert_eq!(clerk.apply(&[set(2, 7), alter(1, 5), set(2, 9)]).await.outcomes, [is(7), is(7), is(7)]);
    assert_eq!(clerk.apply(&[alter(3, 1), set(2, 7)]).await.outcomes, [is(8), is(8)]);
    let (_, sessions, _) = clerk.scan().await;
    assert_eq!(sessions[0].affinity, 8);
}

pub async fn affinity_stays_in_its_range_and_a_refusal_changes_nothing<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let session = clerk.session;
    let max = i64::from(limits::MAX_AFFINITY);
    let alter = |number, delta| Op::AlterAffinity { session, number, delta };
    let out = |value| Outcome::Refused(Refusal::AffinityOutOfRange(value));
    for delta in [-1001, max - 999, max, -max, 1 << 40, -(1 << 40)] {
        assert_eq!(clerk.one(alter(1, delta)).await, out(1000 + delta));
    }
    for delta in [i64::MAX, i64::MIN] {
        let outcome = clerk.one(alter(1, delta)).await;
        assert!(matches!(outcome, Outcome::Refused(Refusal::AffinityOutOfRange(_))), "{outcome:?}");
    }
    let (_, sessions, _) = clerk.scan().await;
    assert_eq!(sessions[0].affinity, 1000);
    // A refused change has not used up its number.
    assert_eq!(clerk.one(alter(1, max - 1000)).await, Outcome::Affinity(limits::MAX_AFFINITY));
    assert_eq!(clerk.one(alter(2, -max)).await, Outcome::Affinity(0));
    assert_eq!(
        clerk.one(Op::SetAffinity { session, number: 3, affinity: limits::MAX_AFFINITY }).await,
        Outcome::Affinity(limits::MAX_AFFINITY)
    );
}

pub async fn a_settled_session_is_unsettled_by_a_call_for_balance<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let settle = Op::Settle { term: clerk.term, session: clerk.session };
    let settled = async || clerk.scan().await.1[0].settled;
    assert_eq!(clerk.one(Op::Rebalance).await, Outcome::Unchanged);
    assert_eq!(clerk.apply(&[settle.clone(), settle]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    assert!(settled().await);
    assert_eq!(clerk.apply(&[Op::Rebalance, Op::Rebalance]).await.outcomes, [Outcome::Done, Outcome::Unchanged]);
    assert!(!settled().await);
}

pub async fn one_session_leads_and_terms_rise<B: Backend>(trial: Trial<B>) {
    let mut first = Clerk::leading(&trial).await;
    let mut second = Clerk::join(&trial).await;
    let standing = second.poll(Claim::Take { stale: None }).await;
    let leader = standing.leader.expect("somebody leads");
    assert_eq!((leader.session, leader.term), (first.session, first.term));
    let standing = first.poll(Claim::Lead { term: first.term }).await;
    assert_eq!(standing.leader.map(|leader| leader.session), Some(first.session));
    // To resign a term that is over, or of somebody else, does nothing.
    second.store.resign(second.session, first.term).await.unwrap();
    first.store.resign(first.session, Term(first.term.0 + 1)).await.unwrap();
    assert_eq!(first.poll(Claim::Follow).await.leader.map(|leader| leader.session), Some(first.session));
    first.store.resign(first.session, first.term).await.unwrap();
    let old = first.term;
    second.lead().await;
    assert!(second.term > old);
    let key = second.add("a").await;
    let late = Op::assign(old, key.clone(), first.session);
    assert_eq!(first.one(late).await, Outcome::Refused(Refusal::OldTerm));
    // A leader that ends its session leads no more.
    assert_eq!(second.one(Op::End { session: second.session }).await, Outcome::Done);
    first.lead().await;
    assert!(first.term > second.term);
}
