//! Writes to a sink: what a program does with the keys that it owns, told to something that sees the writes of all nodes in
//! the order in which they arrive.
//!
//! Each line is `TOKEN AT_NS KEY`; the time is that *before* the node was asked whether it may act. On a thread of its own,
//! so that neither the ticks nor the runtime wait for the sink.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use divider_core::Divider;

use super::{Worker, printer::Printer};

/// How long the sink may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// Starts the thread, if there is a sink. It ends with the worker.
pub(super) fn spawn(worker: &Arc<Worker>) -> std::io::Result<()> {
    if let Some(address) = worker.options.sink {
        let every = Duration::from_millis(worker.options.sink_ms);
        let worker = Arc::downgrade(worker);
        thread::Builder::new().name("sink".into()).spawn(move || {
            let mut stream = None;
            while round(&worker, address, &mut stream) {
                thread::sleep(every);
            }
        })?;
    }
    Ok(())
}

/// One write for every key that the node may act on. False when the worker is gone.
fn round(worker: &Weak<Worker>, address: SocketAddr, stream: &mut Option<TcpStream>) -> bool {
    let Some(worker) = worker.upgrade() else { return false };
    let running: Vec<_> = worker.running.lock().iter().map(|(key, token)| (key.clone(), *token)).collect();
    let mut lines = String::with_capacity(running.len() * 48);
    for (key, token) in running {
        let at = Printer::now();
        if worker.node.is_current(&key, token) {
            // Writing to memory cannot fail.
            _ = writeln!(lines, "{} {at} {key}", token.0);
        }
    }
    // What a program computes between its look and its write.
    thread::sleep(Duration::from_millis(worker.options.sink_delay_ms));
    if stream.is_none() {
        *stream = TcpStream::connect_timeout(&address, CONNECT).ok();
    }
    if stream.as_mut().is_some_and(|stream| stream.write_all(lines.as_bytes()).is_err()) {
        *stream = None;
    }
    true
}
