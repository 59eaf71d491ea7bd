//! What a store passes on: the changes of the group, the messages to a session, the hints at both, and the reads that
//! are the truth behind them.

use std::collections::BTreeMap;

use divider_core::{
    Batch, Change, Claim, GroupView, Hint, HintStream, Holding, Key, KeyView, Message, Notice, Op, Outcome, Revision,
    SessionId, SessionView, StopReason, Store, StoreError, Term, Token, Topic, Work,
};
use futures_util::{FutureExt, StreamExt};

use super::{Backend, Clerk, Trial, trial::soon};

#[derive(Debug, Default, PartialEq, Eq)]
struct Picture {
    group: GroupView,
    keys: BTreeMap<Key, KeyView>,
    sessions: BTreeMap<SessionId, SessionView>,
}

impl Picture {
    async fn read<S: Store>(clerk: &Clerk<S>) -> (Self, Revision) {
        let (first, sessions, keys) = clerk.scan().await;
        let picture = Self {
            group: first.group,
            keys: keys.into_iter().map(|view| (view.key.clone(), view)).collect(),
            sessions: sessions.into_iter().map(|view| (view.session, view)).collect(),
        };
        (picture, first.revision)
    }

    /// Takes in all batches after one revision, up to another.
    async fn follow<S: Store>(&mut self, clerk: &Clerk<S>, since: Revision, until: Revision) {
        let mut at = since;
        while at < until {
            let batches = clerk.store.changes(at).await.unwrap().expect("recent changes are kept");
            assert!(!batches.is_empty(), "at least one batch, if there is any");
            for batch in batches.into_iter().filter(|batch| batch.revision <= until) {
                assert_eq!(batch.revision.0, at.0 + 1, "revisions rise by one");
                assert!(!batch.changes.is_empty());
                at = batch.revision;
                self.apply(batch);
            }
        }
    }

    fn apply(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Key(view) => drop(self.keys.insert(view.key.clone(), view)),
                Change::KeyGone(key) => drop(self.keys.remove(&key)),
                Change::Session(view) => drop(self.sessions.insert(view.session, view)),
                Change::SessionGone(session) => drop(self.sessions.remove(&session)),
                Change::Group(group) => self.group = group,
            }
        }
    }
}

/// A little of everything, so that every kind of change is met. Returns how many batches changed something.
async fn stir<S: Store>(clerk: &Clerk<S>, other: &Clerk<S>) -> u64 {
    let mut changed = 0;
    let mut batch = async |ops: &[Op], count: u64| {
        let before = clerk.poll(Claim::Follow).await.revision;
        let after = clerk.apply(ops).await.revision;
        assert_eq!(after.0, before.0 + count, "a batch that changed something raises the revision by one: {ops:?}");
        changed += count;
    };
    let key = |name: &str| Key::new(name).unwrap();
    let term = clerk.term;
    let add = |name| Op::Add(Work::new(name).unwrap());
    let assign = |name, session| Op::assign(term, key(name), session);
    batch(&[add("a"), add("b"), add("c"), add("d")], 1).await;
    batch(&[add("a")], 0).await;
    batch(&[assign("a", clerk.session), assign("b", other.session), assign("c", other.session)], 1).await;
    batch(&[assign("a", other.session), Op::Remove { key: key("nobody's") }], 0).await;
    batch(&[Op::Remove { key: key("d") }, Op::Remove { key: key("b") }], 1).await;
    batch(&[Op::AlterAffinity { session: clerk.session, number: 1, delta: 5 }], 1).await;
    batch(&[Op::AlterAffinity { session: clerk.session, number: 1, delta: 5 }], 0).await;
    batch(&[Op::Settle { term, session: clerk.session }], 1).await;
    batch(&[Op::End { session: other.session }], 1).await;
    batch(&[assign("c", clerk.session)], 1).await;
    changed
}

pub async fn the_feed_and_a_scan_come_to_the_same<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let (mut picture, start) = Picture::read(&clerk).await;
    let changed = stir(&clerk, &other).await;
    picture.follow(&clerk, start, Revision(start.0 + changed)).await;
    let (truth, end) = Picture::read(&clerk).await;
    assert_eq!((&picture, start.0 + changed), (&truth, end.0));
    assert_eq!(clerk.store.changes(end).await.unwrap(), Some(Vec::new()));
    assert_eq!(clerk.store.changes(Revision(end.0 + 1)).await.unwrap(), None, "not in the past");
}

