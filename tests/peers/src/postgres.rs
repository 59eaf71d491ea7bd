//! `pg_try_advisory_lock` on a connection of the node's own: the locks end with it.

use sqlx::{Connection, PgConnection, Row};

use crate::locks::{Locks, LocksNode};

pub struct Postgres(String);

pub struct Node(PgConnection);

impl Postgres {
    pub async fn new(url: &str) -> Self {
        let this = Self(url.to_owned());
        sqlx::raw_sql("CREATE TABLE peers (key text PRIMARY KEY)").execute(&mut this.connect().await).await.unwrap();
        this
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.0).await.unwrap()
    }
}

impl Locks for Postgres {
    type Node = Node;

    async fn node(&self, _: usize) -> Node {
        Node(self.connect().await)
    }

    async fn add(&self, keys: Vec<String>) {
        let insert = sqlx::query("INSERT INTO peers SELECT unnest($1::text[])").bind(keys);
        insert.execute(&mut self.connect().await).await.unwrap();
    }

    async fn asked(&self) -> f64 {
        let count =
            "SELECT (xact_commit + xact_rollback)::float8 FROM pg_stat_database WHERE datname = current_database()";
        sqlx::query(count).fetch_one(&mut self.connect().await).await.unwrap().get(0)
    }
}

impl LocksNode for Node {
    async fn look(&mut self, held: &[String], share: usize) -> Vec<String> {
        let room = i64::try_from(share.saturating_sub(held.len())).unwrap();
        // The free ones first: no more are tried than there is room for. A lock that is held is known by its number.
        let take = "SELECT key FROM (SELECT key FROM peers WHERE hashtext(key) NOT IN
                (SELECT objid::int4 FROM pg_locks WHERE locktype = 'advisory') ORDER BY random() LIMIT $1) free
            WHERE pg_try_advisory_lock(hashtext(key)::int8)";
        let rows = sqlx::query(take).bind(room).fetch_all(&mut self.0).await.unwrap();
        rows.into_iter().map(|row| row.get(0)).collect()
    }
}
