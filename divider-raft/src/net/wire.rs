//! What goes over a connection: a handshake, and after it frames.
//!
//! # Why it looks like this
//! The first bytes say which protocol, which formats, which cluster and which member is meant, and nothing else is decoded
//! before they fit: both sides go on with the highest format that both read, and a program that was pointed at the wrong
//! port, cluster or successor of a member finds out at once. Every length is compared with a cap before memory is taken. Long bodies are cut into parts, so that a page of keys does not hold
//! up a heartbeat, and so that the cap of a frame can be low.
//!
//! Variants and fields are only ever appended; recorded bytes of the first version are kept as fixtures.

use std::io;

use divider_core::{Hint, Op, limits};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::format::SupportedFormats;

/// The first bytes of a connection, both ways.
const MAGIC: [u8; 4] = *b"DVDR";
/// Most bytes of a handshake.
const MAX_HELLO: u32 = 4096;
/// Most bytes of a body in one frame; longer ones come in parts.
pub(crate) const PART: usize = 256 << 10;
/// Most bytes of a frame.
const MAX_FRAME: u32 = (PART + 64) as u32;
/// Most bytes of a request in all its parts: a batch of ops, or entries of the log.
pub(crate) const MAX_REQUEST: usize = 16 << 20;
/// Most bytes of a batch of ops, about: the entry that it becomes must go to each member in one request.
const MAX_BATCH: usize = if cfg!(test) { 2 << 20 } else { MAX_REQUEST / 2 };
/// Most bytes of an answer in all its parts: all that a session holds may be much.
pub(crate) const MAX_ANSWER: usize = 1 << 30;
/// Most bytes of a hint; a longer one is sent as a gap.
pub(crate) const MAX_HINT: usize = PART;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Frame<'a> {
    /// A part of a request.
    Request {
        /// Chosen by the caller, once for each request of a connection.
        id: u64,
        /// Whether this is the last part.
        last: bool,
        /// The part.
        #[serde(borrow)]
        body: &'a [u8],
    },
    /// A part of an answer.
    Answer {
        /// Of which request.
        id: u64,
        /// Whether this is the last part.
        last: bool,
        /// The part.
        #[serde(borrow)]
        body: &'a [u8],
    },
    /// A hint of a subscription.
    Hint {
        /// The request that subscribed.
        id: u64,
        /// The hint.
        #[serde(borrow)]
        body: &'a [u8],
    },
    /// From the caller: answer or hints are no longer wanted. From the member: the subscription is over.
    End {
        /// Of which request.
        id: u64,
    },
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
}

/// What is wrong with a batch that no entry of the log, or no request, has room for.
pub(crate) fn too_large(ops: &[Op]) -> Option<String> {
    if ops.len() > limits::MAX_BATCH_OPS {
        return Some(format!("a batch of {} ops; the limit is {}", ops.len(), limits::MAX_BATCH_OPS));
    }
    let bytes: usize = ops.iter().map(Op::bytes).sum();
    (bytes > MAX_BATCH).then(|| format!("a batch of {bytes} bytes; the limit is {MAX_BATCH}"))
}

pub(crate) fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(io::Error::other)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// A hint as it is sent.
pub(crate) fn encode_hint(hint: &Hint) -> io::Result<Vec<u8>> {
    let body = encode(hint)?;
    if body.len() > MAX_HINT { encode(&Hint::Gap) } else { Ok(body) }
}

impl Frame<'_> {
    /// The frame with its length in front.
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = postcard::to_extend(self, vec![0; 4]).map_err(io::Error::other)?;
        let len = u32::try_from(bytes.len() - 4).ok().filter(|len| *len <= MAX_FRAME);
        let len = len.ok_or_else(|| io::Error::other("a frame is too long"))?;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        Ok(bytes)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> io::Result<Frame<'_>> {
        postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Cuts a body into frames, with their lengths in front.
pub(crate) fn parts<'a>(body: &'a [u8], frame: impl Fn(bool, &'a [u8]) -> Frame<'a>) -> io::Result<Vec<Vec<u8>>> {
    let count = body.len().div_ceil(PART).max(1);
    (0..count)
        .map(|at| {
            let part = &body[at * PART..body.len().min((at + 1) * PART)];
            frame(at + 1 == count, part).to_bytes()
        })
        .collect()
}

/// Reads one frame's bytes. Not cancel safe.
pub(crate) async fn read_frame(from: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    let len = from.read_u32_le().await?;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes is over the limit")));
    }
    buffer.resize(len as usize, 0);
    from.read_exact(buffer).await?;
    Ok(())
}

/// Says hello or welcome.
pub(crate) async fn greet<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    mine: SupportedFormats,
    greeting: &T,
) -> io::Result<()> {
    let body = encode(greeting)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_HELLO);
    let len = len.ok_or_else(|| io::Error::other("the names are too long for a handshake"))?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(mine.to_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(body);
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Hears hello or welcome. Nothing is decoded before magic, formats and length fit; where the formats do not, the error is
/// a [`TooOld`] inside.
pub(crate) async fn greeted<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    mine: SupportedFormats,
) -> io::Result<T> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut magic = [0; 4];
    from.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Err(invalid("the other side does not speak Divider's protocol (or speaks it through TLS)".into()));
    }
    let (lowest, highest, writes) = (from.read_u16_le().await?, from.read_u16_le().await?, from.read_u16_le().await?);
    mine.negotiate(SupportedFormats { lowest, highest, writes }).map_err(io::Error::other)?;
    let len = from.read_u32_le().await?;
    if len > MAX_HELLO {
        return Err(invalid(format!("a handshake of {len} bytes is over the limit")));
    }
    let mut body = vec![0; len as usize];
    from.read_exact(&mut body).await?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::messages::Hello;

    fn supported(lowest: u16, highest: u16, writes: u16) -> SupportedFormats {
        SupportedFormats { lowest, highest, writes }
    }

    #[tokio::test]
    async fn what_announces_too_much_is_refused_before_memory_is_taken() {
        let mut said = MAGIC.to_vec();
        said.extend(supported(1, 1, 1).to_bytes());
        said.extend(u32::MAX.to_le_bytes());
        let error = greeted::<Hello>(&mut &said[..], supported(1, 1, 1)).await.unwrap_err();
        assert!(error.to_string().contains("over the limit"), "{error}");
    }
}
