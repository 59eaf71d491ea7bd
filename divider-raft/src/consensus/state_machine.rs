//! The replicated state: the ledgers of all groups, at one entry of the log.
//!
//! Nothing here is on disk but the snapshot: after a restart the log is applied again from there. What applying an entry
//! means for those who listen (the hints) and for the beats that a leader keeps happens in the same place, so
//! that the three never disagree about the order of things.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use divider_core::{Applied, Frozen, Group, Key, Ledger, Op, Refusal, Revision, SessionId, Term, Token};
use openraft::{EntryPayload, RaftSnapshotBuilder, Snapshot, StorageIOError, storage::RaftStateMachine};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{
    consensus::{
        beats::SessionBeats,
        checksum::{Checksums, EntryDigest},
        log::Log,
        snapshots::{self, Snapshots},
        subscribers::Subscribers,
    },
    environment::DataDir,
    protocol::{
        command::{Done, Reply, Step},
        messages::Owner,
        snapshot::{ReceivedSnapshot, SnapshotContent, SnapshotData, SnapshotMeta},
        types::{Entry, LogId, Membership, StorageError, Types},
    },
};

/// The latest that a clock is believed, in microseconds: nine thousand years leave room for whatever is counted from there.
const LATEST: u64 = 1 << 58;

/// How long a member waits before it tries again to write a snapshot, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// The ledgers, and what goes with them on this member.
#[derive(Debug)]
pub(crate) struct StateMachine {
    state: RwLock<State>,
    /// Index of the last entry that was applied; readers wait on it.
    applied: watch::Sender<u64>,
    snapshots: Snapshots,
    checksums: Checksums,
    /// The format that the cluster is written in, as far as this member has come; 0 before the first entry that has one.
    written: Arc<AtomicU8>,
    /// What this member lets a cluster begin in, once it has; 0 before.
    begun: AtomicU8,
    /// This replica is not what the others are: nobody is told of what is in it.
    differs: AtomicBool,
    #[cfg(test)]
    trips: AtomicBool,
    pub(crate) beats: SessionBeats,
    pub(crate) subscribers: Subscribers,
}

#[derive(Debug)]
pub(super) struct State {
    applied: Option<LogId>,
    membership: Membership,
    groups: BTreeMap<Group, Ledger>,
    /// See [`StateMachine::written`].
    written: u8,
    /// Over all that was applied; see [`Checksums`]. `None` where that is not known.
    sum: Option<u64>,
    digest: EntryDigest,
}

impl Default for State {
    fn default() -> Self {
        SnapshotContent { sum: Some(0), ..SnapshotContent::default() }.into()
    }
}

impl From<SnapshotContent> for State {
    fn from(SnapshotContent { format, meta, sum, groups }: SnapshotContent) -> Self {
        let membership = meta.last_membership;
        Self { applied: meta.last_log_id, membership, groups, written: format, sum, digest: EntryDigest::default() }
    }
}

/// What listeners are to be told of a step: whose it was, what changed, and whether the group has lost its leader by it.
type Heard = (Group, divider_core::Effects, bool);

impl State {
    /// Applies an entry. What it did is told to `applied`, step by step.
    fn apply(
        &mut self,
        entry: Entry,
        mut applied: impl FnMut(u64, &Step, &Done, &Ledger),
        heard: &mut Vec<Heard>,
    ) -> Reply {
        let Self { groups, digest, .. } = self;
        let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
        let reply = match entry.payload {
            EntryPayload::Blank => Reply::default(),
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(entry.log_id), membership);
                Reply::default()
            }
            EntryPayload::Normal(command) => {
                let body = &*command.0;
                let clock = body.clock().min(LATEST);
                self.written = self.written.max(body.format());
                let steps = body.steps().iter().map(|step| {
                    let group = step.group();
                    let ledger = match groups.get_mut(group) {
                        Some(ledger) => ledger,
                        None => {
                            let ledger = groups.entry(group.clone()).or_default();
                            if body.holds() {
                                heard.push((group.clone(), ledger.new_lineage(), false));
                            }
                            ledger
                        }
                    };
                    let led = ledger.group().leader;
                    let begun = begun(ledger, clock);
                    let token = Token(index.max(begun).max(clock));
                    let (done, effects) = one(ledger, step, token, begun, body.raft_term() == term);
                    applied(term, step, &done, ledger);
                    digest.step(&done, ledger);
                    heard.push((group.clone(), effects, led.is_some() && ledger.group().leader.is_none()));
                    done
                });
                Reply(steps.collect())
            }
        };
        self.applied = Some(entry.log_id);
        self.sum = self.sum.map(|sum| self.digest.end(sum, entry.log_id));
        reply
    }
}

