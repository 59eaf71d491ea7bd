use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::{
    ids::{NodeId, Revision, Term},
    ledger::{Effects, Ledger},
    record::Work,
};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn holding(name: &str, token: u64) -> Holding {
    Holding {
        generation: 1,
        failures: 0,
        key: key(name),
        token: Token(token),
        attempts: 1,
        weight: 1,
        priority: 0,
        payload: Default::default(),
        checkpoint: Default::default(),
        stopping: None,
    }
}

fn joined() -> Member {
    let mut member = Member::new(1000);
    member.joined(SessionId::fresh());
    member
}

fn grant(member: &mut Member, name: &str, token: u64) {
    let seq = member.seq() + 1;
    assert!(member.message(Message { seq, notices: vec![Notice::Granted(holding(name, token))] }));
}

fn ask_to_stop(member: &mut Member, name: &str, token: u64) {
    let notice = Notice::Stop { key: key(name), token: Token(token), reason: StopReason::Rebalanced };
    let seq = member.seq() + 1;
    assert!(member.message(Message { seq, notices: vec![notice] }));
}

fn started(member: &mut Member, name: &str, token: u64) {
    grant(member, name, token);
    let start = member.next_start().unwrap();
    assert_eq!((start.key, start.token), (key(name), Token(token)));
}

#[test]
fn a_start_that_was_revoked_before_it_was_read_is_never_seen() {
    let mut member = joined();
    grant(&mut member, "a", 1);
    ask_to_stop(&mut member, "a", 1);
    assert_eq!((member.next_start(), member.next_stop()), (None, None));
    let declined = member.take_outbox();
    assert!(matches!(&declined[..], [Op::Confirm { started: false, token: Token(1), .. }]), "{declined:?}");
    assert!(member.assigned().is_empty());
}

#[test]
fn a_confirmation_before_the_stop_was_read_is_refused_and_the_key_stays() {
    let mut member = joined();
    started(&mut member, "a", 1);
    assert!(matches!(member.confirm(&key("a"), Token(1)), Err(Error::NotStopping { .. })));
    ask_to_stop(&mut member, "a", 1);
    assert!(matches!(member.confirm(&key("a"), Token(1)), Err(Error::NotStopping { .. })));
    assert!(member.is_current(&key("a"), Token(1)));
    member.next_stop().unwrap();
    assert!(matches!(member.confirm(&key("a"), Token(2)), Err(Error::StaleToken { .. })));
    assert!(matches!(member.confirm(&key("a"), Token(1)), Ok(Confirmation::Send(_))));
    assert!(!member.is_current(&key("a"), Token(1)), "it has said that it acts no more");
}

#[test]
fn a_loss_is_read_before_any_new_start_and_confirmed_before_a_start_of_the_same_key() {
    let mut member = joined();
    started(&mut member, "a", 1);
    grant(&mut member, "unread", 2);
    assert!(member.lose());
    assert!(!member.is_current(&key("a"), Token(1)));
    member.joined(SessionId::fresh());
    grant(&mut member, "b", 3);
    grant(&mut member, "a", 4);
    let declined = member.take_outbox();
    assert!(matches!(&declined[..], [Op::Confirm { started: false, token: Token(4), .. }]), "{declined:?}");
    member.gone(&key("a"), Token(4));
    // It comes back: nobody else takes it.
    grant(&mut member, "a", 5);
    assert!(member.take_outbox().is_empty());
    assert_eq!(member.next_start(), None);
    let stop = member.next_stop().unwrap();
    assert_eq!((stop.key, stop.token, stop.reason), (key("a"), Token(1), StopReason::Lost));
    assert_eq!(member.next_stop(), None, "a start that was never read has no stop");
    assert_eq!(member.next_start().unwrap().key, key("b"));
    assert_eq!(member.next_start(), None, "`a` waits for the confirmation");
    assert_eq!(member.confirm(&key("a"), Token(1)).unwrap(), Confirmation::Local);
    assert_eq!(member.next_start().unwrap().token, Token(5));
}

