//! What the tests of all crates share, and what needs no backend: [`ops`] and sessions, [`seeds`], and [`wait`]ing.
//!
//! Random numbers that a seed repeats are `divider_conformance::Dice`.

pub mod ops;
pub mod seeds;
pub mod wait;