impl State {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: self.applied.map_or_else(String::new, |log| log.to_string()),
        }
    }

    /// As it is at the moment, to be written while entries are applied.
    fn freeze(&mut self) -> SnapshotContent<Frozen> {
        let groups = self.groups.iter_mut().map(|(group, ledger)| (group.clone(), ledger.freeze())).collect();
        SnapshotContent { format: self.written, meta: self.meta(), sum: self.sum, groups }
    }
}

/// What a group's next term is above: the term before, and for the first one the clock of whoever proposed it. Tokens are above
/// that clock always. So all numbers are above those of an earlier life whose disks were all lost, and tokens above all that
/// the disks have forgotten where older copies of them were put back: whoever compares tokens refuses no new owner, and takes
/// nothing from one that was forgotten.
fn begun(ledger: &Ledger, clock: u64) -> u64 {
    match ledger.group().term {
        Term(0) => clock,
        Term(term) => term,
    }
}

impl StateMachine {
    pub(crate) fn new(snapshots: Snapshots, loaded: Option<SnapshotContent>) -> Arc<Self> {
        let state = loaded.map_or_else(State::default, State::from);
        let index = state.applied.map_or(0, |log| log.index);
        Arc::new(Self {
            written: Arc::new(AtomicU8::new(state.written)),
            begun: AtomicU8::default(),
            state: RwLock::new(state),
            applied: watch::Sender::new(index),
            snapshots,
            checksums: Checksums::default(),
            differs: AtomicBool::new(false),
            #[cfg(test)]
            trips: AtomicBool::new(false),
            beats: SessionBeats::default(),
            subscribers: Subscribers::default(),
        })
    }

    /// Looks at a group's ledger. A group that nobody has named yet is an empty one.
    pub(crate) fn with<T>(&self, group: &Group, look: impl FnOnce(&Ledger) -> T) -> T {
        let state = self.state.read();
        match state.groups.get(group) {
            Some(ledger) => look(ledger),
            None => look(&Ledger::new()),
        }
    }

    /// Whether one of these steps begins a group, as far as this member has come.
    pub(crate) fn begins(&self, steps: &[Step]) -> bool {
        let state = self.state.read();
        steps.iter().any(|step| !state.groups.contains_key(step.group()))
    }

    /// Who owns a key, as far as this member has come.
    #[inline]
    pub(crate) fn owner(&self, group: &Group, key: &Key) -> Option<Owner> {
        if self.differs() {
            return None;
        }
        owner(self.state.read().groups.get(group)?, key)
    }

    /// Whether it is decided that somebody is a member. A leader that writes so may be replaced before it is.
    pub(crate) fn is_member(&self, id: u64) -> bool {
        self.state.read().membership.membership().get_node(&id).is_some()
    }

    /// The newest format that all members read, by what has been decided about them.
    pub(crate) fn members_read(&self) -> Option<u8> {
        self.state.read().membership.membership().nodes().map(|(_, peer)| peer.reads).min()
    }

    /// The format that the cluster is written in, as far as this member has come; 0 before the first entry that has one.
    pub(crate) fn written(&self) -> u8 {
        self.written.load(Ordering::Relaxed)
    }

    /// The same, kept up to date.
    pub(crate) fn written_shared(&self) -> Arc<AtomicU8> {
        self.written.clone()
    }

    /// In which format a leader writes, where its members read this one: the cluster's, or for the first entries one that is
    /// never raised again, so that it is known to whoever takes a member in.
    pub(crate) fn writes(&self, reads: u8) -> u8 {
        if let written @ 1.. = self.written() {
            return written;
        }
        let begun = self.begun.compare_exchange(0, reads, Ordering::Relaxed, Ordering::Relaxed);
        begun.map_or_else(|begun| begun.min(reads), |_| reads)
    }

    /// What a newcomer must read, where the members read this one.
    pub(crate) fn needs(&self, reads: u8) -> u8 {
        match (self.written(), self.begun.load(Ordering::Relaxed)) {
            (0, 0) => reads,
            (0, begun) => begun,
            (written, _) => written,
        }
    }

    /// Who leads which group.
    pub(crate) fn leaders(&self) -> Vec<(Group, SessionId, Term)> {
        let state = self.state.read();
        let led = |(group, ledger): (&Group, &Ledger)| {
            let held = ledger.group();
            held.leader.map(|leader| (group.clone(), leader, held.term))
        };
        state.groups.iter().filter_map(led).collect()
    }

    /// Waits until the entry at `index` has been applied here. Cancel safe.
    pub(crate) async fn reached(&self, index: u64) {
        // The sender lives as long as `self`.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= index).await;
    }

    /// Whether all that was decided before a term has been applied here, and something of that term.
    pub(crate) fn entered(&self, term: u64) -> bool {
        self.state.read().applied.is_some_and(|log| log.leader_id.term == term)
    }

