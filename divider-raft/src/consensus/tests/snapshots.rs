//! Snapshots that are sent while newer ones are made, that are not what was announced, and that differ.

use std::{path::Path, sync::Arc};

use divider_core::{Group, Ledger, NodeId, Op, Revision, SessionId, Store, StoreError, Term, Token, Work};
use openraft::{
    RaftLogReader, RaftSnapshotBuilder,
    storage::{RaftLogStorageExt, RaftStateMachine},
};
use tempfile::TempDir;

use crate::{
    Data, RaftStore,
    consensus::{
        inbound::gap,
        log::{
            Log,
            records::{Stored, seal, unseal},
        },
        snapshots::Snapshots,
        state_machine::{StateMachine, StateMachineHandle},
        tests::storage,
    },
    environment::DataDir,
    error::{DataError, Unreadable},
    protocol::{
        command::{Body, Command, Step},
        snapshot::{SnapshotContent, SnapshotData, decode},
        types::{Entry, LogId, StorageError, Types, Vote},
    },
    tests::{
        small_disk::SmallDisk,
        voters::{addresses, voters},
    },
};

fn group() -> Group {
    Group::new("/g/").unwrap()
}

fn at(index: u64, steps: Vec<Step>) -> Entry {
    Entry {
        log_id: LogId::new(openraft::CommittedLeaderId::new(1, 1), index),
        payload: openraft::EntryPayload::Normal(Command(Arc::new(Body::V2 { raft_term: 1, clock: 5_000_000, steps }))),
    }
}

fn ops(index: u64, ops: Vec<Op>) -> Entry {
    at(index, vec![Step::Apply { group: group(), ops }])
}

fn join(session: SessionId, node: &str) -> Op {
    let node = NodeId::new(node).unwrap();
    Op::Join {
        session,
        node,
        affinity: 1000,
        capacity: None,
        lease_ms: 3000,
        seen: Revision(0),
        reads: divider_core::format::NEWEST,
    }
}

fn add(index: u64) -> Entry {
    ops(index, vec![Op::Add(Work::new(format!("key-{index}")).unwrap())])
}

/// A member that has a snapshot of its first entries.
async fn member(directory: &TempDir, entries: u64) -> (Log, StateMachineHandle) {
    let (log, mut handle) = storage::build(Some(directory.path().to_owned())).await;
    handle.apply((1..=entries).map(add).collect::<Vec<_>>()).await.unwrap();
    if entries > 0 {
        handle.build_snapshot().await.unwrap();
    }
    (log, handle)
}

/// As it goes over the wire, into a member that has nothing.
async fn send(
    from: &openraft::Snapshot<Types>,
    to: &mut StateMachineHandle,
) -> Result<Result<(), StorageError>, String> {
    let mut spool = to.machine.receive().unwrap();
    spool.write(0, from.snapshot.read().unwrap()).unwrap();
    let received = spool.finish().unwrap().check(&from.meta)?;
    let data = SnapshotData::Received(Arc::new(parking_lot::Mutex::new(Some(received))));
    Ok(to.install_snapshot(&from.meta, Box::new(data)).await)
}

