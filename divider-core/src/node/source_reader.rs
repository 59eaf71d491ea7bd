//! The leader's reading of a [`WorkSource`](crate::WorkSource).

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::Instant as Tick,
};

use super::{batcher::batches, observe::target, removals::Removals, settle::Then, shared::Shared};
use crate::{
    Batch, Change, Declaration, Instant, Key, NodeId, Op, SourceConfig, SourceMode, Work, caught, leader::Leader,
};

/// One reading.
pub(super) struct Reading {
    number: u64,
    work: Vec<Work>,
}

/// What has been read, and when the next reading may begin.
pub(super) struct SourceReader {
    mode: SourceMode,
    finds: Option<mpsc::Receiver<Reading>>,
    /// Lets one reading begin; given when the one before has been declared.
    turn: Arc<Semaphore>,
    /// Number of the reading that is under way; 0 for none.
    under_way: Arc<AtomicU64>,
    /// Keys that ended while the reading of this number was under way: it may have begun before, so it must not add them.
    ended: (u64, HashSet<Key>),
    /// What the source said of each key last, as a hash, so that only differences are declared.
    said: HashMap<Key, u64>,
    /// Something of it has not been declared after all.
    undeclared: Arc<AtomicBool>,
    hasher: RandomState,
    removals: Removals,
    node: NodeId,
    /// Ends with the leadership.
    reader: Option<JoinHandle<()>>,
}

impl Drop for SourceReader {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// Reads the source, time and again.
struct FetchLoop {
    config: SourceConfig,
    node: NodeId,
    found: mpsc::Sender<Reading>,
    turn: Arc<Semaphore>,
    under_way: Arc<AtomicU64>,
}

impl FetchLoop {
    async fn run(self) {
        let interval = self.config.interval;
        for number in 1.. {
            let began = Tick::now();
            match self.read(number).await {
                Ok(work) => {
                    if self.found.send(Reading { number, work }).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(interval.saturating_sub(began.elapsed())).await;
                    match self.turn.acquire().await {
                        Ok(permit) => permit.forget(),
                        Err(_) => return,
                    }
                }
                Err(error) => {
                    // Nothing will come of it, so nobody needs to know what ends meanwhile.
                    self.under_way.store(0, Ordering::SeqCst);
                    tracing::warn!(target: target::SOURCE, node = %self.node, error, "the work source failed");
                    tokio::time::sleep(interval).await;
                }
            }
        }
    }

    /// One reading. A source that panics has failed, like one that says so, and is read again.
    async fn read(&self, number: u64) -> Result<Vec<Work>, String> {
        let limit = self.config.interval;
        self.under_way.store(number, Ordering::SeqCst);
        // All that is the program's: also the drop of what is given up, and what an error says.
        let reading = async {
            match tokio::time::timeout(limit, self.config.source.fetch()).await {
                Ok(read) => read.map_err(|error| error.to_string()),
                Err(_) => Err(format!("it did not answer within {limit:?}")),
            }
        };
        AssertUnwindSafe(reading)
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(format!("it {}", caught::words(panic))))
    }
}

impl SourceReader {
    /// Nothing is read before [`begin`](Self::begin).
    pub(super) fn new(shared: &Shared) -> Self {
        let source = shared.source.as_ref();
        Self {
            mode: source.map_or(SourceMode::AddOnly, |config| config.mode),
            finds: None,
            turn: Arc::new(Semaphore::new(0)),
            under_way: Arc::default(),
            ended: (0, HashSet::new()),
            said: HashMap::new(),
            undeclared: Arc::default(),
            hasher: RandomState::new(),
            removals: Removals::new(source.map(|config| config.removals).unwrap_or_default()),
            node: shared.config.node.clone(),
            reader: None,
        }
    }

    /// Starts to read the source, if the node has one.
    pub(super) fn begin(&mut self, shared: &Shared) {
        let Some(config) = shared.source.clone() else { return };
        let (found, finds) = mpsc::channel(1);
        self.finds = Some(finds);
        let (turn, under_way) = (self.turn.clone(), self.under_way.clone());
        let reader = FetchLoop { config, node: self.node.clone(), found, turn, under_way };
        self.reader = Some(tokio::spawn(shared.task(reader.run())));
    }

