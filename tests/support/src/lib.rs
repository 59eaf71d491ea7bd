//! What the tests of all crates share, and what needs no backend: [`ops`] and sessions, [`seeds`], [`wait`]ing,
//! and with the feature of that name [`certificates`].
//!
//! Random numbers that a seed repeats are `divider_conformance::Dice`.

#[cfg(feature = "certificates")]
pub mod certificates;
pub mod ops;
pub mod seeds;
pub mod wait;
