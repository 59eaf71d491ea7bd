//! What a node runs on: where it takes names for its sessions from, and who runs its tasks.

use std::{fmt, io, pin::Pin};

use crate::SessionId;

/// A task of a node.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a node runs on. Replaceable, so that a simulation can choose which task goes on next, suspend or crash the machine
/// between any two steps, and repeat all of it from a seed.
pub trait Environment: fmt::Debug + Send + Sync + 'static {
    /// A name for a session, which nobody has used before.
    fn session(&self) -> SessionId;

    /// What is to be spawned on the program's runtime so that `task` runs; dropping it ends the task.
    fn task(&self, task: Task) -> Task;

    /// Runs the task that renews the lease, so that nothing the program does can hold it up.
    ///
    /// # Errors
    /// Where that cannot be had.
    fn beat(&self, beat: Task) -> io::Result<()>;
}

/// The machine that the program runs on.
#[derive(Debug)]
pub(super) struct SystemEnvironment;

impl Environment for SystemEnvironment {
    fn session(&self) -> SessionId {
        SessionId::fresh()
    }

    fn task(&self, task: Task) -> Task {
        task
    }

    fn beat(&self, beat: Task) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("divider-beat".into()).spawn(move || runtime.block_on(beat))?;
        Ok(())
    }
}
