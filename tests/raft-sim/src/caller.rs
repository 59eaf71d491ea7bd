//! The programs that use the store: what they ask next is drawn, what they are told is written down.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use divider_conformance::Dice;
use divider_core::{
    Beat, Claim, Key, NodeId, Op, Outcome, Page, Revision, SessionId, State, Store, StoreError, Term, Token, Work,
};
use divider_raft::RaftStore;
use uuid::Uuid;

use crate::{
    history::{Answer, Call},
    world::Shared,
};

/// Most keys that a caller adds in its life.
const KEYS: u64 = 25;

/// One caller, in one process.
pub(crate) struct Caller {
    pub(crate) name: String,
    /// Which group, and the store of that.
    pub(crate) group: usize,
    pub(crate) store: RaftStore,
    /// Of its sessions, in milliseconds.
    pub(crate) lease: u64,
    pub(crate) dice: Dice,
    pub(crate) shared: Arc<Shared>,
}

/// What it knows.
#[derive(Default)]
struct Mind {
    session: Option<SessionId>,
    revision: Revision,
    term: Option<Term>,
    added: u64,
    held: Vec<(Key, Token)>,
    page: Option<Page>,
    /// The term in which it watches beats, and since when which one stands still.
    watching: Option<Term>,
    watches: BTreeMap<SessionId, (Beat, u64)>,
}

