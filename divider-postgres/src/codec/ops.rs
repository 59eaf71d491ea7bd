//! A batch as the arguments of `apply`.
//!
//! | kind | op | names | a | b | c |
//! | --- | --- | --- | --- | --- | --- |
//! | 1 | Add | key, and how as the term | weight | priority | not before |
//! | 2, 3 | Remove, Retry | key | | | |
//! | 4 | Rebalance | | | | |
//! | 5 | Join | session, node, seen as the term, format as the token | affinity | capacity | lease |
//! | 6, 7 | SetAffinity, AlterAffinity | session | number | affinity, difference | |
//! | 8, 9 | Drain, End | session | | | |
//! | 10 | Confirm | session, key, token | 1 where started | | |
//! | 11 | GiveUp | session, key, token | generation | pause | failures |
//! | 12 | Complete | session, key, token | generation | | |
//! | 13 | Checkpoint | session, key, token | | | |
//! | 14 | Assign | term, key, session | | | |
//! | 15, 16 | Revoke, Force | term, key, token | | | |
//! | 17 | Expire | term, session, whom alone as the token | beat | healthy below | whom to blame |
//! | 18 | Quarantine | term, key | | | |
//! | 19 | Settle | term, session | | | |
//! | 20 | ResumeGrants | term | | | |
//! | 21 | SetAside | session, key, token | generation | | |
//! | 22 | Clear | term, key | 1 for blames only | | |
//! | 23 | Absolve | key, token | | | |
//! | 24 | Advance | term | milliseconds | | |
//! | 25 | Step | term | format | | |
//! | 26 | Sender | session | serial | | |
//!
//! Payload, checkpoint and reason go as the blob.

use std::collections::HashSet;

use divider_core::{Blame, Declaration, Op, SessionId, Term, Token};
use uuid::Uuid;

use super::number;

/// The arguments of `apply`, borrowed from the batch.
#[derive(Debug, Default)]
pub(crate) struct Encoded<'a> {
    /// Where each run begins, counted from 1.
    pub(crate) starts: Vec<i32>,
    pub(crate) kinds: Vec<i16>,
    /// Keys; for Join, the node's name.
    pub(crate) names: Vec<Option<&'a str>>,
    pub(crate) sessions: Vec<Option<Uuid>>,
    pub(crate) tokens: Vec<Option<i64>>,
    pub(crate) terms: Vec<Option<i64>>,
    pub(crate) a: Vec<Option<i64>>,
    pub(crate) b: Vec<Option<i64>>,
    pub(crate) c: Vec<Option<i64>>,
    pub(crate) blobs: Vec<Option<&'a [u8]>>,
}

/// One row of it.
#[derive(Default)]
struct Row<'a> {
    name: Option<&'a str>,
    session: Option<Uuid>,
    token: Option<i64>,
    term: Option<i64>,
    a: Option<i64>,
    b: Option<i64>,
    c: Option<i64>,
    blob: Option<&'a [u8]>,
}

/// Ops of one family that follow each other make a run, as long as no key comes twice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Add,
    Assign,
    Keyed,
    Other,
}

impl<'a> Encoded<'a> {
    pub(crate) fn new(ops: &'a [Op]) -> Self {
        let mut all = Self::default();
        let mut family = None;
        let mut named = HashSet::new();
        for (at, op) in (1..).zip(ops) {
            let (kind, row) = row(op);
            let of = match kind {
                1 => Family::Add,
                14 => Family::Assign,
                2 | 3 | 10..=13 | 15 | 16 | 18 | 21..=23 => Family::Keyed,
                _ => Family::Other,
            };
            // A node's name may come as often as it likes.
            let twice = of != Family::Other && row.name.is_some_and(|key| !named.insert(key));
            if twice || family != Some(of) {
                all.starts.push(at);
                family = Some(of);
                named.clear();
                named.extend(row.name);
            }
            all.push(kind, row);
        }
        all
    }

    fn push(&mut self, kind: i16, row: Row<'a>) {
        self.kinds.push(kind);
        self.names.push(row.name);
        self.sessions.push(row.session);
        self.tokens.push(row.token);
        self.terms.push(row.term);
        self.a.push(row.a);
        self.b.push(row.b);
        self.c.push(row.c);
        self.blobs.push(row.blob);
    }
}

/// An array with nothing in it is not sent.
pub(crate) fn used<T>(column: Vec<Option<T>>) -> Option<Vec<Option<T>>> {
    column.iter().any(Option::is_some).then_some(column)
}

