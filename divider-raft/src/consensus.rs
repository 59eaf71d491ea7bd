//! What the members decide together: Raft's log and what it replicates, and who may lead. The only room that runs openraft.

pub(crate) mod beats;
mod checksum;
pub(crate) mod compare;
pub(crate) mod confirm;
mod elections;
pub(crate) mod inbound;
pub(crate) mod log;
mod network;
pub(crate) mod propose;
mod quorum;
pub(crate) mod raft;
pub(crate) mod recover;
mod silence;
pub(crate) mod snapshots;
pub(crate) mod state_machine;
pub(crate) mod subscribers;
#[cfg(test)]
mod tests;
mod transfer;
