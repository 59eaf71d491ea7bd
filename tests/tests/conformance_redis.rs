//! The Redis backend keeps every promise of the suite, on a private server.

// A test that cannot have its server fails.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex, Weak};

use divider_core::{Group, conformance::Backend};
use divider_redis::RedisStore;
use divider_tests::redis::RedisServer;

/// The server of this process, while any test uses it. A static that lived for ever would leave the server running.
static SERVER: Mutex<Weak<RedisServer>> = Mutex::new(Weak::new());

struct Redis(Arc<RedisServer>);

impl Redis {
    fn new() -> Self {
        let mut shared = SERVER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let server = shared.upgrade().unwrap_or_else(|| Arc::new(RedisServer::start()));
        *shared = Arc::downgrade(&server);
        Self(server)
    }
}

impl Backend for Redis {
    type Store = RedisStore;

    async fn store(&self, group: &Group) -> RedisStore {
        RedisStore::builder(self.0.url(), group.clone()).build().unwrap()
    }
}

divider_core::conformance!(Redis::new());
