//! Whether the database is set up so that the promises of a store can be kept.

use std::time::Instant;

use divider_core::StoreError;
use sqlx::{Connection, PgConnection, Row, postgres::PgPoolOptions};
use tokio::time::timeout;

use crate::{
    connector::{Connector, writable},
    error::{POOLER, store_error},
    migrate::fits,
    pool::{Lane, Lanes},
    read::{Inner, call},
    sql::Sql,
};

/// The oldest server that knows all the settings which a connection is given.
const OLDEST: u32 = 140_000;

/// Checks the way to the server, before anything else is sent over it; and that it takes as many connections as a node
/// cannot do without: to lead and listen, to renew, and one for the rest, unless the program has a pool for that. A node
/// that can join but not renew would be given keys again and again, and lose them.
pub(crate) async fn way(connector: &Connector, pooled: bool) -> Result<(), StoreError> {
    let limit = connector.limit;
    let until = Instant::now() + limit * 2;
    let mut a = connector.connect(until).await?;
    let mut b = connector.connect(until).await?;
    let rest = if pooled { None } else { Some(connector.connect(until).await?) };
    let checked = timeout(limit, async {
        let shared = shared(&mut a, &mut b).await?;
        let version = a.server_version_num().unwrap_or(OLDEST);
        // A connection that does not close in good order is cut when it is dropped.
        _ = a.close().await;
        _ = b.close().await;
        if let Some(rest) = rest {
            _ = rest.close().await;
        }
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

/// Checks a pool of the program's own in the same way, unless it has one connection only.
pub(crate) async fn pool(lanes: &Lanes, options: &PgPoolOptions) -> Result<(), StoreError> {
    if options.get_max_connections() == 1 {
        return defaults(lanes, lanes.take().await?).await;
    }
    let (mut a, mut b) = (lanes.take().await?, lanes.take().await?);
    let result = {
        let (a, b) = (a.connection()?, b.connection()?);
        timeout(lanes.limit(), shared(a, b)).await
    };
    let shared = a.finish(result);
    if shared.is_ok() {
        b.finish(Ok(Ok(())))?;
    }
    if shared? {
        return Err(StoreError::Misconfigured(POOLER.to_owned()));
    }
    defaults(lanes, lanes.take().await?).await
}

/// What the program's own pool says of transactions that say nothing of themselves.
async fn defaults(lanes: &Lanes, mut lane: Lane) -> Result<(), StoreError> {
    const DEFAULTS: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), \
                            current_setting('transaction_isolation')";
    let result = timeout(lanes.limit(), sqlx::query(DEFAULTS).fetch_one(lane.connection()?)).await;
    let row = lane.finish(result)?;
    let read = |error| store_error(error, lanes.limit());
    let writes = writable(row.try_get(0).map_err(read)?, row.try_get(1).map_err(read)?);
    writes.map_err(|problem| StoreError::Misconfigured(format!("the program's pool: {problem}")))?;
    if row.try_get::<&str, _>(2).map_err(read)? != "read committed" {
        lanes.isolate();
    }
    Ok(())
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
    let compatible: Option<i32> = row.try_get(1).map_err(read)?;
    let encoding: String = row.try_get(2).map_err(read)?;
    let wrong = |problem: String| Err(StoreError::Misconfigured(problem));
    if encoding != "UTF8" {
        return wrong(format!("the database's encoding is {encoding}; it must be UTF8"));
    }
    let (version, compatible) = (version.unwrap_or_default(), compatible.unwrap_or_default());
    fits(version, compatible, name).map_err(StoreError::Misconfigured)
}

/// Begins the group, or its new lineage.
pub(crate) async fn attach(inner: &Inner) -> Result<(), StoreError> {
    let query = sqlx::query(inner.sql.attach.safe()).bind(&*inner.group).bind(inner.seen.last());
    call!(inner, query, execute).map(drop)
}
