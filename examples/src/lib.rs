//! divider-examples
