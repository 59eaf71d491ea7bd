//! The entries by their places.

use super::entry::Entry;

/// Where an entry is.
pub(super) type Place = u32;

/// How many places there are in a chunk. Few in tests, so that those go beyond the first one.
const CHUNK: usize = if cfg!(test) { 8 } else { 1024 };

/// A row of places, of which the last one is never empty once a change is done.
///
/// It is in chunks, for growing must not move a million entries while everybody waits; and the entries are in no boxes,
/// which would cost a pointer and the allocator's own bytes for each. Chunks are dropped from the end only: a place that
/// becomes empty before others keeps its memory for the next key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places(
    /// All are full but the last.
    Vec<Vec<Option<Entry>>>,
);

impl Places {
    /// How many there are, empty ones included.
    pub(super) fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * CHUNK + last.len())
    }

    #[inline]
    pub(super) fn get(&self, place: Place) -> Option<&Entry> {
        let place = place as usize;
        self.0.get(place / CHUNK)?.get(place % CHUNK)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.slot(place)?.as_mut()
    }

    /// What is at each place from this one on.
    pub(super) fn from(&self, place: Place) -> impl Iterator<Item = Option<&Entry>> {
        let place = place as usize;
        let mut chunks = self.0.get(place / CHUNK..).unwrap_or_default().iter();
        let first = chunks.next().and_then(|chunk| chunk.get(place % CHUNK..)).unwrap_or_default();
        first.iter().chain(chunks.flatten()).map(Option::as_ref)
    }

    /// Adds a place at the end.
    pub(super) fn push(&mut self, entry: Option<Entry>) -> Place {
        let place = self.len();
        if place.is_multiple_of(CHUNK) {
            // Small groups get by with a part of the first one.
            self.0.push(if place == 0 { Vec::new() } else { Vec::with_capacity(CHUNK) });
        }
        if let Some(last) = self.0.last_mut() {
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
        if last.last()?.is_some() {
            return None;
        }
        last.pop();
        if last.is_empty() {
            self.0.pop();
        }
        Some(self.len() as Place)
    }

    fn slot(&mut self, place: Place) -> Option<&mut Option<Entry>> {
        let place = place as usize;
        self.0.get_mut(place / CHUNK)?.get_mut(place % CHUNK)
    }
}
