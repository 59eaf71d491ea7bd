//! Recorded bytes of everything that is on disk or on the wire, as the first version wrote it.
//!
//! A program of a later version must read them as they are: what fails here breaks rolling upgrades. New variants are
//! recorded by running the test with `DIVIDER_RECORD=1`, which only ever adds lines.

use std::{collections::BTreeMap, fmt::Debug, fmt::Write as _, path::Path, sync::Arc, time::Duration};

use divider_core::{
    Applied, Aside, Batch, Beat, Blame, Blob, Change, Claim, Cursor, Deaths, Declaration, Group, GroupView, Hint,
    Holding, Holdings, Key, KeyView, LeaderView, Ledger, Message, NodeId, Notice, Op, Outcome, Page, PollReply, Record,
    Refusal, Revision, SessionId, SessionView, State, Stats, StopReason, Term, Text, Token, Topic, Verdict, Work,
};
use openraft::{
    CommittedLeaderId, EntryPayload, Membership,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse},
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    consensus::log::records::{Identity, seal, unseal},
    net::wire::Frame,
    protocol::{
        command::{Body, Command, Done, Reply, Step},
        messages::{Answer, Call, Fault, Hello, Owner, Query, Request, Status, Welcome},
        peer::Peer,
        raft_messages::{RaftAnswer, RaftRequest},
        snapshot::{SnapshotContent, SnapshotMeta, decode},
        types::{Entry, LogId, Vote},
    },
};

const FILE: &str = "fixtures/v1.txt";

/// What is recorded, and what is there now.
struct Book {
    recorded: BTreeMap<String, String>,
    /// Lines that are not recorded yet.
    new: BTreeMap<String, String>,
    seen: usize,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

impl Book {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Self {
            recorded: lines.map(|(name, bytes)| (name.to_owned(), bytes.to_owned())).collect(),
            new: BTreeMap::new(),
            seen: 0,
        }
    }

    /// The bytes are the recorded ones.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        self.seen += 1;
        match self.recorded.get(name) {
            Some(recorded) => assert_eq!(*recorded, hex(bytes), "the bytes of {name} have changed"),
            None => _ = self.new.insert(name.to_owned(), hex(bytes)),
        }
    }

    /// The value is written as it was, and what was written is read as the value.
    fn value<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, value: &T) {
        let bytes = postcard::to_stdvec(value).unwrap();
        self.bytes(name, &bytes);
        let recorded = self.recorded.get(name).map_or(bytes, |recorded| unhex(recorded));
        assert_eq!(postcard::from_bytes::<T>(&recorded).unwrap(), *value, "{name}");
    }

    /// As [`value`](Self::value), for each, numbered.
    fn values<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, values: &[T]) {
        for (at, value) in values.iter().enumerate() {
            self.value(&format!("{name}.{at:02}"), value);
        }
    }

    fn close(self) {
        if !self.new.is_empty() && std::env::var_os("DIVIDER_RECORD").is_some() {
            let mut all = self.recorded;
            all.extend(self.new);
            let text = all.iter().fold(String::new(), |mut text, (name, bytes)| {
                let _ = writeln!(text, "{name} {bytes}");
                text
            });
            std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE), text).unwrap();
            return;
        }
        assert!(self.new.is_empty(), "not recorded: {:?}; run with DIVIDER_RECORD=1", self.new.keys());
        assert_eq!(self.recorded.len(), self.seen, "something that was recorded is no longer looked at");
    }
}

fn key() -> Key {
    Key::new("ключ").unwrap()
}

fn group() -> Group {
    Group::new("/g/").unwrap()
}

fn session() -> SessionId {
    SessionId(Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10))
}

fn node() -> NodeId {
    NodeId::new("node").unwrap()
}

fn peer() -> Peer {
    Peer { id: 0xfeed_face_cafe_beef, name: "a".into(), address: "h:1".into(), wants_vote: true, reads: 2 }
}

fn work() -> Work {
    Work::from(key()).weight(3).priority(-4).payload(*b"payload")
}

const TERM: Term = Term(300);
const TOKEN: Token = Token(70_000);

