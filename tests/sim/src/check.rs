//! The rules that are looked at from outside of the programs: all the time, when faults are over, and at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use divider_core::{Divider, Key, SessionId, State, Token};

use crate::{
    exec::Pid,
    plan::{DEATHS, EVIDENCE, Plan},
    world::{Process, World},
};

/// A process that hears nothing of what it is given, although all else is well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deaf {
    pub(crate) pid: Pid,
    /// The session that it had when that began.
    pub(crate) session: SessionId,
    /// It can still read what it holds.
    pub(crate) reads: bool,
    /// The number of the store's mood.
    pub(crate) mood: u64,
}

/// What has to come about by itself once faults are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    EveryKeyRuns,
    Balanced,
}

impl Goal {
    /// Most leases until then. Suspects are tried batch by batch; and what kills its process does so a few times first.
    pub(crate) fn bound(self, plan: &Plan) -> u64 {
        match self {
            Self::EveryKeyRuns if plan.killers > 0 => 200,
            Self::EveryKeyRuns if plan.quarantine => 44,
            Self::EveryKeyRuns => 14,
            Self::Balanced => 10,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EveryKeyRuns => "every key runs",
            Self::Balanced => "the keys are balanced",
        }
    }
}

impl World {
    pub(crate) fn holds(&self, goal: Goal) -> Result<(), String> {
        match goal {
            Goal::EveryKeyRuns => self.converged(),
            // A call that was sent before may hang for its whole time, and cost its node the session even now.
            Goal::Balanced if self.exec.now() < self.state.lock().busy => Err("old calls are under way".into()),
            Goal::Balanced => self.balanced(),
        }
    }

