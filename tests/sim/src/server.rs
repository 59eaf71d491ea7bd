//! The store of a simulation: the real [`Ledger`], in a server that can fail, forget and begin a new lineage; and beside it
//! a second, much simpler book of who owns what, which every answer of the ledger must agree with.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use divider_core::{
    Applied, Batch, Beat, Claim, Cursor, Effects, Hint, Holdings, Key, LeaderView, Ledger, Op, Outcome, Page,
    PollReply, Refusal, Revision, SessionId, Stats, StoreError, Term, Token, Topic, sim::SessionBeats,
};

/// Every new lineage lifts all numbers by this much.
const LEAP: u64 = 1_000_000;

/// What a new lineage begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All data, as after a fail-over that lost nothing.
    Nothing,
    /// A backup.
    SinceBackup,
    /// No data at all.
    Everything,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Server {
    ledger: Ledger,
    backup: Ledger,
    beats: SessionBeats,
    leader_beat: Beat,
    /// What this lineage's revisions are higher by than the ledger's own.
    lift: u64,
    floor: u64,
    /// Subscribers, by number.
    subscribers: BTreeMap<u64, Topic>,
    subscribed: u64,
    /// What is to be sent to subscribers.
    pub hints: Vec<(u64, Hint)>,
    /// Subscribers that have been cut off.
    pub cut: Vec<u64>,
    book: Book,
    /// The first disagreement between the ledger and the book.
    pub disagreement: Option<String>,
    /// Grants so far.
    pub grants: u64,
    /// What time it is, in nanoseconds.
    pub now: u64,
    /// Whether it tells new leaders for how long it has not heard of each session, as a store with a clock of its own does.
    pub tells_silences: bool,
    /// When each living session joined or was renewed last.
    heard: BTreeMap<SessionId, u64>,
    /// From when each session's lease runs by its own node's reckoning, and how long it is.
    leases: BTreeMap<SessionId, (u64, u64)>,
    /// Sessions that their own node's word has ended before their lease was over.
    pub ended: Vec<SessionId>,
    /// Sessions that their own nodes have called over, and that were not there, or no more.
    over: BTreeSet<SessionId>,
    /// One of them has begun all the same, by a copy of its join that was late: nobody is behind it.
    haunted: bool,
    /// How many keys a page of a scan has; all that the ledger gives if it is 0.
    pub page: usize,
    /// How many batches the feed reaches back; all that the ledger keeps if it is 0.
    pub reach: u64,
    /// Work that is ordered again and again.
    pub orders: BTreeMap<Key, Orders>,
}

/// What was ordered of a key whose payload is the number of the order.
#[derive(Debug, Default)]
pub struct Orders {
    /// The last token that had been issued when each order was taken in for the first time.
    pub taken: BTreeMap<u64, Token>,
    /// The orders as they were taken in, for as long as they were not acknowledged: one that is sent again for want of an
    /// answer comes after what was taken in meanwhile, but a copy of one that was answered comes after nothing.
    pub sequence: Vec<u64>,
    /// Those whose caller has been told that they were taken in.
    pub acknowledged: BTreeSet<u64>,
    /// The order that was taken in last.
    last: u64,
}

/// The number of an order, as it stands in the payload.
pub fn order_of(payload: &[u8]) -> u64 {
    payload.try_into().map_or(0, u64::from_be_bytes)
}

/// Parts of a lease, in hundredths, after which it is over by the slowest clock, counted from the sending of the last renewal that was answered in time.
const LEASE_OVER: u64 = 97;

/// The same until which every clock says that it runs: an answer that comes later revives nothing.
const LEASE_RUNS: u64 = 92;

/// Who owns what, by the outcomes of the ops alone.
#[derive(Debug, Default)]
struct Book {
    alive: BTreeSet<SessionId>,
    owners: BTreeMap<Key, (SessionId, Token)>,
    highest: Token,
    term: Term,
    hold: bool,
}

