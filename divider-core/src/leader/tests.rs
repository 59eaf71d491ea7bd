mod evidence;

use std::collections::HashMap;

use super::*;
use crate::{
    config::Quarantine,
    ids::NodeId,
    ledger::{Effects, Ledger},
    memory::SessionBeats,
    planner::MaxInFlight,
    record::{State, Work},
};

const LEASE_MS: u32 = 1000;

/// A ledger, a leader, and a clock that is moved by hand.
struct Group {
    ledger: Ledger,
    /// Leads at first, and renews at every turn.
    boss: SessionId,
    beats: SessionBeats,
    leader: Leader,
    token_ages: TokenAges,
    /// How many have joined, the boss not counted.
    sessions: u128,
    now: Now,
    /// What each key was granted, in order.
    grants: HashMap<Key, Vec<(SessionId, Token)>>,
    proposed: Vec<Op>,
}

fn config() -> NodeConfig {
    NodeConfig {
        lease: Duration::from_millis(LEASE_MS.into()),
        max_in_flight: MaxInFlight::Percent(100),
        ..NodeConfig::default()
    }
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

impl Group {
    fn new(config: NodeConfig) -> Self {
        let mut ledger = Ledger::new();
        let boss = SessionId(uuid::Uuid::from_u128(u128::MAX));
        ledger.apply(&[join(boss, "boss", 0, None, Revision(0))], Token(0));
        let (term, _) = ledger.lead(boss, Term(0));
        let mut group = Self {
            leader: Leader::new(config, term.unwrap(), None),
            ledger,
            boss,
            beats: SessionBeats::default(),
            token_ages: TokenAges::new(Duration::from_secs(10)),
            sessions: 0,
            now: Now { mono: Instant(1 << 40), unix_ms: 1_000_000 },
            grants: HashMap::new(),
            proposed: Vec::new(),
        };
        group.load();
        group.pass(1, &[boss]);
        group
    }

    /// Reads the ledger as a new leader does.
    fn load(&mut self) {
        let (mut cursor, mut first) = (None, true);
        loop {
            let page = self.ledger.scan(cursor.as_ref()).unwrap();
            cursor = page.next.clone();
            self.leader.page(page, self.now, first);
            first = false;
            if cursor.is_none() {
                break;
            }
        }
        self.leader.loaded(self.now);
    }

    /// Another leader takes over, which knows only what the ledger and the beats tell.
    fn depose(&mut self, config: NodeConfig, deposed: Option<Deposed>) {
        let boss = SessionId::fresh();
        let seen = self.ledger.revision();
        self.ledger.apply(&[join(boss, "boss", 0, None, seen)], Token(0));
        self.hand_over(boss, config, deposed);
    }

    /// A session takes over that is there already.
    fn hand_over(&mut self, session: SessionId, config: NodeConfig, deposed: Option<Deposed>) {
        let (term, _) = self.ledger.lead(session, Term(0));
        self.leader = Leader::new(config, term.unwrap(), deposed);
        self.load();
    }

    fn session(&mut self, name: &str, affinity: u32, capacity: Option<u32>) -> SessionId {
        // Numbered, so that a run can be repeated.
        self.sessions += 1;
        let session = SessionId(uuid::Uuid::from_u128(self.sessions));
        self.apply(&[join(session, name, affinity, capacity, self.ledger.revision())]);
        session
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let effects = self.ledger.apply(ops, Token(0));
        let outcomes = effects.outcomes.clone();
        self.feed(effects);
        self.decide();
        outcomes
    }

    fn add(&mut self, names: &[&str]) {
        let work = names.iter().map(|name| Op::Add(Work::new(name).unwrap())).collect::<Vec<_>>();
        self.apply(&work);
    }

    fn feed(&mut self, effects: Effects) {
        if let Some(batch) = effects.batch {
            for change in &batch.changes {
                if let Change::Key(view) = change
                    && let State::Assigned { session, token } = view.state
                {
                    let grants = self.grants.entry(view.key.clone()).or_default();
                    if grants.last() != Some(&(session, token)) {
                        grants.push((session, token));
                    }
                }
            }
            assert_eq!(self.leader.feed(batch, self.now), FeedOutcome::Applied);
        }
    }

    fn decide(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "the leader never comes to rest: {:?}", self.proposed.last());
            let proposal = self.leader.propose(self.now, 7, &self.token_ages);
            if proposal.is_empty() {
                return;
            }
            assert!(proposal.ops.len() <= 7);
            let (refused, allowed): (Vec<_>, Vec<_>) =
                proposal.ops.iter().cloned().partition(|op| self.beats.check(op).is_err());
            let effects = self.ledger.apply(&allowed, Token(0));
            let mut applied = effects.outcomes.clone().into_iter();
            let outcomes: Vec<Outcome> = proposal
                .ops
                .iter()
                .map(|op| match refused.contains(op) {
                    true => Outcome::Refused(Refusal::StillBeating),
                    false => applied.next().unwrap(),
                })
                .collect();
            self.proposed.extend(proposal.ops.iter().cloned());
            self.feed(effects);
            assert!(self.leader.answered(&proposal, &outcomes, self.ledger.revision(), self.now));
        }
    }

    /// Time passes, in which some sessions renew.
    fn pass(&mut self, ms: u64, renewing: &[SessionId]) {
        self.now.mono = self.now.mono + Duration::from_millis(ms);
        self.now.unix_ms += ms;
        self.token_ages.note(self.now.mono, self.ledger.token());
        for session in renewing.iter().chain([&self.boss]) {
            self.beats.renew(*session);
        }
        let beats: Vec<_> = self.ledger.sessions().map(|view| (view.session, self.beats.get(view.session))).collect();
        self.leader.beats(&beats, self.now);
        self.leader.tick(self.now);
        self.decide();
    }

    fn owner(&self, name: &str) -> Option<(SessionId, Token)> {
        let (session, token) = self.ledger.record(&key(name))?.view.state.owner()?;
        self.ledger.is_alive(session).then_some((session, token))
    }

    fn held(&self, session: SessionId) -> usize {
        self.ledger.holdings(session).unwrap().holdings.len()
    }

    /// The owner confirms all that it has been asked to stop, until nothing more moves.
    fn confirm_all(&mut self, sessions: &[SessionId]) {
        loop {
            let mut confirms = Vec::new();
            for session in sessions {
                for holding in self.ledger.holdings(*session).unwrap().holdings {
                    if holding.stopping.is_some() {
                        let (session, key, token) = (*session, holding.key, holding.token);
                        confirms.push(Op::confirm(session, key, token));
                    }
                }
            }
            if confirms.is_empty() {
                return;
            }
            self.apply(&confirms);
        }
    }
}

