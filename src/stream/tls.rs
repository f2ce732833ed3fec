//! TLS in front of a streaming session (1.3 only).
//!
//! A task per connection carries bytes between the encrypted connection and a pair
//! of sockets, so that a session is the same with and without it. It ends with the
//! session, or when both directions have ended.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};

use crate::limits::TLS_RECORD_BYTES_MAX;

/// What the server shows and proves.
#[derive(Debug)]
pub(super) struct Files {
    /// PEM: the server's certificate, then those that it rests on.
    pub(super) certificates: PathBuf,
    /// PEM: its private key.
    pub(super) key: PathBuf,
}

/// The task that carries the bytes; dropped, it is ended.
#[derive(Debug)]
pub struct Relay(AbortHandle);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Files {
    /// Reads them. They are read for every connection, so whoever renews them need
    /// not tell us.
    pub(super) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let bad = |path: &PathBuf, error: &dyn std::fmt::Display| {
            io::Error::other(format!("the file {} cannot be used for TLS: {error}", path.display()))
        };
        let certificates = CertificateDer::pem_file_iter(&self.certificates)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| bad(&self.certificates, &error))?;
        if certificates.is_empty() {
            return Err(bad(&self.certificates, &"there is no certificate in it"));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| bad(&self.key, &error))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key))
            .map_err(|error| bad(&self.key, &error))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// Shakes hands; the plain side of the connection.
pub(super) async fn decrypt(stream: TcpStream, files: &Files) -> io::Result<(UnixStream, Relay)> {
    let mut encrypted = files.acceptor()?.accept(stream).await?;
    let (ours, mut theirs) = UnixStream::pair()?;
    let carry = async move {
        let size = TLS_RECORD_BYTES_MAX;
        let carried = tokio::io::copy_bidirectional_with_sizes(&mut encrypted, &mut theirs, size, size).await;
        if let Err(error) = carried {
            log::debug!("an encrypted connection ended: {error}");
        }
    };
    Ok((ours, Relay(tokio::task::spawn_local(carry).abort_handle())))
}
