//! What a node is made of.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, mpsc};

use super::{
    Handle, Node, Starting,
    environment::{Environment, SystemEnvironment},
    observe,
    shared::Shared,
    stream,
};
use crate::{
    clock::{Clock, SystemClock},
    config::NodeConfig,
    error::{ConfigError, InvalidInput},
    ids::NodeId,
    record::Work,
    source::{FnSource, SourceConfig, SourceError, SourceMode},
    store::Store,
};

/// Builds a [`Node`].
#[derive(Debug)]
pub struct NodeBuilder<S> {
    store: S,
    config: NodeConfig,
    source: Option<SourceConfig>,
    clock: Arc<dyn Clock>,
    environment: Arc<dyn Environment>,
}

impl<S: Store> NodeBuilder<S> {
    pub(super) fn new(store: S) -> Self {
        Self {
            store,
            config: NodeConfig::default(),
            source: None,
            clock: Arc::new(SystemClock),
            environment: Arc::new(SystemEnvironment),
        }
    }

    /// Sets the whole configuration.
    #[must_use]
    pub fn config(mut self, config: NodeConfig) -> Self {
        self.config = config;
        self
    }

    /// Changes fields of the configuration.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut NodeConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Sets the node's [name](NodeConfig::node).
    ///
    /// # Errors
    /// [`InvalidInput`] where it is empty or too long.
    pub fn name(mut self, name: impl AsRef<str>) -> Result<Self, InvalidInput> {
        self.config.node = NodeId::new(name)?;
        Ok(self)
    }

    /// Sets the [lease](NodeConfig::lease).
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.configure(|config| config.lease = lease)
    }

    /// Asks a function at every interval which work there is, while this node leads: what is new begins, and what is
    /// not named any more is removed, also where it was added by hand. Give every node of the group the same.
    ///
    /// It says [`source`](Self::source) for a [`FnSource`] that is [`Authoritative`](SourceMode::Authoritative), with
    /// the default [limit](crate::RemovalLimit) on how much absence is believed at once.
    ///
    /// ```
    /// use std::time::Duration;
    /// # use divider_core as divider;
    /// use divider::{MemoryStore, Node, Work};
    /// # async fn tenants() -> std::io::Result<Vec<String>> { Ok(Vec::new()) }
    /// let builder = Node::builder(MemoryStore::new()).work_from(Duration::from_secs(5), || async {
    ///     Ok(tenants().await?.into_iter().map(Work::new).collect::<Result<_, _>>()?)
    /// });
    /// # builder.build().unwrap();
    /// ```
    #[must_use]
    pub fn work_from<F, Fut>(self, interval: Duration, work: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Work>, SourceError>> + Send + 'static,
    {
        self.source(SourceConfig::new(Arc::new(FnSource(work)), SourceMode::Authoritative, interval))
    }

    /// Reads work from a source while this node leads. Give every node of the group the same.
    #[must_use]
    pub fn source(mut self, source: SourceConfig) -> Self {
        self.source = Some(source);
        self
    }

    /// Replaces the clock, for simulations.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Replaces what the node runs on, for simulations. **Outside of semantic versioning**, like all of
    /// [`sim`](crate::sim).
    #[cfg(feature = "unstable-sim")]
    #[must_use]
    pub fn environment(mut self, environment: Arc<dyn Environment>) -> Self {
        self.environment = environment;
        self
    }

    /// Checks the configuration. Nothing is connected before [`Divider::start`](crate::Divider::start).
    ///
    /// # Errors
    /// [`ConfigError`] for the first contradiction.
    pub fn build(self) -> Result<Node, ConfigError> {
        self.config.validate()?;
        self.source.as_ref().map_or(Ok(()), SourceConfig::validate)?;
        observe::describe();
        let (requests, receiver) = mpsc::unbounded_channel();
        let shared =
            Shared::new(Arc::new(self.store), self.config, self.source, self.clock, self.environment, requests);
        let starting = Starting { requests: Some(receiver), opened: false, beats: false, opening: None, closed: false };
        let readers = stream::Readers::default();
        let handle = Handle { shared: Arc::new(shared), starting: Mutex::new(starting), readers };
        Ok(Node { handle: Arc::new(handle) })
    }
}
