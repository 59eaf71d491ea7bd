//! What the tests of all crates share: private servers, the runner that compares a store with the ledger, and fleets of
//! real processes with the checker of what they say.

pub mod agree;
pub mod backend;
pub mod bed;
pub mod disk;
pub mod history;
pub mod netns;
pub mod postgres;
pub mod process;
pub mod raft;
pub mod redis;
pub mod sink;
pub mod way;

/// The examples of the README are tested like all others. Here, since no package may need files from outside of it.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// And those of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/GUIDE.md")]
struct Guide;