fn row(op: &Op) -> (i16, Row<'_>) {
    let none = Row::default;
    let at = |SessionId(session): &SessionId| Row { session: Some(*session), ..Row::default() };
    let led = |Term(term): &Term| Row { term: Some(number(*term)), ..Row::default() };
    let owned = |session: &SessionId, token: &Token| Row { token: Some(number(token.0)), ..at(session) };
    match op {
        Op::Add(work) => (
            1,
            Row {
                name: Some(work.key.as_str()),
                a: Some(work.weight.into()),
                b: Some(work.priority.into()),
                c: Some(number(work.not_before_ms)),
                term: declared(work.how),
                blob: Some(&work.payload),
                ..none()
            },
        ),
        Op::Remove { key } => (2, Row { name: Some(key.as_str()), ..none() }),
        Op::Retry { key } => (3, Row { name: Some(key.as_str()), ..none() }),
        Op::Rebalance => (4, none()),
        Op::Join { session, node, affinity, capacity, lease_ms, seen, reads } => (
            5,
            Row {
                // The columns of terms and tokens are those that a join has no use for.
                term: Some(number(seen.0)),
                token: Some((*reads).into()),
                name: Some(node.as_str()),
                a: Some((*affinity).into()),
                b: capacity.map(Into::into),
                c: Some((*lease_ms).into()),
                ..at(session)
            },
        ),
        Op::SetAffinity { session, number: n, affinity } => {
            (6, Row { a: Some(number(*n)), b: Some((*affinity).into()), ..at(session) })
        }
        Op::AlterAffinity { session, number: n, delta } => {
            (7, Row { a: Some(number(*n)), b: Some(*delta), ..at(session) })
        }
        Op::Drain { session } => (8, at(session)),
        Op::End { session } => (9, at(session)),
        Op::Confirm { session, key, token, started } => {
            (10, Row { name: Some(key.as_str()), a: Some((*started).into()), ..owned(session, token) })
        }
        Op::GiveUp { session, key, token, generation, pause_ms, failures, why } => (
            11,
            Row {
                name: Some(key.as_str()),
                a: Some((*generation).into()),
                b: Some(number(*pause_ms)),
                c: Some((*failures).into()),
                blob: Some(why.as_bytes()),
                ..owned(session, token)
            },
        ),
        Op::Complete { session, key, token, generation } => {
            (12, Row { name: Some(key.as_str()), a: Some((*generation).into()), ..owned(session, token) })
        }
        Op::Checkpoint { session, key, token, bytes } => {
            (13, Row { name: Some(key.as_str()), blob: Some(bytes), ..owned(session, token) })
        }
        Op::Assign { term, key, session } => {
            (14, Row { name: Some(key.as_str()), session: Some(session.0), ..led(term) })
        }
        Op::Revoke { term, key, token } => {
            (15, Row { name: Some(key.as_str()), token: Some(number(token.0)), ..led(term) })
        }
        Op::Force { term, key, token } => {
            (16, Row { name: Some(key.as_str()), token: Some(number(token.0)), ..led(term) })
        }
        Op::Expire { term, session, beat, verdict } => {
            let (whom, suspect) = blamed(verdict.blame);
            let row = Row { session: Some(session.0), a: Some(number(beat.0)), ..led(term) };
            (17, Row { b: Some(number(verdict.healthy_below.0)), c: Some(whom), token: Some(suspect), ..row })
        }
        Op::Quarantine { term, key } => (18, Row { name: Some(key.as_str()), ..led(term) }),
        Op::Settle { term, session } => (19, Row { session: Some(session.0), ..led(term) }),
        Op::ResumeGrants { term } => (20, led(term)),
        Op::SetAside { session, key, token, generation, why } => {
            let row = Row { a: Some((*generation).into()), blob: Some(why.as_bytes()), ..owned(session, token) };
            (21, Row { name: Some(key.as_str()), ..row })
        }
        Op::Clear { term, key, blames_only } => {
            (22, Row { name: Some(key.as_str()), a: Some((*blames_only).into()), ..led(term) })
        }
        Op::Absolve { key, token } => (23, Row { name: Some(key.as_str()), token: Some(number(token.0)), ..none() }),
        Op::Advance { term, elapsed_ms } => (24, Row { a: Some(number(*elapsed_ms)), ..led(term) }),
        Op::Sender { session, serial } => (26, Row { a: Some(number(*serial)), ..at(session) }),
        Op::Step { term, format } => (25, Row { a: Some((*format).into()), ..led(term) }),
    }
}

/// How work is declared. The usual way goes without a number, so that a column of it is not sent.
fn declared(how: Declaration) -> Option<i64> {
    match how {
        Declaration::Again => None,
        Declaration::Once => Some(1),
        Declaration::Declare => Some(2),
        Declaration::Refresh => Some(3),
    }
}

/// Whom a death is held against, and the number that goes with it; see `0001_tables.sql`.
fn blamed(blame: Blame) -> (i64, i64) {
    match blame {
        Blame::Nobody => (0, 0),
        Blame::Young => (1, 0),
        Blame::Suspects(from) => (2, from.into()),
        Blame::Only(token) => (3, number(token.0)),
    }
}

#[cfg(test)]
mod tests {
    use divider_core::{Key, Work};

    use super::*;

    fn add(key: &str) -> Op {
        Op::Add(Work::from(Key::new(key).expect("a valid key")))
    }

    fn remove(key: &str) -> Op {
        Op::Remove { key: Key::new(key).expect("a valid key") }
    }

    #[test]
    fn a_run_is_of_one_family_and_names_each_key_once() {
        let ops = [add("a"), add("b"), add("a"), remove("a"), remove("b"), Op::Rebalance, Op::Rebalance, add("a")];
        assert_eq!(Encoded::new(&ops).starts, [1, 3, 4, 6, 8]);
        assert!(Encoded::new(&[]).starts.is_empty());
    }
}
