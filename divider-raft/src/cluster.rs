//! A process and its cluster: who is a member, who votes, who may ask for what, and the way to the leader.

mod authorization;
mod failover;
mod founding;
mod joining;
pub(crate) mod member;
pub(crate) mod router;
pub(crate) mod running;
mod seeds;
pub(crate) mod server;
pub(crate) mod supervisor;
mod voters;