fn ops() -> Vec<Op> {
    let (session, key, term, token) = (session(), key(), TERM, TOKEN);
    vec![
        Op::Add(Work { not_before_ms: 1 << 40, ..work() }),
        Op::Remove { key: key.clone() },
        Op::Retry { key: key.clone() },
        Op::Rebalance,
        Op::Join {
            session,
            node: node(),
            affinity: 1000,
            capacity: Some(7),
            lease_ms: 3000,
            seen: Revision(1 << 20),
            reads: divider_core::format::NEWEST,
        },
        Op::SetAffinity { session, number: 2, affinity: 5 },
        Op::AlterAffinity { session, number: 3, delta: -6 },
        Op::Drain { session },
        Op::End { session },
        Op::Confirm { session, key: key.clone(), token, started: true },
        Op::GiveUp { session, key: key.clone(), token, generation: 2, pause_ms: 9, failures: 3, why: Text::new("why") },
        Op::complete(session, key.clone(), token),
        Op::Checkpoint { session, key: key.clone(), token, bytes: Blob::from(*b"bytes") },
        Op::Assign { term, key: key.clone(), session },
        Op::Revoke { term, key: key.clone(), token },
        Op::Force { term, key: key.clone(), token },
        Op::Expire { term, session, beat: Beat(8), verdict: divider_core::Verdict::NONE },
        Op::Quarantine { term, key: key.clone() },
        Op::Settle { term, session },
        Op::ResumeGrants { term },
        Op::SetAside { session, key: key.clone(), token, generation: 4, why: Text::new("why") },
        Op::Clear { term, key: key.clone(), blames_only: true },
        Op::Absolve { key, token },
        Op::Advance { term, elapsed_ms: 70 },
        Op::Step { term, format: 2 },
        Op::Add(work().how(Declaration::Once)),
        Op::Add(work().how(Declaration::Declare)),
        Op::Add(work().how(Declaration::Refresh)),
        Op::Expire { term, session, beat: Beat(8), verdict: Verdict::young(token) },
        Op::Expire { term, session, beat: Beat(8), verdict: blaming(Blame::Suspects(3)) },
        Op::Expire { term, session, beat: Beat(8), verdict: blaming(Blame::Only(token)) },
        Op::Sender { session, serial: 2 },
    ]
}

fn blaming(blame: Blame) -> Verdict {
    Verdict { healthy_below: Token(5), blame }
}

fn outcomes() -> Vec<Outcome> {
    let refusals = [
        Refusal::UnknownKey,
        Refusal::StaleToken,
        Refusal::SessionEnded,
        Refusal::NotTaking,
        Refusal::NoRoom,
        Refusal::NotFree,
        Refusal::NotQuarantined,
        Refusal::NotStopping,
        Refusal::OldTerm,
        Refusal::StillBeating,
        Refusal::GrantsHeld,
        Refusal::AffinityOutOfRange(-1),
        Refusal::Late,
        Refusal::TooOld { needs: 2 },
        Refusal::Superseded,
    ];
    let mut outcomes = vec![Outcome::Done, Outcome::Unchanged, Outcome::Affinity(5), Outcome::Granted(TOKEN)];
    outcomes.extend(refusals.map(Outcome::Refused));
    outcomes
}

fn views() -> Vec<KeyView> {
    let (session, token) = (session(), TOKEN);
    let states = [
        State::Pending,
        State::Assigned { session, token },
        State::Stopping { session, token, reason: StopReason::Removed },
        State::Quarantined(Aside::Deaths),
        State::Quarantined(Aside::Failed),
    ];
    let view = |state| KeyView {
        key: key(),
        weight: 3,
        priority: -4,
        not_before_ms: 5,
        retry_at_ms: 8,
        generation: 9,
        since: 10,
        attempts: 6,
        failures: 11,
        deaths: Deaths { count: 7, alone: 1, token: TOKEN },
        avoid: Some(session),
        state,
    };
    states.into_iter().map(view).collect()
}

fn session_view() -> SessionView {
    SessionView {
        session: session(),
        node: node(),
        affinity: 1000,
        capacity: None,
        lease_ms: 3000,
        draining: true,
        settled: false,
        ended: Some(blaming(Blame::Young)),
        reads: 2,
        joined: Token(9),
    }
}

