//! Hints: what the entries that are applied here mean for those who listen here.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use divider_core::{Effects, Group, Hint, SessionId, Topic};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// How many hints wait for a subscriber before it is cut off, which it takes for a gap.
const BACKLOG: usize = 1024;

/// Who listens on this member.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    groups: Mutex<HashMap<Group, Listeners>>,
    /// Nothing is applied here any more. Written with `groups` locked.
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Listeners {
    sessions: HashMap<SessionId, Vec<mpsc::Sender<Hint>>>,
    followers: Vec<mpsc::Sender<Hint>>,
}

impl Subscribers {
    /// From the return on, everything that is applied here is heard, or the stream ends.
    pub(crate) fn subscribe(&self, group: &Group, topic: Topic) -> mpsc::Receiver<Hint> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
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
            Topic::Session(session) => listeners.sessions.entry(session).or_default().push(sender),
            Topic::Group => listeners.followers.push(sender),
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
fn send(subscribers: &mut Vec<mpsc::Sender<Hint>>, hint: &Hint) {
    subscribers.retain(|subscriber| subscriber.try_send(hint.clone()).is_ok());
}
