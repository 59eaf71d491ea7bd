//! What a simulated member stands on: turmoil's wires and time, a [`Disk`], and one thread for everything.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use divider_conformance::Dice;
use divider_raft::environment::{self, Listener, LogWriter, Stream};
use parking_lot::Mutex;
use tokio::runtime;
use turmoil::net::{TcpListener, TcpStream};

use crate::disk::Disk;

/// See the [module](self). One for each host, whatever it goes through.
#[derive(Debug)]
pub struct Environment {
    /// Its disk.
    pub disk: Disk,
    dice: Mutex<Dice>,
    /// Milliseconds that a commit takes at most.
    pub pace: Arc<AtomicU64>,
    /// Whether its members tick as slowly as they may, and so as all others do of which that is true.
    pub in_step: AtomicBool,
    /// Milliseconds since the beginning.
    pub now: AtomicU64,
}

impl Environment {
    /// A new machine.
    pub fn new(mut dice: Dice) -> Self {
        Self {
            disk: Disk::new(dice.split()),
            dice: Mutex::new(dice),
            pace: Arc::new(AtomicU64::new(3)),
            in_step: AtomicBool::new(false),
            now: AtomicU64::new(0),
        }
    }
}

struct Accepts(TcpListener);

#[async_trait]
impl Listener for Accepts {
    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        Ok((Stream::Other(Box::new(stream)), from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[async_trait]
impl environment::Environment for Environment {
    fn runtime(&self, _: usize) -> io::Result<(runtime::Handle, Option<runtime::Runtime>)> {
        Ok((runtime::Handle::current(), None))
    }

    async fn bind(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0);
        let any = SocketAddr::from(([0, 0, 0, 0], port));
        Ok(Box::new(Accepts(TcpListener::bind(any).await?)))
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        Ok(Stream::Other(Box::new(TcpStream::connect(address).await?)))
    }

    async fn look_up(&self, _: &str) -> io::Result<Vec<SocketAddr>> {
        Ok(Vec::new())
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::spawn(async { work() });
    }

    fn write_log(&self, mut writer: Box<dyn LogWriter>) -> io::Result<Option<JoinHandle<()>>> {
        let pace = self.pace.clone();
        let mut dice = self.dice.lock().split();
        tokio::spawn(async move {
            loop {
                let most = pace.load(Ordering::Relaxed).max(1);
                tokio::time::sleep(Duration::from_millis(dice.between(1, most))).await;
                if !writer.turn() {
                    return;
                }
            }
        });
        Ok(None)
    }

    fn draw(&self) -> u128 {
        let mut dice = self.dice.lock();
        let drawn = u128::from(dice.roll()) << 64 | u128::from(dice.roll());
        // A member's first number decides how it ticks.
        if self.in_step.load(Ordering::Relaxed) { drawn & !0xff } else { drawn }
    }

    fn clock(&self) -> u64 {
        // Not of our time, or a fault that took the machine's own clock would not be seen.
        1_000_000_000_000_000 + self.now.load(Ordering::Relaxed) * 1000
    }

    fn disk(&self) -> Option<Arc<dyn environment::Disk>> {
        Some(Arc::new(self.disk.clone()))
    }
}
