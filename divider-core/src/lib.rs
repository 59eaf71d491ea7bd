//! Divider splits keyed work among the nodes of a service: each key runs on exactly one live node, in proportion to how much
//! work each node wants, with a fencing token.
//!
//! This crate is all of it but the backends that need a server: the interface that programs use ([`Divider`], implemented by
//! [`Node`]; [`Worker`] runs a task per key over it), the protocol (pure: the public [`Ledger`] decides who
//! owns what; member, leader and planner are internal), the trait that a backend implements ([`Store`]), and the
//! in-memory backend ([`MemoryStore`]).
//!
//! # In short
//! ```
//! use divider_core::{Divider, Event, MemoryStore, Node, Work};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder(MemoryStore::new()).build()?;
//! let mut events = node.events();
//! node.start().await?;
//! node.add_work(vec![Work::new("tenant-17")?]).await?;
//! let Some(Event::Start(work)) = events.next().await else { panic!("nothing else can come first") };
//! assert!(node.is_current(&work.key, work.token));
//! # Ok(()) }
//! ```
//!
//! # Words
//! | word | what it means here |
//! | --- | --- |
//! | group | the nodes and keys that belong together, by name; has one [`Ledger`] and at most one leader |
//! | key, work | a [`Key`] names a piece of work; [`Work`] is what is declared of it: weight, priority, due time, payload |
//! | node, session | a [`Node`] is in a group by a session ([`SessionId`]); after a loss it joins with a new one |
//! | lease, beat | how long a session may be silent, and the number that a renewal raises ([`Beat`]) |
//! | token | the fencing token of one ownership of a key ([`Token`]): a later owner has a higher one |
//! | affinity | how much work a node wants, in proportion to the others |
//! | leader, term | the node that gives keys out ([`Op::Assign`]), and the number of its leadership ([`Term`]) |
//! | op, outcome | one atomic request to the ledger ([`Op`]), and what it did with it ([`Outcome`]) |
//! | revision, batch, change | each batch that changed something raises the [`Revision`]; a [`Batch`] has its [`Change`]s |
//! | message, notice | what a session is told ([`Message`], [`Notice`]), numbered without gaps |
//! | holding, assignment | a key that is held, as the store says ([`Holding`]) and as the program hears ([`Assignment`]) |
//! | hint | a wake-up that may be lost ([`Hint`]); the truth is read |
//! | view | the state of one thing, as others see it ([`KeyView`], [`SessionView`], [`GroupView`], [`LeaderView`]) |
//! | lineage | the life of a store's data; a new one, which may have forgotten something, grants nothing for a lease |
//! | generation | counts how often work was declared again while or after it was done |
//! | suspect, set aside | a key whose owners keep dying, and one that nobody starts before a person says so |
//!
//! # Where to read on
//! [`Divider`] has the rules of delivery, [`NodeConfig`] every setting, [`limits`] every limit, [`Store`] what a backend
//! promises.
//!
//! Why no two nodes act on a key at once: the ledger gives a key to one session at a time, under a token that only
//! rises; and it takes one from a silent session no sooner than the lease after its last renewal was noticed, by when
//! the node, which counts from before it sent that renewal and stops a twentieth of the lease earlier, no longer
//! believes in it. That assumes clocks whose *speeds* differ by less than 5 %, and nothing about what they show. The
//! repository's page on the algorithm has the whole argument.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod caught;
pub mod clock;
mod config;
mod divider;
mod error;
mod fence;
pub mod format;
mod ids;
#[cfg_attr(not(feature = "unstable-sim"), allow(dead_code, unreachable_pub))]
mod leader;
mod lease;
pub mod ledger;
pub mod limits;
#[cfg_attr(not(feature = "unstable-sim"), allow(dead_code, unreachable_pub))]
mod member;
#[cfg_attr(not(feature = "unstable-sim"), allow(unreachable_pub))]
mod memory;
#[cfg_attr(not(feature = "unstable-sim"), allow(dead_code, unreachable_pub))]
mod node;
mod op;
mod pace;
#[cfg_attr(not(feature = "unstable-sim"), allow(dead_code, unreachable_pub))]
mod planner;
mod record;
#[cfg(feature = "unstable-sim")]
pub mod sim;
mod source;
mod store;
mod worker;

pub use clock::{Clock, Instant, SystemClock};
pub use config::{NodeConfig, Quarantine};
pub use divider::{Assigned, Assignment, Divider, Event, Events, Flushed, IntoDivider, NotHandedOver, Release, Stop};
pub use error::{ConfigError, Error, InvalidInput, StoreError};
pub use fence::{Fence, Stale};
pub use ids::{Beat, Group, Key, NodeId, Revision, SessionId, Term, Token};
pub use ledger::{Effects, Frozen, Ledger};
pub use memory::MemoryStore;
pub use node::{Health, Node, NodeBuilder};
pub use op::{
    Applied, Batch, Blame, Change, Finding, GroupView, Holding, Join, Message, Notice, Op, Outcome, Refusal,
    SessionView, Verdict,
};
pub use planner::{Balance, MaxInFlight};
pub use record::{Aside, Blob, Deaths, Declaration, KeyView, Record, State, StopReason, Text, Work};
pub use source::{FnSource, RemovalLimit, SourceConfig, SourceError, SourceMode, WorkSource};
pub use store::{Claim, Cursor, Hint, HintStream, Holdings, LeaderView, Page, PollReply, Stats, Store, Topic};
pub use worker::{Hold, Job, Next, Retry, SecondSignal, StopSignal, TaskError, Worker, shutdown_signal};

/// The example of the README is tested like all others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
