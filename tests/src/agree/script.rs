//! A sequence as data: what is done, in words that keep their meaning when steps around them are taken out.
//!
//! # Why
//! A sequence that made a store and the ledger differ is worth as much as it is short. So no step names a token, a term or
//! a session of its own: it says which of those that are there when it is run, and whether the right one, a stale one or a
//! wrong one. [`proptest`] draws such sequences, takes out what it can, and what is left is kept as text.

use std::ops::Range;

use divider_core::{Declaration, format, limits};
use proptest::{collection::vec, prelude::*, sample::select};
use serde::{Deserialize, Serialize};

use super::run::{KEYS, NODES, SESSIONS, TOKENS};

/// One thing that is done to both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Renews a session.
    Renew(u8),
    /// Polls as a session.
    Poll(u8, Asked),
    /// Gives leadership up, in the term that is.
    Resign(Whose, When),
    /// Applies a batch.
    Batch(Vec<Act>),
    /// Applies a batch, and then a copy of it.
    Doubled(Vec<Act>),
}

/// What a poll asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Nothing.
    Follow,
    /// To go on leading in the term that is.
    Lead,
    /// To lead where nobody does.
    Take,
    /// To lead although somebody does, whose beat has not moved.
    TakeOver,
    /// The same with a beat that never was.
    TakeOverAhead,
    /// The same with the beat of the term before.
    TakeOverBehind,
}

/// A session, by its place among those that live, or among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// One that lives; any, where none does.
    Living(u8),
    /// Any.
    Any(u8),
}

/// A session, next to one that it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// The right one; the given one, where there is none.
    Right(u8),
    /// Any.
    Any(u8),
}

/// A key, by its place among those that somebody owns, or among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// One that is owned; any, where none is.
    Owned(u8),
    /// Any.
    Any(u8),
}

/// A number, next to the one that it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// The right one.
    Now,
    /// The one before.
    Before,
    /// The one after.
    After,
    /// The largest that there is.
    Never,
}

/// A token that was issued, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Issued {
    /// Below all.
    None,
    /// Above all.
    All,
    /// One of the last few.
    Late(u8),
}

/// An ownership, as somebody may believe in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Of which key.
    pub key: Which,
    /// By whom.
    pub session: Whose,
    /// Under which token.
    pub token: Token,
}

/// A token, next to the one that it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Token {
    /// Related to the right one.
    Of(When),
    /// One of the last few that were issued for whatever.
    Late(u8),
}

/// Whom a death is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Held {
    /// Nobody.
    Nobody,
    /// Every young ownership.
    Young,
    /// Those whose keys have had so many deaths.
    Suspects(u32),
    /// That of a key.
    Only(u8),
}

/// An ownership whose end is held against nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Absolved {
    /// The one that was counted last.
    Counted,
    /// The one that is, or was when its session ended.
    Current,
    /// One of the last few.
    Late(u8),
}

/// So many times a letter of two bytes, which a text may be cut in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why(pub usize);

/// What a script that says nothing of it reads.
fn newest() -> u16 {
    divider_core::format::NEWEST
}

/// So many times this byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(pub usize, pub u8);