#[test]
fn a_key_that_is_held_back_is_offered_to_others_again() {
    let mut member = joined();
    started(&mut member, "a", 1);
    member.lose();
    member.next_stop().unwrap();
    member.joined(SessionId::fresh());
    for token in [2, 3, 4] {
        grant(&mut member, "a", token);
        member.offer_held_back();
        let declined = member.take_outbox();
        assert!(matches!(&declined[..], [Op::Confirm { started: false, .. }]), "{declined:?}");
        member.gone(&key("a"), Token(token));
    }
    member.confirm(&key("a"), Token(1)).unwrap();
    grant(&mut member, "a", 5);
    member.offer_held_back();
    assert_eq!(member.next_start().unwrap().token, Token(5), "nothing holds it back any more");
}

#[test]
fn a_key_that_was_asked_to_stop_before_the_loss_is_told_once() {
    let mut member = joined();
    started(&mut member, "read", 1);
    started(&mut member, "unread", 2);
    ask_to_stop(&mut member, "read", 1);
    member.next_stop().unwrap();
    ask_to_stop(&mut member, "unread", 2);
    member.lose();
    let stop = member.next_stop().unwrap();
    assert_eq!((stop.key, stop.reason), (key("unread"), StopReason::Lost));
    assert_eq!(member.next_stop(), None);
    assert_eq!(member.confirm(&key("read"), Token(1)).unwrap(), Confirmation::Local);
}

#[test]
fn a_confirmed_key_that_is_granted_again_before_the_answer_comes_is_not_lost_with_the_answer() {
    let mut member = joined();
    started(&mut member, "a", 1);
    ask_to_stop(&mut member, "a", 1);
    member.next_stop().unwrap();
    member.confirm(&key("a"), Token(1)).unwrap();
    grant(&mut member, "a", 2);
    member.gone(&key("a"), Token(1));
    assert_eq!(member.next_start().unwrap().token, Token(2));
}

#[test]
fn a_completed_key_that_is_declared_again_starts_only_after_the_answer() {
    let mut member = joined();
    started(&mut member, "a", 1);
    member.completing(&key("a"), Token(1)).unwrap();
    grant(&mut member, "a", 2);
    assert_eq!(member.next_start(), None);
    member.gone(&key("a"), Token(1));
    assert_eq!(member.next_start().unwrap().token, Token(2));
    assert_eq!(member.next_stop(), None);
}

#[test]
fn a_refused_completion_of_a_key_that_has_moved_on_is_told_as_a_loss() {
    let mut member = joined();
    started(&mut member, "a", 1);
    member.completing(&key("a"), Token(1)).unwrap();
    grant(&mut member, "a", 2);
    member.not_completed(&key("a"), Token(1));
    assert_eq!(member.next_start(), None);
    assert_eq!(member.next_stop().unwrap().reason, StopReason::Lost);
    assert_eq!(member.confirm(&key("a"), Token(1)).unwrap(), Confirmation::Local);
    assert_eq!(member.next_start().unwrap().token, Token(2));
}

#[test]
fn a_stop_that_was_read_is_not_told_again_when_a_completion_is_refused_after_the_next_grant() {
    let mut member = joined();
    started(&mut member, "a", 1);
    member.completing(&key("a"), Token(1)).unwrap();
    ask_to_stop(&mut member, "a", 1);
    member.next_stop().unwrap();
    grant(&mut member, "a", 2);
    member.not_completed(&key("a"), Token(1));
    assert_eq!((member.next_stop(), member.next_start()), (None, None));
    assert_eq!(member.confirm(&key("a"), Token(1)).unwrap(), Confirmation::Local);
    assert_eq!(member.next_start().unwrap().token, Token(2));
}

#[test]
fn a_stop_that_was_confirmed_is_not_told_again_when_a_completion_is_refused_after_the_next_grant() {
    let mut member = joined();
    started(&mut member, "a", 1);
    member.completing(&key("a"), Token(1)).unwrap();
    ask_to_stop(&mut member, "a", 1);
    member.next_stop().unwrap();
    member.confirm(&key("a"), Token(1)).unwrap();
    grant(&mut member, "a", 2);
    member.not_completed(&key("a"), Token(1));
    assert_eq!(member.next_stop(), None);
    assert_eq!(member.next_start().unwrap().token, Token(2));
}

#[test]
fn a_truth_that_was_read_before_a_confirmation_does_not_bring_the_key_back() {
    let mut member = joined();
    started(&mut member, "a", 1);
    ask_to_stop(&mut member, "a", 1);
    member.next_stop().unwrap();
    member.confirm(&key("a"), Token(1)).unwrap();
    member.reading();
    let old =
        Holdings { seq: 2, holdings: vec![Holding { stopping: Some(StopReason::Rebalanced), ..holding("a", 1) }] };
    member.gone(&key("a"), Token(1));
    member.read(old);
    assert_eq!((member.held(), member.next_start(), member.next_stop()), (0, None, None));
}

