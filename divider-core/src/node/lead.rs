//! Leadership: looks out for it, takes it, and drives the [`Leader`] while this node has it.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::maybe_done};

use tracing::Instrument;

use super::{observe::target, shared::Shared, supply};
use crate::{
    Claim, Cursor, Hint, HintStream, Instant, Revision, SessionId, Sighting, Standing, StoreError, Term, Topic,
    leader::{Deposed, Fed, Leader},
    limits,
};

/// Why a leader stopped.
enum Over {
    /// Somebody else leads, or nobody.
    Lost,
    /// The picture has a hole that only a new scan closes.
    Behind,
}

/// Runs until the session is over.
pub(crate) async fn run(shared: Arc<Shared>, session: SessionId) {
    let mut seen: Option<Seen> = None;
    loop {
        let claim = match &seen {
            _ if shared.with(|member| member.draining()) => Claim::Follow,
            Some(seen) => Claim::Take { stale: seen.stale(shared.clock.now(), shared.config.lease) },
            None => Claim::Take { stale: None },
        };
        let mut pause = shared.config.poll_interval();
        match look(&shared, session, claim).await {
            Err(StoreError::SessionEnded) => return shared.session_ended(session),
            Err(_) => seen.iter_mut().for_each(|seen| seen.unanswered = true),
            Ok(Standing { leader: Some(leader), .. }) if leader.session == session => {
                let deposed = seen.take().and_then(|seen| seen.deposed());
                lead(&shared, session, leader.term, deposed).await;
                continue;
            }
            Ok(Standing { leader: Some(leader), .. }) => {
                let now = shared.clock.now();
                let seen = seen.get_or_insert_with(|| Seen::new(leader, now));
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
            Ok(Standing { leader: None, .. }) => seen = None,
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = shared.leader_gone.notified() => {}
        }
    }
}

/// One poll, and what every poll is good for.
async fn look(shared: &Shared, session: SessionId, claim: Claim) -> Result<Standing, StoreError> {
    let standing = shared.observer.call("poll", shared.store.poll(session, claim)).await?;
    shared.marks.lock().note(shared.clock.now(), standing.token);
    // What the poll before this one knew of must have come by now, or it is lost.
    let expected = shared.expected.swap(standing.seq, Ordering::Relaxed);
    if shared.with(|member| member.session() == Some(session) && member.seq() < expected) {
        shared.resync.notify_one();
    }
    Ok(standing)
}

/// Another node's leadership, as it is watched from here.
struct Seen {
    leader: Sighting,
    /// Since when the leadership's beat has stood still.
    since: Instant,
    /// Since when the beat of the leader's session has.
    session_since: Instant,
    /// The store failed to answer since: the silence may be its own.
    unanswered: bool,
}

impl Seen {
    fn new(leader: Sighting, now: Instant) -> Self {
        Self { leader, since: now, session_since: now, unanswered: false }
    }

    fn update(&mut self, leader: Sighting, now: Instant) {
        if (self.leader.term, self.leader.beat) != (leader.term, leader.beat) {
            self.since = now;
        }
        if (self.leader.session, self.leader.session_beat) != (leader.session, leader.session_beat) {
            self.session_since = now;
            self.unanswered = false;
        }
        self.leader = leader;
    }

    /// The leadership, if it has stood still for a lease.
    fn stale(&self, now: Instant, lease: Duration) -> Option<(Term, crate::Beat)> {
        (self.since + lease <= now).then_some((self.leader.term, self.leader.beat))
    }

    fn deposed(&self) -> Option<Deposed> {
        let beat = self.leader.session_beat?;
        Some(Deposed { session: self.leader.session, beat, since: self.session_since, unanswered: self.unanswered })
    }
}

async fn lead(shared: &Arc<Shared>, session: SessionId, term: Term, deposed: Option<Deposed>) {
    tracing::info!(target: target::LEADER, node = %shared.config.node, %session, %term, "leads");
    shared.leading.send_replace(Some(term));
    shared.rested.send_replace(Some(Revision(0)));
    shared.observer.leading(true);
    let _guard = Leading(shared);
    loop {
        let leader = Leader::new(shared.config.clone(), term, deposed);
        let reign = Reign { shared, session, leader, ticked: shared.clock.now() };
        let span = tracing::info_span!(target: target::LEADER, "lead", %term);
        match reign.run().instrument(span).await {
            Over::Behind => {
                tracing::info!(target: target::LEADER, node = %shared.config.node, %term, "reads the group again");
            }
            Over::Lost => {
                tracing::info!(target: target::LEADER, node = %shared.config.node, %term, "leads no more");
                return;
            }
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

struct Reign<'a> {
    shared: &'a Arc<Shared>,
    session: SessionId,
    leader: Leader,
    /// When leadership was renewed last.
    ticked: Instant,
}

impl Reign<'_> {
    async fn run(mut self) -> Over {
        let mut feed = match self.load().await {
            Ok(feed) => feed,
            Err(over) => return over,
        };
        let mut supply = supply::spawn(self.shared);
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
                find = supply.next() => {
                    let ops = supply.compare(find, &self.leader);
                    supply.declare(self.shared, ops);
                    Ok(())
                }
                () = &mut wake => {
                    self.leader.tick(self.shared.now());
                    Ok(())
                }
                _ = ticks.tick() => self.tick().await,
                hint = feed.next() => self.hear(hint).await,
            };
            if let Err(over) = step {
                return over;
            }
        }
    }

    /// Reads the whole group, after subscribing to its changes.
    async fn load(&mut self) -> Result<HintStream, Over> {
        let began = self.shared.clock.now();
        let feed = loop {
            match self.shared.observer.call("subscribe", self.shared.store.hints(Topic::Group)).await {
                Ok(feed) => break feed,
                Err(_) => self.pause_and_renew().await?,
            }
        };
        let shared = self.shared;
        let scan =
            |cursor: Option<Cursor>| Box::pin(maybe_done(shared.observer.call("scan", shared.store.scan(cursor))));
        let (mut cursor, mut first, mut renewed) = (None, true, began);
        let mut coming = scan(None);
        loop {
            coming.as_mut().await;
            let Some(Ok(page)) = coming.as_mut().take_output() else {
                self.pause_and_renew().await?;
                coming = scan(cursor.clone());
                continue;
            };
            let now = shared.now();
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
            if cursor.is_none() {
                break;
            }
            if now.mono.since(renewed) >= shared.config.poll_interval() {
                self.renew().await?;
                renewed = now.mono;
            }
        }
        self.catch_up().await?;
        self.leader.loaded(self.shared.now());
        self.beats().await;
        if let Ok(silences) = self.shared.observer.call("silences", self.shared.store.silences()).await {
            self.leader.silences(&silences, self.shared.now());
        }
        tracing::info!(
            target: target::LEADER, node = %self.shared.config.node, counts = ?self.leader.counts(),
            took = ?self.shared.clock.now().since(began), "knows the group"
        );
        Ok(feed)
    }

    async fn pause_and_renew(&self) -> Result<(), Over> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.renew().await.map(drop)
    }

    /// Renews the leadership. A store that cannot be reached says nothing about it: the ledger refuses what a deposed
    /// leader proposes.
    async fn renew(&self) -> Result<Option<Standing>, Over> {
        let claim = Claim::Lead { term: self.leader.term() };
        match look(self.shared, self.session, claim).await {
            Ok(standing) => {
                let still = standing.leader.map(|leader| (leader.session, leader.term));
                if still == Some((self.session, self.leader.term())) { Ok(Some(standing)) } else { Err(Over::Lost) }
            }
            Err(StoreError::SessionEnded) => {
                self.shared.session_ended(self.session);
                Err(Over::Lost)
            }
            Err(_) => Ok(None),
        }
    }

    async fn tick(&mut self) -> Result<(), Over> {
        self.ticked = self.shared.clock.now();
        let Some(standing) = self.renew().await? else { return Ok(()) };
        self.beats().await;
        self.leader.seen(standing.revision);
        if self.leader.is_behind() {
            self.catch_up().await?;
        }
        self.leader.tick(self.shared.now());
        self.shared.observer.counts(self.leader.counts());
        Ok(())
    }

    async fn beats(&mut self) {
        if let Ok(beats) = self.shared.observer.call("beats", self.shared.store.beats()).await {
            self.leader.beats(&beats, self.shared.now());
        }
        if self.shared.config.lock_delay.is_some()
            && let Ok(gone) = self.shared.observer.call("gone", self.shared.store.gone()).await
        {
            self.leader.gone(&gone, self.shared.now());
        }
    }

    /// Takes in one hint, and all that have come with it.
    async fn hear(&mut self, hint: Option<Hint>) -> Result<(), Over> {
        match hint {
            Some(Hint::Batch(batch)) => match self.leader.feed(batch, self.shared.now()) {
                Fed::Applied | Fed::Known => Ok(()),
                Fed::Gap => self.catch_up().await,
            },
            Some(Hint::Gap) => {
                self.shared.observer.hint_missed();
                self.catch_up().await
            }
            Some(Hint::Message(_) | Hint::LeaderGone) => Ok(()),
            // The subscription is gone, and everything since with it: begin again with a new one.
            None => {
                self.shared.observer.hint_missed();
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.renew().await?;
                Err(Over::Behind)
            }
        }
    }

    /// Reads the changes until the picture is up to date.
    async fn catch_up(&mut self) -> Result<(), Over> {
        loop {
            let since = self.leader.revision();
            match self.shared.observer.call("changes", self.shared.store.changes(since)).await {
                Ok(Some(batches)) if batches.is_empty() => {
                    // Whoever said that there is more spoke of another lineage.
                    return if self.leader.is_behind() { Err(Over::Behind) } else { Ok(()) };
                }
                Ok(Some(batches)) => {
                    for batch in batches {
                        if self.leader.feed(batch, self.shared.now()) == Fed::Gap {
                            return Err(Over::Behind);
                        }
                    }
                    if !self.leader.is_behind() {
                        return Ok(());
                    }
                }
                Ok(None) => return Err(Over::Behind),
                Err(_) => self.pause_and_renew().await?,
            }
        }
    }

    /// Proposes until there is nothing to do. Between two batches it takes in what has come, so that each is decided on
    /// the newest picture.
    async fn decide(&mut self, feed: &mut HintStream) -> Result<(), Over> {
        loop {
            while let Some(hint) = feed.next().now_or_never() {
                self.hear(hint).await?;
            }
            let proposal = {
                let marks = self.shared.marks.lock();
                self.leader.propose(self.shared.now(), limits::MAX_BATCH_OPS, &marks)
            };
            // Much work must not keep the leader from renewing its leadership.
            let late = self.shared.clock.now().since(self.ticked) >= self.shared.config.poll_interval();
            if proposal.is_empty() {
                self.shared.observer.timings(self.leader.take_timings());
                self.shared.rested.send_replace(Some(self.leader.revision()));
                return Ok(());
            }
            match self.shared.observer.call("propose", self.shared.store.apply(&proposal.ops)).await {
                Ok(applied) => {
                    self.shared.observer.moved(&proposal.ops, &applied.outcomes);
                    tracing::debug!(
                        target: target::LEADER, node = %self.shared.config.node, ops = proposal.ops.len(), "moved"
                    );
                    if !self.leader.answered(&proposal, &applied.outcomes, applied.revision, self.shared.now()) {
                        return Err(Over::Lost);
                    }
                }
                Err(_) => {
                    self.leader.unanswered(&proposal);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    return Ok(());
                }
            }
            if late {
                self.tick().await?;
            }
        }
    }
}
