//! The Raft backend in the field: the conformance suite on three voters, clusters that lose members, real processes.
//!
//! Not part of `./test` yet: a disk that stalls for longer than an election is enough to fail some of it. Run it with
//! `cargo nextest run -p divider-tests --test raft_field --ignore-default-filter`.

mod cluster;
mod conformance;
mod process;
