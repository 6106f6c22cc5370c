//! Addresses that the daemon connects to for nobody who only uses its API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::is_this_host;
use crate::domain::Subnet;

/// Whether an address is this host, a tenant, or reachable on a link alone: who may name a proxy or a name server must not thereby
/// reach what listens on the host for itself, another tenant around the firewall, or a cloud's metadata service.
pub fn is_closed(address: IpAddr, subnet: Subnet) -> bool {
    let address = address.to_canonical();
    let special = match address {
        IpAddr::V4(address) => is_special(address) || subnet.network().contains(address),
        IpAddr::V6(address) => is_special_v6(address),
    };
    special || is_this_host(address)
}

/// Whether an address leads over the internet to the same place from everywhere, so that a proxy finds there what the host does.
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            // Also what carriers share among their customers (RFC 6598).
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64;
            !is_special(address) && !address.is_private() && !shared
        }
        IpAddr::V6(address) => !is_special_v6(address) && !address.is_unique_local(),
    }
}

fn is_special(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is this host (RFC 1122, 3.2.1.3), 240.0.0.0/4 is reserved.
    address.octets()[0] == 0
        || address.octets()[0] >= 240
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
}

fn is_special_v6(address: Ipv6Addr) -> bool {
    address.is_unspecified() || address.is_loopback() || address.is_unicast_link_local() || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_tenants_and_links_are_closed_and_the_operators_network_is_not() {
        let subnet: Subnet = "10.201.0.0/16".parse().unwrap();
        let closed = |text: &str| is_closed(text.parse().unwrap(), subnet);
        for text in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "10.201.3.4",
            "169.254.169.254",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.201.3.4",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(closed(text), "{text}");
        }
        for text in ["198.51.100.1", "10.99.0.1", "192.168.1.1", "2001:db8::1", "fd00::1"] {
            assert!(!closed(text), "{text}");
        }
    }

    #[test]
    fn private_addresses_are_not_public() {
        let public = |text: &str| is_public(text.parse().unwrap());
        assert!(public("198.51.100.1") && public("9.9.9.9") && public("2620:fe::fe"));
        for text in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.53", "fd00::1", "169.254.1.1"] {
            assert!(!public(text), "{text}");
        }
    }
}
