//! The Redis backend of Divider.
//!
//! A [`RedisStore`] keeps one group of keys on a Redis server (7.0 or newer) or cluster, and makes every change with one
//! script, so that it is atomic. See the README for what a restart, a flush and a fail-over mean.

#![forbid(unsafe_code)]

mod codec;
mod config;
mod error;
mod hints;
mod keys;
mod link;
mod reply;
mod script;
mod server;
mod source;
mod store;

pub use config::{RedisBuilder, RedisConfig};
pub use source::PubSubChannels;
pub use store::RedisStore;
