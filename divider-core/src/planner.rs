//! Who should have which key: the planner.
//!
//! # Why
//!
//! Work is divided well when three things hold together: every node has its fair share, nothing moves that need not
//! move, and finding that out costs next to nothing. The usual answers give up one of them. Hashing moves little but
//! leaves some node with half as much again as the mean; dividing everything anew is even but moves keys that were fine
//! where they were, and reads the whole board for each change.
//!
//! # How
//!
//! The planner keeps a picture of the board and is told what happens: a node joins or leaves, a key appears, wants an
//! owner, has one, is asked to stop. It is asked for two things: owners for the keys that wait
//! ([`assignments`](Planner::assignments)) and keys that should change hands ([`moves`](Planner::moves)). Facts always
//! win over what it proposed, so it can be wrong about the store for a moment without harm.
//!
//! - **Quota.** A node's share of the total weight is in proportion to its affinity, made whole by the method of largest
//!   remainder; ties go to whoever holds more, which saves a move, and to newcomers last. When all weights are equal the
//!   unit is a key.
//! - **New keys** go to the node with the lowest load per affinity, by a rule that keeps every node within one key of its
//!   share while keys come one at a time; many at once fill the deficits exactly.
//! - **A leave** frees the leaver's keys and touches no other.
//! - **A join** entitles the newcomer to its quota, which it takes from the nodes most above theirs, one at a time: the
//!   least number of moves that can balance equal keys. Once it has it, it is *settled* and nothing moves any more.
//! - **Leaves and joins at once**: keys without an owner go to newcomers first, up to their quotas, and only what is missing
//!   then is taken from others. So with equal keys there are as many moves as keys without an owner, or as keys that the
//!   newcomers lack of their quotas, whichever is more; no plan that gives newcomers their quotas does with fewer.
//! - **Draining** (not accepting) is a matter of the node: it gives its keys up by itself, the planner only sends it none.
//!
//! It is pure: no clock, no I/O, no strings, no randomness and no hash tables. The same calls give the same answers.
//!
//! # Costs
//!
//! A key costs 28 bytes (up to twice that while a vector has just grown). A fact costs O(1), a new key O(log nodes), a
//! leave O(keys of the leaver), a plan for many keys O(keys + nodes). The quotas are divided anew, O(nodes), only
//! while there is a newcomer to serve or under [`Balance::Continuous`], after something that changes them: by
//! [`moves`](Planner::moves), and by [`assignments`](Planner::assignments) for newcomers.

mod assign;
mod board;
mod bulk;
mod facts;
mod membership;
#[cfg(test)]
mod model;
mod moves;
mod queue;
mod quota;
mod ranking;
mod view;

use std::fmt;

use board::{Key, Node, Open, STATES};
use queue::Queue;
use quota::{Remainders, Share};
use ranking::Ranking;

/// The largest weight of a key. A weight outside `1..=MAX_WEIGHT` is taken as the nearest one inside.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// A key, by its place in the planner. Places are used again after [`Planner::remove_key`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyIx(pub u32);

/// A live session, by its place in the planner. Places are used again after [`Planner::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIx(pub u32);

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// How much it wants, relative to the others. Zero: no new keys.
    pub affinity: u32,
    /// The most keys it will hold at a time, those being stopped included. `None`: no limit.
    pub capacity: Option<u32>,
    /// False while it drains: it is given no keys, and gives up those it has by itself.
    pub accepting: bool,
}

/// When keys that have an owner may be moved for the sake of balance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Balance {
    /// Only to give a newcomer its quota, and on [`Divider::rebalance`](crate::Divider::rebalance).
    OnJoin,
    /// Also whenever a node is above its quota by more than this part of it (0.1 is ten per cent).
    Continuous {
        /// Read once, to a millionth; negative and not-a-number count as zero.
        tolerance: f64,
    },
}

/// How many keys may be between two owners at a time because of balancing. Keys without an owner are never held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxInFlight {
    /// This part of all planned keys, at least one.
    Percent(u8),
    /// This many.
    Keys(u32),
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Free, and not to be assigned.
    Parked,
    /// Free, and waiting for an owner.
    Ready,
    /// An owner was picked, and nothing heard of it yet.
    Proposed(NodeIx),
    /// Assigned.
    Owned(NodeIx),
    /// Still with its owner, which was asked to stop it.
    Stopping(NodeIx),
}

/// Keys by where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Free and not to be assigned.
    pub parked: usize,
    /// Waiting for an owner.
    pub ready: usize,
    /// Offered to a node.
    pub proposed: usize,
    /// Assigned.
    pub owned: usize,
    /// Being stopped.
    pub stopping: usize,
    /// Between two owners because of balancing. These are counted above as well.
    pub in_flight: usize,
}

/// The incremental planner. It is told what happens, and says which key goes where.
pub struct Planner {
    /// Parts per million above its quota from which on a node is relieved; `None` under [`Balance::OnJoin`].
    tolerance: Option<u64>,
    max_in_flight: MaxInFlight,

    keys: Vec<Key>,
    /// By key: the one before it in its list. Apart from the rest because many are written far from where one reads, and
    /// these alone stay in the cache.
    prevs: Vec<u32>,
    free_keys: Vec<u32>,
    nodes: Vec<Node>,
    free_nodes: Vec<u32>,
    /// The first key of each list of each node: `LISTS` to a node.
    heads: Vec<u32>,
    queue: Queue,
    ranking: Ranking,

    /// Keys by state.
    counts: [usize; STATES],
    in_flight: usize,
    /// Total weight of the planned keys, which are all but the parked ones, and the sum of its squares.
    weight: u64,
    squares: u128,
    open: Open,

    /// Nodes that may pull keys up to their quota, in the order in which they came.
    newcomers: Vec<u32>,
    settled: Vec<NodeIx>,
    /// Goes up with all that could change a quota or who is above it; moves themselves do not.
    epoch: u64,
    /// The epoch that `quotas` belongs to.
    quota_epoch: u64,
    quotas: Vec<u64>,
    /// Something happened since the last look for moves.
    stirred: bool,
    /// Keys that are pinned.
    pinned: usize,

    /// Buffers that are empty between calls, kept so that a call allocates nothing.
    batch: Vec<u32>,
    shares: Vec<Share>,
    remainders: Remainders,
}

impl Planner {
    /// An empty board.
    pub fn new(balance: Balance, max_in_flight: MaxInFlight) -> Self {
        let tolerance = match balance {
            Balance::OnJoin => None,
            // A cast from a float saturates, and makes zero of what is not a number.
            Balance::Continuous { tolerance } => Some(((tolerance * 1e6) as u64).min(1 << 40)),
        };
        Self {
            tolerance,
            max_in_flight,
            keys: Vec::new(),
            prevs: Vec::new(),
            free_keys: Vec::new(),
            nodes: Vec::new(),
            free_nodes: Vec::new(),
            heads: Vec::new(),
            queue: Queue::default(),
            ranking: Ranking::default(),
            counts: [0; STATES],
            in_flight: 0,
            weight: 0,
            squares: 0,
            open: Open::default(),
            newcomers: Vec::new(),
            settled: Vec::new(),
            epoch: 1,
            quota_epoch: 0,
            quotas: Vec::new(),
            stirred: false,
            pinned: 0,
            batch: Vec::new(),
            shares: Vec::new(),
            remainders: Vec::new(),
        }
    }
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner")
            .field("nodes", &(self.nodes.len() - self.free_nodes.len()))
            .field("counters", &self.counters())
            .field("weight", &self.weight)
            .field("newcomers", &self.newcomers.len())
            .finish_non_exhaustive()
    }
}
