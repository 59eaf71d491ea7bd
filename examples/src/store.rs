//! One place that knows every backend: everything else in a program is the same for all of them.

use divider_core::{Group, MemoryStore, Node, NodeConfig, StoreError};
use divider_postgres::PostgresStore;
use divider_raft::RaftStore;
use divider_redis::RedisStore;

use crate::AnyError;

/// A node over the store that the URL names. Nothing is connected before [`Divider::start`](divider_core::Divider::start).
///
/// | URL | store |
/// | --- | --- |
/// | `memory:` | this process's memory: for one process only, so the group's name makes no difference |
/// | `postgres://user:password@host:port/database` | a PostgreSQL database, in the schema `divider`; see [`prepare`] |
/// | `raft:/data/directory?listen=host:port&seeds=host:port,host:port&plaintext` | an embedded Raft member, or with `raft:?role=client&...` a client; see [`RaftStore::from_url`] |
/// | `redis://user:password@host:port/database` | a Redis server; `redis+unix:///path` for a socket |
///
/// # Errors
/// A message that says which URLs there are, or what is wrong with the configuration.
pub fn open_node(url: &str, group: Group, config: NodeConfig) -> Result<Node, AnyError> {
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme);
    let node = match scheme {
        "memory" => Node::builder(MemoryStore::new()).config(config).build()?,
        "postgres" | "postgresql" => {
            Node::builder(PostgresStore::builder(url, group).build()?).config(config).build()?
        }
        "raft" => {
            // What reads an older format of the group is a program of before, and so reads an older one of the cluster.
            let (reads, step_after) = (u8::try_from(config.reads)?, config.step_after);
            let builder = RaftStore::from_url(url, group)?;
            let builder = builder.configure(|raft| (raft.reads, raft.step_after) = (reads, step_after));
            Node::builder(builder.build()?).config(config).build()?
        }
        "redis" | "rediss" | "redis+unix" => {
            Node::builder(RedisStore::builder(url, group).build()?).config(config).build()?
        }
        _ => {
            return Err(format!(
                "no store is known by {scheme:?}; use memory:, postgres://host/database, raft:/data/directory or redis://host:port"
            )
            .into());
        }
    };
    Ok(node)
}

/// Makes what the store needs before its first use: the tables, in a database. It may be called at any time, by any number
/// of programs at once, and does nothing where nothing is missing. A real program does it when it is deployed, with a role
/// that may.
///
/// # Errors
/// Those of the store, and where the URL cannot be used.
pub async fn prepare(url: &str) -> Result<(), StoreError> {
    if !url.starts_with("postgres") {
        return Ok(());
    }
    // The error would repeat the URL, which may hold a password.
    let options =
        url.parse().map_err(|_| StoreError::Misconfigured("the URL of the database is not one".to_owned()))?;
    divider_postgres::migrate(&options, "divider").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_url_is_refused_with_the_ones_that_there_are() {
        let error = open_node("mysql://x", Group::new("/g/").unwrap(), NodeConfig::default()).unwrap_err();
        assert!(error.to_string().contains("redis://host:port"), "{error}");
    }
}
