//! Between the scripts and the vocabulary of `divider-core`.
//!
//! The scripts speak MessagePack, since Redis can read and write it in C. Everything that comes back is decoded without
//! trust: who may write to the database can write anything, and a hint may come from anybody who may publish.

mod read;
mod write;

pub(crate) use read::*;
pub(crate) use write::ops;
