//! Divider splits keyed work among the nodes of a service: each key runs on exactly one live node, in proportion to how much
//! work each node wants, with a fencing token. When a node dies its keys run elsewhere within seconds, and when one drains
//! there is no gap.
//!
//! # In short
//! ```
//! use divider::{Divider, Event, Work};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = divider::open("memory:", "/my-service/")?.node()?.build()?;
//! let mut events = node.events();
//! node.start().await?;
//! node.add_work(vec![Work::new("tenant-17")?]).await?;
//! let Some(Event::Start(work)) = events.next().await else { panic!("nothing else can come first") };
//! assert!(node.is_current(&work.key, work.token));
//! # Ok(()) }
//! ```
//!
//! # Which store
//! [`open`] takes a URL. What a URL cannot say is set on the builders in [`raft`], [`redis`] and [`postgres`], whose
//! stores go into [`Node::builder`] as well.
//!
#![doc = include_str!("../URLS.md")]
//!
//! # Where to read on
//! [`Divider`] has the rules of delivery, [`NodeConfig`] every setting of a node, [`limits`] every limit, and
//! [`Worker`] runs a task for each key. [`Fence`] is what a sink does with tokens. What a program uses is here; what
//! only the author of a store needs is in [`store`].
#![cfg_attr(docsrs, feature(doc_cfg))]
// Documented without a backend there is nothing to lead to.
#![cfg_attr(
    not(all(feature = "postgres", feature = "raft", feature = "redis")),
    allow(rustdoc::broken_intra_doc_links)
)]

mod open;

#[doc(inline)]
pub use divider_core::{
    Aside, Assigned, Assignment, Balance, Blob, ConfigError, Deaths, Declaration, Divider, Error, Event, Events, Fence,
    Flushed, FnSource, Group, Health, Hold, IntoDivider, InvalidInput, Job, Key, KeyView, MaxInFlight, MemoryStore,
    Next, Node, NodeBuilder, NodeConfig, NodeId, NotHandedOver, Quarantine, Record, Release, RemovalLimit, Retry,
    SecondSignal, SessionId, SourceConfig, SourceError, SourceMode, Stale, State, Stats, Stop, StopReason, StopSignal,
    Store, StoreError, TaskError, Text, Token, Work, WorkSource, Worker, limits, shutdown_signal,
};
pub use open::{OpenError, OpenGroup, open};

/// For authors of a [`Store`](trait@crate::Store) of their own: what one is told, what it answers, and the
/// [`Ledger`](store::Ledger) that decides. A program needs none of it.
pub mod store {
    #[doc(inline)]
    pub use divider_core::{
        Applied, Batch, Beat, Blame, Change, Claim, Clock, Cursor, Effects, Finding, Frozen, GroupView, Hint,
        HintStream, Holding, Holdings, Instant, Join, LeaderView, Ledger, Message, Notice, Op, Outcome, Page,
        PollReply, Refusal, Revision, SessionView, SystemClock, Term, Topic, Verdict, clock, format, ledger,
    };
}

/// The embedded Raft backend: the nodes are their own store. Begin at [`RaftStore`](raft::RaftStore).
#[cfg(feature = "raft")]
pub mod raft {
    #[doc(inline)]
    pub use divider_raft::*;
}

/// The Redis backend. Begin at [`RedisStore`](redis::RedisStore).
#[cfg(feature = "redis")]
pub mod redis {
    #[doc(inline)]
    pub use divider_redis::*;
}

/// The PostgreSQL backend. Begin at [`PostgresStore`](postgres::PostgresStore); [`migrate`](postgres::migrate) makes
/// the tables.
#[cfg(feature = "postgres")]
pub mod postgres {
    /// The driver, since some of its types are part of the configuration.
    #[doc(no_inline)]
    pub use divider_postgres::sqlx;
    #[doc(inline)]
    pub use divider_postgres::{Credentials, PostgresBuilder, PostgresConfig, PostgresStore, QuerySource, migrate};
}
