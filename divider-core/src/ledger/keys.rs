//! The records of a group, each at a place of its own.
//!
//! A place is a small number that a key keeps for as long as it lives, so that a session's keys are numbers, a reader goes
//! through the places in order without missing a key that was there all the time, and a name costs one look-up however
//! many there are. The lowest free place is filled first and free places at the end are dropped, so that the places
//! follow from what happened alone: replicas agree on them, and the records say all there is to store.

use std::{collections::BTreeSet, fmt, hash::BuildHasher};

use hashbrown::{DefaultHashBuilder, HashTable};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
    ser::SerializeSeq,
};

use super::{
    entry::Entry,
    places::{Place, Places},
};
use crate::{ids::Key, record::Record};

/// All records, by name and by place.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    places: Places,
    /// All places that hold nothing.
    free: BTreeSet<Place>,
    names: HashTable<Name>,
    /// Random for each ledger, so that nobody can choose keys that meet in one bucket.
    hasher: DefaultHashBuilder,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    place: Place,
    /// A part of the name's hash: a table that grows then needs no names, which are all over the memory.
    hash: u32,
}

impl Name {
    /// What the table is asked with: it takes the place from the low bits and a tag from the high ones.
    fn spread(hash: u32) -> u64 {
        u64::from(hash) << 32 | u64::from(hash)
    }
}

impl Keys {
    /// As they are at the moment, to be read in the order of their places; by name none is found.
    pub(super) fn freeze(&mut self) -> Self {
        Self { places: self.places.freeze(), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Where a key is.
    #[inline]
    pub(super) fn place(&self, key: &Key) -> Option<Place> {
        let hash = self.hash(key);
        let same = |name: &Name| name.hash == hash && self.at(name.place).is_some_and(|entry| entry.key == *key);
        self.names.find(Name::spread(hash), same).map(|name| name.place)
    }

    #[inline]
    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.at(self.place(key)?)
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        let place = self.place(key)?;
        self.at_mut(place)
    }

    #[inline]
    pub(super) fn at(&self, place: Place) -> Option<&Entry> {
        self.places.get(place)
    }

    pub(super) fn at_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.places.get_mut(place)
    }

    /// All entries from this place on, in the order of their places.
    pub(super) fn from(&self, place: Place) -> impl Iterator<Item = (Place, &Entry)> {
        self.places.from(place).zip(place..).filter_map(|(entry, place)| Some((place, entry?)))
    }

    /// Puts in an entry whose key is not there yet.
    pub(super) fn insert(&mut self, entry: Entry) {
        debug_assert!(self.place(&entry.key).is_none());
        let place = match self.free.pop_first() {
            Some(place) => {
                self.places.put(place, entry);
                place
            }
            None => self.places.push(Some(entry)),
        };
        self.name(place);
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.places.take(place)?;
        let hash = self.hash(&entry.key);
        if let Ok(name) = self.names.find_entry(Name::spread(hash), |name| name.place == place) {
            name.remove();
        }
        self.free.insert(place);
        while let Some(place) = self.places.pop_empty() {
            self.free.remove(&place);
        }
        Some(entry)
    }

    #[inline]
    fn hash(&self, key: &Key) -> u32 {
        self.hasher.hash_one(key.as_str()) as u32
    }

    /// Makes the entry at a place be found by its name.
    fn name(&mut self, place: Place) {
        if let Some(entry) = self.at(place) {
            let name = Name { place, hash: self.hash(&entry.key) };
            self.names.insert_unique(Name::spread(name.hash), name, |name| Name::spread(name.hash));
        }
    }
}

impl PartialEq for Keys {
    /// The rest follows from the places.
    fn eq(&self, other: &Self) -> bool {
        self.places == other.places
    }
}

impl Eq for Keys {}

/// As a row of what is at each place, a whole [`Record`] or nothing.
impl Serialize for Keys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_seq(Some(self.places.len()))?;
        for entry in self.places.from(0) {
            row.serialize_element(&entry.map(Entry::record))?;
        }
        row.end()
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Row;
        impl<'de> Visitor<'de> for Row {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row of records")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Result<Keys, A::Error> {
                let mut keys = Keys::default();
                let mut last_is_empty = false;
                while let Some(record) = row.next_element::<Option<Record>>()? {
                    last_is_empty = record.is_none();
                    if let Some(Record { view, .. }) = &record
                        && keys.place(&view.key).is_some()
                    {
                        return Err(A::Error::custom(format!("the key {:?} is there twice", view.key.as_str())));
                    }
                    let place = keys.places.push(record.map(Entry::from));
                    if last_is_empty {
                        keys.free.insert(place);
                    }
                    keys.name(place);
                }
                if last_is_empty {
                    return Err(A::Error::custom("the last place is empty"));
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_seq(Row)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::record::Work;

    fn key(number: u8) -> Key {
        Key::new(format!("key-{number}")).unwrap()
    }

    proptest! {
        /// Keys come and go; a copy that is read from its stored form in between goes on in the same places.
        #[test]
        fn a_key_keeps_its_place_and_a_stored_copy_gives_out_the_same_ones(
            steps in proptest::collection::vec((0u8..40, any::<bool>()), 1..200),
            stored_at in 0usize..200,
        ) {
            let (mut keys, mut copy) = (Keys::default(), None::<Keys>);
            let mut expected = BTreeMap::new();
            for (step, (number, wanted)) in steps.into_iter().enumerate() {
                if step == stored_at {
                    copy = Some(postcard::from_bytes(&postcard::to_stdvec(&keys).unwrap()).unwrap());
                }
                let key = key(number);
                for keys in [Some(&mut keys), copy.as_mut()].into_iter().flatten() {
                    match keys.place(&key) {
                        None if wanted => keys.insert(Record::new(Work::from(key.clone()), 1).into()),
                        Some(place) if !wanted => prop_assert_eq!(&keys.remove(place).unwrap().key, &key),
                        _ => {}
                    }
                }
                if wanted {
                    expected.entry(key.clone()).or_insert(keys.place(&key).unwrap());
                } else {
                    expected.remove(&key);
                }
                prop_assert_eq!(keys.len(), expected.len());
                for (key, place) in &expected {
                    prop_assert_eq!(keys.place(key), Some(*place));
                    prop_assert_eq!(&keys.get(key).unwrap().key, key);
                }
                let all: Vec<Place> = keys.from(0).map(|(place, _)| place).collect();
                prop_assert!(all.is_sorted() && all.len() == expected.len());
                prop_assert_eq!(keys.places.len() as Place, all.last().map_or(0, |last| last + 1));
            }
            if let Some(copy) = copy {
                prop_assert_eq!(copy, keys);
            }
        }
    }

    #[test]
    fn a_stored_form_that_cannot_be_is_refused() {
        let record = |number| Some(Record::new(Work::from(key(number)), 1));
        let read = |places: &[Option<Record>]| postcard::from_bytes::<Keys>(&postcard::to_stdvec(places).unwrap());
        assert_eq!(read(&[record(1), None, record(2)]).unwrap().len(), 2);
        assert!(read(&[record(1), None, record(1)]).is_err());
        assert!(read(&[record(1), None]).is_err(), "two forms for one state");
    }
}
