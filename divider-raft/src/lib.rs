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
#![cfg_attr(docsrs, feature(doc_cfg))]

mod administration;
mod builder;
mod cluster;
mod config;
mod consensus;
#[cfg(not(feature = "unstable-sim"))]
#[allow(dead_code, unreachable_pub)]
mod environment;
#[cfg(feature = "unstable-sim")]
pub mod environment;
mod error;
mod format;
#[cfg(feature = "unstable-fuzz")]
pub mod fuzzing;
#[cfg_attr(not(feature = "unstable-sim"), allow(unreachable_pub))]
mod net;
mod protocol;
mod store;
#[cfg(test)]
mod tests;
mod url;

pub use builder::RaftBuilder;
pub use config::{Data, RaftConfig, Role};
pub use consensus::recover::Recovered;
pub use error::{DataError, TooOld};
#[cfg(feature = "secret")]
pub use net::secret::Secret;
pub use net::security::Security;
#[cfg(feature = "tls")]
pub use net::tls::{Tls, TlsError};
pub use protocol::{messages::Owner, peer::Peer};
pub use store::{Condition, RaftStore};
pub use url::UrlError;

/// The examples of the README are tested like all others.
#[cfg(all(doctest, feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;
