//! Keys whose owners keep dying, and how one that kills its process is told from those that merely ran beside it.
//!
//! # Why
//! When a process dies, everything that it ran has lost an owner, and only one of these keys can have killed it, if any did.
//! So a count of deaths alone sets innocent keys aside: the neighbours of a killer, or the whole group where it is the
//! machines that die. What tells them apart is to run the suspects apart, and to let the rest of the group be the control.
//!
//! # How
//! As pools of samples are tested for what few of them have:
//! - A key is *suspect* after some quick deaths in a row. Many suspects at once are evidence against the machines rather than
//!   against one of them, and a death with many aboard convicts nobody. So nothing waits at first: all that have just become
//!   suspect are given out at once, spread over all nodes, and are not moved until they have lived or died there. If it was
//!   the machines, everything runs. If it was one of the keys, the next death clears those that are elsewhere.
//! - Those that die so once more are held back until the group has been quiet for a while, and tried apart. Where processes
//!   die by themselves, they do so in that time, too, and then nothing counts.
//! - Then they are given out in batches, on at most half of the nodes, those first that are the least likely. A batch that
//!   lives makes room for the next one: all are out again soon, however many there are. One that dies is held back and
//!   given out in smaller batches, so that a killer is alone after few deaths.
//! - A death with one of these aboard, and no other suspect, counts against that one alone, if another session was there to see
//!   that nothing else died. A death with none aboard shows that processes die without the suspects: then nothing counts
//!   any more.
//! - Every other such death counts only on a node that has shown that it can live: it was there at the suspect's death before,
//!   or had run keys for a while. A machine that kills whatever it runs begins anew each time, and would convict one healthy
//!   key after the other. The trials between go to any node: where nodes are killed in turn, it is the young ones that live.
//! - A suspect that has lived for long enough is none.
//! - Where deaths that no suspect explains come again and again, nobody is held back for a while: it is the machines.
//!
//! So machines that keep dying by themselves set nothing aside, and a killer is found after few deaths. The leader keeps
//! nothing here that the next one would miss: what counts stands in the records.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    clock::Instant,
    config::{NodeConfig, Quarantine},
    ids::{NodeId, SessionId},
    limits,
    planner::KeyIx,
};

/// In how many batches suspects are given out. So many that each fits into a batch of ops, or none is held back.
const BATCHES: usize = 8;
/// Up to so many that have died on trial are tried apart from the rest, each alone. More are rather the doing of machines.
pub(super) const FEW: usize = 5;
/// After so many deaths within a while that no suspect explains, suspects are held back no more for as long. Fewer may be the
/// doing of another key that kills, until it is suspect as well.
const UNEXPLAINED: usize = 4;

#[derive(Debug)]
pub(super) struct SuspectTracker {
    quarantine: Option<Quarantine>,
    lease: Duration,
    suspects: BTreeSet<KeyIx>,
    /// Suspects whose owner has died, and that are held back.
    waiting: BTreeSet<KeyIx>,
    /// Suspects that a session has, or is about to be given.
    running: BTreeMap<KeyIx, Run>,
    /// No suspect is given out before.
    quiet_until: Instant,
    /// How many are given out at a time, of those that are tried for the first time and of those that have died so. None
    /// until the first of them are.
    batches: Option<[usize; 2]>,
    /// Deaths of late that no suspect explains.
    unexplained: Vec<Instant>,
    /// Nodes that died of late, and when.
    recent_deaths: BTreeMap<NodeId, Instant>,
}

#[derive(Debug)]
struct Run {
    session: SessionId,
    given: Instant,
    /// Since when it has lived, counted anew each time that it has survived.
    since: Instant,
    /// Until when the session is given no other suspect.
    proven_at: Instant,
    /// Given out at once, with all others of its time.
    dealt: bool,
}

impl SuspectTracker {
    pub(super) fn new(config: &NodeConfig) -> Self {
        Self {
            quarantine: config.quarantine,
            lease: config.lease,
            suspects: BTreeSet::new(),
            waiting: BTreeSet::new(),
            running: BTreeMap::new(),
            quiet_until: Instant(0),
            batches: None,
            unexplained: Vec::new(),
            recent_deaths: BTreeMap::new(),
        }
    }

