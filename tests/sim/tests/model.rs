//! An abstract model of the protocol, of which every reachable state is looked at, within the bounds that [`Bounds`] states (they are small, and each says what it leaves out).
//!
//! # What it is
//! Nodes (which all have one name, so that S10 is S3 here), two keys, one authority. Every request and every answer about a
//! lease, a join and a confirmation is a message that may be late, lost or doubled. Leadership may be taken at any moment, and
//! a leader that has been replaced goes on proposing. A node that does nothing for a while is a paused one. Time passes in
//! ticks, of which a lease is [`LEASE`]; nothing else forces anybody to act.
//!
//! What a leader proposes is decided at the moment at which it is applied: since the authority compares term, token and beat,
//! a proposal that was under way for some time is one that is made later, by a leader that may not know that it is none.
//!
//! # What it is not
//! The authority here is smaller than the real ledger, so that millions of states can be kept. That it decides as the real
//! one does is a test of its own, below. The order of hints is left to the simulation: here a node reads the truth at once.

use divider_conformance::Dice;
use divider_core::{Key, Ledger, NodeId, Op, Outcome, Revision, SessionId, State as KeyState, Term, Token, Work};
use stateright::{Checker, Model, Property};
use uuid::Uuid;

/// A lease, in ticks.
const LEASE: u8 = 2;
const KEYS: usize = 2;

