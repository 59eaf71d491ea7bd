//! The vocabulary, the protocol and the driver of Divider, and its in-memory backend.

pub mod clock;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod divider;
mod error;
mod ids;
pub mod leader;
mod lease;
pub mod ledger;
pub mod limits;
pub mod member;
mod memory;
mod node;
mod op;
pub mod planner;
mod record;
mod source;
mod store;
mod worker;

pub use clock::{Clock, Instant, SystemClock};
pub use config::{NodeConfig, Quarantine};
pub use divider::{Assigned, Assignment, Divider, Event, Events, Flushed, Stop};
pub use error::{ConfigError, Error, InvalidInput, StoreError};
pub use ids::{Beat, Group, Key, NodeId, Revision, SessionId, Term, Token};
pub use ledger::{Effects, Ledger};
pub use memory::{Beats, MemoryStore};
pub use node::{Node, NodeBuilder};
pub use op::{Applied, Batch, Change, GroupView, Holding, Message, Notice, Op, Outcome, Refusal, SessionView};
pub use planner::{Balance, MaxInFlight};
pub use record::{Blob, KeyView, Record, State, StopReason, Work};
pub use source::{FnSource, SourceConfig, SourceError, SourceMode, WorkSource};
pub use store::{Claim, Cursor, Hint, HintStream, Holdings, Page, Sighting, Standing, Stats, Store, Topic};
pub use worker::{Job, Next, StopSignal, TaskError, Worker, shutdown_signal};
