//! Who may speak to whom: mutual TLS, or nothing at all where that was asked for by name.

use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::ground::Stream;

/// How connections between members and clients are protected.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Security {
    /// Nothing was chosen: a member then neither listens nor dials.
    #[default]
    Unset,
    /// Nothing: whoever reaches the port may do everything. For one machine, or a network that is closed to others.
    Plaintext,
    /// Mutual TLS: each side must show a certificate of the given authorities.
    #[cfg(feature = "tls")]
    Tls(crate::tls::Tls),
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unset => "Unset",
            Self::Plaintext => "Plaintext",
            #[cfg(feature = "tls")]
            Self::Tls(_) => "Tls",
        })
    }
}

/// A connection, whatever protects it.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection, and what the other side has proved about itself; `None` where nothing was to be proved.
pub(crate) type Secured = (Box<dyn Connection>, Option<Proof>);

#[cfg(feature = "tls")]
pub(crate) use crate::tls::Proof;

/// Without TLS nothing can be proved.
#[cfg(not(feature = "tls"))]
pub(crate) enum Proof {}

#[cfg(not(feature = "tls"))]
impl Proof {
    pub(crate) fn carries(&self, _: &str) -> bool {
        match *self {}
    }
}

impl Stream {
    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Other(_) => Ok(()),
        }
    }

    fn boxed(self) -> Box<dyn Connection> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Other(stream) => stream,
        }
    }
}

impl Security {
    /// Whether the other side of a connection has to prove what it is called.
    pub(crate) fn proves(&self) -> bool {
        #[cfg(feature = "tls")]
        let proves = matches!(self, Self::Tls(_));
        #[cfg(not(feature = "tls"))]
        let proves = false;
        proves
    }

    /// Protects a connection that was dialled to `name`.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_async, unused_variables, reason = "TLS waits"))]
    pub(crate) async fn dialled(&self, stream: Stream, name: &str) -> io::Result<Box<dyn Connection>> {
        stream.prepare()?;
        match self {
            Self::Unset => Err(io::Error::other("neither TLS nor plaintext was chosen")),
            Self::Plaintext => Ok(stream.boxed()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => match stream {
                Stream::Tcp(stream) => tls.dialled(stream, name).await,
                Stream::Other(stream) => tls.dialled(stream, name).await,
            },
        }
    }

    /// Protects a connection that was accepted.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_async, reason = "TLS waits"))]
    pub(crate) async fn accepted(&self, stream: Stream) -> io::Result<Secured> {
        stream.prepare()?;
        match self {
            Self::Unset => Err(io::Error::other("neither TLS nor plaintext was chosen")),
            Self::Plaintext => Ok((stream.boxed(), None)),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => match stream {
                Stream::Tcp(stream) => tls.accepted(stream).await,
                Stream::Other(stream) => tls.accepted(stream).await,
            },
        }
    }
}
