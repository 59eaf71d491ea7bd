//! The authority of one group, as a pure state machine.
//!
//! # Why
//! Whether a key may change hands is decided here and nowhere else. There is no clock, no I/O and no randomness in it, so
//! that the same code is the in-memory backend, the replicated state of the Raft backend, the model that is checked, and
//! the reference that the scripts and statements of the other backends are compared with, op for op.
//!
//! # How
//! A session that ends takes nothing with it: its keys keep its name, and every rule treats a key in the name of an ended
//! session as free. So the end of a session costs the same whether it held one key or a million, and the keys change
//! hands one batch at a time. The ended session is remembered until no key is in its name any more. A copy of its join
//! that comes later still must not begin it anew; so a join names a revision that its node has seen, and is refused where
//! any session has ended since. That takes one number, where remembering all sessions would take more and more.
//!
//! Tokens, revisions and messages are numbered by the ledger. `floor` lets a backend raise tokens to a number of its own
//! that never goes back, so that they go on rising even where the store has forgotten its past.

mod apply;
mod entry;
mod frozen;
mod keys;
mod places;
mod session;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    error::StoreError,
    ids::{Key, Revision, SessionId, Term, Token},
    limits,
    op::{Applied, Batch, Change, GroupView, Holding, Message, Notice, Op, Outcome, Refusal, SessionView, Verdict},
    record::{Record, State, StopReason},
    store::{Cursor, Holdings, Page, Stats},
};
use entry::{Entry, Rare};
pub use frozen::Frozen;
use keys::Keys;
use session::Session;

/// Keys in one [`Ledger::scan`] page.
const PAGE: usize = 4096;

/// The authority of one group. See the [module](self) for the idea.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    revision: Revision,
    /// The last token that was issued.
    token: Token,
    group: GroupView,
    keys: Keys,
    sessions: BTreeMap<SessionId, Session>,
    quarantined: u64,
    /// The newest batches, for readers that fell behind; see [`limits::CHANGE_LOG`].
    log: VecDeque<Batch>,
    logged: u64,
    /// When a session last ended. Whoever has seen this has not seen a session begin that has been forgotten since.
    ended: Revision,
    /// How many keys have been declared.
    declared: u64,
}

/// What came of a batch: the answer to the caller, and what others are to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// One for each op.
    pub outcomes: Vec<crate::op::Outcome>,
    /// The changes, where there are any.
    pub batch: Option<Batch>,
    /// At most one message to each session.
    pub messages: Vec<(SessionId, Message)>,
}

impl Ledger {
    /// An empty group.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies `ops` in order. Tokens that are issued on the way are higher than `floor`, and than all before.
    pub fn apply(&mut self, ops: &[Op], floor: Token) -> Effects {
        self.apply_checked(ops, floor, |_| Ok(()))
    }

    /// As [`apply`](Self::apply). Before each op `check` is asked, which may refuse it for what the ledger does not know.
    pub fn apply_checked(&mut self, ops: &[Op], floor: Token, check: impl Fn(&Op) -> Result<(), Refusal>) -> Effects {
        self.transact(|tx| {
            tx.floor = floor;
            let mut barred = None;
            let mut one = |op: &Op| {
                let outcome = barred.unwrap_or_else(|| check(op).map_or_else(Outcome::Refused, |()| tx.one(op)));
                if matches!((op, outcome), (Op::Sender { .. }, Outcome::Refused(_))) {
                    barred = Some(outcome);
                }
                outcome
            };
            ops.iter().map(&mut one).collect()
        })
    }

    /// Makes `session` the leader, in a new term that is higher than `floor`. The caller has checked that the leadership
    /// is free. `None` where the session does not live.
    pub fn lead(&mut self, session: SessionId, floor: Term) -> (Option<Term>, Effects) {
        if !self.is_alive(session) {
            return (None, Effects::default());
        }
        let term = Term(self.group.term.max(floor).0 + 1);
        let group = GroupView { term, leader: Some(session), ..self.group };
        let effects = self.transact(|tx| {
            tx.set_group(group);
            Vec::new()
        });
        (Some(term), effects)
    }

    /// Frees the leadership, if `session` holds it in `term`.
    pub fn resign(&mut self, session: SessionId, term: Term) -> Effects {
        let mine = self.group.leader == Some(session) && self.group.term == term;
        self.transact(|tx| {
            if mine {
                tx.set_group(GroupView { leader: None, ..tx.ledger.group });
            }
            Vec::new()
        })
    }

