//! Wake-ups.
//!
//! # Why
//! Any role of the database may notify any channel, so nothing that comes with a notification is believed: it only says
//! that there is something to read. What the node gets is read from the tables.
//!
//! # How
//! The stream remembers how far it has read, and reads on when it is woken. However many notifications came meanwhile, it
//! is one read. Where it cannot tell whether it has missed something, it says so.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use divider_core::{Hint, HintStream, Revision, SessionId, StoreError, Topic};
use tokio::{sync::watch, time::sleep};

use crate::{codec::corrupt, leader_connection::Signal, read::Inner};

/// Pause between two attempts to read.
const AGAIN: Duration = Duration::from_millis(20);

struct Reader {
    inner: Arc<Inner>,
    topic: Topic,
    signal: watch::Receiver<Signal>,
    /// What has been dealt with.
    seen: Signal,
    /// How far it has been read: a revision, or a number of messages.
    read: u64,
    ready: VecDeque<Hint>,
}

/// Subscribes. What is applied from now on is heard of.
pub(crate) async fn subscribe(
    inner: Arc<Inner>,
    topic: Topic,
    signal: watch::Receiver<Signal>,
) -> Result<HintStream, StoreError> {
    let seen = *signal.borrow();
    let read = inner.number_of(topic).await?;
    let reader = Reader { inner, topic, signal, seen, read, ready: VecDeque::new() };
    Ok(Box::pin(futures_util::stream::unfold(reader, |mut reader| async move {
        let hint = reader.next().await?;
        Some((hint, reader))
    })))
}

impl Reader {
    /// `None` where the connection's task has ended, or reading fails again and again.
    async fn next(&mut self) -> Option<Hint> {
        loop {
            if let Some(hint) = self.ready.pop_front() {
                return Some(hint);
            }
            let now = *self.signal.borrow_and_update();
            if now.gaps != self.seen.gaps {
                self.seen.gaps = now.gaps;
                return self.gap().await;
            }
            if now.frees != self.seen.frees {
                self.seen.frees = now.frees;
                if matches!(self.topic, Topic::Session(_)) {
                    return Some(Hint::LeaderGone);
                }
            }
            if now.wakes != self.seen.wakes {
                match self.more().await {
                    // What comes after this read wakes again, so a read that left nothing behind has dealt with it.
                    Ok(left) if !left => self.seen.wakes = now.wakes,
                    Ok(_) => {}
                    Err(_) => {
                        self.seen.wakes = now.wakes;
                        return self.gap().await;
                    }
                }
                continue;
            }
            self.signal.changed().await.ok()?;
        }
    }

    /// Begins again from where things stand. The reader of the stream reads everything after it hears of the gap, so what
    /// is read here first is never too far ahead.
    async fn gap(&mut self) -> Option<Hint> {
        self.ready.clear();
        for _ in 0..3 {
            if let Ok(read) = self.inner.number_of(self.topic).await {
                self.read = read;
                return Some(Hint::Gap);
            }
            sleep(AGAIN).await;
        }
        None
    }

    /// Reads on; true where there may be more.
    async fn more(&mut self) -> Result<bool, StoreError> {
        match self.topic {
            Topic::Group => self.batches().await,
            Topic::Session(session) => self.messages(session).await,
        }
    }

    async fn batches(&mut self) -> Result<bool, StoreError> {
        let batches = self.inner.changes(Revision(self.read)).await?;
        let (batches, left) = batches.ok_or_else(|| corrupt("the next change"))?;
        if let Some(last) = batches.last() {
            self.read = last.revision.0;
        }
        self.ready.extend(batches.into_iter().map(Hint::Batch));
        Ok(left)
    }

    async fn messages(&mut self, session: SessionId) -> Result<bool, StoreError> {
        // An error where the session is over: what the node is told then is to read, and so it finds out.
        let (messages, left) = self.inner.messages(session, self.read).await?;
        for message in messages {
            if message.seq != self.read + 1 {
                return Err(corrupt("the next message"));
            }
            self.read = message.seq;
            self.ready.push_back(Hint::Message(message));
        }
        Ok(left)
    }
}
