//! What the lines of several `worker` processes, taken together, prove or disprove.
//!
//! # How an overlap is seen
//! The lines of a key understate how long a node held it (see [`divider_examples::line`]). So as soon as a key has been
//! started under a token, no line anywhere may show a lower token in use at a later time. Nothing else is needed, and
//! nothing that is found can be a mere matter of printing order.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    time::Duration,
};

use divider_core::StopReason;
use divider_examples::line::{Kind, Line};

/// A process in the history: an incarnation, whatever name its node goes by.
pub type ProcessId = usize;

/// All that is known of all keys.
#[derive(Debug, Default)]
pub struct FleetHistory {
    /// Each key's ownerships by token.
    keys: HashMap<String, BTreeMap<u64, Claim>>,
    /// Which key a token was given for; tokens are unique in a group.
    tokens: HashMap<u64, (String, ProcessId)>,
    /// Processes that have lost a session at least once.
    lost: Vec<ProcessId>,
    /// What has been folded of each key.
    past: HashMap<String, Past>,
    /// The tokens of what has been folded.
    spent: HashSet<u64>,
    problems: Vec<String>,
}

/// The ownerships of a key that are over, as far as later ones can still disagree with them.
#[derive(Debug)]
struct Past {
    /// The highest token among them.
    highest: u64,
    /// The one that was seen last, under its token.
    latest: (u64, Claim),
}

/// One ownership of a key, as far as lines show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose.
    pub process: ProcessId,
    /// When the start was handed over.
    pub started: u64,
    /// How often it was seen in use, and when last.
    pub ticks: u64,
    /// See [`ticks`](Self::ticks).
    pub last_tick: Option<u64>,
    /// When and why it was to be stopped.
    pub stopped: Option<(u64, StopReason)>,
    /// When the stop was about to be confirmed, or the completion to be reported, whichever came first.
    pub ended: Option<u64>,
    /// A completion was reported. It may have been refused, and the stop confirmed after all.
    pub completed: bool,
}

impl Claim {
    fn last_seen(&self) -> u64 {
        self.last_tick.unwrap_or(0).max(self.started)
    }
}

impl FleetHistory {
    /// Takes in a line of a process. Lines of one process come in its own order, those of several in any.
    pub fn take_in(&mut self, process: ProcessId, line: &Line<'_>) {
        let (Some(key), Some(token)) = (line.key.as_deref(), line.token) else { return };
        match line.event {
            Kind::Start => self.start(process, key, token, line.at_ns),
            Kind::Tick | Kind::Stop | Kind::Confirm | Kind::Complete => {
                let claim = self.keys.get_mut(key).and_then(|claims| claims.get_mut(&token));
                let wrong = match claim.filter(|claim| claim.process == process) {
                    Some(claim) => claim.take_in(line),
                    None => Some("it was never started there under this token"),
                };
                if let Some(wrong) = wrong {
                    let what = format!("{:?} of {key} (token {token}) by process {process}: {wrong}", line.event);
                    self.problems.push(what);
                }
                if line.reason == Some(StopReason::Lost) && !self.lost.contains(&process) {
                    self.lost.push(process);
                }
            }
            _ => {}
        }
    }

    fn start(&mut self, process: ProcessId, key: &str, token: u64, at: u64) {
        if let Some((other, by)) = self.tokens.insert(token, (key.to_owned(), process)) {
            self.problems.push(format!("token {token} was given twice: {other} to {by}, and {key} to {process}"));
        }
        if self.spent.contains(&token) {
            self.problems.push(format!("token {token} was given twice: long ago, and for {key} to {process}"));
        }
        if let Some(past) = self.past.get(key).filter(|past| past.highest > token) {
            let highest = past.highest;
            self.problems.push(format!("{key} was started by {process} with token {token} long after {highest}"));
        }
        let claims = self.keys.entry(key.to_owned()).or_default();
        let before = claims.iter().rev().find(|(_, claim)| claim.process == process);
        if let Some((older, claim)) = before {
            if *older >= token {
                self.problems.push(format!("{key} was started by {process} with token {token} after {older}"));
            }
            if claim.ended.is_none() {
                let text = format!("{key} was started twice in a row by {process}, with tokens {older} and {token}");
                self.problems.push(text);
            }
        }
        let claim =
            Claim { process, started: at, ticks: 0, last_tick: None, stopped: None, ended: None, completed: false };
        claims.insert(token, claim);
    }

