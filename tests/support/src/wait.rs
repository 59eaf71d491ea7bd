//! Waiting for what must come about.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

/// Longer than anything takes that comes about.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(10);

/// Tries until it succeeds, and says how long that took.
///
/// # Panics
/// With the last error, if it never does.
pub async fn until<T, E: Debug>(mut call: impl AsyncFnMut() -> Result<T, E>) -> (T, Duration) {
    let since = Instant::now();
    loop {
        match call().await {
            Ok(value) => return (value, since.elapsed()),
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for a condition.
///
/// # Panics
/// With what it is, if it never comes.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    until(async || if done().await { Ok(()) } else { Err(what) }).await;
}