#[tokio::test]
async fn a_snapshot_that_is_sent_while_newer_ones_are_made_stays_the_one_that_was_announced() {
    for in_memory in [false, true] {
        let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let data_dir = |at: usize| (!in_memory).then(|| directories[at].path().to_owned());
        let (_logs, mut leader) = storage::build(data_dir(0)).await;
        let (_log, mut follower) = storage::build(data_dir(1)).await;
        leader.apply((1..=3).map(add).collect::<Vec<_>>()).await.unwrap();
        leader.build_snapshot().await.unwrap();
        // What a sender holds while it greets the follower.
        let taken = leader.get_current_snapshot().await.unwrap().unwrap();
        for index in 4..=8 {
            leader.apply([add(index)]).await.unwrap();
            leader.build_snapshot().await.unwrap();
        }
        send(&taken, &mut follower).await.unwrap().unwrap();
        assert_eq!(follower.applied_state().await.unwrap().0, Some(add(3).log_id));
        follower.apply((4..=8).map(add).collect::<Vec<_>>()).await.unwrap();
        assert!(leader.machine.encoded() == follower.machine.encoded(), "in memory: {in_memory}");
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_what_was_announced_is_refused_and_changes_nothing() {
    let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (_log, mut leader) = member(&directories[0], 5).await;
    let (_log, mut follower) = member(&directories[1], 0).await;
    let mut snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    snapshot.meta.last_log_id = Some(add(4).log_id);
    let problem = send(&snapshot, &mut follower).await.unwrap_err();
    assert!(problem.contains("was announced"), "{problem}");
    assert_eq!(follower.applied_state().await.unwrap().0, None);
    assert_eq!(follower.machine.snapshot_index(), None);
    assert_eq!(parts(directories[1].path()), Vec::<String>::new());
}

fn parts(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("snapshot.")).collect()
}

#[tokio::test]
async fn a_snapshot_that_begins_leaves_alone_the_one_that_is_being_installed() {
    let directories = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (_log, mut leader) = member(&directories[0], 10).await;
    let (_log, mut follower) = member(&directories[1], 0).await;
    let snapshot = leader.get_current_snapshot().await.unwrap().unwrap();
    let mut first = follower.machine.receive().unwrap();
    first.write(0, snapshot.snapshot.read().unwrap()).unwrap();
    let whole = first.finish().unwrap();
    // The next leader begins, or whoever wants to.
    let mut second = follower.machine.receive().unwrap();
    second.write(0, vec![0; 10]).unwrap();
    let received = whole.check(&snapshot.meta).unwrap();
    let data = SnapshotData::Received(Arc::new(parking_lot::Mutex::new(Some(received))));
    follower.install_snapshot(&snapshot.meta, Box::new(data)).await.unwrap();
    assert!(leader.machine.encoded() == follower.machine.encoded());
    drop(second);
    let (_, found) = Snapshots::open(directories[1].path().into()).unwrap();
    assert_eq!(found.unwrap().meta, snapshot.meta);
    assert_eq!(parts(directories[1].path()), Vec::<String>::new());
}

#[test]
fn what_is_left_of_snapshots_that_were_not_finished_is_removed_at_the_start() {
    let directory = TempDir::new().unwrap();
    for name in ["snapshot.3.part", "snapshot.new", "snapshot.receiving"] {
        std::fs::write(directory.path().join(name), "cut").unwrap();
    }
    let (_, found) = Snapshots::open(directory.path().into()).unwrap();
    assert_eq!(found, None);
    assert_eq!(parts(directory.path()), Vec::<String>::new());
}

#[test]
fn entries_with_a_hole_are_refused_before_raft_sees_them() {
    let log = |term, index| LogId::new(openraft::CommittedLeaderId::new(term, 1), index);
    let entry = |log_id| Entry { log_id, payload: openraft::EntryPayload::Blank };
    let gap = |before, entries: &[LogId]| {
        let entries = entries.iter().copied().map(entry).collect();
        let vote = Vote::new_committed(9, 1);
        gap(&openraft::raft::AppendEntriesRequest { vote, prev_log_id: before, entries, leader_commit: None })
    };
    assert_eq!(gap(None, &[log(0, 0), log(1, 1)]), None);
    assert_eq!(gap(Some(log(1, 7)), &[log(1, 8), log(2, 9), log(2, 10)]), None);
    assert_eq!(gap(Some(log(1, 7)), &[]), None);
    assert!(gap(None, &[log(1, 5)]).is_some());
    assert!(gap(Some(log(1, 7)), &[log(1, 9)]).is_some());
    assert!(gap(Some(log(1, 7)), &[log(1, 8), log(1, 12)]).is_some());
    assert!(gap(Some(log(3, 7)), &[log(2, 8)]).is_some(), "terms do not fall");
}

#[test]
fn what_a_newer_version_wrote_is_refused_and_not_called_damaged() {
    #[derive(serde::Serialize, serde::Deserialize, Debug)]
    struct Later(u8);
    impl Stored for Later {
        fn format(&self) -> u8 {
            200
        }
    }
    let sealed = seal(b"vote", &Later(1)).unwrap();
    assert_eq!(unseal::<Vote>(b"vote", &sealed).unwrap_err(), Unreadable::Newer { found: 200, known: 2 });

    let directory = TempDir::new().unwrap();
    let mut bytes = SnapshotContent::<Ledger>::default().encode().unwrap();
    bytes.truncate(bytes.len() - 8);
    bytes[7] = 9;
    bytes.extend(xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes());
    std::fs::write(directory.path().join("snapshot"), &bytes).unwrap();
    let error = Snapshots::open(directory.path().into()).unwrap_err();
    assert!(matches!(error, DataError::Newer { found: 9, known: 2, .. }), "{error}");
    assert!(error.to_string().contains("newer version"), "{error}");
}

#[tokio::test]
async fn what_was_written_after_a_step_is_newer_to_an_old_program_and_not_damaged() {
    let old = |directory: &TempDir| DataDir { reads: 1, ..directory.path().into() };
    let open = |data_dir: &DataDir| Log::open(data_dir, || unreachable!("it is not a new one"));
    let directory = TempDir::new().unwrap();
    let append = async |log: &mut Log, entry: Entry| {
        log.blocking_append([entry]).await.unwrap();
        log.close();
    };
    let before = Body::V1 { raft_term: 1, steps: Vec::new() };
    let before = Entry { payload: openraft::EntryPayload::Normal(Command(Arc::new(before))), ..add(0) };
    append(&mut member(&directory, 0).await.0, before).await;
    append(&mut open(&old(&directory)).unwrap().0, add(1)).await;
    let error = open(&old(&directory)).unwrap_err();
    assert!(matches!(error, DataError::Newer { found: 2, known: 1, .. }), "{error}");
    let (mut log, _) = open(&directory.path().into()).unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 2, "nothing has come of it");
    log.close();

    let directory = TempDir::new().unwrap();
    for (format, is_read) in [(1, true), (2, false)] {
        let bytes = SnapshotContent::<Ledger> { format, ..SnapshotContent::default() }.encode().unwrap();
        std::fs::write(directory.path().join("snapshot"), &bytes).unwrap();
        assert_eq!(Snapshots::open(old(&directory)).is_ok(), is_read);
    }
    let error = Snapshots::open(old(&directory)).unwrap_err();
    assert!(matches!(error, DataError::Newer { found: 2, known: 1, .. }), "{error}");
    let (_, content) = Snapshots::open(directory.path().into()).unwrap();
    assert_eq!(content.unwrap().format, 2);
}