    /// Everything that must never be. Empty is good.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        for (key, claims) in &self.keys {
            let mut before = self.past.get(key).map(|past| (past.latest.0, &past.latest.1));
            for (token, claim) in claims {
                if let Some((lower, old)) = before {
                    if old.last_seen() >= claim.started {
                        problems.push(format!(
                            "{key}: {} used token {lower} {} after {} had started it under token {token}",
                            old.process,
                            Nanos(old.last_seen() - claim.started),
                            claim.process,
                        ));
                    }
                    let lost = self.lost.contains(&old.process);
                    if let Some(ended) = old.ended.filter(|ended| *ended >= claim.started && !lost) {
                        problems.push(format!(
                            "{key}: {} ended it (token {lower}) {} after {} had started it under token {token}",
                            old.process,
                            Nanos(ended - claim.started),
                            claim.process,
                        ));
                    }
                }
                // Whoever was seen last counts, even if it is not the one just before.
                if before.is_none_or(|(_, old)| old.last_seen() <= claim.last_seen()) {
                    before = Some((*token, claim));
                }
            }
        }
        problems
    }

    /// Each key's ownerships, by token.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &BTreeMap<u64, Claim>)> {
        self.keys.iter().map(|(key, claims)| (key.as_str(), claims))
    }

    /// The ownerships of one key, by token.
    pub fn claims(&self, key: &str) -> impl Iterator<Item = &Claim> {
        self.keys.get(key).into_iter().flat_map(BTreeMap::values)
    }

    /// How many ownerships there have been.
    pub fn starts(&self) -> usize {
        self.spent.len() + self.keys.values().map(BTreeMap::len).sum::<usize>()
    }

    /// Forgets the details of ownerships that are over: those of processes that are gone and have said all, and those that
    /// ended before the time given. Whatever a later line could contradict is kept: the tokens, and when each key was last
    /// seen in use. The last ownership of each key stays, and so does what came after one that may still be spoken of.
    pub fn fold(&mut self, gone: impl Fn(ProcessId) -> bool, ended_before: u64) {
        self.problems = self.problems();
        for (key, claims) in &mut self.keys {
            // A completion may be refused, long after, and the key be stopped in the usual way then.
            let over = |claim: &Claim| {
                gone(claim.process) || !claim.completed && claim.ended.is_some_and(|ended| ended < ended_before)
            };
            while claims.len() > 1
                && let Some(first) = claims.first_entry().filter(|first| over(first.get()))
            {
                let (token, claim) = first.remove_entry();
                self.tokens.remove(&token);
                self.spent.insert(token);
                match self.past.get_mut(key) {
                    Some(past) => {
                        past.highest = token;
                        if past.latest.1.last_seen() <= claim.last_seen() {
                            past.latest = (token, claim);
                        }
                    }
                    None => _ = self.past.insert(key.clone(), Past { highest: token, latest: (token, claim) }),
                }
            }
        }
    }

    /// Who runs each key now, among the processes that are said to live: started, and not asked to stop.
    pub fn running(&self, lives: impl Fn(ProcessId) -> bool) -> HashMap<&str, Vec<ProcessId>> {
        let runs = |claim: &&Claim| claim.stopped.is_none() && claim.ended.is_none() && lives(claim.process);
        self.keys()
            .map(|(key, claims)| (key, claims.values().filter(runs).map(|claim| claim.process).collect()))
            .collect()
    }

    /// From each confirmation to the key's next start, for ownerships of `process` that were confirmed after `since`.
    pub fn gaps(&self, process: ProcessId, since: u64) -> Vec<Duration> {
        let mut gaps = Vec::new();
        for claims in self.keys.values() {
            for (old, new) in claims.values().zip(claims.values().skip(1)) {
                if let Some(ended) = old.ended.filter(|ended| old.process == process && *ended >= since) {
                    gaps.push(Duration::from_nanos(new.started.saturating_sub(ended)));
                }
            }
        }
        gaps
    }

    /// For each key that `process` ran at the time given: when another ownership of it began after that.
    pub fn takeovers(&self, process: ProcessId, at: u64) -> Vec<(&str, Option<Duration>)> {
        let mut all = Vec::new();
        for (key, claims) in self.keys() {
            let ran = |claim: &Claim| {
                claim.process == process && claim.started <= at && claim.ended.is_none_or(|ended| ended > at)
            };
            let Some((token, _)) = claims.iter().rev().find(|(_, claim)| ran(claim)) else { continue };
            let next = claims.range(token + 1..).next();
            all.push((key, next.map(|(_, claim)| Duration::from_nanos(claim.started.saturating_sub(at)))));
        }
        all
    }
}

impl Claim {
    /// Takes in a line about this ownership; says what is wrong with it.
    fn take_in(&mut self, line: &Line<'_>) -> Option<&'static str> {
        let at = line.at_ns;
        match line.event {
            Kind::Tick => {
                self.ticks += 1;
                self.last_tick = self.last_tick.max(Some(at));
                if self.ended.is_some_and(|ended| at > ended) {
                    return Some("it had been confirmed before");
                }
                let lost = self.stopped.filter(|(_, reason)| *reason == StopReason::Lost);
                lost.filter(|(stopped, _)| at > *stopped).map(|_| "it had been told of the loss before")
            }
            Kind::Stop => {
                let again = self.stopped.replace((at, line.reason.unwrap_or(StopReason::Lost)));
                again.map(|_| "it had been asked to stop before")
            }
            Kind::Complete => {
                self.completed = true;
                self.ended.replace(at).map(|_| "it had ended before")
            }
            Kind::Confirm => {
                let again = self.ended.is_some() && !self.completed;
                self.ended.get_or_insert(at);
                let unasked = self.stopped.is_none().then_some("nobody had asked it to stop");
                again.then_some("it had been confirmed before").or(unasked)
            }
            _ => None,
        }
    }
}

/// The value that this part of the values does not exceed: 0.5 is the median, 1.0 the largest.
///
/// # Panics
/// Where there are no values.
pub fn quantile(values: &mut [Duration], part: f64) -> Duration {
    assert!(!values.is_empty(), "there is nothing to take a quantile of");
    values.sort_unstable();
    let rank = (values.len() as f64 * part).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

/// Nanoseconds, for people.
struct Nanos(u64);

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

#[cfg(test)]
mod tests;
