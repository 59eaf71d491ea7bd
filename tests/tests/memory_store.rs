//! The in-memory backend against the ledger that it wraps: it checks the runner more than the store.

use divider_core::MemoryStore;
use divider_tests::agree::{Expect, kept, sequences};

async fn fresh(_: String) -> MemoryStore {
    MemoryStore::new()
}

#[tokio::test]
async fn it_does_what_the_ledger_does() {
    sequences(400, Expect::ALL, fresh).await;
}

#[tokio::test]
async fn it_does_what_the_ledger_does_where_a_store_once_did_not() {
    kept(Expect::ALL, fresh).await;
}
