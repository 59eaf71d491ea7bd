//! Since when no earlier leader can have counted a renewal.
//!
//! # Why a new leader may know
//! A renewal counts once the leader has confirmed its leadership with a quorum after the renewal had come in. So whoever
//! takes part in that has heard of that leader after the renewal was sent: by an append, or by leading itself. An election
//! is won with the votes of a quorum, each of them says how long ago its voter last took part, and nobody takes part in an
//! older term after it has voted. As two quorums have a member in common, nothing that any earlier leader counted was sent
//! after the latest of these moments; nor was a join that the new leader's log has from an earlier one.
//!
//! So the new leader need not give every session a whole lease from its election on: those that it has not heard of itself
//! have been silent since that moment at least. Without that, a dead node's keys would wait for an election and a lease.
//!
//! A leader may also count a renewal by what is answered anyway, without a round: then it must not have voted in a later
//! election before that moment, for nobody asks it. Asking and counting are one step here ([`Silence::leads`]), and
//! whoever asks for its vote is noted before it is given.
//!
//! Times are told as how long ago they were, on clocks that may stand still in suspend: both can only make a silence look
//! shorter.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// What a member knows of it. Clones look at the same.
#[derive(Clone, Debug)]
pub(super) struct Silence(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    /// When this member last took part in somebody's leadership, its own included. It may have until it started.
    last: Instant,
    /// The latest such moment among those who voted for this member, and in which term.
    votes: Option<(u64, Instant)>,
    /// The newest term in which this member may have voted for anybody.
    voted: u64,
    /// The newest term in which it was asked for its vote.
    asked: u64,
}

impl Default for Silence {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Known { last: Instant::now(), votes: None, voted: 0, asked: 0 })))
    }
}

impl Silence {
    /// This member is about to take part: said before, so that no vote that is asked for in between leaves it out.
    pub(super) fn breaks(&self) {
        self.0.lock().last = Instant::now();
    }

    /// This member is about to be asked for its vote: said before, so that it counts no renewal after it has voted.
    pub(super) fn asked(&self, term: u64) {
        let mut known = self.0.lock();
        known.voted = known.voted.max(term);
        known.asked = known.asked.max(term);
    }

    /// This member is about to count a renewal as the leader of `term`: false where it may have voted in a later one, and
    /// else it takes part.
    pub(super) fn leads(&self, term: u64) -> bool {
        let mut known = self.0.lock();
        let leads = known.voted <= term;
        if leads {
            known.last = Instant::now();
        }
        leads
    }

    /// The newest term in which another member has asked for the vote of this one.
    pub(super) fn newest_asked(&self) -> u64 {
        self.0.lock().asked
    }

    /// When this member last took part.
    pub(super) fn last(&self) -> Instant {
        self.0.lock().last
    }

    /// This member stands for election in `term`, and has voted for itself.
    pub(super) fn stands(&self, term: u64) {
        let mut known = self.0.lock();
        known.voted = known.voted.max(term);
        let last = known.last;
        known.vote(term, last);
    }

    /// Somebody votes for this member in `term` who last took part so long ago.
    pub(super) fn voted(&self, term: u64, ago: Duration) {
        let now = Instant::now();
        self.0.lock().vote(term, now.checked_sub(ago).unwrap_or(now));
    }

    /// How long there has been silence at least, for the leader of `term`. `None` where it leads without having asked for
    /// votes: there is nobody else.
    pub(super) fn before(&self, term: u64) -> Option<Duration> {
        self.0.lock().votes.filter(|(of, _)| *of == term).map(|(_, last)| last.elapsed())
    }
}

impl Known {
    fn vote(&mut self, term: u64, last: Instant) {
        self.votes = match self.votes {
            Some((of, _)) if of > term => return,
            Some((of, known)) if of == term => Some((term, known.max(last))),
            _ => Some((term, last)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_lasts_since_the_latest_moment_of_all_who_voted() {
        let silence = Silence::default();
        let ms = Duration::from_millis;
        assert_eq!(silence.before(1), None);
        tokio::time::advance(ms(1000)).await;
        silence.stands(3);
        silence.voted(3, ms(200));
        silence.voted(3, ms(700));
        assert_eq!(silence.before(3), Some(ms(200)));
        // It leads now, and takes part in that: what was before stays.
        tokio::time::advance(ms(50)).await;
        silence.breaks();
        assert_eq!(silence.before(3), Some(ms(250)));
        assert_eq!((silence.before(2), silence.before(4)), (None, None));
        silence.stands(4);
        silence.voted(3, ms(0));
        assert_eq!(silence.before(4), Some(ms(0)), "it led itself until it stood again");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_may_have_voted_in_a_later_term_counts_nothing_in_an_earlier_one() {
        let silence = Silence::default();
        let later = async || {
            tokio::time::advance(Duration::from_millis(10)).await;
            Instant::now()
        };
        silence.stands(3);
        let now = later().await;
        assert!(silence.leads(3));
        assert_eq!(silence.last(), now, "it takes part in what it counts");
        later().await;
        silence.asked(4);
        assert!(!silence.leads(3));
        assert_eq!(silence.last(), now);
        assert!(silence.leads(4));
        silence.stands(5);
        assert!(!silence.leads(4));
    }
}