fn join(session: SessionId, name: &str, affinity: u32, capacity: Option<u32>, seen: Revision) -> Op {
    Op::join(session, NodeId::new(name).unwrap())
        .affinity(affinity)
        .capacity(capacity)
        .lease_ms(LEASE_MS)
        .seen(seen)
        .build()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("k{i}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

#[test]
fn a_joining_node_gets_its_share_and_is_then_left_alone() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&refs(&names(30)));
    let b = group.session("b", 500, None);
    group.confirm_all(&[a, b]);
    assert_eq!((group.held(a), group.held(b)), (20, 10));
    assert!(group.ledger.sessions().filter(|s| s.affinity > 0).all(|s| s.settled));
    let before = group.proposed.len();
    group.apply(&[Op::SetAffinity { session: b, number: 1, affinity: 100_000 }]);
    assert_eq!(group.proposed.len(), before, "a changed affinity alone moves nothing");
    group.apply(&[Op::Rebalance]);
    group.confirm_all(&[a, b]);
    assert_eq!((group.held(a), group.held(b)), (0, 30));
}

#[test]
fn a_silent_session_is_expired_after_its_whole_lease_on_this_clock_and_its_keys_move() {
    let mut group = Group::new(config());
    let (a, b) = (group.session("a", 1000, None), group.session("b", 1000, None));
    group.add(&refs(&names(10)));
    group.pass(100, &[a, b]);
    for _ in 0..9 {
        group.pass(100, &[b]);
        assert!(group.ledger.is_alive(a));
    }
    group.pass(100, &[b]);
    assert!(!group.ledger.is_alive(a));
    assert_eq!(group.held(b), 10);
    assert!(group.grants.values().all(|grants| grants.windows(2).all(|pair| pair[0].1 < pair[1].1)));
}