#[test]
fn a_key_that_is_gone_from_the_truth_is_told_as_lost() {
    let mut member = joined();
    started(&mut member, "a", 1);
    member.reading();
    member.read(Holdings { seq: 7, holdings: vec![] });
    assert!(!member.is_current(&key("a"), Token(1)));
    assert_eq!(member.next_stop().unwrap().reason, StopReason::Lost);
}

#[test]
fn nothing_starts_after_a_flush_began_or_at_affinity_0() {
    for flush in [true, false] {
        let mut member = joined();
        grant(&mut member, "early", 1);
        if flush {
            member.drain()
        } else {
            member.set_affinity(0)
        }
        grant(&mut member, "late", 2);
        assert_eq!(member.next_start(), None);
        assert_eq!(member.take_outbox().len(), 2);
    }
}

#[test]
fn a_missed_message_is_noticed_and_a_doubled_one_is_not() {
    let mut member = joined();
    grant(&mut member, "a", 1);
    assert!(member.message(Message { seq: 1, notices: vec![Notice::Granted(holding("a", 1))] }));
    assert!(!member.message(Message { seq: 3, notices: vec![] }));
    assert_eq!(member.seq(), 1);
}

/// One node and a ledger, with messages that are lost, late or doubled, and a program that reads when it likes.
#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Remove(u8),
    Assign(u8),
    Revoke(u8),
    Expire,
    Rejoin,
    Deliver { lose: bool, double: bool },
    BeginRead,
    EndRead,
    ReadStart,
    ReadStop,
    Confirm(u8),
    Complete(u8),
    GiveUp(u8),
    Answer,
    Affinity(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..3u8;
    let step = prop_oneof![
        2 => name.clone().prop_map(Step::Add),
        1 => name.clone().prop_map(Step::Remove),
        6 => name.clone().prop_map(Step::Assign),
        3 => name.clone().prop_map(Step::Revoke),
        1 => Just(Step::Expire),
        2 => Just(Step::Rejoin),
        8 => (prop::bool::weighted(0.2), prop::bool::weighted(0.2)).prop_map(|(lose, double)| Step::Deliver { lose, double }),
        2 => Just(Step::BeginRead),
        3 => Just(Step::EndRead),
        6 => Just(Step::ReadStart),
        6 => Just(Step::ReadStop),
        6 => name.clone().prop_map(Step::Confirm),
        2 => name.clone().prop_map(Step::Complete),
        2 => name.prop_map(Step::GiveUp),
        6 => Just(Step::Answer),
        1 => any::<bool>().prop_map(Step::Affinity),
    ];
    prop::collection::vec(step, 1..250)
}

struct World {
    ledger: Ledger,
    term: Term,
    boss: SessionId,
    member: Member,
    hints: VecDeque<Message>,
    /// Ops whose answers are on the way, with what was answered.
    answers: VecDeque<(Op, bool)>,
    truth: Option<Holdings>,
    /// What the program believes: started and not confirmed.
    running: HashMap<Key, Token>,
    asked: HashMap<Key, (Token, StopReason)>,
    highest: HashMap<Key, Token>,
    sent_to: Option<SessionId>,
}

impl World {
    fn new() -> Self {
        let mut ledger = Ledger::new();
        let boss = SessionId::fresh();
        ledger.apply(&[join(boss, 0, Revision(0))], Token(0));
        let (term, _) = ledger.lead(boss, Term(0));
        let mut world = Self {
            ledger,
            term: term.unwrap(),
            boss,
            member: Member::new(1000),
            hints: VecDeque::new(),
            answers: VecDeque::new(),
            truth: None,
            running: HashMap::new(),
            asked: HashMap::new(),
            highest: HashMap::new(),
            sent_to: None,
        };
        world.rejoin();
        world
    }

    fn apply(&mut self, op: Op) -> bool {
        let Effects { outcomes, messages, .. } = self.ledger.apply(&[op], Token(0));
        for (session, message) in messages {
            if Some(session) == self.sent_to {
                self.hints.push_back(message);
            }
        }
        !matches!(outcomes[0], crate::op::Outcome::Refused(_))
    }