fn group_view() -> GroupView {
    GroupView { term: TERM, leader: Some(session()), grants_held: false, time_ms: 70, format: 2 }
}

fn changes() -> Vec<Change> {
    let mut changes: Vec<Change> = views().into_iter().map(Change::Key).collect();
    changes.extend([
        Change::KeyGone(key()),
        Change::Session(session_view()),
        Change::SessionGone(session()),
        Change::Group(group_view()),
    ]);
    changes
}

fn batch() -> Batch {
    Batch { revision: Revision(11), changes: changes() }
}

fn holding() -> Holding {
    Holding {
        key: key(),
        token: TOKEN,
        attempts: 1,
        generation: 4,
        failures: 5,
        weight: 2,
        priority: 3,
        payload: Blob::from(*b"p"),
        checkpoint: Blob::default(),
        stopping: Some(StopReason::Rebalanced),
    }
}

fn hints() -> Vec<Hint> {
    let stop = |reason| Notice::Stop { key: key(), token: TOKEN, reason };
    let reasons = [StopReason::Rebalanced, StopReason::Removed, StopReason::Flushed, StopReason::Lost];
    let mut notices = vec![Notice::Granted(holding())];
    notices.extend(reasons.map(stop));
    notices.extend([Notice::Taken { key: key(), token: TOKEN }, Notice::Ended]);
    vec![Hint::Message(Message { seq: 12, notices }), Hint::Batch(batch()), Hint::LeaderGone, Hint::Gap]
}

fn log_id() -> LogId {
    LogId::new(CommittedLeaderId::new(4, 5), 600)
}

fn entries() -> Vec<Entry> {
    let steps = vec![
        Step::Apply { group: group(), ops: ops() },
        Step::Lead { group: group(), session: session(), over: TERM },
        Step::Resign { group: group(), session: session(), term: TERM },
    ];
    let membership = Membership::new(
        vec![[1, peer().id].into(), [1].into()],
        BTreeMap::from([(1, Peer { id: 1, ..peer() }), (peer().id, peer())]),
    );
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Command(Arc::new(Body::V1 { raft_term: 4, steps: steps.clone() }))),
        EntryPayload::Membership(membership),
        EntryPayload::Normal(Command(Arc::new(Body::V2 {
            raft_term: 4,
            clock: 1_700_000_000_000_000,
            steps: steps.clone(),
        }))),
        EntryPayload::Normal(Command(Arc::new(Body::V3 { raft_term: 4, clock: 1_700_000_000_000_000, steps }))),
    ];
    payloads.into_iter().map(|payload| Entry { log_id: log_id(), payload }).collect()
}

fn meta() -> SnapshotMeta {
    let Some(EntryPayload::Membership(membership)) = entries().into_iter().nth(2).map(|entry| entry.payload) else {
        unreachable!()
    };
    SnapshotMeta {
        last_log_id: Some(log_id()),
        last_membership: openraft::StoredMembership::new(Some(log_id()), membership),
        snapshot_id: "s".into(),
    }
}

/// A ledger in which something of everything has happened.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new();
    let session = session();
    let other = SessionId(Uuid::from_u128(7));
    let join = |session| Op::Join {
        session,
        node: node(),
        affinity: 1000,
        capacity: None,
        lease_ms: 3000,
        seen: Revision(0),
        reads: divider_core::format::NEWEST,
    };
    ledger.apply(&[join(session), join(other), Op::Add(work())], Token(0));
    let (term, _) = ledger.lead(session, Term(0));
    let term = term.unwrap();
    let add = |name: &str| Op::Add(Work::new(name).unwrap().payload(*b"x"));
    let assign = |name: &str, session| Op::Assign { term, key: Key::new(name).unwrap(), session };
    ledger.apply(&[add("a"), add("b"), add("c"), add("d")], Token(20));
    ledger.apply(&[assign("a", session), assign("b", session), assign("c", other)], Token(30));
    ledger.apply(&[Op::Quarantine { term, key: Key::new("d").unwrap() }, Op::End { session: other }], Token(40));
    ledger.apply(&[Op::Remove { key: Key::new("b").unwrap() }], Token(50));
    ledger
}

