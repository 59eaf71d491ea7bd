//! divider-redis
