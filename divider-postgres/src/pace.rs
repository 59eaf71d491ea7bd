//! How often a server that cannot be reached is tried.
//!
//! # Why
//! A fleet that tries again at once, with every caller of every node, is what a server that comes back meets first. But a
//! short outage is to be over soon, or leases run out without need.
//!
//! # How
//! A pause is a fifth of the outage so far: after a second without the server it is found within 200 ms, after a minute
//! within two seconds. While the outage lasts one attempt at a time is made, and all who wait hear what came of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use divider_core::StoreError;
use parking_lot::Mutex;
use tokio::time::{sleep_until, timeout_at};
use uuid::Uuid;

/// The shortest pause and the longest.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Shared by all who connect on one runtime.
#[derive(Default)]
pub(crate) struct Pace {
    /// `None` while all is well.
    outage: Mutex<Option<Outage>>,
    /// Held by the one who tries, from its pause to the end of its attempt.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Outage {
    since: Instant,
    /// Not before this is the next attempt made.
    next: Instant,
    attempts: u64,
    /// What the last one failed with.
    error: StoreError,
}

/// The right to try. While all is well, everybody has it.
pub(crate) type Turn = Option<tokio::sync::OwnedMutexGuard<()>>;

impl Pace {
    /// Waits until it is time for another attempt.
    ///
    /// # Errors
    /// What somebody else's attempt has failed with meanwhile, or the last one where the time is over. Nothing was sent.
    pub(crate) async fn turn(&self, until: Instant) -> Result<Turn, StoreError> {
        let Some(known) = self.outage.lock().clone() else { return Ok(None) };
        let waited = timeout_at(until.into(), async {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            let now = self.outage.lock().clone();
            match now {
                None => return Ok(None),
                Some(now) if now.attempts != known.attempts => return Err(now.error),
                Some(now) => sleep_until(now.next.into()).await,
            }
            Ok(Some(turn))
        });
        waited.await.unwrap_or(Err(known.error))
    }

    /// Begins an attempt. One that is given up before its end has failed, too.
    pub(crate) fn attempt(&self) -> Attempt<'_> {
        Attempt { pace: self, ended: false }
    }

    /// How long it is until the next attempt.
    pub(crate) fn pause(&self) -> Duration {
        let next = self.outage.lock().as_ref().map(|outage| outage.next);
        next.map_or(Duration::ZERO, |next| next.saturating_duration_since(Instant::now()))
    }

    fn note(&self, error: Option<&StoreError>) {
        let mut outage = self.outage.lock();
        let Some(error) = error else { return *outage = None };
        let now = Instant::now();
        let (since, attempts) = outage.as_ref().map_or((now, 0), |outage| (outage.since, outage.attempts));
        let pause = ((now - since) / 5).clamp(SHORTEST, LONGEST).mul_f64(jitter());
        *outage = Some(Outage { since, next: now + pause, attempts: attempts + 1, error: error.clone() });
    }
}

pub(crate) struct Attempt<'a> {
    pace: &'a Pace,
    ended: bool,
}

impl Attempt<'_> {
    pub(crate) fn ended(mut self, error: Option<&StoreError>) {
        self.ended = true;
        self.pace.note(error);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let message = "an attempt to connect was given up".to_owned();
            self.pace.note(Some(&StoreError::Unavailable { message, source: None }));
        }
    }
}

/// Between a half and one, so that a fleet that was cut off together does not come back together.
fn jitter() -> f64 {
    let dice = (Uuid::new_v4().as_u128() & 0xffff) as u16;
    0.5 + f64::from(dice) / 131_072.0
}
