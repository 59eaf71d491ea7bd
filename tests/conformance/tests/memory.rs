//! The in-memory backend keeps every promise of the suite.

// A check fails by panicking, and so does its backend.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use divider_conformance::Backend;
use divider_core::{Group, MemoryStore};

static GROUPS: LazyLock<Mutex<HashMap<Group, MemoryStore>>> = LazyLock::new(Mutex::default);

struct Memory;

impl Backend for Memory {
    type Store = MemoryStore;

    async fn store(&self, group: &Group) -> MemoryStore {
        GROUPS.lock().unwrap().entry(group.clone()).or_default().clone()
    }
}

divider_conformance::conformance!(Memory);
