//! How processes reach one another: protected connections, pooled on the side that calls, and the frames on them. Knows
//! neither Raft nor the cluster.

pub(crate) mod address_book;
pub(crate) mod client;
pub(crate) mod cluster_binding;
pub(crate) mod pending;
pub(crate) mod pool;
#[cfg(feature = "secret")]
pub(crate) mod secret;
pub(crate) mod security;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod wire;
