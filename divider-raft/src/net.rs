//! How processes reach one another: protected connections, pooled on the side that calls, and the frames on them. What they
//! carry is decided elsewhere.

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
