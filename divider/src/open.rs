//! From a URL to a store, so that the rest of a program is the same for all of them.

use std::{fmt, sync::Arc};

use divider_core::{ConfigError, Group, InvalidInput, MemoryStore, Node, NodeBuilder, Store, StoreError};

/// A group at a place. See [`open`].
pub struct OpenGroup {
    group: Group,
    place: Place,
    /// Whether its stores prepare what they need when they are opened.
    prepared: bool,
}

/// Where a group is kept.
enum Place {
    Memory(MemoryStore),
    #[cfg(feature = "raft")]
    Raft(divider_raft::RaftStore),
    // One store serves one node there, and this is what another one is made from. It may hold a password.
    #[cfg(feature = "redis")]
    Redis(String),
    #[cfg(feature = "postgres")]
    Postgres(String),
}

/// Why a group cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No store has such a URL. What is shown of it is what stands before the first colon.
    #[error(
        "no store is known by {0:?}; there are memory:, raft:/data/directory, redis://host:port and postgres://host/database"
    )]
    UnknownScheme(String),
    /// There is such a store, and this program was built without it.
    #[error("{scheme}: needs the Cargo feature `{feature}` of divider: divider = {{ features = [\"{feature}\"] }}")]
    MissingFeature {
        /// What stands before the first colon.
        scheme: String,
        /// The feature that is missing.
        feature: &'static str,
    },
    /// The name of the group is not one.
    #[error(transparent)]
    Group(#[from] InvalidInput),
    /// The URL says something that cannot be used. Never quotes a password.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The URL makes an embedded Raft member that others reach, or a client of some, and does not say how connections
    /// are protected.
    #[cfg(feature = "raft")]
    #[error(
        "raft: the URL does not say how connections are protected; add `&plaintext` to the URL where the network is closed to \
         others, or set tls(..) or secret(..) on the builder (divider::raft::RaftStore::from_url)"
    )]
    Unprotected,
    /// The URL of an embedded Raft member cannot be used.
    #[cfg(feature = "raft")]
    #[error(transparent)]
    RaftUrl(#[from] divider_raft::UrlError),
}

/// Opens a group at the place that a URL names (the [crate] says which there are). Nothing is connected or written before
/// a node is [started](divider_core::Divider::start).
///
/// Each call with `memory:` is a memory of its own; each with `raft:` is a member of its own, so a process calls it once for
/// a directory. Several nodes of one process are [made](OpenGroup::node) from one value.
///
/// # Errors
/// [`OpenError`], which says what there is, or what is wrong.
pub fn open(url: &str, group: impl AsRef<str>) -> Result<OpenGroup, OpenError> {
    let group = Group::new(group.as_ref())?;
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme).to_ascii_lowercase();
    let place = match scheme.as_str() {
        "memory" => Place::Memory(MemoryStore::new()),
        #[cfg(feature = "raft")]
        "raft" => {
            let store = divider_raft::RaftStore::from_url(url, group.clone())?.build().map_err(unprotected)?;
            Place::Raft(store.unheld())
        }
        #[cfg(feature = "redis")]
        "redis" | "redis+unix" | "valkey" => Place::Redis(url.to_owned()),
        #[cfg(feature = "redis-tls")]
        "rediss" | "valkeys" => Place::Redis(url.to_owned()),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => Place::Postgres(url.to_owned()),
        _ => return Err(unknown(&scheme)),
    };
    let opened = OpenGroup { group, place, prepared: false };
    // What cannot be used is said here.
    opened.store()?;
    Ok(opened)
}

/// Of the ways to protect connections, a URL knows one.
#[cfg(feature = "raft")]
fn unprotected(error: ConfigError) -> OpenError {
    if error.field == "security" { OpenError::Unprotected } else { error.into() }
}

fn unknown(scheme: &str) -> OpenError {
    let feature = match scheme {
        "raft" => "raft",
        "redis" | "redis+unix" | "valkey" => "redis",
        "rediss" | "valkeys" => "redis-tls",
        "postgres" | "postgresql" => "postgres",
        _ => return OpenError::UnknownScheme(scheme.to_owned()),
    };
    OpenError::MissingFeature { scheme: scheme.to_owned(), feature }
}

