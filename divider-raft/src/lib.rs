//! The embedded Raft backend of Divider: the authority of a group lives in the programs themselves.
//!
//! # Why
//! There is no server to run, to secure and to lose. Three processes, each with a directory on its own disk, keep the
//! state of any number of groups; one may be lost at any time without anything that was acknowledged being gone, and the
//! rest goes on within an election. Hundreds more can be clients of those three.
//!
//! # How
//! The [`Ledger`](divider_core::Ledger) of each group is the replicated state, and an [`Op`](divider_core::Op) is what
//! the log holds. [openraft](https://docs.rs/openraft) decides; [redb](https://docs.rs/redb) keeps the log, with one
//! commit for all that gathered during the one before; postcard over TCP carries it. Beats stay in the leader's memory.
//!
//! Begin at [`RaftStore`].

mod bond;
mod book;
mod cluster;
mod command;
mod config;
mod confirm;
mod error;
#[cfg(test)]
mod excess;
#[cfg(test)]
mod fixtures;
mod format;
mod founding;
#[cfg(feature = "unstable-fuzz")]
pub mod fuzzing;
#[cfg(not(feature = "unstable-sim"))]
#[allow(dead_code, unreachable_pub)]
mod ground;
#[cfg(feature = "unstable-sim")]
pub mod ground;
mod house;
#[cfg(all(test, feature = "tls"))]
mod intruder;
mod link;
mod lives;
mod member;
mod newcomers;
mod propose;
mod raft;
mod reign;
mod rights;
mod router;
#[cfg(feature = "secret")]
mod secret;
#[cfg_attr(not(feature = "unstable-sim"), allow(unreachable_pub))]
mod security;
mod seeds;
mod server;
mod settle;
#[cfg(test)]
mod small_disk;
mod store;
mod subscribe;
mod succession;
#[cfg(feature = "tls")]
mod tls;
mod url;
mod wire;

pub use config::{Data, RaftConfig, Role};
pub use error::{DataError, TooOld};
pub use raft::{Peer, Recovered};
#[cfg(feature = "secret")]
pub use secret::Secret;
pub use security::Security;
pub use store::{Condition, RaftStore, RaftStoreBuilder};
#[cfg(feature = "tls")]
pub use tls::{Tls, TlsError};
pub use url::UrlError;
pub use wire::Owner;

/// The examples of the README are tested like all others.
#[cfg(all(doctest, feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;
