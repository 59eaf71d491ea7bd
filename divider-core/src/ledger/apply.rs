//! The rules, one function for each kind of op.

use super::{
    Session, Tx,
    entry::{Entry, Rare},
    holding,
    places::Place,
};
use crate::{
    format,
    ids::{Key, Revision, SessionId, Term, Token},
    limits,
    op::{Change, GroupView, Notice, Op, Outcome, Refusal, SessionView, Verdict},
    record::{Aside, Blob, Deaths, Declaration, Record, State, StopReason, Text, Work},
};

type Decision = Result<Outcome, Refusal>;

/// Where a record stands once ended owners are taken for none.
enum Ownership {
    /// No living owner. The token and the verdict are set where the last one's session has ended.
    Free {
        last: Option<(Token, Verdict)>,
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
            Op::Join { session, node, affinity, capacity, lease_ms, seen, reads } => {
                let view = SessionView {
                    session: *session,
                    node: node.clone(),
                    affinity: *affinity,
                    capacity: *capacity,
                    lease_ms: *lease_ms,
                    draining: false,
                    settled: false,
                    ended: None,
                    reads: *reads,
                    joined: self.ledger.token,
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
            Op::GiveUp { session, key, token, generation, pause_ms, failures, why } => {
                let stopping = self.owned(*session, key, *token)?;
                self.give_up(*session, key, *token, stopping, *generation, (*pause_ms, *failures, why))
            }
            Op::Complete { session, key, token, generation } => {
                let stopping = self.owned(*session, key, *token)?;
                self.finish(key, stopping, *generation, None)
            }
            Op::SetAside { session, key, token, generation, why } => {
                let stopping = self.owned(*session, key, *token)?;
                self.finish(key, stopping, *generation, Some(why))
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
            Op::Expire { term, session, verdict, .. } => {
                self.led(*term)?;
                self.alive(*session)?;
                self.end_session(*session, *verdict);
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
            Op::ResumeGrants { term } => {
                self.led(*term)?;
                let held = self.ledger.group.grants_held;
                self.set_group(GroupView { grants_held: false, ..self.ledger.group });
                Ok(if held { Outcome::Done } else { Outcome::Unchanged })
            }
            Op::Clear { term, key, blames_only } => {
                self.led(*term)?;
                self.clear(key, *blames_only)
            }
            Op::Absolve { key, token } => self.absolve(key, *token),
            Op::Advance { term, elapsed_ms } => {
                self.led(*term)?;
                let time_ms = self.ledger.group.time_ms + elapsed_ms;
                self.set_group(GroupView { time_ms, ..self.ledger.group });
                Ok(if *elapsed_ms > 0 { Outcome::Done } else { Outcome::Unchanged })
            }
            Op::Step { term, format } => {
                // Who leads decides when. That nobody is left behind is decided here, so an operator needs no term.
                if *term != Term(0) {
                    self.led(*term)?;
                }
                self.step(*format)
            }
            Op::Sender { session, serial } => {
                let session = self.alive(*session)?;
                if *serial <= session.serial {
                    return Err(Refusal::Superseded);
                }
                session.serial = *serial;
                Ok(Outcome::Unchanged)
            }
        }
    }

    fn add(&mut self, work: &Work) -> Decision {
        let Some(entry) = self.ledger.keys.get_mut(&work.key) else { return Ok(self.declare_new(work)) };
        let wanted_again = matches!(entry.state, State::Stopping { reason: StopReason::Removed, .. });
        // What is being removed is as good as gone.
        if work.how == Declaration::Once && !wanted_again {
            return Ok(Outcome::Unchanged);
        }
        let rare = entry.rare();
        let same_payload = rare.payload == work.payload;
        let same = same_payload
            && (entry.weight, entry.priority, rare.not_before_ms) == (work.weight, work.priority, work.not_before_ms);
        // Work that nobody has begun runs after this in any case.
        let begun = entry.state != State::Pending;
        let raised = !same_payload || wanted_again || begun && work.how == Declaration::Again;
        if same && !raised {
            return Ok(Outcome::Unchanged);
        }
        entry.generation = entry.generation.saturating_add(u32::from(raised));
        (entry.weight, entry.priority) = (work.weight, work.priority);
        entry.edit_rare(|rare| {
            rare.not_before_ms = work.not_before_ms;
            rare.payload = work.payload.clone();
            if !same_payload {
                rare.forgive();
            }
        });
        if let State::Stopping { reason, .. } = &mut entry.state {
            // The stop has been asked for and goes on; but the key stays.
            *reason = StopReason::Rebalanced;
        }
        match entry.state {
            State::Quarantined(_) if raised => self.free(&work.key),
            _ => {
                let view = entry.view();
                self.changes.push(Change::Key(view));
            }
        }
        Ok(Outcome::Done)
    }

    fn declare_new(&mut self, work: &Work) -> Outcome {
        if work.how == Declaration::Refresh {
            return Outcome::Unchanged;
        }
        self.ledger.declared += 1;
        let entry = Entry::from(Record::new(work.clone(), self.ledger.declared));
        self.changes.push(Change::Key(entry.view()));
        self.ledger.keys.insert(entry);
        Outcome::Done
    }

    /// Frees a key that was set aside, with a clean history.
    fn free(&mut self, key: &Key) {
        self.change_key(key, State::Pending, |entry| entry.edit_rare(Rare::forgive));
    }

    fn remove(&mut self, key: &Key) -> Decision {
        match self.ownership(key)? {
            Ownership::Free { .. } | Ownership::Quarantined => self.delete(key),
            Ownership::Owned { stopping: Some(StopReason::Removed), .. } => return Ok(Outcome::Unchanged),
            Ownership::Owned { session, token, stopping } => {
                self.set_state(key, State::Stopping { session, token, reason: StopReason::Removed });
                if stopping.is_none() {
                    self.stop(session, key.clone(), token, StopReason::Removed);
                }
            }
        }
        Ok(Outcome::Done)
    }

    fn retry(&mut self, key: &Key) -> Decision {
        let Ownership::Quarantined = self.ownership(key)? else { return Err(Refusal::NotQuarantined) };
        self.free(key);
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
        let written = self.ledger.group.format;
        if view.reads < written {
            return Err(Refusal::TooOld { needs: written });
        }
        if written == 0 {
            self.set_group(GroupView { format: view.reads, ..self.ledger.group });
        }
        self.changes.push(Change::Session(view.clone()));
        self.ledger.sessions.insert(view.session, Session::new(view));
        Ok(Outcome::Done)
    }

    fn end(&mut self, session: SessionId) -> Decision {
        self.alive(session)?;
        // Its node acts no more but lives: its keys are not to blame.
        self.end_session(session, Verdict::NONE);
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
            // How long it ran is not known here, so this says nothing about what deaths there were.
            if !started {
                entry.attempts = entry.attempts.saturating_sub(1);
            }
            if stopping.is_none() {
                // The owner let go unasked, so it should not get the key right back.
                entry.edit_rare(|rare| rare.avoid = Some(session));
            }
        });
        Ok(Outcome::Done)
    }

    fn give_up(
        &mut self,
        session: SessionId,
        key: &Key,
        token: Token,
        stopping: Option<StopReason>,
        generation: u32,
        (pause_ms, failures, why): (u64, u32, &Text),
    ) -> Decision {
        if stopping.is_some() {
            return Ok(Outcome::Unchanged);
        }
        let GroupView { time_ms, format, .. } = self.ledger.group;
        let reason = StopReason::Rebalanced;
        self.change_key(key, State::Stopping { session, token, reason }, |entry| {
            let current = entry.generation == generation;
            entry.edit_rare(|rare| {
                rare.avoid = Some(session);
                if current {
                    rare.failures = failures;
                    rare.retry_at_ms = if pause_ms > 0 { time_ms + pause_ms } else { 0 };
                    rare.why = kept(why, format);
                } else {
                    rare.forgive();
                }
            });
        });
        self.stop(session, key.clone(), token, reason);
        Ok(Outcome::Done)
    }

    /// The owner is done with the key: for good, or until a person looks at it.
    fn finish(&mut self, key: &Key, stopping: Option<StopReason>, generation: u32, aside: Option<&Text>) -> Decision {
        let current = self.ledger.keys.get(key).is_some_and(|entry| entry.generation == generation);
        let format = self.ledger.group.format;
        match aside {
            _ if stopping == Some(StopReason::Removed) => self.delete(key),
            // It was declared again, and that runs after this, from its beginning.
            _ if !current => self.change_key(key, State::Pending, |entry| {
                entry.attempts = 0;
                entry.edit_rare(|rare| {
                    rare.forgive();
                    rare.checkpoint = Blob::default();
                });
            }),
            None => self.delete(key),
            Some(why) => self.change_key(key, State::Quarantined(Aside::Failed), |entry| {
                entry.edit_rare(|rare| rare.why = kept(why, format));
            }),
        }
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
        if self.ledger.group.grants_held {
            return Err(Refusal::GrantsHeld);
        }
        let Ownership::Free { last } = self.ownership(key)? else { return Err(Refusal::NotFree) };
        let s = self.alive(session)?;
        if !s.view.takes_work() {
            return Err(Refusal::NotTaking);
        }
        if !s.has_room() {
            return Err(Refusal::NoRoom);
        }
        let token = Token(self.ledger.token.max(self.floor).0 + 1);
        self.ledger.token = token;
        self.change_key(key, State::Assigned { session, token }, |entry| {
            entry.attempts = entry.attempts.saturating_add(1);
            entry.edit_rare(|rare| {
                rare.avoid = None;
                // The pause is over, or the leader would not give it out.
                rare.retry_at_ms = 0;
                rare.settle(last);
            });
        });
        if let Some(holding) = self.ledger.keys.get(key).and_then(holding) {
            self.notify(session, Notice::Granted(holding));
        }
        Ok(Outcome::Granted(token))
    }

    fn revoke(&mut self, key: &Key, token: Token) -> Decision {
        match self.ownership(key)? {
            Ownership::Owned { session, token: current, stopping } if current == token => {
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
        match self.ownership(key)? {
            Ownership::Owned { session, token: current, stopping: Some(reason) } if current == token => {
                if reason == StopReason::Removed {
                    self.delete(key);
                } else {
                    self.set_state(key, State::Pending);
                }
                self.notify(session, Notice::Taken { key: key.clone(), token });
                Ok(Outcome::Done)
            }
            Ownership::Owned { token: current, .. } if current == token => Err(Refusal::NotStopping),
            // Its owner has ended, so nobody is left to confirm the removal. The state is compared, because the work may
            // be wanted again by now.
            Ownership::Free { .. } if self.was_removing(key, token) => {
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
        let Ownership::Free { last } = self.ownership(key)? else { return Err(Refusal::NotFree) };
        self.change_key(key, State::Quarantined(Aside::Deaths), |entry| entry.edit_rare(|rare| rare.settle(last)));
        Ok(Outcome::Done)
    }

    fn clear(&mut self, key: &Key, blames_only: bool) -> Decision {
        let entry = self.ledger.keys.get_mut(key).ok_or(Refusal::UnknownKey)?;
        let before = entry.rare().deaths;
        let after = if blames_only { Deaths { alone: 0, ..before } } else { Deaths::default() };
        if before == after || matches!(entry.state, State::Quarantined(_)) {
            return Ok(Outcome::Unchanged);
        }
        entry.edit_rare(|rare| rare.deaths = after);
        let view = entry.view();
        self.changes.push(Change::Key(view));
        Ok(Outcome::Done)
    }

    fn absolve(&mut self, key: &Key, token: Token) -> Decision {
        let ownership = self.ownership(key)?;
        let Some(entry) = self.ledger.keys.get_mut(key) else { return Err(Refusal::UnknownKey) };
        let (state, deaths) = (entry.state, entry.rare().deaths);
        // Not counted yet: the key is let go before it can be.
        let owed = matches!(ownership, Ownership::Free { .. }) && state.owner().is_some_and(|(_, last)| last == token);
        let removing = matches!(state, State::Stopping { reason: StopReason::Removed, .. });
        if owed && !removing {
            self.set_state(key, State::Pending);
            return Ok(Outcome::Done);
        }
        if deaths.count == 0 || deaths.token != token {
            return Ok(Outcome::Unchanged);
        }
        let less = Deaths { count: deaths.count - 1, alone: deaths.alone.saturating_sub(1), token: Token(0) };
        entry.edit_rare(|rare| rare.deaths = less);
        let freed = if state == State::Quarantined(Aside::Deaths) { State::Pending } else { state };
        self.set_state(key, freed);
        Ok(Outcome::Done)
    }

    fn step(&mut self, format: u16) -> Decision {
        let too_old = |s: &Session| s.is_alive() && s.view.reads < format;
        if self.ledger.sessions.values().any(too_old) {
            return Err(Refusal::TooOld { needs: format });
        }
        if format <= self.ledger.group.format {
            return Ok(Outcome::Unchanged);
        }
        self.set_group(GroupView { format, ..self.ledger.group });
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
        match self.ownership(key)? {
            Ownership::Owned { session: owner, token: current, stopping } if (owner, current) == (session, token) => {
                Ok(stopping)
            }
            _ => Err(Refusal::StaleToken),
        }
    }

    fn ownership(&self, key: &Key) -> Result<Ownership, Refusal> {
        let entry = self.ledger.keys.get(key).ok_or(Refusal::UnknownKey)?;
        let (session, token, stopping) = match entry.state {
            State::Pending => return Ok(Ownership::Free { last: None }),
            State::Quarantined(_) => return Ok(Ownership::Quarantined),
            State::Assigned { session, token } => (session, token, None),
            State::Stopping { session, token, reason } => (session, token, Some(reason)),
        };
        Ok(match self.ledger.sessions.get(&session).map(|s| s.view.ended) {
            Some(None) => Ownership::Owned { session, token, stopping },
            Some(Some(verdict)) => Ownership::Free { last: Some((token, verdict)) },
            // Cannot be: a session is remembered while a key is in its name.
            None => Ownership::Free { last: None },
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
        self.ledger.quarantined -= u64::from(matches!(before, State::Quarantined(_)));
        self.ledger.quarantined += u64::from(matches!(after, Some(State::Quarantined(_))));
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

impl Rare {
    /// Writes down what the end of the last ownership says, where it ended with its session.
    fn settle(&mut self, last: Option<(Token, Verdict)>) {
        if let Some((token, verdict)) = last {
            self.deaths = self.deaths.after(verdict, token);
        }
    }

    /// Whatever was held against the work of before is not held against what was declared since.
    fn forgive(&mut self) {
        (self.deaths, self.failures, self.retry_at_ms) = (Deaths::default(), 0, 0);
        self.why = Text::default();
    }
}

/// What is kept of a text in a group that is written in this format.
fn kept(why: &Text, written: u16) -> Text {
    if written >= format::KEEPS_WHY { why.clone() } else { Text::default() }
}
