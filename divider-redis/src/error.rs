//! What Redis and the redis crate report, as [`StoreError`].

use divider_core::StoreError;
use redis::{ErrorKind, RedisError, ServerErrorKind};

/// A failed command.
///
/// The messages of the redis crate and of the server never hold a password or a URL; they are passed on as they are.
pub(crate) fn store_error(error: RedisError) -> StoreError {
    match (error.kind(), error.code()) {
        (_, Some("NOAUTH" | "WRONGPASS"))
        | (ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig, _)
        | (ErrorKind::Server(ServerErrorKind::NoPerm), _) => StoreError::Misconfigured(format!(
            "Redis refuses this user or command ({error}); see the README of divider-redis for the least permissions"
        )),
        // The redis crate has no kind of its own for this.
        _ if error.to_string().starts_with("Redis server refused to switch database") => {
            StoreError::Misconfigured(format!(
                "Redis refuses the database that the URL names ({error}); it needs to exist, and the user needs +select"
            ))
        }
        (_, Some("DIVIDERFORMAT")) => {
            StoreError::Misconfigured("the group was written by a newer version of Divider".to_owned())
        }
        (_, Some("DIVIDERLAYOUT")) => StoreError::Misconfigured(
            "the group was written by another version of Divider, in a layout that this one does not know".to_owned(),
        ),
        (_, Some("DIVIDERLINEAGE")) => StoreError::Misconfigured(
            "INFO tells no run_id and master_replid here, so a restart with loss could not be noticed".to_owned(),
        ),
        (_, Some("WRONGTYPE")) => {
            StoreError::Corrupt("a key of this group holds something else than Divider's data".to_owned())
        }
        // All of these pass by themselves or once the server has been helped: LOADING, READONLY and MASTERDOWN during a
        // fail-over, MOVED while a slot changes hands, BUSY while somebody's script runs, OOM until memory is freed,
        // MISCONF until the disk has room.
        (ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Io, _) => StoreError::unavailable(error),
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) if !error.is_io_error() => {
            StoreError::Corrupt(error.to_string())
        }
        _ => StoreError::unavailable(error),
    }
}

/// Whether the server belongs to a cluster in which another one keeps this group. Nothing was done.
pub(crate) fn elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, CrossSlot, Moved};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | CrossSlot))
}

/// Whether nothing was done because the server does not know the script (any more).
pub(crate) fn unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
