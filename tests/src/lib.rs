//! divider-tests
