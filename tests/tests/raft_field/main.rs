//! The Raft backend in the field: the conformance suite on three voters, clusters that lose members, and real `worker`
//! processes that are their own store: three voters, and clients of them, each entry on disk before it is acknowledged.
//!
//! Tests of processes print what they measured on lines that begin with `figure:`. The bounds asserted for times are the
//! promised ones where a lease decides, and several times the usual where the machine's speed does.

mod bed;
mod cluster;
mod conformance;
mod deaths;
mod latency;
mod membership;
mod partitions;
