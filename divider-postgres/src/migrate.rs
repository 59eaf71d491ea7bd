//! The tables and functions, and how they come into a database.

use std::time::{Duration, Instant};

use divider_core::StoreError;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

use crate::{connector::Connector, error::store_error, sql::quoted};

/// All steps, in order. The same files can be run by hand; the first one says how.
const STEPS: [&str; 6] = [
    include_str!("../migrations/0001_tables.sql"),
    include_str!("../migrations/0002_publish.sql"),
    include_str!("../migrations/0003_runs.sql"),
    include_str!("../migrations/0004_apply.sql"),
    include_str!("../migrations/0005_lead.sql"),
    include_str!("../migrations/0006_fence.sql"),
];

/// The version that this program knows.
const VERSION: i32 = STEPS.len() as i32;

/// The oldest version of a schema that has all that this program uses.
const NEEDS: i32 = 6;

/// How long a migration may take, waiting for another one included.
const LIMIT: Duration = Duration::from_secs(60);

/// Brings a schema to the version that this program needs, and makes it where there is none.
///
/// Several programs may call it at once: one migrates, the others wait for it and find nothing left to do. It is one
/// transaction, so it happens as a whole or not at all. It needs a role that may create the schema, or owns it; see the
/// README for what the program itself needs afterwards.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let options = "postgres://admin:secret@db.example/app".parse()?;
/// divider_postgres::migrate(&options, "divider").await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`StoreError::Misconfigured`] where the schema needs a newer program; other variants where the database fails. A newer
/// schema that this program can work with is left as it is.
///
/// # Cancel safety
/// Dropped before its end, it has either happened or not.
pub async fn migrate(options: &PgConnectOptions, schema: &str) -> Result<(), StoreError> {
    if schema.is_empty() || schema.len() > 63 || schema.contains('\0') {
        return Err(StoreError::Misconfigured("the schema's name must have 1 to 63 bytes, without NUL".to_owned()));
    }
    let failed = |error| store_error(error, LIMIT);
    let migrated = timeout(LIMIT, async {
        let mut connection =
            PgConnection::connect_with(&options.clone().extra_float_digits(None)).await.map_err(failed)?;
        run(&mut connection, schema).await?;
        // The transaction is committed; how the connection ends does not matter.
        _ = connection.close().await;
        Ok(())
    });
    migrated.await.unwrap_or(Err(StoreError::Timeout { limit: LIMIT }))
}

/// As [`migrate`], over a connection that is opened in this way.
pub(crate) async fn over(connector: &Connector, schema: &str) -> Result<(), StoreError> {
    let mut connection = connector.connect(Instant::now() + connector.limit).await?;
    let migrated = timeout(LIMIT, run(&mut connection, schema)).await;
    _ = connection.close().await;
    migrated.unwrap_or(Err(StoreError::Timeout { limit: LIMIT }))
}

async fn run(connection: &mut PgConnection, schema: &str) -> Result<(), StoreError> {
    let failed = |error| store_error(error, LIMIT);
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    let mut transaction = connection.begin_with(begin).await.map_err(failed)?;
    // Whatever the role's own limits and isolation are, they are not for this: one migration waits for another, and then
    // has to see what that has done.
    sqlx::raw_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    // Two CREATE SCHEMA IF NOT EXISTS at once can still collide, so even that happens under the lock.
    sqlx::query("SELECT pg_advisory_xact_lock(('x' || left(encode(sha256(convert_to($1, 'UTF8')), 'hex'), 16))::bit(64)::bigint)")
        .bind(format!("divider migration of {schema}"))
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
        .bind(schema)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let name = quoted(schema);
    let mut execute = async |sql: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await.map(drop).map_err(failed)
    };
    if !exists {
        execute(format!("CREATE SCHEMA {name}")).await?;
    }
    // What is looked up without a schema is looked up here, and by the functions for ever after. Temporary objects come
    // last, so that nobody can put one in front.
    execute(format!("SET LOCAL search_path TO {name}, pg_temp")).await?;
    let tables: bool = sqlx::query_scalar("SELECT to_regclass('schema_version') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let (mut version, mut compatible) = (None, None);
    if tables {
        (version, compatible) = sqlx::query_as("SELECT max(version), max(min_compatible) FROM schema_version")
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    known(compatible.unwrap_or_default(), schema).map_err(StoreError::Misconfigured)?;
    let version: i32 = version.unwrap_or_default();
    for step in STEPS.iter().skip(usize::try_from(version).unwrap_or_default()) {
        sqlx::raw_sql(*step).execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

/// Whether this program and a schema of this version, which programs from `compatible` on can use, can work together.
/// Neither need be as new as the other.
pub(crate) fn fits(version: i32, compatible: i32, schema: &str) -> Result<(), String> {
    known(compatible, schema)?;
    if version < NEEDS {
        return Err(format!(
            "the schema {schema} is at version {version}, this program needs {NEEDS}; run divider_postgres::migrate(), or \
             the files in migrations/"
        ));
    }
    Ok(())
}

/// Refuses a schema that needs a newer program.
fn known(compatible: i32, schema: &str) -> Result<(), String> {
    if compatible > VERSION {
        return Err(format!(
            "the schema {schema} needs a program that knows version {compatible}, this one knows only {VERSION}; run a \
             newer program, or use another schema"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_schema_need_not_be_of_one_version_but_the_older_must_have_what_the_newer_needs() {
        assert_eq!(fits(VERSION, VERSION, "s"), Ok(()));
        assert_eq!(fits(VERSION + 3, VERSION, "s"), Ok(()), "a newer schema that this program can work with");
        assert_eq!(fits(NEEDS, 1, "s"), Ok(()), "an older schema with all that this program uses");
        let needs = |version: i32, compatible: i32, number: i32| {
            let refused = fits(version, compatible, "s").unwrap_err();
            assert!(refused.contains(&number.to_string()), "says what is needed: {refused}");
        };
        needs(VERSION + 3, VERSION + 2, VERSION + 2);
        needs(NEEDS - 1, 1, NEEDS);
    }
}