impl Book {
    /// Writes down what became of an op, or says what is wrong with it.
    fn write(&mut self, op: &Op, outcome: &Outcome) -> Result<(), &'static str> {
        let rule = |holds: bool, rule: &'static str| if holds { Ok(()) } else { Err(rule) };
        if matches!(outcome, Outcome::Refused(_)) {
            return Ok(());
        }
        if let Op::Assign { term, .. }
        | Op::Revoke { term, .. }
        | Op::Force { term, .. }
        | Op::Expire { term, .. }
        | Op::Quarantine { term, .. }
        | Op::Settle { term, .. }
        | Op::ResumeGrants { term } = op
        {
            rule(*term == self.term, "an op of an old term changes nothing")?;
        }
        match op {
            Op::Join { session, .. } => {
                self.alive.insert(*session);
            }
            Op::End { session } | Op::Expire { session, .. } => {
                self.alive.remove(session);
            }
            Op::Assign { key, session, .. } => {
                let Outcome::Granted(token) = outcome else { return Err("a grant has a token") };
                rule(*token > self.highest, "tokens rise and are never used again")?;
                rule(!self.hold, "nothing is granted while grants are held back")?;
                rule(self.alive.contains(session), "a grant goes to a living session")?;
                let owner = self.owners.get(key).filter(|(owner, _)| self.alive.contains(owner));
                rule(owner.is_none(), "a key that a living session owns is not granted")?;
                self.highest = *token;
                self.owners.insert(key.clone(), (*session, *token));
            }
            Op::Confirm { session, key, token, .. } | Op::Complete { session, key, token, .. } => {
                rule(self.owns(*session, key, *token), "only the owner's word about its own token frees a key")?;
                self.owners.remove(key);
            }
            Op::GiveUp { session, key, token, .. } | Op::Checkpoint { session, key, token, .. } => {
                rule(self.owns(*session, key, *token), "a stale give-up or checkpoint changes nothing")?;
            }
            Op::Revoke { key, token, .. } => {
                rule(self.owners.get(key).is_some_and(|(_, held)| held == token), "a stale revoke changes nothing")?;
            }
            Op::Force { key, token, .. } => {
                // No time limit for stops is set in simulations, so only an ended owner's key may be taken.
                let owner = self.owners.get(key);
                let free = owner.is_some_and(|(owner, held)| held == token && !self.alive.contains(owner));
                rule(free, "no key is taken from a living owner")?;
                self.owners.remove(key);
            }
            Op::Quarantine { key, .. } => {
                let owner = self.owners.remove(key).filter(|(owner, _)| self.alive.contains(owner));
                rule(owner.is_none(), "no key is set aside while a living session owns it")?;
            }
            // A free key ends at once. Its last owner may come back: a late copy of its `Join` may revive a session that the
            // ledger has forgotten.
            Op::Remove { key } => self.owners.retain(|owned, (owner, _)| owned != key || self.alive.contains(owner)),
            Op::ResumeGrants { .. } => self.hold = false,
            _ => {}
        }
        Ok(())
    }

    fn owns(&self, session: SessionId, key: &Key, token: Token) -> bool {
        self.alive.contains(&session) && self.owners.get(key) == Some(&(session, token))
    }
}

impl Server {
    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn revision(&self) -> Revision {
        Revision(self.ledger.revision().0 + self.lift)
    }

    fn lifted(&self, batch: Batch) -> Batch {
        Batch { revision: Revision(batch.revision.0 + self.lift), ..batch }
    }

    fn tell(&mut self, effects: Effects) -> Vec<Outcome> {
        for (session, message) in effects.messages {
            let to = self.subscribers.iter().filter(|(_, topic)| **topic == Topic::Session(session));
            let hints = to.map(|(number, _)| (*number, Hint::Message(message.clone())));
            self.hints.extend(hints);
        }
        if let Some(batch) = effects.batch {
            let batch = self.lifted(batch);
            let to = self.subscribers.iter().filter(|(_, topic)| **topic == Topic::Group);
            let hints = to.map(|(number, _)| (*number, Hint::Batch(batch.clone())));
            self.hints.extend(hints);
        }
        effects.outcomes
    }

