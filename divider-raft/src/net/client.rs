//! One open connection to a member, as a caller has it: calls and subscriptions side by side.
//!
//! # What a failure says
//! A caller must know whether its request may have had an effect. [`CallError::NotSent`] says that it had none; after the
//! others nobody knows.
//!
//! A connection on which nothing has been heard for a while although it was asked for a sign of life is closed: the next call
//! dials anew, and no call waits longer than its own limit.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use divider_core::Hint;
use futures_util::Stream;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use crate::{
    environment::Connection,
    error::TooOld,
    net::{
        cluster_binding::BoundConnection,
        wire::{self, Frame},
    },
};

/// A connection on which something was sent and nothing has been heard for this long is asked for a sign of life.
const PING: Duration = Duration::from_secs(1);
/// And one on which nothing has been sent for this long: the other side ends it after 10 s.
const QUIET: Duration = Duration::from_secs(2);
/// A connection on which something was sent and from which nothing came for this long is dead.
const SILENCE: Duration = Duration::from_millis(3500);
/// Frames that wait to be sent.
const OUTBOX: usize = 256;
/// Hints that wait for their reader.
const BACKLOG: usize = 1024;

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The request never left: it had no effect.
    #[error("cannot be reached: {0}")]
    NotSent(String),
    /// The connection broke before the answer.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The other side does not speak with this program, or not the other way round: it had no effect.
    #[error("{0}: {1}")]
    TooOld(String, TooOld),
}

impl CallError {
    /// Whether the request had no effect for certain.
    pub(crate) fn is_harmless(&self) -> bool {
        matches!(self, Self::NotSent(_) | Self::TooOld(..))
    }
}

/// One open connection.
pub(crate) struct PooledConnection {
    outbox: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
    /// Ends reader and writer when the connection is dropped.
    tasks: [tokio::task::AbortHandle; 2],
}

/// Who waits for what; `None` once the connection is closed.
type Waiting = Option<HashMap<u64, Waiter>>;

enum Waiter {
    Answer { parts: Vec<u8>, done: oneshot::Sender<Vec<u8>> },
    Hints(mpsc::Sender<Hint>),
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// Forgets a waiter whose caller has gone.
struct Forget<'a> {
    connection: &'a PooledConnection,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.connection.waiting.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

/// The hints of a subscription. The member is told when nobody reads them any more: where nothing happens it would never
/// find out, and keep it for as long as the connection lasts.
pub(crate) struct Hints {
    hints: mpsc::Receiver<Hint>,
    id: u64,
    waiting: Arc<Mutex<Waiting>>,
    outbox: mpsc::WeakSender<Vec<u8>>,
}

impl Stream for Hints {
    type Item = Hint;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Hint>> {
        self.hints.poll_recv(context)
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        let stood = self.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&self.id)).is_some();
        if stood && let (Some(outbox), Ok(end)) = (self.outbox.upgrade(), (Frame::End { id: self.id }).to_bytes()) {
            // Where there is no room, the next hint says it again.
            let _ = outbox.try_send(end);
        }
    }
}

impl PooledConnection {
    pub(crate) fn open(stream: Box<dyn Connection>, bound: Option<BoundConnection>) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        let (outbox, frames) = mpsc::channel(OUTBOX);
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let heard = Arc::new(AtomicU64::new(0));
        let born = Instant::now();
        let reader = tokio::spawn({
            let (waiting, heard, outbox) = (waiting.clone(), heard.clone(), outbox.downgrade());
            async move {
                let _tie = bound;
                let ended = read(reading, &waiting, &heard, born, &outbox).await;
                tracing::debug!(target: "divider::raft", ?ended, "a connection ended");
                // All who wait learn of it by their dropped senders.
                waiting.lock().take();
            }
        });
        let writer = tokio::spawn({
            let (waiting, reader) = (waiting.clone(), reader.abort_handle());
            async move {
                let _ = write(writing, frames, &heard, born).await;
                waiting.lock().take();
                reader.abort();
            }
        });
        Self { outbox, waiting, next: AtomicU64::new(1), tasks: [reader.abort_handle(), writer.abort_handle()] }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.waiting.lock().is_some() && !self.outbox.is_closed()
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn request(&self, id: u64, body: &[u8], waiter: Waiter) -> Result<(), CallError> {
        match self.waiting.lock().as_mut() {
            Some(waiting) => _ = waiting.insert(id, waiter),
            None => return Err(CallError::NotSent("the connection has just ended".into())),
        }
        let frames = wire::parts(body, |last, body| Frame::Request { id, last, body });
        for frame in frames.map_err(|error| CallError::NotSent(error.to_string()))? {
            if self.outbox.send(frame).await.is_err() {
                return Err(CallError::Lost("it was closed while a request was sent".into()));
            }
        }
        Ok(())
    }

    pub(crate) async fn call(&self, body: &[u8]) -> Result<Vec<u8>, CallError> {
        let (done, answer) = oneshot::channel();
        let id = self.next();
        let _forget = Forget { connection: self, id };
        self.request(id, body, Waiter::Answer { parts: Vec::new(), done }).await?;
        answer.await.map_err(|_| CallError::Lost("it ended before the answer".into()))
    }

