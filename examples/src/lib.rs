//! The scriptable node `worker` with the lines that it prints, which the tests of whole
//! processes read back.

pub mod line;
pub mod worker;

/// What `main` of `worker` returns: a message for a person.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;
