//! What a sink does with tokens.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::ids::{Key, Token};

/// Refuses writes of old owners: remembers for each key the highest token that it has seen.
///
/// It belongs where the writes arrive, in the one process that carries them out, and not beside the
/// [`Worker`](crate::Worker) that sends them: two processes with a fence each would not know of each other's tokens.
/// It is in memory, keeps one number for each key that it has seen, and begins anew with its process; so does the
/// sink, or else keep the token with the data.
///
/// ```
/// # use divider_core as divider;
/// use divider::{Fence, Key, Token};
/// let (fence, key) = (Fence::default(), Key::new("account-7")?);
/// fence.check(&key, Token(1))?;
/// fence.check(&key, Token(2))?; // The next owner.
/// fence.check(&key, Token(2))?; // It may write as often as it likes.
/// assert_eq!(fence.check(&key, Token(1)).unwrap_err().seen, Token(2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # In a database
/// There the token is a column, compared and written in one statement with what it protects. No row means: stale.
///
/// ```sql
/// CREATE TABLE account (key text PRIMARY KEY, value text NOT NULL, token bigint NOT NULL);
///
/// INSERT INTO account (key, value, token) VALUES ($1, $2, $3)
///     ON CONFLICT (key) DO UPDATE SET value = excluded.value, token = excluded.token
///     WHERE account.token <= excluded.token
///     RETURNING key;
/// ```
#[derive(Debug, Default)]
pub struct Fence {
    highest: Mutex<HashMap<Key, Token>>,
}

/// A write whose key has a newer owner by now. It must not be carried out; whoever sent it has lost the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token {given} of the key {key} is stale: {seen} has been seen")]
#[non_exhaustive]
pub struct Stale {
    /// The key.
    pub key: Key,
    /// The token of the write.
    pub given: Token,
    /// The highest token that the key's writes have shown.
    pub seen: Token,
}

impl Fence {
    /// Whether a write for the key may be carried out under this token: not where a higher one has been seen. From now
    /// on lower ones are refused.
    ///
    /// Nothing may come between the check and the write that it allows, or a newer owner's write could be overwritten
    /// after all. So do both in one place, one write of a key after the other.
    ///
    /// # Errors
    /// [`Stale`]: nothing has changed.
    pub fn check(&self, key: &Key, token: Token) -> Result<(), Stale> {
        let mut highest = self.highest.lock();
        match highest.get_mut(key) {
            Some(seen) if *seen > token => Err(Stale { key: key.clone(), given: token, seen: *seen }),
            Some(seen) => {
                *seen = token;
                Ok(())
            }
            None => {
                highest.insert(key.clone(), token);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_owner_is_refused_once_a_newer_one_has_written_and_each_key_counts_for_itself() {
        let fence = Fence::default();
        let [key, other] = ["key", "other"].map(|key| Key::new(key).unwrap());
        fence.check(&key, Token(3)).unwrap();
        fence.check(&key, Token(3)).unwrap();
        fence.check(&key, Token(5)).unwrap();
        let stale = fence.check(&key, Token(3)).unwrap_err();
        assert_eq!(stale, Stale { key: key.clone(), given: Token(3), seen: Token(5) });
        assert_eq!(stale.to_string(), "token 3 of the key key is stale: 5 has been seen");
        fence.check(&key, Token(5)).unwrap();
        fence.check(&other, Token(1)).unwrap();
    }
}
