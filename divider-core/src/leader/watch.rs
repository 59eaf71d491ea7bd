//! Who has been silent for how long, on this node's own clock.
//!
//! A watch starts when this leader first sees a session, not when the session last renewed: the leader cannot know that,
//! unless the store can tell that it was silent before. So a lease is always granted in full, and never cut short.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Deposed;
use crate::{
    clock::Instant,
    ids::{Beat, SessionId},
};

#[derive(Debug)]
pub(super) struct Watches {
    watches: BTreeMap<SessionId, Watch>,
    deposed: Option<Deposed>,
    lock_delay: Option<Duration>,
    /// Sessions that were expired lately, and since when they had been silent.
    expired: Vec<(SessionId, Instant)>,
    /// When the beats were read last.
    read: Option<Instant>,
    /// Until when a silence may be this leader's own: it was not answered itself.
    deaf_until: Option<Instant>,
}

#[derive(Debug)]
struct Watch {
    beat: Beat,
    /// When this beat was first seen.
    since: Instant,
    lease: Duration,
    /// Since when the store is known to have seen its connection end.
    gone_since: Option<Instant>,
    /// Its expiry is on the way.
    asked: bool,
}

impl Watch {
    fn new(beat: Beat, since: Instant, lease: Duration) -> Self {
        Self { beat, since, lease, gone_since: None, asked: false }
    }

    /// When its silence is long enough.
    fn deadline(&self, lock_delay: Option<Duration>) -> Instant {
        let gone = self.gone_since.zip(lock_delay).map(|(since, delay)| since + delay);
        gone.into_iter().fold(self.since + self.lease, Instant::min)
    }
}

impl Watches {
    pub(super) fn new(deposed: Option<Deposed>, lock_delay: Option<Duration>) -> Self {
        Self { watches: BTreeMap::new(), deposed, lock_delay, expired: Vec::new(), read: None, deaf_until: None }
    }

    pub(super) fn watch(&mut self, session: SessionId, lease: Duration, now: Instant) {
        let deposed = self.deposed.filter(|deposed| deposed.session == session);
        let (beat, since) = deposed.map_or((Beat(0), now), |deposed| (deposed.beat, deposed.since));
        let watch = self.watches.entry(session).or_insert(Watch::new(beat, since, lease));
        watch.lease = lease;
    }

    /// Since when the session has been silent.
    pub(super) fn since(&self, session: SessionId) -> Option<Instant> {
        self.watches.get(&session).map(|watch| watch.since)
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.watches.remove(&session);
    }

    pub(super) fn beats(&mut self, beats: &[(SessionId, Beat)], now: Instant) {
        let lease = self.longest_lease();
        if self.read.replace(now).is_some_and(|read| now.since(read) > lease / 2) {
            self.deaf_until = Some(now + lease);
        }
        for (session, beat) in beats {
            if let Some(watch) = self.watches.get_mut(session)
                && watch.beat != *beat
            {
                *watch = Watch::new(*beat, now, watch.lease);
            }
        }
    }

    /// The store knows that this beat has stood still for longer than it was watched, if it is the one that is watched.
    pub(super) fn silent_since(&mut self, session: SessionId, beat: Beat, since: Instant) {
        if let Some(watch) = self.watches.get_mut(&session).filter(|watch| watch.beat == beat) {
            watch.since = watch.since.min(since);
        }
    }

    /// Takes in which sessions' connections have ended: all of them, and no others.
    pub(super) fn gone(&mut self, gone: &[SessionId], now: Instant) {
        for (session, watch) in &mut self.watches {
            watch.gone_since = gone.contains(session).then(|| watch.gone_since.unwrap_or(now));
        }
    }

    /// The session's beat has moved, though it is not known how far: it is alive.
    pub(super) fn moved(&mut self, session: SessionId, now: Instant) {
        if let Some(watch) = self.watches.get_mut(&session) {
            *watch = Watch::new(watch.beat, now, watch.lease);
        }
    }

    /// Nobody knows whether the expiry took effect: ask again.
    pub(super) fn ask_again(&mut self, session: SessionId) {
        if let Some(watch) = self.watches.get_mut(&session) {
            watch.asked = false;
        }
    }

    fn longest_lease(&self) -> Duration {
        self.watches.values().map(|watch| watch.lease).max().unwrap_or_default()
    }

    /// Whether a silence may be this leader's own: it was not answered itself meanwhile.
    pub(super) fn was_deaf(&self, session: SessionId, now: Instant) -> bool {
        let deposed = self.deposed.filter(|deposed| deposed.session == session);
        self.deaf_until.is_some_and(|until| now <= until) || deposed.is_some_and(|deposed| deposed.unanswered)
    }

    /// The sessions that fell silent at about the same time as this one, itself included, of which some may have been
    /// expired already.
    pub(super) fn silent_with(&mut self, session: SessionId, since: Instant, now: Instant) -> BTreeSet<SessionId> {
        let lease = self.longest_lease();
        let together = |other: Instant| other.since(since).max(since.since(other)) <= lease / 2;
        self.expired.retain(|(_, other)| now.since(*other) <= lease * 3);
        let expired = self.expired.iter().filter(|(_, other)| together(*other)).map(|(session, _)| *session);
        let silent = self.watches.iter().filter(|(_, watch)| together(watch.since)).map(|(session, _)| *session);
        let silent = expired.chain(silent).collect();
        self.expired.push((session, since));
        silent
    }

    /// At most `max` sessions that have been silent for their whole lease, or gone for the lock delay, each named once.
    pub(super) fn silent(&mut self, now: Instant, max: usize) -> Vec<(SessionId, Beat, Instant)> {
        let delay = self.lock_delay;
        let due = |watch: &Watch| !watch.asked && watch.deadline(delay) <= now;
        let silent = self.watches.iter_mut().filter(|(_, watch)| due(watch)).map(|(session, watch)| {
            watch.asked = true;
            (*session, watch.beat, watch.since)
        });
        silent.take(max).collect()
    }

    /// When the next session may turn out to be silent.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.watches.values().filter(|watch| !watch.asked).map(|watch| watch.deadline(self.lock_delay)).min()
    }
}
