//! The Redis backend keeps every promise of the suite: on a private server, or on the one that `DIVIDER_REDIS_URL` names.

// A test that cannot have its server fails.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use divider_conformance::Backend;
use divider_core::Group;
use divider_redis::RedisStore;
use divider_tests::redis::RedisServer;

/// The server of this process, while any test uses it. A static that lived for ever would leave the server running.
static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

struct Redis {
    url: String,
    /// Kept running, where it is ours.
    _server: Option<Arc<RedisServer>>,
}

impl Redis {
    fn new() -> Self {
        if let Ok(url) = std::env::var("DIVIDER_REDIS_URL") {
            return Self { url, _server: None };
        }
        let mut shared = SERVER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let server = shared.upgrade().unwrap_or_else(|| Arc::new(RedisServer::start()));
        *shared = Arc::downgrade(&server);
        Self { url: server.url(), _server: Some(server) }
    }
}

impl Backend for Redis {
    type Store = RedisStore;

    async fn store(&self, group: &Group) -> RedisStore {
        // Long enough for a machine that runs many checks at once; renewals have a shorter limit of their own.
        let patience = Duration::from_secs(5);
        let builder = RedisStore::builder(&self.url, group.clone());
        builder.connect_timeout(patience).call_time_limit(patience).build().unwrap()
    }
}

divider_conformance::conformance!(Redis::new());
