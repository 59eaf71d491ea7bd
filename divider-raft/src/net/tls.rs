//! Mutual TLS by rustls, with ring.
//!
//! Both sides show a certificate of the same authorities. Whoever dials checks that the certificate carries the name of
//! the member it means (or, for a seed, the host of its address); a member that dials must carry its own name, so that no
//! holder of some certificate can pass for another member. A client may have any name. What a name allows is said by the
//! configuration (see [`authorization`](crate::cluster::authorization)).

use std::{
    fmt, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::environment::Connection;

/// How often files are looked at again.
const LOOK: Duration = Duration::from_secs(10);

/// The certificate of this process, its key, and the authorities that the others' certificates are checked against. Clones
/// are the same: what is [replaced](Self::replace) in one is replaced in all, for the connections that are made after it.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    now: RwLock<Ends>,
    /// Where they are read again from, if from anywhere.
    files: Option<Files>,
}

/// Both ends of a connection.
#[derive(Clone)]
struct Ends {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

struct Files {
    authorities: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    every: Duration,
    /// When they were looked at last, and what they were then: of their contents a checksum alone is kept.
    seen: Mutex<(Instant, u64)>,
}

/// What is in the files.
type Texts = [Vec<u8>; 3];

fn checksum(texts: &Texts) -> u64 {
    texts.iter().fold(0, |sum, text| xxh3_64_with_seed(text, sum))
}

impl Files {
    async fn read(&self) -> io::Result<Texts> {
        let read = |path| tokio::fs::read(path);
        Ok([read(&self.authorities).await?, read(&self.certificate).await?, read(&self.key).await?])
    }

    /// Whether it is time to look again; then it is not until the next time.
    fn are_due(&self) -> bool {
        let mut seen = self.seen.lock();
        let due = seen.0.elapsed() >= self.every;
        if due {
            seen.0 = Instant::now();
        }
        due
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why certificates or a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The text is not what it should be.
    #[error("the {what} cannot be read as PEM: {source}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// What was found instead.
        source: rustls::pki_types::pem::Error,
    },
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates and key do not go together, or are not usable.
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
}

impl Tls {
    /// Takes PEM texts: the authorities' certificates, this process's certificate with those between it and the
    /// authority, and its private key. The certificate must be usable for servers and for clients alike, and carry the
    /// process's name as a DNS name.
    ///
    /// # Errors
    /// [`TlsError`], which never shows the key.
    pub fn from_pem(authorities: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let now = RwLock::new(Ends::from_pem(authorities, certificate, key)?);
        Ok(Self(Arc::new(Shared { now, files: None })))
    }

    /// As [`from_pem`](Self::from_pem), from files, which are looked at again while connections are made, at most every 10 s.
    /// Where they have changed, later connections use what they say; where that does not go together, perhaps because only
    /// some of them have been written so far, the former is used on, and a warning says so.
    ///
    /// # Errors
    /// [`TlsError`], which never shows the key.
    pub fn from_files(
        authorities: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, TlsError> {
        Self::from_files_every(LOOK, authorities.into(), certificate.into(), key.into())
    }

    fn from_files_every(
        every: Duration,
        authorities: PathBuf,
        certificate: PathBuf,
        key: PathBuf,
    ) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|source| TlsError::File { path: path.clone(), source });
        let texts = [read(&authorities)?, read(&certificate)?, read(&key)?];
        let now = RwLock::new(Ends::from_pem(&texts[0], &texts[1], &texts[2])?);
        let seen = Mutex::new((Instant::now(), checksum(&texts)));
        Ok(Self(Arc::new(Shared { now, files: Some(Files { authorities, certificate, key, every, seen }) })))
    }

    /// Takes others in their place, for all connections that are made from now on.
    ///
    /// # Errors
    /// [`TlsError`]; then nothing is replaced.
    pub fn replace(&self, authorities: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), TlsError> {
        *self.0.now.write() = Ends::from_pem(authorities, certificate, key)?;
        Ok(())
    }

    /// What is used now. Files are looked at beside it, so that no connection waits for a disk.
    fn ends(&self) -> Ends {
        if self.0.files.as_ref().is_some_and(Files::are_due) {
            let tls = self.clone();
            tokio::spawn(async move { tls.look_again().await });
        }
        self.0.now.read().clone()
    }

    async fn look_again(&self) {
        let Some(files) = &self.0.files else { return };
        let texts = match files.read().await {
            Ok(texts) => texts,
            Err(error) => {
                tracing::warn!(target: "divider::raft", %error, "the certificates cannot be read again");
                return;
            }
        };
        let sum = checksum(&texts);
        if files.seen.lock().1 == sum {
            return;
        }
        match self.replace(&texts[0], &texts[1], &texts[2]) {
            Ok(()) => {
                files.seen.lock().1 = sum;
                tracing::info!(target: "divider::raft", "other certificates are used from now on");
            }
            Err(error) => tracing::warn!(target: "divider::raft", %error, "the former certificates are used on"),
        }
    }