#[test]
fn what_the_first_version_wrote_is_still_read_and_written_the_same() {
    let mut book = Book::open();
    disk(&mut book);
    calls(&mut book);
    answers(&mut book);
    raft_calls(&mut book);
    book.close();
}

fn disk(book: &mut Book) {
    book.values("op", &ops());
    book.values("entry", &entries());
    let identity = Identity { id: 1, name: "a".into(), cluster: "c".into(), cluster_id: Some(Uuid::from_u128(9)) };
    book.value("identity", &identity);
    book.value("vote", &Vote::new_committed(4, 5));
    book.value("log-id", &log_id());
    let sealed = seal(&600_u64.to_be_bytes(), &entries()[1]).unwrap();
    book.bytes("sealed-entry", &sealed);
    assert_eq!(unseal::<Entry>(&600_u64.to_be_bytes(), &sealed).unwrap(), entries()[1]);
    let groups = BTreeMap::from([(group(), ledger())]);
    // Nothing writes the first format any more.
    let mut content = SnapshotContent { format: 2, meta: meta(), sum: Some(700), groups };
    let snapshot = content.encode().unwrap();
    book.bytes("snapshot", &snapshot);
    assert_eq!(decode(&snapshot).unwrap(), content);
    let groups = content.groups.iter_mut().map(|(group, ledger)| (group.clone(), ledger.freeze())).collect();
    assert_eq!(SnapshotContent { format: 2, meta: meta(), sum: Some(700), groups }.encode().unwrap(), snapshot);
}

fn calls(book: &mut Book) {
    let hello = Hello {
        cluster: "c".into(),
        cluster_id: Some(Uuid::from_u128(9)),
        target: Some(peer().id),
        from: Some(peer()),
    };
    book.value("hello", &hello);
    book.values(
        "welcome",
        &[Welcome::Ok { id: 3, cluster_id: Some(Uuid::from_u128(9)) }, Welcome::Refused("no".into())],
    );
    let body = &b"body"[..];
    let frames = [
        Frame::Request { id: 300, last: false, body },
        Frame::Answer { id: 300, last: true, body },
        Frame::Hint { id: 300, body },
        Frame::End { id: 300 },
        Frame::Ping,
        Frame::Pong,
    ];
    for (at, frame) in frames.iter().enumerate() {
        let bytes = frame.to_bytes().unwrap();
        book.bytes(&format!("frame.{at:02}"), &bytes);
        assert_eq!(Frame::from_bytes(&bytes[4..]).unwrap(), *frame);
    }
    let (group, session, term) = (group(), session(), TERM);
    let poll = |claim| Call::Poll { group: group.clone(), session, claim };
    let read = |query| Call::Read { group: group.clone(), query };
    let calls = vec![
        Call::Apply { group: group.clone(), ops: ops() },
        Call::Renew { group: group.clone(), session },
        poll(Claim::Follow),
        poll(Claim::Take { stale: Some((term, Beat(1))) }),
        poll(Claim::Lead { term }),
        Call::Resign { group: group.clone(), session, term },
        Call::Beats { group: group.clone() },
        Call::Confirm,
        read(Query::Holdings(session)),
        read(Query::Changes(Revision(5))),
        read(Query::Scan(Some(Cursor(vec![1, 2])))),
        read(Query::Records(vec![key()])),
        read(Query::Stats),
        read(Query::Quarantined(10)),
        read(Query::Owners(vec![key()])),
        Call::Status,
        Call::Join { peer: peer(), votes: true },
        Call::Leave { id: 1 },
        Call::Promote { id: 2 },
        Call::Replace { old: 3, new: 4 },
        Call::Silences { group: group.clone() },
        Call::Found { by: 9, taken_back: true },
        Call::StepUp,
    ];
    book.values("call", &calls.into_iter().map(Request::Call).collect::<Vec<_>>());
    let topics = [Topic::Session(session), Topic::Group];
    book.values("subscribe", &topics.map(|topic| Request::Subscribe { group: group.clone(), topic }));
}

