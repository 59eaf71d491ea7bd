//! The highest token that this node has seen.
//!
//! # Why
//! A copy of the disk that was put back has the identity of the server that it was made of, so nothing in it tells that it
//! has forgotten something. Whoever has seen what it has forgotten can tell: see `attach` in `0005_lead.sql`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use divider_core::Token;

use crate::codec::number;

/// Shared by all that reads tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<AtomicU64>);

impl Seen {
    pub(crate) fn note(&self, token: Token) {
        self.0.fetch_max(token.0, Ordering::Relaxed);
    }

    /// As the database takes it; 0 where none was seen.
    pub(crate) fn last(&self) -> i64 {
        number(self.0.load(Ordering::Relaxed))
    }
}
