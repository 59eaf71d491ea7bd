//! The suite that every backend runs, over PostgreSQL.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use divider_core::{Group, conformance::Backend};
use divider_postgres::{PostgresStore, migrate};
use divider_tests::postgres::PostgresServer;

/// One server for all checks that run at the same time; it ends with the last of them.
static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

struct Postgres(Arc<PostgresServer>);

impl Postgres {
    async fn shared() -> Self {
        let server = {
            let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
            shared.upgrade().unwrap_or_else(|| {
                let server = Arc::new(PostgresServer::with(&["max_connections=500"]));
                *shared = Arc::downgrade(&server);
                server
            })
        };
        migrate(&server.url().parse().expect("a URL"), "divider").await.expect("the schema is made");
        Self(server)
    }
}

impl Backend for Postgres {
    type Store = PostgresStore;

    async fn store(&self, group: &Group) -> PostgresStore {
        PostgresStore::builder(self.0.url(), group.clone()).build().expect("a valid configuration")
    }

    fn leads_by_lease(&self) -> bool {
        false
    }
}

divider_core::conformance!(Postgres::shared().await);