/// An op. Numbers of keys, sessions and nodes are places among the few that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the op of the same name")]
pub enum Act {
    Add {
        key: u8,
        weight: u32,
        priority: i32,
        not_before_ms: u64,
        payload: Bytes,
        #[serde(default)]
        how: Declaration,
    },
    Remove(u8),
    Retry(u8),
    Rebalance,
    Join {
        session: u8,
        node: u8,
        affinity: u32,
        capacity: Option<u32>,
        lease_ms: u32,
        seen: When,
        #[serde(default = "newest")]
        reads: u16,
    },
    /// `again` says that the number is the last one.
    SetAffinity {
        session: Who,
        again: bool,
        affinity: u32,
    },
    AlterAffinity {
        session: Who,
        again: bool,
        delta: i64,
    },
    Sender {
        session: Who,
        serial: When,
    },
    Drain(Who),
    End(Who),
    Confirm {
        grant: Grant,
        started: bool,
    },
    GiveUp {
        grant: Grant,
        generation: When,
        pause_ms: u64,
        failures: u32,
        why: Why,
    },
    Complete {
        grant: Grant,
        generation: When,
    },
    SetAside {
        grant: Grant,
        generation: When,
        why: Why,
    },
    Clear {
        term: When,
        key: u8,
        blames_only: bool,
    },
    Absolve {
        key: u8,
        token: Absolved,
    },
    Advance {
        term: When,
        elapsed_ms: u64,
    },
    Step {
        term: When,
        format: u16,
    },
    Checkpoint {
        grant: Grant,
        bytes: Bytes,
    },
    Assign {
        term: When,
        key: u8,
        session: Who,
    },
    Revoke {
        term: When,
        key: Which,
        token: Token,
    },
    Force {
        term: When,
        key: Which,
        token: Token,
    },
    /// `moved` says that the beat is not the one that was seen.
    Expire {
        term: When,
        session: Who,
        moved: bool,
        healthy_below: Issued,
        blame: Held,
    },
    Quarantine {
        term: When,
        key: u8,
    },
    Settle {
        term: When,
        session: Who,
    },
    ResumeGrants(When),
}

/// Sequences of up to 40 steps, most of them shorter. Most find a group that has begun: with nodes, a leader, and work.
pub(super) fn sequence() -> impl Strategy<Value = Vec<Step>> {
    let begun = (join(Just(0)), join(Just(1)), vec(add(), 1..=4)).prop_map(|(one, other, mut work)| {
        work.push(Act::ResumeGrants(When::Now));
        vec![Step::Batch(vec![one, other]), Step::Poll(0, Asked::Take), Step::Batch(work)]
    });
    let begin = prop_oneof![1 => Just(Vec::new()), 3 => begun];
    let steps = prop_oneof![3 => vec(step(), 1..=12), 1 => vec(step(), 1..=40)];
    (begin, steps).prop_map(|(begin, steps)| [begin, steps].concat())
}

/// One step. Every refusal comes up often enough that a few hundred steps meet nearly all of them. What stands first in a
/// choice is what it shrinks to.
pub(super) fn step() -> impl Strategy<Value = Step> {
    use Asked::*;
    let asked = prop_oneof![
        2 => Just(Follow),
        2 => Just(Lead),
        1 => Just(Take),
        1 => select(vec![TakeOver, TakeOverAhead, TakeOverBehind]),
    ];
    let batch = prop_oneof![9 => vec(act(), 1..=6), 1 => vec(act(), 1..=120)];
    let resigns = prop_oneof![2 => SESSION.prop_map(Whose::Right), 1 => SESSION.prop_map(Whose::Any)];
    let resigned = prop_oneof![3 => Just(When::Now), 1 => Just(When::After)];
    prop_oneof![
        18 => batch.clone().prop_map(Step::Batch),
        2 => batch.prop_map(Step::Doubled),
        3 => SESSION.prop_map(Step::Renew),
        6 => (SESSION, asked).prop_map(|(session, asked)| Step::Poll(session, asked)),
        1 => (resigns, resigned).prop_map(|(session, term)| Step::Resign(session, term)),
    ]
}

/// A place among the sessions, and one among the keys.
const SESSION: Range<u8> = 0..SESSIONS as u8;
const KEY: Range<u8> = 0..KEYS as u8;

fn who() -> impl Strategy<Value = Who> + Clone {
    prop_oneof![4 => SESSION.prop_map(Who::Living), 1 => SESSION.prop_map(Who::Any)]
}

fn which() -> impl Strategy<Value = Which> + Clone {
    prop_oneof![7 => KEY.prop_map(Which::Owned), 1 => KEY.prop_map(Which::Any)]
}

