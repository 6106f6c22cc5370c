//! Name servers: who is asked in a tenant's stead, and what resolv.conf(5) says of them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::slot::GATEWAY;

/// Name servers that are asked for one tenant, at most; resolv.conf(5) itself keeps to three.
pub const NAME_SERVERS_MAX: usize = 4;
/// Where name servers listen (RFC 1035, 4.2).
pub const DNS_PORT: u16 = 53;

/// Where a name server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameServer(SocketAddr);

/// A text that is no name server's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name server: an address such as 192.0.2.53, 192.0.2.53:5353 or 2001:db8::53 is wanted")]
pub struct NameServerError(String);

impl NameServer {
    /// Address and port.
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl From<IpAddr> for NameServer {
    fn from(address: IpAddr) -> Self {
        Self((address, DNS_PORT).into())
    }
}

impl FromStr for NameServer {
    type Err = NameServerError;
    fn from_str(text: &str) -> Result<Self, NameServerError> {
        let wrong = || NameServerError(text.chars().take(64).collect());
        let plain = text.parse::<IpAddr>().map(Self::from);
        let server = plain.or_else(|_| text.parse().map(Self)).map_err(|_| wrong())?;
        let usable = server.0.port() != 0 && !server.0.ip().is_unspecified() && !server.0.ip().is_multicast();
        if usable { Ok(server) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for NameServer {
    type Error = NameServerError;
    fn try_from(text: String) -> Result<Self, NameServerError> {
        text.parse()
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.port() == DNS_PORT { self.0.ip().fmt(f) } else { self.0.fmt(f) }
    }
}

impl From<NameServer> for String {
    fn from(server: NameServer) -> String {
        server.to_string()
    }
}

/// The name servers of a resolv.conf(5), in order, at most [`NAME_SERVERS_MAX`]. What is no address, or a tenant's gateway, is left
/// out: asking the latter would be asking ourselves.
pub fn name_servers(resolv_conf: &str) -> Vec<NameServer> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<NameServer>().ok()).flatten()
    };
    let ours = |server: &NameServer| server.0.ip() == IpAddr::from(GATEWAY);
    resolv_conf.lines().filter_map(address).filter(|server| !ours(server)).take(NAME_SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server(text: &str) -> NameServer {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_with_and_without_a_port_are_taken() {
        assert_eq!(server("192.0.2.53").address(), "192.0.2.53:53".parse().unwrap());
        assert_eq!(server("192.0.2.53:5353").address(), "192.0.2.53:5353".parse().unwrap());
        assert_eq!(server("2001:db8::53").address(), "[2001:db8::53]:53".parse().unwrap());
        for text in ["dns.example", "", "192.0.2.53:0", "0.0.0.0", "224.0.0.251", "192.0.2.300"] {
            assert!(text.parse::<NameServer>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_resolv_conf_is_read_as_resolvers_read_it() {
        let text = "# nameserver 192.0.2.1\nsearch example\nnameserver 192.0.2.2\n  nameserver\t2001:db8::53 # x\nnameserver fe80::1%eth0\nnameserver 169.254.1.1\noptions edns0\n";
        assert_eq!(name_servers(text), [server("192.0.2.2"), server("2001:db8::53")]);
        assert_eq!(name_servers(&"nameserver 192.0.2.2\n".repeat(10)).len(), NAME_SERVERS_MAX);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(address: std::net::Ipv4Addr, port in 1u16..) {
            prop_assume!(!address.is_unspecified() && !address.is_multicast());
            let server = NameServer((address, port).into());
            prop_assert_eq!(server.to_string().parse(), Ok(server));
        }

        #[test]
        fn any_text_is_read_without_harm(text in "\\PC{0,200}") {
            prop_assert!(name_servers(&text).len() <= NAME_SERVERS_MAX);
        }
    }
}
