//! Divider splits keyed work among the nodes of a service: each key runs on exactly one live node, in proportion to how much
//! work each node wants, with a fencing token.
//!
//! This crate is all of it but the backends that need a server: the interface that programs use ([`Divider`], implemented by
//! [`Node`]; [`Worker`] runs a task per key over it), the protocol ([`Ledger`], [`planner`], [`member`], [`leader`], all
//! pure), the trait that a backend implements ([`Store`]), and the in-memory backend ([`MemoryStore`]).
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
//! # Where to read on
//! [`Divider`] has the rules of delivery, [`NodeConfig`] every setting, [`limits`] every limit, [`Store`] what a backend
//! promises. The repository's `ALGORITHM.md` has the argument why no two nodes act on a key at once, and what that assumes.

mod caught;
pub mod clock;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod divider;
mod error;
pub mod format;
mod ids;
pub mod leader;
mod lease;
pub mod ledger;
pub mod limits;
pub mod member;
mod memory;
mod node;
mod op;
mod pace;
pub mod planner;
mod record;
mod source;
mod store;
mod worker;

pub use clock::{Clock, Instant, SystemClock};
pub use config::{NodeConfig, Quarantine};
pub use divider::{Assigned, Assignment, Divider, Event, Events, Flushed, IntoDivider, NotHandedOver, Release, Stop};
pub use error::{ConfigError, Error, InvalidInput, StoreError};
pub use ids::{Beat, Group, Key, NodeId, Revision, SessionId, Term, Token};
pub use ledger::{Effects, Frozen, Ledger};
pub use memory::{MemoryStore, SessionBeats};
#[doc(hidden)]
pub use node::{Environment, Task};
pub use node::{Node, NodeBuilder};
pub use op::{
    Applied, Batch, Blame, Change, Finding, GroupView, Holding, Message, Notice, Op, Outcome, Refusal, SessionView,
    Verdict,
};
pub use planner::{Balance, MaxInFlight};
pub use record::{Aside, Blob, Deaths, Declaration, KeyView, Record, State, StopReason, Text, Work};
pub use source::{FnSource, RemovalLimit, SourceConfig, SourceError, SourceMode, WorkSource};
pub use store::{Claim, Cursor, Hint, HintStream, Holdings, LeaderView, Page, PollReply, Stats, Store, Topic};
pub use worker::{Hold, Job, Next, Retry, SecondSignal, StopSignal, TaskError, Worker, shutdown_signal};
