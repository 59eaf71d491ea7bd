//! From settings to a store.

use divider_core::{ConfigError, Group, InvalidInput, NodeId};

use crate::{
    config::{Data, RaftConfig, Role},
    net::security::Security,
    store::RaftStore,
};

/// Builds a [`RaftStore`].
///
/// ```no_run
/// use divider_core::Group;
/// use divider_raft::RaftStore;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RaftStore::builder("/var/lib/me", Group::new("/process/me/")?)
///     .name("a")?
///     .listen("10.0.0.1:7400")
///     .seeds(["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400"])
///     .plaintext()
///     .build()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct RaftBuilder {
    group: Group,
    config: RaftConfig,
}

impl RaftBuilder {
    /// Changes any field of the configuration.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut RaftConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Sets the name of this process, see [`RaftConfig::name`].
    ///
    /// # Errors
    /// [`InvalidInput`] where it is empty or too long.
    pub fn name(mut self, name: impl AsRef<str>) -> Result<Self, InvalidInput> {
        self.config.name = Some(NodeId::new(name)?);
        Ok(self)
    }

    /// Sets where the member listens, see [`RaftConfig::listen`].
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.config.listen = Some(address.into());
        self
    }

    /// Sets the addresses of members, see [`RaftConfig::seeds`].
    #[must_use]
    pub fn seeds<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.config.seeds = seeds.into_iter().map(Into::into).collect();
        self
    }

    /// Makes this process a member that does not vote.
    #[must_use]
    pub fn learner(self) -> Self {
        self.configure(|config| config.role = Role::Learner)
    }

    /// Protects nothing: whoever reaches the port may do everything.
    #[must_use]
    pub fn plaintext(self) -> Self {
        self.configure(|config| config.security = Security::Plaintext)
    }

    /// Protects connections by mutual TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(self, tls: crate::net::tls::Tls) -> Self {
        self.configure(|config| config.security = Security::Tls(tls))
    }

    /// Lets in whoever knows a secret; what is sent is not hidden.
    #[cfg(feature = "secret")]
    #[must_use]
    pub fn secret(self, secret: crate::net::secret::Secret) -> Self {
        self.configure(|config| config.security = Security::Secret(secret))
    }

    /// Checks the configuration. Nothing is opened before [`open`](divider_core::Store::open), which [`start`](divider_core::Divider::start)
    /// calls.
    ///
    /// # Errors
    /// [`ConfigError`] for the first contradiction.
    pub fn build(self) -> Result<RaftStore, ConfigError> {
        self.config.validate()?;
        Ok(RaftStore::new(self.config, self.group))
    }
}

impl RaftStore {
    /// Begins to build a store for a member, by the directory that belongs to it alone: log and snapshots are kept there, or
    /// for tests in memory ([`Data::Memory`]).
    pub fn builder(data: impl Into<Data>, group: Group) -> RaftBuilder {
        RaftBuilder { group, config: RaftConfig { data: data.into(), ..RaftConfig::default() } }
    }

    /// Begins to build a store for a client of the members at `seeds`.
    pub fn client<S: Into<String>>(seeds: impl IntoIterator<Item = S>, group: Group) -> RaftBuilder {
        Self::builder(Data::Unset, group).configure(|config| config.role = Role::Client).seeds(seeds)
    }
}
