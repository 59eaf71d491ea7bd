//! The fixture for networks that can be cut.

// What needs the right to make namespaces has a word for them in its name, so that a machine without it can leave it out.
mod network_namespaces;