    fn within(&self) -> Duration {
        self.quarantine.unwrap_or_default().within
    }

    /// How long the group must be quiet before a suspect is tried: long enough for machines that die by themselves to show.
    fn hush(&mut self, now: Instant) {
        self.quiet_until = now + self.quiet();
        self.batches = None;
    }

    fn quiet(&self) -> Duration {
        (self.within() / 2).max(self.lease * 3)
    }

    /// How long a suspect must live to be none: longer than one that kills may take for that.
    fn slow(&self) -> Duration {
        self.quiet() * 5 / 4
    }

    /// How long a node must have run keys to have shown that it can.
    pub(super) fn long_enough(&self) -> Duration {
        self.within().max(self.quiet())
    }

    /// How long a key that runs keeps the next one waiting: longer with each death, since it may take its time to kill.
    fn probation(&self, deaths: u32) -> Duration {
        let suspect = self.quarantine.unwrap_or_default().suspect;
        let times = 1_u32 << deaths.saturating_sub(suspect).saturating_sub(1).min(16);
        (self.lease.max(self.within() / 10) * 5 / 4 * times).min(self.quiet())
    }

    /// Whether suspects are tried apart: there are some, not too many, and it is not the machines that die.
    pub(super) fn isolates(&self, now: Instant) -> bool {
        let lately = self.unexplained.iter().filter(|at| now.since(**at) < self.remembered()).count();
        lately < UNEXPLAINED && (1..=BATCHES * limits::MAX_BATCH_OPS).contains(&self.suspects.len())
    }

    /// For how long a death that no suspect explains is remembered.
    fn remembered(&self) -> Duration {
        self.quiet() * 12
    }

    pub(super) fn holds(&self, k: KeyIx, now: Instant) -> bool {
        self.suspects.contains(&k) && self.isolates(now)
    }

    /// A session that fell silent at `since` dies. Says whether no suspect explains that: all that were there had lived with it
    /// for long enough, or there was none. One that is no longer waited for may be slow to kill.
    pub(super) fn is_unexplained(&mut self, session: SessionId, since: Instant, now: Instant) -> bool {
        let explains = |run: &Run| run.since + self.slow() > since;
        if self.running.values().any(|run| run.session == session && explains(run)) {
            return false;
        }
        let remembered = self.remembered();
        self.unexplained.retain(|at| now.since(*at) < remembered);
        self.unexplained.push(now);
        true
    }

    /// A node has died.
    pub(super) fn note_death(&mut self, node: NodeId, now: Instant) {
        let remembered = self.remembered();
        self.recent_deaths.retain(|_, at| now.since(*at) < remembered);
        self.recent_deaths.insert(node, now);
    }

    /// Whether a node died of late: it may be the machine.
    pub(super) fn has_died(&self, node: &NodeId, now: Instant) -> bool {
        self.recent_deaths.get(node).is_some_and(|at| now.since(*at) < self.remembered())
    }

    /// The key has had `deaths` quick deaths in a row.
    pub(super) fn note(&mut self, k: KeyIx, deaths: u32, now: Instant) {
        if self.quarantine.is_none_or(|quarantine| deaths < quarantine.suspect) {
            return self.forget(k);
        }
        if self.suspects.is_empty() {
            self.hush(now);
        }
        self.suspects.insert(k);
    }

    pub(super) fn forget(&mut self, k: KeyIx) {
        self.suspects.remove(&k);
        self.waiting.remove(&k);
        self.running.remove(&k);
    }

    /// A suspect has no owner.
    pub(super) fn wait(&mut self, k: KeyIx) {
        self.running.remove(&k);
        self.waiting.insert(k);
    }

    /// It is looked at anew how the key stands.
    pub(super) fn waits_no_more(&mut self, k: KeyIx) {
        self.waiting.remove(&k);
    }

