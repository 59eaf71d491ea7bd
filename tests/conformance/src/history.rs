//! What the programs of a trial were told, and what they answered, checked against the rules of delivery at the moment
//! at which it is written down.
//!
//! # Why at that moment
//! Whether two nodes believe in one key at the same time can only be asked while they do. So whenever a start is read, all
//! other nodes that were told to start the key and have not said that they stopped are asked whether they still believe
//! it. The question is put after the start was read, and therefore a "yes" is proof, however long any thread was held up
//! in between; no clocks are compared.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use divider_core::{Assignment, Divider, Event, Key, Stop, StopReason, Token};

/// How many lines are kept for the report of a violation.
const KEPT: usize = 20_000;

/// The common record of all programs of a trial. Clones are handles to the same record.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    players: Vec<Player>,
    lines: VecDeque<(usize, Key, String)>,
    /// Every start that was read: a token is given once.
    started: HashMap<Key, HashSet<Token>>,
    violation: Option<String>,
}

struct Player {
    node: Weak<dyn Divider>,
    claims: HashMap<Key, Claim>,
    /// The highest token that it was told to start, by key.
    highest: HashMap<Key, Token>,
    /// Keys of a lost session whose stop has not been read, though that of another one has.
    mourned: HashSet<Key>,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    token: Token,
    stopped: bool,
    /// The program has said that the work is done, and has no answer yet: it acts no more, but may still be told to stop.
    ending: bool,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").finish_non_exhaustive()
    }
}

impl History {
    /// Adds a program around `node`, and returns its number.
    pub fn player(&self, node: &Arc<dyn Divider>) -> usize {
        let mut inner = self.0.lock();
        let node = Arc::downgrade(node);
        let player = Player { node, claims: HashMap::new(), highest: HashMap::new(), mourned: HashSet::new() };
        inner.players.push(player);
        inner.players.len() - 1
    }

    /// The program has read an event. Events of one program must be written down in the order in which they were read.
    ///
    /// # Panics
    /// Where the event is of a kind that this history does not know.
    pub fn read(&self, player: usize, event: &Event) {
        match event {
            Event::Start(start) => self.0.lock().start(player, start),
            Event::Stop(stop) => self.0.lock().stop(player, stop),
            other => panic!("neither a start nor a stop: {other:?}"),
        }
    }

    /// The program acts no more on the key, and is about to confirm its stop.
    pub fn let_go(&self, player: usize, key: &Key, token: Token) {
        self.0.lock().end(player, key, token, "confirms");
    }

    /// The program acts no more on the key, and is about to complete it.
    pub fn completing(&self, player: usize, key: &Key, token: Token) {
        let mut inner = self.0.lock();
        inner.line(player, key, format!("completes token {token}"));
        if let Some(claim) = inner.claim(player, key, token) {
            claim.ending = true;
        }
        inner.players[player].mourned.remove(key);
    }

    /// The completion has taken effect.
    pub fn completed(&self, player: usize, key: &Key, token: Token) {
        self.0.lock().end(player, key, token, "has completed");
    }

    /// The completion was refused: a stop is still to come, or to be confirmed.
    pub fn not_completed(&self, player: usize, key: &Key, token: Token) {
        let mut inner = self.0.lock();
        inner.line(player, key, format!("could not complete token {token}"));
        if let Some(claim) = inner.claim(player, key, token) {
            claim.ending = false;
        }
    }

    /// The program is gone: killed or cancelled.
    pub fn gone(&self, player: usize) {
        let mut inner = self.0.lock();
        let Some(player) = inner.players.get_mut(player) else { return };
        player.claims.clear();
        player.mourned.clear();
    }

    /// The first rule that was broken, with what led to it.
    pub fn violation(&self) -> Option<String> {
        self.0.lock().violation.clone()
    }

    /// # Panics
    /// If a rule was broken.
    pub fn check(&self) {
        if let Some(violation) = self.violation() {
            panic!("{violation}");
        }
    }
}

