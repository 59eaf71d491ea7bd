//! What the examples share: how a program chooses its store from a URL, and the scriptable node `worker` with the lines
//! that it prints, which the tests of whole processes read back.

pub mod line;
pub mod show;
pub mod store;
pub mod worker;

/// What an example's `main` returns: a message for a person.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;
