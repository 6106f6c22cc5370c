//! Who is on the other side.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::host::HostPattern;

/// Characters of a text that are repeated in an error.
const ECHO_CHARS_MAX: usize = 64;

/// One alternative for the other side: where it sends from, or is sent to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Peer {
    /// The addresses of a network; of a single one with the prefix 32. No host bits are set.
    Network(Ipv4Network),
    /// Those that the tenant was given for a host's name, where they are public ones. Of egress rules alone.
    Host(HostPattern),
}

/// Whether the tenant was given this address for a host that the pattern fits.
pub type WasGiven<'a> = &'a dyn Fn(&HostPattern, Ipv4Addr) -> bool;

/// A text that is no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Neither an address, nor a network, nor a name.
    #[error(
        "`{0}` is neither an IPv4 address, nor a network such as 10.0.0.0/8, nor a host such as api.example.com or *.example.com"
    )]
    Form(String),
    /// The address is not the network's.
    #[error("`{0}` is a network with host bits set: {1} is wanted")]
    HostBits(String, Ipv4Network),
}

impl Peer {
    /// Whether an address is one of its.
    pub fn contains(&self, address: Ipv4Addr, was_given: WasGiven<'_>) -> bool {
        match self {
            Self::Network(network) => network.contains(address),
            Self::Host(host) => was_given(host, address),
        }
    }

    /// The name, where it is one.
    pub const fn host(&self) -> Option<&HostPattern> {
        match self {
            Self::Network(_) => None,
            Self::Host(host) => Some(host),
        }
    }

    fn is_everybody(&self) -> bool {
        matches!(self, Self::Network(network) if network.prefix() == 0)
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Network(wide), Self::Network(narrow)) => {
                wide.prefix() <= narrow.prefix() && wide.contains(narrow.network())
            }
            (Self::Host(wide), Self::Host(narrow)) => wide.covers(narrow),
            (Self::Network(_), Self::Host(_)) => self.is_everybody(),
            (Self::Host(_), Self::Network(_)) => false,
        }
    }
}

impl FromStr for Peer {
    type Err = PeerError;
    fn from_str(text: &str) -> Result<Self, PeerError> {
        let echo = || text.chars().take(ECHO_CHARS_MAX).collect();
        let network: Ipv4Network = match text.parse() {
            Ok(network) => network,
            Err(_) => return text.parse().map(Self::Host).map_err(|_| PeerError::Form(echo())),
        };
        if network.network() == network.ip() {
            return Ok(Self::Network(network));
        }
        match Ipv4Network::new(network.network(), network.prefix()) {
            Ok(exact) => Err(PeerError::HostBits(echo(), exact)),
            Err(_) => Err(PeerError::Form(echo())),
        }
    }
}

impl TryFrom<String> for Peer {
    type Error = PeerError;
    fn try_from(text: String) -> Result<Self, PeerError> {
        text.parse()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) if network.prefix() == 32 => network.ip().fmt(f),
            Self::Network(network) => network.fmt(f),
            Self::Host(host) => host.fmt(f),
        }
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> String {
        peer.to_string()
    }
}

/// Peers, sorted and without those that others cover; empty: anybody. As text `10.0.0.0/8,192.0.2.1`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Peer>", into = "Vec<Peer>")]
pub struct Peers(Vec<Peer>);

impl Peers {
    /// Whether everybody is meant: no peer is named, or all addresses are.
    pub fn is_any(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(Peer::is_everybody)
    }

    /// Those that are named, in order.
    pub fn named(&self) -> &[Peer] {
        &self.0
    }

    /// Whether an address is meant.
    pub fn contains(&self, address: Ipv4Addr, was_given: WasGiven<'_>) -> bool {
        self.0.is_empty() || self.0.iter().any(|peer| peer.contains(address, was_given))
    }

    /// The names among them.
    pub fn hosts(&self) -> impl Iterator<Item = &HostPattern> {
        self.0.iter().filter_map(Peer::host)
    }
}

impl From<Vec<Peer>> for Peers {
    fn from(mut peers: Vec<Peer>) -> Self {
        // Wider ones first, so that each is only looked for among those that are kept. A wider name has fewer labels.
        let order = |peer: &Peer| match peer {
            Peer::Network(network) => (0, usize::from(network.prefix()), Some(network.network()), None),
            Peer::Host(host) => (1, host.as_str().split('.').count(), None, Some(host.clone())),
        };
        peers.sort_by_cached_key(order);
        let mut kept: Vec<Peer> = Vec::new();
        for peer in peers {
            if !kept.iter().any(|wider| wider.covers(&peer)) {
                kept.push(peer);
            }
        }
        Self(kept)
    }
}

impl From<Peers> for Vec<Peer> {
    fn from(peers: Peers) -> Self {
        peers.0
    }
}

impl FromStr for Peers {
    type Err = PeerError;
    fn from_str(text: &str) -> Result<Self, PeerError> {
        let peers = text.split(',').map(|part| part.trim().parse()).collect::<Result<Vec<Peer>, _>>()?;
        Ok(peers.into())
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, peer) in self.0.iter().enumerate() {
            write!(f, "{}{peer}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_address_or_a_network_without_host_bits() {
        assert_eq!("192.0.2.1".parse::<Peer>().unwrap(), "192.0.2.1/32".parse().unwrap());
        let error = "10.1.2.3/8".parse::<Peer>().unwrap_err().to_string();
        assert_eq!(error, "`10.1.2.3/8` is a network with host bits set: 10.0.0.0/8 is wanted");
        for text in ["", "10.0.0.0/33", "example", "fd00::/8", "10.0.0.0/8 ", "10.0.0.1-10.0.0.9"] {
            assert!(text.parse::<Peer>().is_err(), "{text} was taken");
        }
    }

    #[test]
    fn lists_that_read_the_same_are_the_same() {
        let peers = |text: &str| text.parse::<Peers>().unwrap();
        assert_eq!(peers("10.1.0.0/16, 10.0.0.0/8,10.0.0.0/8"), peers("10.0.0.0/8"));
        assert_eq!(peers("192.0.2.1/32,10.0.0.0/8").to_string(), "10.0.0.0/8,192.0.2.1");
        assert!(peers("10.0.0.0/8,0.0.0.0/0").is_any() && !peers("10.0.0.0/8").is_any());
        let nobody: WasGiven<'_> = &|_, _| false;
        assert!(peers("192.0.2.0/24").contains(Ipv4Addr::new(192, 0, 2, 9), nobody));
        assert!(!peers("192.0.2.0/24").contains(Ipv4Addr::new(192, 0, 3, 9), nobody));
        assert_eq!(peers("a.example.com,*.Example.com,192.0.2.1,b.test").to_string(), "192.0.2.1,b.test,*.example.com");
        assert_eq!(peers("a.example.com,0.0.0.0/0").to_string(), "0.0.0.0/0");
    }

    #[test]
    fn a_name_means_what_was_given_for_it() {
        let peers: Peers = "192.0.2.0/24,*.example.com".parse().unwrap();
        let shop = Ipv4Addr::new(198, 51, 100, 1);
        let contains =
            |given: bool| peers.contains(shop, &|host, address| given && host.fits("a.example.com") && address == shop);
        assert!(contains(true) && !contains(false));
    }
}
