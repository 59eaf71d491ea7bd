//! Where work comes from, if not by hand.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{error::ConfigError, record::Work};

/// Any error of a source.
pub type SourceError = Box<dyn StdError + Send + Sync>;

/// A place that knows what work there is. The leader reads it, at every interval, and declares what it finds; so every
/// node of a group should be built with the same source.
///
/// Work that ends while a reading is under way is not added by that reading, which may have begun before: a program that
/// takes a row away and then completes its key does not see the work begin again.
#[async_trait]
pub trait WorkSource: Send + Sync + 'static {
    /// All the work that there is at the moment.
    ///
    /// # Errors
    /// Any. Nothing is added or removed then, and the source is read again after the interval; so it is after a panic.
    async fn fetch(&self) -> Result<Vec<Work>, SourceError>;
}

/// What the absence of a key from the source means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceMode {
    /// The source knows all: a key that it no longer names is removed, also one that was added by hand. One that it names with
    /// what cannot be kept, such as a payload over its limit, stays as it is, and is warned of.
    Authoritative,
    /// The source only adds.
    AddOnly,
}

/// A source, and how it is read.
#[derive(Clone)]
#[non_exhaustive]
pub struct SourceConfig {
    /// The source.
    pub source: Arc<dyn WorkSource>,
    /// What absence means.
    pub mode: SourceMode,
    /// How often it is read, and how long one reading may take; at least 1 ms.
    pub interval: Duration,
    /// How much absence is believed at once.
    pub removals: RemovalLimit,
}

/// When an [`Authoritative`](SourceMode::Authoritative) source is believed that much is gone. A reading that would remove
/// more than `percent` of all keys, and more than `keys`, is held back and warned of, until `readings` in a row, over at least
/// `time`, have said the same; then what none of them named is removed. What such a reading adds or changes counts at once.
/// The counting begins anew with each leader. Default: 20 %, 10 keys, 3 readings, 10 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovalLimit {
    /// 0 to 100; at 100 every reading is believed at once.
    pub percent: u8,
    /// So many keys may always be removed at once.
    pub keys: usize,
    /// At least 1.
    pub readings: u32,
    /// At most a day.
    pub time: Duration,
}

impl SourceConfig {
    /// A source that is read at this interval, with the default [`RemovalLimit`].
    pub fn new(source: Arc<dyn WorkSource>, mode: SourceMode, interval: Duration) -> Self {
        Self { source, mode, interval, removals: RemovalLimit::default() }
    }

    /// Checks the numbers.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let fail = |field, problem| Err(ConfigError::new(field, problem));
        if self.interval < Duration::from_millis(1) {
            return fail("source.interval", format!("is {:?}; it must be at least 1 ms", self.interval));
        }
        let RemovalLimit { percent, readings, time, .. } = self.removals;
        if percent > 100 || readings == 0 || time > Duration::from_secs(24 * 3600) {
            let problem =
                format!("is {:?}; use 0 to 100 percent, at least 1 reading, and at most a day", self.removals);
            return fail("source.removals", problem);
        }
        Ok(())
    }
}

impl fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceConfig")
            .field("mode", &self.mode)
            .field("interval", &self.interval)
            .field("removals", &self.removals)
            .finish_non_exhaustive()
    }
}

/// Work from a function.
pub struct FnSource<F>(pub F);

#[async_trait]
impl<F, Fut> WorkSource for FnSource<F>
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Vec<Work>, SourceError>> + Send,
{
    async fn fetch(&self) -> Result<Vec<Work>, SourceError> {
        (self.0)().await
    }
}

impl<F> fmt::Debug for FnSource<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FnSource")
    }
}
