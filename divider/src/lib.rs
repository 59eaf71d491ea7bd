//! Divider splits keyed work among the nodes of a service: each key runs on exactly one live node, in proportion to how much
//! work each node wants, with a fencing token. When a node dies its keys run elsewhere within seconds, and when one drains
//! there is no gap.
//!
//! # In short
//! ```
//! use divider::{Divider, Event, Work};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = divider::open("memory:", "/my-service/")?.node()?.build()?;
//! let mut events = node.events();
//! node.start().await?;
//! node.add_work(vec![Work::new("tenant-17")?]).await?;
//! let Some(Event::Start(work)) = events.next().await else { panic!("nothing else can come first") };
//! assert!(node.is_current(&work.key, work.token));
//! # Ok(()) }
//! ```
//!
//! # Which store
//! | URL | where the group is kept | Cargo feature |
//! | --- | --- | --- |
//! | `memory:` | in this process, and gone with it | always there |
//! | `raft:/data/directory` | on the disks of the nodes themselves; see [`raft::RaftStore::from_url`] for clusters | `raft` (default) |
//! | `redis://user:password@host:port/database`, `redis+unix:///path` | on a Redis server | `redis` |
//! | `rediss://…` | the same, over TLS | `redis-tls` |
//! | `postgres://user:password@host:port/database` | in a PostgreSQL database, in the schema `divider` | `postgres` |
//!
//! What a URL cannot say is set on the builders in [`raft`], [`redis`] and [`postgres`], whose stores go into
//! [`Node::builder`] as well.
//!
//! # Where to read on
//! Everything of [`divider_core`] is here under the same name: [`Divider`] has the rules of delivery, [`NodeConfig`] every
//! setting, [`limits`] every limit, and [`Worker`] runs a task for each key.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod open;

pub use divider_core::*;
#[cfg(feature = "postgres")]
pub use divider_postgres as postgres;
#[cfg(feature = "raft")]
pub use divider_raft as raft;
#[cfg(feature = "redis")]
pub use divider_redis as redis;
pub use open::{OpenError, OpenGroup, open};

/// The examples of the README are tested like all others.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// And those of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/GUIDE.md")]
struct Guide;