pub async fn a_scan_that_changes_overtake_is_exact_at_its_last_page<B: Backend>(trial: Trial<B>) {
    const KEYS: usize = 10_000;
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let name = |i: usize| format!("key {i}");
    // Some alike and some not.
    let add = |i: usize| Op::Add(Work::new(name(i)).unwrap().weight(1 + (i / 6000) as u32).priority((i % 3) as i32));
    for from in (0..KEYS).step_by(divider_core::limits::MAX_BATCH_OPS) {
        clerk.apply(&(from..KEYS.min(from + divider_core::limits::MAX_BATCH_OPS)).map(add).collect::<Vec<_>>()).await;
    }
    let (mut expected, start) = Picture::read(&clerk).await;

    let (batches, counted) = tokio::sync::watch::channel(0);
    let change = async {
        // All over the group, so that every page has some of it.
        for round in 0.. {
            let at = |part: usize| (round * 37 + part * KEYS / 3) % KEYS;
            let key = |i| Key::new(name(i)).unwrap();
            let assign = Op::assign(clerk.term, key(at(0)), other.session);
            clerk.apply(&[add(KEYS + round), Op::Remove { key: key(at(1)) }, assign, add(at(2))]).await;
            batches.send_replace(round);
            // A store in memory answers at once, for ever.
            tokio::task::yield_now().await;
        }
    };
    let scan = async {
        let (mut cursor, mut pages) = (None, Vec::new());
        loop {
            // At least two batches between two pages, and more while they are read.
            let (mut counted, before) = (counted.clone(), *counted.borrow());
            counted.wait_for(|round| *round >= before + 2).await.unwrap();
            let page = other.store.scan(cursor).await.unwrap();
            cursor = page.next.clone();
            pages.push(page);
            if cursor.is_none() {
                return pages;
            }
        }
    };
    let pages = tokio::select! {
        () = change => unreachable!("it goes on for ever"),
        pages = soon("a scan", scan) => pages,
    };
    let (first, last) = (&pages[0], &pages[pages.len() - 1]);
    assert!(pages.len() > 1 && first.revision < last.revision);
    let mut picture = Picture {
        group: first.group,
        keys: pages.iter().flat_map(|page| &page.keys).map(|view| (view.key.clone(), view.clone())).collect(),
        sessions: first.sessions.iter().map(|view| (view.session, view.clone())).collect(),
    };
    picture.follow(&clerk, first.revision, last.revision).await;
    expected.follow(&clerk, start, last.revision).await;
    // Not with assert_eq, which would print all of both.
    assert!(picture == expected, "a page was older than the first one's revision, or newer than the last one's");
}

pub async fn group_hints_carry_the_feed_or_show_a_gap<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let (mut picture, start) = Picture::read(&clerk).await;
    let mut hints = clerk.store.hints(Topic::Group).await.unwrap();
    let end = start.0 + stir(&clerk, &other).await;
    let mut at = start;
    while at.0 < end {
        match soon("a hint", hints.next()).await {
            Some(Hint::Batch(batch)) if batch.revision.0 == at.0 + 1 => {
                at = batch.revision;
                picture.apply(batch);
            }
            Some(Hint::Batch(batch)) if batch.revision <= at => {}
            // A gap, or something missing: then the truth is read.
            Some(Hint::Gap | Hint::Batch(_)) | None => {
                (picture, at) = Picture::read(&clerk).await;
            }
            Some(Hint::Message(_) | Hint::LeaderGone) => {}
        }
    }
    let (truth, _) = Picture::read(&clerk).await;
    assert_eq!(picture, truth);
}

/// Reads messages up to number `end`, or a gap.
async fn messages(hints: &mut HintStream, end: u64) -> Option<Vec<Message>> {
    let mut messages: Vec<Message> = Vec::new();
    while messages.last().map_or(0, |message| message.seq) < end {
        match soon("a message", hints.next()).await {
            Some(Hint::Message(message)) => {
                let last = messages.last().map_or(0, |message| message.seq);
                if message.seq == last + 1 {
                    messages.push(message);
                } else if message.seq > last {
                    return None;
                }
            }
            Some(Hint::LeaderGone | Hint::Batch(_)) => {}
            Some(Hint::Gap) | None => return None,
        }
    }
    Some(messages)
}