    /// A session has the key, or is about to be given it.
    pub(super) fn runs(&mut self, k: KeyIx, session: SessionId, deaths: u32, now: Instant) {
        self.waiting.remove(&k);
        if self.suspects.contains(&k) && self.running.get(&k).is_none_or(|run| run.session != session) {
            let proven_at = now + self.probation(deaths);
            self.running.insert(k, Run { session, given: now, since: now, proven_at, dealt: false });
        }
    }

    /// A session is about to be given the key, and nobody waits for what becomes of that.
    pub(super) fn deal(&mut self, k: KeyIx, session: SessionId, now: Instant) {
        self.waiting.remove(&k);
        let proven_at = now + self.quiet();
        self.running.insert(k, Run { session, given: now, since: now, proven_at, dealt: true });
    }

    pub(super) fn is_suspect(&self, k: KeyIx) -> bool {
        self.suspects.contains(&k)
    }

    /// Suspects that a session has.
    pub(super) fn aboard(&self, session: SessionId) -> impl Iterator<Item = KeyIx> {
        self.running.iter().filter(move |(_, run)| run.session == session).map(|(k, _)| *k)
    }

    /// Since when a session has had a suspect.
    pub(super) fn given(&self, k: KeyIx) -> Option<Instant> {
        self.running.get(&k).map(|run| run.given)
    }

    /// A session has ended.
    pub(super) fn ended(&mut self, session: SessionId, now: Instant) {
        let before = self.running.len();
        self.running.retain(|_, run| run.session != session);
        if self.running.len() < before {
            self.hush(now);
        }
    }

    pub(super) fn suspects(&self) -> impl Iterator<Item = KeyIx> {
        self.suspects.iter().copied()
    }

    /// Those that are held back no more, since there are too many suspects to be tried apart.
    pub(super) fn release(&mut self, now: Instant) -> BTreeSet<KeyIx> {
        if self.isolates(now) { BTreeSet::new() } else { std::mem::take(&mut self.waiting) }
    }

    /// Whether suspects may be given out now, a batch to a session.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.quiet_until <= now && !self.waiting.is_empty()
    }

    /// How many of the waiting are given out at a time, those that have died on trial apart from the rest: a death among many
    /// leaves few, which are not to be held up by the many.
    pub(super) fn batch(&mut self, has_died_so: bool, tried: usize) -> usize {
        let rest = self.waiting.len().saturating_sub(tried);
        let batches = self.batches.get_or_insert([rest, tried].map(|waiting| waiting.div_ceil(BATCHES).max(1)));
        batches[usize::from(has_died_so)]
    }

    pub(super) fn waiting(&self) -> impl Iterator<Item = KeyIx> {
        self.waiting.iter().copied()
    }

    /// How many are held back, and until when at least.
    pub(super) fn held_back(&self) -> (usize, Instant) {
        (self.waiting.len(), self.quiet_until)
    }

    /// Sessions with a suspect aboard that has not proved itself yet.
    pub(super) fn busy(&self, now: Instant) -> BTreeSet<SessionId> {
        self.running.values().filter(|run| run.proven_at > now && !run.dealt).map(|run| run.session).collect()
    }

    /// Suspects that have run for long enough when their sessions were heard last, each named once for each time that this
    /// passes. What a session has been silent for may be the time since its death.
    pub(super) fn survivors(&mut self, now: Instant, heard: impl Fn(SessionId) -> Instant) -> Vec<KeyIx> {
        let within = self.slow();
        let over = self.running.iter_mut().filter(|(_, run)| run.since + within <= heard(run.session));
        over.map(|(k, run)| {
            run.since = now;
            *k
        })
        .collect()
    }

    /// When something is due here.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let proven = self.running.values().map(|run| run.proven_at).filter(|at| *at > now).min();
        let turn = proven.unwrap_or(self.quiet_until).max(self.quiet_until);
        let turn = (!self.waiting.is_empty() && turn > now).then_some(turn);
        let cleared = self.running.values().map(|run| run.since + self.slow()).filter(|at| *at > now).min();
        turn.into_iter().chain(cleared).min()
    }
}
