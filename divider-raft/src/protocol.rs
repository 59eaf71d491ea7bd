//! What programs of other versions read: on the wire, and on the disk. Variants and fields are only ever appended.

pub(crate) mod command;
pub(crate) mod messages;
pub(crate) mod peer;
pub(crate) mod raft_messages;
pub(crate) mod snapshot;
pub(crate) mod types;