    fn tell_leader_gone(&mut self) {
        let to = self.subscribers.iter().filter(|(_, topic)| matches!(topic, Topic::Session(_)));
        self.hints.extend(to.map(|(number, _)| (*number, Hint::LeaderGone)));
    }

    fn disagree(&mut self, rule: &str, about: &dyn std::fmt::Debug) {
        if self.disagreement.is_none() {
            self.disagreement = Some(format!("in the ledger: {rule}; {about:?}"));
        }
    }

    /// See [`divider_core::Store::apply`].
    pub fn apply(&mut self, ops: &[Op]) -> Applied {
        let led = self.ledger.group().leader;
        let refused: Vec<Option<Refusal>> = ops.iter().map(|op| self.beats.check(op).err()).collect();
        let mut allowed: Vec<Op> =
            ops.iter().zip(&refused).filter(|(_, refused)| refused.is_none()).map(|(op, _)| op.clone()).collect();
        for op in &mut allowed {
            if let Op::Join { seen, .. } = op {
                seen.0 = seen.0.saturating_sub(self.lift);
            }
        }
        let effects = self.ledger.apply(&allowed, Token(self.floor));
        let mut applied = self.tell(effects).into_iter();
        let outcomes: Vec<Outcome> = refused
            .into_iter()
            .filter_map(|refused| refused.map(Outcome::Refused).or_else(|| applied.next()))
            .collect();
        for (op, outcome) in ops.iter().zip(&outcomes) {
            self.grants += u64::from(matches!(outcome, Outcome::Granted(_)));
            match (op, outcome) {
                (Op::Join { session, .. }, Outcome::Done) => {
                    self.heard.insert(*session, self.now);
                    self.haunted |= self.over.contains(session);
                }
                (Op::End { session }, Outcome::Done) => self.ends(*session),
                (Op::End { session }, Outcome::Refused(_)) => _ = self.over.insert(*session),
                (Op::Add(work), outcome) if !matches!(outcome, Outcome::Refused(_)) => {
                    self.ordered(&work.key, &work.payload)
                }
                (Op::Assign { key, .. }, Outcome::Granted(_)) => self.look_at_order(key),
                _ => {}
            }
            if let Err(rule) = self.book.write(op, outcome) {
                self.disagree(rule, op);
            }
        }
        if led.is_some() && self.ledger.group().leader.is_none() {
            self.tell_leader_gone();
        }
        let ledger = &self.ledger;
        self.beats.retain(|session| ledger.is_alive(session));
        self.heard.retain(|session, _| ledger.is_alive(*session));
        self.subscribers.retain(|_, topic| match topic {
            Topic::Session(session) => ledger.is_alive(*session),
            Topic::Group => true,
        });
        Applied { outcomes, revision: self.revision() }
    }

    /// A session ends by its own node's word. Where its lease is over anyway, that tells nobody anything new.
    fn ends(&mut self, session: SessionId) {
        let runs = |(from, lease): (u64, u64)| self.now < from + lease * LEASE_OVER / 100;
        if self.leases.remove(&session).is_some_and(runs) {
            self.ended.push(session);
        }
    }

    /// A node tries to join: its lease runs from the first try.
    pub fn joins(&mut self, session: SessionId, lease: Duration) {
        let lease = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        self.leases.entry(session).or_insert((self.now, lease));
    }

    /// A node has been answered a renewal that left it at `sent`. One that comes when the lease is over revives nothing.
    pub fn renewed(&mut self, session: SessionId, sent: u64, now: u64) {
        if let Some((from, lease)) = self.leases.get_mut(&session)
            && now < *from + *lease * LEASE_RUNS / 100
        {
            *from = sent;
        }
    }

