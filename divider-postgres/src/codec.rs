//! Between the vocabulary of the core and what the SQL functions take and return.
//!
//! A batch goes out as parallel arrays, one element for each op, cut into runs (see `0003_runs.sql`). Changes and notices
//! come back as JSON arrays that begin with their kind.

mod ops;
mod read;

pub(crate) use ops::Encoded;
pub(crate) use ops::used;
pub(crate) use read::{HoldingRow, Past, Run, Unread, batch, corrupt, holding, notices, outcomes, sessions, views};

/// To the database's only whole number. Nothing is ever numbered beyond 2^53, so what does not fit matches nothing.
pub(crate) fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// From the database's only whole number, where it cannot be negative.
pub(crate) fn unsigned(n: i64) -> Result<u64, divider_core::StoreError> {
    u64::try_from(n).map_err(|_| corrupt("a number that is not negative"))
}