    /// Looks all the time whether two processes believe in one key.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.plan.lease / 23).await;
            self.look_at_the_over();
            self.look_at_the_set_aside();
            let mut believers: BTreeMap<Key, Pid> = BTreeMap::new();
            for process in self.processes() {
                for (key, token) in process.program.running() {
                    if !process.program.node.is_current(&key, token) {
                        continue;
                    }
                    self.look_at_belief(process.program.pid, &key, token);
                    if let Some(other) = believers.insert(key.clone(), process.program.pid) {
                        let pid = process.program.pid;
                        self.trace.broken(format!("{other} and {pid} both believe that they own {key}"));
                    }
                }
            }
        }
    }

    /// Whether every key runs where the ledger says, and nowhere else.
    pub(crate) fn converged(&self) -> Result<(), String> {
        if self.state.lock().declaring > 0 {
            return Err("work is still being declared".into());
        }
        let blind = self.state.lock().deaf.filter(|deaf| !deaf.reads).map(|deaf| deaf.pid);
        // Whoever neither hears nor reads takes part for as long as there is nothing to be heard.
        let takes_part = |process: &Process| {
            let program = &process.program;
            !program.is_over() && (Some(program.pid) != blind || program.node.session().is_some())
        };
        let (processes, out): (Vec<_>, Vec<_>) = self.processes().into_iter().partition(takes_part);
        if let Some(process) = out.iter().find(|process| process.program.node.session().is_some()) {
            return Err(format!("nobody reads in process {}, and it has a session", process.program.pid));
        }
        if let Some(process) = processes.iter().find(|process| process.program.is_leaving()) {
            return Err(format!("process {} is still leaving", process.program.pid));
        }
        if let Some(process) = processes.iter().find(|process| process.program.is_asking()) {
            return Err(format!("process {} is still asking for an affinity", process.program.pid));
        }
        let server = self.net.server.lock();
        let ledger = server.ledger();
        let alive: BTreeSet<_> = ledger.sessions().filter(|view| view.ended.is_none()).map(|v| v.session).collect();
        let known: BTreeSet<_> = processes.iter().filter_map(|process| process.program.node.session()).collect();
        if known.len() < processes.len() || known != alive {
            return Err(format!(
                "of {} processes, {known:?} have sessions; the ledger knows {alive:?}",
                processes.len()
            ));
        }
        if ledger.group().leader.is_none() || ledger.group().grants_held {
            return Err(format!("{:?}", ledger.group()));
        }
        for key in self.lasting() {
            if ledger.record(&key).is_none() {
                return Err(format!("{key} is not known"));
            }
        }
        let page = ledger.scan(None).map_err(|error| error.to_string())?;
        let mut runs: BTreeMap<Key, (Pid, divider_core::SessionId)> = BTreeMap::new();
        for process in &processes {
            for (key, token) in process.program.running() {
                if !process.program.node.is_current(&key, token) {
                    return Err(format!("process {} runs {key} and does not believe in it", process.program.pid));
                }
                let session = process.program.node.session().ok_or("no session")?;
                if let Some((other, _)) = runs.insert(key.clone(), (process.program.pid, session)) {
                    return Err(format!("{key} runs on {other} and {}", process.program.pid));
                }
            }
        }
        for view in page.keys {
            match (view.state, runs.remove(&view.key)) {
                (State::Assigned { session, .. }, Some((_, owner))) if session == owner => {}
                (State::Quarantined(_), None) if self.common.killers.contains(&view.key) => {}
                (state, runs) => return Err(format!("{} is {state:?} and runs on {runs:?}", view.key)),
            }
        }
        match runs.pop_first() {
            Some((key, (pid, _))) => Err(format!("{key} runs on {pid} and is not known")),
            None => Ok(()),
        }
    }

    /// Whether every node has its quota.
    pub(crate) fn balanced(&self) -> Result<(), String> {
        self.converged()?;
        let server = self.net.server.lock();
        let ledger = server.ledger();
        let sessions: Vec<_> = ledger.sessions().filter(|view| view.takes_work()).cloned().collect();
        let all: u64 = sessions.iter().map(|view| u64::from(view.affinity)).sum();
        let stats = server.stats();
        let keys = stats.registered - stats.quarantined;
        for view in &sessions {
            if !view.settled {
                return Err(format!("{} is not settled", view.node));
            }
            let held = ledger.holdings(view.session).map_or(0, |holdings| holdings.holdings.len() as u64);
            // The quota is whole by largest remainder: one of the two whole numbers beside the share.
            let share = keys * u64::from(view.affinity);
            if held * all >= share + all || (held + 1) * all <= share {
                return Err(format!(
                    "{} holds {held} of {keys} keys at affinity {} of {all}",
                    view.node, view.affinity
                ));
            }
        }
        Ok(())
    }

    /// The books at the end: no key is lost, and each is in one state.
    pub(crate) fn count_keys(&self) {
        let server = self.net.server.lock();
        let ledger = server.ledger();
        let stats = server.stats();
        if stats.registered != stats.assigned + stats.pending + stats.stopping + stats.quarantined {
            self.trace.broken(format!("the counts do not add up: {stats:?}"));
        }
        let state = self.state.lock();
        let ended = self.common.ended.lock();
        if !state.forgot
            && let Some(key) = state.declared.iter().find(|key| !ended.contains(*key) && ledger.record(key).is_none())
        {
            self.trace.broken(format!("{key} was declared and never ended, and is lost"));
        }
    }

    /// Where no process has died, no death is held against a key. A few may stay counted where a node that came back could not
    /// find out what it had been given.
    pub(crate) fn count_blames(&self) {
        // One that is over has died as well, and speaks for nothing.
        let over = self.processes().iter().any(|process| process.program.is_over());
        if !EVIDENCE || over || self.state.lock().gone > 0 {
            return;
        }
        // One that is not the key's last stays counted as well: the next owner was taken for dead before the first came back.
        let most = if self.net.server.lock().tells_all() { 1 } else { 2 };
        let page = self.net.server.lock().ledger().scan(None);
        let keys = page.map(|page| page.keys).unwrap_or_default();
        if let Some(view) = keys.iter().find(|view| view.deaths.count > most) {
            let (key, count) = (&view.key, view.deaths.count);
            self.trace.broken(format!("no process has died, and {count} deaths are held against {key}"));
        }
    }

    /// Whoever believes in a key has it, by the ledger: every way in which it ends is known to the owner first, or takes a
    /// lease. Only a store that forgets knows less than the owner, and one that may have forgotten, until a lease is over.
    fn look_at_belief(&self, pid: Pid, key: &Key, token: Token) {
        let server = self.net.server.lock();
        let hold = server.ledger().group().grants_held;
        let owner = server.ledger().record(key).and_then(|record| record.view.state.owner());
        drop(server);
        if !hold && owner.is_none_or(|(_, held)| held != token) && !self.state.lock().forgot {
            self.trace.broken(format!("{pid} believes in {key} with token {token}; by the ledger it is {owner:?}"));
        }
    }

    /// What was ordered and acknowledged has begun since it was taken in, or is still to begin.
    pub(crate) fn count_orders(&self) {
        let state = self.state.lock();
        if state.forgot {
            return;
        }
        let server = self.net.server.lock();
        let begun = self.common.begun.lock();
        for (key, number) in &state.orders.1 {
            let orders = server.orders.get(key);
            let taken = orders.and_then(|orders| orders.taken.get(number));
            let (begun, given) = begun.get(key).cloned().unwrap_or_default();
            // A grant that was made before may be told with what was ordered since.
            let mut since =
                orders.iter().flat_map(|orders| orders.sequence.iter().skip_while(|order| *order != number));
            let told = since.any(|order| given.contains(order));
            if !told && taken.is_none_or(|taken| begun <= *taken) && server.ledger().record(key).is_none() {
                self.trace.broken(format!(
                    "order {number} of {key} was acknowledged, and nobody began it: taken in at {taken:?}, last begun {begun}"
                ));
            }
        }
    }

    /// A session has ended by its own node's word, before its lease was over: nobody may act any more on what it had. What had
    /// left its name before is not freed by that; a program may still be winding it up where it was the last to hear of it.
    pub(crate) fn ended_by_word(&self, session: SessionId) {
        let had = |key: &Key, token| {
            let record = self.net.server.lock().ledger().record(key);
            record.and_then(|record| record.view.state.owner()) == Some((session, token))
        };
        let acts = self.common.acts.lock();
        let acting = acts.iter().find(|((_, key, token), of)| **of == session && had(key, *token));
        if let Some(((pid, key, token), _)) = acting {
            self.trace.broken(format!(
                "process {pid} has said that its session is over while {key}, {token} was still being wound up there"
            ));
        }
    }

    /// Nothing of a process acts any more.
    pub(crate) fn forget_acts(&self, pid: Pid) {
        self.common.acts.lock().retain(|(of, ..), _| *of != pid);
    }

    /// A process or its node has died with all that it held.
    pub(crate) fn count_deaths(&self, pid: Pid) {
        let process = self.state.lock().processes.get(&pid).cloned();
        let Some(process) = process.filter(|process| !process.buried) else { return };
        self.state.lock().gone += 1;
        let held = process.program.node.session().and_then(|session| self.net.server.lock().holdings(session).ok());
        let held = held.into_iter().flat_map(|held| held.holdings).map(|holding| holding.key);
        let keys: BTreeSet<Key> = process.program.running().into_keys().chain(held).collect();
        let mut state = self.state.lock();
        for key in keys {
            *state.deaths.entry(key).or_default() += 1;
        }
    }

    /// Whether so many owners of a key have died that it may be to blame.
    pub(crate) fn has_evidence(&self, key: &Key) -> bool {
        self.common.killers.contains(key) || self.state.lock().deaths.get(key).is_some_and(|deaths| *deaths >= DEATHS)
    }

    /// Nothing healthy is set aside.
    fn look_at_the_set_aside(&self) {
        if !EVIDENCE {
            return;
        }
        let listed = self.net.server.lock().ledger().quarantined(1000);
        let Some(key) = listed.iter().find(|key| !self.has_evidence(key)) else { return };
        let deaths = self.state.lock().deaths.get(key).copied().unwrap_or(0);
        self.trace.broken(format!("{key} was set aside although only {deaths} of its owners have died"));
    }

    /// Processes in which nobody reads any more: most end, and are started again; some keep their handle for ever.
    fn look_at_the_over(&self) {
        let over = |process: &Process| process.program.is_over() && !process.buried && !process.program.is_leaving();
        for process in self.processes().into_iter().filter(over) {
            let pid = process.program.pid;
            self.count_deaths(pid);
            if let Some(process) = self.state.lock().processes.get_mut(&pid) {
                process.buried = true;
            }
            let ends = self.state.lock().dice.permille(600);
            if ends {
                let delay = self.part(200);
                self.later(delay, move |world| {
                    let process = world.state.lock().processes.get(&pid).cloned();
                    if let Some(process) = process {
                        world.restart_later(&process);
                        drop(process);
                        world.exec.crash(pid);
                    }
                });
            }
        }
    }

    /// A process that was deaf and has lost its session is deaf no more: it may not even be able to join again.
    pub(crate) fn look_at_the_deaf(&self) {
        let deaf = self.state.lock().deaf.filter(|deaf| deaf.reads);
        let Some(deaf) = deaf else { return };
        let process = self.state.lock().processes.get(&deaf.pid).cloned();
        if process.is_none_or(|process| process.program.node.session() != Some(deaf.session)) {
            self.deaf_no_more();
        }
    }

    pub(crate) fn deaf_no_more(&self) {
        if let Some(deaf) = self.state.lock().deaf.take() {
            self.net.lift_mood(deaf.mood);
        }
    }
}