impl OpenGroup {
    /// The group's name.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// A store of the group, for one node.
    ///
    /// An embedded Raft member ends when the last of its stores is closed. A node closes its own when it is cancelled.
    ///
    /// # Errors
    /// [`OpenError::Config`]; none that [`open`] has not looked for.
    pub fn store(&self) -> Result<Arc<dyn Store>, OpenError> {
        Ok(match &self.place {
            Place::Memory(store) => Arc::new(store.clone()),
            #[cfg(feature = "raft")]
            Place::Raft(store) => Arc::new(store.clone()),
            #[cfg(feature = "redis")]
            Place::Redis(url) => Arc::new(divider_redis::RedisStore::builder(url, self.group.clone()).build()?),
            #[cfg(feature = "postgres")]
            Place::Postgres(url) => Arc::new(self.postgres(url)?),
        })
    }

    #[cfg(feature = "postgres")]
    fn postgres(&self, url: &str) -> Result<divider_postgres::PostgresStore, ConfigError> {
        divider_postgres::PostgresStore::builder(url, self.group.clone()).migrates(self.prepared).build()
    }

    /// Begins to build a node of the group.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn node(&self) -> Result<NodeBuilder<Arc<dyn Store>>, OpenError> {
        Ok(Node::builder(self.store()?))
    }

    /// Has every node of the group [prepare](Self::prepare) what its store needs as a part of its start. So it waits for a
    /// database that is away as the start does: with a [`Worker`](divider_core::Worker) for as long as its
    /// [`outage_limit`](divider_core::Worker::outage_limit) says, and its shutdown is heard meanwhile. The role of the program
    /// must be allowed to make what is missing.
    #[must_use]
    pub fn prepared(mut self) -> Self {
        self.prepared = true;
        self
    }

    /// Makes what the store needs before its first use: in a PostgreSQL database the tables, elsewhere nothing. It may be
    /// called at any time, by any number of programs at once, and does nothing where nothing is missing. A real program
    /// does it when it is deployed, with a role that may; one that does it at its own start says [`prepared`](Self::prepared)
    /// instead.
    ///
    /// One try, as [`Divider::start`](divider_core::Divider::start) is: it fails at once where the database cannot be reached.
    ///
    /// # Errors
    /// Those of the store. A call that has failed may be made again.
    #[allow(clippy::unused_async)] // Without PostgreSQL there is nothing to wait for.
    pub async fn prepare(&self) -> Result<(), StoreError> {
        match &self.place {
            #[cfg(feature = "postgres")]
            Place::Postgres(url) => {
                let store = self.postgres(url).map_err(|error| StoreError::Misconfigured(error.to_string()))?;
                store.migrate().await
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for OpenGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.place {
            Place::Memory(_) => "memory",
            #[cfg(feature = "raft")]
            Place::Raft(_) => "raft",
            #[cfg(feature = "redis")]
            Place::Redis(_) => "redis",
            #[cfg(feature = "postgres")]
            Place::Postgres(_) => "postgres",
        };
        f.debug_struct("OpenGroup").field("group", &self.group).field("place", &place).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_url_is_refused_with_the_ones_that_there_are() {
        let error = open("mysql://user:secret@x", "/g/").unwrap_err().to_string();
        assert!(
            error.contains("\"mysql\"") && error.contains("redis://host:port") && !error.contains("secret"),
            "{error}"
        );
    }

    #[cfg(not(feature = "postgres"))]
    #[test]
    fn a_store_that_was_left_out_is_refused_with_the_feature_that_it_needs() {
        let error = open("postgres://x", "/g/").unwrap_err().to_string();
        assert!(error.contains("features = [\"postgres\"]"), "{error}");
    }

    #[cfg(all(feature = "redis", not(feature = "redis-tls")))]
    #[test]
    fn encryption_that_was_left_out_is_refused_with_the_feature_of_this_crate() {
        let error = open("rediss://x", "/g/").unwrap_err().to_string();
        assert!(error.contains("features = [\"redis-tls\"]"), "{error}");
    }

    #[test]
    fn a_scheme_may_be_written_in_capitals() {
        for url in
            ["MEMORY:", "Raft:memory", "REDIS://host", "Postgres://host/db", "RAFT:?role=client&seeds=h:1&plaintext"]
        {
            match open(url, "/g/") {
                Ok(_) | Err(OpenError::MissingFeature { .. }) => {}
                Err(error) => panic!("{url}: {error}"),
            }
        }
    }

    #[cfg(feature = "raft")]
    #[test]
    fn a_raft_url_that_protects_nothing_is_told_what_to_add_to_it() {
        for url in ["raft:/x?listen=10.0.0.1:7400", "raft:?role=client&seeds=10.0.0.1:7400"] {
            let error = open(url, "/g/").unwrap_err().to_string();
            assert!(error.contains("add `&plaintext` to the URL") && error.contains("builder"), "{error}");
        }
    }

    #[cfg(feature = "redis")]
    #[test]
    fn a_url_that_is_not_one_is_spoken_of_as_one_url() {
        let error = open("redis://secret@", "/g/").unwrap_err().to_string();
        assert!(error.starts_with("configuration field `url`: is not of the form redis://"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    /// What exists is said by the error about what does not.
    #[cfg(feature = "raft")]
    #[test]
    fn every_setting_of_a_raft_url_is_in_the_table() {
        let error = open("raft:/x?no", "/g/").unwrap_err().to_string();
        let (_, settings) = error.split_once("use ").unwrap();
        let settings: Vec<_> = settings.split([',', ' ']).filter(|word| !word.is_empty() && *word != "or").collect();
        assert!(settings.len() >= 10, "{settings:?}");
        for setting in settings {
            assert!(include_str!("../URLS.md").contains(&format!("\n| `{setting}` | ")), "{setting}");
        }
    }

    #[test]
    fn a_group_without_a_name_is_refused() {
        assert!(matches!(open("memory:", ""), Err(OpenError::Group(_))));
    }

    #[tokio::test]
    async fn nodes_from_one_value_share_the_group() {
        use divider_core::{Divider, Work};
        let group = open("memory:", "/g/").unwrap();
        let (one, other) = (group.node().unwrap().build().unwrap(), group.node().unwrap().build().unwrap());
        one.start().await.unwrap();
        other.start().await.unwrap();
        one.add_work(vec![Work::new("key").unwrap()]).await.unwrap();
        assert_eq!(other.stats().await.unwrap().registered, 1);
        assert!(one.flush_and_cancel().await.unwrap().is_clean());
        assert_eq!(other.stats().await.unwrap().sessions, 1, "the end of one closes nothing of the other");
        assert!(other.flush_and_cancel().await.unwrap().is_clean());
    }

    #[cfg(feature = "raft")]
    #[tokio::test(flavor = "multi_thread")]
    async fn an_embedded_member_ends_with_its_last_node() {
        use divider_core::Divider;
        let group = open("raft:memory", "/g/").unwrap();
        let node = group.node().unwrap().build().unwrap();
        node.start().await.unwrap();
        let Place::Raft(store) = &group.place else { panic!("it is on Raft") };
        assert!(store.leads_raft());
        assert!(node.flush_and_cancel().await.unwrap().is_clean());
        assert!(!store.leads_raft(), "it goes on although nobody uses it");
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn a_group_that_prepares_itself_waits_for_its_database_as_a_start_does() {
        use divider_core::{Error, Next, Worker};
        use std::time::Duration;
        let away = || open("postgres://x@127.0.0.1:1,127.0.0.1:2/x", "/g/").unwrap().prepared();
        let refused = away().prepare().await.unwrap_err();
        assert!(refused.is_transient(), "{refused}");
        let worker = || Worker::new(away().node().unwrap().build().unwrap());
        let shutdown = tokio::time::sleep(Duration::from_millis(100));
        let shut_down = worker().run_until(shutdown, |_, _| async { Ok(Next::Complete) }).await;
        assert!(shut_down.unwrap().is_clean());
        let limited = worker().outage_limit(Duration::from_millis(100));
        let given_up = limited.run(|_, _| async { Ok(Next::Complete) }).await;
        assert!(matches!(&given_up, Err(Error::Store(error)) if error.is_transient()), "{given_up:?}");
    }

    #[cfg(all(feature = "redis", feature = "postgres"))]
    #[test]
    fn no_password_is_shown() {
        for url in ["redis://user:secret@host", "postgres://user:secret@host/db"] {
            assert!(!format!("{:?}", open(url, "/g/").unwrap()).contains("secret"));
        }
    }
}