fn term() -> impl Strategy<Value = When> + Clone {
    prop_oneof![17 => Just(When::Now), 1 => Just(When::Before), 1 => Just(When::After), 1 => Just(When::Never)]
}

fn token() -> impl Strategy<Value = Token> + Clone {
    let of =
        prop_oneof![12 => Just(When::Now), 1 => Just(When::Before), 1 => Just(When::After), 1 => Just(When::Never)];
    prop_oneof![15 => of.prop_map(Token::Of), 1 => (0..TOKENS as u8).prop_map(Token::Late)]
}

fn grant() -> impl Strategy<Value = Grant> + Clone {
    let whose = prop_oneof![7 => SESSION.prop_map(Whose::Right), 1 => SESSION.prop_map(Whose::Any)];
    (which(), whose, token()).prop_map(|(key, session, token)| Grant { key, session, token })
}

fn bytes() -> impl Strategy<Value = Bytes> + Clone {
    let len = prop_oneof![
        24 => Just(0),
        6 => Just(1),
        8 => 0..300_usize,
        1 => Just(20_000),
        1 => Just(limits::MAX_PAYLOAD_BYTES),
    ];
    (len, select(vec![0, 10, 200, 255])).prop_map(|(len, byte)| Bytes(len, byte))
}

fn moment() -> impl Strategy<Value = u64> + Clone {
    select(vec![0, 1, 2, 1 << 33, limits::MAX_NOT_BEFORE_MS])
}

fn add() -> impl Strategy<Value = Act> {
    let due = prop_oneof![3 => Just(0), 1 => moment()];
    let weight = select(vec![1, 1, 1, 2, limits::MAX_WEIGHT]);
    let priority = select(vec![0, 0, 0, -1, i32::MIN, i32::MAX]);
    use Declaration::*;
    let how = select(vec![Again, Again, Again, Once, Declare, Refresh]);
    (KEY, weight, priority, due, bytes(), how).prop_map(|(key, weight, priority, not_before_ms, payload, how)| {
        Act::Add { key, weight, priority, not_before_ms, payload, how }
    })
}

fn why() -> impl Strategy<Value = Why> + Clone {
    select(vec![0, 0, 1, 7, 511, 512, 513]).prop_map(Why)
}

fn generation() -> impl Strategy<Value = When> + Clone {
    prop_oneof![6 => Just(When::Now), 3 => Just(When::Before), 1 => Just(When::After)]
}

