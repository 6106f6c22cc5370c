//! Slots: the small number from which a container's address, uid range and interface name are derived.
//!
//! There is no lease file to leak: a slot is held by exactly one record, and everything else follows from it.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::name::Instance;

/// Ids of a container's user namespace: uid 0–65535 inside, as the distributions' subordinate ranges have.
pub const IDS_PER_SLOT: u32 = 65_536;

/// The link-local address every tenant has as its gateway (RFC 3927 range; the first of 169.254.1.0/24, clear of
/// the metadata services' 169.254.169.254).
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// A container's slot: 1 up to the subnet's capacity. 0 is the network address and belongs to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u16);

impl Slot {
    /// Name of the host's end of the container's veth: `<instance>-<slot>`, at most 14 bytes.
    pub fn link_name(self, instance: &Instance) -> String {
        format!("{instance}-{}", self.0)
    }

    /// The slot an interface name of this instance stands for, if it is one of ours.
    pub fn from_link_name(instance: &Instance, name: &str) -> Option<Self> {
        let digits = name.strip_prefix(instance.as_str())?.strip_prefix('-')?;
        let slot: u16 = digits.parse().ok()?;
        (slot != 0 && slot.to_string() == digits).then_some(Self(slot))
    }

    /// First id on the host of this slot's user namespace.
    pub fn first_id(self, base: u32) -> u32 {
        base + u32::from(self.0) * IDS_PER_SLOT
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The IPv4 network that tenants' addresses are taken from: /16 to /28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet(Ipv4Network);

/// A text that is no subnet for tenants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a subnet for tenants: an IPv4 network from /16 to /28 such as 10.201.0.0/16 is wanted")]
pub struct SubnetError(pub String);

impl Subnet {
    /// The address of a slot: the network's address plus the slot. `None` past the last usable address.
    pub fn address(self, slot: Slot) -> Option<Ipv4Addr> {
        (slot.0 != 0 && slot.0 <= self.last_slot().0)
            .then(|| Ipv4Addr::from_bits(self.0.network().to_bits() + u32::from(slot.0)))
    }

    /// The slot that an address belongs to; the reverse of [`Subnet::address`].
    pub fn slot(self, address: Ipv4Addr) -> Option<Slot> {
        let above = address.to_bits().checked_sub(self.0.network().to_bits())?;
        let slot = Slot(u16::try_from(above).ok()?);
        (self.address(slot) == Some(address)).then_some(slot)
    }

    /// The highest slot: the address before the broadcast address.
    pub fn last_slot(self) -> Slot {
        Slot((self.0.size() - 2) as u16)
    }

    /// The network itself, for routes and rules.
    pub fn network(self) -> Ipv4Network {
        self.0
    }
}

impl Default for Subnet {
    /// 10.201.0.0/16: private (RFC 1918), seldom used by others, 65 534 slots.
    fn default() -> Self {
        const {
            Self(match Ipv4Network::new_checked(Ipv4Addr::new(10, 201, 0, 0), 16) {
                Some(network) => network,
                None => unreachable!(),
            })
        }
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let wrong = || SubnetError(text.chars().take(64).collect());
        let network: Ipv4Network = text.parse().map_err(|_| wrong())?;
        let exact = network.network() == network.ip();
        if exact && (16..=28).contains(&network.prefix()) { Ok(Self(network)) } else { Err(wrong()) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_follow_from_the_slot() {
        let subnet: Subnet = "10.201.0.0/16".parse().unwrap();
        assert_eq!(subnet.address(Slot(1)), Some(Ipv4Addr::new(10, 201, 0, 1)));
        assert_eq!(subnet.address(Slot(258)), Some(Ipv4Addr::new(10, 201, 1, 2)));
        assert_eq!(subnet.address(Slot(0)), None);
        assert_eq!(subnet.address(Slot(65_534)), Some(Ipv4Addr::new(10, 201, 255, 254)));
        assert_eq!(subnet.address(Slot(65_535)), None, "that is the broadcast address");
        for slot in [Slot(1), Slot(258), Slot(65_534)] {
            assert_eq!(subnet.slot(subnet.address(slot).unwrap()), Some(slot));
        }
        for nobodys in [[10, 201, 0, 0], [10, 201, 255, 255], [10, 200, 255, 255], [10, 202, 0, 0]] {
            assert_eq!(subnet.slot(nobodys.into()), None);
        }
    }

    #[test]
    fn a_small_subnet_has_few_slots() {
        let subnet: Subnet = "192.168.7.0/28".parse().unwrap();
        assert_eq!(subnet.last_slot(), Slot(14));
        assert_eq!(subnet.address(Slot(15)), None);
    }

    #[test]
    fn host_bits_and_odd_sizes_are_refused() {
        for text in ["10.0.0.1/16", "10.0.0.0/8", "10.0.0.0/30", "fd00::/64", "ten"] {
            assert!(text.parse::<Subnet>().is_err(), "{text} was taken");
        }
    }

    proptest! {
        #[test]
        fn an_address_belongs_to_one_slot_or_to_none(prefix in 16u8..=28, bits: u32) {
            let network = Ipv4Network::new(Ipv4Addr::new(10, 201, 0, 0), prefix).unwrap();
            let (subnet, address) = (Subnet(network), Ipv4Addr::from_bits(0x0ac9_0000 ^ (bits & 0x3_ffff)));
            match subnet.slot(address) {
                Some(slot) => prop_assert_eq!(subnet.address(slot), Some(address)),
                None => prop_assert!(!network.contains(address) || [network.network(), network.broadcast()].contains(&address)),
            }
        }

        #[test]
        fn link_names_read_back(slot in 1u16..) {
            let instance: Instance = "tenantry".parse().unwrap();
            let name = Slot(slot).link_name(&instance);
            prop_assert!(name.len() <= 15);
            prop_assert_eq!(Slot::from_link_name(&instance, &name), Some(Slot(slot)));
        }

        #[test]
        fn no_two_instances_share_a_link_name(a in "[a-z][a-z0-9]{0,7}", b in "[a-z][a-z0-9]{0,7}", slot in 1u16..) {
            prop_assume!(a != b);
            let name = Slot(slot).link_name(&a.parse().unwrap());
            prop_assert_eq!(Slot::from_link_name(&b.parse().unwrap(), &name), None);
        }
    }
}