    /// What has been applied, for comparison with another member.
    pub(crate) fn encoded(&self) -> Option<(u64, Vec<u8>)> {
        let mut content = self.freeze();
        let last = std::mem::take(&mut content.meta).last_log_id?;
        Some((last.index, content.encode().ok()?))
    }

    /// Nobody waits for longer than this takes, a few milliseconds for a million keys, however long it is kept and written.
    fn freeze(&self) -> SnapshotContent<Frozen> {
        self.state.write().freeze()
    }

    /// The newest index at which all members note their numbers, and this one's; see [`Checksums`].
    pub(crate) fn sum(&self) -> Option<(u64, u64)> {
        self.checksums.newest()
    }

    /// This member's number at an index, if it is known.
    pub(crate) fn sum_at(&self, index: u64) -> Option<u64> {
        self.checksums.at(index)
    }

    /// Whether this replica is known to be another one than the others'.
    pub(crate) fn differs(&self) -> bool {
        self.differs.load(Ordering::Relaxed)
    }

    /// It is.
    pub(crate) fn set_differs(&self) {
        self.differs.store(true, Ordering::Relaxed);
    }

    /// As if this replica had applied something else.
    #[cfg(test)]
    pub(crate) fn distort(&self) {
        let mut state = self.state.write();
        state.sum = state.sum.map(|sum| !sum);
    }

    /// The next entry panics, in the task in which openraft has them applied.
    #[cfg(test)]
    pub(crate) fn trip(&self) {
        self.trips.store(true, Ordering::Relaxed);
    }

    pub(crate) fn data_dir(&self) -> &DataDir {
        self.snapshots.data_dir()
    }

    /// Somewhere to gather a snapshot that comes in.
    pub(crate) fn receive(&self) -> std::io::Result<snapshots::Spool> {
        self.snapshots.spool()
    }

    /// Index of the last entry in the newest snapshot.
    pub(crate) fn snapshot_index(&self) -> Option<u64> {
        self.snapshot_end().map(|log| log.index)
    }

    /// The last entry in the newest snapshot.
    pub(crate) fn snapshot_end(&self) -> Option<LogId> {
        self.snapshots.current().and_then(|(meta, _)| meta.last_log_id)
    }

    pub(super) fn apply(&self, entries: impl Iterator<Item = Entry>) -> Vec<Reply> {
        let mut heard = Vec::new();
        let mut index = 0;
        let mut state = self.state.write();
        #[cfg(test)]
        assert!(!self.trips.swap(false, Ordering::Relaxed), "it was to trip");
        let replies = entries.map(|entry| {
            index = entry.log_id.index;
            let told = |term, step: &Step, done: &Done, ledger: &Ledger| {
                self.beats.applied(term, step.group(), step, done, ledger);
            };
            let reply = state.apply(entry, told, &mut heard);
            state.sum.inspect(|sum| self.checksums.note(index, *sum));
            reply
        });
        let replies = replies.collect();
        self.written.store(state.written, Ordering::Relaxed);
        drop(state);
        // Hints go out before the caller has its answer, so that whoever was asked after it cannot be told later.
        for (group, effects, leader_gone) in heard {
            self.subscribers.tell(&group, effects, leader_gone);
        }
        self.applied.send_replace(index);
        replies
    }

    /// Puts a snapshot in the place of all that there was, and gives that back: to drop a million keys takes a while. Blocks on
    /// the disk.
    fn install(&self, ReceivedSnapshot { content, kept }: ReceivedSnapshot) -> std::io::Result<State> {
        self.snapshots.adopt(content.meta.clone(), kept)?;
        let index = content.meta.last_log_id.map_or(0, |log| log.index);
        let old = {
            let mut state = self.state.write();
            self.checksums.clear();
            self.written.store(content.format, Ordering::Relaxed);
            std::mem::replace(&mut *state, content.into())
        };
        self.beats.snapshot_installed();
        // Nobody knows what happened in between.
        self.subscribers.gap();
        self.applied.send_replace(index);
        Ok(old)
    }

    /// Makes a snapshot of all that has been applied. Blocks on the disk, while entries go on being applied.
    pub(crate) fn build(&self) -> std::io::Result<(SnapshotMeta, SnapshotData)> {
        let content = self.freeze();
        let kept = self.snapshots.write(&content)?;
        self.snapshots.adopt(content.meta, kept)
    }
}

/// The living owner of a key.
#[inline]
pub(crate) fn owner(ledger: &Ledger, key: &Key) -> Option<Owner> {
    let (view, token) = ledger.owner(key)?;
    Some(Owner { node: view.node.clone(), session: view.session, token })
}

