//! The types of openraft that go over the wire and onto the disk.

use crate::protocol::{
    command::{Command, Reply},
    peer::Peer,
    snapshot::SnapshotData,
};

openraft::declare_raft_types!(
    pub(crate) Types:
        D = Command,
        R = Reply,
        NodeId = u64,
        Node = Peer,
        SnapshotData = SnapshotData,
);

pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type Membership = openraft::StoredMembership<u64, Peer>;
pub(crate) type StorageError = openraft::StorageError<u64>;