pub async fn a_session_hears_of_every_grant_and_stop_in_order<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let mut hints = other.store.hints(Topic::Session(other.session)).await.unwrap();
    let work = Work::new("a").unwrap().weight(2).priority(3).payload(*b"payload");
    let a = work.key.clone();
    clerk.one(Op::Add(work)).await;
    let b = clerk.add("b").await;
    let (on_a, on_b) = (clerk.assign(&a, other.session).await, clerk.assign(&b, other.session).await);
    clerk.one(Op::Remove { key: b.clone() }).await;
    // Only the owner is told of what it asked for itself; nobody else is.
    clerk.one(Op::Remove { key: b.clone() }).await;
    let give_up = Op::give_up(other.session, a.clone(), on_a);
    assert_eq!(other.one(give_up).await, Outcome::Done);
    clerk.one(Op::Force { term: clerk.term, key: a.clone(), token: on_a }).await;
    assert_eq!(clerk.poll(Claim::Follow).await.seq, 0, "the leader was sent nothing");
    let seq = other.poll(Claim::Follow).await.seq;
    assert_eq!(seq, 5);
    let truth = other.store.holdings(other.session).await.unwrap();
    assert_eq!(truth.seq, seq);
    let holding = |key: &Key, token, weight, priority, payload: &[u8], stopping| Holding {
        key: key.clone(),
        token,
        attempts: 1,
        generation: 1,
        failures: 0,
        weight,
        priority,
        payload: payload.into(),
        checkpoint: divider_core::Blob::default(),
        stopping,
    };
    assert_eq!(truth.holdings, [holding(&b, on_b, 1, 0, b"", Some(StopReason::Removed))]);
    if let Some(messages) = messages(&mut hints, seq).await {
        let notices: Vec<Notice> = messages.into_iter().flat_map(|message| message.notices).collect();
        let stop = |key: &Key, token, reason| Notice::Stop { key: key.clone(), token, reason };
        let expected = [
            Notice::Granted(holding(&a, on_a, 2, 3, b"payload", None)),
            Notice::Granted(holding(&b, on_b, 1, 0, b"", None)),
            stop(&b, on_b, StopReason::Removed),
            stop(&a, on_a, StopReason::Rebalanced),
            Notice::Taken { key: a.clone(), token: on_a },
        ];
        assert_eq!(notices, expected);
    }
}

pub async fn a_session_hears_of_its_end<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let mut hints = other.store.hints(Topic::Session(other.session)).await.unwrap();
    let beat = other.beat().await;
    let expire = Op::Expire { term: clerk.term, session: other.session, beat, verdict: divider_core::Verdict::young(Token(0)) };
    assert_eq!(clerk.one(expire).await, Outcome::Done);
    let heard = async {
        loop {
            match hints.next().await {
                Some(Hint::Message(message)) if message.notices.contains(&Notice::Ended) => return,
                Some(Hint::Gap) | None => return,
                Some(_) => {}
            }
        }
    };
    soon("the end", heard).await;
}

pub async fn everybody_hears_that_the_leadership_is_free<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::leading(&trial).await;
    let other = Clerk::join(&trial).await;
    let mut hints = other.store.hints(Topic::Session(other.session)).await.unwrap();
    while hints.next().now_or_never().is_some() {}
    clerk.store.resign(clerk.session, clerk.term).await.unwrap();
    let heard = async {
        loop {
            match hints.next().await {
                Some(Hint::LeaderGone | Hint::Gap) | None => return,
                Some(_) => {}
            }
        }
    };
    soon("the news", heard).await;
}

pub async fn a_full_batch_of_large_work_is_taken_and_read_back<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let payload: Vec<u8> = (0..2000_u32).flat_map(u32::to_le_bytes).collect();
    let ops: Vec<Op> = (0..divider_core::limits::MAX_BATCH_OPS)
        .map(|i| Op::Add(Work::new(format!("key {i}")).unwrap().payload(&payload[..i])))
        .collect();
    assert_eq!(clerk.apply(&ops).await.outcomes, vec![Outcome::Done; ops.len()]);
    let keys: Vec<Key> = (0..ops.len() + 1).map(|i| Key::new(format!("key {i}")).unwrap()).collect();
    let records = clerk.store.records(&keys).await.unwrap();
    for (i, record) in records.iter().enumerate() {
        let read = record.as_ref().map(|record| record.payload.as_slice());
        assert_eq!(read, (i < ops.len()).then_some(&payload[..i]));
    }
    let (picture, _) = Picture::read(&clerk).await;
    assert_eq!(picture.keys.len(), ops.len());
    let stats = clerk.store.stats().await.unwrap();
    assert_eq!((stats.registered, stats.pending, stats.sessions), (512, 512, 1));
}

pub async fn a_closed_handle_says_so_and_the_others_go_on<B: Backend>(trial: Trial<B>) {
    let clerk = Clerk::join(&trial).await;
    let other = Clerk::join(&trial).await;
    other.store.close().await;
    let (store, session) = (&other.store, other.session);
    let answers = [
        store.apply(&[]).await.map(drop),
        store.stats().await.map(drop),
        store.renew(session).await.map(drop),
        store.resign(session, Term(1)).await,
        store.hints(Topic::Group).await.map(drop),
    ];
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Closed))), "{answers:?}");
    clerk.add("a").await;
}