    fn ordered(&mut self, key: &Key, payload: &[u8]) {
        let order = order_of(payload);
        if order > 0 {
            let token = self.ledger.token().max(self.book.highest);
            let orders = self.orders.entry(key.clone()).or_default();
            orders.taken.entry(order).or_insert(token);
            if !orders.acknowledged.contains(&order) {
                orders.sequence.push(order);
            }
            orders.last = order;
        } else if let Some(orders) = self.orders.get_mut(key) {
            // Somebody has declared the same key plainly: that is what comes last.
            orders.last = 0;
        }
    }

    /// Whoever is given a key is given what was ordered last.
    fn look_at_order(&mut self, key: &Key) {
        let Some(last) = self.orders.get(key).map(|orders| orders.last) else { return };
        let given = self.ledger.record(key).map_or(0, |record| order_of(&record.payload));
        if last != given {
            self.disagree("what was declared last is what is given out", &(key, last, given));
        }
    }

    /// See [`divider_core::Store::renew`].
    ///
    /// # Errors
    /// Where the session does not live.
    pub fn renew(&mut self, session: SessionId) -> Result<Beat, StoreError> {
        if !self.ledger.is_alive(session) {
            return Err(StoreError::SessionEnded);
        }
        self.heard.insert(session, self.now);
        Ok(self.beats.renew(session))
    }

    fn leader_view(&self) -> Option<LeaderView> {
        let group = self.ledger.group();
        let session = group.leader?;
        let session_beat = self.ledger.is_alive(session).then(|| self.beats.get(session));
        Some(LeaderView { term: group.term, session, beat: self.leader_beat, session_beat, watched: false })
    }

    /// See [`divider_core::Store::poll`].
    ///
    /// # Errors
    /// Where the session does not live.
    pub fn poll(&mut self, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
        let seq = self.ledger.seq(session).ok_or(StoreError::SessionEnded)?;
        let seen = self.leader_view();
        match claim {
            Claim::Take { stale } if seen.is_none_or(|seen| stale == Some((seen.term, seen.beat))) => {
                let (term, effects) = self.ledger.lead(session, Term(self.floor));
                if let Some(term) = term {
                    if term <= self.book.term {
                        self.disagree("terms rise", &term);
                    }
                    self.book.term = term;
                }
                self.leader_beat = Beat(0);
                self.tell(effects);
            }
            Claim::Lead { term } if seen.is_some_and(|seen| (seen.session, seen.term) == (session, term)) => {
                self.leader_beat.0 += 1;
            }
            _ => {}
        }
        Ok(PollReply { leader: self.leader_view(), revision: self.revision(), token: self.ledger.token(), seq })
    }

    /// See [`divider_core::Store::resign`].
    pub fn resign(&mut self, session: SessionId, term: Term) {
        let effects = self.ledger.resign(session, term);
        if effects.batch.is_some() {
            self.tell_leader_gone();
        }
        self.tell(effects);
    }

    /// Takes the leadership away, as a server does whose connection to the leader broke.
    pub fn depose(&mut self) -> bool {
        let group = self.ledger.group();
        let Some(leader) = group.leader else { return false };
        self.resign(leader, group.term);
        true
    }

    /// See [`divider_core::Store::beats`].
    pub fn beats(&self) -> Vec<(SessionId, Beat)> {
        let alive = self.ledger.sessions().filter(|view| view.ended.is_none());
        alive.map(|view| (view.session, self.beats.get(view.session))).collect()
    }

    /// See [`divider_core::Store::silences`].
    pub fn silences(&self) -> Vec<(SessionId, Beat, Duration)> {
        let silent = |(session, at): (&SessionId, &u64)| {
            (*session, self.beats.get(*session), Duration::from_nanos(self.now - at))
        };
        if self.tells_silences { self.heard.iter().map(silent).collect() } else { Vec::new() }
    }

    /// See [`divider_core::Store::holdings`].
    ///
    /// # Errors
    /// Where the session does not live.
    pub fn holdings(&self, session: SessionId) -> Result<Holdings, StoreError> {
        self.ledger.holdings(session)
    }

