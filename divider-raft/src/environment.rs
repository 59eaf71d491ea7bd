//! What a member stands on: its network, its disk, the threads of its own, and where it takes numbers from that nobody
//! else has. For the simulation of this repository alone.
//!
//! **Outside of semantic versioning**: anything here may change or go with any release. Only with the Cargo feature
//! `unstable-sim`.
//!
//! Only what is done once for a connection, a commit or a start goes through here; no call to the store does.

use std::{
    fmt, fs,
    io::{self, Read, Seek, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::FuturesUnordered};
use redb::StorageBackend;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime,
    sync::oneshot,
};

/// What a member stands on. Replaceable, so that a simulation can hold up and lose messages, take what was not synced away
/// in a crash, and repeat all of it from a seed.
#[async_trait]
pub trait Environment: fmt::Debug + Send + Sync + 'static {
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

    /// The machine's clock, in microseconds since 1970. It decides nothing but above what tokens are, and where other numbers begin in
    /// a new life of a group.
    fn clock(&self) -> u64;

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

/// A connection, whatever protects it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

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

    /// Where snapshots are.
    fn files(&self) -> Arc<dyn Files>;
}

/// The files of one directory, by their names.
pub trait Files: fmt::Debug + Send + Sync {
    /// Makes an empty file, in the place of any of that name.
    ///
    /// # Errors
    /// What the disk says.
    fn create(&self, name: &str) -> io::Result<Box<dyn StoredFile>>;

    /// Opens a file to read it. It stays what it was when it was opened, whatever takes its name later.
    ///
    /// # Errors
    /// What the disk says; [`NotFound`](io::ErrorKind::NotFound) where there is none.
    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>>;

    /// Gives a file another name, in the place of any of that name.
    ///
    /// # Errors
    /// What the disk says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the disk says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names that there are.
    ///
    /// # Errors
    /// What the disk says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Has the names survive a crash.
    ///
    /// # Errors
    /// What the disk says.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait StoredFile: Rewritable {
    /// Has what was written survive a crash.
    ///
    /// # Errors
    /// What the disk says.
    fn sync(&mut self) -> io::Result<()>;
}

impl StoredFile for fs::File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct Directory(pub(crate) PathBuf);

impl Files for Directory {
    fn create(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        let mut options = fs::OpenOptions::new();
        Ok(Box::new(options.read(true).write(true).create(true).truncate(true).open(self.0.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StoredFile>> {
        Ok(Box::new(fs::File::open(self.0.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let named = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(&self.0)?.map(named).collect()
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.0)?.sync_all()
    }
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
impl Environment for ThisMachine {
    fn runtime(&self, threads: usize) -> io::Result<(runtime::Handle, Option<runtime::Runtime>)> {
        let mut builder = runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).thread_name("divider-raft").enable_all().build()?;
        Ok((runtime.handle().clone(), Some(runtime)))
    }

    async fn bind(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpListener::bind(address).await?))
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
        let tries = addresses.into_iter().map(TcpStream::connect);
        first_of(tries).await.unwrap_or_else(|| Err(io::Error::other("the name has no address"))).map(Stream::Tcp)
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

    fn clock(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
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

/// How long a try goes on alone, before the next one is made beside it.
const HEAD_START: Duration = Duration::from_millis(150);

/// What the first try that succeeds gives, or the error of the last one. The next one begins when the one before has failed,
/// or has taken a while: one of several addresses may be dead, and say nothing for a minute. `None` where there are none.
pub(crate) async fn first_of<T, E, F: Future<Output = Result<T, E>>>(
    tries: impl IntoIterator<Item = F>,
) -> Option<Result<T, E>> {
    let mut tries = tries.into_iter();
    let mut running = FuturesUnordered::new();
    running.push(tries.next()?);
    loop {
        let result = tokio::select! {
            biased;
            result = running.next() => result,
            () = tokio::time::sleep(HEAD_START), if tries.size_hint().1 != Some(0) => None,
        };
        if let Some(Ok(done)) = result {
            return Some(Ok(done));
        }
        match (tries.next(), result) {
            (Some(next), _) => running.push(next),
            (None, failed @ Some(_)) if running.is_empty() => return failed,
            (None, _) => {}
        }
    }
}

/// Where log and snapshots are kept.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    /// `None` for what is only in memory, or on the environment's disk.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) environment: Arc<dyn Environment>,
    /// The newest format that is read there.
    pub(crate) reads: u8,
}

#[cfg(test)]
impl From<Option<PathBuf>> for DataDir {
    fn from(directory: Option<PathBuf>) -> Self {
        Self { directory, environment: Arc::new(ThisMachine), reads: crate::format::NEWEST }
    }
}

#[cfg(test)]
impl From<&std::path::Path> for DataDir {
    fn from(directory: &std::path::Path) -> Self {
        Self::from(Some(directory.to_owned()))
    }
}

impl DataDir {
    /// Where snapshots are kept; `None` for what is only in memory.
    pub(crate) fn files(&self) -> Option<Arc<dyn Files>> {
        match &self.directory {
            Some(directory) => Some(Arc::new(Directory(directory.clone()))),
            None => self.environment.disk().map(|disk| disk.files()),
        }
    }

    /// Does what waits for the disk, and says what came of it; an error where that panicked or was given up.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, oneshot::error::RecvError> {
        let (done, result) = oneshot::channel();
        self.environment.blocking(Box::new(move || {
            // Whoever asked may have given up.
            let _ = done.send(work());
        }));
        result.await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::future::{BoxFuture, FutureExt, ready};
    use tokio::time::Instant;

    use super::*;

    type Try = BoxFuture<'static, Result<u8, &'static str>>;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_says_nothing_holds_up_the_next_one_for_a_moment_only() {
        let began = Instant::now();
        let tries: [Try; 3] = [pending().boxed(), pending().boxed(), ready(Ok(3)).boxed()];
        assert_eq!(first_of(tries).await, Some(Ok(3)));
        assert_eq!(began.elapsed().as_millis(), 2 * HEAD_START.as_millis());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_refuses_holds_up_nobody_and_the_last_refusal_is_told() {
        let began = Instant::now();
        let tries: [Try; 2] = [ready(Err("first")).boxed(), ready(Ok(2)).boxed()];
        assert_eq!(first_of(tries).await, Some(Ok(2)));
        let tries: [Try; 2] = [ready(Err("first")).boxed(), ready(Err("last")).boxed()];
        assert_eq!(first_of(tries).await, Some(Err("last")));
        assert_eq!(first_of(Vec::<Try>::new()).await, None);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_began_first_may_still_be_the_first_to_succeed() {
        let slow = |ms, result| tokio::time::sleep(Duration::from_millis(ms)).map(move |()| result).boxed();
        let tries: [Try; 2] = [slow(400, Ok(1)), slow(400, Ok(2))];
        assert_eq!(first_of(tries).await, Some(Ok(1)));
    }
}
