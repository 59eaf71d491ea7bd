//! How long the machine itself stood still, so that a bound in time is not blamed on the program for it.

use std::{
    io::{Seek as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

const BEAT: Duration = Duration::from_millis(20);
/// In how many places one after the other a take-over can be held up: the leader's thread, a write of its own, one of
/// whoever has to agree, and the new owner's.
const PLACES: u32 = 4;

/// A thread that sleeps for a little and then writes a little to the disk, again and again, and notices how much longer
/// than the usual that takes.
#[derive(Debug)]
pub(super) struct Stalls {
    longest: Arc<AtomicU64>,
    /// Ends the thread when it is dropped.
    _until: mpsc::Sender<()>,
}

impl Stalls {
    pub(super) fn watch() -> Self {
        let longest = Arc::new(AtomicU64::new(0));
        let (until, ended) = mpsc::channel();
        let noted = longest.clone();
        let mut file = tempfile::tempfile().expect("a temporary file");
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while ended.recv_timeout(BEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                let written = file.rewind().and_then(|()| file.write_all(&[0; 4096])).and_then(|()| file.sync_data());
                written.expect("a temporary file can be written");
                let over = last.elapsed().saturating_sub(BEAT);
                noted.fetch_max(u64::try_from(over.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                last = Instant::now();
            }
        });
        Self { longest, _until: until }
    }

    /// What to add to a bound.
    pub(super) fn allowance(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed)) * PLACES
    }
}
