//! The very code that ships, whole nodes over a store that fails, on one thread and simulated time, from a seed.
//!
//! # Why
//! A protocol like this one goes wrong in orders of events that no test of real processes meets often enough, and that it
//! cannot repeat when it does. Here the network, the clocks, the scheduler and the faults are all drawn from one number,
//! thousands of whole lives of a group pass in a second, and whatever breaks a rule can be watched again, step by step.
//!
//! # How
//! - [`exec`] runs the tasks of all nodes, and chooses which goes on next; it suspends and kills processes;
//! - [`machine`] gives each process its clocks;
//! - [`server`] is the store, the real ledger with a simple second book beside it, [`net`] the way there, and [`mood`] what it
//!   answers while it is not well;
//! - [`program`] is what runs around each node, and checks what it is told;
//! - [`plan`] is what a seed comes to: what is done, and how often;
//! - [`world`] does it, heals, and looks whether the group gets over it without anybody's help.

mod check;
pub mod exec;
pub mod machine;
pub mod mood;
pub mod net;
pub mod plan;
pub mod program;
pub mod server;
pub mod trace;
mod trouble;
pub mod world;

pub use world::{Report, run};
