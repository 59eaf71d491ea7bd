//! On Raft: what holds everywhere. Everything else about it stands in `raft_field`.

use divider_tests::raft::Voters;

use super::on_any_store;

on_any_store!(Voters);
