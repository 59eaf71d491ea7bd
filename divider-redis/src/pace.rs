//! How often a server that cannot be used is tried.
//!
//! # Why
//! A fleet that tries again at once is what a server that comes back meets first. But a short outage is to be over soon,
//! or leases run out without need.
//!
//! # How
//! A pause is a sixteenth of the outage so far: after four seconds the server is found within a quarter of a second, after
//! half a minute within two and a half. All who wait for a connection hear what came of the same attempt.

use std::time::Duration;

use divider_core::StoreError;
use tokio::time::Instant;
use uuid::Uuid;

/// The shortest pause and the longest, before they are spread by a quarter.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// `None` while all is well.
#[derive(Debug, Default)]
pub(crate) struct Pace(Option<Outage>);

#[derive(Debug)]
struct Outage {
    since: Instant,
    next: Instant,
    error: StoreError,
}

impl Pace {
    /// When the next attempt may be made, and what the last one failed with.
    pub(crate) fn waiting(&self) -> Option<(Instant, StoreError)> {
        self.0.as_ref().map(|outage| (outage.next, outage.error.clone()))
    }

    /// The server could be used.
    pub(crate) fn well(&mut self) {
        self.0 = None;
    }

    /// An attempt has failed.
    pub(crate) fn failed(&mut self, error: &StoreError) {
        let now = Instant::now();
        let since = self.0.as_ref().map_or(now, |outage| outage.since);
        let pause = ((now - since) / 16).clamp(SHORTEST, LONGEST).mul_f64(spread());
        self.0 = Some(Outage { since, next: now + pause, error: error.clone() });
    }
}

/// Between three and five quarters, so that a fleet that was cut off together does not come back together.
fn spread() -> f64 {
    let dice = (Uuid::new_v4().as_u128() & 0xffff) as u16;
    0.75 + f64::from(dice) / 131_072.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_the_outage_and_a_short_one_is_over_soon() {
        let began = Instant::now();
        let mut pace = Pace::default();
        assert!(pace.waiting().is_none());
        let mut attempts = 0;
        while began.elapsed() < Duration::from_secs(600) {
            pace.failed(&StoreError::Closed);
            let pause = pace.waiting().unwrap().0 - Instant::now();
            let longest = if began.elapsed() < Duration::from_secs(3) { 250 } else { 2500 };
            assert!(pause <= Duration::from_millis(longest), "{pause:?} after {:?}", began.elapsed());
            tokio::time::sleep(pause).await;
            attempts += 1;
        }
        assert!(attempts < 500, "{attempts} in ten minutes");
        pace.well();
        assert!(pace.waiting().is_none());
    }
}
