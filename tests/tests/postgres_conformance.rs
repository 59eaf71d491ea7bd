//! The suite that every backend runs, over PostgreSQL: on a private server, or in the database that
//! `DIVIDER_POSTGRES_URL` names, whose role may make a schema.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use divider_conformance::Backend;
use divider_core::Group;
use divider_postgres::{PostgresStore, migrate};
use divider_tests::postgres::PostgresServer;

/// One server for all checks that run at the same time; it ends with the last of them.
static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());

struct Postgres {
    url: String,
    /// Kept running, where it is ours.
    _server: Option<Arc<PostgresServer>>,
}

impl Postgres {
    async fn shared() -> Self {
        let postgres = if let Ok(url) = std::env::var("DIVIDER_POSTGRES_URL") {
            Self { url, _server: None }
        } else {
            let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
            let server = shared.upgrade().unwrap_or_else(|| {
                let server = Arc::new(PostgresServer::with(&["max_connections=500"]));
                *shared = Arc::downgrade(&server);
                server
            });
            Self { url: server.url(), _server: Some(server) }
        };
        migrate(&postgres.url.parse().expect("a URL"), "divider").await.expect("the schema is made");
        postgres
    }
}

impl Backend for Postgres {
    type Store = PostgresStore;

    async fn store(&self, group: &Group) -> PostgresStore {
        // Long enough for a machine that runs many checks at once; renewals have a shorter limit of their own.
        let builder = PostgresStore::builder(&self.url, group.clone()).call_time_limit(Duration::from_secs(5));
        builder.build().expect("a valid configuration")
    }

    fn leads_by_lease(&self) -> bool {
        false
    }
}

divider_conformance::conformance!(Postgres::shared().await);
