//! The gateway's address, where tenants meet the daemon: its sockets, and what only the kernel knows of addresses.
//!
//! Every tenant's gateway is [`GATEWAY`], on this daemon and on every other daemon of the host: nobody may take its well-known
//! ports. So a daemon listens there on ports of its own, and its firewall's table leads its own tenants to them ([`Doors`]).
//! The address is on tenants' links and comes and goes with them; the sockets are bound to it whether or not it is there.

mod probe;
mod reach;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, setsockopt, sockopt};
use tokio::net::{TcpListener, UdpSocket};

use crate::domain::slot::GATEWAY;

pub use probe::{is_this_host, original_destination};
pub use reach::{is_closed, is_public};

/// Tries to find a port that is free for both protocols.
const PORT_TRIES_MAX: u32 = 32;
/// Bytes of queries that may wait for the daemon: a burst of a thousand.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The ports of the gateway address on which one daemon listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doors {
    /// Where tenants' port 53 leads, UDP and TCP.
    pub dns: u16,
    /// Where the TCP of tenants with a proxy leads.
    pub relay: u16,
    /// Where tenants' port 80 leads: they ask there to be kept awake.
    pub keepalive: u16,
}

/// A port of the gateway address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {what}")]
pub struct GatewayError {
    /// For what.
    pub what: &'static str,
    /// Where; port 0 is any that is free.
    pub address: SocketAddr,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// The daemon's sockets, in the network namespace of the thread that bound them.
#[derive(Debug)]
pub struct GatewaySockets {
    /// Questions.
    pub dns_udp: UdpSocket,
    /// Questions whose answers are long.
    pub dns_tcp: TcpListener,
    /// Connections that go on through a proxy.
    pub relay: TcpListener,
    /// Calls that ask to be kept awake.
    pub keepalive: TcpListener,
}

impl GatewaySockets {
    /// Binds them; 0 is any port that is free, and so is that of the keepalive calls. Needs a tokio runtime.
    ///
    /// # Errors
    /// A port that is taken.
    pub fn bind(dns: u16, relay: u16) -> Result<Self, GatewayError> {
        let (dns_tcp, dns_udp) = pair(dns).map_err(failed("tenants' DNS", dns))?;
        let relay = listener(GATEWAY, relay).map_err(failed("tenants' connections", relay))?;
        let keepalive = listener(GATEWAY, 0).map_err(failed("tenants' keepalive calls", 0))?;
        Ok(Self { dns_udp, dns_tcp, relay, keepalive })
    }

    /// Where they are.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn doors(&self) -> io::Result<Doors> {
        Ok(Doors {
            dns: self.dns_udp.local_addr()?.port(),
            relay: self.relay.local_addr()?.port(),
            keepalive: self.keepalive.local_addr()?.port(),
        })
    }
}

fn failed(what: &'static str, port: u16) -> impl FnOnce(io::Error) -> GatewayError {
    let address = SocketAddr::from((GATEWAY, port));
    move |source| GatewayError { what, address, source }
}

/// TCP and UDP on one port.
fn pair(port: u16) -> io::Result<(TcpListener, UdpSocket)> {
    for _ in 0..PORT_TRIES_MAX {
        let tcp = listener(GATEWAY, port)?;
        match bound(GATEWAY, tcp.local_addr()?.port(), SockType::Datagram) {
            Ok(udp) => {
                setsockopt(&udp, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
                return Ok((tcp, UdpSocket::from_std(udp.into())?));
            }
            // Any port will do, and this one has its UDP half taken.
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EADDRINUSE.into())
}

fn listener(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = bound(address, port, SockType::Stream)?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    TcpListener::from_std(socket.into())
}

fn bound(address: Ipv4Addr, port: u16, kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Inet, kind, flags, None)?;
    if kind == SockType::Stream {
        // What an earlier daemon's connections left must not keep a configured port.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, port)))?;
    Ok(socket)
}
