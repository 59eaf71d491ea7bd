//! A way to a server, as a name of the DNS or a proxy is one: it can lead elsewhere, be slow, and be cut.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::sleep,
};

/// A way to a server that can lead elsewhere, or nowhere, and counts who comes.
#[derive(Clone, Debug)]
pub struct Way {
    port: u16,
    /// 0: whoever comes is turned away.
    target: Arc<AtomicU16>,
    /// How many have come.
    pub came: Arc<AtomicU64>,
    /// Bytes that the server has sent.
    pub sent: Arc<AtomicU64>,
    /// Cuts all connections.
    cut: Arc<Notify>,
}

impl Way {
    /// `pause` follows after each 64 KiB that the server sends.
    ///
    /// # Panics
    /// Where there is no free port.
    pub async fn to(target: u16, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let way = Self {
            port,
            target: Arc::new(target.into()),
            came: Arc::default(),
            sent: Arc::default(),
            cut: Arc::default(),
        };
        let run = way.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("somebody comes");
                run.came.fetch_add(1, Ordering::Relaxed);
                let (target, cut) = (run.target.load(Ordering::Relaxed), Arc::clone(&run.cut));
                let sent = Arc::clone(&run.sent);
                if target != 0 {
                    tokio::spawn(async move {
                        tokio::select! {
                            () = carry(client, target, pause, &sent) => {}
                            () = cut.notified() => {}
                        }
                    });
                }
            }
        });
        way
    }

    /// Where it begins, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whoever comes from now on is led to this port; 0: is turned away. Connections that are open stay where they are.
    pub fn lead(&self, target: u16) {
        self.target.store(target, Ordering::Relaxed);
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}

async fn carry(client: TcpStream, target: u16, pause: Duration, sent: &AtomicU64) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let down = async {
        let mut bytes = vec![0; 65536];
        while let Ok(n @ 1..) = from_server.read(&mut bytes).await {
            sent.fetch_add(n as u64, Ordering::Relaxed);
            if to_client.write_all(&bytes[..n]).await.is_err() {
                return;
            }
            sleep(pause.mul_f64(n as f64 / 65536.0)).await;
        }
    };
    let up = async { _ = tokio::io::copy(&mut from_client, &mut to_server).await };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}
