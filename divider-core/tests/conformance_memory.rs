//! The in-memory backend keeps every promise of the suite.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use divider_core::{Group, MemoryStore, conformance::Backend};

static GROUPS: LazyLock<Mutex<HashMap<Group, MemoryStore>>> = LazyLock::new(Mutex::default);

struct Memory;

impl Backend for Memory {
    type Store = MemoryStore;

    async fn store(&self, group: &Group) -> MemoryStore {
        GROUPS.lock().unwrap().entry(group.clone()).or_default().clone()
    }
}

divider_core::conformance!(Memory);
