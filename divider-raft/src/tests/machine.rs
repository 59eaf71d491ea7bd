//! This machine, but for what a test replaces in it.

use std::{fmt, io, net::SocketAddr, sync::Arc, thread::JoinHandle};

use async_trait::async_trait;
use tokio::runtime;

use crate::environment::{DataDir, Disk, Environment, Listener, LogWriter, Stream, ThisMachine};

type Work = Box<dyn FnOnce() + Send>;

pub(crate) struct Machine {
    pub(crate) disk: Option<Arc<dyn Disk>>,
    /// What each name in the DNS stands for.
    pub(crate) names: Option<Vec<SocketAddr>>,
    /// The first half of each number that is drawn, so that ids come in a known order.
    pub(crate) draws: Option<u64>,
    /// Called before it listens.
    pub(crate) binds: Box<dyn Fn() + Send + Sync>,
    /// Runs what waits for a disk.
    pub(crate) blocking: Box<dyn Fn(Work) + Send + Sync>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            disk: None,
            names: None,
            draws: None,
            binds: Box::new(|| {}),
            blocking: Box::new(|work| ThisMachine.blocking(work)),
        }
    }
}

impl Machine {
    pub(crate) fn with_disk(disk: impl Disk + 'static) -> Self {
        Self { disk: Some(Arc::new(disk)), ..Self::default() }
    }

    /// What is kept on its disk.
    pub(crate) fn data_dir(self) -> DataDir {
        DataDir { environment: Arc::new(self), ..DataDir::from(None) }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

#[async_trait]
impl Environment for Machine {
    fn runtime(&self, threads: usize) -> io::Result<(runtime::Handle, Option<runtime::Runtime>)> {
        ThisMachine.runtime(threads)
    }

    async fn bind(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        (self.binds)();
        ThisMachine.bind(address).await
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        ThisMachine.connect(address).await
    }

    async fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match &self.names {
            Some(names) => Ok(names.clone()),
            None => ThisMachine.look_up(name).await,
        }
    }

    fn blocking(&self, work: Work) {
        (self.blocking)(work);
    }

    fn write_log(&self, writer: Box<dyn LogWriter>) -> io::Result<Option<JoinHandle<()>>> {
        ThisMachine.write_log(writer)
    }

    fn draw(&self) -> u128 {
        let draw = ThisMachine.draw();
        self.draws.map_or(draw, |first| u128::from(first) << 64 | draw >> 64)
    }

    fn clock(&self) -> u64 {
        ThisMachine.clock()
    }

    fn disk(&self) -> Option<Arc<dyn Disk>> {
        self.disk.clone()
    }
}
