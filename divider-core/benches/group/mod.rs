//! A group without a network, for the benches: a ledger and the leader that follows it, on a clock that stands still.

use std::time::Duration;

use divider_core::{
    Applied, Effects, Instant, Key, Ledger, MaxInFlight, NodeConfig, NodeId, Op, Revision, SessionId, Term, Token,
    Work,
    leader::{Leader, Now, Proposal, TokenAges},
    limits,
};

const NOW: Now = Now { mono: Instant(1 << 40), unix_ms: 1_000_000 };

pub(crate) struct Group {
    pub(crate) ledger: Ledger,
    pub(crate) leader: Leader,
    pub(crate) sessions: Vec<SessionId>,
    token_ages: TokenAges,
}

/// A key of some length that is usual.
pub(crate) fn key(k: u32) -> Key {
    Key::new(format!("tenant-{k:09}")).expect("a name")
}

pub(crate) fn add(k: u32) -> Op {
    Op::Add(Work::from(key(k)))
}

impl Group {
    /// Nodes of equal affinity, which the leader knows already.
    pub(crate) fn new(nodes: u32) -> Self {
        let mut ledger = Ledger::new();
        let sessions: Vec<SessionId> = (0..nodes).map(|_| SessionId::fresh()).collect();
        for (n, &session) in sessions.iter().enumerate() {
            let node = NodeId::new(format!("node-{n}")).expect("a name");
            let seen = Revision(0);
            let join = Op::Join {
                session,
                node,
                affinity: 1000,
                capacity: None,
                lease_ms: 10_000,
                seen,
                reads: divider_core::format::NEWEST,
            };
            ledger.apply(&[join], Token(0));
        }
        let term = ledger.lead(sessions[0], Term(0)).0.expect("it lives");
        let mut config = NodeConfig::default();
        config.max_in_flight = MaxInFlight::Percent(100);
        let mut leader = Leader::new(config, term, None);
        leader.page(ledger.scan(None).expect("no cursor"), NOW, true);
        leader.loaded(NOW);
        let mut group = Self { ledger, leader, sessions, token_ages: TokenAges::new(Duration::from_secs(10)) };
        group.settle();
        group
    }

    /// Applies ops, and lets the leader know.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Applied {
        let Effects { outcomes, batch, .. } = self.ledger.apply(ops, Token(0));
        if let Some(batch) = batch {
            let _ = self.leader.feed(batch, NOW);
        }
        Applied { outcomes, revision: self.ledger.revision() }
    }

    pub(crate) fn propose(&mut self) -> Proposal {
        self.leader.propose(NOW, limits::MAX_BATCH_OPS, &self.token_ages)
    }

    pub(crate) fn answer(&mut self, proposal: &Proposal, applied: &Applied) {
        assert!(self.leader.answered(proposal, &applied.outcomes, applied.revision, NOW), "it still leads");
    }

    /// Lets the leader decide until it is at rest.
    pub(crate) fn settle(&mut self) {
        loop {
            let proposal = self.propose();
            if proposal.is_empty() {
                return;
            }
            let applied = self.apply(&proposal.ops);
            self.answer(&proposal, &applied);
        }
    }

    /// Declares keys and lets the leader hand them out.
    pub(crate) fn fill(&mut self, keys: std::ops::Range<u32>) {
        for start in keys.clone().step_by(limits::MAX_BATCH_OPS) {
            let end = keys.end.min(start + limits::MAX_BATCH_OPS as u32);
            self.apply(&(start..end).map(add).collect::<Vec<_>>());
            self.settle();
        }
    }
}
