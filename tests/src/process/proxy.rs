//! A network that can be made to fail: a proxy that stands before a server for one node.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Carries everything.
    Fine,
    /// Carries nothing, and says nothing. What was sent meanwhile arrives late, when it is [`Fine`](Self::Fine) again.
    Silent,
    /// Carries requests, but no answers until it is fine again.
    NoAnswers,
    /// Carries answers, but no requests until it is fine again.
    NoRequests,
    /// Carries requests, and loses the answers: a connection that has lost one ends when it is fine again.
    Swallowing,
    /// Carries everything this much later.
    Slow(Duration),
    /// Ends every connection, and refuses new ones.
    Cut,
    /// Ends every connection, accepts new ones, and never answers on them.
    DeadEnd,
    /// Ends every connection in the middle of a message.
    Torn,
}

/// Forwards connections to a server. Its threads end with the process.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    wire: Arc<Wire>,
}

/// What the connections through a proxy share.
#[derive(Debug)]
struct Wire {
    network: Mutex<Network>,
    /// How often something was not carried as it came.
    harmed: AtomicU64,
}

impl Wire {
    fn now(&self) -> Network {
        *self.network.lock()
    }

    fn harm(&self) {
        self.harmed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Proxy {
    /// Stands before the server on this port of this machine, at 127.0.0.1.
    ///
    /// # Panics
    /// Where no port can be had.
    pub fn before(server: u16) -> Self {
        let here = Ipv4Addr::LOCALHOST;
        Self::between(here.into(), SocketAddr::from((here, server)))
    }

    /// Stands at a free port of an address, before a server anywhere.
    ///
    /// # Panics
    /// Where no port can be had.
    pub fn between(at: IpAddr, server: SocketAddr) -> Self {
        let listener = TcpListener::bind((at, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let wire = Arc::new(Wire { network: Mutex::new(Network::Fine), harmed: AtomicU64::new(0) });
        thread::spawn({
            let wire = wire.clone();
            move || {
                for client in listener.incoming().flatten() {
                    let wire = wire.clone();
                    thread::spawn(move || accept(client, server, &wire));
                }
            }
        });
        Self { port, wire }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes the network behave differently.
    pub fn set(&self, network: Network) {
        *self.wire.network.lock() = network;
    }

    /// How often something was held up, lost, torn or refused.
    pub fn harmed(&self) -> u64 {
        self.wire.harmed.load(Ordering::Relaxed)
    }
}

fn accept(client: TcpStream, server: SocketAddr, wire: &Arc<Wire>) {
    match wire.now() {
        // Refused by dropping it.
        Network::Cut => wire.harm(),
        Network::DeadEnd => {
            wire.harm();
            while wire.now() == Network::DeadEnd {
                thread::sleep(Duration::from_millis(10));
            }
        }
        _ => _ = connect(client, server, wire),
    }
}

fn connect(client: TcpStream, server: SocketAddr, wire: &Arc<Wire>) -> std::io::Result<()> {
    let server = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(5)))?;
    }
    let ways = [(client.try_clone()?, server.try_clone()?, false), (server, client, true)];
    for (from, to, answers) in ways {
        let wire = wire.clone();
        thread::spawn(move || {
            _ = carry(&from, &to, answers, &wire);
            _ = from.shutdown(Shutdown::Both);
            _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// Carries one direction until it ends.
fn carry(mut from: &TcpStream, mut to: &TcpStream, answers: bool, wire: &Wire) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    let mut lost = false;
    loop {
        let read = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => 0,
            Err(error) => return Err(error),
        };
        let mut held = false;
        loop {
            match wire.now() {
                Network::Cut | Network::DeadEnd => {
                    wire.harm();
                    return Ok(());
                }
                Network::Torn if read > 1 => {
                    wire.harm();
                    return to.write_all(&bytes[..read / 2]);
                }
                Network::Silent => {}
                Network::NoAnswers if answers => {}
                Network::NoRequests if !answers => {}
                Network::Swallowing if answers => lost |= read > 0,
                // What comes after a gap would mean something else.
                _ if lost => return Ok(()),
                Network::Slow(by) if read > 0 => {
                    wire.harm();
                    thread::sleep(by);
                    break;
                }
                _ => break,
            }
            if read == 0 {
                break;
            }
            if !held {
                held = true;
                wire.harm();
            }
            if lost {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if !lost {
            to.write_all(&bytes[..read])?;
        }
    }
}