#[test]
fn a_session_whose_connection_has_ended_is_expired_after_the_lock_delay_unless_it_comes_back() {
    let delay = Duration::from_millis(200);
    let mut group = Group::new(NodeConfig { lock_delay: Some(delay), ..config() });
    let (a, b) = (group.session("a", 1000, None), group.session("b", 1000, None));
    group.add(&refs(&names(10)));
    group.pass(100, &[a, b]);
    group.leader.gone(&[a], group.now);
    group.pass(100, &[b]);
    // It has a connection again, though no beat has been seen yet; and then loses that one, too.
    group.leader.gone(&[], group.now);
    group.pass(199, &[b]);
    group.leader.gone(&[a], group.now);
    assert!(group.leader.next_wake(group.now).unwrap() <= delay);
    group.pass(199, &[b]);
    assert!(group.ledger.is_alive(a));
    group.leader.gone(&[a], group.now);
    group.pass(1, &[b]);
    assert!(!group.ledger.is_alive(a), "neither a connection nor a beat came for the whole delay");
    assert_eq!(group.held(b), 10);
}

#[test]
fn without_a_lock_delay_the_end_of_a_connection_means_nothing() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.pass(100, &[a]);
    group.leader.gone(&[a], group.now);
    group.pass(999, &[]);
    assert!(group.ledger.is_alive(a));
}

#[test]
fn a_session_that_renews_between_the_reading_and_the_expiry_lives() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    group.pass(100, &[a]);
    // The beat moves, but the leader has not read it when the lease is over.
    group.beats.renew(a);
    group.now.mono = group.now.mono + Duration::from_millis(LEASE_MS.into());
    group.decide();
    assert!(group.ledger.is_alive(a), "the store compares the beat");
    group.now.mono = group.now.mono + Duration::from_millis(u64::from(LEASE_MS) - 1);
    group.decide();
    let expiries = group.proposed.iter().filter(|op| matches!(op, Op::Expire { session, .. } if *session == a));
    assert_eq!(expiries.count(), 1);
}

#[test]
fn a_new_leader_starts_every_watch_afresh_but_the_old_leaders_own() {
    let mut group = Group::new(config());
    let (a, old) = (group.session("a", 1000, None), group.session("old", 1000, None));
    group.add(&refs(&names(4)));
    let silent_since = group.now.mono;
    group.now.mono = group.now.mono + Duration::from_millis(LEASE_MS.into());
    let deposed = Deposed { session: old, beat: Beat(0), since: silent_since, unanswered: false };
    group.depose(config(), Some(deposed));
    group.decide();
    assert!(!group.ledger.is_alive(old), "it was watched beside the leadership");
    assert!(group.ledger.is_alive(a), "nobody who leads has watched it yet");
    assert_eq!(group.held(a), 4);
}

#[test]
fn a_silence_that_the_store_knows_of_counts_for_a_new_leader() {
    let mut group = Group::new(config());
    let [a, b, c] = ["a", "b", "c"].map(|name| group.session(name, 1000, None));
    group.depose(config(), None);
    let ms = |ms: u32| Duration::from_millis(ms.into());
    group.leader.silences(&[(a, Beat(0), ms(LEASE_MS - 100)), (b, Beat(0), ms(LEASE_MS - 100))], group.now);
    group.pass(99, &[]);
    assert!(group.ledger.is_alive(a), "its lease is not over yet");
    group.beats.renew(b);
    group.leader.beats(&[(a, Beat(0)), (b, Beat(1)), (c, Beat(0))], group.now);
    group.pass(1, &[]);
    assert!(!group.ledger.is_alive(a), "a lease after it was last heard of, whoever led then");
    assert!(group.ledger.is_alive(b), "it has been renewed since");
    assert!(group.ledger.is_alive(c), "the store knows nothing of it");
}

