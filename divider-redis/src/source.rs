//! Work that is found instead of declared: one key for each pub/sub channel that somebody listens to.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use divider_core::{Group, SourceError, Work, WorkSource};
use redis::Value;

use crate::{
    RedisStore,
    connection::{Commands, Repeat},
    reply::Reply,
    target::Target,
};

/// Finds work as the first Divider did: every pub/sub channel whose name begins with the group's, and that has a
/// subscriber at the moment, is a key. A program that streams `/process/me/1234` to whoever listens then needs to declare
/// nothing: a listener arrives, and the key `1234` is assigned to a node; the last one leaves, and the key goes.
///
/// The channels are the program's own and are not encoded in any way. Subscriptions by pattern do not count, and neither
/// do the channels of [`RedisStore`] itself. Names that cannot be keys (empty, too long, with a NUL, not UTF-8) are left
/// out.
///
/// ```
/// use divider_redis::{PubSubChannels, RedisStore};
/// let group = divider_core::Group::new("/process/me/")?;
/// let store = RedisStore::builder("redis://127.0.0.1:6379", group).build()?;
/// let source = PubSubChannels::new(&store);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct PubSubChannels {
    /// A connection of its own: the answer may be long, and nothing of the store should wait for it.
    connection: Arc<Commands>,
    target: Target,
    group: Group,
}

impl PubSubChannels {
    /// Looks for channels on the server of a store, with the store's URL and time limits, by the name of its group.
    pub fn new(store: &RedisStore) -> Self {
        let (target, limits, group) = store.place();
        Self { connection: Arc::new(Commands::own(target.clone(), limits)), target, group }
    }

    fn key(&self, name: &Reply) -> Option<Work> {
        let Reply(Value::BulkString(name)) = name else { return None };
        // The pattern is only a help to the server; what counts is the exact prefix.
        let key = name.strip_prefix(self.group.as_str().as_bytes())?;
        divider_core::Key::from_bytes(key).ok().map(Work::from)
    }
}

#[async_trait]
impl WorkSource for PubSubChannels {
    async fn fetch(&self) -> Result<Vec<Work>, SourceError> {
        let mut cmd = redis::cmd("PUBSUB");
        cmd.arg("CHANNELS").arg(pattern(self.group.as_str()));
        let answer = self.connection.ask(cmd, Repeat::Idempotent).await?.map_err(|error| self.target.error(error))?;
        let names = Reply(answer).array()?;
        let mut work: Vec<Work> = names.iter().filter_map(|name| self.key(name)).collect();
        // Several nodes of a cluster may each have listeners to one channel.
        work.sort_by(|a, b| a.key.cmp(&b.key));
        work.dedup_by(|a, b| a.key == b.key);
        Ok(work)
    }
}

impl fmt::Debug for PubSubChannels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PubSubChannels").field("group", &self.group).finish_non_exhaustive()
    }
}

/// A glob pattern for everything that begins with the text, whatever the text means to Redis.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_pattern_is_escaped() {
        assert_eq!(pattern("/a*[b]?\\^{-}é/"), "/a\\*\\[b\\]\\?\\\\^{-}é/*");
    }
}
