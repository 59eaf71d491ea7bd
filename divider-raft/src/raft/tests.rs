//! openraft's own suite for stores, on the log in a file and in memory.

use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{Identity, Log, Machine, MachineHandle, Snapshots, StorageError, Types};

struct OnDisk;
struct InMemory;

fn identity() -> Identity {
    Identity { id: 1, name: "a".into(), cluster: "test".into(), cluster_id: None }
}

async fn build(directory: Option<std::path::PathBuf>) -> (Log, MachineHandle) {
    tokio::task::spawn_blocking(move || {
        let (log, _) = Log::open(directory.as_deref(), identity).unwrap();
        let (snapshots, loaded) = Snapshots::open(directory).unwrap();
        (log, MachineHandle(Machine::new(snapshots, loaded)))
    })
    .await
    .unwrap()
}

impl StoreBuilder<Types, Log, MachineHandle, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, Log, MachineHandle), StorageError> {
        let directory = TempDir::new().unwrap();
        let (log, machine) = build(Some(directory.path().to_owned())).await;
        Ok((directory, log, machine))
    }
}

impl StoreBuilder<Types, Log, MachineHandle, ()> for InMemory {
    async fn build(&self) -> Result<((), Log, MachineHandle), StorageError> {
        let (log, machine) = build(None).await;
        Ok(((), log, machine))
    }
}

#[test]
fn the_suite_of_openraft_passes_on_disk() {
    Suite::test_all(OnDisk).unwrap();
}

#[test]
fn the_suite_of_openraft_passes_in_memory() {
    Suite::test_all(InMemory).unwrap();
}
