//! The PostgreSQL backend of Divider.
//!
//! A [`PostgresStore`] keeps one group of keys in tables of a PostgreSQL database (14 or newer). Every batch is one call of
//! one SQL function, so it is atomic and one round trip; leadership is an advisory lock; notifications are hints. See the
//! README for the roles that it needs, and for what a restart, a restored backup and a fail-over mean.

#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod beat;
mod check;
mod codec;
mod config;
mod connector;
mod error;
#[cfg(feature = "unstable-fuzz")]
pub mod fuzzing;
mod hints;
mod holdings;
mod leader_connection;
mod line;
mod migrate;
mod pace;
mod pool;
mod read;
mod seen;
mod source;
mod sql;
mod store;
mod warm;

pub use config::{Credentials, PostgresBuilder, PostgresConfig};
pub use migrate::migrate;
pub use source::QuerySource;
/// The driver, since some of its types are part of the configuration.
pub use sqlx;
pub use store::PostgresStore;
