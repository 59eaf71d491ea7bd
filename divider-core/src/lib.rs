//! Divider core.