/// Applies one step, of the entry at `index`. `same_term` says that beats could not move between their comparison and this
/// entry; tokens are above `floor`, and terms above what has [`begun`].
fn one(ledger: &mut Ledger, step: &Step, floor: Token, begun: u64, same_term: bool) -> (Done, divider_core::Effects) {
    match step {
        Step::Apply { ops, .. } => {
            let effects = ledger.apply_checked(ops, floor, |op| match op {
                Op::Expire { .. } if !same_term => Err(Refusal::StillBeating),
                _ => Ok(()),
            });
            let Revision(revision) = ledger.revision();
            (Done::Applied(Applied { outcomes: effects.outcomes.clone(), revision: Revision(revision) }), effects)
        }
        Step::Lead { session, over, .. } if ledger.group().term == *over => {
            let (_, effects) = ledger.lead(*session, Term(begun));
            (Done::Looked, effects)
        }
        Step::Lead { .. } => (Done::Looked, divider_core::Effects::default()),
        Step::Resign { session, term, .. } => (Done::Looked, ledger.resign(*session, *term)),
    }
}

/// The machine, as openraft drives it.
#[derive(Clone, Debug)]
pub(crate) struct StateMachineHandle {
    pub(crate) machine: Arc<StateMachine>,
    pub(crate) log: Log,
}

fn storage(error: &(impl std::error::Error + 'static)) -> StorageError {
    StorageIOError::write_snapshot(None, openraft::AnyError::new(error)).into()
}

impl RaftStateMachine<Types> for StateMachineHandle {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let state = self.machine.state.read();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        // openraft counts this member's own copy as soon as the log has it in memory.
        let last = entries.last().map_or(0, |entry| entry.log_id.index);
        let failed = |error| StorageError::from(StorageIOError::read_logs(openraft::AnyError::new(&error)));
        self.log.durable(last).await.map_err(failed)?;
        // A panic would end the task in which this runs, and openraft would hear of that at the next entry only.
        let applied = catch_unwind(AssertUnwindSafe(|| self.machine.apply(entries.into_iter())));
        applied.map_err(|_| failed(std::io::Error::other("an entry could not be applied: see the panic")))
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        // Snapshots are received by `network.rs`, whole.
        Ok(Box::new(SnapshotData::Memory(Arc::default())))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: Box<SnapshotData>) -> Result<(), StorageError> {
        let (machine, meta, log) = (self.machine.clone(), meta.clone(), self.log.clone());
        let install = move || -> std::io::Result<State> {
            // Nobody else opens the directory before this is done, whoever has given up waiting for it.
            let _in_use = log;
            let received = match *data {
                SnapshotData::Received(received) => received.lock().take().ok_or("it was installed already".to_owned()),
                // Only suites hand on what they have not received.
                data => {
                    let mut spool = machine.receive()?;
                    spool.write(0, data.read()?)?;
                    spool.finish()?.check(&meta)
                }
            };
            machine.install(received.map_err(std::io::Error::other)?)
        };
        let done = self.machine.data_dir().blocking(install).await;
        let done = done.map_err(std::io::Error::other).flatten();
        // Whoever purges waits for it.
        self.log.snapshot_is_kept(match &done {
            Ok(_) => Ok(self.machine.snapshot_index().unwrap_or(0)),
            Err(error) => Err(error.to_string()),
        });
        let old = done.map_err(|error| storage(&error))?;
        self.machine.data_dir().environment.blocking(Box::new(move || drop(old)));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        let current = self.machine.snapshots.current();
        Ok(current.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(data) }))
    }
}

impl RaftSnapshotBuilder<Types> for StateMachineHandle {
    /// A disk that is full for a while costs nothing but the place of the log, so this goes on until it can be written.
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let mut pause = PAUSE.0;
        loop {
            if self.log.is_closed() {
                return Err(storage(&std::io::Error::other("the log is closed")));
            }
            let (machine, log) = (self.machine.clone(), self.log.clone());
            let build = move || {
                // As above.
                let _in_use = log;
                machine.build()
            };
            let built = self.machine.data_dir().blocking(build).await;
            let error = match built.map_err(std::io::Error::other).flatten() {
                Ok((meta, data)) => {
                    self.log.snapshot_is_kept(Ok(meta.last_log_id.map_or(0, |log| log.index)));
                    return Ok(Snapshot { meta, snapshot: Box::new(data) });
                }
                Err(error) => error,
            };
            tracing::warn!(target: "divider::raft", %error, ?pause, "a snapshot could not be written; it is tried again");
            // Nobody else can open the directory as long as this waits, and whose log is broken ends.
            if tokio::time::timeout(pause, self.log.broken()).await.is_ok() {
                return Err(storage(&std::io::Error::other("nothing is written any more")));
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
