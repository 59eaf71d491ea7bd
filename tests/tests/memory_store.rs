//! The in-memory backend against the ledger that it wraps: it checks the runner more than the store.

use divider_core::MemoryStore;
use divider_tests::agree::agree;

#[tokio::test]
async fn it_does_what_the_ledger_does() {
    for seed in 0..50 {
        agree(&MemoryStore::new(), seed, 400).await;
    }
}
