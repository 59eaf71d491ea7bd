//! Answers of Redis, taken apart with a check at each step.

use divider_core::{Blob, Key, Record, StoreError};
use redis::Value;

use crate::codec;

/// One answer, or a part of one.
#[derive(Debug)]
pub(crate) struct Reply(pub(crate) Value);

impl Reply {
    pub(crate) fn number(&self) -> Result<u64, StoreError> {
        match self.0 {
            Value::Int(number) => number.try_into().map_err(|_| codec::corrupt("a number that is not negative")),
            _ => Err(codec::corrupt("a number")),
        }
    }

    pub(crate) fn slice(&self) -> Result<&[u8], StoreError> {
        match &self.0 {
            Value::BulkString(bytes) => Ok(bytes),
            Value::SimpleString(text) => Ok(text.as_bytes()),
            _ => Err(codec::corrupt("a string")),
        }
    }

    pub(crate) fn bytes(self) -> Result<Vec<u8>, StoreError> {
        match self.0 {
            Value::BulkString(bytes) => Ok(bytes),
            _ => self.slice().map(<[u8]>::to_vec),
        }
    }

    pub(crate) fn array(self) -> Result<Vec<Self>, StoreError> {
        match self.0 {
            Value::Array(values) => Ok(values.into_iter().map(Self).collect()),
            _ => Err(codec::corrupt("a list")),
        }
    }

    /// An array of exactly this many.
    pub(crate) fn fields<const N: usize>(self) -> Result<[Self; N], StoreError> {
        self.array()?.try_into().map_err(|_| codec::corrupt("another number of fields"))
    }

    /// The next few of a list.
    pub(crate) fn take<const N: usize>(from: &mut impl Iterator<Item = Self>) -> Result<[Self; N], StoreError> {
        from.take(N).collect::<Vec<_>>().try_into().map_err(|_| codec::corrupt("more fields"))
    }
}

/// Records as the read script lists them: key, view, payload, checkpoint and what went wrong; the view is empty where there
/// is none.
pub(crate) fn records(mut rows: impl Iterator<Item = Reply>) -> Result<Vec<(Key, Option<Record>)>, StoreError> {
    let mut records = Vec::new();
    while let Some(name) = rows.next() {
        let [view, payload, checkpoint, why] = Reply::take(&mut rows)?;
        let key = codec::key(name.slice()?)?;
        let record = match view.slice()? {
            [] => None,
            packed => Some(Record {
                view: codec::view(key.clone(), packed)?,
                why: codec::why(why.slice()?)?,
                payload: Blob::from(payload.bytes()?),
                checkpoint: Blob::from(checkpoint.bytes()?),
            }),
        };
        records.push((key, record));
    }
    Ok(records)
}
