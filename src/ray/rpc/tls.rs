//! Encrypted gRPC as Ray 2.60 does it, on both sides of a call.
//!
//! With `RAY_USE_TLS=1` every process of a cluster has three PEM files: `RAY_TLS_SERVER_CERT` (its certificate, with the chain),
//! `RAY_TLS_SERVER_KEY` and `RAY_TLS_CA_CERT`. Servers demand a certificate of their callers, and callers show the same one
//! that they serve with; both sides check the other's against the CA. A caller also checks that the certificate names the
//! address that it dialled (a subject alternative name). gRPC wants HTTP/2 agreed on by ALPN (`h2`).

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

const CERT_VAR: &str = "RAY_TLS_SERVER_CERT";
const KEY_VAR: &str = "RAY_TLS_SERVER_KEY";
const CA_VAR: &str = "RAY_TLS_CA_CERT";
/// HTTP/2, as ALPN names it.
const ALPN_H2: &[u8] = b"h2";
/// A caller that has not shown its certificate by then is cut off.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the settings of TLS can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not named.
    #[error("RAY_USE_TLS is set, but {variable} is not: set it to a PEM file, on every node and for every driver")]
    Unset {
        /// The variable.
        variable: &'static str,
    },
    /// A file that can't be read, or holds nothing of the kind.
    #[error("{variable}: {path}: expected {expected} in PEM: {reason}")]
    File {
        /// The variable that names it.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Key and certificate don't fit together, or can't be used.
    #[error("the certificate in {CERT_VAR} and the key in {KEY_VAR} can't be used together: {0}")]
    Unusable(String),
}

/// How this process encrypts. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configurations hold the key.
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the files that the environment names.
    ///
    /// # Errors
    /// See [`TlsError`]; a node that gets one can't talk to its cluster and should say so and stop.
    pub fn from_env() -> Result<Self, TlsError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Like [`Self::from_env`] with the environment given as a function, so that it can be tested.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, TlsError> {
        let path = |variable| match var(variable).filter(|path| !path.is_empty()) {
            Some(path) => Ok(PathBuf::from(path)),
            None => Err(TlsError::Unset { variable }),
        };
        let (cert, key, ca) = (path(CERT_VAR)?, path(KEY_VAR)?, path(CA_VAR)?);
        let chain = certificates(CERT_VAR, &cert)?;
        let mut roots = RootCertStore::empty();
        for root in certificates(CA_VAR, &ca)? {
            let refused =
                |e: tokio_rustls::rustls::Error| file_error(CA_VAR, &ca, "certificates of authorities", e.to_string());
            roots.add(root).map_err(refused)?;
        }
        let secret = PrivateKeyDer::from_pem_file(&key)
            .map_err(|e| file_error(KEY_VAR, &key, "a private key", e.to_string()))?;
        if is_open_to_others(&key) {
            tracing::warn!(path = %key.display(), "the private key in {KEY_VAR} can be read by other users: chmod 600 it");
        }
        Self::new(chain, secret, roots)
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: RootCertStore,
    ) -> Result<Self, TlsError> {
        let unusable = |e: tokio_rustls::rustls::Error| TlsError::Unusable(e.to_string());
        let (provider, roots) = (Arc::new(ring::default_provider()), Arc::new(roots));
        let callers = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| TlsError::Unusable(e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(callers)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        server.alpn_protocols = vec![ALPN_H2.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.alpn_protocols = vec![ALPN_H2.to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(server)), connector: TlsConnector::from(Arc::new(client)) })
    }

    /// Greets a caller, within [`HANDSHAKE_TIMEOUT`].
    ///
    /// # Errors
    /// What is wrong with the caller or its certificate.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        let stream = greeted.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    /// Greets a server that was dialled by this host name or address. The caller bounds the time.
    ///
    /// # Errors
    /// What is wrong with the server or its certificate.
    pub async fn connect(&self, stream: TcpStream, host: &str) -> io::Result<Stream> {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(self.connector.connect(name, stream).await?.into())))
    }
}

fn certificates(variable: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<_>, _>>());
    match read {
        Ok(found) if found.is_empty() => Err(file_error(variable, path, "certificates", "there is none".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(file_error(variable, path, "certificates", error.to_string())),
    }
}

fn file_error(variable: &'static str, path: &Path, expected: &'static str, reason: String) -> TlsError {
    TlsError::File { variable, path: path.to_owned(), expected, reason }
}

/// Whether users other than its owner and group may read a file.
pub(super) fn is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

/// A TCP connection, encrypted or not.
pub enum Stream {
    /// As it came.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error that a node would end with. That good files work is shown by clusters (tests/ray/test_tls.py).
    fn refused(files: [(&'static str, Option<&str>); 3]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let (_, text) = files.iter().find(|(variable, _)| *variable == name)?;
            let path = dir.path().join(name);
            fs::write(&path, (*text)?).unwrap();
            path.to_str().map(str::to_owned)
        };
        Tls::from_vars(named).unwrap_err().to_string()
    }

    #[test]
    fn every_error_names_the_variable() {
        let nothing = "no PEM";
        let unset = refused([(CERT_VAR, Some(nothing)), (KEY_VAR, None), (CA_VAR, Some(nothing))]);
        assert!(unset.starts_with("RAY_USE_TLS is set, but RAY_TLS_SERVER_KEY is not"), "{unset}");
        let empty = refused([(CERT_VAR, Some(nothing)), (KEY_VAR, Some(nothing)), (CA_VAR, Some(nothing))]);
        assert!(empty.contains(CERT_VAR) && empty.ends_with("expected certificates in PEM: there is none"), "{empty}");
        let missing = Tls::from_vars(|_| Some("/nowhere/x.pem".to_owned())).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/x.pem"), "{missing}");
        // Base64 that is no certificate.
        let certificate = Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let nonsense = refused([(CERT_VAR, certificate), (KEY_VAR, Some(nothing)), (CA_VAR, certificate)]);
        assert!(nonsense.contains(CA_VAR), "{nonsense}");
    }
}