/// A member of the store that no longer leads, and does not know, tells silences that newer ones have broken.
#[test]
fn a_silence_before_another_beat_says_nothing_of_the_one_that_is_watched() {
    let mut group = Group::new(config());
    let [a] = ["a"].map(|name| group.session(name, 1000, None));
    group.beats.renew(a);
    group.depose(config(), None);
    group.leader.beats(&[(a, Beat(1))], group.now);
    group.leader.silences(&[(a, Beat(0), Duration::from_millis(LEASE_MS.into()))], group.now);
    group.pass(u64::from(LEASE_MS) - 1, &[]);
    assert!(group.ledger.is_alive(a), "its lease may not be over");
    group.pass(1, &[]);
    assert!(!group.ledger.is_alive(a));
}

#[test]
fn a_late_word_of_a_leader_does_not_end_the_hold_of_the_next_lineage() {
    let mut group = Group::new(config());
    let term = group.ledger.group().term;
    assert!(term > Term(0));
    group.ledger.new_lineage();
    let late = group.ledger.apply(&[Op::ResumeGrants { term }], Token(0));
    assert_eq!(late.outcomes, [Outcome::Refused(Refusal::OldTerm)]);
    assert!(group.ledger.group().grants_held);
}

#[test]
fn grants_are_held_back_for_a_lease_in_a_new_lineage() {
    let mut group = Group::new(config());
    let effects = group.ledger.new_lineage();
    group.feed(effects);
    group.depose(config(), None);
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    for _ in 0..9 {
        group.pass(100, &[a]);
        assert_eq!(group.held(a), 0);
    }
    group.pass(100, &[a]);
    assert_eq!(group.held(a), 1);
}

#[test]
fn a_key_whose_owners_keep_dying_is_set_aside_and_can_be_tried_again() {
    let mut group = Group::new(config());
    let boss = group.session("boss", 0, None);
    let mut living = vec![group.session("one", 1000, None), group.session("other", 1000, None)];
    group.add(&["poison"]);
    let mut deaths = 0;
    loop {
        let mut waited = 0;
        while group.owner("poison").is_none() && group.ledger.quarantined(10).is_empty() {
            group.pass(100, &[&living[..], &[boss]].concat());
            waited += 100;
        }
        let Some((victim, _)) = group.owner("poison") else { break };
        deaths += 1;
        // Who has just become suspect waits for nothing; after that, the group must have been quiet.
        assert_eq!((4900..=5100).contains(&waited), deaths > 3, "attempt {deaths} after {waited} ms");
        living.retain(|session| *session != victim);
        for _ in 0..11 {
            group.pass(100, &[&living[..], &[boss]].concat());
        }
        assert!(!group.ledger.is_alive(victim));
        living.push(group.session(&format!("after {deaths}"), 1000, None));
    }
    // One may not count: on a node that replaced another and has not shown that it can live.
    assert!((6..=7).contains(&deaths), "{deaths} deaths");
    assert_eq!(group.owner("poison"), None);
    assert_eq!(group.ledger.quarantined(10), [key("poison")]);
    group.apply(&[Op::Retry { key: key("poison") }]);
    assert!(group.owner("poison").is_some());
}

#[test]
fn owners_that_lived_long_enough_with_a_key_are_not_held_against_it() {
    let mut config = config();
    config.quarantine = Some(Quarantine { suspect: 1, deaths: 1, within: Duration::from_secs(5) });
    let mut group = Group::new(config);
    let boss = group.session("boss", 0, None);
    group.add(&["healthy"]);
    for _ in 0..5 {
        let victim = group.session("victim", 1000, None);
        for _ in 0..60 {
            group.pass(100, &[boss, victim]);
        }
        for _ in 0..11 {
            group.pass(100, &[boss]);
        }
        assert!(!group.ledger.is_alive(victim));
    }
    assert!(group.ledger.quarantined(10).is_empty());
}

