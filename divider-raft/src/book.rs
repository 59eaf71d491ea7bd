//! Who is where, by the word of each member itself and of others.
//!
//! The membership in the log says at which address each member was when that was decided. Where many have moved at once
//! nothing can be decided before they have found each other again, so that is not enough: a member is its id, and it is
//! looked for at each address at which somebody has met it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::raft::Peer;

/// Most members that are noted: whoever reaches an open port can say to be anybody.
const MOST: usize = 1024;

/// What a process knows. Clones are the same book.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book(Arc<Mutex<HashMap<u64, Entry>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    address: String,
    /// Said by the member, not of it.
    own: bool,
}

impl Book {
    /// A member has said where it is, over a connection of its own or when it was asked.
    pub(crate) fn met(&self, peer: &Peer) {
        self.note(peer, true);
    }

    /// Somebody else has said where it is.
    pub(crate) fn heard_of(&self, peer: &Peer) {
        self.note(peer, false);
    }

    fn note(&self, peer: &Peer, own: bool) {
        if peer.address.is_empty() {
            return;
        }
        let mut book = self.0.lock();
        let beats = |entry: &Entry| entry.own && !own;
        if book.get(&peer.id).is_some_and(beats) || (book.len() >= MOST && !book.contains_key(&peer.id)) {
            return;
        }
        book.insert(peer.id, Entry { address: peer.address.clone(), own });
    }

    /// Where a member may be, the likeliest first; `known` is where it was.
    pub(crate) fn addresses(&self, id: Option<u64>, known: &str) -> Vec<String> {
        let newer = id.and_then(|id| self.0.lock().get(&id).map(|entry| entry.address.clone()));
        let mut addresses: Vec<String> = newer.into_iter().chain([known.to_owned()]).collect();
        addresses.dedup();
        addresses
    }

    /// The member at the address at which it was met last.
    pub(crate) fn placed(&self, peer: &Peer) -> Peer {
        let address = self.addresses(Some(peer.id), &peer.address).swap_remove(0);
        Peer { address, ..peer.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Peer {
        Peer { id: 1, address: address.into(), ..Peer::default() }
    }

    #[test]
    fn its_own_word_counts_more_than_that_of_others_and_where_it_was_is_not_forgotten() {
        let book = Book::default();
        assert_eq!(book.addresses(Some(1), "old"), ["old"]);
        book.heard_of(&at("heard"));
        assert_eq!(book.addresses(Some(1), "old"), ["heard", "old"]);
        book.met(&at("met"));
        book.heard_of(&at("heard"));
        assert_eq!(book.addresses(Some(1), "old"), ["met", "old"]);
        assert_eq!(book.placed(&at("old")), at("met"));
        book.met(&at("old"));
        book.met(&at(""));
        assert_eq!(book.addresses(Some(1), "old"), ["old"]);
        assert_eq!(book.addresses(None, "seed"), ["seed"]);
    }
}
