//! Questions about addresses that only the kernel can answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// Any port: nothing is sent to it.
const DISCARD: u16 = 9;

/// Whether an address is one of this host's own: the source that the kernel would choose towards it is the address itself. Sends
/// nothing. An address that nothing leads to is not ours.
pub fn is_this_host(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = || {
        let socket = UdpSocket::bind(SocketAddr::from((any, 0)))?;
        socket.connect((address, DISCARD))?;
        socket.local_addr()
    };
    address.is_loopback() || source().is_ok_and(|local| local.ip() == address)
}

/// Where a connection was meant to go before the firewall led it here.
///
/// # Errors
/// The kernel does not know: it was not led, or its flow was forgotten.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let raw = getsockopt(stream, sockopt::OriginalDst)?;
    let address = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
    Ok((address, u16::from_be(raw.sin_port)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_host_and_a_documentation_address_is_not() {
        assert!(is_this_host(Ipv4Addr::new(127, 0, 0, 53).into()));
        assert!(is_this_host(Ipv6Addr::LOCALHOST.into()));
        assert!(!is_this_host(Ipv4Addr::new(192, 0, 2, 1).into()));
    }
}
