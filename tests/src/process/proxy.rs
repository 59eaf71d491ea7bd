//! A network that can be made to fail: a proxy that stands before a server for one node.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
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
    /// Carries everything this much later.
    Slow(Duration),
    /// Ends every connection, and refuses new ones.
    Cut,
}

/// Forwards connections to a server on this machine. Its threads end with the process.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: Arc<Mutex<Network>>,
}

impl Proxy {
    /// Stands before the server on this port.
    ///
    /// # Panics
    /// Where no port can be had.
    pub fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let network = Arc::new(Mutex::new(Network::Fine));
        thread::spawn({
            let network = network.clone();
            move || {
                for client in listener.incoming().flatten() {
                    // Refused by dropping it.
                    if *network.lock() != Network::Cut {
                        _ = connect(client, server, &network);
                    }
                }
            }
        });
        Self { port, network }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes the network behave differently.
    pub fn set(&self, network: Network) {
        *self.network.lock() = network;
    }
}

fn connect(client: TcpStream, server: u16, network: &Arc<Mutex<Network>>) -> std::io::Result<()> {
    let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], server)))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(5)))?;
    }
    let ways = [(client.try_clone()?, server.try_clone()?, false), (server, client, true)];
    for (from, to, answers) in ways {
        let network = network.clone();
        thread::spawn(move || {
            _ = carry(&from, &to, answers, &network);
            _ = from.shutdown(Shutdown::Both);
            _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

/// Carries one direction until it ends.
fn carry(mut from: &TcpStream, mut to: &TcpStream, answers: bool, network: &Mutex<Network>) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let read = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => 0,
            Err(error) => return Err(error),
        };
        loop {
            let now = *network.lock();
            match now {
                Network::Cut => return Ok(()),
                Network::Silent => {}
                Network::NoAnswers if answers => {}
                Network::Slow(by) if read > 0 => {
                    thread::sleep(by);
                    break;
                }
                _ => break,
            }
            if read == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        to.write_all(&bytes[..read])?;
    }
}
