//! Scripts that made a store and the ledger differ once, under the name of what must hold. Every backend runs them all.

/// Name and text, as [`script`](super::script) reads it.
pub(super) const SCRIPTS: &[(&str, &str)] = &[];
