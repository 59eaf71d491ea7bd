//! Connections that have not said who they are.
//!
//! They cost a place each, and only so many are kept: where one more comes, the oldest goes. A caller that has something to
//! say has said it within milliseconds; whoever holds a place in silence makes room for it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Most of them at a time.
const MOST: usize = 512;

/// All of a member.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingHandshakes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Drawn by each, so that it finds its place again.
    next: AtomicU64,
    waiting: Mutex<VecDeque<(u64, Arc<Notify>)>>,
}

/// The place of one. Free again when it is dropped.
pub(crate) struct PendingHandshake {
    all: PendingHandshakes,
    id: u64,
    gone: Arc<Notify>,
}

impl PendingHandshakes {
    /// Takes a place, from the oldest where there is none.
    pub(crate) fn enter(&self) -> PendingHandshake {
        let (id, gone) = (self.0.next.fetch_add(1, Ordering::Relaxed), Arc::new(Notify::new()));
        let mut waiting = self.0.waiting.lock();
        if waiting.len() >= MOST
            && let Some((_, oldest)) = waiting.pop_front()
        {
            oldest.notify_one();
        }
        waiting.push_back((id, gone.clone()));
        PendingHandshake { all: self.clone(), id, gone }
    }
}

impl PendingHandshake {
    /// Returns when another one has taken it. Cancel safe.
    pub(crate) async fn taken(&self) {
        self.gone.notified().await;
    }
}

impl Drop for PendingHandshake {
    fn drop(&mut self) {
        let mut waiting = self.all.0.waiting.lock();
        if let Ok(at) = waiting.binary_search_by_key(&self.id, |(id, _)| *id) {
            waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_makes_room_and_a_place_that_was_left_is_free() {
        let all = PendingHandshakes::default();
        let mut places: Vec<_> = (0..MOST).map(|_| all.enter()).collect();
        places.remove(1);
        let last = all.enter();
        assert!(places.iter().all(|place| place.taken().now_or_never().is_none()));
        let _more = all.enter();
        assert!(places[0].taken().now_or_never().is_some());
        assert!(places[1].taken().now_or_never().is_none() && last.taken().now_or_never().is_none());
    }
}
