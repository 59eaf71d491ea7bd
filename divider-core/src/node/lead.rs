//! Leadership: looks out for it, takes it, and drives the [`Leader`] while this node has it.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::maybe_done};

use tracing::Instrument;

use super::{
    duty::{Duties, Duty},
    feed::{self, Feed},
    leader_watch::LeaderWatch,
    observe::target,
    shared::{Loss, Shared},
    source_reader::SourceReader,
};
use crate::{
    clock::Instant,
    error::StoreError,
    ids::{Revision, SessionId, Term},
    leader::{Deposed, FeedOutcome, Leader, Proposal},
    limits,
    op::Batch,
    store::{Claim, Cursor, Hint, PollReply},
};

/// How often a leader asks for changes that must be there before it reads the whole group again.
const ASKS: u32 = 10;
/// After so many refusals running it is not one op that the store does not take.
const MOST_REFUSALS: usize = 8;
/// As far as the changes go.
const NEWEST: Revision = Revision(u64::MAX);

/// Why a leader stopped.
enum Over {
    /// Somebody else leads, or nobody.
    Lost,
    /// The picture has a hole that only a new scan closes.
    Behind,
    /// This node may lead, but is not let do what a leader does: another one may be.
    Unable(Duty),
}

/// Runs until the session is over.
pub(crate) async fn run(shared: Arc<Shared>, session: SessionId) {
    let mut seen: Option<LeaderWatch> = None;
    // Until then the leadership is left to others.
    let mut abstains = Instant(0);
    loop {
        let now = shared.clock.now();
        let claim = match &seen {
            _ if now < abstains || shared.with(|member| member.draining()) => Claim::Follow,
            Some(seen) => Claim::Take { stale: seen.stale(now, shared.config.lease) },
            None => Claim::Take { stale: None },
        };
        let mut pause = shared.config.poll_interval();
        match look(&shared, session, claim).await {
            Err(StoreError::SessionEnded) => return shared.session_ended(session, Loss::Ended("a poll")),
            Err(_) => seen.iter_mut().for_each(LeaderWatch::unanswered),
            Ok(PollReply { leader: Some(leader), .. }) if leader.session == session => {
                let deposed = seen.take().and_then(|seen| seen.deposed());
                if now >= abstains {
                    let Some(duty) = lead(&shared, session, leader.term, deposed).await else { continue };
                    let node = &shared.config.node;
                    tracing::warn!(target: target::LEADER, %node, "could not {duty} for a lease: lets others lead");
                    abstains = shared.clock.now() + shared.config.lease * 2;
                }
                // Best effort: it is not renewed either.
                let _ = shared.observer.call("resign", shared.store.resign(session, leader.term)).await;
            }
            Ok(PollReply { leader: Some(leader), .. }) => {
                let now = shared.clock.now();
                let seen = seen.get_or_insert_with(|| LeaderWatch::new(leader, now));
                seen.update(leader, now);
                if leader.watched {
                    pause = shared.config.watched_poll_interval();
                }
                // The moment at which it would be stale. Past that, it is a store that finds dead leaders by itself.
                let left = (seen.since + shared.config.lease).since(now);
                if !left.is_zero() {
                    pause = pause.min(left).max(Duration::from_millis(1));
                }
            }
            Ok(PollReply { leader: None, .. }) => seen = None,
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = shared.leader_gone.notified() => {}
        }
    }
}

/// One poll, and what every poll is good for.
async fn look(shared: &Shared, session: SessionId, claim: Claim) -> Result<PollReply, StoreError> {
    let asked = shared.clock.now();
    let polled = shared.observer.call("poll", shared.store.poll(session, claim)).await;
    let reply = polled.inspect_err(|_| {
        if shared.gaps.lock().is_unsure(shared.clock.now(), shared.config.resync) {
            shared.unsure.notify_one();
        }
    })?;
    shared.token_ages.lock().note(shared.clock.now(), reply.token);
    // What the poll before this one knew of must have come by now, or it is lost.
    let (expected, at) = std::mem::replace(&mut *shared.polled.lock(), (reply.seq, reply.revision));
    match shared.with(|member| (member.session() == Some(session)).then(|| member.seq())) {
        Some(seq) if seq < expected => shared.resync.notify_one(),
        heard => {
            if heard.is_some() {
                shared.heard.fetch_max(at.0, Ordering::Relaxed);
            }
            shared.gaps.lock().knows_all(asked);
        }
    }
    Ok(reply)
}

