//! How long to wait before something is tried again.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::error::ConfigError;

/// What becomes of a key whose task has failed: how long it rests, and when that is no accident any more.
///
/// | | default |
/// | --- | --- |
/// | [`first`](Self::first) | 1 s |
/// | [`most`](Self::most) | 10 min |
/// | [`failures`](Self::failures) | 20 |
///
/// Each pause is twice the one before, give or take a fifth, so that what failed together is not tried again together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    pub(super) pause: Pause,
    pub(super) failures: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self { pause: Pause::new(Duration::from_secs(1), Duration::from_secs(600)), failures: 20 }
    }
}

impl Retry {
    /// The pause after the first failure; at least 1 ms.
    #[must_use]
    pub fn first(mut self, first: Duration) -> Self {
        self.pause.first = first;
        self
    }

    /// The longest pause, before the fifth that is added or taken off; at least the first. A task that has run for longer
    /// than this before it fails is taken to fail for the first time.
    #[must_use]
    pub fn most(mut self, most: Duration) -> Self {
        self.pause.most = most;
        self
    }

    /// After how many failures in a row, on whatever node, the key is [set aside](crate::Divider::set_aside) with what went
    /// wrong last; at least 1.
    #[must_use]
    pub fn failures(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.failures == 0 {
            let problem = "ends after 0 failures; use at least 1";
            return Err(ConfigError::new("retry", problem));
        }
        self.pause.validate("retry")
    }
}

/// A pause that doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) first: Duration,
    pub(super) most: Duration,
}

impl Pause {
    pub(super) const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most }
    }

    /// The pause after so many tries, the first of which is 1.
    pub(super) fn after(&self, tries: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << tries.saturating_sub(1).min(31));
        jitter(doubled.min(self.most))
    }

    /// The pauses one after the other.
    pub(super) fn each(self) -> impl Iterator<Item = Duration> + Send {
        (1..=u32::MAX).chain(std::iter::repeat(u32::MAX)).map(move |tries| self.after(tries))
    }

    pub(super) fn validate(&self, field: &'static str) -> Result<(), ConfigError> {
        let Self { first, most } = *self;
        if first < Duration::from_millis(1) || most < first {
            let problem = format!("pauses for {first:?} to {most:?}; it must be 1 ms ≤ first ≤ most");
            return Err(ConfigError::new(field, problem));
        }
        Ok(())
    }
}

/// A fifth more, a fifth less, or anything in between.
fn jitter(pause: Duration) -> Duration {
    let part = RandomState::new().hash_one(()) % 401;
    // Divided first: the longest of all durations can be divided, but not multiplied.
    (pause / 1000).saturating_mul(800 + part as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_give_or_take_a_fifth() {
        let pause = Pause::new(Duration::from_secs(1), Duration::from_secs(10));
        for (tries, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (32, 10), (33, 10), (u32::MAX, 10)] {
            let (given, exact) = (pause.after(tries), Duration::from_secs(seconds));
            assert!(given >= exact * 4 / 5 && given <= exact * 6 / 5, "{tries}: {given:?}");
        }
    }

    #[test]
    fn pauses_of_many_keys_differ() {
        let pause = Pause::new(Duration::from_secs(1), Duration::from_secs(10));
        let pauses: std::collections::HashSet<_> = (0..100).map(|_| pause.after(1)).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
    }

    #[test]
    fn no_setting_is_too_long_to_reckon_with() {
        let pause = Pause::new(Duration::MAX, Duration::MAX);
        assert!(pause.after(u32::MAX) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn a_retry_that_cannot_be_is_refused() {
        let default = Retry::default();
        assert!(default.validate().is_ok());
        for bad in [default.failures(0), default.first(Duration::ZERO), default.most(Duration::from_millis(1))] {
            assert_eq!(bad.validate().unwrap_err().field, "retry");
        }
    }
}
