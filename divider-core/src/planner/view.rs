//! What the planner knows, for those who ask.

use super::board::{Key, Node, Open, State};
use super::quota::{Remainders, Share, divide};
use super::{Counters, KeyIx, KeyState, NodeIx, Planner};

impl Planner {
    /// The weight that a node should have: its share, made whole. O(1) after a [`moves`](Self::moves) that looked at the
    /// quotas and nothing since, else O(nodes).
    pub fn quota(&self, n: NodeIx) -> u64 {
        if self.quota_epoch == self.epoch {
            return self.quotas.get(n.0 as usize).copied().unwrap_or(0);
        }
        let mut shares = Vec::new();
        let unit = self.divide_quotas(&mut shares, &mut Vec::new());
        shares.iter().find(|share| share.node == n.0).map_or(0, |share| share.quota * unit)
    }

    /// The weight that a node has: of the keys that it owns and that no one asked it to stop, of those proposed to it
    /// and of those on the move to it.
    pub fn load(&self, n: NodeIx) -> u64 {
        self.live(n).map_or(0, |node| node.load)
    }

    /// How many keys a node physically holds, owned and stopping.
    pub fn held(&self, n: NodeIx) -> u32 {
        self.live(n).map_or(0, |node| node.held)
    }

    /// Whether a node is still entitled to pull keys up to its quota.
    pub fn is_newcomer(&self, n: NodeIx) -> bool {
        self.live(n).is_some_and(|node| node.newcomer)
    }

    /// The node that holds a key, owned or stopping.
    pub fn owner(&self, k: KeyIx) -> Option<NodeIx> {
        let key = self.known(k.0)?;
        matches!(key.state, State::Owned | State::Stopping).then_some(NodeIx(key.place))
    }

    /// The node that a key on the move is meant for, while that node lives.
    pub fn target(&self, k: KeyIx) -> Option<NodeIx> {
        let target = self.known(k.0)?.target;
        self.is_alive(target).then_some(NodeIx(target))
    }

    /// Where a key stands; `None` when there is no such key.
    pub fn state(&self, k: KeyIx) -> Option<KeyState> {
        let key = self.known(k.0)?;
        let place = NodeIx(key.place);
        match key.state {
            State::Vacant => None,
            State::Parked => Some(KeyState::Parked),
            State::Ready => Some(KeyState::Ready),
            State::Proposed => Some(KeyState::Proposed(place)),
            State::Owned => Some(KeyState::Owned(place)),
            State::Stopping => Some(KeyState::Stopping(place)),
        }
    }

    /// Whether [`moves`](Self::moves) has named the key, and its owner still has it.
    pub(crate) fn is_to_move(&self, k: KeyIx) -> bool {
        self.known(k.0).is_some_and(|key| key.in_flight && key.state == State::Owned)
    }

    /// Keys by where they stand.
    pub fn counters(&self) -> Counters {
        Counters {
            parked: self.count(State::Parked),
            ready: self.count(State::Ready),
            proposed: self.count(State::Proposed),
            owned: self.count(State::Owned),
            stopping: self.count(State::Stopping),
            in_flight: self.in_flight,
        }
    }

    /// The total weight that is divided: of all keys that are not parked.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// What the planner has allocated, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.keys.capacity() * size_of::<Key>()
            + self.nodes.capacity() * size_of::<Node>()
            + (self.free_keys.capacity() + self.free_nodes.capacity()) * size_of::<u32>()
            + (self.prevs.capacity() + self.heads.capacity() + self.batch.capacity() + self.newcomers.capacity())
                * size_of::<u32>()
            + self.settled.capacity() * size_of::<NodeIx>()
            + self.quotas.capacity() * size_of::<u64>()
            + self.shares.capacity() * size_of::<Share>()
            + self.remainders.capacity() * size_of_val(&(0u64, 0u64, 0u32))
            + self.queue.heap_bytes()
            + self.ranking.heap_bytes()
    }

    pub(super) fn count(&self, state: State) -> usize {
        self.counts[state as usize]
    }

    pub(super) fn planned_keys(&self) -> u64 {
        [State::Ready, State::Proposed, State::Owned, State::Stopping].iter().map(|&s| self.count(s) as u64).sum()
    }

    /// Fills `shares` with the nodes that take part and their quotas in units, and returns the unit.
    pub(super) fn divide_quotas(&self, shares: &mut Vec<Share>, scratch: &mut Remainders) -> u64 {
        let (unit, equal) = self.unit();
        let unit = if equal { unit } else { 1 };
        shares.clear();
        let nodes = (0u32..).zip(&self.nodes).filter(|(_, node)| node.takes_part());
        if unit == 1 {
            shares.extend(nodes.map(|(n, node)| share(n, node, node.load)));
        } else {
            shares.extend(nodes.map(|(n, node)| share(n, node, node.load / unit)));
        }
        divide(self.weight / unit, shares, scratch);
        unit
    }

    /// Sums up anew over the nodes that could be given a key, after a change of many of them.
    pub(super) fn recount_open(&mut self) {
        let mut open = Open::default();
        for node in &mut self.nodes {
            node.open = node.takes_part() && node.room() > 0;
            if node.open {
                open.nodes += 1;
                open.load += node.load;
                open.affinity += u64::from(node.affinity);
                open.room += u64::from(node.room());
            }
        }
        self.open = open;
    }

    fn live(&self, n: NodeIx) -> Option<&Node> {
        self.nodes.get(n.0 as usize).filter(|node| node.alive)
    }
}

fn share(node: u32, of: &Node, load: u64) -> Share {
    // A tie between a newcomer and another is no reason to move a key, whichever of them has more by now. More than any load
    // is what the others are put ahead by.
    let ahead = if of.newcomer { 0 } else { 1 << 63 };
    Share { node, affinity: of.affinity, load: load + ahead, quota: 0 }
}
