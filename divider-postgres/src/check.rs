//! Whether the database is set up so that the promises of a store can be kept.

use std::time::Duration;

use divider_core::StoreError;
use sqlx::{Connection, PgConnection, Row};
use tokio::time::timeout;

use crate::{
    error::{POOLER, store_error},
    migrate::VERSION,
    pool::{Door, Lanes},
    read::Inner,
    sql::Sql,
};

/// The oldest server that knows all the settings which a connection is given.
const OLDEST: u32 = 140_000;

/// Checks the way to the server, before anything else is sent over it.
pub(crate) async fn way(door: &Door) -> Result<(), StoreError> {
    let limit = door.limit;
    let checked = timeout(limit * 2, async {
        let mut a = PgConnection::connect_with(&door.options).await?;
        let mut b = PgConnection::connect_with(&door.options).await?;
        let shared = shared(&mut a, &mut b).await?;
        let version = a.server_version_num().unwrap_or(OLDEST);
        // A connection that does not close in good order is cut when it is dropped.
        _ = a.close().await;
        _ = b.close().await;
        Ok::<_, sqlx::Error>((shared, version))
    });
    let checked = checked.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let (shared, version) = checked.map_err(|error| store_error(error, limit))?;
    if shared {
        return Err(StoreError::Misconfigured(POOLER.to_owned()));
    }
    if version < OLDEST {
        let have = version / 10_000;
        return Err(StoreError::Misconfigured(format!("the server is PostgreSQL {have}; 14 or newer is needed")));
    }
    Ok(())
}

/// Checks a pool of the program's own in the same way.
pub(crate) async fn pool(lanes: &Lanes) -> Result<(), StoreError> {
    let (mut a, mut b) = (lanes.take().await?, lanes.take().await?);
    let result = {
        let (a, b) = (a.connection()?, b.connection()?);
        timeout(lanes.limit(), shared(a, b)).await
    };
    let shared = a.finish(result);
    if shared.is_ok() {
        b.finish(Ok(Ok(())))?;
    }
    if shared? { Err(StoreError::Misconfigured(POOLER.to_owned())) } else { Ok(()) }
}

/// Whether two connections turn out to be one connection to the server, taken in turns: only a pooler does that, and only
/// one that gives it away after each transaction. While `b` is in a transaction, such a pooler has given it what `a` had
/// before, or has to give `a` another one.
async fn shared(a: &mut PgConnection, b: &mut PgConnection) -> Result<bool, sqlx::Error> {
    const PID: &str = "SELECT pg_backend_pid()";
    // Without prepared statements, which such a pooler would break.
    let before: i32 = sqlx::raw_sql(PID).fetch_one(&mut *a).await?.try_get(0)?;
    sqlx::raw_sql("BEGIN").execute(&mut *b).await?;
    let between: i32 = sqlx::raw_sql(PID).fetch_one(&mut *b).await?.try_get(0)?;
    let after: i32 = sqlx::raw_sql(PID).fetch_one(&mut *a).await?.try_get(0)?;
    sqlx::raw_sql("ROLLBACK").execute(&mut *b).await?;
    Ok(before != after || before == between)
}

/// Checks the schema and the server's role.
pub(crate) async fn schema(lanes: &Lanes, sql: &Sql, name: &str) -> Result<(), StoreError> {
    let mut lane = lanes.take().await?;
    let result = timeout(lanes.limit(), sqlx::query(sql.version.safe()).fetch_one(lane.connection()?)).await;
    let row = lane.finish(result)?;
    let read = |error| store_error(error, lanes.limit());
    let version: Option<i32> = row.try_get(0).map_err(read)?;
    let standby: bool = row.try_get(1).map_err(read)?;
    let encoding: String = row.try_get(2).map_err(read)?;
    let wrong = |problem: String| Err(StoreError::Misconfigured(problem));
    if standby {
        return wrong("this server is a standby, which cannot write; connect to the primary".to_owned());
    }
    if encoding != "UTF8" {
        return wrong(format!("the database's encoding is {encoding}; it must be UTF8"));
    }
    crate::migrate::supported(version.unwrap_or_default(), name).map_err(StoreError::Misconfigured)?;
    if version.unwrap_or_default() < VERSION {
        return wrong(format!(
            "the schema {name} is at version {}, this program needs {VERSION}; run divider_postgres::migrate(), or the \
             files in migrations/",
            version.unwrap_or_default()
        ));
    }
    Ok(())
}

/// Begins the group, or its new lineage.
pub(crate) async fn attach(inner: &Inner) -> Result<(), StoreError> {
    let mut lane = inner.lanes.take().await?;
    let limit: Duration = inner.lanes.limit();
    let query = sqlx::query(inner.sql.attach.safe()).bind(&*inner.group);
    let result = timeout(limit, query.execute(lane.connection()?)).await;
    lane.finish(result).map(drop)
}
