//! Divider core.
#![forbid(unsafe_code)]

pub mod planner;
