//! The rules, one function for each kind of op.

use super::{Session, Tx, entry::Entry, holding, places::Place};
use crate::{
    Blob, Change, GroupView, Key, Notice, Op, Outcome, Record, Refusal, Revision, SessionId, SessionView, State,
    StopReason, Term, Token, Work, limits,
};

type Decision = Result<Outcome, Refusal>;

/// Where a record stands once ended owners are taken for none.
enum Standing {
    /// No living owner; `blame` is set where the last one died, and says whether soon after the grant.
    Free {
        blame: Option<bool>,
    },
    /// A living session owns it.
    Owned {
        session: SessionId,
        token: Token,
        stopping: Option<StopReason>,
    },
    Quarantined,
}

impl Tx<'_> {
    pub(super) fn one(&mut self, op: &Op) -> Outcome {
        self.decide(op).unwrap_or_else(Outcome::Refused)
    }

    fn decide(&mut self, op: &Op) -> Decision {
        match op {
            Op::Add(work) => self.add(work),
            Op::Remove { key } => self.remove(key),
            Op::Retry { key } => self.retry(key),
            Op::Rebalance => self.rebalance(),
            Op::Join { session, node, affinity, capacity, lease_ms, seen } => {
                let view = SessionView {
                    session: *session,
                    node: node.clone(),
                    affinity: *affinity,
                    capacity: *capacity,
                    lease_ms: *lease_ms,
                    draining: false,
                    settled: false,
                    ended: None,
                };
                self.join(view, *seen)
            }
            Op::SetAffinity { session, number, affinity } => {
                self.change_affinity(*session, *number, |_| i64::from(*affinity))
            }
            Op::AlterAffinity { session, number, delta } => {
                self.change_affinity(*session, *number, |affinity| affinity.saturating_add(*delta))
            }
            Op::Drain { session } => self.change_session(*session, |view| view.draining = true),
            Op::End { session } => self.end(*session),
            Op::Confirm { session, key, token, started } => self.confirm(*session, key, *token, *started),
            Op::GiveUp { session, key, token, not_before_ms } => self.give_up(*session, key, *token, *not_before_ms),
            Op::Complete { session, key, token } => {
                self.owned(*session, key, *token)?;
                self.delete(key);
                Ok(Outcome::Done)
            }
            Op::Checkpoint { session, key, token, bytes } => self.checkpoint(*session, key, *token, bytes),
            Op::Assign { term, key, session } => {
                self.led(*term)?;
                self.assign(key, *session)
            }
            Op::Revoke { term, key, token } => {
                self.led(*term)?;
                self.revoke(key, *token)
            }
            Op::Force { term, key, token } => {
                self.led(*term)?;
                self.force(key, *token)
            }
            // The beat is compared by whoever keeps the beats, before the op comes here.
            Op::Expire { term, session, healthy_below, .. } => {
                self.led(*term)?;
                self.alive(*session)?;
                self.end_session(*session, *healthy_below);
                Ok(Outcome::Done)
            }
            Op::Quarantine { term, key } => {
                self.led(*term)?;
                self.quarantine(key)
            }
            Op::Settle { term, session } => {
                self.led(*term)?;
                self.change_session(*session, |view| view.settled = true)
            }
            Op::EndHold { term } => {
                self.led(*term)?;
                let held = self.ledger.group.hold;
                self.set_group(GroupView { hold: false, ..self.ledger.group });
                Ok(if held { Outcome::Done } else { Outcome::Unchanged })
            }
        }
    }

    fn add(&mut self, work: &Work) -> Decision {
        let Some(entry) = self.ledger.keys.get_mut(&work.key) else {
            let entry = Entry::from(Record::new(work.clone()));
            self.changes.push(Change::Key(entry.view()));
            self.ledger.keys.insert(entry);
            return Ok(Outcome::Done);
        };
        let rare = entry.rare();
        let wanted_again = matches!(entry.state, State::Stopping { reason: StopReason::Removed, .. });
        let same = (entry.weight, entry.priority) == (work.weight, work.priority)
            && (rare.not_before_ms, &rare.payload) == (work.not_before_ms, &work.payload);
        if same && !wanted_again {
            return Ok(Outcome::Unchanged);
        }
        (entry.weight, entry.priority) = (work.weight, work.priority);
        entry.edit_rare(|rare| {
            rare.not_before_ms = work.not_before_ms;
            rare.payload = work.payload.clone();
        });
        if let State::Stopping { reason, .. } = &mut entry.state {
            // The stop has been asked for and goes on; but the key stays.
            *reason = StopReason::Rebalanced;
        }
        let view = entry.view();
        self.changes.push(Change::Key(view));
        Ok(Outcome::Done)
    }

    fn remove(&mut self, key: &Key) -> Decision {
        match self.standing(key)? {
            Standing::Free { .. } | Standing::Quarantined => self.delete(key),
            Standing::Owned { stopping: Some(StopReason::Removed), .. } => return Ok(Outcome::Unchanged),
            Standing::Owned { session, token, stopping } => {
                self.set_state(key, State::Stopping { session, token, reason: StopReason::Removed });
                if stopping.is_none() {
                    self.stop(session, key.clone(), token, StopReason::Removed);
                }
            }
        }
        Ok(Outcome::Done)
    }

    fn retry(&mut self, key: &Key) -> Decision {
        let Standing::Quarantined = self.standing(key)? else { return Err(Refusal::NotQuarantined) };
        self.change_key(key, State::Pending, |entry| entry.fates = 0);
        Ok(Outcome::Done)
    }

    fn rebalance(&mut self) -> Decision {
        let settled = self.ledger.sessions.values().filter(|s| s.is_alive() && s.view.settled);
        let settled: Vec<SessionId> = settled.map(|s| s.view.session).collect();
        for session in &settled {
            self.change_session(*session, |view| view.settled = false)?;
        }
        Ok(if settled.is_empty() { Outcome::Unchanged } else { Outcome::Done })
    }

    fn join(&mut self, view: SessionView, seen: Revision) -> Decision {
        if let Some(known) = self.ledger.sessions.get(&view.session) {
            return if known.is_alive() { Ok(Outcome::Unchanged) } else { Err(Refusal::SessionEnded) };
        }
        if seen < self.ledger.ended || seen > self.ledger.revision {
            return Err(Refusal::Late);
        }
        self.changes.push(Change::Session(view.clone()));
        self.ledger.sessions.insert(view.session, Session::new(view));
        Ok(Outcome::Done)
    }

    fn end(&mut self, session: SessionId) -> Decision {
        self.alive(session)?;
        // Its node acts no more but lives: its keys are not to blame.
        self.end_session(session, Token::ABOVE_ALL);
        Ok(Outcome::Done)
    }

    fn change_affinity(&mut self, session: SessionId, number: u64, change: impl FnOnce(i64) -> i64) -> Decision {
        let s = self.alive(session)?;
        if number <= s.altered {
            return Ok(Outcome::Affinity(s.view.affinity));
        }
        let wanted = change(i64::from(s.view.affinity));
        match u32::try_from(wanted) {
            Ok(affinity) if affinity <= limits::MAX_AFFINITY => {
                s.altered = number;
                self.change_session(session, |view| view.affinity = affinity)?;
                Ok(Outcome::Affinity(affinity))
            }
            _ => Err(Refusal::AffinityOutOfRange(wanted)),
        }
    }

    fn confirm(&mut self, session: SessionId, key: &Key, token: Token, started: bool) -> Decision {
        let stopping = self.owned(session, key, token)?;
        if stopping == Some(StopReason::Removed) {
            self.delete(key);
            return Ok(Outcome::Done);
        }
        self.change_key(key, State::Pending, |entry| {
            if started {
                entry.fates <<= 1;
            } else {
                entry.attempts = entry.attempts.saturating_sub(1);
            }
            if stopping.is_none() {
                // The owner let go unasked, so it should not get the key right back.
                entry.edit_rare(|rare| rare.avoid = Some(session));
            }
        });
        Ok(Outcome::Done)
    }

    fn give_up(&mut self, session: SessionId, key: &Key, token: Token, not_before_ms: u64) -> Decision {
        if self.owned(session, key, token)?.is_some() {
            return Ok(Outcome::Unchanged);
        }
        let reason = StopReason::Rebalanced;
        self.change_key(key, State::Stopping { session, token, reason }, |entry| {
            entry.edit_rare(|rare| {
                rare.avoid = Some(session);
                rare.not_before_ms = rare.not_before_ms.max(not_before_ms);
            });
        });
        self.stop(session, key.clone(), token, reason);
        Ok(Outcome::Done)
    }

    fn checkpoint(&mut self, session: SessionId, key: &Key, token: Token, bytes: &Blob) -> Decision {
        self.owned(session, key, token)?;
        // Nobody but the next owner reads a checkpoint, and it gets it with its grant: so this is no change of the group.
        if let Some(entry) = self.ledger.keys.get_mut(key) {
            entry.edit_rare(|rare| rare.checkpoint = bytes.clone());
        }
        Ok(Outcome::Done)
    }

    fn assign(&mut self, key: &Key, session: SessionId) -> Decision {
        if self.ledger.group.hold {
            return Err(Refusal::Holding);
        }
        let Standing::Free { blame } = self.standing(key)? else { return Err(Refusal::NotFree) };
        let s = self.alive(session)?;
        if !s.view.takes_work() {
            return Err(Refusal::NotTaking);
        }
        if !s.has_room() {
            return Err(Refusal::NoRoom);
        }
        let token = Token(self.ledger.token.0 + 1);
        self.ledger.token = token;
        self.change_key(key, State::Assigned { session, token }, |entry| {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.edit_rare(|rare| rare.avoid = None);
            settle_blame(&mut entry.fates, blame);
        });
        if let Some(holding) = self.ledger.keys.get(key).and_then(holding) {
            self.notify(session, Notice::Granted(holding));
        }
        Ok(Outcome::Granted(token))
    }

    fn revoke(&mut self, key: &Key, token: Token) -> Decision {
        match self.standing(key)? {
            Standing::Owned { session, token: current, stopping } if current == token => {
                if stopping.is_some() {
                    return Ok(Outcome::Unchanged);
                }
                self.set_state(key, State::Stopping { session, token, reason: StopReason::Rebalanced });
                self.stop(session, key.clone(), token, StopReason::Rebalanced);
                Ok(Outcome::Done)
            }
            _ => Err(Refusal::StaleToken),
        }
    }

    fn force(&mut self, key: &Key, token: Token) -> Decision {
        match self.standing(key)? {
            Standing::Owned { session, token: current, stopping: Some(reason) } if current == token => {
                if reason == StopReason::Removed {
                    self.delete(key);
                } else {
                    self.set_state(key, State::Pending);
                }
                self.notify(session, Notice::Taken { key: key.clone(), token });
                Ok(Outcome::Done)
            }
            Standing::Owned { token: current, .. } if current == token => Err(Refusal::NotStopping),
            // Its owner has ended, so nobody is left to confirm the removal. The state is compared, because the work may
            // be wanted again by now.
            Standing::Free { .. } if self.was_removing(key, token) => {
                self.delete(key);
                Ok(Outcome::Done)
            }
            _ => Err(Refusal::StaleToken),
        }
    }

    fn was_removing(&self, key: &Key, token: Token) -> bool {
        let state = self.ledger.keys.get(key).map(|entry| entry.state);
        matches!(state, Some(State::Stopping { token: held, reason: StopReason::Removed, .. }) if held == token)
    }

    fn quarantine(&mut self, key: &Key) -> Decision {
        let Standing::Free { blame } = self.standing(key)? else { return Err(Refusal::NotFree) };
        self.change_key(key, State::Quarantined, |entry| settle_blame(&mut entry.fates, blame));
        Ok(Outcome::Done)
    }

    fn led(&self, term: Term) -> Result<(), Refusal> {
        if self.ledger.group.term == term { Ok(()) } else { Err(Refusal::OldTerm) }
    }

    fn alive(&mut self, session: SessionId) -> Result<&mut Session, Refusal> {
        self.ledger.sessions.get_mut(&session).filter(|s| s.is_alive()).ok_or(Refusal::SessionEnded)
    }

    /// Checks that the living session owns the key under the token, and says whether it has been asked to stop it.
    fn owned(&mut self, session: SessionId, key: &Key, token: Token) -> Result<Option<StopReason>, Refusal> {
        self.alive(session)?;
        match self.standing(key)? {
            Standing::Owned { session: owner, token: current, stopping } if (owner, current) == (session, token) => {
                Ok(stopping)
            }
            _ => Err(Refusal::StaleToken),
        }
    }

    fn standing(&self, key: &Key) -> Result<Standing, Refusal> {
        let entry = self.ledger.keys.get(key).ok_or(Refusal::UnknownKey)?;
        let (session, token, stopping) = match entry.state {
            State::Pending => return Ok(Standing::Free { blame: None }),
            State::Quarantined => return Ok(Standing::Quarantined),
            State::Assigned { session, token } => (session, token, None),
            State::Stopping { session, token, reason } => (session, token, Some(reason)),
        };
        Ok(match self.ledger.sessions.get(&session).map(|s| s.view.ended) {
            Some(None) => Standing::Owned { session, token, stopping },
            Some(Some(healthy_below)) => Standing::Free { blame: Some(token >= healthy_below) },
            // Cannot be: a session is remembered while a key is in its name.
            None => Standing::Free { blame: None },
        })
    }

    /// Changes a living session, and says so if it made a difference.
    fn change_session(&mut self, session: SessionId, change: impl FnOnce(&mut SessionView)) -> Decision {
        let s = self.alive(session)?;
        let before = s.view.clone();
        change(&mut s.view);
        if s.view == before {
            return Ok(Outcome::Unchanged);
        }
        let after = s.view.clone();
        self.changes.push(Change::Session(after));
        Ok(Outcome::Done)
    }

    /// Puts a key into a state, keeps the sessions' and the group's counts right, and says so.
    fn set_state(&mut self, key: &Key, state: State) {
        self.change_key(key, state, |_| {});
    }

    /// As [`set_state`](Self::set_state), with a change of what else there is of the key.
    fn change_key(&mut self, key: &Key, state: State, change: impl FnOnce(&mut Entry)) {
        let Some(place) = self.ledger.keys.place(key) else { return };
        let Some(entry) = self.ledger.keys.at_mut(place) else { return };
        change(entry);
        let before = std::mem::replace(&mut entry.state, state);
        self.changes.push(Change::Key(entry.view()));
        self.recount(place, before, Some(state));
        self.let_go(before, Some(state));
    }

    fn delete(&mut self, key: &Key) {
        let Some(place) = self.ledger.keys.place(key) else { return };
        let Some(entry) = self.ledger.keys.remove(place) else { return };
        self.recount(place, entry.state, None);
        self.changes.push(Change::KeyGone(key.clone()));
        self.let_go(entry.state, None);
    }

    fn recount(&mut self, place: Place, before: State, after: Option<State>) {
        self.ledger.quarantined -= u64::from(before == State::Quarantined);
        self.ledger.quarantined += u64::from(after == Some(State::Quarantined));
        if let Some(s) = before.owner().and_then(|(session, _)| self.ledger.sessions.get_mut(&session)) {
            s.keys.remove(&place);
            s.stopping -= u64::from(matches!(before, State::Stopping { .. }));
        }
        if let Some(state) = after
            && let Some(s) = state.owner().and_then(|(session, _)| self.ledger.sessions.get_mut(&session))
        {
            s.keys.insert(place);
            s.stopping += u64::from(matches!(state, State::Stopping { .. }));
        }
    }

    /// After a key has left an owner's name: an ended owner may now be forgotten.
    fn let_go(&mut self, before: State, after: Option<State>) {
        let owner = |state: State| state.owner().map(|(session, _)| session);
        if let Some(session) = owner(before)
            && after.and_then(owner) != Some(session)
        {
            self.forget_if_empty(session);
        }
    }
}

/// Writes down how the last ownership ended, where it ended with its session.
fn settle_blame(fates: &mut u32, blame: Option<bool>) {
    if let Some(died) = blame {
        *fates = *fates << 1 | u32::from(died);
    }
}