    fn rejoin(&mut self) {
        if self.member.session().is_some() || self.member.has_unread_loss() {
            return;
        }
        let session = SessionId::fresh();
        self.apply(join(session, self.member.affinity(), self.ledger.revision()));
        self.member.joined(session);
        self.sent_to = Some(session);
        self.hints.clear();
        self.truth = None;
    }

    fn settle_outbox(&mut self) {
        for op in self.member.take_outbox() {
            let done = self.apply(op.clone());
            self.answers.push_back((op, done));
        }
    }

    fn step(&mut self, step: Step) {
        let name = |n: u8| key(&format!("k{n}"));
        let owner = |ledger: &Ledger, n| ledger.record(&name(n)).and_then(|record| record.view.state.owner());
        match step {
            Step::Add(n) => drop(self.apply(Op::Add(Work::from(name(n))))),
            Step::Remove(n) => drop(self.apply(Op::Remove { key: name(n) })),
            Step::Assign(n) => {
                if let Some(session) = self.sent_to {
                    self.apply(Op::assign(self.term, name(n), session));
                }
            }
            Step::Revoke(n) => {
                if let Some((_, token)) = owner(&self.ledger, n) {
                    self.apply(Op::Revoke { term: self.term, key: name(n), token });
                }
            }
            Step::Expire => {
                if let Some(session) = self.sent_to {
                    let (term, beat) = (self.term, crate::ids::Beat(0));
                    self.apply(Op::Expire { term, session, beat, verdict: crate::op::Verdict::young(Token(0)) });
                    // S3: by then its own deadline has passed, so it has fenced itself.
                    self.lose();
                }
            }
            Step::Rejoin => self.rejoin(),
            Step::Deliver { lose, double } => {
                if let Some(message) = self.hints.pop_front()
                    && !lose
                {
                    if double {
                        self.hints.push_front(message.clone());
                    }
                    if !self.member.message(message) {
                        self.begin_read();
                        self.end_read();
                    }
                }
            }
            Step::BeginRead => self.begin_read(),
            Step::EndRead => self.end_read(),
            Step::ReadStart => {
                if let Some(start) = self.member.next_start() {
                    let old = self.running.insert(start.key.clone(), start.token);
                    assert_eq!(old, None, "two starts in a row of {}", start.key);
                    let highest = self.highest.insert(start.key.clone(), start.token);
                    assert!(highest < Some(start.token), "tokens of {} did not rise", start.key);
                    assert!(self.member.affinity() > 0, "a start at affinity 0");
                }
            }
            Step::ReadStop => {
                if let Some(stop) = self.member.next_stop() {
                    assert_eq!(self.running.get(&stop.key), Some(&stop.token), "a stop without its start");
                    let again = self.asked.insert(stop.key, (stop.token, stop.reason));
                    assert_eq!(again, None, "two stops for one start");
                }
            }
            Step::Confirm(n) => {
                let Some((token, _)) = self.asked.get(&name(n)).copied() else { return };
                match self.member.confirm(&name(n), token) {
                    Ok(Confirmation::Local) => {}
                    Ok(Confirmation::Send(op)) => {
                        let done = self.apply(op.clone());
                        self.answers.push_back((op, done));
                    }
                    // A completion on its way may have ended it.
                    Err(error) => {
                        assert!(self.answers.iter().any(|(op, _)| matches!(op, Op::Complete { .. })), "{error}")
                    }
                }
                self.asked.remove(&name(n));
                self.running.remove(&name(n));
            }
            Step::Complete(n) => {
                let Some(token) = self.running.get(&name(n)).copied() else { return };
                if self.answers.iter().any(|(op, _)| matches!(op, Op::Complete { key, .. } if *key == name(n))) {
                    return;
                }
                if let Ok(session) = self.member.completing(&name(n), token) {
                    let op = Op::complete(session, name(n), token);
                    let done = self.apply(op.clone());
                    self.answers.push_back((op, done));
                }
            }
            Step::GiveUp(n) => {
                let Some(token) = self.running.get(&name(n)).copied() else { return };
                if let Ok(session) = self.member.acting(&name(n), token) {
                    self.apply(Op::give_up(session, name(n), token));
                }
            }
            Step::Answer => match self.answers.pop_front() {
                Some((Op::Confirm { key, token, .. }, _)) => self.member.gone(&key, token),
                Some((Op::Complete { key, token, .. }, true)) => {
                    self.member.gone(&key, token);
                    if self.running.get(&key) == Some(&token) {
                        self.running.remove(&key);
                        self.asked.remove(&key);
                    }
                }
                Some((Op::Complete { key, token, .. }, false)) => self.member.not_completed(&key, token),
                _ => {}
            },
            Step::Affinity(some) => self.member.set_affinity(if some { 1000 } else { 0 }),
        }
        self.settle_outbox();
        self.check();
    }

