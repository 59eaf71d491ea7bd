//! docker compose up -d --wait postgres && cargo run --release -p divider-examples --example tenants
//!
//! Divides the tenants in a table of a PostgreSQL database among two nodes. The work comes from a query; a trigger makes a
//! change of the table felt at once; and what is written for a tenant is committed under its current ownership or not at
//! all. Give the URL of another database as the argument: the example makes its table `example_tenant` there, and drops it.

#![allow(clippy::print_stdout, reason = "it shows something")]

use std::{sync::Arc, time::Duration};

use divider::postgres::{
    PostgresStore, QuerySource, migrate,
    sqlx::{self, PgPool, Row, postgres::PgListener},
};
use divider::{Divider, Group, Job, Key, Next, Node, SourceConfig, SourceMode, StopSignal, TaskError, Work, Worker};
use tokio::time::sleep;

/// What `main` returns: a message for a person.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

const GROUP: &str = "/example/tenants/";
const TABLE: &str = "
    DROP TABLE IF EXISTS example_tenant;
    CREATE TABLE example_tenant (
        id text PRIMARY KEY, size integer NOT NULL, active boolean NOT NULL DEFAULT true,
        served_by text, served bigint NOT NULL DEFAULT 0
    );
    INSERT INTO example_tenant (id, size) SELECT 'tenant-' || n, 1 + n % 3 FROM generate_series(1, 12) n;

    CREATE OR REPLACE FUNCTION example_tenant_changed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('example_tenant', NEW.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER changed AFTER INSERT OR UPDATE OF active ON example_tenant
        FOR EACH ROW EXECUTE FUNCTION example_tenant_changed();
";
const TIDY: &str = "DROP TABLE example_tenant; DROP FUNCTION example_tenant_changed";

fn node(name: &str, url: &str, pool: &PgPool) -> Result<Node, AnyError> {
    let store = PostgresStore::builder(url, Group::new(GROUP)?).build()?;
    let query = "SELECT id AS key, size AS weight FROM example_tenant WHERE active";
    let source = Arc::new(QuerySource::new(pool.clone(), query));
    let interval = Duration::from_secs(5);
    let builder = Node::builder(store).source(SourceConfig::new(source, SourceMode::Authoritative, interval));
    Ok(builder.name(name)?.build()?)
}

/// The program's own work: writes for its tenant as long as it has it.
async fn serve(node: String, pool: PgPool, tenant: Job, mut stop: StopSignal) -> Result<Next, TaskError> {
    loop {
        let mut write = pool.begin().await?;
        let update = "UPDATE example_tenant SET served_by = $2, served = served + 1 WHERE id = $1";
        sqlx::query(update).bind(tenant.key.as_str()).bind(&node).execute(&mut *write).await?;
        // Fails where somebody else owns the tenant by now, and otherwise keeps it from being given away until the commit.
        let fence = sqlx::query("SELECT divider.assert_current($1, $2, $3)").bind(GROUP).bind(tenant.key.as_str());
        fence.bind(i64::try_from(tenant.token.0)?).execute(&mut *write).await?;
        write.commit().await?;
        tokio::select! {
            () = sleep(Duration::from_millis(100)) => {}
            _ = stop.requested() => return Ok(Next::Release),
        }
    }
}

/// Turns changes of the table into work at once. The query finds them as well, at its next interval.
async fn listen(mut listener: PgListener, pool: PgPool, node: Node) -> Result<(), AnyError> {
    loop {
        let id = listener.recv().await?.payload().to_owned();
        let row = sqlx::query("SELECT size FROM example_tenant WHERE id = $1 AND active").bind(&id);
        match row.fetch_optional(&pool).await? {
            Some(row) => drop(node.add_work(vec![Work::new(id)?.weight(u32::try_from(row.get::<i32, _>(0))?)]).await?),
            None => drop(node.remove_work(vec![Key::new(id)?]).await?),
        }
    }
}

/// Waits until this holds of the active tenants.
async fn until(pool: &PgPool, holds: &str) -> Result<(), AnyError> {
    let query = format!("SELECT coalesce({holds}, false) FROM example_tenant WHERE active");
    while !sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(query.clone())).fetch_one(pool).await? {
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn who_serves(pool: &PgPool) -> Result<(), AnyError> {
    let query =
        "SELECT coalesce(served_by, 'nobody'), string_agg(id || ' (' || size || ')', ', ' ORDER BY id), sum(size)
                 FROM example_tenant WHERE active GROUP BY 1 ORDER BY 1";
    for row in sqlx::query(query).fetch_all(pool).await? {
        let (name, tenants, size): (&str, &str, i64) = (row.get(0), row.get(1), row.get(2));
        println!("    {name} serves {tenants}: size {size}");
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    println!("The tenants in a table, divided by their size");
    let url = std::env::args().nth(1).unwrap_or_else(|| "postgres://divider:divider@127.0.0.1:5432/divider".to_owned());
    let pool = PgPool::connect(&url).await.map_err(|error| {
        format!("the database cannot be reached ({error}); start one with `docker compose up -d --wait postgres`, or name another one: tenants postgres://user:password@host/database")
    })?;
    migrate(&url.parse()?, "divider").await?;
    sqlx::raw_sql(TABLE).execute(&pool).await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("example_tenant").await?;

    let (anna, bert) = (node("anna", &url, &pool)?, node("bert", &url, &pool)?);
    let mut workers = Vec::new();
    for node in [&anna, &bert] {
        let (name, pool) = (node.config().node.to_string(), pool.clone());
        let worker = Worker::new(node.clone());
        workers.push(tokio::spawn(worker.run(move |tenant, stop| serve(name.clone(), pool.clone(), tenant, stop))));
    }
    tokio::spawn(listen(listener, pool.clone(), anna.clone()));

    until(&pool, "bool_and(served > 0) AND count(DISTINCT served_by) = 2").await?;
    println!("\nanna and bert have found 12 tenants in the table");
    who_serves(&pool).await?;

    sqlx::query("INSERT INTO example_tenant (id, size) VALUES ('tenant-new', 4)").execute(&pool).await?;
    sqlx::query("UPDATE example_tenant SET active = false WHERE id = 'tenant-1'").execute(&pool).await?;
    until(&pool, "bool_and(served > 0)").await?;
    println!("\na tenant has come and one has gone: the trigger said so");
    who_serves(&pool).await?;

    drop(bert.flush_and_cancel().await?);
    until(&pool, "bool_and(served_by = 'anna')").await?;
    println!("\nbert has left: anna serves all");
    who_serves(&pool).await?;

    drop(anna.flush_and_cancel().await?);
    for worker in workers {
        drop(worker.await??);
    }
    sqlx::raw_sql(TIDY).execute(&pool).await?;
    Ok(())
}
