//! What a node does that was taken for dead: it says of each ownership that ended with its sessions that its owner lived.
//!
//! # Why
//! A death is held against the keys of whoever died. The node knows what it had, but not what was granted to it while it
//! could not hear, and those are the very ones that a death is held against: the young. The changes of the group name the
//! owner of each, also where it has been granted again since. A process that died has nobody who knows its session.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{batcher::batches, observe::target, settle::Then, shared::Shared};
use crate::{
    error::StoreError,
    ids::{Key, Revision, SessionId, Token},
    op::{Change, Op},
};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// What ended with sessions of this node that others may have ended.
pub(super) struct Absolution {
    /// The sessions.
    pub(super) former: BTreeSet<SessionId>,
    /// What this node knows that it had.
    pub(super) known: Vec<(Key, Token)>,
    /// What was granted to it later may never have reached it.
    pub(super) since: Revision,
    /// By now the sessions were over.
    pub(super) until: Revision,
}

impl Absolution {
    /// Tries until the store has taken it in, or the node ends.
    pub(super) async fn run(mut self, shared: Arc<Shared>) {
        let said = async {
            let known = std::mem::take(&mut self.known);
            absolve(&shared, known).await;
            let unheard = self.unheard(&shared).await;
            absolve(&shared, unheard).await;
        };
        tokio::select! {
            biased;
            () = shared.end() => {}
            () = said => {}
        }
    }

    /// What was granted to the sessions since this node last knew all that they had, as far back as the store keeps changes.
    /// What is not known any more stays counted, until the key has lived for long enough.
    async fn unheard(&self, shared: &Shared) -> BTreeSet<(Key, Token)> {
        let (mut since, mut unheard) = (self.since, BTreeSet::new());
        while since < self.until {
            match shared.observer.call("changes", shared.store.changes(since)).await {
                Ok(Some(batches)) => {
                    let Some(last) = batches.last() else { break };
                    since = last.revision;
                    unheard
                        .extend(batches.iter().flat_map(|batch| &batch.changes).filter_map(|change| self.ours(change)));
                }
                Ok(None) => {
                    let node = &shared.config.node;
                    tracing::debug!(target: target::SESSION, %node, "what it was given unheard is not known any more");
                    break;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        unheard
    }

    fn ours(&self, change: &Change) -> Option<(Key, Token)> {
        let Change::Key(view) = change else { return None };
        let (session, token) = view.state.owner()?;
        self.former.contains(&session).then(|| (view.key.clone(), token))
    }
}

/// What a node says that leaves after it has lost its session, and whose program is done with all that the session had: it is
/// over by its node's word, and where others have ended it already, its keys' owner lived all the same.
pub(super) async fn farewell(shared: &Shared, session: SessionId, had: Vec<(Key, Token)>) -> Result<(), StoreError> {
    let absolves = had.into_iter().map(|(key, token)| Op::Absolve { key, token });
    for ops in batches([Op::End { session }].into_iter().chain(absolves).collect()) {
        shared.apply("leave", &ops).await?;
    }
    Ok(())
}

async fn absolve(shared: &Shared, owned: impl IntoIterator<Item = (Key, Token)>) {
    for ops in batches(owned.into_iter().map(|(key, token)| Op::Absolve { key, token }).collect()) {
        while shared.submit(ops.clone(), None, Then::Nothing).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
