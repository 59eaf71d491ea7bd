//! What a leader keeps in memory for as long as it leads: the beats of sessions and of leaderships.
//!
//! # Why beats need no log
//! A beat only ever decides one thing: whether a session that stood still for a whole lease may be expired. The leader of
//! Raft compares the beat of an expiry just before it proposes it, and marks the session as *expiring* until the entry is
//! decided; a renewal of an expiring session waits. The entry carries the Raft term it was compared in, and is refused where
//! it ends up in another. A renewal counts only once a quorum has confirmed the leader after the renewal had come in. So
//! of an expiry and a renewal, whichever comes first excludes the other.
//!
//! # Why a new leader starts higher
//! Beats under a leader begin at its Raft term, shifted up. A beat that was seen under one leader therefore never equals one
//! under another, and whoever watches a session sees it move when the leader changes: the watch starts afresh.
//! Only sessions that joined in this term begin at 0.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use divider_core::{Beat, Group, Ledger, Op, Outcome, Refusal, SessionId};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::protocol::command::{Done, Step};

/// How long the leader of Raft keeps a group's leadership for its own sessions, after one of them was heard of.
pub(crate) const GRACE: Duration = Duration::from_millis(1500);

/// The beats of the current Raft term, on every member; they only count on the leader.
#[derive(Debug, Default)]
pub(crate) struct SessionBeats {
    inner: Mutex<Inner>,
    /// Wakes the renewals that wait for an expiring session's fate.
    decided: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    term: u64,
    /// When this term was first heard of here.
    since: Option<Instant>,
    groups: HashMap<Group, Beats>,
}

#[derive(Debug, Default)]
struct Beats {
    beats: HashMap<SessionId, u64>,
    /// Sessions that joined in this term.
    joined: BTreeSet<SessionId>,
    /// Sessions whose expiry is on its way, and how often.
    expiring: BTreeMap<SessionId, usize>,
    leader: u64,
    /// The sessions of this process, and when they were last heard of.
    local: HashMap<SessionId, Instant>,
}

impl Inner {
    fn enter(&mut self, term: u64) {
        if self.term < term {
            *self = Self { term, since: Some(Instant::now()), groups: HashMap::new() };
        }
    }

    fn base(&self) -> u64 {
        self.term << 32
    }

    fn beat(&self, group: &Group, session: SessionId) -> Beat {
        let beats = self.groups.get(group);
        if let Some(beat) = beats.and_then(|beats| beats.beats.get(&session)) {
            return Beat(*beat);
        }
        let joined = beats.is_some_and(|beats| beats.joined.contains(&session));
        Beat(if joined { 0 } else { self.base() })
    }
}

impl SessionBeats {
    /// An entry of Raft term `term` has been applied.
    pub(crate) fn applied(&self, term: u64, group: &Group, step: &Step, done: &Done, ledger: &Ledger) {
        let (joined, ended) = lives(step, done);
        let mut inner = self.inner.lock();
        inner.enter(term);
        if joined.is_empty() && !ended {
            return;
        }
        let in_term = inner.term == term;
        let beats = inner.groups.entry(group.clone()).or_default();
        if ended {
            beats.beats.retain(|session, _| ledger.is_alive(*session));
            beats.joined.retain(|session| ledger.is_alive(*session));
            beats.local.retain(|session, _| ledger.is_alive(*session));
        }
        for session in joined.into_iter().filter(|_| in_term) {
            // One that ended earlier in the same batch begins anew.
            beats.beats.remove(&session);
            if ledger.is_alive(session) {
                beats.joined.insert(session);
            }
        }
    }

    /// The state has been replaced as a whole: this member does not lead.
    pub(crate) fn snapshot_installed(&self) {
        let mut inner = self.inner.lock();
        inner.groups.clear();
    }

    /// Raises a beat under the leader of `term`. `None` while the session's expiry is on its way.
    pub(crate) fn renew(&self, term: u64, group: &Group, session: SessionId) -> Option<Beat> {
        let mut inner = self.inner.lock();
        inner.enter(term);
        let (base, current) = (inner.base(), inner.beat(group, session));
        let beats = inner.groups.entry(group.clone()).or_default();
        if beats.expiring.contains_key(&session) {
            return None;
        }
        let beat = current.0.max(base) + 1;
        beats.beats.insert(session, beat);
        Some(Beat(beat))
    }

    /// Forgets a session that turned out not to live.
    pub(crate) fn forget(&self, group: &Group, session: SessionId) {
        if let Some(beats) = self.inner.lock().groups.get_mut(group) {
            beats.beats.remove(&session);
        }
    }

