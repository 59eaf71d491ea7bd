//! The conformance suite over Redis.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use divider_core::{Group, conformance::Backend};
use divider_redis::RedisStore;
use divider_tests::redis::RedisServer;

/// One server for all checks, each in a group of its own. The processes of a test runner each have one.
static SERVER: LazyLock<RedisServer> = LazyLock::new(RedisServer::start);

struct Redis;

impl Backend for Redis {
    type Store = RedisStore;

    async fn store(&self, group: &Group) -> RedisStore {
        RedisStore::builder(SERVER.url(), group.clone()).build().unwrap()
    }
}

divider_core::conformance!(Redis);
