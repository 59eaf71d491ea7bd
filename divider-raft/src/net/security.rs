//! Who may speak to whom: mutual TLS, a shared secret, or nothing at all where that was asked for by name.

use std::{fmt, io};

use crate::environment::{Connection, Environment, Stream};

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
    Tls(crate::net::tls::Tls),
    /// A secret that both sides prove to know: keeps strangers out, and hides nothing of what is sent.
    #[cfg(feature = "secret")]
    Secret(crate::net::secret::Secret),
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unset => "Unset",
            Self::Plaintext => "Plaintext",
            #[cfg(feature = "tls")]
            Self::Tls(_) => "Tls",
            #[cfg(feature = "secret")]
            Self::Secret(_) => "Secret",
        })
    }
}

/// A connection, and what the other side has proved about itself; `None` where nothing was to be proved.
pub(crate) type Secured = (Box<dyn Connection>, Option<Proof>);

/// What the other side has proved.
pub(crate) enum Proof {
    /// That it owns this certificate.
    #[cfg(feature = "tls")]
    Certificate(crate::net::tls::PeerCertificate),
    /// That it knows the secret, of members or of clients.
    #[cfg(feature = "secret")]
    Secret {
        /// Which of them.
        member: bool,
    },
}

impl Proof {
    /// Why whoever has proved this is not the member of that name; `named` says whether the configuration names it as one.
    #[allow(unused_variables, reason = "not used where nothing can be proved")]
    pub(crate) fn objection(&self, name: &str, named: bool) -> Option<String> {
        match *self {
            #[cfg(feature = "tls")]
            Self::Certificate(ref shown) if !shown.carries(name) => {
                Some(format!("the certificate does not carry the name {name:?}"))
            }
            #[cfg(feature = "tls")]
            Self::Certificate(_) => {
                (!named).then(|| format!("{name:?} is not among the `members` that this one is configured with"))
            }
            #[cfg(feature = "secret")]
            Self::Secret { member } => (!member).then(|| format!("{name:?} knows the secret of clients only")),
        }
    }

    /// Whether it is somebody of that name, member or not.
    #[allow(unused_variables, reason = "not used where nothing can be proved")]
    pub(crate) fn carries(&self, name: &str) -> bool {
        match *self {
            #[cfg(feature = "tls")]
            Self::Certificate(ref shown) => shown.carries(name),
            #[cfg(feature = "secret")]
            Self::Secret { .. } => false,
        }
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
    /// Whether names are proved by certificates.
    pub(crate) fn proves_names(&self) -> bool {
        #[cfg(feature = "tls")]
        let proves = matches!(self, Self::Tls(_));
        #[cfg(not(feature = "tls"))]
        let proves = false;
        proves
    }

    /// What is wrong with it for a process that is a member, or is none.
    #[cfg_attr(not(feature = "secret"), allow(unused_variables, reason = "a secret alone can be wrong"))]
    pub(crate) fn problem(&self, member: bool) -> Option<&'static str> {
        match self {
            #[cfg(feature = "secret")]
            Self::Secret(secret) => secret.problem(member),
            _ => None,
        }
    }

    /// Protects a connection that was dialled to `name`.
    #[allow(clippy::unused_async, unused_variables, reason = "only what protects waits and draws")]
    pub(crate) async fn dialled(
        &self,
        stream: Stream,
        name: &str,
        environment: &dyn Environment,
    ) -> io::Result<Box<dyn Connection>> {
        stream.prepare()?;
        match self {
            Self::Unset => Err(io::Error::other("neither TLS nor plaintext was chosen")),
            Self::Plaintext => Ok(stream.boxed()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => match stream {
                Stream::Tcp(stream) => tls.dialled(stream, name).await,
                Stream::Other(stream) => tls.dialled(stream, name).await,
            },
            #[cfg(feature = "secret")]
            Self::Secret(secret) => {
                let mut stream = stream.boxed();
                secret.dialled(&mut stream, drawn(environment)).await?;
                Ok(stream)
            }
        }
    }

    /// Protects a connection that was accepted.
    #[allow(clippy::unused_async, unused_variables, reason = "only what protects waits and draws")]
    pub(crate) async fn accepted(&self, stream: Stream, environment: &dyn Environment) -> io::Result<Secured> {
        stream.prepare()?;
        match self {
            Self::Unset => Err(io::Error::other("neither TLS nor plaintext was chosen")),
            Self::Plaintext => Ok((stream.boxed(), None)),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                let (stream, shown) = match stream {
                    Stream::Tcp(stream) => tls.accepted(stream).await?,
                    Stream::Other(stream) => tls.accepted(stream).await?,
                };
                Ok((stream, shown.map(Proof::Certificate)))
            }
            #[cfg(feature = "secret")]
            Self::Secret(secret) => {
                let mut stream = stream.boxed();
                let member = secret.accepted(&mut stream, drawn(environment)).await?;
                Ok((stream, Some(Proof::Secret { member })))
            }
        }
    }
}

/// What nobody else has drawn.
#[cfg(feature = "secret")]
fn drawn(environment: &dyn Environment) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&environment.draw().to_le_bytes());
    bytes[16..].copy_from_slice(&environment.draw().to_le_bytes());
    bytes
}
