//! TLS in front: the handshake, and which certificate is shown in it.
//!
//! ```text
//! folder ─► pair (read, checked) ─► table (exact name, wildcard, default) ─► handshake
//!   ▲ looked at every second
//! ```
//!
//! TLS 1.2 and 1.3, by rustls. Sessions are resumed by tickets that hold all there is to know, under keys that change (RFC 5077), so
//! that nothing is kept for a client that went away; nothing is taken before the handshake is through (no 0-RTT), since it
//! could be sent twice.

mod folder;
mod pair;
mod table;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::ResolvesServerCert;
use tokio_rustls::server::TlsStream;

pub use folder::{Certificates, FolderError};
pub use pair::{PairError, Validity};

use super::conn::Speaks;

/// HTTP/2, as a handshake names it (RFC 9113 §3.2).
const ALPN_HTTP2: &[u8] = b"h2";
/// HTTP/1.1 (RFC 7301 §6).
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// A challenge of ACME's (RFC 8737 §6.2).
const ALPN_ACME: &[u8] = b"acme-tls/1";

/// The bounds of handshakes.
#[derive(Debug, Clone, Copy)]
pub struct TlsConfig {
    /// From the accept to the end of the handshake.
    pub handshake_ms_max: Duration,
    /// Handshakes at once; further clients wait within that time.
    pub handshakes_max: usize,
    /// Whether a challenge of ACME's may be what the handshake is for.
    pub takes_challenges: bool,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self { handshake_ms_max: Duration::from_millis(10_000), handshakes_max: 1_024, takes_challenges: false }
    }
}

/// TLS cannot be spoken: the machine has no randomness, or rustls none of its ciphers.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up")]
pub struct TlsError(#[source] tokio_rustls::rustls::Error);

/// What clients shake hands with.
pub struct Tls {
    acceptor: TlsAcceptor,
    slots: Semaphore,
    config: TlsConfig,
}

impl Tls {
    /// Shows these certificates.
    ///
    /// # Errors
    /// There is no TLS on this machine.
    pub fn new(certificates: Arc<Certificates>, config: TlsConfig) -> Result<Arc<Self>, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = certificates;
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        server.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
        if config.takes_challenges {
            server.alpn_protocols.push(ALPN_ACME.to_vec());
        }
        server.ticketer = ring::Ticketer::new().map_err(TlsError)?;
        let slots = Semaphore::new(config.handshakes_max);
        Ok(Arc::new(Self { acceptor: TlsAcceptor::from(Arc::new(server)), slots, config }))
    }

    /// Shakes hands, within the bounds; what the client speaks then.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Speaks)> {
        let shake = async {
            let _slot = self.slots.acquire().await.map_err(io::Error::other)?;
            self.acceptor.accept(stream).await
        };
        let stream = timeout(self.config.handshake_ms_max, shake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"))??;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN_HTTP2) => Ok((stream, Speaks::Http2)),
            Some(ALPN_ACME) => Err(io::Error::other("the handshake was all that it came for")),
            _ => Ok((stream, Speaks::Http1)),
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("config", &self.config).finish_non_exhaustive()
    }
}