    /// Begins a new lineage: the store may have forgotten something, so every session ends, nobody leads, no term of before
    /// is valid, and grants are held back until a leader has waited a lease.
    pub fn new_lineage(&mut self) -> Effects {
        let alive: Vec<SessionId> = self.sessions.values().filter(|s| s.is_alive()).map(|s| s.view.session).collect();
        self.transact(|tx| {
            for session in alive {
                tx.end_session(session, Verdict::NONE);
            }
            // Forgotten sessions have ended, too.
            tx.ledger.ended = Revision(tx.ledger.revision.0 + 1);
            // Said in any case: the revision rises, so that a join of before is told from one of after.
            // What the leader of before says late, the end of a hold above all, is not of this lineage's term.
            let term = Term(tx.ledger.group.term.0 + u64::from(tx.ledger.group.term > Term(0)));
            tx.ledger.group = GroupView { term, leader: None, grants_held: true, ..tx.ledger.group };
            tx.changes.push(Change::Group(tx.ledger.group));
            Vec::new()
        })
    }

    /// The last token that was issued.
    pub fn token(&self) -> Token {
        self.token
    }

    /// The group's revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Term, leader and hold.
    pub fn group(&self) -> GroupView {
        self.group
    }

    /// Whether the session is known and has not ended.
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(Session::is_alive)
    }

    /// Number of the last message to a living session.
    pub fn seq(&self, session: SessionId) -> Option<u64> {
        self.sessions.get(&session).filter(|s| s.is_alive()).map(|s| s.seq)
    }

    /// One record, as it is stored: an owner that has ended may still stand in it.
    pub fn record(&self, key: &Key) -> Option<Record> {
        self.keys.get(key).map(Entry::record)
    }

    /// The living session that owns a key, and under which token.
    #[inline]
    pub fn owner(&self, key: &Key) -> Option<(&SessionView, Token)> {
        let (session, token) = self.keys.get(key)?.state.owner()?;
        self.session(session).filter(|view| view.ended.is_none()).map(|view| (view, token))
    }

    /// All sessions, the ended ones that still have keys in their name included.
    pub fn sessions(&self) -> impl Iterator<Item = &SessionView> {
        self.sessions.values().map(|s| &s.view)
    }

    /// One session, also where it has ended and still has keys in its name.
    #[inline]
    pub fn session(&self, session: SessionId) -> Option<&SessionView> {
        self.sessions.get(&session).map(|s| &s.view)
    }

    /// See [`Store::holdings`](crate::Store::holdings).
    ///
    /// # Errors
    /// [`StoreError::SessionEnded`] where the session is unknown or over.
    pub fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        let Some(s) = self.sessions.get(&session).filter(|s| s.is_alive()) else {
            return Err(StoreError::SessionEnded);
        };
        let holdings = s.keys.iter().filter_map(|place| self.keys.at(*place)).filter_map(holding).collect();
        Ok(Holdings { seq: s.seq, holdings })
    }

    /// See [`Store::changes`](crate::Store::changes).
    pub fn changes(&self, since: Revision) -> Option<Vec<Batch>> {
        if since == self.revision {
            return Some(Vec::new());
        }
        let oldest = self.log.front()?.revision;
        if since > self.revision || since.0 + 1 < oldest.0 {
            return None;
        }
        let skip = usize::try_from(since.0 + 1 - oldest.0).unwrap_or(usize::MAX);
        Some(self.log.iter().skip(skip).cloned().collect())
    }

    /// See [`Store::scan`](crate::Store::scan). The cursor is the place at which the next page begins.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where the cursor is not one that this returned.
    pub fn scan(&self, cursor: Option<&Cursor>) -> Result<Page, StoreError> {
        let from = match cursor {
            Some(Cursor(bytes)) => match bytes.as_slice().try_into() {
                Ok(bytes) => u32::from_be_bytes(bytes),
                Err(_) => return Err(StoreError::Corrupt("a cursor that is no place".into())),
            },
            None => 0,
        };
        let mut rest = self.keys.from(from);
        let keys = rest.by_ref().take(PAGE).map(|(_, entry)| entry.view()).collect();
        let next = rest.next().map(|(place, _)| Cursor(place.to_be_bytes().to_vec()));
        let sessions = if cursor.is_none() { self.sessions().cloned().collect() } else { Vec::new() };
        Ok(Page { revision: self.revision, group: self.group, sessions, keys, next })
    }

    /// See [`Store::stats`](crate::Store::stats). Costs one step for each session.
    pub fn stats(&self) -> Stats {
        let registered = self.keys.len() as u64;
        let alive = || self.sessions.values().filter(|s| s.is_alive());
        let held: u64 = alive().map(|s| s.keys.len() as u64).sum();
        let stopping: u64 = alive().map(|s| s.stopping).sum();
        Stats {
            sessions: alive().count() as u64,
            registered,
            assigned: held - stopping,
            pending: registered - held - self.quarantined,
            stopping,
            quarantined: self.quarantined,
        }
    }

    /// See [`Store::quarantined`](crate::Store::quarantined).
    pub fn quarantined(&self, limit: usize) -> Vec<Key> {
        if self.quarantined == 0 {
            return Vec::new();
        }
        let quarantined = self.keys.from(0).filter(|(_, entry)| matches!(entry.state, State::Quarantined(_)));
        quarantined.take(limit).map(|(_, entry)| entry.key.clone()).collect()
    }

    /// Runs `work`, and gives its changes one revision and its notices one message each.
    fn transact(&mut self, work: impl FnOnce(&mut Tx<'_>) -> Vec<crate::op::Outcome>) -> Effects {
        let mut tx = Tx { ledger: self, floor: Token(0), changes: Vec::new(), notices: BTreeMap::new() };
        let outcomes = work(&mut tx);
        let Tx { changes, notices, .. } = tx;
        let messages = notices.into_iter().map(|(session, notices)| (session, self.message(session, notices)));
        let messages = messages.collect();
        let batch = (!changes.is_empty()).then(|| {
            self.revision.0 += 1;
            Batch { revision: self.revision, changes }
        });
        if let Some(batch) = &batch {
            self.remember(batch.clone());
        }
        Effects { outcomes, batch, messages }
    }

    fn message(&mut self, session: SessionId, notices: Vec<Notice>) -> Message {
        // A session that has ended and is forgotten still gets its last message; nobody counts after it.
        let seq = self.sessions.get_mut(&session).map_or(u64::MAX, |s| {
            s.seq += 1;
            s.seq
        });
        Message { seq, notices }
    }

    fn remember(&mut self, batch: Batch) {
        self.logged += batch.changes.len() as u64;
        self.log.push_back(batch);
        while self.logged > limits::CHANGE_LOG && self.log.len() > 1 {
            if let Some(oldest) = self.log.pop_front() {
                self.logged -= oldest.changes.len() as u64;
            }
        }
    }
}