fn join(session: impl Strategy<Value = u8>) -> impl Strategy<Value = Act> {
    let affinity = select(vec![0, 1, 1000, 1000, 1000, limits::MAX_AFFINITY]);
    let capacity = select(vec![None, None, None, Some(0), Some(2), Some(u32::MAX)]);
    let lease = select(vec![1, 3000, u32::MAX]);
    let seen =
        prop_oneof![12 => Just(When::Now), 3 => Just(When::Before), 1 => Just(When::After), 1 => Just(When::Never)];
    let reads = prop_oneof![9 => Just(newest()), 1 => format::OLDEST..=format::NEWEST + 1];
    (session, 0..NODES.len() as u8, affinity, capacity, lease, seen, reads).prop_map(
        |(session, node, affinity, capacity, lease_ms, seen, reads)| Act::Join {
            session,
            node,
            affinity,
            capacity,
            lease_ms,
            seen,
            reads,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let affinity = select(vec![0, 1, 500, 500, limits::MAX_AFFINITY]);
    let delta = select(vec![0, 1, -1, 100, -100, -5000, i64::MAX, i64::MIN, 1 << 60, i64::MAX - 77]);
    let assignee = prop_oneof![2 => SESSION.prop_map(Who::Living), 1 => SESSION.prop_map(Who::Any)];
    let below =
        prop_oneof![1 => Just(Issued::None), 1 => Just(Issued::All), 8 => (0..TOKENS as u8).prop_map(Issued::Late)];
    let moved = prop::bool::weighted(0.25);
    let started = prop::bool::weighted(0.67);
    let pause = select(vec![0, 0, 1, 5000, limits::MAX_PAUSE_MS]);
    let failures = select(vec![0, 1, 2, 3, u32::MAX]);
    let held = prop_oneof![
        1 => Just(Held::Nobody),
        4 => Just(Held::Young),
        2 => select(vec![0, 1, 2, u32::MAX]).prop_map(Held::Suspects),
        3 => KEY.prop_map(Held::Only),
    ];
    let absolved = prop_oneof![
        4 => Just(Absolved::Counted),
        2 => Just(Absolved::Current),
        1 => (0..TOKENS as u8).prop_map(Absolved::Late),
    ];
    let serial = prop_oneof![3 => Just(When::Now), 2 => Just(When::Before), 1 => Just(When::After)];
    prop_oneof![
        6 => Just(Act::Rebalance),
        60 => add(),
        18 => KEY.prop_map(Act::Remove),
        12 => KEY.prop_map(Act::Retry),
        30 => join(SESSION),
        6 => (who(), any::<bool>(), affinity)
            .prop_map(|(session, again, affinity)| Act::SetAffinity { session, again, affinity }),
        12 => (who(), any::<bool>(), delta)
            .prop_map(|(session, again, delta)| Act::AlterAffinity { session, again, delta }),
        2 => who().prop_map(Act::Drain),
        3 => who().prop_map(Act::End),
        18 => (grant(), started).prop_map(|(grant, started)| Act::Confirm { grant, started }),
        18 => (grant(), generation(), pause, failures, why()).prop_map(
            |(grant, generation, pause_ms, failures, why)| Act::GiveUp { grant, generation, pause_ms, failures, why }
        ),
        6 => (grant(), generation()).prop_map(|(grant, generation)| Act::Complete { grant, generation }),
        9 => (grant(), generation(), why())
            .prop_map(|(grant, generation, why)| Act::SetAside { grant, generation, why }),
        9 => (term(), KEY, any::<bool>()).prop_map(|(term, key, blames_only)| Act::Clear { term, key, blames_only }),
        12 => (KEY, absolved).prop_map(|(key, token)| Act::Absolve { key, token }),
        6 => (term(), select(vec![0, 1, 70, limits::MAX_ADVANCE_MS]))
            .prop_map(|(term, elapsed_ms)| Act::Advance { term, elapsed_ms }),
        6 => (term(), 0..=format::NEWEST + 1).prop_map(|(term, format)| Act::Step { term, format }),
        18 => (grant(), bytes()).prop_map(|(grant, bytes)| Act::Checkpoint { grant, bytes }),
        103 => (term(), KEY, assignee).prop_map(|(term, key, session)| Act::Assign { term, key, session }),
        18 => (term(), which(), token()).prop_map(|(term, key, token)| Act::Revoke { term, key, token }),
        12 => (term(), which(), token()).prop_map(|(term, key, token)| Act::Force { term, key, token }),
        9 => (term(), who(), moved, below, held).prop_map(|(term, session, moved, healthy_below, blame)| Act::Expire {
            term,
            session,
            moved,
            healthy_below,
            blame
        }),
        12 => (term(), KEY).prop_map(|(term, key)| Act::Quarantine { term, key }),
        12 => (term(), who()).prop_map(|(term, session)| Act::Settle { term, session }),
        12 => term().prop_map(Act::ResumeGrants),
        12 => (who(), serial).prop_map(|(session, serial)| Act::Sender { session, serial }),
    ]
}

/// As [`serde_json`] reads it.
///
/// # Panics
/// Where the text is no script.
pub fn script(text: &str) -> Vec<Step> {
    serde_json::from_str(text).expect("a script")
}

/// A step on each line, as [`script`] reads it.
pub(super) fn text(steps: &[Step]) -> String {
    let lines = steps.iter().map(|step| serde_json::to_string(step).expect("plain data"));
    format!("[\n    {}\n]", lines.collect::<Vec<_>>().join(",\n    "))
}