type Sid = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Life {
    Alive,
    Draining,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ownership {
    session: Sid,
    token: u8,
    stopping: bool,
}

/// The rules of the ledger that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Authority {
    token: u8,
    term: u8,
    sessions: Vec<Life>,
    owners: [Option<Ownership>; KEYS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Join(Sid),
    Drain(Sid),
    End(Sid),
    Confirm { session: Sid, key: usize, token: u8 },
    Assign { term: u8, key: usize, session: Sid },
    Revoke { term: u8, key: usize, token: u8 },
    Expire { term: u8, session: Sid },
}

impl Authority {
    fn lives(&self, session: Sid) -> bool {
        self.sessions.get(usize::from(session)).is_some_and(|life| *life != Life::Ended)
    }

    /// The living owner.
    fn owner(&self, key: usize) -> Option<Ownership> {
        self.owners[key].filter(|owner| self.lives(owner.session))
    }

    /// Whether the word was taken; refused ones change nothing.
    fn apply(&mut self, word: Word) -> bool {
        match word {
            Word::Join(session) => {
                if usize::from(session) < self.sessions.len() {
                    return self.lives(session);
                }
                self.sessions.push(Life::Alive);
            }
            Word::Drain(session) if self.lives(session) => self.sessions[usize::from(session)] = Life::Draining,
            Word::End(session) if self.lives(session) => self.sessions[usize::from(session)] = Life::Ended,
            Word::Confirm { session, key, token } => match self.owner(key) {
                Some(owner) if (owner.session, owner.token) == (session, token) => self.owners[key] = None,
                _ => return false,
            },
            Word::Assign { term, key, session } => {
                let takes = self.sessions.get(usize::from(session)) == Some(&Life::Alive);
                if term != self.term || !takes || self.owner(key).is_some() {
                    return false;
                }
                self.token += 1;
                self.owners[key] = Some(Ownership { session, token: self.token, stopping: false });
            }
            Word::Revoke { term, key, token } => match self.owner(key) {
                Some(owner) if term == self.term && owner.token == token => {
                    self.owners[key] = Some(Ownership { stopping: true, ..owner });
                }
                _ => return false,
            },
            Word::Expire { term, session } if term == self.term && self.lives(session) => {
                self.sessions[usize::from(session)] = Life::Ended;
            }
            _ => return false,
        }
        true
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Queued,
    Running,
    Stopping,
}

/// What a leader knows of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Watch {
    /// For how long its beat has stood still, as far as the leader has looked.
    age: u8,
    /// The beat has moved since.
    moved: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Process {
    up: bool,
    session: Option<Sid>,
    /// Ticks until its own deadline.
    left: u8,
    holds: [Option<(u8, Phase)>; KEYS],
    /// Lost keys of which the program has still to read.
    unread: [bool; KEYS],
    draining: bool,
    /// Its term, while it is the leader. Whatever a deposed one says is refused, so it need not be kept.
    leads: Option<u8>,
    /// What the leader knows of the sessions.
    watches: Vec<Watch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    /// The age counts from the moment before it was sent.
    Join {
        node: usize,
        session: Sid,
        age: u8,
    },
    Joined {
        node: usize,
        session: Sid,
        age: u8,
    },
    Renew {
        node: usize,
        session: Sid,
        age: u8,
    },
    Renewed {
        node: usize,
        session: Sid,
        age: u8,
    },
    Confirm {
        session: Sid,
        key: usize,
        token: u8,
    },
    /// A write on its way to a sink.
    Write {
        key: usize,
        token: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    authority: Authority,
    nodes: Vec<Process>,
    wire: Vec<Message>,
    /// The next session's number.
    sessions: Sid,
    /// The token of the last write that each sink took.
    sinks: [u8; KEYS],
    crashes: u8,
    doubles: u8,
    writes: u8,
    /// The rule that the last step broke.
    broken: Option<&'static str>,
    /// How the last grant came about.
    moved: Option<Moved>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Moved {
    New,
    Confirmed,
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Tick,
    Join(usize),
    Renew(usize),
    Deliver(usize),
    /// Deliver, and keep a copy.
    Double(usize),
    Lose(usize),
    Sync(usize),
    Start(usize, usize),
    ReadLoss(usize, usize),
    Stopped(usize, usize),
    Write(usize, usize),
    Flush(usize),
    Leave(usize),
    Crash(usize),
    Restart(usize),
    Lead(usize),
    Look(usize),
    Assign(usize, usize, Sid),
    Revoke(usize, usize),
    Expire(usize, Sid),
}

/// How far the model goes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    nodes: usize,
    keys: usize,
    /// How many of the nodes may lead (the others may crash), and how many may be flushed; nodes are alike.
    leaders: usize,
    flushes: usize,
    sessions: Sid,
    grants: u8,
    terms: u8,
    crashes: u8,
    doubles: u8,
    writes: u8,
    wire: usize,
    /// How many nodes may wait for an answer about a lease at once.
    asking: usize,
}

/// What is switched off, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Nodes do not watch their own deadline.
    Fencing,
    /// A lease counts from the answer.
    StampBeforeSending,
    /// A key is free once its owner was asked to stop.
    Confirm,
    /// A confirmation frees the key, whatever token it names.
    TokenCompare,
    /// An expiry takes effect though the beat has moved.
    BeatCompare,
    /// A new leader believes that everybody has been silent for a lease.
    FreshWatches,
    /// The sink takes whatever comes.
    FencedSink,
    /// Losses are not read before new starts.
    LossFirst,
}

#[derive(Clone, Debug)]
struct Protocol {
    bounds: Bounds,
    without: Without,
}

impl Protocol {
    fn believes(&self, node: &Process, key: usize) -> Option<u8> {
        let fenced = node.left == 0 && self.without != Without::Fencing;
        match node.holds[key] {
            Some((token, Phase::Running | Phase::Stopping)) if node.up && !fenced => Some(token),
            _ => None,
        }
    }

    /// The session is over for this node.
    fn lose(node: &mut Process) {
        node.session = None;
        node.left = 0;
        node.leads = None;
        node.watches.clear();
        for key in 0..KEYS {
            if let Some((_, Phase::Running | Phase::Stopping)) = node.holds[key].take() {
                node.unread[key] = true;
            }
        }
    }

    fn send(&self, state: &mut State, message: Message) {
        state.wire.push(message);
        state.wire.sort_unstable();
    }

    /// Sends an answer, unless it would come too late to change anything.
    fn answer(&self, state: &mut State, message: Message, age: u8) {
        if age < LEASE || self.without == Without::StampBeforeSending {
            self.send(state, message);
        }
    }

    fn deliver(&self, state: &mut State, message: Message) {
        match message {
            Message::Join { node, session, age } => {
                // Numbers are given out in the order in which sessions begin.
                if state.authority.apply(Word::Join(session)) {
                    self.answer(state, Message::Joined { node, session, age }, age);
                    for node in state.nodes.iter_mut().filter(|node| node.leads.is_some()) {
                        node.watches.resize(state.authority.sessions.len(), Watch { age: 0, moved: false });
                    }
                }
            }
            Message::Joined { node, session, age } => {
                let node = &mut state.nodes[node];
                if node.up && node.session.is_none() && state.sessions == session + 1 {
                    node.session = Some(session);
                    node.left = if self.without == Without::StampBeforeSending { LEASE } else { LEASE - age };
                }
            }
            Message::Renew { node, session, age } => {
                if state.authority.lives(session) {
                    for node in &mut state.nodes {
                        if let Some(watch) = node.watches.get_mut(usize::from(session)) {
                            watch.moved = true;
                        }
                    }
                    self.answer(state, Message::Renewed { node, session, age }, age);
                } else if state.nodes[node].session == Some(session) {
                    Self::lose(&mut state.nodes[node]);
                }
            }
            Message::Renewed { node, session, age } => {
                let node = &mut state.nodes[node];
                if node.session == Some(session) && node.left > 0 {
                    let earned = if self.without == Without::StampBeforeSending { LEASE } else { LEASE - age };
                    node.left = node.left.max(earned);
                }
            }
            Message::Confirm { session, key, token } => {
                let before = state.authority.clone();
                let mine = before.owner(key).is_some_and(|owner| (owner.session, owner.token) == (session, token));
                if self.without == Without::TokenCompare {
                    if before.owner(key).is_some_and(|owner| owner.session == session) {
                        state.authority.owners[key] = None;
                    }
                } else {
                    state.authority.apply(Word::Confirm { session, key, token });
                }
                if !mine && state.authority != before {
                    state.broken = Some("S8: a stale confirmation changes nothing");
                }
            }
            Message::Write { key, token } => {
                if token >= state.sinks[key] {
                    state.sinks[key] = token;
                } else if self.without == Without::FencedSink {
                    state.broken = Some("S4: a sink takes no write of an older owner after one of a newer owner");
                }
            }
        }
    }

    fn assign(&self, state: &mut State, term: u8, key: usize, session: Sid) {
        let before = state.authority.clone();
        if self.without == Without::Confirm && before.owner(key).is_some_and(|owner| owner.stopping) {
            state.authority.owners[key] = None;
        }
        if !state.authority.apply(Word::Assign { term, key, session }) {
            return;
        }
        if before.owner(key).is_some() {
            state.broken = Some("S5: a key of a living owner is granted after its confirmation only");
        }
        if state.authority.token <= before.token {
            state.broken = Some("S1: tokens rise");
        }
        state.moved = Some(match before.owners[key] {
            Some(_) => Moved::Expired,
            None if before.token == 0 => Moved::New,
            None => Moved::Confirmed,
        });
    }

    /// What the authority says that the node holds.
    fn sync(&self, state: &mut State, at: usize) {
        let Some(session) = state.nodes[at].session else { return };
        if !state.authority.lives(session) {
            return Self::lose(&mut state.nodes[at]);
        }
        for key in 0..KEYS {
            let owned = state.authority.owner(key).filter(|owner| owner.session == session);
            let node = &mut state.nodes[at];
            match (owned, node.holds[key]) {
                (Some(owner), held) if held.is_none_or(|(token, _)| token < owner.token) => {
                    // A confirmation that is on its way is still ours to wait for.
                    let confirm = Message::Confirm { session, key, token: owner.token };
                    if state.wire.contains(&confirm) {
                        continue;
                    }
                    if let Some((_, Phase::Running | Phase::Stopping)) = held {
                        node.unread[key] = true;
                    }
                    if node.draining || owner.stopping {
                        node.holds[key] = None;
                        self.send(state, confirm);
                    } else {
                        node.holds[key] = Some((owner.token, Phase::Queued));
                    }
                }
                (Some(owner), Some((token, phase))) if owner.stopping => match phase {
                    Phase::Queued => {
                        node.holds[key] = None;
                        self.send(state, Message::Confirm { session, key, token });
                    }
                    _ => node.holds[key] = Some((token, Phase::Stopping)),
                },
                (None, Some((_, phase))) => {
                    node.holds[key] = None;
                    node.unread[key] |= phase != Phase::Queued;
                }
                _ => {}
            }
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let node = Process { up: true, ..Process::default() };
        vec![State {
            authority: Authority::default(),
            nodes: vec![node; self.bounds.nodes],
            wire: Vec::new(),
            sessions: 0,
            sinks: [0; KEYS],
            crashes: 0,
            doubles: 0,
            writes: 0,
            broken: None,
            moved: None,
        }]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let bounds = self.bounds;
        if state.broken.is_some() {
            return;
        }
        steps.push(Step::Tick);
        let asking =
            state.wire.iter().filter(|m| !matches!(m, Message::Confirm { .. } | Message::Write { .. })).count();
        let room = state.wire.len() - asking < bounds.wire;
        for (at, message) in state.wire.iter().enumerate() {
            if at > 0 && state.wire[at - 1] == *message {
                continue;
            }
            steps.push(Step::Deliver(at));
            // What is never delivered stays where it is; only a lost request or answer makes way for the next.
            if !matches!(message, Message::Confirm { .. } | Message::Write { .. }) {
                steps.push(Step::Lose(at));
            }
            let worth = matches!(message, Message::Confirm { .. } | Message::Renew { .. });
            if worth && state.doubles < bounds.doubles {
                steps.push(Step::Double(at));
            }
        }
        let asks = |at: usize| {
            state.wire.iter().any(|message| match message {
                Message::Join { node, .. }
                | Message::Joined { node, .. }
                | Message::Renew { node, .. }
                | Message::Renewed { node, .. } => *node == at,
                _ => false,
            })
        };
        for (at, node) in state.nodes.iter().enumerate() {
            if !node.up {
                steps.push(Step::Restart(at));
                continue;
            }
            if state.crashes < bounds.crashes && at >= bounds.leaders {
                steps.push(Step::Crash(at));
            }
            for key in 0..KEYS {
                if node.unread[key] {
                    steps.push(Step::ReadLoss(at, key));
                }
            }
            let Some(session) = node.session else {
                // One join at a time in all, so that numbers stay few.
                let joining = state.wire.iter().any(|m| matches!(m, Message::Join { .. } | Message::Joined { .. }));
                let mourns = node.unread.contains(&true) && self.without != Without::LossFirst;
                if !node.draining && !mourns && !joining && asking < bounds.asking && state.sessions < bounds.sessions {
                    steps.push(Step::Join(at));
                }
                continue;
            };
            // Before a tick has passed there is nothing to be earned.
            if !asks(at) && asking < bounds.asking && node.left < LEASE {
                steps.push(Step::Renew(at));
            }
            steps.push(Step::Sync(at));
            if !node.draining {
                // Nodes are alike, so the last ones will do.
                if at + bounds.flushes >= bounds.nodes {
                    steps.push(Step::Flush(at));
                }
            } else if node.holds.iter().all(Option::is_none) {
                steps.push(Step::Leave(at));
            }
            for key in 0..KEYS {
                match node.holds[key] {
                    Some((_, Phase::Queued)) => steps.push(Step::Start(at, key)),
                    Some((_, Phase::Stopping)) if room => steps.push(Step::Stopped(at, key)),
                    _ => {}
                }
                if self.believes(node, key).is_some() && state.writes < bounds.writes && room {
                    steps.push(Step::Write(at, key));
                }
            }
            if at < bounds.leaders && state.authority.term < bounds.terms && node.leads.is_none() {
                steps.push(Step::Lead(at));
            }
            if node.leads.is_none() {
                continue;
            }
            steps.push(Step::Look(at));
            for other in 0..state.authority.sessions.len() {
                let other = Sid::try_from(other).expect("few");
                let watch = node.watches[usize::from(other)];
                if state.authority.lives(other) && watch.age >= LEASE && other != session {
                    steps.push(Step::Expire(at, other));
                }
                for key in 0..bounds.keys {
                    if state.authority.token < bounds.grants
                        && state.authority.sessions[usize::from(other)] == Life::Alive
                    {
                        steps.push(Step::Assign(at, key, other));
                    }
                }
            }
            for key in 0..KEYS {
                if state.authority.owner(key).is_some_and(|owner| !owner.stopping) {
                    steps.push(Step::Revoke(at, key));
                }
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        state.moved = None;
        match step {
            Step::Tick => {
                for node in &mut state.nodes {
                    node.left = node.left.saturating_sub(1);
                    if node.left == 0 && node.session.is_some() && self.without != Without::Fencing {
                        Self::lose(node);
                    }
                    for watch in &mut node.watches {
                        watch.age = (watch.age + 1).min(LEASE);
                    }
                }
                for message in &mut state.wire {
                    match message {
                        Message::Join { age, .. }
                        | Message::Joined { age, .. }
                        | Message::Renew { age, .. }
                        | Message::Renewed { age, .. } => *age = (*age + 1).min(LEASE),
                        Message::Confirm { .. } | Message::Write { .. } => {}
                    }
                }
                let late = |age: u8| age >= LEASE && self.without != Without::StampBeforeSending;
                state.wire.retain(|message| match message {
                    Message::Joined { age, .. } | Message::Renewed { age, .. } => !late(*age),
                    _ => true,
                });
                state.wire.sort_unstable();
            }
            Step::Join(node) => {
                let session = state.sessions;
                // A number whose join was lost is used again: nobody has heard of it.
                if usize::from(session) > state.authority.sessions.len() {
                    return None;
                }
                state.sessions += 1;
                self.send(&mut state, Message::Join { node, session, age: 0 });
            }
            Step::Renew(node) => {
                let session = state.nodes[node].session?;
                self.send(&mut state, Message::Renew { node, session, age: 0 });
            }
            Step::Deliver(at) => {
                let message = state.wire.remove(at);
                self.deliver(&mut state, message);
            }
            Step::Double(at) => {
                state.doubles += 1;
                let message = state.wire[at];
                self.deliver(&mut state, message);
            }
            Step::Lose(at) => {
                if let Message::Join { .. } = state.wire.remove(at) {
                    state.sessions -= 1;
                }
            }
            Step::Sync(at) => self.sync(&mut state, at),
            Step::ReadLoss(at, key) => state.nodes[at].unread[key] = false,
            Step::Start(at, key) => {
                let node = &mut state.nodes[at];
                let (token, _) = node.holds[key]?;
                if node.unread.contains(&true) {
                    if self.without != Without::LossFirst {
                        return None;
                    }
                    state.broken = Some("S6: a loss is told before any new start");
                }
                node.holds[key] = Some((token, Phase::Running));
            }
            Step::Stopped(at, key) => {
                let node = &mut state.nodes[at];
                let (token, _) = node.holds[key].take()?;
                let session = node.session?;
                self.send(&mut state, Message::Confirm { session, key, token });
            }
            Step::Write(at, key) => {
                let token = self.believes(&state.nodes[at], key)?;
                state.writes += 1;
                self.send(&mut state, Message::Write { key, token });
            }
            Step::Flush(at) => {
                let session = state.nodes[at].session?;
                state.nodes[at].draining = true;
                state.authority.apply(Word::Drain(session));
                for key in 0..KEYS {
                    match state.nodes[at].holds[key] {
                        Some((token, Phase::Queued)) => {
                            state.nodes[at].holds[key] = None;
                            self.send(&mut state, Message::Confirm { session, key, token });
                        }
                        Some((token, _)) => state.nodes[at].holds[key] = Some((token, Phase::Stopping)),
                        None => {}
                    }
                }
            }
            Step::Leave(at) => {
                let session = state.nodes[at].session?;
                state.authority.apply(Word::End(session));
                state.nodes[at] = Process { draining: true, up: true, ..Process::default() };
            }
            Step::Crash(at) => {
                state.crashes += 1;
                state.nodes[at] = Process::default();
            }
            Step::Restart(at) => {
                state.nodes[at] = Process { up: true, ..Process::default() };
            }
            Step::Lead(at) => {
                let session = state.nodes[at].session?;
                if !state.authority.lives(session) {
                    return None;
                }
                state.authority.term += 1;
                for node in &mut state.nodes {
                    node.leads = None;
                    node.watches.clear();
                }
                let age = if self.without == Without::FreshWatches { LEASE } else { 0 };
                let watches = vec![Watch { age, moved: false }; state.authority.sessions.len()];
                state.nodes[at].leads = Some(state.authority.term);
                state.nodes[at].watches = watches;
            }
            Step::Look(at) => {
                for watch in state.nodes[at].watches.iter_mut().filter(|watch| watch.moved) {
                    *watch = Watch { age: 0, moved: false };
                }
            }
            Step::Assign(at, key, session) => {
                let term = state.nodes[at].leads?;
                self.assign(&mut state, term, key, session);
            }
            Step::Revoke(at, key) => {
                let term = state.nodes[at].leads?;
                let token = state.authority.owner(key)?.token;
                state.authority.apply(Word::Revoke { term, key, token });
            }
            Step::Expire(at, session) => {
                let term = state.nodes[at].leads?;
                if state.nodes[at].watches[usize::from(session)].moved && self.without != Without::BeatCompare {
                    return None;
                }
                state.authority.apply(Word::Expire { term, session });
            }
        }
        // What nobody will look at any more is the same as if it were new.
        let State { nodes, authority, .. } = &mut state;
        for node in nodes.iter_mut() {
            let own = node.session;
            for (sid, watch) in node.watches.iter_mut().enumerate() {
                if authority.sessions[sid] == Life::Ended || own.is_some_and(|own| usize::from(own) == sid) {
                    *watch = Watch { age: 0, moved: false };
                }
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, state: &State| state.broken.is_none()),
            Property::always("no two nodes believe", |protocol: &Protocol, state: &State| {
                (0..KEYS).all(|key| {
                    let believers = state.nodes.iter().filter(|node| protocol.believes(node, key).is_some());
                    believers.count() <= 1
                })
            }),
            Property::always("who believes owns", |protocol: &Protocol, state: &State| {
                // Nobody else has been granted what a node believes in.
                (0..KEYS).all(|key| {
                    let owner = state.authority.owner(key);
                    let believed = state.nodes.iter().filter_map(|node| protocol.believes(node, key)).max();
                    believed.is_none() || owner.is_none_or(|owner| Some(owner.token) >= believed)
                })
            }),
            Property::sometimes("a key moves after a confirmation", |_, state: &State| {
                state.moved == Some(Moved::Confirmed)
            }),
            Property::sometimes("a key moves after an expiry", |_, state: &State| state.moved == Some(Moved::Expired)),
            Property::sometimes("a flush ends", |protocol: &Protocol, state: &State| {
                let ended = |node: &Process| node.draining && node.session.is_none() && node.up;
                protocol.bounds.flushes == 0 || state.nodes.iter().any(ended)
            }),
        ]
    }
}

const ALWAYS: [&str; 3] = ["no rule is broken", "no two nodes believe", "who believes owns"];

/// The least in which a key can move.
const LEAST: Bounds = Bounds {
    nodes: 2,
    keys: 1,
    leaders: 1,
    flushes: 0,
    sessions: 2,
    grants: 2,
    terms: 1,
    crashes: 0,
    doubles: 0,
    writes: 0,
    wire: 1,
    asking: 2,
};
const CHANGE_OF_LEADERS: Bounds = Bounds { leaders: 2, terms: 2, ..LEAST };
const CRASH: Bounds = Bounds { crashes: 1, sessions: 3, asking: 1, ..LEAST };
const JOINED_AGAIN: Bounds = Bounds { sessions: 3, asking: 1, ..LEAST };
const DOUBLED: Bounds = Bounds { doubles: 1, grants: 3, wire: 2, ..LEAST };
const FLUSH: Bounds = Bounds { flushes: 1, ..LEAST };
const TWO_KEYS: Bounds = Bounds { keys: 2, ..LEAST };
const THREE_NODES: Bounds = Bounds { nodes: 3, sessions: 3, asking: 1, ..LEAST };
/// With writes on their way, which outlive beliefs.
const WRITES: Bounds = Bounds { writes: 2, wire: 2, ..LEAST };

fn check(bounds: Bounds, without: Without) -> impl Checker<Protocol> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = Protocol { bounds, without }.checker().threads(threads);
    checker.spawn_bfs().join()
}

fn holds(bounds: Bounds) {
    let checker = check(bounds, Without::Nothing);
    println!("{} states within {bounds:?}, depth {}", checker.unique_state_count(), checker.max_depth());
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn nothing_is_broken_by_a_change_of_leaders() {
    holds(CHANGE_OF_LEADERS);
}

#[test]
fn nothing_is_broken_by_a_crash() {
    holds(CRASH);
}

#[test]
fn nothing_is_broken_by_what_comes_twice() {
    holds(DOUBLED);
}

#[test]
fn nothing_is_broken_by_a_flush() {
    holds(FLUSH);
}

#[test]
fn nothing_is_broken_with_two_keys() {
    holds(TWO_KEYS);
}

#[test]
fn nothing_is_broken_by_three_nodes() {
    holds(THREE_NODES);
}

#[test]
fn a_fenced_sink_takes_no_write_of_an_older_owner() {
    holds(WRITES);
}

#[test]
fn whatever_is_switched_off_is_missed() {
    for (without, bounds) in [
        (Without::Fencing, LEAST),
        (Without::StampBeforeSending, LEAST),
        (Without::Confirm, LEAST),
        (Without::TokenCompare, DOUBLED),
        (Without::BeatCompare, LEAST),
        (Without::FreshWatches, CHANGE_OF_LEADERS),
        (Without::FencedSink, WRITES),
        (Without::LossFirst, JOINED_AGAIN),
    ] {
        let checker = check(bounds, without);
        let found = ALWAYS.iter().find_map(|name| Some((name, checker.discovery(name)?)));
        let Some((name, path)) = found else { panic!("without {without:?} nothing is broken") };
        println!("without {without:?}: {name:?} is broken after {} steps", path.into_actions().len());
    }
}

/// What the model's authority is to the real ledger.
struct Both {
    small: Authority,
    real: Ledger,
}

fn session(sid: Sid) -> SessionId {
    SessionId(Uuid::from_u128(u128::from(sid) + 1))
}

fn key(key: usize) -> Key {
    Key::new(format!("key-{key}")).expect("a key")
}

impl Both {
    fn op(word: Word, seen: Revision) -> Op {
        let (term, tok) = (|term: u8| Term(term.into()), |token: u8| Token(token.into()));
        match word {
            Word::Join(sid) => {
                let node = NodeId::new("n").expect("a name");
                Op::Join {
                    session: session(sid),
                    node,
                    affinity: 1,
                    capacity: None,
                    lease_ms: 1000,
                    seen,
                    reads: divider_core::format::NEWEST,
                }
            }
            Word::Drain(sid) => Op::Drain { session: session(sid) },
            Word::End(sid) => Op::End { session: session(sid) },
            Word::Confirm { session: sid, key: k, token } => {
                Op::Confirm { session: session(sid), key: key(k), token: tok(token), started: true }
            }
            Word::Assign { term: t, key: k, session: sid } => {
                Op::Assign { term: term(t), key: key(k), session: session(sid) }
            }
            Word::Revoke { term: t, key: k, token } => Op::Revoke { term: term(t), key: key(k), token: tok(token) },
            Word::Expire { term: t, session: sid } => {
                let (beat, healthy_below) = (divider_core::Beat(0), Token::ABOVE_ALL);
                let verdict = divider_core::Verdict { healthy_below, blame: divider_core::Blame::Nobody };
                Op::Expire { term: term(t), session: session(sid), beat, verdict }
            }
        }
    }

    fn apply(&mut self, word: Word) {
        let taken = self.small.apply(word);
        let effects = self.real.apply(&[Self::op(word, self.real.revision())], Token(0));
        let refused = matches!(effects.outcomes[..], [Outcome::Refused(_)]);
        assert_eq!(taken, !refused, "{word:?}: {:?}", effects.outcomes);
        assert_eq!(Token(self.small.token.into()), self.real.token(), "{word:?}");
        for k in 0..KEYS {
            let record = self.real.record(&key(k)).expect("the keys stay");
            let owner = match record.view.state {
                KeyState::Assigned { session, token } => Some((session, token, false)),
                KeyState::Stopping { session, token, .. } => Some((session, token, true)),
                _ => None,
            };
            let owner = owner.filter(|(session, ..)| self.real.is_alive(*session));
            let small = self.small.owner(k).map(|o| (session(o.session), Token(o.token.into()), o.stopping));
            assert_eq!(owner, small, "{word:?}");
        }
    }
}

#[test]
fn the_models_authority_decides_as_the_ledger_does() {
    let mut taken = 0;
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let mut both = Both { small: Authority::default(), real: Ledger::new() };
        both.real.apply(&[Op::Add(Work::from(key(0))), Op::Add(Work::from(key(1)))], Token(0));
        for _ in 0..60 {
            let sids = both.small.sessions.len() as u64;
            let sid = u8::try_from(dice.below(sids + 1)).expect("few");
            let k = usize::try_from(dice.below(2)).expect("few");
            let owned = both.small.owners[k];
            // Mostly what is true, so that much is taken; now and then anything.
            let (mut owner, mut token) = owned.map_or((sid, 1), |owner| (owner.session, owner.token));
            if dice.permille(300) {
                (owner, token) = (sid, u8::try_from(dice.below(u64::from(both.small.token) + 2)).expect("few"));
            }
            let term = both.small.term.saturating_sub(u8::from(dice.permille(100)));
            let word = match dice.below(12) {
                // A session that has ended is never joined again by its node.
                0 | 1 if usize::from(sid) == both.small.sessions.len() && sid < 200 => Word::Join(sid),
                2 => Word::Drain(sid),
                3 => Word::End(sid),
                4 | 5 => Word::Confirm { session: owner, key: k, token },
                6..=8 => Word::Assign { term, key: k, session: sid },
                9 => Word::Revoke { term, key: k, token },
                10 => Word::Expire { term, session: sid },
                _ => {
                    if both.small.lives(sid) {
                        let (term, _) = both.real.lead(session(sid), Term(0));
                        both.small.term += 1;
                        assert_eq!(term, Some(Term(both.small.term.into())));
                    }
                    continue;
                }
            };
            let before = both.small.clone();
            both.apply(word);
            taken += u32::from(both.small != before);
        }
    }
    println!("{taken} words changed something");
    assert!(taken > 10_000, "{taken}");
}