fn answers(book: &mut Book) {
    let faults = [
        Fault::NotLeader(Some(peer())),
        Fault::Busy("b".into()),
        Fault::Unknown("u".into()),
        Fault::SessionEnded,
        Fault::Refused("r".into()),
        Fault::Denied("d".into()),
    ];
    book.values("fault", &faults.map(Answer::Fault));
    let leader_view =
        LeaderView { term: TERM, session: session(), beat: Beat(1), session_beat: Some(Beat(2)), watched: true };
    let page = Page {
        revision: Revision(1),
        group: group_view(),
        sessions: vec![session_view()],
        keys: views(),
        next: Some(Cursor(vec![3])),
    };
    let (payload, checkpoint) = (Blob::from(*b"p"), Blob::from(*b"c"));
    let record = Record { view: views().remove(1), why: Text::new("why"), payload, checkpoint };
    let mut stats = Stats::default();
    (stats.sessions, stats.registered, stats.assigned) = (1, 2, 3);
    (stats.pending, stats.stopping, stats.quarantined) = (4, 5, 6);
    let status = Status {
        me: peer(),
        cluster_id: Some(Uuid::from_u128(9)),
        leader: Some(peer()),
        members: vec![(peer(), true)],
    };
    let owner = Owner { node: node(), session: session(), token: TOKEN };
    let answers = [
        Answer::Done,
        Answer::Applied(Applied { outcomes: outcomes(), revision: Revision(1) }),
        Answer::Beat(Beat(1 << 33)),
        Answer::PollReply(PollReply { leader: Some(leader_view), revision: Revision(1), token: TOKEN, seq: 3 }),
        Answer::Beats(vec![(session(), Beat(1))]),
        Answer::Index(77),
        Answer::Holdings(Holdings { seq: 1, holdings: vec![holding()] }),
        Answer::Changes(Some(vec![batch()])),
        Answer::Page(page),
        Answer::Records(vec![Some(record), None]),
        Answer::Stats(stats),
        Answer::Keys(vec![key()]),
        Answer::Status(status),
        Answer::Owners(vec![Some(owner), None]),
        Answer::Silences(vec![(session(), Beat(1 << 33), Duration::from_millis(300))]),
    ];
    book.values("answer", &answers);
    book.values("hint", &hints());
    let reply = Reply(vec![Done::Applied(Applied { outcomes: outcomes(), revision: Revision(1) }), Done::Looked]);
    book.value("reply", &reply);
}

fn raft_calls(book: &mut Book) {
    let vote = Vote::new_committed(4, 5);
    let append =
        |entries| AppendEntriesRequest { vote, prev_log_id: Some(log_id()), entries, leader_commit: Some(log_id()) };
    let mut first = entries();
    let mut second = first.split_off(3);
    let third = second.split_off(1);
    let requests = [
        RaftRequest::Append(append(first)),
        RaftRequest::Vote(VoteRequest::new(Vote::new(4, 5), Some(log_id()))),
        RaftRequest::SnapshotBegin { stream: 1, vote, meta: meta() },
        RaftRequest::SnapshotChunk { stream: 1, offset: 2, bytes: vec![3] },
        RaftRequest::SnapshotEnd { stream: 1 },
        RaftRequest::TimeoutNow,
        RaftRequest::Compare { index: 600 },
        RaftRequest::Differs { index: 600, sum: 700 },
        RaftRequest::Append(append(second)),
        RaftRequest::Append(append(third)),
    ];
    book.values("raft-call", &requests.map(Request::Raft));
    let answers = [
        RaftAnswer::Append(AppendEntriesResponse::Success),
        RaftAnswer::Append(AppendEntriesResponse::PartialSuccess(Some(log_id()))),
        RaftAnswer::Append(AppendEntriesResponse::Conflict),
        RaftAnswer::Append(AppendEntriesResponse::HigherVote(vote)),
        RaftAnswer::Vote(VoteResponse { vote, vote_granted: true, last_log_id: Some(log_id()) }, 300),
        RaftAnswer::Taken,
        RaftAnswer::Installed(vote),
        RaftAnswer::Failed("f".into()),
        RaftAnswer::Compared(Some(700)),
    ];
    book.values("raft-answer", &answers.map(Answer::Raft));
}