impl Inner {
    fn line(&mut self, player: usize, key: &Key, line: String) {
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back((player, key.clone(), line));
    }

    fn claim(&mut self, player: usize, key: &Key, token: Token) -> Option<&mut Claim> {
        self.players[player].claims.get_mut(key).filter(|claim| claim.token == token)
    }

    fn end(&mut self, player: usize, key: &Key, token: Token, how: &str) {
        self.line(player, key, format!("{how} token {token}"));
        if self.claim(player, key, token).is_some() {
            self.players[player].claims.remove(key);
            self.players[player].mourned.remove(key);
        }
    }

    fn broken(&mut self, key: &Key, rule: &str) {
        if self.violation.is_some() {
            return;
        }
        let lines = self.lines.iter().filter(|(_, of, _)| of == key);
        let lines: String = lines.map(|(player, _, line)| format!("\n  node {player} {line}")).collect();
        self.violation = Some(format!("broken for the key {key}: {rule}. What happened to it:{lines}"));
    }

    fn start(&mut self, at: usize, start: &Assignment) {
        let (key, token) = (&start.key, start.token);
        self.line(at, key, format!("starts with token {token}"));
        let mut rules = Vec::new();
        if !self.started.entry(key.clone()).or_default().insert(token) {
            rules.push("a token is given once".to_owned());
        }
        let player = &mut self.players[at];
        if player.claims.get(key).is_some_and(|claim| !claim.ending) {
            rules.push("no start before the stop of the one before has been confirmed".into());
        }
        if player.highest.get(key).is_some_and(|highest| *highest >= token) {
            rules.push("tokens rise on a node".into());
        }
        if let Some(mourned) = player.mourned.iter().next() {
            rules.push(format!("no start before every loss is told; {mourned} was not"));
        }
        player.highest.insert(key.clone(), token);
        player.claims.insert(key.clone(), Claim { token, stopped: false, ending: false });
        let mine = player.node.clone();
        for (other, player) in self.players.iter().enumerate().filter(|(other, _)| *other != at) {
            let Some(claim) = player.claims.get(key).filter(|claim| !claim.ending) else { continue };
            // Whoever has the lower token must not believe in it any more.
            let (lower, node) = if claim.token < token { (claim.token, &player.node) } else { (token, &mine) };
            if node.upgrade().is_some_and(|node| node.is_current(key, lower)) {
                rules.push(format!(
                    "no two nodes own a key at once: node {at} with token {token}, node {other} with token {}",
                    claim.token
                ));
            }
        }
        rules.into_iter().for_each(|rule| self.broken(key, &rule));
    }

    fn stop(&mut self, at: usize, stop: &Stop) {
        let (key, token) = (&stop.key, stop.token);
        self.line(at, key, format!("is told to stop token {token}: {}", stop.reason));
        let player = &mut self.players[at];
        player.mourned.remove(key);
        match player.claims.get_mut(key) {
            Some(claim) if claim.token == token && !claim.stopped => claim.stopped = true,
            claim => {
                let claim = claim.copied();
                return self.broken(key, &format!("a stop belongs to one start; the open one is {claim:?}"));
            }
        }
        if stop.reason == StopReason::Lost {
            let node = player.node.clone();
            // A single key is lost alone where a completion took effect without an answer; its node still believes in the rest.
            let believes = |key: &Key, token| node.upgrade().is_some_and(|node| node.is_current(key, token));
            let running = player.claims.iter().filter(|(_, claim)| !claim.stopped && !claim.ending);
            let lost = running.filter(|(key, claim)| !believes(key, claim.token));
            player.mourned = lost.map(|(key, _)| key.clone()).collect();
            if node.upgrade().is_some_and(|node| node.is_current(key, token)) {
                self.broken(key, "nobody believes in a key that is lost");
            }
        }
    }
}

#[cfg(test)]
mod tests;
