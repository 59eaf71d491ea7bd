//! Nodes come, change and go.

use super::board::{LISTS, NONE, Node, State};
use super::{NodeIx, NodeSpec, Planner};

impl Planner {
    /// A node joins.
    ///
    /// A newcomer (`settled` is false) is entitled to pull keys from others until it has its quota. One that was there
    /// before, on a board that a new leader has just loaded, is not: who leads must not decide who has what.
    pub fn join(&mut self, spec: NodeSpec, settled: bool) -> NodeIx {
        let n = match self.free_nodes.pop() {
            Some(n) => n,
            None => {
                self.nodes.push(Node { alive: false, ..Node::new(spec) });
                self.heads.resize(self.nodes.len() * LISTS, NONE);
                self.quotas.push(0);
                self.nodes.len() as u32 - 1
            }
        };
        self.ranking.admit(n);
        self.ranking.reseat();
        self.with_node(n, |node| *node = Node::new(spec));
        if !settled {
            self.entitle(n);
        }
        self.stir();
        NodeIx(n)
    }

    /// A node leaves, or its session has expired. Its keys are free and ready, after those that wait already.
    ///
    /// Only they are touched: O(keys of the leaver). A key that was on its way elsewhere stays on its way. A node that
    /// has left already changes nothing.
    pub fn leave(&mut self, n: NodeIx) {
        let n = n.0;
        if !self.is_alive(n) {
            return;
        }
        self.with_node(n, |node| {
            node.alive = false;
            node.newcomer = false;
            node.load = 0;
            node.held = 0;
            node.proposed = 0;
            node.classes = 0;
        });
        self.newcomers.retain(|&other| other != n);
        self.settled.retain(|other| other.0 != n);
        for list in 0..LISTS {
            let mut k = std::mem::replace(&mut self.heads[n as usize * LISTS + list], NONE);
            while k != NONE {
                let key = &mut self.keys[k as usize];
                let next = key.next;
                self.counts[key.state as usize] -= 1;
                self.counts[State::Ready as usize] += 1;
                key.state = State::Ready;
                self.pinned -= usize::from(std::mem::take(&mut key.pinned));
                key.place = NONE;
                // A target bears the load of its key already, and still does.
                let target = key.target;
                if target != NONE && !self.nodes[target as usize].alive {
                    key.target = NONE;
                    self.nodes[target as usize].inbound -= 1;
                    if target != n {
                        self.reap(target);
                    }
                }
                self.queue.push(&mut self.keys, &mut self.prevs, k);
                k = next;
            }
        }
        self.stir();
        self.reap(n);
    }

    /// A node changed its affinity, its capacity or whether it accepts keys.
    ///
    /// What it and the others own stays where it is, unless the policy is [`Continuous`](super::Balance::Continuous) or
    /// [`rebalance`](Self::rebalance) is called. A capacity below what it holds takes nothing away either.
    pub fn set_node(&mut self, n: NodeIx, spec: NodeSpec) {
        if !self.is_alive(n.0) {
            return;
        }
        self.with_node(n.0, |node| {
            node.affinity = spec.affinity;
            node.capacity = spec.capacity.unwrap_or(u32::MAX);
            node.accepting = spec.accepting;
        });
        self.ranking.reseat();
        self.stir();
    }

    /// Entitles every node to its quota, as if all had just joined. The moves follow, paced, from
    /// [`moves`](Self::moves), and every node is reported by [`take_settled`](Self::take_settled) once more.
    pub fn rebalance(&mut self) {
        for n in 0..self.nodes.len() as u32 {
            if self.nodes[n as usize].alive {
                self.entitle(n);
            }
        }
        self.stir();
    }

    fn entitle(&mut self, n: u32) {
        if !std::mem::replace(&mut self.nodes[n as usize].newcomer, true) {
            self.newcomers.push(n);
        }
    }

    pub(super) fn is_alive(&self, n: u32) -> bool {
        self.nodes.get(n as usize).is_some_and(|node| node.alive)
    }

    /// Something changed that quotas depend on.
    pub(super) fn stir(&mut self) {
        self.epoch += 1;
        self.stirred = true;
    }
}
