//! The signals that end a program.

use std::{fmt, pin::Pin};

/// Completes on SIGTERM or ctrl-c, with what completes on the next one.
///
/// The signals are listened for from the call on, not from the first `await`: call it as the first thing in `main`, and
/// none is missed. That matters most in a container, where the program is process 1: there a signal that nobody listens
/// for does nothing at all. From the call on, a signal has no other effect than this.
///
/// Outside of a tokio runtime the listening begins with the first `await`.
pub fn shutdown_signal() -> impl Future<Output = SecondSignal> + Send + 'static {
    let signals = tokio::runtime::Handle::try_current().is_ok().then(Signals::listen);
    async move {
        let mut signals = signals.unwrap_or_else(Signals::listen);
        signals.next().await;
        SecondSignal::when(async move { signals.next().await })
    }
}

/// The second signal: "do not wait for the drain, end now".
///
/// The first signal begins the drain. Whatever future is given to [`run_until`](crate::Worker::run_until) as
/// `shutdown` may return one of these, and when it completes the drain is cut short. That of [`shutdown_signal`]
/// completes on the next SIGTERM or ctrl-c. A `shutdown` that returns `()` has none: the drain then takes the time
/// that it takes.
pub struct SecondSignal(Pin<Box<dyn Future<Output = ()> + Send>>);

impl SecondSignal {
    /// One that completes when `signal` does.
    pub fn when(signal: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Box::pin(signal))
    }

    /// Waits for it.
    pub async fn come(self) {
        self.0.await;
    }
}

impl From<()> for SecondSignal {
    /// Never.
    fn from((): ()) -> Self {
        Self::when(std::future::pending())
    }
}

impl fmt::Debug for SecondSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecondSignal").finish_non_exhaustive()
    }
}

#[cfg(unix)]
struct Signals(Vec<tokio::signal::unix::Signal>);

#[cfg(unix)]
impl Signals {
    /// Where one cannot be listened for, it keeps its usual effect.
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
        Self(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
    }

    async fn next(&mut self) {
        use std::task::Poll;
        std::future::poll_fn(|cx| {
            let mut come = self.0.iter_mut().map(|signal| signal.poll_recv(cx));
            if come.any(|signal| signal == Poll::Ready(Some(()))) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        // Without a way to listen for it, the signal keeps its usual effect.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
