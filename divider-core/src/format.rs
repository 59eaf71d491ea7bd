//! The formats that a group can be written in.
//!
//! # Why
//! A rolling deploy is the normal case: old programs and new ones work in one group for a while, and a deploy must be able to
//! be rolled back. So everything that outlives a process has a format number. A program says which it reads; a group is
//! written in the oldest that one of its members needs. The leader lets it step up when all have been able to read the next
//! one for [`NodeConfig::step_after`](crate::NodeConfig::step_after), and an operator may say so before
//! ([`Divider::step_up`](crate::Divider::step_up)); whoever is too old for what is written is told so when it joins.
//!
//! | format | what it adds |
//! | --- | --- |
//! | 1 | everything but what follows |
//! | 2 | [`Record::why`](crate::Record::why): what went wrong last, kept with the key |

/// The oldest format that this program reads.
pub const OLDEST: u16 = 1;
/// The newest format that this program reads.
pub const NEWEST: u16 = 2;
/// From this one on a record says what went wrong last.
pub const KEEPS_WHY: u16 = 2;