impl Effects {
    /// The answer to the caller, where the group now stands at `revision`.
    pub fn applied(&self, revision: Revision) -> Applied {
        Applied { outcomes: self.outcomes.clone(), revision }
    }
}

/// What the owner of a key is handed. `None` where nobody owns it.
fn holding(entry: &Entry) -> Option<Holding> {
    let Entry { weight, priority, attempts, generation, state, .. } = *entry;
    let (_, token) = state.owner()?;
    let stopping = match state {
        State::Stopping { reason, .. } => Some(reason),
        _ => None,
    };
    let Rare { failures, payload, checkpoint, .. } = entry.rare();
    let key = entry.key.clone();
    Some(Holding { key, token, attempts, generation, failures, weight, priority, payload, checkpoint, stopping })
}

/// A batch that is being applied.
struct Tx<'a> {
    ledger: &'a mut Ledger,
    /// Tokens that are issued are higher.
    floor: Token,
    changes: Vec<Change>,
    notices: BTreeMap<SessionId, Vec<Notice>>,
}

impl Tx<'_> {
    fn set_group(&mut self, group: GroupView) {
        if self.ledger.group != group {
            self.ledger.group = group;
            self.changes.push(Change::Group(group));
        }
    }

    fn notify(&mut self, session: SessionId, notice: Notice) {
        self.notices.entry(session).or_default().push(notice);
    }

    fn end_session(&mut self, session: SessionId, verdict: Verdict) {
        let Some(s) = self.ledger.sessions.get_mut(&session) else { return };
        s.view.ended = Some(verdict);
        // The revision that this batch will have.
        self.ledger.ended = Revision(self.ledger.revision.0 + 1);
        self.changes.push(Change::Session(s.view.clone()));
        self.notify(session, Notice::Ended);
        if self.ledger.group.leader == Some(session) {
            self.set_group(GroupView { leader: None, ..self.ledger.group });
        }
        self.forget_if_empty(session);
    }

    /// Drops an ended session once no key is in its name.
    fn forget_if_empty(&mut self, session: SessionId) {
        let done = |s: &Session| !s.is_alive() && s.keys.is_empty();
        if self.ledger.sessions.get(&session).is_some_and(done) {
            self.ledger.sessions.remove(&session);
            self.changes.push(Change::SessionGone(session));
        }
    }

    fn stop(&mut self, session: SessionId, key: Key, token: Token, reason: StopReason) {
        self.notify(session, Notice::Stop { key, token, reason });
    }
}