#[test]
fn scheduled_work_waits_for_its_time_and_capacity_and_priority_are_kept() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, Some(2));
    let due = group.now.unix_ms + 500;
    let mut later = Work::new("later").unwrap().priority(9);
    later.not_before_ms = due;
    let low = Work::new("low").unwrap();
    let high = Work::new("high").unwrap().priority(5);
    let mid = Work::new("mid").unwrap().priority(3);
    group.apply(&[Op::Add(low), Op::Add(high), Op::Add(mid), Op::Add(later)]);
    assert!(group.owner("high").is_some() && group.owner("mid").is_some());
    assert!(group.owner("low").is_none() && group.owner("later").is_none());
    assert_eq!(group.leader.next_wake(group.now), Some(Duration::from_millis(500)));
    group.pass(500, &[a]);
    let (session, token) = group.owner("mid").unwrap();
    group.apply(&[Op::complete(session, key("mid"), token)]);
    assert!(group.owner("later").is_some() && group.owner("low").is_none());
}

#[test]
fn a_key_that_was_given_up_goes_elsewhere_if_anywhere_else_takes_it() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    let give_up = |group: &mut Group| {
        let (session, token) = group.owner("k").unwrap();
        group.apply(&[Op::give_up(session, key("k"), token)]);
        group.apply(&[Op::confirm(session, key("k"), token)]);
        (session, group.owner("k").unwrap().0)
    };
    assert_eq!(give_up(&mut group), (a, a), "nobody else is there");
    group.session("b", 1, None);
    group.add(&["x"]); // Lets the newcomer's share be decided before.
    group.confirm_all(&[a]);
    let (from, to) = give_up(&mut group);
    assert_ne!(from, to);
}

#[test]
fn a_removed_key_whose_owner_dies_is_removed_and_not_run_again() {
    let mut group = Group::new(config());
    let (boss, a) = (group.session("boss", 0, None), group.session("a", 1000, None));
    group.add(&["k"]);
    group.apply(&[Op::Remove { key: key("k") }]);
    assert_eq!(group.owner("k").map(|(session, _)| session), Some(a));
    group.session("b", 1000, None);
    for _ in 0..11 {
        group.pass(100, &[boss]);
    }
    assert!(group.ledger.record(&key("k")).is_none());
}

#[test]
fn a_stop_time_limit_frees_the_key_only_where_it_is_asked_for() {
    let mut with_limit = config();
    with_limit.stop_timeout = Some(Duration::from_secs(2));
    for (config, freed) in [(with_limit, true), (config(), false)] {
        let mut group = Group::new(config);
        let a = group.session("a", 1000, None);
        group.add(&["k"]);
        group.apply(&[Op::Remove { key: key("k") }]);
        for _ in 0..30 {
            group.pass(100, &[a]);
        }
        assert_eq!(group.ledger.record(&key("k")).is_none(), freed);
    }
}

#[test]
fn an_answer_that_never_comes_is_found_out_and_the_keys_are_proposed_again() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    let work: Vec<Op> = names(5).into_iter().map(|name| Op::Add(Work::new(name).unwrap())).collect();
    let effects = group.ledger.apply(&work, Token(0));
    group.feed(effects);
    let proposal = group.leader.propose(group.now, 100, &group.token_ages);
    assert_eq!(proposal.ops.len(), 5);
    // Two of the five take effect, and nobody hears of it but the feed.
    let effects = group.ledger.apply(&proposal.ops[..2], Token(0));
    group.leader.unanswered(&proposal);
    group.feed(effects);
    group.decide();
    assert_eq!(group.held(a), 2, "not before the next tick");
    group.pass(10, &[a]);
    assert_eq!(group.held(a), 5);
    assert!(group.grants.values().all(|grants| grants.len() == 1));
}

