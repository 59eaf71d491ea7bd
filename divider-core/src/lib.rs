//! The vocabulary, the protocol and the driver of Divider, and its in-memory backend.

pub mod clock;
mod error;
mod ids;
pub mod ledger;
pub mod limits;
mod op;
mod record;
mod store;

pub use clock::{Clock, Instant, SystemClock};
pub use error::{ConfigError, Error, InvalidInput, StoreError};
pub use ids::{Beat, Group, Key, NodeId, Revision, SessionId, Term, Token};
pub use ledger::{Effects, Ledger};
pub use op::{Applied, Batch, Change, GroupView, Holding, Message, Notice, Op, Outcome, Refusal, SessionView};
pub use record::{Blob, KeyView, Record, State, StopReason, Work};
pub use store::{Claim, Cursor, Hint, HintStream, Holdings, Page, Sighting, Standing, Stats, Store, Topic};
