//! What a failure of PostgreSQL means to a caller of the store.

use std::{sync::Arc, time::Duration};

use divider_core::StoreError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// What to do about a pooler that gives each transaction another connection.
pub(crate) const POOLER: &str = "a connection pooler in transaction or statement mode stands between this program and \
    PostgreSQL, and breaks advisory locks, LISTEN and prepared statements; connect to the server itself, or set the \
    pooler's pool_mode to session for this database";

/// Sorts an error of the driver by what the caller can do about it.
pub(crate) fn store_error(error: sqlx::Error, limit: Duration) -> StoreError {
    let Some(db) = error.as_database_error() else {
        return match error {
            sqlx::Error::PoolTimedOut => StoreError::Timeout { limit },
            sqlx::Error::Configuration(_) => {
                StoreError::Misconfigured("the connection options are not valid".to_owned())
            }
            sqlx::Error::Tls(_) => {
                StoreError::Misconfigured(format!("no TLS connection: {error}; check sslmode and the certificates"))
            }
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                StoreError::Corrupt(error.to_string())
            }
            error => StoreError::unavailable(error),
        };
    };
    let code = db.code().unwrap_or_default().into_owned();
    let said = format!("{} (SQLSTATE {code})", db.message());
    match code.as_str() {
        // A statement that the server gave up on, or that was locked out for too long.
        "57014" | "55P03" => StoreError::Timeout { limit },
        "42P01" | "42883" | "42703" | "3F000" | "42704" => StoreError::Misconfigured(format!(
            "{said}; run divider_postgres::migrate(), or the files in migrations/, for this database and schema"
        )),
        "42501" => StoreError::Misconfigured(format!("{said}; grant the running role what the README lists")),
        "28000" | "28P01" | "3D000" => StoreError::Misconfigured(said),
        "08P01" if said.contains("startup parameter") || said.contains("pooling mode") => {
            StoreError::Misconfigured(format!("{said}; {POOLER}"))
        }
        // Prepared statements that another client's transaction has left behind, or taken away.
        "26000" | "42P05" => StoreError::Misconfigured(format!("{said}; {POOLER}")),
        // A standby, or a server that is being taken out of use: another one will do, or this one later.
        _ => StoreError::Unavailable { message: said, source: Some(Arc::new(error)) },
    }
}

/// Whether the connection is still good for another statement after this error.
pub(crate) fn keeps_connection(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    let fatal = matches!(error.downcast_ref::<PgDatabaseError>().severity(), PgSeverity::Fatal | PgSeverity::Panic);
    let code = error.code().unwrap_or_default();
    // It leads to a server that cannot write (25006, and 55000 where only a primary knows the answer), or that is about to
    // go. A connection that is opened anew leads to wherever the service is by now.
    !fatal && code != "25006" && code != "55000" && !code.starts_with("57P0") && !code.starts_with("08")
}
