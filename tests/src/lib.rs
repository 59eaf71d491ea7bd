//! What the tests of all crates share: private servers, and the runner that compares a store with the ledger.

pub mod agree;
pub mod raft;
pub mod redis;
