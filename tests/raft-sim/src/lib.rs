//! The Raft backend that ships, three voters, a learner and a client of theirs, on simulated disks, wires and time, from a seed.
//!
//! # Why
//! What a Raft group may lose, it loses in a crash between two writes, or where a leader that was cut off still answers.
//! Real machines meet that too seldom, and cannot do it again. Here a disk loses whatever was not synced, messages are
//! lost and held back, and every answer is compared with what one ledger could have said.
//!
//! # How
//! - [`environment`] and [`disk`] are what a member stands on, in the place of the machine;
//! - [`caller`] are the programs that use the store, and write down what they asked and what they were told;
//! - [`history`] looks whether one ledger could have given all those answers, in an order that agrees with time;
//! - [`world`] draws the faults, heals, and looks what is left.

pub mod caller;
pub mod disk;
pub mod environment;
pub mod history;
mod panics;
pub mod world;

pub use world::{Report, run};
