//! Mutual TLS by rustls, with ring.
//!
//! Both sides show a certificate of the same authorities. Whoever dials checks that the certificate carries the name of
//! the member it means (or, for a seed, the host of its address); a member that dials must carry its own name, so that no
//! holder of some certificate can pass for another member. A client may have any name.

use std::{fmt, io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::security::{Connection, Secured};

/// The certificate of this process, its key, and the authorities that the others' certificates are checked against.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
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
        let server = ServerConfig::builder_with_provider(ring.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| unusable(&error))?;
        let client = ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| unusable(&error))?;
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    pub(crate) async fn dialled(
        &self,
        stream: impl Connection + 'static,
        name: &str,
    ) -> io::Result<Box<dyn Connection>> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.connector.connect(name, stream).await?))
    }

    pub(crate) async fn accepted(&self, stream: impl Connection + 'static) -> io::Result<Secured> {
        let stream = self.acceptor.accept(stream).await?;
        let proved = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(Proof::new);
        Ok((Box::new(stream), proved))
    }
}

/// The certificate that the other side has shown and proved to own.
pub(crate) struct Proof(CertificateDer<'static>);

impl Proof {
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
