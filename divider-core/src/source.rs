//! Where work comes from, if not by hand.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::Work;

/// Any error of a source.
pub type SourceError = Box<dyn StdError + Send + Sync>;

/// A place that knows what work there is. The leader reads it, at every interval, and declares what it finds; so every
/// node of a group should be built with the same source.
#[async_trait]
pub trait WorkSource: Send + Sync + 'static {
    /// All the work that there is at the moment.
    ///
    /// # Errors
    /// Any. Nothing is added or removed then, and the source is read again after the interval.
    async fn fetch(&self) -> Result<Vec<Work>, SourceError>;
}

/// What the absence of a key from the source means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceMode {
    /// The source knows all: a key that it no longer names is removed, also one that was added by hand.
    Authoritative,
    /// The source only adds.
    AddOnly,
}

/// A source, and how it is read.
#[derive(Clone)]
pub struct SourceConfig {
    /// The source.
    pub source: Arc<dyn WorkSource>,
    /// What absence means.
    pub mode: SourceMode,
    /// How often it is read, and how long one reading may take.
    pub interval: Duration,
}

impl fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceConfig")
            .field("mode", &self.mode)
            .field("interval", &self.interval)
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