    pub(crate) async fn subscribe(&self, body: &[u8]) -> Result<Hints, CallError> {
        let (told, hints) = mpsc::channel(BACKLOG);
        let (id, waiting, outbox) = (self.next(), self.waiting.clone(), self.outbox.downgrade());
        let mut hints = Hints { hints, id, waiting, outbox };
        self.request(id, body, Waiter::Hints(told)).await?;
        // The member says with a first hint that the subscription stands.
        match hints.hints.recv().await {
            Some(_) => Ok(hints),
            None => Err(CallError::Lost("the subscription was refused".into())),
        }
    }
}

async fn read(
    reading: ReadHalf<Box<dyn Connection>>,
    waiting: &Mutex<Waiting>,
    heard: &AtomicU64,
    born: Instant,
    outbox: &mpsc::WeakSender<Vec<u8>>,
) -> io::Result<()> {
    let mut reading = BufReader::with_capacity(64 << 10, reading);
    let mut buffer = Vec::new();
    loop {
        wire::read_frame(&mut reading, &mut buffer).await?;
        heard.store(millis(born), Ordering::Relaxed);
        let mut unwanted = None;
        {
            let mut waiting = waiting.lock();
            let Some(waiting) = waiting.as_mut() else { return Ok(()) };
            match Frame::from_bytes(&buffer)? {
                Frame::Answer { id, last, body } => match waiting.get_mut(&id) {
                    Some(Waiter::Answer { parts, .. }) => {
                        if parts.len() + body.len() > wire::MAX_ANSWER {
                            return Err(io::Error::other("an answer is over the limit"));
                        }
                        parts.extend_from_slice(body);
                        if last && let Some(Waiter::Answer { parts, done }) = waiting.remove(&id) {
                            // The caller may have given up.
                            let _ = done.send(parts);
                        }
                    }
                    // A subscription that was refused.
                    Some(Waiter::Hints(_)) => _ = waiting.remove(&id),
                    None => {}
                },
                Frame::Hint { id, body } => {
                    let hint: Hint = wire::decode(body)?;
                    let told = match waiting.get(&id) {
                        Some(Waiter::Hints(hints)) => hints.try_send(hint).is_ok(),
                        _ => false,
                    };
                    if !told {
                        // Too slow, or gone: the end of its stream is the gap.
                        waiting.remove(&id);
                        unwanted = Some(id);
                    }
                }
                Frame::End { id } => _ = waiting.remove(&id),
                Frame::Pong => {}
                Frame::Ping | Frame::Request { .. } => return Err(io::Error::other("an unexpected frame")),
            }
        }
        if let (Some(id), Some(outbox)) = (unwanted, outbox.upgrade()) {
            // Where there is no room, the next hint says it again.
            let _ = outbox.try_send(Frame::End { id }.to_bytes()?);
        }
    }
}

async fn write(
    mut writing: WriteHalf<Box<dyn Connection>>,
    mut frames: mpsc::Receiver<Vec<u8>>,
    heard: &AtomicU64,
    born: Instant,
) -> io::Result<()> {
    // The next look at how long there has been silence. Few, for each wakes an idle process: an idle connection is looked at when
    // it must give a sign of life, and any other one `PING` after something was sent.
    let look = sleep(QUIET);
    tokio::pin!(look);
    let mut batch = Vec::new();
    let mut sent = 0;
    // When the first of what was sent since the last look was, if nothing has been heard since.
    let mut asked: Option<u64> = None;
    loop {
        batch.clear();
        tokio::select! {
            // However much there is to send, silence is noticed.
            biased;
            () = &mut look => {
                let now = millis(born);
                asked = asked.filter(|asked| heard.load(Ordering::Relaxed) < *asked);
                if asked.is_some_and(|asked| now.saturating_sub(asked) > millis_of(SILENCE)) {
                    return Err(io::Error::other("nothing was heard for too long"));
                }
                let quiet = now.saturating_sub(sent);
                if asked.is_none() && quiet < millis_of(QUIET) {
                    look.as_mut().reset(born + Duration::from_millis(sent) + QUIET);
                    continue;
                }
                batch.extend(Frame::Ping.to_bytes()?);
            }
            frame = frames.recv() => match frame {
                Some(frame) => batch = frame,
                None => return Ok(()),
            },
        }
        // What has gathered goes together.
        while batch.len() < 256 << 10
            && let Ok(frame) = frames.try_recv()
        {
            batch.extend(frame);
        }
        sent = millis(born);
        asked = asked.filter(|asked| heard.load(Ordering::Relaxed) < *asked).or(Some(sent));
        let soon = Instant::now() + PING;
        if look.is_elapsed() || soon < look.deadline() {
            look.as_mut().reset(soon);
        }
        // A peer that takes nothing in is as good as one that says nothing.
        match tokio::time::timeout(SILENCE, async {
            writing.write_all(&batch).await?;
            writing.flush().await
        })
        .await
        {
            Ok(written) => written?,
            Err(_) => return Err(io::Error::other("nothing could be sent for too long")),
        }
    }
}

fn millis(since: Instant) -> u64 {
    millis_of(since.elapsed())
}

fn millis_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