impl Caller {
    /// Goes on until the world says that it is enough.
    pub(crate) async fn run(mut self) {
        let mut mind = Mind::default();
        while self.shared.is_busy() {
            let pause = self.dice.between(1, 40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match mind.session {
                _ if self.shared.is_quiet() => self.rest(&mut mind).await,
                None => self.join(&mut mind).await,
                // Its node would fence itself.
                Some(session) if self.shared.believes_until(session) <= self.shared.now() => mind.session = None,
                Some(session) => self.act(&mut mind, session).await,
            }
        }
    }

    /// While nothing is to be written.
    async fn rest(&mut self, mind: &mut Mind) {
        match mind.session {
            Some(session) if self.dice.permille(500) => self.renew(mind, session).await,
            _ => {
                if let Ok(silences) = self.store.silences().await {
                    self.shared.silent(&silences);
                }
            }
        }
    }

    async fn join(&mut self, mind: &mut Mind) {
        let session = SessionId(Uuid::from_u64_pair(self.dice.roll(), self.dice.roll()));
        let node = NodeId::new(&self.name).expect("a short name");
        let lease_ms = self.lease as u32;
        let join = Op::Join {
            session,
            node,
            affinity: 1,
            capacity: None,
            lease_ms,
            seen: mind.revision,
            reads: divider_core::format::NEWEST,
        };
        let sent = self.shared.now();
        if let Some((outcomes, revision)) = self.apply(vec![join]).await {
            mind.revision = revision;
            if outcomes == [Outcome::Done] {
                self.shared.believes(session, sent + self.lease);
                self.shared.counted(session, Beat(0), sent);
                *mind = Mind { session: Some(session), added: mind.added, revision, ..Mind::default() };
            }
        }
    }

    async fn act(&mut self, mind: &mut Mind, session: SessionId) {
        match self.dice.below(100) {
            0..25 if mind.added < KEYS => {
                let many = self.dice.between(1, 3);
                let ops = (0..many).map(|n| {
                    let key = format!("{}/{}", self.name, mind.added + n);
                    Op::Add(Work::new(key).expect("a short key"))
                });
                let ops = ops.collect();
                mind.added += many;
                self.apply(ops).await;
            }
            25..40 => self.poll(mind, session).await,
            40..60 if mind.term.is_some() && mind.page.is_some() => self.assign(mind, session).await,
            60..75 if !mind.held.is_empty() => {
                let at = self.dice.below(mind.held.len() as u64) as usize;
                let (key, token) = mind.held.swap_remove(at);
                let op = match self.dice.below(4) {
                    0 => Op::complete(session, key, token),
                    1 => Op::give_up(session, key, token),
                    2 => Op::Checkpoint { session, key, token, bytes: vec![7; 3].into() },
                    _ => Op::Confirm { session, key, token, started: true },
                };
                self.apply(vec![op]).await;
            }
            75..82 => self.renew(mind, session).await,
            82..84 if mind.page.is_some() => {
                let page = mind.page.as_ref().expect("looked at above");
                if !page.keys.is_empty() {
                    let at = self.dice.below(page.keys.len() as u64) as usize;
                    let key = page.keys[at].key.clone();
                    self.apply(vec![Op::Remove { key }]).await;
                }
            }
            84..86 => {
                self.apply(vec![Op::End { session }]).await;
                // Also where nobody knows: it is not used again, but asked about.
                self.renew(mind, session).await;
                mind.session = None;
            }
            86..92 if mind.term.is_some() => self.watch(mind, session).await,
            _ => _ = self.scan(mind).await,
        }
    }

    /// Expires a session that has been silent for its lease, as the leader of a group does it.
    async fn watch(&mut self, mind: &mut Mind, session: SessionId) {
        let (Some(term), Ok(beats)) = (mind.term, self.store.beats().await) else { return };
        let now = self.shared.now();
        if mind.watching != Some(term) {
            mind.watches.clear();
        }
        mind.watches.retain(|session, _| beats.iter().any(|(beats, _)| beats == session));
        for (session, beat) in beats {
            let watch = mind.watches.entry(session).or_insert((beat, now));
            if watch.0 != beat {
                *watch = (beat, now);
            }
        }
        if mind.watching != Some(term)
            && let Ok(silences) = self.store.silences().await
        {
            let now = self.shared.now();
            self.shared.silent(&silences);
            for (session, beat, silent) in silences {
                if let Some((_, since)) = mind.watches.get_mut(&session).filter(|watch| watch.0 == beat) {
                    *since = now.saturating_sub(silent.as_millis() as u64).min(*since);
                }
            }
            mind.watching = Some(term);
        }
        let now = self.shared.now();
        let silent = |(of, (_, since)): &(&SessionId, &(Beat, u64))| **of != session && since + self.lease <= now;
        if let Some((silent, (beat, _))) = mind.watches.iter().find(silent) {
            let (silent, beat) = (*silent, *beat);
            let expire = Op::Expire { term, session: silent, beat, verdict: divider_core::Verdict::young(Token(0)) };
            if let Some((outcomes, _)) = self.apply(vec![expire]).await
                && outcomes == [Outcome::Done]
            {
                self.shared.expired(silent, now);
            }
        }
    }

    async fn assign(&mut self, mind: &mut Mind, session: SessionId) {
        let (Some(term), Some(page)) = (mind.term, mind.page.take()) else { return };
        let free: Vec<Key> =
            page.keys.iter().filter(|view| view.state == State::Pending).map(|view| view.key.clone()).collect();
        let alive: Vec<SessionId> =
            page.sessions.iter().filter(|view| view.ended.is_none()).map(|view| view.session).collect();
        let many = self.dice.between(1, 3) as usize;
        let ops: Vec<Op> = free
            .into_iter()
            .take(many)
            .map(|key| Op::Assign {
                term,
                key,
                session: if alive.is_empty() || self.dice.permille(600) { session } else { self.dice.pick(&alive) },
            })
            .collect();
        if ops.is_empty() {
            return;
        }
        if let Some((outcomes, _)) = self.apply(ops.clone()).await {
            for (op, outcome) in ops.into_iter().zip(outcomes) {
                match (op, outcome) {
                    (Op::Assign { key, session: owner, .. }, Outcome::Granted(token)) if owner == session => {
                        mind.held.push((key, token));
                    }
                    (_, Outcome::Refused(_)) => mind.term = None,
                    _ => {}
                }
            }
        }
    }

    async fn apply(&mut self, ops: Vec<Op>) -> Option<(Vec<Outcome>, Revision)> {
        let number = self.shared.asked(&self.name, self.group, Call::Apply(ops.clone()));
        let answer = self.store.apply(&ops).await;
        match answer {
            Ok(applied) => {
                let known = (applied.outcomes.clone(), applied.revision);
                self.shared.answered(&self.name, number, Answer::Applied(applied));
                Some(known)
            }
            Err(error) => {
                self.shared.failed(&self.name, number, &error);
                None
            }
        }
    }

    async fn poll(&mut self, mind: &mut Mind, session: SessionId) {
        let claim = match mind.term {
            Some(term) if self.dice.permille(500) => Claim::Lead { term },
            _ => Claim::Take { stale: None },
        };
        let number = self.shared.asked(&self.name, self.group, Call::Take(session));
        match self.store.poll(session, claim).await {
            Ok(reply) => {
                mind.term = reply.leader.filter(|leader| leader.session == session).map(|leader| leader.term);
                self.shared.answered(&self.name, number, Answer::PollReply);
            }
            Err(error) => self.shared.failed(&self.name, number, &error),
        }
    }

    async fn renew(&mut self, mind: &mut Mind, session: SessionId) {
        let number = self.shared.asked(&self.name, self.group, Call::Renew(session));
        let sent = self.shared.now();
        match self.store.renew(session).await {
            Ok(beat) => {
                self.shared.counted(session, beat, sent);
                // An answer that comes after the deadline does not revive the lease.
                if self.shared.now() < self.shared.believes_until(session) {
                    self.shared.believes(session, sent + self.lease);
                }
                self.shared.answered(&self.name, number, Answer::Beat);
            }
            Err(StoreError::SessionEnded) => {
                mind.session = None;
                self.shared.answered(&self.name, number, Answer::Ended);
            }
            Err(error) => self.shared.failed(&self.name, number, &error),
        }
    }

    async fn scan(&mut self, mind: &mut Mind) -> bool {
        let number = self.shared.asked(&self.name, self.group, Call::Scan);
        match self.store.scan(None).await {
            Ok(page) => {
                mind.revision = page.revision;
                self.shared.answered(&self.name, number, Answer::Page(Box::new(page.clone())));
                mind.page = Some(page);
                true
            }
            Err(error) => {
                self.shared.failed(&self.name, number, &error);
                false
            }
        }
    }

    /// In a new life: has a key granted, where its session leads its group.
    pub(crate) async fn grant(&mut self) -> Option<(Token, Term)> {
        let mut mind = Mind::default();
        self.join(&mut mind).await;
        let Some(session) = mind.session else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return None;
        };
        for _ in 0..100 {
            self.poll(&mut mind, session).await;
            if let Some(term) = mind.term {
                let key = Key::new(format!("{}/first", self.name)).expect("a short key");
                let add = Op::Add(Work::from(key.clone()));
                let (outcomes, _) = self.apply(vec![add, Op::Assign { term, key, session }]).await?;
                return outcomes.into_iter().find_map(|outcome| match outcome {
                    Outcome::Granted(token) => Some((token, term)),
                    _ => None,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.apply(vec![Op::End { session }]).await;
        None
    }

    /// After healing: whether a batch is applied, and what it did is read.
    pub(crate) async fn works(&mut self, round: u64) -> bool {
        let key = format!("{}/healed/{round}", self.name);
        let add = Op::Add(Work::new(key).expect("a short key"));
        self.apply(vec![add]).await.is_some() && self.scan(&mut Mind::default()).await
    }
}
