//! A ledger as it was at one moment.

use serde::{Serialize, Serializer};

use super::Ledger;

/// A picture of a [`Ledger`], to be stored while the ledger goes on. Its stored form is the ledger's own.
///
/// It costs a few milliseconds to make one of a million keys, and next to no memory: the records are shared. A change of the
/// ledger copies what it changes, and what stands near that, once for each picture that is kept.
#[derive(Clone, Debug)]
pub struct Frozen(
    /// Without names and without the sessions' keys.
    Ledger,
);

impl Ledger {
    /// A picture of this moment. It says what the ledger says, which does not change by it.
    pub fn freeze(&mut self) -> Frozen {
        let sessions = self.sessions.iter().map(|(id, session)| (*id, session.freeze())).collect();
        Frozen(Self { keys: self.keys.freeze(), sessions, log: self.log.clone(), ..*self })
    }
}

impl Frozen {
    /// With the sessions' keys.
    fn whole(&self) -> Ledger {
        let Frozen(mut ledger) = self.clone();
        let Ledger { keys, sessions, .. } = &mut ledger;
        for (place, entry) in keys.from(0) {
            if let Some((session, _)) = entry.state.owner()
                && let Some(session) = sessions.get_mut(&session)
            {
                session.keys.insert(place);
            }
        }
        ledger
    }
}

impl Serialize for Frozen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.whole().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        strategy::{Strategy, ValueTree},
        test_runner::TestRunner,
    };

    use super::*;
    use crate::{
        format,
        ids::{Key, NodeId, Revision, SessionId, Term, Token},
        op::{Op, Outcome},
        record::Work,
    };

    fn key(number: u64) -> Key {
        Key::new(format!("key-{number}")).unwrap()
    }

    fn join(number: u64, seen: Revision) -> (SessionId, Op) {
        let session = SessionId(uuid::Uuid::from_u128(number.into()));
        let node = NodeId::new(format!("node-{number}")).unwrap();
        let reads = format::NEWEST;
        (session, Op::join(session, node).affinity(10).seen(seen).reads(reads).build())
    }

    /// The same numbers in every run.
    struct Dice(TestRunner);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            (0..limit).new_tree(&mut self.0).unwrap().current()
        }
    }

    /// Something about a key, in the name of its owner where it has one.
    fn any(dice: &mut Dice, ledger: &Ledger, term: Term, sessions: &[SessionId]) -> Op {
        let key = key(dice.below(60));
        let session = sessions[dice.below(sessions.len() as u64) as usize];
        let owner = ledger.record(&key).and_then(|record| record.view.state.owner());
        match (dice.below(8), owner) {
            (0, _) => Op::Remove { key },
            (1 | 2, _) => Op::Add(Work::from(key).payload(vec![7; dice.below(3) as usize])),
            (3, Some((_, token))) => Op::Revoke { term, key, token },
            (4, Some((session, token))) => Op::confirm(session, key, token),
            (5, Some((session, token))) => Op::Checkpoint { session, key, token, bytes: vec![8; 2].into() },
            (6, None) => Op::Quarantine { term, key },
            _ => Op::assign(term, key, session),
        }
    }

    fn stored(ledger: &impl Serialize) -> Vec<u8> {
        postcard::to_stdvec(ledger).unwrap()
    }

    #[test]
    fn a_picture_is_stored_as_the_ledger_was_whatever_changes_after_it_and_changes_nothing_itself() {
        let mut dice = Dice(TestRunner::deterministic());
        let (mut ledger, mut twin) = (Ledger::new(), Ledger::new());
        let mut sessions = Vec::new();
        for number in 0..6 {
            let (session, op) = join(number, Revision(0));
            sessions.push(session);
            for ledger in [&mut ledger, &mut twin] {
                ledger.apply(std::slice::from_ref(&op), Token(0));
            }
        }
        let term = [&mut ledger, &mut twin].map(|ledger| ledger.lead(sessions[0], Term(0)).0.unwrap())[0];
        let mut pictures = Vec::new();
        let mut done = 0;
        for step in 0..3000 {
            if step % 100 == 0 {
                pictures.push((ledger.freeze(), stored(&ledger)));
            }
            // Some are gone before the next one is made, and some outlive others.
            if step % 300 == 250 {
                let (picture, before) = pictures.swap_remove(dice.below(pictures.len() as u64) as usize);
                assert!(stored(&picture) == before, "step {step}");
            }
            let op = match step {
                1000 => Op::End { session: sessions[1] },
                2000 => Op::End { session: sessions[2] },
                _ => any(&mut dice, &ledger, term, &sessions),
            };
            let effects = ledger.apply(std::slice::from_ref(&op), Token(0));
            done += u64::from(!matches!(effects.outcomes[0], Outcome::Refused(_) | Outcome::Unchanged));
            assert_eq!(effects, twin.apply(&[op], Token(0)), "step {step}");
        }
        assert!(done > 1000, "{done} of them did something");
        assert!(ledger.stats().quarantined > 0 && ledger.stats().stopping > 0, "{:?}", ledger.stats());
        assert_eq!(ledger, twin);
        for (picture, before) in pictures {
            assert!(stored(&picture) == before);
            let again: Ledger = postcard::from_bytes(&before).unwrap();
            assert!(stored(&again) == before);
        }
    }
}