#[test]
fn an_entry_is_in_the_oldest_format_that_can_say_it() {
    let first = Body::V1 { raft_term: 1, steps: Vec::new() };
    let payload = openraft::EntryPayload::Normal(Command(Arc::new(first)));
    let first = Entry { payload, ..add(1) };
    assert_eq!((first.format(), add(1).format()), (1, 2));
    for entry in [first, add(1)] {
        assert_eq!(unseal::<Entry>(b"1", &seal(b"1", &entry).unwrap()).unwrap(), entry);
    }
}

#[test]
fn the_numbers_of_members_are_one_as_long_as_their_histories_are() {
    let directories = [(); 3].map(|()| TempDir::new().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let sums = directories.each_ref().map(|directory| {
        runtime.block_on(async {
            let (_log, mut handle) = member(directory, 0).await;
            handle.apply((1..=31).map(add).collect::<Vec<_>>()).await.unwrap();
            handle
        })
    });
    let [mut one, mut two, mut other] = sums;
    let session = SessionId::fresh();
    runtime.block_on(async {
        for handle in [&mut one, &mut two] {
            handle.apply([ops(32, vec![join(session, "n")])]).await.unwrap();
        }
        other.apply([ops(32, vec![join(session, "n"), join(session, "n")])]).await.unwrap();
    });
    let sum = |handle: &StateMachineHandle| handle.machine.sum_at(32).unwrap();
    assert_eq!(sum(&one), sum(&two));
    assert_ne!(sum(&one), sum(&other));
    assert_eq!(one.machine.sum_at(31), None, "not noted");
}

/// As one that all lost their disks and founded anew.
#[tokio::test]
async fn tokens_and_terms_of_a_new_life_are_above_those_of_the_one_before() {
    let mut last = (Token(0), Term(0));
    for _ in 0..2 {
        let before = crate::environment::Environment::clock(&crate::environment::ThisMachine);
        let store = RaftStore::builder(Data::Memory, Group::new("/test/").unwrap()).build().unwrap();
        store.open().await.unwrap();
        let session = SessionId::fresh();
        store.apply(&[join(session, "node"), Op::Add(Work::new("k").unwrap())]).await.unwrap();
        let reply = store.poll(session, divider_core::Claim::Take { stale: None }).await.unwrap();
        let term = match reply.leader {
            Some(leader) => leader.term,
            None => store.poll(session, divider_core::Claim::Follow).await.unwrap().leader.unwrap().term,
        };
        let key = divider_core::Key::new("k").unwrap();
        let applied = store.apply(&[Op::Assign { term, key, session }]).await.unwrap();
        let [divider_core::Outcome::Granted(token)] = applied.outcomes[..] else { panic!("{:?}", applied.outcomes) };
        assert!(token.0 > before && term.0 > before, "{token:?} {term:?} {before}");
        assert!(token > last.0 && term > last.1);
        last = (token, term);
        store.close().await;
    }
}

/// A token that a store of one member gives to a new session.
async fn granted(store: &RaftStore, key: &str) -> Token {
    let session = SessionId::fresh();
    store.apply(&[join(session, key), Op::Add(Work::new(key).unwrap())]).await.unwrap();
    let mut claim = divider_core::Claim::Take { stale: None };
    loop {
        let reply = store.poll(session, claim).await.unwrap();
        let key = divider_core::Key::new(key).unwrap();
        match reply.leader {
            Some(leader) => {
                let applied = store.apply(&[Op::Assign { term: leader.term, key, session }]).await.unwrap();
                let [divider_core::Outcome::Granted(token)] = applied.outcomes[..] else { panic!("{applied:?}") };
                return token;
            }
            None => claim = divider_core::Claim::Take { stale: None },
        }
    }
}

#[tokio::test]
async fn tokens_after_an_older_directory_was_put_back_are_above_all_that_were_given() {
    let directory = TempDir::new().unwrap();
    let backup = TempDir::new().unwrap();
    let open = async || {
        let builder = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("alone").unwrap();
        let store = builder.build().unwrap();
        store.open().await.unwrap();
        store
    };
    let store = open().await;
    granted(&store, "first").await;
    store.close().await;
    storage::copy(directory.path(), backup.path());
    let store = open().await;
    let forgotten = granted(&store, "second").await;
    store.close().await;
    storage::put_back(backup.path(), directory.path());
    let store = open().await;
    let next = granted(&store, "third").await;
    assert!(next > forgotten, "{next:?} after {forgotten:?}");
    store.close().await;
}

#[tokio::test]
async fn a_clock_that_shows_the_end_of_time_leaves_room_for_tokens_and_terms() {
    let directory = TempDir::new().unwrap();
    let (_log, mut handle) = member(&directory, 0).await;
    let session = SessionId::fresh();
    let at = |index, step: Step| Entry {
        log_id: LogId::new(openraft::CommittedLeaderId::new(1, 1), index),
        payload: openraft::EntryPayload::Normal(Command(Arc::new(Body::V2 {
            raft_term: 1,
            clock: u64::MAX,
            steps: vec![step],
        }))),
    };
    let ops = |ops| Step::Apply { group: group(), ops };
    let work = || Op::Add(Work::new("k").unwrap());
    let lead = Step::Lead { group: group(), session, over: Term(0) };
    handle.apply([at(1, ops(vec![join(session, "n"), work()])), at(2, lead)]).await.unwrap();
    let term = handle.machine.with(&group(), |ledger| ledger.group().term);
    let key = divider_core::Key::new("k").unwrap();
    let assign = ops(vec![Op::Assign { term, key, session }]);
    let replies = handle.apply([at(3, assign)]).await.unwrap();
    let crate::protocol::command::Done::Applied(applied) = &replies[0].0[0] else { panic!("{replies:?}") };
    let [divider_core::Outcome::Granted(token)] = applied.outcomes[..] else { panic!("{applied:?}") };
    assert!(token.0 > 1 << 50 && token.0 < 1 << 62 && term.0 < 1 << 62, "{token:?} {term:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_found_and_stops_and_tells_nobody_who_owns_what() {
    let (stores, _) = voters(3).await;
    let follower = stores.iter().position(|store| !store.leads_raft()).unwrap();
    let well = stores.iter().position(RaftStore::leads_raft).unwrap();
    stores[follower].distort();
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut key = 0;
    while !stores[follower].is_stopped() {
        assert!(std::time::Instant::now() < limit, "nobody noticed");
        key += 1;
        // Other tests of this process hold up all disks for a while.
        let _ = stores[well].apply(&[Op::Add(Work::new(format!("k{key}")).unwrap())]).await;
    }
    assert!(stores.iter().enumerate().all(|(at, store)| (at == follower) == store.is_stopped()));
    while stores[well].apply(&[Op::Add(Work::new("after").unwrap())]).await.is_err() {
        assert!(std::time::Instant::now() < limit, "the others went on");
    }
}

/// Its name is another member's until that is removed: it is not taken in meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_on_as_a_client_until_its_member_is_taken_in_again() {
    let (stores, _) = voters(3).await;
    let at = stores.iter().position(|store| !store.leads_raft()).unwrap();
    let (store, id) = (&stores[at], stores[at].me().unwrap().id);
    store.trip(false);
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let work = |key: u64| [Op::Add(Work::new(format!("k{key}")).unwrap())];
    let mut key = 0;
    while !matches!(store.condition(), crate::Condition::Stopped(_)) {
        assert!(std::time::Instant::now() < limit, "it stops");
        key += 1;
        let _ = stores[(at + 1) % 3].apply(&work(key)).await;
    }
    // It lost its memory, and so its id; it is tried to be opened again meanwhile.
    let began = std::time::Instant::now();
    while began.elapsed().as_millis() < 1500 {
        store.apply(&work(key)).await.unwrap();
        assert_ne!(store.condition(), crate::Condition::Member, "nobody has taken it in");
    }
    stores[(at + 1) % 3].remove_member(id).await.unwrap();
    while store.condition() != crate::Condition::Member {
        assert!(std::time::Instant::now() < limit, "it is taken in");
        store.apply(&work(key)).await.unwrap();
    }
    store.apply(&work(key)).await.unwrap();
}

/// What is wrong may be in its snapshot by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_found_to_differ_is_not_opened_again() {
    let seeds = addresses(3);
    let directory = TempDir::new().unwrap();
    let build = |at: usize| {
        let data = if at == 2 { directory.path().into() } else { Data::Memory };
        let builder = RaftStore::builder(data, Group::new("/test/").unwrap()).name(format!("node-{at}")).unwrap();
        builder.listen(&seeds[at]).seeds(&seeds).plaintext().build().unwrap()
    };
    let stores: Vec<_> = (0..3).map(build).collect();
    let opened = futures_util::future::join_all(stores.iter().map(|store| store.open())).await;
    opened.into_iter().for_each(Result::unwrap);
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let other = &stores[2];
    other.distort();
    other.snapshot().await;
    let mut key = 0;
    while !matches!(other.condition(), crate::Condition::Stopped(_)) {
        assert!(std::time::Instant::now() < limit, "nobody noticed");
        key += 1;
        let _ = stores[0].apply(&[Op::Add(Work::new(format!("k{key}")).unwrap())]).await;
    }
    let crate::Condition::Stopped(why) = other.condition() else { panic!("{:?}", other.condition()) };
    assert!(why.contains("differs"), "{why}");
    while stores[0].apply(&[Op::Add(Work::new("after").unwrap())]).await.is_err() {
        assert!(std::time::Instant::now() < limit, "the others went on");
    }
    assert!(other.stats().await.unwrap().registered > 0, "its process is a client of the others");
    other.close().await;
    let refused = loop {
        match build(2).open().await {
            Err(StoreError::Misconfigured(why)) if why.contains("in use") => {}
            opened => break opened,
        }
    };
    assert!(refused.unwrap_err().to_string().contains("differ"));
}

