//! A node that is driven from a shell or a test, and says on standard output what happens to it.
//!
//! It is also the shape of a real program: one task reads the stream of starts and stops, every stop is confirmed by a
//! task of its own once the work has ended, and a signal leads to `flush_and_cancel`.

pub mod command;
pub mod options;
pub mod printer;

mod carry_out;
mod sink;
mod ticker;

use std::{collections::HashMap, sync::Arc, time::Duration};

use divider_core::{Divider, Error, Event, Events, Flushed, Key, Node, NodeConfig, Stop, Token};
use parking_lot::Mutex;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep,
};

use crate::{
    AnyError,
    line::{Kind, Line},
};
use command::Command;
use options::Options;
use printer::Printer;

/// How long to wait before a store that could not be reached is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// How long a process lives with a key that kills it.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What the tasks share.
struct Worker {
    node: Node,
    printer: Printer,
    options: Options,
    /// The keys whose work "runs": from the start to the moment before the confirmation.
    running: Mutex<HashMap<Key, Token>>,
}

/// Runs the node until it is told to end.
///
/// # Errors
/// Where the options cannot be used, or the store is not set up for Divider. A store that is out of reach is no error: it
/// is tried again.
pub async fn run(options: Options) -> Result<(), AnyError> {
    // First of all: a signal that comes while the store is being opened is heard as well, also by process 1.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let config = options.config();
    let printer = Printer::new(config.node.as_str())?;
    let work = options.work()?;
    let group = divider::open(&url(&options, &config), options.group.as_str())?.prepared();
    let node = group.node()?.config(config).build()?;
    let worker = Arc::new(Worker { node, printer, options, running: Mutex::default() });
    let mut commands = read_commands()?;

    let run = async {
        worker.start().await?;
        let events = tokio::spawn(worker.clone().follow(worker.node.events()));
        tokio::spawn(worker.clone().watch_leadership());
        ticker::spawn(&worker)?;
        sink::spawn(&worker)?;
        if !work.is_empty() {
            let added = worker.node.add_work(work).await;
            worker.report(&added, "--keys");
        }
        while let Some(command) = commands.recv().await {
            match command {
                Ok(Command::Quit) => break,
                Ok(command) => worker.carry_out(command).await,
                Err(problem) => worker.error("", &problem),
            }
        }
        Ok::<_, AnyError>(events)
    };
    let result = tokio::select! {
        result = run => result.map(drop),
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    };
    tokio::select! {
        () = worker.drain() => {}
        // Somebody is in a hurry: the lease ends what is left.
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    worker.printer.flush();
    result
}

/// What reads an older format of the group is a program of before, and so reads an older one of a Raft cluster, too.
fn url(options: &Options, config: &NodeConfig) -> String {
    let store = &options.store;
    if !store.starts_with("raft:") || options.reads.is_none() && options.step_after_ms.is_none() {
        return store.clone();
    }
    let joint = if store.contains('?') { '&' } else { '?' };
    format!("{store}{joint}reads={}&step_after_ms={}", config.reads, config.step_after.as_millis())
}

impl Worker {
    /// Joins the group, however long the store is out of reach.
    async fn start(&self) -> Result<(), AnyError> {
        loop {
            match self.node.start().await {
                Ok(()) => break,
                Err(Error::Store(error)) if error.is_transient() => self.error("start", &error),
                Err(error) => {
                    self.error("start", &error);
                    return Err(error.into());
                }
            }
            sleep(RETRY).await;
        }
        let session = self.node.session().map(|session| session.to_string());
        self.say(Kind::Ready, |line| line.message = session.map(Into::into));
        Ok(())
    }

    /// Reads the starts and stops, until the node has left its group.
    async fn follow(self: Arc<Self>, mut events: Events<Event>) {
        while let Some(event) = events.next().await {
            match event {
                Event::Start(start) => {
                    self.say_of(Kind::Start, &start.key, start.token, |line| line.count = Some(start.attempts.into()));
                    if self.options.killer.iter().any(|killer| killer == start.key.as_str()) {
                        die_soon();
                    }
                    self.running.lock().insert(start.key, start.token);
                }
                Event::Stop(stop) => {
                    self.say_of(Kind::Stop, &stop.key, stop.token, |line| line.reason = Some(stop.reason));
                    tokio::spawn(self.clone().end(stop));
                }
                // Events that a later version adds are not for this program.
                _ => {}
            }
        }
    }

    /// Ends the work of a key, and says so.
    async fn end(self: Arc<Self>, stop: Stop) {
        if self.options.confirm_delay_ms > 0 {
            sleep(Duration::from_millis(self.options.confirm_delay_ms)).await;
        }
        self.forget(&stop.key, stop.token);
        self.say_of(Kind::Confirm, &stop.key, stop.token, |_| {});
        if let Err(error) = self.node.confirm_stop_processing(&stop.key, stop.token).await {
            self.say_of(Kind::Error, &stop.key, stop.token, |line| {
                line.command = Some("confirm".into());
                line.message = Some(error.to_string().into());
            });
        }
    }

    /// The key's work does not run any more.
    fn forget(&self, key: &Key, token: Token) {
        let mut running = self.running.lock();
        // It may have been started anew meanwhile.
        if running.get(key) == Some(&token) {
            running.remove(key);
        }
    }

    async fn watch_leadership(self: Arc<Self>) {
        for kind in [Kind::Leading, Kind::Following].into_iter().cycle() {
            self.node.leadership_changed(kind == Kind::Following).await;
            self.say(kind, |_| {});
        }
    }

    /// Gives everything back and leaves.
    async fn drain(&self) {
        match self.node.flush_and_cancel().await {
            Ok(flushed) => self.flushed(&flushed),
            // It has left already, or never joined.
            Err(Error::Cancelled | Error::Died { .. } | Error::NotStarted) => return,
            Err(error) => self.error("flush", &error),
        }
        self.say(Kind::Cancelled, |_| {});
    }

    fn flushed(&self, flushed: &Flushed) {
        self.say(Kind::Flushed, |line| {
            line.count = Some(flushed.unconfirmed.len() as u64);
            if !flushed.lost.is_empty() {
                line.message = Some(format!("{} keys were lost with the session", flushed.lost.len()).into());
            }
        });
    }

    fn say(&self, kind: Kind, fill: impl FnOnce(&mut Line<'_>)) {
        let mut line = self.printer.line(Printer::now(), kind);
        fill(&mut line);
        self.printer.print(&line);
    }

    fn say_of(&self, kind: Kind, key: &Key, token: Token, fill: impl FnOnce(&mut Line<'_>)) {
        if self.options.quiet && kind != Kind::Error {
            return;
        }
        let mut line = self.printer.line(Printer::now(), kind);
        line.key = Some(key.as_str().to_owned().into());
        line.token = Some(token.0);
        fill(&mut line);
        self.printer.print(&line);
    }

    fn error(&self, command: &str, error: &(impl ToString + ?Sized)) {
        self.say(Kind::Error, |line| {
            line.command = Some(command.to_owned().into());
            line.message = Some(error.to_string().into());
        });
    }

    fn report<T>(&self, result: &Result<T, Error>, command: &str) {
        if let Err(error) = result {
            self.error(command, error);
        }
    }
}

/// Ends the process without a warning, as work does that takes too much memory.
fn die_soon() {
    std::thread::spawn(|| {
        std::thread::sleep(LAST_WORDS);
        std::process::abort();
    });
}

/// Standard input on a thread of its own, which no other task can keep from reading. Its end says nothing: the node goes
/// on.
fn read_commands() -> std::io::Result<mpsc::UnboundedReceiver<Result<Command, String>>> {
    let (commands, inbox) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("commands".into()).spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
            if commands.send(line.parse()).is_err() {
                return;
            }
        }
        // Kept open for ever: the main task waits for it.
        std::mem::forget(commands);
    })?;
    Ok(inbox)
}
