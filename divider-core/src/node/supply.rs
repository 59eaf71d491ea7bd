//! The leader's reading of a [`WorkSource`](crate::WorkSource).

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use super::{batcher::Then, observe::target, shared::Shared};
use crate::{Key, Op, SourceMode, Work, leader::Leader, limits};

/// What has been read, and when the next reading may begin.
pub(super) struct Supply {
    mode: SourceMode,
    finds: mpsc::Receiver<Vec<Work>>,
    /// Lets one reading begin; given when the one before has been declared.
    turn: Arc<Semaphore>,
    /// What the source said of each key last, as a hash, so that only differences are declared.
    said: HashMap<Key, u64>,
    hasher: RandomState,
    /// Ends with the leadership.
    reader: Option<JoinHandle<()>>,
}

impl Drop for Supply {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// Starts to read the source, if the node has one.
pub(super) fn spawn(shared: &Arc<Shared>) -> Supply {
    let (found, finds) = mpsc::channel(1);
    let turn = Arc::new(Semaphore::new(1));
    let mode = shared.source.as_ref().map_or(SourceMode::AddOnly, |config| config.mode);
    let reader = shared.source.clone().map(|config| {
        let (turn, node) = (turn.clone(), shared.config.node.clone());
        let task = async move {
            loop {
                match turn.acquire().await {
                    Ok(permit) => permit.forget(),
                    Err(_) => return,
                }
                let next = tokio::time::Instant::now() + config.interval;
                loop {
                    match tokio::time::timeout(config.interval, config.source.fetch()).await {
                        Ok(Ok(work)) => {
                            if found.send(work).await.is_err() {
                                return;
                            }
                            break;
                        }
                        Ok(Err(error)) => {
                            tracing::warn!(target: target::SOURCE, %node, %error, "the work source failed");
                        }
                        Err(_) => {
                            let limit = config.interval;
                            tracing::warn!(target: target::SOURCE, %node, ?limit, "the work source did not answer");
                        }
                    }
                    tokio::time::sleep(config.interval).await;
                }
                tokio::time::sleep_until(next).await;
            }
        };
        tokio::spawn(shared.task(task))
    });
    Supply { mode, finds, turn, said: HashMap::new(), hasher: RandomState::new(), reader }
}

impl Supply {
    /// The next reading. Never completes without a source.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Vec<Work> {
        match self.finds.recv().await {
            Some(work) => work,
            None => std::future::pending().await,
        }
    }

    /// What has to be declared so that the group agrees with the source.
    pub(super) fn compare(&mut self, find: Vec<Work>, leader: &Leader) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut named = HashSet::with_capacity(find.len());
        for work in find {
            if let Err(error) = work.validate() {
                tracing::warn!(target: target::SOURCE, key = %work.key, %error, "the work source named bad work");
                continue;
            }
            let fields = (work.weight, work.priority, work.not_before_ms, work.payload.as_slice());
            let hash = self.hasher.hash_one(fields);
            if !named.insert(work.key.clone()) {
                continue;
            }
            if self.said.insert(work.key.clone(), hash) != Some(hash) || !leader.wants(&work.key) {
                ops.push(Op::Add(work));
            }
        }
        self.said.retain(|key, _| named.contains(key));
        if self.mode == SourceMode::Authoritative {
            let gone = leader.keys().filter(|key| !named.contains(*key) && leader.wants(key));
            ops.extend(gone.map(|key| Op::Remove { key: key.clone() }));
        }
        ops
    }

    /// Declares it, beside the leader's own work, and then lets the next reading begin.
    pub(super) fn declare(&mut self, shared: &Arc<Shared>, ops: Vec<Op>) {
        let (shared, turn) = (shared.clone(), self.turn.clone());
        let session = shared.with(|member| member.session());
        let spawner = shared.clone();
        spawner.spawn(async move {
            for ops in ops.chunks(limits::MAX_BATCH_OPS) {
                if let Err(error) = shared.submit(ops.to_vec(), session, Then::Nothing).await {
                    tracing::warn!(target: target::SOURCE, node = %shared.config.node, %error, "could not declare work");
                    break;
                }
            }
            turn.add_permits(1);
        });
    }
}