#[test]
fn a_newcomer_whose_settling_got_no_answer_is_settled_all_the_same() {
    let mut group = Group::new(config());
    let session = SessionId::fresh();
    let joined = group.ledger.apply(&[join(session, "a", 1000, None, Revision(1))], Token(0));
    group.feed(joined);
    let settles = |proposal: &Proposal| proposal.ops.iter().any(|op| matches!(op, Op::Settle { .. }));
    let lost = group.leader.propose(group.now, 10, &group.token_ages);
    assert!(settles(&lost));
    group.leader.unanswered(&lost);
    let hasty = group.leader.propose(group.now, 10, &group.token_ages);
    assert!(hasty.is_empty(), "not before the next tick, since the store is not well");
    group.pass(100, &[session]);
    assert!(group.ledger.session(session).unwrap().settled);
}

#[test]
fn a_leader_of_an_old_term_is_told_so_and_changes_nothing() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    let (_, effects) = group.ledger.lead(a, Term(0));
    // It has not heard of the new term when it proposes.
    let work = group.ledger.apply(&[Op::Add(Work::new("k").unwrap())], Token(0));
    let mut old = std::mem::replace(&mut group.leader, Leader::new(config(), Term(0), None));
    assert_eq!(old.feed(effects.batch.unwrap(), group.now), FeedOutcome::Applied);
    assert_eq!(old.feed(work.batch.unwrap(), group.now), FeedOutcome::Applied);
    let proposal = old.propose(group.now, 10, &group.token_ages);
    assert_eq!(proposal.ops.len(), 1);
    let effects = group.ledger.apply(&proposal.ops, Token(0));
    assert_eq!(effects.outcomes, [Outcome::Refused(Refusal::OldTerm)]);
    assert!(!old.answered(&proposal, &effects.outcomes, group.ledger.revision(), group.now));
    assert_eq!(group.held(a), 0);
}

#[test]
fn moves_for_balance_are_paced() {
    let mut config = config();
    config.max_in_flight = MaxInFlight::Keys(3);
    let mut group = Group::new(config);
    let a = group.session("a", 1000, None);
    group.add(&refs(&names(40)));
    let b = group.session("b", 1000, None);
    let stopping = |group: &Group| group.ledger.stats().stopping;
    while stopping(&group) > 0 {
        assert!(stopping(&group) <= 3);
        let asked = group.ledger.holdings(a).unwrap().holdings.into_iter().find(|h| h.stopping.is_some()).unwrap();
        group.apply(&[Op::confirm(a, asked.key, asked.token)]);
    }
    assert_eq!((group.held(a), group.held(b)), (20, 20));
}

#[test]
fn keys_move_for_balance_part_by_part_and_slow_stops_hold_the_next_part_up_for_20_ms_at_most() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&refs(&names(400)));
    let b = group.session("b", 1000, None);
    let stopping = |group: &Group| group.ledger.stats().stopping;
    let first = stopping(&group);
    assert!((16..=32).contains(&first), "{first} keys were asked to stop at once");
    group.pass(10, &[a, b]);
    assert_eq!(stopping(&group), first, "nothing was confirmed, and 20 ms have not passed");
    group.pass(11, &[a, b]);
    let second = stopping(&group);
    assert!((first + 1..=2 * 32).contains(&second), "{second} keys are stopping");
    // Whoever stops at once is not held up.
    group.confirm_all(&[a]);
    assert_eq!((group.held(a), group.held(b)), (200, 200));
}

#[test]
fn a_gap_in_the_feed_is_noticed() {
    let mut group = Group::new(config());
    let first = group.ledger.apply(&[Op::Add(Work::new("a").unwrap())], Token(0)).batch.unwrap();
    let second = group.ledger.apply(&[Op::Add(Work::new("b").unwrap())], Token(0)).batch.unwrap();
    assert_eq!(group.leader.feed(second.clone(), group.now), FeedOutcome::Gap);
    assert!(group.leader.is_behind());
    assert_eq!(group.leader.feed(first.clone(), group.now), FeedOutcome::Applied);
    assert_eq!(group.leader.feed(second, group.now), FeedOutcome::Applied);
    assert_eq!(group.leader.feed(first, group.now), FeedOutcome::Known);
    assert!(!group.leader.is_behind());
}