/// Leads until it is over. Returns what this node could not do, where that is the reason.
async fn lead(shared: &Arc<Shared>, session: SessionId, term: Term, deposed: Option<Deposed>) -> Option<Duty> {
    tracing::info!(target: target::LEADER, node = %shared.config.node, %session, %term, "leads");
    shared.leading.send_replace(Some(term));
    shared.rested.send_replace(Some(Revision(0)));
    shared.observer.leading(true);
    let _guard = Leading(shared);
    loop {
        let leader = Leader::new(shared.config.clone(), term, deposed);
        let span = tracing::info_span!(target: target::LEADER, "lead", %term);
        match LeaderTask::new(shared, session, leader).run().instrument(span).await {
            Over::Behind => {
                tracing::info!(target: target::LEADER, node = %shared.config.node, %term, "reads the group again");
            }
            Over::Lost => {
                tracing::info!(target: target::LEADER, node = %shared.config.node, %term, "leads no more");
                return None;
            }
            Over::Unable(duty) => return Some(duty),
        }
    }
}

/// Says that the node leads no more, however that came about.
struct Leading<'a>(&'a Shared);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        self.0.leading.send_replace(None);
        self.0.rested.send_replace(None);
        self.0.observer.leading(false);
    }
}

struct LeaderTask<'a> {
    shared: &'a Arc<Shared>,
    session: SessionId,
    leader: Leader,
    /// Begins to read when the group is known.
    source_reader: SourceReader,
    duties: Duties,
    /// When leadership was renewed last.
    ticked: Instant,
}

impl<'a> LeaderTask<'a> {
    fn new(shared: &'a Arc<Shared>, session: SessionId, leader: Leader) -> Self {
        let (source_reader, ticked) = (SourceReader::new(shared), shared.clock.now());
        Self { shared, session, leader, source_reader, duties: Duties::default(), ticked }
    }

