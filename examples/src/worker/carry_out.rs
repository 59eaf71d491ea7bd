//! What the commands do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use divider_core::{Divider, Error, InvalidInput, Key, Token, Work};
use serde_json::json;

use super::{Worker, command::Command, printer::Printer};
use crate::line::{Kind, Line};

/// How many quarantined keys are listed.
const LIST: usize = 1000;

impl Worker {
    /// Carries a command out and says how it went. A `done` is stamped with the time before the command began.
    pub(super) async fn carry_out(&self, command: Command) {
        let at_ns = Printer::now();
        let done = |name: &'static str, result: Result<(), Error>, fill: &dyn Fn(&mut Line<'_>)| match result {
            Ok(()) => {
                let mut line = self.printer.line(at_ns, Kind::Done);
                line.command = Some(name.into());
                line.took_us = Some((Printer::now() - at_ns) / 1000);
                fill(&mut line);
                self.printer.print(&line);
            }
            Err(error) => self.error(name, &error),
        };
        match command {
            Command::Add(name, payload) => {
                let work = Work::new(&name).map(|work| work.payload(payload.into_bytes()));
                done("add", self.add(work.map(|work| vec![work])).await, &|line| line.key = Some(name.clone().into()));
            }
            Command::Keys(count, prefix) => {
                let work = (0..count).map(|k| Work::new(format!("{prefix}{k}"))).collect();
                done("keys", self.add(work).await, &|line| line.count = Some(count.into()));
            }
            Command::Remove(name) => {
                let removed = match Key::new(&name) {
                    Ok(key) => self.node.remove_work(vec![key]).await,
                    Err(error) => Err(error.into()),
                };
                done("remove", removed, &|line| line.key = Some(name.clone().into()));
            }
            Command::Affinity(affinity) => {
                let set = self.node.set_affinity(affinity).await;
                done("affinity", set, &|line| line.count = Some(self.node.affinity().into()));
            }
            Command::Alter(by) => {
                let altered = self.node.alter_affinity(by).await;
                let affinity = altered.as_ref().ok().copied();
                done("alter", altered.map(drop), &|line| line.count = affinity.map(Into::into));
            }
            Command::GiveUp(name) => {
                let Some((key, token)) = self.current("giveup", &name) else { return };
                let given = self.node.send_stop_processing(&key, token).await;
                done("giveup", given, &|line| line.key = Some(name.clone().into()));
            }
            Command::Complete(name) => {
                let Some((key, token)) = self.current("complete", &name) else { return };
                // In this order: what ticks after the line would seem to act on what is done.
                self.forget(&key, token);
                self.say_of(Kind::Complete, &key, token, |_| {});
                let completed = self.node.complete(&key, token).await;
                done("complete", completed, &|line| line.key = Some(name.clone().into()));
            }
            Command::Assigned => self.assigned(),
            Command::Running => done("running", Ok(()), &|line| line.count = Some(self.running.lock().len() as u64)),
            Command::Stats => self.stats().await,
            Command::Rebalance => done("rebalance", self.node.rebalance().await, &|_| {}),
            Command::Quarantined => match self.node.quarantined(LIST).await {
                Ok(keys) => done("quarantined", Ok(()), &|line| {
                    line.count = Some(keys.len() as u64);
                    line.detail = Some(json!(keys.iter().map(Key::as_str).collect::<Vec<_>>()));
                }),
                Err(error) => self.error("quarantined", &error),
            },
            Command::Retry(name) => {
                let retried = match Key::new(&name) {
                    Ok(key) => self.node.retry(&key).await,
                    Err(error) => Err(error.into()),
                };
                done("retry", retried, &|line| line.key = Some(name.clone().into()));
            }
            Command::Block(time) => {
                block(self.options.worker_threads, time);
                done("block", Ok(()), &|_| {});
            }
            Command::Flush => match self.node.flush().await {
                Ok(flushed) => self.flushed(&flushed),
                Err(error) => self.error("flush", &error),
            },
            Command::Cancel => match self.node.cancel().await {
                Ok(()) => self.say(Kind::Cancelled, |_| {}),
                Err(error) => self.error("cancel", &error),
            },
            // The main task takes this one itself.
            Command::Quit => {}
        }
    }

    async fn add(&self, work: Result<Vec<Work>, InvalidInput>) -> Result<(), Error> {
        self.node.add_work(work?).await
    }

    /// A key that runs here, with its token.
    fn current(&self, command: &str, name: &str) -> Option<(Key, Token)> {
        let found = Key::new(name).ok().and_then(|key| {
            let token = *self.running.lock().get(&key)?;
            Some((key, token))
        });
        if found.is_none() {
            self.error(command, &format!("{name:?} does not run on this node; `assigned` lists what does"));
        }
        found
    }

    fn assigned(&self) {
        let mut assigned = self.node.assigned().to_vec();
        assigned.sort_by(|a, b| a.key.cmp(&b.key));
        self.say(Kind::Assigned, |line| {
            line.count = Some(assigned.len() as u64);
            let rows = assigned.iter().map(|held| {
                json!({
                    "key": held.key.as_str(), "token": held.token.0, "started": held.started,
                    "stopping": held.stopping.map(|reason| reason.to_string()),
                })
            });
            line.detail = Some(rows.collect());
        });
    }

    async fn stats(&self) {
        match self.node.stats().await {
            Ok(stats) => self.say(Kind::Stats, |line| {
                line.detail = Some(json!({
                    "sessions": stats.sessions, "registered": stats.registered, "assigned": stats.assigned,
                    "pending": stats.pending, "stopping": stats.stopping, "quarantined": stats.quarantined,
                }));
            }),
            Err(error) => self.error("stats", &error),
        }
    }
}

/// Keeps all threads of the runtime busy, and this one with them.
fn block(threads: usize, time: Duration) {
    let arrived = Arc::new(AtomicUsize::new(1));
    let hold = move |arrived: &AtomicUsize| {
        // Until every thread has come: otherwise the first could be free again before the last has begun.
        let patience = Instant::now() + Duration::from_secs(1);
        while arrived.load(Ordering::SeqCst) < threads && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(time);
    };
    let (runtime, others) = (tokio::runtime::Handle::current(), arrived.clone());
    // From outside of the runtime: what a task spawns itself may wait for that task's own thread.
    thread::spawn(move || {
        for _ in 1..threads {
            let arrived = others.clone();
            runtime.spawn(async move {
                arrived.fetch_add(1, Ordering::SeqCst);
                hold(&arrived);
            });
        }
    });
    hold(&arrived);
}
