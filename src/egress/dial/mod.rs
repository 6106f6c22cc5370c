//! Reaching an address through a user's proxy.
//!
//! It is the daemon that connects to the proxy, from the host, and whoever may call the API says where it is. So the address that
//! is connected to, also one that a name was looked up to, must not be the host's own, a tenant's, or a link's ([`is_closed`]), unless
//! the configuration allows it. A proxy in the operator's private network is allowed: that is where many are.
//!
//! Nothing here ever connects to the target itself.

mod http;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_socks::tcp::Socks5Stream;

use crate::domain::Subnet;
use crate::domain::network::{Protocol, Proxy, ProxyHost};
use crate::sys::gateway::is_closed;

/// Addresses of a proxy's name that are tried.
const ADDRESSES_MAX: usize = 4;

/// A connection to a target, whatever lies between.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

/// Why a target is not reached. No text of it has credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("cannot look up {proxy}")]
    Resolve {
        proxy: String,
        #[source]
        source: io::Error,
    },
    #[error("{proxy} is at {address}: an address of this host, of a tenant or of a link")]
    Closed { proxy: String, address: SocketAddr },
    #[error("cannot connect to {proxy}")]
    Connect {
        proxy: String,
        #[source]
        source: io::Error,
    },
    #[error("no TLS with {proxy}")]
    Tls {
        proxy: String,
        #[source]
        source: io::Error,
    },
    #[error("{proxy} does not connect by SOCKS")]
    Socks {
        proxy: String,
        #[source]
        source: tokio_socks::Error,
    },
    #[error("{proxy} does not speak HTTP")]
    Http {
        proxy: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{proxy} answered {status} to CONNECT")]
    Refused { proxy: String, status: StatusCode },
}

/// Connects through proxies. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    subnet: Subnet,
    allow_local: bool,
    /// Made at the first use: reading the host's certificates takes a moment.
    tls: Arc<OnceCell<TlsConnector>>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("subnet", &self.subnet)
            .field("allow_local", &self.allow_local)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// `allow_local`: proxies may also be on this host.
    pub fn new(subnet: Subnet, allow_local: bool) -> Self {
        Self { subnet, allow_local, tls: Arc::default() }
    }

    /// Whether the daemon connects to an address for a user of the API.
    pub(super) fn connects_to(&self, address: std::net::IpAddr) -> bool {
        self.allow_local || !is_closed(address, self.subnet)
    }

    /// A connection to a target through a proxy. The caller bounds the time.
    ///
    /// # Errors
    /// The proxy is not reached, or does not reach the target.
    pub(super) async fn connect(&self, proxy: &Proxy, target: SocketAddr) -> Result<Box<dyn Wire>, DialError> {
        let stream = self.reach(proxy).await?;
        match proxy.protocol {
            Protocol::Socks5 => socks(stream, proxy, target).await,
            Protocol::Http => http::connect(stream, proxy, target).await,
            Protocol::Https => http::connect(self.secure(stream, proxy).await?, proxy, target).await,
        }
    }

    async fn reach(&self, proxy: &Proxy) -> Result<TcpStream, DialError> {
        let name = || proxy.to_string();
        let addresses: Vec<SocketAddr> = match &proxy.host {
            ProxyHost::Address(address) => vec![(*address, proxy.port.get()).into()],
            ProxyHost::Name(host) => {
                let found = lookup_host((host.as_str(), proxy.port.get())).await;
                found.map_err(|source| DialError::Resolve { proxy: name(), source })?.take(ADDRESSES_MAX).collect()
            }
        };
        let mut last = Err(DialError::Resolve { proxy: name(), source: io::ErrorKind::NotFound.into() });
        for address in addresses {
            if !self.connects_to(address.ip()) {
                last = Err(DialError::Closed { proxy: name(), address });
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // A tenant's small packets are not held back here either.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(source) => last = Err(DialError::Connect { proxy: name(), source }),
            }
        }
        last
    }

    async fn secure(&self, stream: TcpStream, proxy: &Proxy) -> Result<impl Wire + 'static, DialError> {
        let failed = |source| DialError::Tls { proxy: proxy.to_string(), source };
        let connector = self.tls.get_or_try_init(connector).await.map_err(failed)?;
        let name = match &proxy.host {
            ProxyHost::Address(address) => ServerName::from(*address),
            ProxyHost::Name(name) => {
                ServerName::try_from(name.clone()).map_err(|error| failed(io::Error::other(error)))?
            }
        };
        connector.connect(name, stream).await.map_err(failed)
    }
}

/// TLS with the certificate authorities that this host trusts.
async fn connector() -> io::Result<TlsConnector> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await.map_err(io::Error::other)?;
    for error in &loaded.errors {
        tracing::warn!(%error, "a certificate of this host does not read");
    }
    let mut roots = RootCertStore::empty();
    let (trusted, unread) = roots.add_parsable_certificates(loaded.certs);
    tracing::debug!(trusted, unread, "certificate authorities of this host");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn socks(stream: TcpStream, proxy: &Proxy, target: SocketAddr) -> Result<Box<dyn Wire>, DialError> {
    let connected = match &proxy.credentials {
        Some(credentials) => {
            let (user, password) = (credentials.user.reveal(), credentials.password.reveal());
            Socks5Stream::connect_with_password_and_socket(stream, target, user, password).await
        }
        None => Socks5Stream::connect_with_socket(stream, target).await,
    };
    let failed = |source| DialError::Socks { proxy: proxy.to_string(), source };
    connected.map(|stream| Box::new(stream.into_inner()) as Box<dyn Wire>).map_err(failed)
}

#[cfg(test)]
mod tests;