    async fn run(mut self) -> Over {
        if let Err(over) = self.load().await {
            return over;
        }
        let mut feed = feed::follow(self.shared);
        self.source_reader.begin(self.shared);
        let mut ticks = tokio::time::interval(self.shared.config.poll_interval());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Err(over) = self.decide(&mut feed).await {
                return over;
            }
            let wake = self.leader.next_wake(self.shared.now());
            let mut wake = pin!(async {
                match wake {
                    // A deadline that has passed is dealt with at the next tick, when the store may be well again.
                    Some(wait) => tokio::time::sleep(wait.max(Duration::from_millis(1))).await,
                    None => std::future::pending().await,
                }
            });
            // In this order: what comes seldom cannot be held up by what comes often. Ticks follow each other without a break
            // where the store is slow; the feed is read before each decision as well.
            let step = tokio::select! {
                biased;
                find = self.source_reader.next() => {
                    let ops = self.source_reader.compare(find, &self.leader, self.shared.clock.now());
                    self.source_reader.declare(self.shared, ops);
                    Ok(())
                }
                () = &mut wake => {
                    self.leader.tick(self.shared.now());
                    Ok(())
                }
                _ = ticks.tick() => self.tick().await,
                Some(hint) = feed.next() => self.hear(hint).await,
            };
            if let Err(over) = step {
                return over;
            }
        }
    }

    /// Reads the whole group. The changes since the first page are taken in after each page: all at once, a busy group's
    /// would be forgotten before they are asked for.
    async fn load(&mut self) -> Result<(), Over> {
        let began = self.shared.clock.now();
        let shared = self.shared;
        let scan =
            |cursor: Option<Cursor>| Box::pin(maybe_done(shared.observer.call("scan", shared.store.scan(cursor))));
        let (mut cursor, mut first, mut renewed) = (None, true, began);
        let mut coming = scan(None);
        loop {
            coming.as_mut().await;
            let read = coming.as_mut().take_output().and_then(Result::ok);
            // What is older than the changes that have been taken in must not undo them.
            let Some(page) = read.filter(|page| first || page.revision >= self.leader.revision()) else {
                self.duties.failed(Duty::Read, shared.clock.now());
                self.pause_and_renew().await?;
                coming = scan(cursor.clone());
                continue;
            };
            self.duties.done(Duty::Read);
            let (now, revision) = (shared.now(), page.revision);
            cursor = page.next.clone();
            if cursor.is_some() {
                coming = scan(cursor.clone());
                // Sends the request: the store reads the next page while this one is taken in. Where another task does the
                // sending, it may only run on this thread, so it is let go first.
                _ = coming.as_mut().now_or_never();
                tokio::task::yield_now().await;
            }
            self.leader.page(page, now, first);
            first = false;
            self.catch_up(revision).await?;
            if cursor.is_none() {
                break;
            }
            if now.mono.since(renewed) >= shared.config.poll_interval() {
                self.renew().await?;
                renewed = now.mono;
            }
        }
        self.catch_up(NEWEST).await?;
        self.leader.loaded(self.shared.now());
        self.beats().await;
        if let Ok(silences) = self.shared.observer.call("silences", self.shared.store.silences()).await {
            self.leader.silences(&silences, self.shared.now());
        }
        tracing::info!(
            target: target::LEADER, node = %self.shared.config.node, counts = ?self.leader.counts(),
            took = ?self.shared.clock.now().since(began), "knows the group"
        );
        Ok(())
    }

    async fn pause_and_renew(&mut self) -> Result<(), Over> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.renew().await.map(drop)
    }

    /// Renews the leadership. A store that cannot be reached says nothing about it: the ledger refuses what a deposed
    /// leader proposes.
    async fn renew(&mut self) -> Result<Option<PollReply>, Over> {
        let claim = Claim::Lead { term: self.leader.term() };
        match look(self.shared, self.session, claim).await {
            Ok(reply) => {
                let still = reply.leader.map(|leader| (leader.session, leader.term));
                if still != Some((self.session, self.leader.term())) {
                    return Err(Over::Lost);
                }
                match self.duties.neglected(self.shared.clock.now(), self.shared.config.lease) {
                    Some(duty) => Err(Over::Unable(duty)),
                    None => Ok(Some(reply)),
                }
            }
            Err(StoreError::SessionEnded) => {
                self.shared.session_ended(self.session, Loss::Ended("a poll"));
                Err(Over::Lost)
            }
            Err(_) => {
                self.duties.excuse();
                Ok(None)
            }
        }
    }

    async fn tick(&mut self) -> Result<(), Over> {
        self.ticked = self.shared.clock.now();
        let Some(reply) = self.renew().await? else { return Ok(()) };
        self.beats().await;
        self.leader.seen(reply.revision);
        if self.leader.is_behind() {
            self.catch_up(NEWEST).await?;
        }
        self.leader.tick(self.shared.now());
        self.shared.observer.counts(self.leader.counts());
        self.shared.observer.news(self.leader.take_news());
        Ok(())
    }

    async fn beats(&mut self) {
        match self.shared.observer.call("beats", self.shared.store.beats()).await {
            Ok(beats) => {
                self.duties.done(Duty::Watch);
                self.leader.beats(&beats, self.shared.now());
            }
            Err(_) => self.duties.failed(Duty::Watch, self.shared.clock.now()),
        }
        if self.shared.config.lock_delay.is_some()
            && let Ok(gone) = self.shared.observer.call("gone", self.shared.store.gone()).await
        {
            self.leader.gone(&gone, self.shared.now());
        }
    }

    /// Takes in one hint.
    async fn hear(&mut self, hint: Option<Hint>) -> Result<(), Over> {
        match hint {
            Some(Hint::Batch(batch)) => match self.take_in(batch) {
                FeedOutcome::Applied | FeedOutcome::Known => Ok(()),
                FeedOutcome::Gap => self.catch_up(NEWEST).await,
            },
            Some(Hint::Gap) => {
                self.shared.observer.hint_missed();
                self.catch_up(NEWEST).await
            }
            Some(Hint::Message(_) | Hint::LeaderGone) => Ok(()),
            // A subscription has begun, which knows nothing of what was before.
            None => self.catch_up(NEWEST).await,
        }
    }

    fn take_in(&mut self, batch: Batch) -> FeedOutcome {
        self.source_reader.note(&batch);
        self.leader.feed(batch, self.shared.now())
    }

    /// Reads the changes until the picture is up to date, but none that are newer than `to`.
    async fn catch_up(&mut self, to: Revision) -> Result<(), Over> {
        let mut asks = 0;
        while to == NEWEST || self.leader.revision() < to {
            let since = self.leader.revision();
            match self.shared.observer.call("changes", self.shared.store.changes(since)).await {
                Ok(Some(batches)) => {
                    self.duties.done(Duty::Read);
                    let none = batches.is_empty();
                    for batch in batches.into_iter().filter(|batch| batch.revision <= to) {
                        if self.take_in(batch) == FeedOutcome::Gap {
                            return Err(Over::Behind);
                        }
                    }
                    if !self.leader.is_behind() {
                        return Ok(());
                    }
                    if none {
                        // Whoever said that there is more spoke of another lineage, or knows more than who answers here.
                        asks += 1;
                        if asks == ASKS {
                            return Err(Over::Behind);
                        }
                        self.pause_and_renew().await?;
                    }
                }
                Ok(None) => return Err(Over::Behind),
                Err(_) => {
                    self.duties.failed(Duty::Read, self.shared.clock.now());
                    self.pause_and_renew().await?;
                }
            }
        }
        Ok(())
    }

    /// Proposes until there is nothing to do. Between two batches it takes in what has come, so that each is decided on
    /// the newest picture.
    async fn decide(&mut self, feed: &mut Feed) -> Result<(), Over> {
        loop {
            while let Some(Some(hint)) = feed.next().now_or_never() {
                self.hear(hint).await?;
            }
            let proposal = {
                let token_ages = self.shared.token_ages.lock();
                self.leader.propose(self.shared.now(), limits::MAX_BATCH_OPS, &token_ages)
            };
            // Much work must not keep the leader from renewing its leadership.
            let late = self.shared.clock.now().since(self.ticked) >= self.shared.config.poll_interval();
            if proposal.is_empty() {
                self.shared.observer.timings(self.leader.take_timings());
                self.shared.rested.send_replace(Some(self.leader.revision()));
                return Ok(());
            }
            let done = match self.carry_out(&proposal).await? {
                Err(error) if !error.is_transient() && proposal.ops.len() > 1 => self.one_by_one(proposal).await?,
                Err(_) => {
                    self.leader.unanswered(&proposal);
                    false
                }
                Ok(()) => true,
            };
            if !done {
                self.duties.failed(Duty::Propose, self.shared.clock.now());
                tokio::time::sleep(Duration::from_millis(10)).await;
                return Ok(());
            }
            if late {
                self.tick().await?;
            }
        }
    }

    /// One try. The inner error is the store's.
    async fn carry_out(&mut self, proposal: &Proposal) -> Result<Result<(), StoreError>, Over> {
        let applied = match self.shared.apply("propose", &proposal.ops).await {
            Ok(applied) => applied,
            Err(error) => return Ok(Err(error)),
        };
        self.duties.done(Duty::Propose);
        self.shared.observer.moved(&proposal.ops, &applied.outcomes);
        tracing::debug!(target: target::LEADER, node = %self.shared.config.node, ops = proposal.ops.len(), "moved");
        match self.leader.answered(proposal, &applied.outcomes, applied.revision, self.shared.now()) {
            true => Ok(Ok(())),
            false => Err(Over::Lost),
        }
    }

    /// What the store does not take may be a single op, which must not hold up all others. Says whether it has taken any.
    async fn one_by_one(&mut self, proposal: Proposal) -> Result<bool, Over> {
        let (mut refusals, mut done) = (0, false);
        for part in proposal.parts() {
            if refusals < MOST_REFUSALS {
                match self.carry_out(&part).await? {
                    Ok(()) => {
                        (refusals, done) = (0, true);
                        continue;
                    }
                    Err(error) if error.is_transient() => refusals = MOST_REFUSALS,
                    Err(_) => refusals += 1,
                }
            }
            self.leader.unanswered(&part);
        }
        Ok(done)
    }
}
