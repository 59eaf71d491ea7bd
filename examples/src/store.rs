//! One place that knows every backend: everything else in a program is the same for all of them.

use divider_core::{Group, MemoryStore, Node, NodeConfig};

use crate::AnyError;

/// A node over the store that the URL names. Nothing is connected before [`Divider::start`](divider_core::Divider::start).
///
/// | URL | store |
/// | --- | --- |
/// | `memory:` | this process's memory: for one process only |
///
/// # Errors
/// A message that says which URLs there are, or what is wrong with the configuration.
pub fn open_node(url: &str, group: Group, config: NodeConfig) -> Result<Node, AnyError> {
    // A group has its own memory store, so there is nothing to keep apart by name.
    let scheme = url.split_once(':').map_or(url, |(scheme, _)| scheme);
    match scheme {
        "memory" => {
            drop(group);
            Ok(Node::builder(MemoryStore::new()).config(config).build()?)
        }
        _ => Err(format!("no store is known by {scheme:?}; use memory:").into()),
    }
}
