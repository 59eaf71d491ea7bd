//! The streams that a program reads. They look into the member at the moment of reading, so nothing is buffered in them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;

use super::Handle;
use crate::{
    divider::Events,
    member::{Member, Queue},
};

struct Reader<T> {
    /// Keeps the node going while somebody reads.
    handle: Arc<Handle>,
    queue: Queue,
    next: fn(&mut Member) -> Option<T>,
}

impl<T> Stream for Reader<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let shared = &self.handle.shared;
        if shared.has_ended() {
            return Poll::Ready(None);
        }
        match shared.read(self.queue, cx.waker(), self.next) {
            Some(event) => Poll::Ready(Some(event)),
            // It may have ended between the two looks; then nobody will wake this one any more.
            None if shared.has_ended() => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        // What this reader was told to start runs no more, and nobody is left to say so.
        if std::thread::panicking() {
            self.handle.shared.collapse("a reader of its events");
        }
    }
}

pub(super) fn events<T: 'static>(handle: &Arc<Handle>, queue: Queue, next: fn(&mut Member) -> Option<T>) -> Events<T> {
    Events::new(Reader { handle: handle.clone(), queue, next })
}
