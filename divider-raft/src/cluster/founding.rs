//! Who founds the cluster, where more than one could.
//!
//! Each newcomer judges by what it sees, and they may see different things: a name in the DNS that stands for some of them
//! only, or lists in another order. So whoever would found asks all whom it found it with to leave that to it, and does so
//! only when all have promised, itself among them. A member promises one at a time. Two sets of founders that have a member
//! in common therefore found no two clusters, and any two have, where more than half of all voters found.
//!
//! A promise is taken back by whom it was given to, or ends by itself, much later than that one still relies on it. To itself
//! a member promises what it may give to one with a lower id, until it begins to found: so of two that stand in each
//! other's way the lower one goes first.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long promises are relied on after the first of them was asked for.
const FRESH: Duration = Duration::from_secs(2);
/// How long a promise stands that nobody takes back.
const STANDS: Duration = Duration::from_secs(6);

/// To whom a member has promised to leave the founding.
#[derive(Debug, Default)]
pub(crate) struct Founding(Mutex<Option<Promise>>);

#[derive(Debug)]
struct Promise {
    to: u64,
    since: Instant,
    /// This member is founding. What it asked for is not given to anybody else any more.
    kept: bool,
}

impl Founding {
    /// Promises it to a member.
    ///
    /// # Errors
    /// To whom it has been promised before.
    pub(crate) fn promise(&self, me: u64, to: u64) -> Result<(), u64> {
        let mut promise = self.0.lock();
        let stands = |known: &Promise| known.to != to && (known.kept || known.since.elapsed() < STANDS);
        let gives_way = |known: &Promise| known.to == me && to < me && !known.kept;
        match &mut *promise {
            Some(known) if stands(known) && !gives_way(known) => Err(known.to),
            Some(known) if known.kept => Ok(()),
            _ => {
                *promise = Some(Promise { to, since: Instant::now(), kept: false });
                Ok(())
            }
        }
    }

    /// A member takes back what it asked for.
    pub(crate) fn release(&self, by: u64) {
        self.0.lock().take_if(|promise| promise.to == by && !promise.kept);
    }

    /// All others have promised. Whether this member still has its own promise, and from then on for good.
    pub(crate) fn keep(&self, me: u64) -> bool {
        let mut promise = self.0.lock();
        let mine = promise.as_mut().filter(|promise| promise.to == me);
        mine.is_some_and(|promise| {
            promise.kept = promise.kept || promise.since.elapsed() < FRESH;
            promise.kept
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_member_promises_one_at_a_time_and_gives_way_to_a_lower_id_until_it_founds() {
        let two = Founding::default();
        two.promise(2, 3).unwrap();
        two.promise(2, 3).unwrap();
        assert_eq!(two.promise(2, 1), Err(3));
        assert_eq!(two.promise(2, 2), Err(3));
        two.release(1);
        assert!(!two.keep(2));
        two.release(3);
        two.promise(2, 2).unwrap();
        assert_eq!(two.promise(2, 3), Err(2));
        two.promise(2, 1).unwrap();
        assert!(!two.keep(2), "it gave way");
        two.release(1);
        two.promise(2, 2).unwrap();
        assert!(two.keep(2) && two.keep(2));
        two.release(2);
        assert_eq!(two.promise(2, 1), Err(2));
        assert!(two.promise(2, 2).is_ok() && two.keep(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_promise_that_nobody_takes_back_ends_long_after_nobody_relies_on_it() {
        let (one, two) = (Founding::default(), Founding::default());
        one.promise(1, 1).unwrap();
        two.promise(2, 1).unwrap();
        tokio::time::advance(FRESH).await;
        assert!(!one.keep(1), "it was asked for too long ago");
        assert_eq!(two.promise(2, 2), Err(1));
        tokio::time::advance(STANDS - FRESH).await;
        two.promise(2, 2).unwrap();
        assert!(two.keep(2));
    }
}
