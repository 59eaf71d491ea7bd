//! Who may speak to whom without certificates: whoever knows a secret.
//!
//! There are two, one for members and one for clients, which members know too: so a client cannot pass for a member. Each
//! side proves that it knows the secret by what it makes of numbers that the other one has just drawn (HMAC-SHA256), and the
//! secret itself is never sent. What is sent after that is neither hidden nor protected against being changed on its way:
//! for networks where strangers may connect, and cannot listen or meddle. Elsewhere use TLS.

use std::{fmt, io};

use ring::hmac;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::environment::Connection;

/// Bytes of a drawn number, and of a proof.
const LEN: usize = 32;
/// Least bytes of a secret.
const LEAST: usize = 16;
/// The first byte that a member sends, and that a client sends.
const MEMBER: u8 = 1;
const CLIENT: u8 = 2;

/// What members, or clients, prove to know.
#[derive(Clone)]
pub struct Secret {
    /// `None` for a client.
    members: Option<Vec<u8>>,
    clients: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    /// For a member, which knows both: at least 16 bytes each, drawn at random, and not the same.
    pub fn member(members: impl Into<Vec<u8>>, clients: impl Into<Vec<u8>>) -> Self {
        Self { members: Some(members.into()), clients: clients.into() }
    }

    /// For a client, which is never told that of the members: at least 16 bytes, drawn at random.
    pub fn client(clients: impl Into<Vec<u8>>) -> Self {
        Self { members: None, clients: clients.into() }
    }

    /// What is wrong with it for a process that is a member, or is none.
    pub(crate) fn problem(&self, member: bool) -> Option<&'static str> {
        let short = |secret: &Vec<u8>| secret.len() < LEAST;
        match &self.members {
            None if member => Some("is that of a client; a member needs Secret::member(..)"),
            members if short(&self.clients) || members.as_ref().is_some_and(short) => {
                Some("is too short; draw at least 16 bytes at random")
            }
            Some(members) if *members == self.clients => {
                Some("is the same for members and clients, so that each client could be a member")
            }
            _ => None,
        }
    }

    fn key(&self, role: u8) -> io::Result<hmac::Key> {
        let secret = match (role, &self.members) {
            (MEMBER, Some(members)) => members,
            (CLIENT, _) => &self.clients,
            _ => return Err(io::Error::other("an unknown kind of caller")),
        };
        Ok(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Proves it to whoever was dialled, which proves that it knows it as well.
    pub(crate) async fn dialled(&self, stream: &mut dyn Connection, drawn: [u8; LEN]) -> io::Result<()> {
        let role = if self.members.is_some() { MEMBER } else { CLIENT };
        let key = self.key(role)?;
        stream.write_all(&[&[role], &drawn[..]].concat()).await?;
        stream.flush().await?;
        let (theirs, proof) = (hear(stream).await?, hear(stream).await?);
        let said = |who: &[u8]| [who, &[role], &drawn, &theirs].concat();
        hmac::verify(&key, &said(b"accepts"), &proof).map_err(|_| refused())?;
        stream.write_all(hmac::sign(&key, &said(b"dials")).as_ref()).await?;
        stream.flush().await
    }

    /// The other side of that. Says whether a member has dialled.
    pub(crate) async fn accepted(&self, stream: &mut dyn Connection, drawn: [u8; LEN]) -> io::Result<bool> {
        let role = stream.read_u8().await?;
        let key = self.key(role)?;
        let theirs = hear(stream).await?;
        let said = |who: &[u8]| [who, &[role], &theirs, &drawn].concat();
        let proof = hmac::sign(&key, &said(b"accepts"));
        stream.write_all(&[&drawn, proof.as_ref()].concat()).await?;
        stream.flush().await?;
        let proof = hear(stream).await?;
        hmac::verify(&key, &said(b"dials"), &proof).map_err(|_| refused())?;
        Ok(role == MEMBER)
    }
}

async fn hear(stream: &mut dyn Connection) -> io::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the other side does not know the secret")
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: [u8; 16] = [1; 16];
    const C: [u8; 16] = [2; 16];

    /// What each side finds out; a side that fails hangs up.
    async fn meet(dials: Secret, accepts: Secret) -> (bool, Option<bool>) {
        let (mut near, mut far) = tokio::io::duplex(1 << 10);
        let dial = async move { dials.dialled(&mut near, [3; LEN]).await.is_ok() };
        let accept = async move { accepts.accepted(&mut far, [4; LEN]).await.ok() };
        tokio::join!(dial, accept)
    }

    #[tokio::test]
    async fn whoever_knows_the_secret_is_let_in_as_what_it_is() {
        assert_eq!(meet(Secret::member(M, C), Secret::member(M, C)).await, (true, Some(true)));
        assert_eq!(meet(Secret::client(C), Secret::member(M, C)).await, (true, Some(false)));
    }

    #[tokio::test]
    async fn whoever_does_not_is_kept_out_and_is_told_nothing() {
        assert_eq!(meet(Secret::client(M), Secret::member(M, C)).await, (false, None));
        // A client that says it is a member.
        assert_eq!(meet(Secret::member(C, C), Secret::member(M, C)).await, (false, None));
        assert_eq!(meet(Secret::member(M, C), Secret::member(C, M)).await, (false, None));
        // Somebody who only listens where a member was.
        assert_eq!(meet(Secret::member(M, C), Secret::client(C)).await, (false, None));
    }

    /// Whoever sends a member's own proof back to it has proved nothing.
    #[tokio::test]
    async fn a_proof_that_is_sent_back_is_none() {
        let (mut near, mut far) = tokio::io::duplex(1 << 10);
        let echo = async move {
            let mut said = [0; 1 + LEN];
            far.read_exact(&mut said).await.unwrap();
            let own = Secret::member(M, C).key(MEMBER).unwrap();
            let proof = hmac::sign(&own, &[b"dials", &[MEMBER][..], &said[1..], &said[1..]].concat());
            far.write_all(&[&said[1..], proof.as_ref()].concat()).await.unwrap();
        };
        let secret = Secret::member(M, C);
        let (dialled, ()) = tokio::join!(secret.dialled(&mut near, [3; LEN]), echo);
        assert!(dialled.is_err());
    }

    #[test]
    fn a_secret_must_be_long_fit_its_holder_and_never_be_printed() {
        assert_eq!(Secret::member(M, C).problem(true), None);
        assert_eq!(Secret::client(C).problem(false), None);
        assert!(Secret::client(C).problem(true).is_some());
        assert!(Secret::member(M, M).problem(true).is_some());
        assert!(Secret::member(M, [2; 15]).problem(true).is_some());
        assert_eq!(format!("{:?}", Secret::client(b"do not print me!")), "Secret { .. }");
    }
}
