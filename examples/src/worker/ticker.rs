//! The ticks: on a thread of their own, so that they show what `is_current` says while the runtime is blocked, too.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use divider_core::Divider;

use super::{
    Worker,
    printer::{Printer, append},
};
use crate::line::Kind;

/// Starts the thread, if ticks are wanted. It ends with the worker.
pub(super) fn spawn(worker: &Arc<Worker>) -> std::io::Result<()> {
    let every = Duration::from_millis(worker.options.tick_ms);
    if every > Duration::ZERO {
        let worker = Arc::downgrade(worker);
        thread::Builder::new().name("ticker".into()).spawn(move || {
            while round(&worker) {
                thread::sleep(every);
            }
        })?;
    }
    Ok(())
}

/// One tick of every key. False when the worker is gone.
fn round(worker: &Weak<Worker>) -> bool {
    let Some(worker) = worker.upgrade() else { return false };
    let running: Vec<_> = worker.running.lock().iter().map(|(key, token)| (key.clone(), *token)).collect();
    let mut lines = Vec::with_capacity(running.len() * 96);
    for (key, token) in running {
        // Held, so that no `confirm` is stamped between the time here and the answer.
        let running = worker.running.lock();
        let mut line = worker.printer.line(Printer::now(), Kind::Tick);
        if running.get(&key) == Some(&token) && worker.node.is_current(&key, token) {
            line.key = Some(key.as_str().into());
            line.token = Some(token.0);
            append(&mut lines, &line);
        }
    }
    worker.printer.write(lines);
    // The next round waits for a slow reader, so that no ticks pile up.
    worker.printer.flush();
    true
}
