//! What a leader has seen or decided that people want to read about.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    clock::Instant,
    ids::{NodeId, SessionId},
    op::SessionView,
};

/// Something for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum News {
    /// A node has joined.
    Joined(NodeId, SessionId),
    /// A node has left by its own word.
    Left(NodeId, SessionId),
    /// A node was silent for so long that its session was ended, with so many keys.
    Expired(NodeId, SessionId, Duration, u32),
    /// So many keys are held back as suspects: their owners keep dying. The first is tried after that time, if nothing dies.
    HeldBack(usize, Duration),
    /// No key is held back any more.
    Released,
}

/// Collects it, each once.
#[derive(Debug, Default)]
pub(super) struct Newsroom {
    news: Vec<News>,
    /// Living nodes by session.
    nodes: BTreeMap<SessionId, NodeId>,
    /// Sessions that this leader has proposed to end, and for how long they had been silent.
    silent: BTreeMap<SessionId, Duration>,
    held_back: usize,
}

impl Newsroom {
    /// A session as it stands; it is told of where it has come or gone while this leader `looks`.
    pub(super) fn session(&mut self, view: &SessionView, keys: u32, looks: bool) {
        if view.ended.is_some() {
            return self.ended(view.session, keys);
        }
        let known = self.nodes.insert(view.session, view.node.clone());
        if known.is_none() && looks {
            self.news.push(News::Joined(view.node.clone(), view.session));
        }
    }

    pub(super) fn silent(&mut self, session: SessionId, silent: Duration) {
        self.silent.insert(session, silent);
    }

    pub(super) fn ended(&mut self, session: SessionId, keys: u32) {
        let silent = self.silent.remove(&session);
        let Some(node) = self.nodes.remove(&session) else { return };
        self.news.push(match silent {
            Some(silent) => News::Expired(node, session, silent, keys),
            None => News::Left(node, session),
        });
    }

    /// So many keys are held back now.
    pub(super) fn held_back(&mut self, keys: usize, until: Instant, now: Instant) {
        let before = std::mem::replace(&mut self.held_back, keys);
        // Each that is given out is no news, but more of them are.
        if keys > before {
            self.news.push(News::HeldBack(keys, until.since(now)));
        } else if keys == 0 && before > 0 {
            self.news.push(News::Released);
        }
    }

    pub(super) fn take(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }
}
