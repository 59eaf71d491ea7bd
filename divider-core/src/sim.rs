//! The inner parts of a node, and what it runs on, for simulations, models and benchmarks of this repository.
//!
//! **Outside of semantic versioning**: anything here may change or go with any release. Only with the Cargo feature
//! `unstable-sim`. A program needs nothing of it.

pub use crate::{
    leader::{Counts, Deposed, FeedOutcome, Leader, Now, Proposal, Timing, TokenAges},
    member::{Confirmation, Declared, Member, Queue},
    memory::SessionBeats,
    node::{Environment, Task},
    planner::{Counters, KeyIx, KeyState, MAX_WEIGHT, NodeIx, NodeSpec, Planner},
};
