//! What a member stands on: its network, its disk, the threads of its own, and where it takes numbers from that nobody
//! else has. For the simulation of this repository alone: no part of the interface.
//!
//! Only what is done once for a connection, a commit or a start goes through here; no call to the store does.

use std::{
    fmt,
    io::{self, Read, Seek, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
};

use async_trait::async_trait;
use redb::StorageBackend;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
};

pub use crate::security::Connection;

/// What a member stands on. Replaceable, so that a simulation can hold up and lose messages, take what was not synced away
/// in a crash, and repeat all of it from a seed.
#[async_trait]
pub trait Ground: fmt::Debug + Send + Sync + 'static {
    /// Runs the process's tasks: on a runtime of its own with so many threads, which is given as well, or on the caller's.
    ///
    /// # Errors
    /// Where that cannot be had.
    fn runtime(&self, threads: usize) -> io::Result<(runtime::Handle, Option<runtime::Runtime>)>;

    /// Listens.
    async fn bind(&self, address: &str) -> io::Result<Box<dyn Listener>>;

    /// Dials.
    async fn connect(&self, address: &str) -> io::Result<Stream>;

    /// What a name in the DNS stands for.
    async fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>>;

    /// Runs what waits for a disk where that holds up nobody else.
    fn blocking(&self, work: Box<dyn FnOnce() + Send>);

    /// Runs the log's writer. Whoever closes the log waits for the thread, where it is one.
    ///
    /// # Errors
    /// Where that cannot be had.
    fn write_log(&self, writer: Box<dyn LogWriter>) -> io::Result<Option<JoinHandle<()>>>;

    /// A number that nobody else has drawn.
    fn draw(&self) -> u128;

    /// The disk, where it is not the file system.
    fn disk(&self) -> Option<Arc<dyn Disk>>;
}

/// Accepts connections.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next one, and where it comes from.
    async fn accept(&self) -> io::Result<(Stream, SocketAddr)>;

    /// Where it listens.
    ///
    /// # Errors
    /// Where that is not known.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connection, before anything protects it.
#[allow(missing_debug_implementations, reason = "there is nothing to show")]
pub enum Stream {
    /// Of this machine.
    Tcp(TcpStream),
    /// Any other.
    Other(Box<dyn Connection>),
}

/// A disk in the place of the file system. What was written is lost in a crash until it was synced.
pub trait Disk: fmt::Debug + Send + Sync {
    /// The file of the log.
    ///
    /// # Errors
    /// What the disk says.
    fn log(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// The small file beside it, at its beginning.
    ///
    /// # Errors
    /// What the disk says.
    fn mark(&self) -> io::Result<Box<dyn Rewritable>>;

    /// The newest snapshot, if there is one.
    ///
    /// # Errors
    /// What the disk says.
    fn snapshot(&self) -> io::Result<Option<Vec<u8>>>;

    /// Puts another snapshot in its place, synced.
    ///
    /// # Errors
    /// What the disk says.
    fn replace_snapshot(&self, bytes: &[u8]) -> io::Result<()>;
}

/// A file that is read once, and written again and again from its beginning.
pub trait Rewritable: Read + Write + Seek + Send {}
impl<T: Read + Write + Seek + Send> Rewritable for T {}

/// What writes the log.
pub trait LogWriter: Send {
    /// Writes until the log is closed.
    fn run(self: Box<Self>);

    /// Writes what has gathered, and says whether there may be more.
    fn turn(&mut self) -> bool;
}

/// The machine that the program runs on.
#[derive(Debug)]
pub(crate) struct ThisMachine;

#[async_trait]
impl Ground for ThisMachine {
    fn runtime(&self, threads: usize) -> io::Result<(runtime::Handle, Option<runtime::Runtime>)> {
        let mut builder = runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).thread_name("divider-raft").enable_all().build()?;
        Ok((runtime.handle().clone(), Some(runtime)))
    }

    async fn bind(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::bind(address).await?))
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        TcpStream::connect(address).await.map(Stream::Tcp)
    }

    async fn look_up(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(name).await?.collect())
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }

    fn write_log(&self, writer: Box<dyn LogWriter>) -> io::Result<Option<JoinHandle<()>>> {
        std::thread::Builder::new().name("divider-raft-log".into()).spawn(move || writer.run()).map(Some)
    }

    fn draw(&self) -> u128 {
        uuid::Uuid::new_v4().as_u128()
    }

    fn disk(&self) -> Option<Arc<dyn Disk>> {
        None
    }
}

#[async_trait]
impl Listener for TcpListener {
    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = Self::accept(self).await?;
        Ok((Stream::Tcp(stream), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// Where log and snapshots are kept.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `None` for what is only in memory, or on the ground's disk.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) ground: Arc<dyn Ground>,
}

#[cfg(test)]
impl From<Option<PathBuf>> for Place {
    fn from(directory: Option<PathBuf>) -> Self {
        Self { directory, ground: Arc::new(ThisMachine) }
    }
}

#[cfg(test)]
impl From<&std::path::Path> for Place {
    fn from(directory: &std::path::Path) -> Self {
        Self::from(Some(directory.to_owned()))
    }
}

impl Place {
    /// Does what waits for the disk, and says what came of it; an error where that panicked or was given up.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, oneshot::error::RecvError> {
        let (done, result) = oneshot::channel();
        self.ground.blocking(Box::new(move || {
            // Whoever asked may have given up.
            let _ = done.send(work());
        }));
        result.await
    }
}
