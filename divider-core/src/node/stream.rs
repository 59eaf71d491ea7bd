//! The streams that a program reads. They look into the member at the moment of reading, so nothing is buffered in them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::Stream;

use super::{Handle, target};
use crate::{
    divider::Events,
    error::Error,
    member::{Member, Queue},
};

/// Which queues have a reader. There is one for each: two programs on one node would confirm each other's keys.
#[derive(Default)]
pub(super) struct Readers(AtomicU8);

impl Readers {
    fn bits(queue: Queue) -> u8 {
        match queue {
            Queue::Starts => 1,
            Queue::Stops => 2,
            Queue::Both => 3,
        }
    }

    /// Whether the queue was free; it is the caller's from now on.
    fn claim(&self, queue: Queue) -> bool {
        let bits = Self::bits(queue);
        let free = |taken: u8| (taken & bits == 0).then_some(taken | bits);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).is_ok()
    }

    fn release(&self, queue: Queue) {
        self.0.fetch_and(!Self::bits(queue), Ordering::SeqCst);
    }
}

struct Reader<T> {
    /// Keeps the node going while somebody reads.
    handle: Arc<Handle>,
    queue: Queue,
    next: fn(&mut Member) -> Option<T>,
    /// Whether the queue is this one's; `None` before the first read.
    claimed: Option<bool>,
}

impl<T> Reader<T> {
    fn new(handle: &Arc<Handle>, queue: Queue, next: fn(&mut Member) -> Option<T>) -> Self {
        Self { handle: handle.clone(), queue, next, claimed: None }
    }

    /// Becomes the reader of its queue, if that has none.
    fn claim(&mut self) -> bool {
        *self.claimed.get_or_insert_with(|| self.handle.readers.claim(self.queue))
    }

    fn may_read(&mut self) -> bool {
        let first = self.claimed.is_none();
        let claimed = self.claim();
        if first && !claimed {
            let (node, error) = (&self.handle.shared.config.node, Error::AlreadyRead);
            tracing::error!(target: target::SESSION, %node, %error, "a second reader is refused");
        }
        claimed
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        if self.claimed != Some(true) {
            return;
        }
        self.handle.readers.release(self.queue);
        // What this reader was told to start runs no more, and nobody is left to say so.
        if std::thread::panicking() {
            self.handle.shared.collapse("a reader of its events");
        }
    }
}

impl<T> Stream for Reader<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if self.handle.shared.has_ended() || !self.may_read() {
            return Poll::Ready(None);
        }
        let shared = &self.handle.shared;
        match shared.read(self.queue, cx.waker(), self.next) {
            Some(event) => Poll::Ready(Some(event)),
            // It may have ended between the two looks; then nobody will wake this one any more.
            None if shared.has_ended() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

pub(super) fn events<T: 'static>(handle: &Arc<Handle>, queue: Queue, next: fn(&mut Member) -> Option<T>) -> Events<T> {
    Events::new(Reader::new(handle, queue, next))
}

/// As [`events`], but claims the queue at once.
pub(super) fn take<T: 'static>(
    handle: &Arc<Handle>,
    queue: Queue,
    next: fn(&mut Member) -> Option<T>,
) -> Result<Events<T>, Error> {
    let mut reader = Reader::new(handle, queue, next);
    if reader.claim() { Ok(Events::new(reader)) } else { Err(Error::AlreadyRead) }
}