    fn begin_read(&mut self) {
        if let Some(session) = self.member.session() {
            self.member.reading();
            self.truth = self.ledger.holdings(session).ok();
            if self.truth.is_none() {
                self.lose();
            }
        }
    }

    fn end_read(&mut self) {
        if let Some(truth) = self.truth.take()
            && self.member.session().is_some()
        {
            self.member.read(truth);
        }
    }

    fn lose(&mut self) {
        self.member.lose();
        self.truth = None;
        self.sent_to = None;
    }

    /// S3: whatever the member believes that it may act on is its own in the ledger.
    fn check(&mut self) {
        self.member.held.check();
        // From here to the next change it is kept.
        self.member.assigned();
        for (key, token) in &self.running {
            if self.member.is_current(key, *token) {
                let completing =
                    |(op, done): &(Op, bool)| matches!(op, Op::Complete { key: k, .. } if k == key) && *done;
                let owner = self.ledger.record(key).and_then(|record| record.view.state.owner());
                let ours = owner == self.member.session().map(|session| (session, *token));
                assert!(ours || self.answers.iter().any(completing), "{key} is not ours, but believed to be");
            }
        }
    }

    /// Once everything is delivered and read, node, program and ledger agree.
    fn converge(&mut self) {
        for _ in 0..40 {
            while !self.answers.is_empty() {
                self.step(Step::Answer);
            }
            self.step(Step::Affinity(true));
            self.begin_read();
            self.end_read();
            self.settle_outbox();
            for _ in 0..8 {
                self.step(Step::ReadStop);
                (0..3).for_each(|n| self.step(Step::Confirm(n)));
                self.step(Step::ReadStart);
            }
            self.step(Step::Rejoin);
        }
        let session = self.member.session().unwrap();
        assert_ne!(session, self.boss);
        let mut truth: Vec<(Key, Token)> =
            self.ledger.holdings(session).unwrap().holdings.into_iter().map(|h| (h.key, h.token)).collect();
        let mut program: Vec<(Key, Token)> = self.running.clone().into_iter().collect();
        truth.sort();
        program.sort();
        assert_eq!(truth, program);
        assert!(program.iter().all(|(key, token)| self.member.is_current(key, *token)));
    }
}

fn join(session: SessionId, affinity: u32, seen: Revision) -> Op {
    Op::join(session, NodeId::new("n").unwrap()).affinity(affinity).lease_ms(1000).seen(seen).build()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn along_random_histories_the_grammar_holds_and_all_agree_in_the_end(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.converge();
    }
}

/// The store has taken the key back after it answered a reading, and the node heard of that first.
#[test]
fn a_truth_that_is_older_than_a_refusal_brings_nothing_back() {
    let mut member = joined();
    started(&mut member, "a", 1);
    let old = Holdings { seq: member.seq(), holdings: vec![holding("a", 1)] };
    member.reading();
    member.disowned(&key("a"), Token(1));
    let stop = member.next_stop().unwrap();
    assert_eq!((stop.token, stop.reason), (Token(1), StopReason::Lost));
    assert!(matches!(member.confirm(&key("a"), Token(1)), Ok(Confirmation::Local)));
    member.read(old);
    assert_eq!(member.next_start(), None, "it has an owner elsewhere");
    assert!(!member.is_current(&key("a"), Token(1)));
}

#[test]
fn a_truth_that_is_older_than_a_refusal_does_not_silence_the_loss() {
    let mut member = joined();
    started(&mut member, "a", 1);
    let old = Holdings { seq: member.seq(), holdings: vec![holding("a", 1)] };
    member.reading();
    member.disowned(&key("a"), Token(1));
    member.read(old);
    for op in member.take_outbox() {
        let Op::Confirm { key, token, .. } = op else { panic!("{op:?}") };
        member.gone(&key, token);
    }
    assert_eq!(member.next_stop().map(|stop| stop.reason), Some(StopReason::Lost));
}
