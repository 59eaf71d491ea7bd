//! The thread that writes the lines.

use std::{
    io::Write,
    sync::{Arc, mpsc},
    thread,
};

use divider_core::{Clock, SystemClock};

use crate::line::{Kind, Line};

/// Hands lines to a thread that writes them to standard output, so that no task ever waits for whoever reads them. Lines
/// come out whole and in order, and as many in one write as have gathered.
#[derive(Clone, Debug)]
pub struct Printer {
    node: Arc<str>,
    /// Ends the thread when the last printer is gone.
    orders: mpsc::Sender<Order>,
}

enum Order {
    Write(Vec<u8>),
    /// Answers when everything before has been written.
    Flush(mpsc::Sender<()>),
}

impl Printer {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn new(node: &str) -> std::io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        thread::Builder::new().name("printer".into()).spawn(move || write(&inbox))?;
        Ok(Self { node: node.into(), orders })
    }

    /// The time, as it stands in the lines.
    pub fn now() -> u64 {
        SystemClock.now().0
    }

    /// A line to be filled in, stamped with the time given.
    pub fn line(&self, at_ns: u64, event: Kind) -> Line<'_> {
        Line::new(at_ns, &self.node, event)
    }

    /// Prints one line.
    pub fn print(&self, line: &Line<'_>) {
        let mut text = Vec::with_capacity(128);
        append(&mut text, line);
        self.write(text);
    }

    /// Prints lines that were gathered by [`append`].
    pub fn write(&self, lines: Vec<u8>) {
        // The thread ends early only with the process.
        let _ = self.orders.send(Order::Write(lines));
    }

    /// Waits until everything so far has been written.
    pub fn flush(&self) {
        let (done, wait) = mpsc::channel();
        if self.orders.send(Order::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

/// Adds a line to a text.
pub fn append(text: &mut Vec<u8>, line: &Line<'_>) {
    // Writing plain data to memory cannot fail.
    if serde_json::to_writer(&mut *text, line).is_ok() {
        text.push(b'\n');
    }
}

fn write(inbox: &mpsc::Receiver<Order>) {
    let mut out = std::io::stdout().lock();
    let mut text = Vec::new();
    while let Ok(order) = inbox.recv() {
        let mut waiting = Vec::new();
        for order in [order].into_iter().chain(inbox.try_iter()) {
            match order {
                Order::Write(lines) => text.extend(lines),
                Order::Flush(done) => waiting.push(done),
            }
        }
        if out.write_all(&text).and_then(|()| out.flush()).is_err() {
            // Nobody reads any more, as after `worker | head`: the program has no purpose left. The lease ends its keys.
            std::process::exit(0);
        }
        text.clear();
        waiting.into_iter().for_each(|done| _ = done.send(()));
    }
}
