//! Who is where, by the word of each member itself and of others.
//!
//! The membership in the log says at which address each member was when that was decided. Where many have moved at once
//! nothing can be decided before they have found each other again, so that is not enough: a member is its id, and it is
//! looked for at each address at which somebody has met it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::protocol::peer::Peer;

/// Most members that are noted, those that were noted last: whoever reaches an open port can say to be anybody, and
/// members without a name are replaced by others again and again.
const MOST: usize = 1024;

/// What a process knows. Clones are the same book.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddressBook(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    entries: HashMap<u64, Entry>,
    /// Rises with each note.
    count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    address: String,
    /// When it was noted.
    at: u64,
    /// Said by the member, not of it.
    own: bool,
}

impl AddressBook {
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
        let Notes { entries, count } = &mut *self.0.lock();
        let beats = |entry: &Entry| entry.own && !own;
        if entries.get(&peer.id).is_some_and(beats) {
            return;
        }
        let oldest = || entries.iter().min_by_key(|(_, entry)| entry.at).map(|(id, _)| *id);
        if entries.len() >= MOST
            && !entries.contains_key(&peer.id)
            && let Some(oldest) = oldest()
        {
            entries.remove(&oldest);
        }
        *count += 1;
        entries.insert(peer.id, Entry { address: peer.address.clone(), at: *count, own });
    }

    /// Where a member may be, the likeliest first; `known` is where it was.
    pub(crate) fn addresses(&self, id: Option<u64>, known: &str) -> Vec<String> {
        let newer = id.and_then(|id| self.0.lock().entries.get(&id).map(|entry| entry.address.clone()));
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

    /// Members without a name are replaced by others, for years.
    #[test]
    fn however_many_members_there_have_been_the_newest_are_noted() {
        let address_book = AddressBook::default();
        let all = 2 * MOST as u64;
        for id in 0..all {
            address_book.met(&Peer { id, ..at("met") });
        }
        assert_eq!(address_book.addresses(Some(all - 1), "old"), ["met", "old"]);
        assert_eq!(address_book.addresses(Some(0), "old"), ["old"]);
        assert_eq!(address_book.0.lock().entries.len(), MOST);
    }

    #[test]
    fn its_own_word_counts_more_than_that_of_others_and_where_it_was_is_not_forgotten() {
        let address_book = AddressBook::default();
        assert_eq!(address_book.addresses(Some(1), "old"), ["old"]);
        address_book.heard_of(&at("heard"));
        assert_eq!(address_book.addresses(Some(1), "old"), ["heard", "old"]);
        address_book.met(&at("met"));
        address_book.heard_of(&at("heard"));
        assert_eq!(address_book.addresses(Some(1), "old"), ["met", "old"]);
        assert_eq!(address_book.placed(&at("old")), at("met"));
        address_book.met(&at("old"));
        address_book.met(&at(""));
        assert_eq!(address_book.addresses(Some(1), "old"), ["old"]);
        assert_eq!(address_book.addresses(None, "seed"), ["seed"]);
    }
}