#[tokio::test]
#[allow(
    clippy::await_holding_lock,
    reason = "it stands for a disk, and those who wait for it have threads of their own"
)]
async fn entries_are_applied_while_a_snapshot_waits_for_its_disk_and_it_says_what_was_before_them() {
    let disk = SmallDisk::default();
    let machine = StateMachine::new(Snapshots::open(disk.data_dir()).unwrap().0, None);
    machine.apply((1..=20).map(add));
    let before = machine.encoded().unwrap();
    let mut asked = disk.asked();
    let held = disk.hold();
    let (building, applying) = (machine.clone(), machine.clone());
    let built = tokio::task::spawn_blocking(move || building.build());
    asked.changed().await.unwrap();
    let applied = tokio::task::spawn_blocking(move || applying.apply((21..=40).map(add)));
    let applied = tokio::time::timeout(std::time::Duration::from_secs(5), applied).await;
    assert_eq!(machine.snapshot_index(), None, "it still waits");
    drop(held);
    let (meta, data) = built.await.unwrap().unwrap();
    applied.expect("they waited for the snapshot").unwrap();
    let content = decode(&data.read().unwrap()).unwrap();
    assert_eq!((meta.last_log_id, &content.meta), (Some(add(20).log_id), &meta));
    let content = SnapshotContent { meta: Default::default(), ..content };
    assert!(content.encode().unwrap() == before.1);
    assert_eq!(machine.encoded().unwrap().0, 40);
}