    /// Waits until some expiry has been decided. Made before the check, so that none is missed. Cancel safe.
    pub(crate) fn decided(&self) -> tokio::sync::futures::Notified<'_> {
        self.decided.notified()
    }

    pub(crate) fn beat(&self, term: u64, group: &Group, session: SessionId) -> Beat {
        let mut inner = self.inner.lock();
        inner.enter(term);
        inner.beat(group, session)
    }

    /// Which of these sessions have been renewed by nobody in this term, and have not joined in it, with the beat at which
    /// they all stand: none where another term has begun.
    pub(crate) fn unheard(&self, term: u64, group: &Group, mut sessions: Vec<SessionId>) -> Vec<(SessionId, Beat)> {
        let mut inner = self.inner.lock();
        inner.enter(term);
        let beats = inner.groups.get(group);
        let heard = |session: &SessionId| {
            beats.is_some_and(|beats| beats.beats.contains_key(session) || beats.joined.contains(session))
        };
        sessions.retain(|session| inner.term == term && !heard(session));
        let beat = Beat(inner.base());
        sessions.into_iter().map(|session| (session, beat)).collect()
    }

    /// The term whose beats are kept here, at least `term`.
    pub(crate) fn enter(&self, term: u64) -> u64 {
        let mut inner = self.inner.lock();
        inner.enter(term);
        inner.term
    }

    /// Compares the beats of the expiries among `ops`, and marks those sessions that stood still as expiring. One refusal for each op
    /// that must not be proposed. `None` where another term has begun.
    ///
    /// A session that is not among the living ones that are `known` has no beat. The caller has applied everything of earlier terms, so that it can
    /// only be one that never joined, or joins at this moment.
    pub(crate) fn begin_expiries(
        &self,
        term: u64,
        group: &Group,
        ops: &[Op],
        known: &BTreeSet<SessionId>,
    ) -> Option<Vec<Option<Refusal>>> {
        let mut inner = self.inner.lock();
        if inner.term != term {
            return None;
        }
        let mut refused = Vec::with_capacity(ops.len());
        for op in ops {
            refused.push(match op {
                Op::Expire { session, beat, .. } if known.contains(session) && inner.beat(group, *session) != *beat => {
                    Some(Refusal::StillBeating)
                }
                Op::Expire { session, .. } => {
                    *inner.groups.entry(group.clone()).or_default().expiring.entry(*session).or_default() += 1;
                    None
                }
                _ => None,
            });
        }
        Some(refused)
    }

    /// The entry with these ops has been decided, one way or the other.
    pub(crate) fn end_expiries(&self, term: u64, group: &Group, ops: &[Op]) {
        let mut inner = self.inner.lock();
        if inner.term == term
            && let Some(beats) = inner.groups.get_mut(group)
        {
            for op in ops {
                if let Op::Expire { session, .. } = op
                    && let Some(count) = beats.expiring.get_mut(session)
                {
                    *count -= 1;
                    if *count == 0 {
                        beats.expiring.remove(session);
                    }
                }
            }
        }
        drop(inner);
        self.decided.notify_waiters();
    }

    /// The beat of the group's leadership.
    pub(crate) fn leader_beat(&self, term: u64, group: &Group, raise: bool) -> Beat {
        let mut inner = self.inner.lock();
        inner.enter(term);
        let base = inner.base();
        let beats = inner.groups.entry(group.clone()).or_default();
        beats.leader += u64::from(raise);
        Beat(base + beats.leader)
    }

    /// A session of this process has asked for leadership, or has it.
    pub(crate) fn heard_of_local(&self, term: u64, group: &Group, session: SessionId) {
        let mut inner = self.inner.lock();
        inner.enter(term);
        inner.groups.entry(group.clone()).or_default().local.insert(session, Instant::now());
    }

    /// Whether a session is of this process, and was heard of lately.
    pub(crate) fn hears_local(&self, term: u64, group: &Group, session: SessionId) -> bool {
        let mut inner = self.inner.lock();
        inner.enter(term);
        let heard = inner.groups.get(group).and_then(|beats| beats.local.get(&session));
        heard.is_some_and(|at| at.elapsed() < GRACE)
    }

    /// A session of this process gives its leadership up: others may have it at once.
    pub(crate) fn resigned(&self, group: &Group, session: SessionId) {
        if let Some(beats) = self.inner.lock().groups.get_mut(group) {
            beats.local.remove(&session);
        }
    }

    /// Whether a session of another process may lead: none of this one has asked for so long that none seems to be there.
    pub(crate) fn others_may_lead(&self, term: u64, group: &Group) -> bool {
        let mut inner = self.inner.lock();
        inner.enter(term);
        let fresh = |at: &Instant| at.elapsed() < GRACE;
        let young = inner.since.as_ref().is_some_and(fresh);
        !young && !inner.groups.get(group).is_some_and(|beats| beats.local.values().any(fresh))
    }
}

/// Sessions that an entry brings to life or ends, in order.
fn lives(step: &Step, done: &Done) -> (BTreeSet<SessionId>, bool) {
    let (Step::Apply { ops, .. }, Done::Applied(applied)) = (step, done) else { return Default::default() };
    let mut joined = BTreeSet::new();
    let mut ended = false;
    for (op, outcome) in ops.iter().zip(&applied.outcomes) {
        match op {
            Op::Join { session, .. } if *outcome == Outcome::Done => _ = joined.insert(*session),
            Op::End { .. } | Op::Expire { .. } if *outcome == Outcome::Done => ended = true,
            _ => {}
        }
    }
    (joined, ended)
}