#[test]
fn a_program_that_crashes_on_its_start_does_not_get_its_own_orphans_back() {
    let mut group = Group::new(config());
    let healthy = group.session("healthy", 1000, None);
    group.add(&refs(&names(20)));
    let mut crasher = group.session("crasher", 1000, None);
    group.confirm_all(&[healthy]);
    for _ in 0..8 {
        // It dies, and is back before its old session has run out.
        let next = group.session("crasher", 1000, None);
        for _ in 0..11 {
            group.pass(100, &[healthy, next]);
        }
        assert!(!group.ledger.is_alive(crasher));
        assert_eq!((group.held(healthy), group.held(next)), (20, 0));
        crasher = next;
    }
    assert!(group.ledger.quarantined(10).is_empty());
    for _ in 0..10 {
        group.pass(100, &[healthy, crasher]);
    }
    group.confirm_all(&[healthy]);
    assert_eq!(group.held(crasher), 10, "it has lived for two leases");
}

#[test]
fn a_node_that_comes_back_is_given_work_at_once_where_nobody_else_takes_it() {
    let mut group = Group::new(config());
    let boss = group.session("boss", 0, None);
    let dead = group.session("only", 1000, None);
    group.add(&["k"]);
    let next = group.session("only", 1000, None);
    for _ in 0..11 {
        group.pass(100, &[boss, next]);
    }
    assert!(!group.ledger.is_alive(dead));
    assert_eq!(group.held(next), 1);
}

#[test]
fn a_proposal_has_no_more_ops_than_a_batch_may_have_however_many_sessions_fall_silent() {
    let mut group = Group::new(config());
    let sessions: Vec<SessionId> = (0..9).map(|n| group.session(&format!("n{n}"), 1000, None)).collect();
    group.add(&["k"]);
    let (session, token) = group.owner("k").unwrap();
    let give_up = Op::GiveUp {
        session,
        key: key("k"),
        token,
        generation: 1,
        pause_ms: 60_000,
        failures: 1,
        why: crate::record::Text::default(),
    };
    group.apply(&[give_up, Op::confirm(session, key("k"), token)]);
    // Ledger time is due as well, since a key rests.
    group.pass(u64::from(LEASE_MS) + 1, &[]);
    assert!(sessions.iter().all(|session| !group.ledger.is_alive(*session)));
}

#[test]
fn what_is_declared_once_while_its_key_is_being_removed_runs_after_that() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    let (_, token) = group.owner("k").unwrap();
    group.apply(&[Op::Remove { key: key("k") }]);
    let said = group.apply(&[Op::Add(Work::new("k").unwrap().how(crate::record::Declaration::Once))]);
    group.apply(&[Op::confirm(a, key("k"), token)]);
    assert!(group.ledger.record(&key("k")).is_some(), "{said:?}");
}

#[test]
fn work_that_is_declared_while_the_work_of_before_is_completed_begins_at_its_beginning() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    let (_, token) = group.owner("k").unwrap();
    group.apply(&[Op::Checkpoint { session: a, key: key("k"), token, bytes: (*b"end").into() }]);
    group.add(&["k"]);
    group.apply(&[Op::complete(a, key("k"), token)]);
    let record = group.ledger.record(&key("k")).unwrap();
    assert_eq!((record.checkpoint.len(), record.view.attempts), (0, 1));
}

#[test]
fn a_release_of_older_work_leaves_nothing_to_be_held_against_the_newer() {
    let mut group = Group::new(config());
    let a = group.session("a", 1000, None);
    group.add(&["k"]);
    let gives_up = |group: &mut Group, failures| {
        let (session, token) = group.owner("k").unwrap();
        let why = crate::record::Text::default();
        group.apply(&[
            Op::GiveUp { session, key: key("k"), token, generation: 1, pause_ms: 0, failures, why },
            Op::confirm(session, key("k"), token),
        ]);
    };
    gives_up(&mut group, 19);
    assert_eq!(group.held(a), 1);
    group.add(&["k"]);
    gives_up(&mut group, 20);
    assert_eq!(group.ledger.record(&key("k")).unwrap().view.failures, 0);
}