    /// The next reading. Never completes without a source.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Reading {
        match &mut self.finds {
            Some(finds) => match finds.recv().await {
                Some(find) => find,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// Takes note of keys that end while a reading is under way.
    pub(super) fn note(&mut self, batch: &Batch) {
        let number = self.under_way.load(Ordering::SeqCst);
        if number == 0 {
            return;
        }
        if self.ended.0 != number {
            self.ended = (number, HashSet::new());
        }
        let gone = batch.changes.iter().filter_map(|change| match change {
            Change::KeyGone(key) => Some(key.clone()),
            _ => None,
        });
        self.ended.1.extend(gone);
    }

    /// What has to be declared so that the group agrees with the source.
    pub(super) fn compare(&mut self, find: Reading, leader: &Leader, now: Instant) -> Vec<Op> {
        let (number, ended) = std::mem::take(&mut self.ended);
        let ended = if number == find.number { ended } else { HashSet::new() };
        self.under_way.store(0, Ordering::SeqCst);
        if self.undeclared.swap(false, Ordering::SeqCst) {
            self.said.clear();
        }
        let mut ops = Vec::new();
        let mut named = HashSet::with_capacity(find.work.len());
        for work in find.work {
            // Before it is looked at: what is named wrongly is not gone.
            if !named.insert(work.key.clone()) || ended.contains(&work.key) {
                continue;
            }
            if let Err(error) = work.validate() {
                tracing::warn!(target: target::SOURCE, key = %work.key, %error, "the work source named bad work");
                continue;
            }
            let fields = (work.weight, work.priority, work.not_before_ms, work.payload.as_slice());
            let hash = self.hasher.hash_one(fields);
            let wanted = leader.wants(&work.key);
            if self.said.insert(work.key.clone(), hash) != Some(hash) || !wanted {
                ops.push(declaration(work, wanted));
            }
        }
        self.said.retain(|key, _| named.contains(key));
        if self.mode == SourceMode::Authoritative {
            let wanted = || leader.keys().filter(|key| leader.wants(key));
            let gone: HashSet<Key> = wanted().filter(|key| !named.contains(*key)).cloned().collect();
            let removed = self.removals.allow(gone, wanted().count(), now, &self.node);
            ops.extend(removed.into_iter().map(|key| Op::Remove { key }));
        }
        ops
    }

    /// Declares it, beside the leader's own work, and then lets the next reading begin.
    pub(super) fn declare(&mut self, shared: &Arc<Shared>, ops: Vec<Op>) {
        let (shared, turn, undeclared) = (shared.clone(), self.turn.clone(), self.undeclared.clone());
        let session = shared.with(|member| member.session());
        let spawner = shared.clone();
        spawner.spawn("the declaring of work", async move {
            let limit = Some(shared.config.call_time_limit.max(Duration::from_secs(1)));
            for ops in batches(ops) {
                let declared = match shared.hand_in_for(ops, session, Then::Nothing, limit) {
                    Ok(handed_in) => handed_in.wait().await,
                    Err(error) => Err(error),
                };
                if let Err(error) = declared {
                    tracing::warn!(target: target::SOURCE, node = %shared.config.node, %error, "could not declare work");
                    undeclared.store(true, Ordering::SeqCst);
                }
            }
            turn.add_permits(1);
        });
    }
}

/// How a reading declares work. What is `known` only takes new fields: it may have ended meanwhile.
fn declaration(work: Work, known: bool) -> Op {
    Op::Add(work.how(if known { Declaration::Refresh } else { Declaration::Declare }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FnSource, MemoryStore, Node, Revision};

    #[tokio::test]
    async fn what_ends_after_a_reading_has_failed_is_not_kept() {
        let source = FnSource(|| async { Err("a deliberate error".into()) });
        let config = SourceConfig::new(Arc::new(source), SourceMode::AddOnly, Duration::from_secs(3600));
        let node = Node::builder(MemoryStore::new()).source(config).build().unwrap();
        let shared = &node.handle.shared;
        let mut source_reader = SourceReader::new(shared);
        source_reader.begin(shared);
        // It fails at its first step.
        tokio::task::yield_now().await;
        let changes = vec![Change::KeyGone(Key::new("k").unwrap())];
        source_reader.note(&Batch { revision: Revision(1), changes });
        assert!(source_reader.ended.1.is_empty());
    }
}
