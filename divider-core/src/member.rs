//! One node's side of the protocol, as a pure state machine: what it holds, what the program has been told of it, and
//! what is still to be told.
//!
//! # Why it is one queue per key and not a channel
//! The program reads at its own pace. If every start and stop were queued, a slow reader would be handed starts for keys
//! that are long gone, and the queue would grow without end. So nothing is queued but the key's place in the order; what
//! it is told is decided at the moment of reading, from how the key stands then.
//!
//! # Life of a key here
//! ```text
//! granted ─► Queued ──read──► Running ──told to──► StopQueued ──read──► Stopping ──confirm──► Confirming ─► gone
//!              │                                                                                  ▲
//!              └── revoked before it was read: the program never hears of it ─────────────────────┘
//! ```
//! When the session is lost, whatever was running goes to `lost`: it is told with reason `Lost` before any new start, and
//! the key is not started here again before the program has confirmed.

mod held;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;

use held::{Held, HeldKeys, Phase};

use crate::{
    divider::{Assigned, Assignment, Event, Stop},
    error::Error,
    ids::{Key, SessionId, Token},
    op::{Holding, Message, Notice, Op},
    record::StopReason,
    store::Holdings,
};

/// One node's side of the protocol, as a pure state machine: fed with messages, it says what to start and to stop.
#[derive(Debug, Default)]
pub struct Member {
    session: Option<SessionId>,
    /// Number of the last message that was applied.
    seq: u64,
    /// Takes no new work: a flush has begun.
    draining: bool,
    affinity: u32,
    held: HeldKeys,
    /// Keys of lost sessions whose stop the program has not confirmed.
    lost: HashMap<Key, Lost>,
    /// Unread events, in the order in which they came about.
    starts: BTreeMap<u64, Key>,
    stops: BTreeMap<u64, Key>,
    next: u64,
    /// How many of the unread stops say `Lost`.
    lost_unread: usize,
    /// While the truth is being read: keys that were let go in the meantime, which it may still contain.
    let_go: Option<HashMap<Key, Token>>,
    outbox: Vec<Op>,
    /// What the last lost session had.
    forfeited: Vec<(Key, Token)>,
    /// The last lost session itself.
    former: Option<SessionId>,
    /// What the program had been told to start and the store had not let go of when a session was lost, since a flush began.
    lost_in_flush: BTreeMap<(Key, Token), Assigned>,
}

#[derive(Debug)]
struct Lost {
    token: Token,
    /// Place of the unread stop; `None` once a stop has been read.
    unread: Option<u64>,
    /// No stop has been queued, because a completion is on its way that probably took effect; its answer decides.
    completing: bool,
    /// A grant of it has been declined, so that another node may run it meanwhile; the next one is held back.
    declined: bool,
}

/// What the store said of a key's work when it was granted; whoever speaks of the work says of which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// See [`Holding::generation`].
    pub generation: u32,
    /// See [`Holding::failures`].
    pub failures: u32,
}

/// Which events a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Starts alone.
    Starts,
    /// Stops alone.
    Stops,
    /// All, in order.
    Both,
}

/// What a confirmation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// Nothing is to be sent: the key was lost before.
    Local,
    /// This is to be applied; its end is to be told through [`Member::gone`].
    Send(Op),
}

impl Member {
    /// A node without a session.
    pub fn new(affinity: u32) -> Self {
        Self { affinity, ..Self::default() }
    }

    /// The current session, if there is one.
    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// Number of the last message that was applied.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The affinity, as last acknowledged.
    pub fn affinity(&self) -> u32 {
        self.affinity
    }

