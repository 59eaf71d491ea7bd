//! What Redis and the redis crate report, as [`StoreError`].

use std::{fmt, sync::Arc};

use divider_core::{StoreError, format};
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// A failed call to the server at this address.
///
/// [`StoreError::Misconfigured`] says that the call had no effect. So it stands only for what Redis refuses before it
/// begins: a script that breaks off in its middle has had an unknown part of its effect, whatever broke it.
///
/// The messages of the redis crate and of the server never hold a password or a URL; they are passed on as they are.
pub(crate) fn store_error(at: &str, error: RedisError) -> StoreError {
    let misconfigured = |text: String| StoreError::Misconfigured(format!("Redis at {at}: {text}"));
    match (error.kind(), error.code()) {
        (_, Some("WRONGTYPE")) => {
            StoreError::Corrupt(format!("Redis at {at}: a key of this group holds something else than Divider's data"))
        }
        (_, Some("DIVIDERGONE")) => StoreError::Corrupt(format!(
            "Redis at {at}: bytes of a key are missing ({error}), as after an eviction; add the work again"
        )),
        // A script looks at the rights before it writes.
        (_, Some("DIVIDERRIGHTS")) => {
            let told = error.detail().unwrap_or_default();
            let lacks = told.split_once(" script: ").map_or(told, |(lacks, _)| lacks);
            misconfigured(format!(
                "this user lacks the right to {lacks}; see the README of divider-redis for the least permissions"
            ))
        }
        _ if in_a_script(&error) => unavailable_because(at, error),
        // What frees memory is still taken. So this must not pass for an outage, in which everything waits its turn.
        (_, Some("OOM")) => {
            misconfigured(format!("it is out of memory ({error}); raise maxmemory, or remove something"))
        }
        (_, Some("NOAUTH" | "WRONGPASS"))
        | (ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig, _)
        | (ErrorKind::Server(ServerErrorKind::NoPerm), _) => misconfigured(format!(
            "this user or command is refused ({error}); see the README of divider-redis for the least permissions"
        )),
        // The redis crate has no kind of its own for this.
        _ if error.to_string().starts_with("Redis server refused to switch database") => misconfigured(format!(
            "the database that the URL names is refused ({error}); it needs to exist, and the user needs +select"
        )),
        (_, Some("DIVIDERFORMAT")) => match error.detail().unwrap_or_default().parse() {
            Ok(needs) => StoreError::TooOld { needs, reads: format::NEWEST },
            Err(_) => StoreError::Corrupt(format!("Redis at {at}: the group's format is no number")),
        },
        (_, Some("DIVIDERLAYOUT")) => misconfigured(
            "the group was written by another version of Divider, in a layout that this one does not know".to_owned(),
        ),
        (_, Some("DIVIDERLINEAGE")) => misconfigured(NO_LINEAGE.to_owned()),
        // All of these pass by themselves or once the server has been helped: LOADING, READONLY and MASTERDOWN during a
        // fail-over, MOVED while a slot changes hands, BUSY while somebody's script runs, MISCONF until the disk has room.
        (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Io, _) => unavailable_because(at, error),
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) if !error.is_io_error() => {
            StoreError::Corrupt(format!("Redis at {at}: {error}"))
        }
        _ => unavailable_because(at, error),
    }
}

/// What to do where the lineage cannot be read.
pub(crate) const NO_LINEAGE: &str = "INFO tells no run_id and master_replid here, so a restart with loss could not be \
     noticed; this service hides them or is not Redis. The README of divider-redis lists what works; otherwise use \
     the PostgreSQL or the Raft backend";

/// Whether it is a command inside a script that failed, and not the script as a whole. Redis says where.
fn in_a_script(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains(" script: ") && detail.contains("@user_script"))
}

/// An [`StoreError::Unavailable`] that says where.
pub(crate) fn unavailable(at: &str, message: impl fmt::Display) -> StoreError {
    StoreError::Unavailable { message: format!("Redis at {at}: {message}"), source: None }
}

fn unavailable_because(at: &str, error: RedisError) -> StoreError {
    StoreError::Unavailable { message: format!("Redis at {at}: {error}"), source: Some(Arc::new(error)) }
}

/// Whether the server belongs to a cluster in which another one keeps this group. Nothing was done.
pub(crate) fn elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, CrossSlot, Moved};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | CrossSlot))
}

/// Whether a script met a command that its user may not call. Which one that is, only the check at a connect says.
pub(crate) fn lacks_a_right(error: &RedisError) -> bool {
    // No version has a code of its own for this.
    let told = error.detail().unwrap_or_default();
    in_a_script(error) && ["can't run this command", "ACL failure", "NOPERM"].iter().any(|words| told.contains(words))
}

/// Whether nothing was done because the server does not know the script (any more).
pub(crate) fn unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
