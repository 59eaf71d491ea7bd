//! The entries by their places.

use std::mem;

use triomphe::Arc;

use super::entry::Entry;

/// Where an entry is.
pub(super) type Place = u32;

/// How many places there are in a chunk. Few in tests, so that those go beyond the first one.
///
/// The more there are, the longer the first change of a chunk takes while a picture is kept; the fewer, the longer it takes to
/// find an entry.
const CHUNK: usize = if cfg!(test) { 8 } else { 512 };

/// A row of places, of which the last one is never empty once a change is done.
///
/// It is in chunks, for growing must not move a million entries while everybody waits; and the entries are in no boxes,
/// which would cost a pointer and the allocator's own bytes for each. Chunks are dropped from the end only: a place that
/// becomes empty before others keeps its memory for the next key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places(
    /// All are full but the last.
    Vec<Chunk>,
);

/// Whoever changes a chunk that a picture shares makes it its own first. It is not shared from the beginning, since the count of
/// those who share would have to be looked at for each change, and lies far from the entry.
#[derive(Clone, Debug)]
enum Chunk {
    Own(Vec<Option<Entry>>),
    Shared(Arc<Vec<Option<Entry>>>),
}

impl Places {
    /// As they are at the moment. Costs one step for each chunk.
    pub(super) fn freeze(&mut self) -> Self {
        Self(self.0.iter_mut().map(Chunk::share).collect())
    }

    /// How many there are, empty ones included.
    pub(super) fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * CHUNK + last.all().len())
    }

    #[inline]
    pub(super) fn get(&self, place: Place) -> Option<&Entry> {
        let place = place as usize;
        self.0.get(place / CHUNK)?.all().get(place % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.slot(place)?.as_mut()
    }

    /// What is at each place from this one on.
    pub(super) fn from(&self, place: Place) -> impl Iterator<Item = Option<&Entry>> {
        let place = place as usize;
        let mut chunks = self.0.get(place / CHUNK..).unwrap_or_default().iter().map(Chunk::all);
        let first = chunks.next().and_then(|chunk| chunk.get(place % CHUNK..)).unwrap_or_default();
        first.iter().chain(chunks.flatten()).map(Option::as_ref)
    }

    /// Adds a place at the end.
    pub(super) fn push(&mut self, entry: Option<Entry>) -> Place {
        let place = self.len();
        if place.is_multiple_of(CHUNK) {
            // Small groups get by with a part of the first one.
            self.0.push(Chunk::Own(if place == 0 { Vec::new() } else { Vec::with_capacity(CHUNK) }));
        }
        if let Some(last) = self.0.last_mut().and_then(Chunk::own) {
            last.push(entry);
        }
        place as Place
    }

    /// Puts an entry at a place that is empty.
    pub(super) fn put(&mut self, place: Place, entry: Entry) {
        if let Some(slot) = self.slot(place) {
            debug_assert!(slot.is_none());
            *slot = Some(entry);
        }
    }

    /// Empties a place.
    pub(super) fn take(&mut self, place: Place) -> Option<Entry> {
        self.slot(place)?.take()
    }

    /// Drops the last place if it is empty, and says which it was.
    pub(super) fn pop_empty(&mut self) -> Option<Place> {
        let last = self.0.last_mut()?;
        if last.all().last()?.is_some() {
            return None;
        }
        let last = last.own()?;
        last.pop();
        if last.is_empty() {
            self.0.pop();
        }
        Some(self.len() as Place)
    }

    fn slot(&mut self, place: Place) -> Option<&mut Option<Entry>> {
        let place = place as usize;
        self.0.get_mut(place / CHUNK)?.own()?.get_mut(place % CHUNK)
    }
}

impl Chunk {
    #[inline]
    fn all(&self) -> &[Option<Entry>] {
        match self {
            Self::Own(all) => all,
            Self::Shared(all) => all,
        }
    }

    /// To be changed. Never `None`.
    #[inline]
    fn own(&mut self) -> Option<&mut Vec<Option<Entry>>> {
        if let Self::Shared(_) = self {
            self.take_back();
        }
        match self {
            Self::Own(all) => Some(all),
            Self::Shared(_) => None,
        }
    }

    #[cold]
    fn take_back(&mut self) {
        if let Self::Shared(shared) = mem::replace(self, Self::Own(Vec::new())) {
            *self = Self::Own(Arc::try_unwrap(shared).unwrap_or_else(|shared| {
                let mut copy = Vec::with_capacity(shared.capacity());
                copy.extend_from_slice(&shared);
                copy
            }));
        }
    }

    fn share(&mut self) -> Self {
        let shared = match mem::replace(self, Self::Own(Vec::new())) {
            Self::Own(all) => Arc::new(all),
            Self::Shared(shared) => shared,
        };
        *self = Self::Shared(shared.clone());
        Self::Shared(shared)
    }
}

impl PartialEq for Chunk {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}

impl Eq for Chunk {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, Work};

    fn entry(number: u64) -> Entry {
        Record::new(Work::new(format!("key-{number}")).unwrap(), number).into()
    }

    fn since(places: &Places) -> Vec<Option<u64>> {
        places.from(0).map(|entry| entry.map(|entry| entry.since)).collect()
    }

    fn shared(places: &Places) -> Vec<bool> {
        places.0.iter().map(|chunk| matches!(chunk, Chunk::Shared(shared) if Arc::count(shared) > 1)).collect()
    }

    #[test]
    fn that_a_chunk_can_be_shared_costs_no_memory() {
        assert_eq!(size_of::<Chunk>(), size_of::<Vec<Option<Entry>>>());
    }

    #[test]
    fn a_picture_shares_all_chunks_and_a_change_copies_the_one_that_it_is_in_once() {
        let mut places = Places::default();
        (0..20).for_each(|number| _ = places.push(Some(entry(number))));
        let (first, before) = (places.freeze(), since(&places));
        assert_eq!((since(&first), shared(&places)), (before.clone(), vec![true; 3]));
        places.get_mut(9).unwrap().since = 90;
        assert_eq!(shared(&places), [true, false, true]);
        let copy = places.0[1].all().as_ptr();
        places.take(8).unwrap();
        assert_eq!(places.0[1].all().as_ptr(), copy, "it is copied once");
        let second = places.freeze();
        places.push(Some(entry(20)));
        while places.len() > 16 {
            places.take(places.len() as Place - 1).unwrap();
            places.pop_empty().unwrap();
        }
        let changed = [&before[..8], &[None, Some(90)], &before[10..]].concat();
        assert_eq!((since(&first), since(&second)), (before, changed.clone()));
        assert_eq!(since(&places), changed[..16]);
        drop((first, second));
        let kept = places.0[0].all().as_ptr();
        places.take(0).unwrap();
        assert_eq!(places.0[0].all().as_ptr(), kept, "nothing is copied for a picture that is gone");
    }
}