    /// See [`divider_core::Store::changes`].
    pub fn changes(&self, since: Revision) -> Option<Vec<Batch>> {
        let since = Revision(since.0.checked_sub(self.lift)?);
        if self.reach > 0 && self.ledger.revision().0 > since.0 + self.reach {
            return None;
        }
        let batches = self.ledger.changes(since)?;
        Some(batches.into_iter().map(|batch| self.lifted(batch)).collect())
    }

    /// Whether a node that comes back can find out all that its sessions were given.
    pub fn tells_all(&self) -> bool {
        self.reach == 0 && self.lift == 0 && !self.haunted
    }

    /// See [`divider_core::Store::scan`].
    ///
    /// # Errors
    /// Where the cursor is none.
    pub fn scan(&self, cursor: Option<&Cursor>) -> Result<Page, StoreError> {
        if self.page == 0 {
            let page = self.ledger.scan(cursor)?;
            return Ok(Page { revision: self.revision(), ..page });
        }
        // A group here has no more keys than one page of the ledger's.
        let mut page = self.ledger.scan(None)?;
        if let Some(Cursor(after)) = cursor {
            page.keys.retain(|view| view.key.as_str().as_bytes() > after.as_slice());
            page.sessions.clear();
        }
        page.keys.sort_by(|a, b| a.key.cmp(&b.key));
        let more = page.keys.len() > self.page;
        page.keys.truncate(self.page);
        let last = page.keys.last().filter(|_| more);
        let next = last.map(|view| Cursor(view.key.as_str().as_bytes().to_vec()));
        Ok(Page { revision: self.revision(), next, ..page })
    }

    /// See [`divider_core::Store::stats`].
    pub fn stats(&self) -> Stats {
        self.ledger.stats()
    }

    /// Adds a subscriber, and returns its number.
    pub fn subscribe(&mut self, topic: Topic) -> u64 {
        self.subscribed += 1;
        self.subscribers.insert(self.subscribed, topic);
        self.subscribed
    }

    /// Cuts all subscriptions.
    pub fn cut_feeds(&mut self) {
        self.cut.extend(std::mem::take(&mut self.subscribers).into_keys());
    }

    /// Cuts the subscriptions to the messages of one session.
    pub fn cut_messages(&mut self, session: SessionId) {
        self.cut.extend(self.subscribers.extract_if(.., |_, topic| *topic == Topic::Session(session)).map(|(n, _)| n));
    }

    /// Who stands in the ledger as an owner, living or not.
    fn owners(&self) -> BTreeMap<Key, (SessionId, Token)> {
        let page = self.ledger.scan(None).unwrap_or_else(|error| unreachable!("{error}"));
        page.keys.into_iter().filter_map(|view| Some((view.key, view.state.owner()?))).collect()
    }

    /// Keeps a copy of all data.
    pub fn back_up(&mut self) {
        self.backup = self.ledger.clone();
    }

    /// The server was lost and comes back with what it has. As the Redis backend does it: all numbers leap, every session
    /// ends, and grants are held back.
    pub fn begin_lineage(&mut self, loss: Loss) {
        let highest = self.revision().0.max(self.ledger.token().0).max(self.ledger.group().term.0).max(self.floor);
        match loss {
            Loss::Nothing => {}
            Loss::SinceBackup => self.ledger = self.backup.clone(),
            Loss::Everything => self.ledger = Ledger::new(),
        }
        self.floor = highest + LEAP;
        self.lift = self.floor;
        let effects = self.ledger.new_lineage();
        self.tell(effects);
        self.cut_feeds();
        self.beats = SessionBeats::default();
        self.heard.clear();
        if loss != Loss::Nothing {
            self.orders.clear();
        }
        self.leader_beat = Beat(0);
        self.book.alive.clear();
        self.book.owners = self.owners();
        self.book.hold = true;
        self.book.term = self.book.term.min(self.ledger.group().term);
        self.backup = self.ledger.clone();
    }
}