    pub(crate) async fn dialled(
        &self,
        stream: impl Connection + 'static,
        name: &str,
    ) -> io::Result<Box<dyn Connection>> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.ends().connector.connect(name, stream).await?))
    }

    pub(crate) async fn accepted(
        &self,
        stream: impl Connection + 'static,
    ) -> io::Result<(Box<dyn Connection>, Option<PeerCertificate>)> {
        let stream = self.ends().acceptor.accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(PeerCertificate::new);
        Ok((Box::new(stream), shown))
    }
}

impl Ends {
    fn from_pem(authorities: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let unusable = |error: &dyn fmt::Display| TlsError::Unusable(error.to_string());
        let certificates = |what, pem| {
            CertificateDer::pem_slice_iter(pem)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| TlsError::Pem { what, source })
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates("authorities", authorities)? {
            roots.add(authority).map_err(|error| unusable(&error))?;
        }
        let chain = certificates("certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "key", source })?;
        let roots = Arc::new(roots);
        // Named here, so that it does not matter which provider the program has made the default.
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), ring.clone())
            .build()
            .map_err(|error| unusable(&error))?;
        let mut server = ServerConfig::builder_with_provider(ring.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable(&error))?;
        let mut client = ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&error))?;
        // What is taken up again is not looked at again, and a certificate that has run out would go on. Connections last, so
        // little is saved by it.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }
}

/// The certificate that the other side has shown and proved to own.
pub(crate) struct PeerCertificate(CertificateDer<'static>);

impl PeerCertificate {
    fn new(certificate: &CertificateDer<'_>) -> Self {
        Self(certificate.clone().into_owned())
    }

    /// Whether the certificate carries a name.
    pub(crate) fn carries(&self, name: &str) -> bool {
        let (Ok(certificate), Ok(name)) =
            (rustls::server::ParsedCertificate::try_from(&self.0), ServerName::try_from(name.to_owned()))
        else {
            return false;
        };
        rustls::client::verify_server_name(&certificate, &name).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use divider_support::certificates::Authority;
    use rustls::HandshakeKind;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// An authority of its own, and a certificate and a key of it.
    fn texts() -> [String; 3] {
        Authority::new().issue("node")
    }

    fn tls([authority, certificate, key]: &[String; 3]) -> Tls {
        Tls::from_pem(authority.as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    async fn come_together(one: &Tls, other: &Tls) -> bool {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (dialled, accepted) = tokio::join!(one.dialled(near, "node"), other.accepted(far));
        dialled.is_ok() && accepted.is_ok()
    }

    #[tokio::test]
    async fn certificates_that_are_replaced_are_used_by_all_clones_from_then_on() {
        let (old, new) = (texts(), texts());
        let (mine, other) = (tls(&old), tls(&new));
        let clone = mine.clone();
        assert!(!come_together(&clone, &other).await);
        assert!(mine.replace(new[0].as_bytes(), new[1].as_bytes(), old[2].as_bytes()).is_err());
        assert!(come_together(&clone, &tls(&old)).await, "nothing was replaced");
        mine.replace(new[0].as_bytes(), new[1].as_bytes(), new[2].as_bytes()).unwrap();
        assert!(come_together(&clone, &other).await);
    }

    /// What is taken up again is not looked at again: a certificate that has ended meanwhile would go on.
    #[tokio::test]
    async fn certificates_are_looked_at_with_each_connection() {
        let mine = tls(&texts());
        for _ in 0..3 {
            let (near, far) = tokio::io::duplex(1 << 16);
            let ends = mine.ends();
            let dial = async {
                let mut stream = ends.connector.connect(ServerName::try_from("node").unwrap(), near).await.unwrap();
                // What could be taken up again comes with the first bytes.
                stream.read_u8().await.unwrap();
                stream.get_ref().1.handshake_kind()
            };
            let accept = async {
                let mut stream = ends.acceptor.accept(far).await.unwrap();
                stream.write_u8(1).await.unwrap();
                stream.flush().await.unwrap();
                stream.get_ref().1.handshake_kind()
            };
            assert_eq!(tokio::join!(dial, accept), (Some(HandshakeKind::Full), Some(HandshakeKind::Full)));
        }
    }

    #[tokio::test]
    async fn files_that_change_are_read_again_and_half_a_change_is_not_used() {
        let (directory, old, new) = (TempDir::new().unwrap(), texts(), texts());
        let path = |at: usize| directory.path().join(at.to_string());
        let write = |at: usize, texts: &[String; 3]| std::fs::write(path(at), &texts[at]).unwrap();
        (0..3).for_each(|at| write(at, &old));
        let mine = Tls::from_files_every(Duration::ZERO, path(0), path(1), path(2)).unwrap();
        assert!(come_together(&mine, &tls(&old)).await);
        (0..2).for_each(|at| write(at, &new));
        mine.look_again().await;
        assert!(come_together(&mine, &tls(&old)).await, "the key is still of the other certificate");
        write(2, &new);
        let began = Instant::now();
        while !come_together(&mine, &tls(&new)).await {
            assert!(began.elapsed() < Duration::from_secs(10));
        }
        assert!(Tls::from_files(path(0), path(1), path(7)).unwrap_err().to_string().contains("7"));
    }
}