#[test]
fn a_snapshot_that_cannot_be_written_says_what_the_disk_said() {
    for room in [0, 3, 9, 14] {
        let mut disk = vec![0; room];
        let error = SnapshotContent::<Ledger>::default().write(&mut &mut disk[..]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WriteZero, "room for {room} bytes: {error}");
    }
}

/// Large entries: few, and many bytes.
#[tokio::test]
async fn the_log_is_bounded_by_bytes_and_its_file_becomes_smaller() {
    let directory = TempDir::new().unwrap();
    let open =
        || RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name("alone").unwrap().build().unwrap();
    let store = open();
    store.open().await.unwrap();
    let work = |key: u64| Op::Add(Work::new(format!("k{}", key % 20)).unwrap().payload(vec![key as u8; 60_000]));
    for key in 0..600 {
        // Other tests of this process hold up all disks for a while.
        while store.apply(&[work(key)]).await.is_err() {}
    }
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let file = || std::fs::metadata(directory.path().join("log.redb")).unwrap().len();
    let bytes = || store.log_bytes();
    while bytes() > 1 << 20 || file() > 8 << 20 {
        assert!(std::time::Instant::now() < limit, "{} bytes of entries, {} of the file", bytes(), file());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    println!("36 MB were written; {} bytes of entries are left in {} of the file", bytes(), file());
    let before = store.replica().unwrap().1;
    store.close().await;
    let store = open();
    store.open().await.unwrap();
    assert_eq!(store.stats().await.unwrap().registered, 20);
    let groups = |bytes: &[u8]| decode(bytes).unwrap().groups;
    assert!(groups(&store.replica().unwrap().1) == groups(&before));
    store.close().await;
}

/// A content that is read is the one that was written, its number included.
#[test]
fn a_snapshot_carries_the_number_of_its_history() {
    let content = SnapshotContent { format: 1, sum: Some(7), ..SnapshotContent::default() };
    assert_eq!(decode(&content.encode().unwrap()).unwrap(), content);
}
