#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod codec;
mod config;
mod connection;
mod error;
#[cfg(feature = "unstable-fuzz")]
pub mod fuzzing;
mod hints;
mod holdings;
mod keys;
mod pace;
mod reply;
mod script;
mod server;
mod source;
mod store;
mod target;

pub use config::{Credentials, RedisBuilder, RedisConfig};
pub use source::PubSubChannels;
pub use store::RedisStore;
