//! Hints: what the entries that are applied here mean for those who listen here.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicBool, Ordering},
};

use divider_core::{Change, Effects, Group, Hint, Notice, SessionId, Topic};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// How many hints wait for a subscriber before it is cut off, which it takes for a gap,
const BACKLOG: usize = 1024;
/// and about how many bytes of them, unless a single one has more.
const BACKLOG_BYTES: usize = 8 << 20;

/// Who listens on this member.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    groups: Mutex<HashMap<Group, Listeners>>,
    /// Nothing is applied here any more. Written with `groups` locked.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Listeners {
    sessions: HashMap<SessionId, Vec<Subscriber>>,
    followers: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    hints: mpsc::Sender<Hint>,
    /// Bytes of each hint that may still wait, the oldest first,
    waiting: VecDeque<usize>,
    /// and of all of them.
    bytes: usize,
}

impl Subscriber {
    fn is_closed(&self) -> bool {
        self.hints.is_closed()
    }

    /// False where it does not keep up, or is gone.
    fn tell(&mut self, hint: &Hint, bytes: usize) -> bool {
        let waiting = self.hints.max_capacity() - self.hints.capacity();
        while self.waiting.len() > waiting {
            self.bytes -= self.waiting.pop_front().unwrap_or(0);
        }
        if waiting > 0 && self.bytes + bytes > BACKLOG_BYTES {
            return false;
        }
        self.waiting.push_back(bytes);
        self.bytes += bytes;
        self.hints.try_send(hint.clone()).is_ok()
    }
}

/// About how much memory a hint takes for as long as somebody has it, its blobs included.
fn bytes(hint: &Hint) -> usize {
    let notice = |notice: &Notice| match notice {
        Notice::Granted(held) => 128 + held.key.as_str().len() + held.payload.len() + held.checkpoint.len(),
        Notice::Stop { key, .. } | Notice::Taken { key, .. } => 64 + key.as_str().len(),
        Notice::Ended => 64,
    };
    match hint {
        Hint::Message(message) => message.notices.iter().map(notice).sum(),
        Hint::Batch(batch) => batch.changes.iter().map(change_bytes).sum(),
        Hint::LeaderGone | Hint::Gap => 0,
    }
}

/// About how many bytes a change takes.
pub(crate) fn change_bytes(change: &Change) -> usize {
    match change {
        Change::Key(view) => 96 + view.key.as_str().len(),
        Change::KeyGone(key) => 8 + key.as_str().len(),
        Change::Session(view) => 64 + view.node.as_str().len(),
        Change::SessionGone(_) | Change::Group(_) => 48,
    }
}

impl Subscribers {
    /// From the return on, everything that is applied here is heard, or the stream ends.
    pub(crate) fn subscribe(&self, group: &Group, topic: Topic) -> mpsc::Receiver<Hint> {
        let (hints, receiver) = mpsc::channel(BACKLOG);
        let subscriber = Subscriber { hints, waiting: VecDeque::new(), bytes: 0 };
        let mut groups = self.groups.lock();
        if self.is_closed() {
            // Its end is the gap.
            return receiver;
        }
        let listeners = groups.entry(group.clone()).or_default();
        listeners.sessions.retain(|_, subscribers| {
            subscribers.retain(|subscriber| !subscriber.is_closed());
            !subscribers.is_empty()
        });
        listeners.followers.retain(|subscriber| !subscriber.is_closed());
        match topic {
            Topic::Session(session) => listeners.sessions.entry(session).or_default().push(subscriber),
            Topic::Group => listeners.followers.push(subscriber),
        }
        receiver
    }

    /// The member has ended: all streams end, and later ones at once.
    pub(crate) fn close(&self) {
        let mut groups = self.groups.lock();
        self.closed.store(true, Ordering::Relaxed);
        groups.clear();
    }

    /// Whether what is here stays as it is.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn tell(&self, group: &Group, effects: Effects, leader_gone: bool) {
        let mut groups = self.groups.lock();
        let Some(listeners) = groups.get_mut(group) else { return };
        for (session, message) in effects.messages {
            if let Some(subscribers) = listeners.sessions.get_mut(&session) {
                send(subscribers, &Hint::Message(message));
            }
        }
        if let Some(batch) = effects.batch {
            send(&mut listeners.followers, &Hint::Batch(batch));
        }
        if leader_gone {
            listeners.sessions.values_mut().for_each(|subscribers| send(subscribers, &Hint::LeaderGone));
        }
    }

    /// This member leads now, so its sessions should look whether they can lead their groups.
    pub(crate) fn leads(&self) {
        for listeners in self.groups.lock().values_mut() {
            listeners.sessions.values_mut().for_each(|subscribers| send(subscribers, &Hint::LeaderGone));
        }
    }

    /// Something was missed.
    pub(crate) fn gap(&self) {
        for listeners in self.groups.lock().values_mut() {
            listeners.sessions.values_mut().for_each(|subscribers| send(subscribers, &Hint::Gap));
            send(&mut listeners.followers, &Hint::Gap);
        }
    }
}

/// Sends to all who keep up; whoever does not loses the subscription, and so learns of the gap.
fn send(subscribers: &mut Vec<Subscriber>, hint: &Hint) {
    let bytes = bytes(hint);
    subscribers.retain_mut(|subscriber| subscriber.tell(hint, bytes));
}

#[cfg(test)]
mod tests {
    use divider_core::{Blob, Holding, Key, Message, Token};

    use super::*;

    fn told(seq: u64, bytes: usize) -> Effects {
        let held = Holding {
            key: Key::new("k").unwrap(),
            token: Token(seq),
            attempts: 1,
            generation: 1,
            failures: 0,
            weight: 1,
            priority: 0,
            payload: Blob::from(vec![0; bytes]),
            checkpoint: Blob::default(),
            stopping: None,
        };
        let messages = vec![(SessionId(uuid::Uuid::nil()), Message { seq, notices: vec![Notice::Granted(held)] })];
        Effects { messages, ..Effects::default() }
    }

    /// How many of so many it is told before its stream ends.
    fn heard(many: u64, bytes: usize, reads: bool) -> usize {
        let subscribers = Subscribers::default();
        let group = Group::new("/g/").unwrap();
        let mut hints = subscribers.subscribe(&group, Topic::Session(SessionId(uuid::Uuid::nil())));
        let mut heard = 0;
        for seq in 1..=many {
            subscribers.tell(&group, told(seq, bytes), false);
            while reads && hints.try_recv().is_ok() {
                heard += 1;
            }
        }
        while hints.try_recv().is_ok() {
            heard += 1;
        }
        heard
    }

    #[test]
    fn what_waits_for_a_subscriber_is_bounded_by_bytes() {
        let large = 64 << 10;
        assert!(heard(500, large, false) * large <= BACKLOG_BYTES + large);
        assert_eq!(heard(500, large, true), 500, "whoever reads misses nothing");
        assert_eq!(heard(2000, 1, false), BACKLOG);
        assert_eq!(heard(1, 2 * BACKLOG_BYTES, false), 1, "one always has room");
    }
}
