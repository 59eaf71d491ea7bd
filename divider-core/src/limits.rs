//! The limits of every input, in one place, so that a backend and a caller can never disagree about them.

/// Longest key, in bytes of UTF-8. The shortest is 1 byte; NUL is refused.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest group name, in bytes of UTF-8. The shortest is 1 byte; NUL is refused.
pub const MAX_GROUP_BYTES: usize = 256;
/// Longest node name, in bytes of UTF-8. The shortest is 1 byte; NUL is refused.
pub const MAX_NODE_BYTES: usize = 256;
/// Longest payload of a key, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// Longest checkpoint of a key, in bytes.
pub const MAX_CHECKPOINT_BYTES: usize = 64 * 1024;
/// Highest affinity of a node. The lowest is 0, which means "no new work".
pub const MAX_AFFINITY: u32 = i32::MAX as u32;
/// Highest weight of a key. The lowest is 1.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Latest `not_before`, in milliseconds since the Unix epoch: far beyond any real schedule, and small enough that every
/// backend's number type holds it exactly.
pub const MAX_NOT_BEFORE_MS: u64 = 1 << 52;
/// Most ops in one batch given to [`Store::apply`](crate::Store::apply).
pub const MAX_BATCH_OPS: usize = 512;
/// Most bytes of keys, payloads and checkpoints in one batch given to [`Store::apply`](crate::Store::apply), unless a
/// single op is larger.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// How many changes a store keeps for readers that fell behind; whoever is further behind scans again.
pub const CHANGE_LOG: u64 = 16_384;
/// Longest text that says why a key failed or was set aside, in bytes of UTF-8; longer ones are cut.
pub const MAX_WHY_BYTES: usize = 1024;
/// Longest pause of a key after a failure, in milliseconds: a hundred years, which every backend's number type holds exactly.
pub const MAX_PAUSE_MS: u64 = 100 * 365 * 24 * 3_600_000;
/// Most that ledger time goes on by in one op, in milliseconds: a day.
pub const MAX_ADVANCE_MS: u64 = 24 * 3_600_000;
