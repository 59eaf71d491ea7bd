//! Every decoder, by the name of its fuzz target. The targets call these, and so does an ordinary test (`tests/fuzz.rs`),
//! with what the targets have found and a few thousand inputs like it.

use divider_core::Group;
use divider_postgres::{PostgresConfig, PostgresStore, fuzzing as postgres};
use divider_raft::fuzzing as raft;
use divider_redis::{RedisStore, fuzzing as redis};

/// What takes any bytes, panics where something does not hold that must, and says whether anything could be decoded.
pub type Target = fn(&[u8]) -> bool;

/// All of them, in the order of their names.
pub const TARGETS: &[(&str, Target)] = &[
    ("postgres_columns", postgres::columns),
    ("postgres_notices", postgres::notices),
    ("postgres_rows", postgres::rows),
    ("raft_frames", raft::frames),
    ("raft_handshakes", raft::handshakes),
    ("raft_messages", raft::messages),
    ("raft_records", raft::records),
    ("raft_snapshots", raft::snapshots),
    ("redis_hints", redis::hints),
    ("redis_replies", redis::replies),
    ("redis_rows", redis::rows),
    ("urls", urls),
];

/// Runs a target by its name.
///
/// # Panics
/// Where something does not hold that must, or there is no such target.
pub fn fuzz(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    target(bytes);
}

/// The URLs of stores: as they are, and with a password before them, which must never be shown.
fn urls(bytes: &[u8]) -> bool {
    const SECRET: &str = "hunter2hunter2";
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if text.contains(SECRET) {
        return false;
    }
    let group = || Group::new("/g/").expect("a valid name");
    let opened = divider::open(text, "/g/");
    let mut any = opened.is_ok();
    for scheme in ["redis", "rediss", "redis+unix", "postgres", "postgresql"] {
        let url = format!("{scheme}://user:{SECRET}@{text}");
        let config = PostgresConfig::new(&url, group());
        let postgres = config.clone().and_then(PostgresStore::new);
        let redis = RedisStore::builder(&url, group()).build();
        any |= postgres.is_ok() | redis.is_ok();
        let shown = format!("{config:?} {postgres:?} {redis:?}");
        assert!(!shown.contains(SECRET), "{url} is shown as {shown}");
    }
    any
}