    /// How many keys it holds.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the program acts on nothing and has nothing to confirm, and nothing is on its way to the store either.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.lost.is_empty()
    }

    /// Whether a flush has begun.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Whether the program has still to read of a loss. A new session should wait for that, so that no key is given to a
    /// node that cannot start it.
    pub fn has_unread_loss(&self) -> bool {
        self.lost_unread > 0
    }

    /// Takes up a new session, which holds nothing yet.
    pub fn joined(&mut self, session: SessionId) {
        debug_assert!(self.session.is_none() && self.held.is_empty());
        self.session = Some(session);
        self.seq = 0;
    }

    /// The session is over, whoever found that out. Returns whether there was one.
    pub fn lose(&mut self) -> bool {
        let session = self.session.take();
        let had = session.is_some();
        self.former = session.or(self.former);
        self.let_go = None;
        self.outbox.clear();
        // Here and below: in order, so that the same history is told in the same way again.
        if had {
            self.forfeited.clear();
        }
        for (key, held) in self.held.take() {
            let token = held.holding.token;
            self.forfeited.push((key.clone(), token));
            if self.draining && held.was_started() {
                let lost = Assigned::new(key.clone(), token, true, Some(StopReason::Lost));
                self.lost_in_flush.insert((key.clone(), token), lost);
            }
            self.mourn(key, &held);
        }
        had
    }

    /// Moves a key that is not ours any more to `lost`, if the program had been told to start it and has not said that it
    /// has stopped.
    fn mourn(&mut self, key: Key, held: &Held) {
        let unread = match held.phase {
            Phase::Queued(place) => {
                self.starts.remove(&place);
                return;
            }
            Phase::HeldBack | Phase::Confirming(_) => return,
            Phase::Running => {
                self.next += 1;
                self.stops.insert(self.next, key.clone());
                Some(self.next)
            }
            Phase::StopQueued(place, _) => Some(place),
            Phase::Stopping(_) => None,
        };
        self.lost_unread += usize::from(unread.is_some());
        self.lost.insert(key, Lost { token: held.holding.token, unread, completing: false, declined: false });
    }

    /// Applies a message. False where one before it was missed: read the truth then.
    #[must_use]
    pub fn message(&mut self, message: Message) -> bool {
        if self.session.is_none() || message.seq <= self.seq {
            return true;
        }
        if message.notices.contains(&Notice::Ended) {
            self.lose();
            return true;
        }
        if message.seq != self.seq + 1 {
            return false;
        }
        self.seq = message.seq;
        for notice in message.notices {
            match notice {
                Notice::Granted(holding) => self.granted(holding),
                Notice::Stop { key, token, reason } => self.told_to_stop(&key, token, reason),
                Notice::Taken { key, token } => self.taken(&key, token),
                Notice::Ended => {}
            }
        }
        true
    }

    /// The truth is about to be read.
    pub fn reading(&mut self) {
        self.let_go = Some(HashMap::new());
    }

    /// The truth, which was asked for after [`reading`](Self::reading).
    pub fn read(&mut self, truth: Holdings) {
        let let_go = self.let_go.take().unwrap_or_default();
        if truth.seq < self.seq {
            return;
        }
        self.seq = truth.seq;
        let mut missing: BTreeMap<Key, Token> =
            self.held.iter().map(|held| (held.holding.key.clone(), held.holding.token)).collect();
        for holding in truth.holdings {
            if let_go.get(&holding.key).is_some_and(|token| *token >= holding.token) {
                continue;
            }
            missing.remove(&holding.key);
            let (key, token, stopping) = (holding.key.clone(), holding.token, holding.stopping);
            self.granted(holding);
            if let Some(reason) = stopping {
                self.told_to_stop(&key, token, reason);
            }
        }
        for (key, token) in missing {
            self.taken(&key, token);
        }
    }

    fn granted(&mut self, holding: Holding) {
        let old = self.held.get(&holding.key).map(|held| (held.holding.token, held.phase, held.completing));
        match old {
            Some((token, ..)) if token >= holding.token => return,
            // Our completion took effect and the work was declared again, before the answer reached us: the program should
            // hear the answer first. A stop that it has read it will confirm, and one that it has confirmed is over.
            Some((token, phase, true)) => {
                self.unqueue(&holding.key);
                if !matches!(phase, Phase::Confirming(_)) {
                    let completing = !matches!(phase, Phase::Stopping(_));
                    // The answer is not far, so the new grant waits for it.
                    let lost = Lost { token, unread: None, completing, declined: true };
                    self.lost.insert(holding.key.clone(), lost);
                }
            }
            // A newer grant under the same session: the older one was confirmed, or taken.
            Some((token, _, false)) => self.taken(&holding.key, token),
            None => {}
        }
        let key = holding.key.clone();
        let lost = self.lost.get_mut(&key).map(|lost| std::mem::replace(&mut lost.declined, true));
        let phase = if lost.is_some() { Phase::HeldBack } else { self.queue_start(key.clone()) };
        self.held.insert(Held { holding, phase, completing: false });
        // What was lost cannot be started here before the program has confirmed the loss. It goes to another node, or comes
        // back where no other takes it.
        if self.draining || self.affinity == 0 || lost == Some(false) {
            self.decline(&key);
        }
    }

    /// Gives back what cannot be started here yet: another node may take it by now.
    pub fn offer_held_back(&mut self) {
        self.decline_all(|phase| phase == Phase::HeldBack);
    }

    fn queue_start(&mut self, key: Key) -> Phase {
        self.next += 1;
        self.starts.insert(self.next, key);
        Phase::Queued(self.next)
    }

    /// Gives back a key whose start the program has not read.
    fn decline(&mut self, key: &Key) {
        let (Some(held), Some(session)) = (self.held.get(key), self.session) else { return };
        match held.phase {
            Phase::Queued(place) => drop(self.starts.remove(&place)),
            Phase::HeldBack => {}
            _ => return,
        }
        let token = held.holding.token;
        self.held.change(key, |held| held.phase = Phase::Confirming(None));
        self.outbox.push(Op::decline(session, key.clone(), token));
    }

    /// A key is to be stopped: the program hears of it, if it had been told to start it.
    pub fn told_to_stop(&mut self, key: &Key, token: Token, reason: StopReason) {
        let Some(held) = self.held.get(key).filter(|held| held.holding.token == token) else { return };
        match held.phase {
            Phase::Queued(_) | Phase::HeldBack => self.decline(key),
            Phase::Running => {
                self.next += 1;
                self.held.change(key, |held| held.phase = Phase::StopQueued(self.next, reason));
                self.stops.insert(self.next, key.clone());
            }
            Phase::StopQueued(..) | Phase::Stopping(_) | Phase::Confirming(_) => {}
        }
    }

    /// The key is not ours any more, without our doing.
    fn taken(&mut self, key: &Key, token: Token) {
        let Some(held) = self.held.get(key).filter(|held| held.holding.token == token) else { return };
        if held.completing || matches!(held.phase, Phase::Confirming(_)) {
            return; // Our own op took it; its answer is on the way.
        }
        if let Some(held) = self.held.remove(key) {
            self.mourn(key.clone(), &held);
        }
    }

    /// Whether an event can be read from the queue.
    pub fn readable(&self, queue: Queue) -> bool {
        let start = self.lost_unread == 0 && !self.starts.is_empty();
        let stop = !self.stops.is_empty();
        match queue {
            Queue::Starts => start,
            Queue::Stops => stop,
            Queue::Both => start || stop,
        }
    }

    /// The next start, if one may be read now.
    pub fn next_start(&mut self) -> Option<Assignment> {
        if self.lost_unread > 0 {
            return None;
        }
        loop {
            let (_, key) = self.starts.pop_first()?;
            self.held.change(&key, |held| held.phase = Phase::Running);
            if let Some(held) = self.held.get(&key) {
                return Some(held.holding.clone().into());
            }
            debug_assert!(false, "a queued start belongs to a held key");
        }
    }

    /// The next stop.
    pub fn next_stop(&mut self) -> Option<Stop> {
        loop {
            let (place, key) = self.stops.pop_first()?;
            if let Some(lost) = self.lost.get_mut(&key)
                && lost.unread == Some(place)
            {
                lost.unread = None;
                self.lost_unread -= 1;
                return Some(Stop::new(key, lost.token, StopReason::Lost));
            }
            if let Some(held) = self.held.get(&key)
                && let Phase::StopQueued(at, reason) = held.phase
                && at == place
            {
                let token = held.holding.token;
                self.held.change(&key, |held| held.phase = Phase::Stopping(reason));
                return Some(Stop::new(key, token, reason));
            }
            debug_assert!(false, "a queued stop belongs to a held or lost key");
        }
    }

    /// The next start or stop, in the order in which they came about.
    pub fn next_event(&mut self) -> Option<Event> {
        let place = |queue: &BTreeMap<u64, Key>| queue.first_key_value().map(|(place, _)| *place);
        let stop_first = match (place(&self.starts), place(&self.stops)) {
            (Some(start), Some(stop)) => stop < start || self.lost_unread > 0,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if stop_first { self.next_stop().map(Event::Stop) } else { self.next_start().map(Event::Start) }
    }

    /// The program has stopped a key.
    ///
    /// # Errors
    /// [`Error::NotStopping`], [`Error::StaleToken`], [`Error::UnknownKey`]; nothing has changed.
    pub fn confirm(&mut self, key: &Key, token: Token) -> Result<Confirmation, Error> {
        if let Some(lost) = self.lost.get(key)
            && lost.token == token
        {
            if lost.unread.is_some() {
                return Err(Error::NotStopping { key: key.clone() });
            }
            self.acknowledge(key);
            return Ok(Confirmation::Local);
        }
        let (session, held) = self.current(key, token)?;
        let Phase::Stopping(reason) = held.phase else { return Err(Error::NotStopping { key: key.clone() }) };
        self.held.change(key, |held| held.phase = Phase::Confirming(Some(reason)));
        Ok(Confirmation::Send(Op::confirm(session, key.clone(), token)))
    }

    /// Forgets a lost key, and lets a start of it that waited for this go ahead.
    fn acknowledge(&mut self, key: &Key) {
        if let Some(Lost { unread: Some(place), .. }) = self.lost.remove(key) {
            self.stops.remove(&place);
            self.lost_unread -= 1;
        }
        if self.held.get(key).is_some_and(|held| held.phase == Phase::HeldBack) {
            let phase = self.queue_start(key.clone());
            self.held.change(key, |held| held.phase = phase);
        }
    }

    /// The program wants to write something about a key, or to give it up: checks that it may.
    ///
    /// # Errors
    /// [`Error::StaleToken`], [`Error::UnknownKey`], [`Error::Lost`]; nothing has changed.
    pub fn acting(&self, key: &Key, token: Token) -> Result<SessionId, Error> {
        if self.lost.get(key).is_some_and(|lost| lost.token == token) {
            return Err(Error::Lost { key: key.clone() });
        }
        let (session, held) = self.current(key, token)?;
        match held.phase {
            Phase::Running | Phase::StopQueued(..) | Phase::Stopping(_) => Ok(session),
            _ => Err(Error::UnknownKey { key: key.clone() }),
        }
    }

    /// What a held key's work was when it was granted.
    pub fn declared(&self, key: &Key) -> Declared {
        self.held.get(key).map_or_else(Declared::default, |held| Declared {
            generation: held.holding.generation,
            failures: held.holding.failures,
        })
    }

    /// As [`acting`](Self::acting), for a completion that is about to be sent.
    ///
    /// # Errors
    /// As `acting`.
    pub fn completing(&mut self, key: &Key, token: Token) -> Result<SessionId, Error> {
        let session = self.acting(key, token)?;
        self.held.change(key, |held| held.completing = true);
        Ok(session)
    }

    /// The completion was refused: the key is as it was.
    pub fn not_completed(&mut self, key: &Key, token: Token) {
        if self.held.get(key).is_some_and(|held| held.holding.token == token) {
            self.held.change(key, |held| held.completing = false);
        }
        if let Some(lost) = self.lost.get_mut(key).filter(|lost| lost.token == token && lost.completing) {
            self.next += 1;
            *lost = Lost { token, unread: Some(self.next), completing: false, declined: true };
            self.stops.insert(self.next, key.clone());
            self.lost_unread += 1;
        }
    }

    /// The store has refused an op of ours because the key is not ours under this token. Whatever took it, and whether we
    /// are still to hear of that or not: nobody here may go on believing in it.
    pub fn disowned(&mut self, key: &Key, token: Token) {
        self.let_go(key, token);
        self.not_completed(key, token);
        self.taken(key, token);
    }

    /// What the last lost session had, each told once.
    pub fn take_forfeited(&mut self) -> Vec<(Key, Token)> {
        std::mem::take(&mut self.forfeited)
    }

    /// The last session that was lost.
    pub fn former(&self) -> Option<SessionId> {
        self.former
    }

    /// The store has acknowledged the end of a key, though perhaps so late that its session was lost meanwhile.
    pub fn acknowledged(&mut self, key: &Key, token: Token) {
        self.lost_in_flush.remove(&(key.clone(), token));
        self.gone(key, token);
    }

    /// The key is not ours any more, and the program is done with it, whether a confirmation or a completion took effect or not.
    pub fn gone(&mut self, key: &Key, token: Token) {
        self.let_go(key, token);
        if self.held.get(key).is_some_and(|held| held.holding.token == token) {
            self.unqueue(key);
            self.held.remove(key);
        }
        // It may have been lost while the answer was on its way; the program knows that it has ended.
        if self.lost.get(key).is_some_and(|lost| lost.token == token) {
            self.acknowledge(key);
        }
    }

    /// A truth that is on its way may be from before.
    fn let_go(&mut self, key: &Key, token: Token) {
        if let Some(let_go) = &mut self.let_go {
            let_go.insert(key.clone(), token);
        }
    }

    /// Takes a held key's unread event out of its queue.
    fn unqueue(&mut self, key: &Key) {
        match self.held.get(key).map(|held| held.phase) {
            Some(Phase::Queued(place)) => drop(self.starts.remove(&place)),
            Some(Phase::StopQueued(place, _)) => drop(self.stops.remove(&place)),
            _ => {}
        }
    }

    fn current(&self, key: &Key, token: Token) -> Result<(SessionId, &Held), Error> {
        let stale = || Error::StaleToken { key: key.clone(), given: token };
        match (self.held.get(key), self.session) {
            (Some(held), Some(session)) if held.holding.token == token => Ok((session, held)),
            (Some(_), _) => Err(stale()),
            (None, _) if self.lost.contains_key(key) => Err(stale()),
            (None, _) => Err(Error::UnknownKey { key: key.clone() }),
        }
    }

    /// Whether the program may act on the key, as far as this node knows; the lease is for the caller to check.
    pub fn is_current(&self, key: &Key, token: Token) -> bool {
        self.held.is_current(key, token)
    }

    /// The token under which the program may act on the key, as far as this node knows; the lease is for the caller to check.
    pub fn token(&self, key: &Key) -> Option<Token> {
        self.held.get(key).filter(|held| held.is_current()).map(|held| held.holding.token)
    }

    /// A flush begins: no start is read any more, and unread ones go back.
    pub fn drain(&mut self) {
        self.draining = true;
        self.decline_unread();
    }

    /// What runs and has not been asked to stop, in order.
    pub fn running(&self) -> BTreeMap<Key, Token> {
        let running = self.held.iter().filter(|held| held.phase == Phase::Running);
        running.map(|held| (held.holding.key.clone(), held.holding.token)).collect()
    }

    /// The store has acknowledged an affinity. At 0, unread starts go back.
    pub fn set_affinity(&mut self, affinity: u32) {
        self.affinity = affinity;
        if affinity == 0 {
            self.decline_unread();
        }
    }

    fn decline_unread(&mut self) {
        self.decline_all(|phase| matches!(phase, Phase::Queued(_) | Phase::HeldBack));
    }

    fn decline_all(&mut self, of: impl Fn(Phase) -> bool) {
        let held = self.held.iter().filter(|held| of(held.phase));
        let keys: BTreeSet<Key> = held.map(|held| held.holding.key.clone()).collect();
        for key in keys {
            self.decline(&key);
        }
    }

    /// What it holds, without what it is giving back unread. O(1) when nothing has changed since the last call.
    pub fn assigned(&mut self) -> Arc<[Assigned]> {
        self.held.shown()
    }

    /// What the program has still to confirm or to give back, and what the store has not taken a confirmation of: all that it
    /// holds, and what it has lost.
    pub fn unconfirmed(&mut self) -> Vec<Assigned> {
        let mut all = self.assigned().to_vec();
        all.extend(self.held.iter().filter_map(Held::confirming));
        let lost = self.lost.iter().filter(|(_, lost)| !lost.completing);
        let lost = lost.map(|(key, lost)| Assigned::new(key.clone(), lost.token, true, Some(StopReason::Lost)));
        all.extend(lost);
        all
    }

    /// What was lost since a flush began.
    pub fn lost_in_flush(&self) -> Vec<Assigned> {
        self.lost_in_flush.values().cloned().collect()
    }

    /// What is to be applied because of what happened: confirmations of starts that were never read.
    pub fn take_outbox(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.outbox)
    }
}

#[cfg(test)]
mod tests;
