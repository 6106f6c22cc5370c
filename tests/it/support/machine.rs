//! A lab with the two drivers on its host: tenants without containers, for what only links and rules decide.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tenantry::domain::firewall::{OwnRules, Ruleset};
use tenantry::domain::policy::{Policies, Policy};
use tenantry::domain::{Instance, Slot, Subnet};
use tenantry::sys::netlink::{Links, Rates, VethLinks};
use tenantry::sys::nft::{Firewall, NftFirewall};
use tokio::runtime::Runtime;

use super::net::{NetLab, Netns};

/// The lab and the drivers; everything goes when it is dropped.
pub struct Machine {
    pub lab: NetLab,
    pub links: VethLinks,
    pub firewall: NftFirewall,
    /// Of one thread: what works behind, works while something blocks on it.
    pub runtime: Runtime,
}

pub fn instance() -> Instance {
    "lab".parse().unwrap()
}

pub fn subnet() -> Subnet {
    "10.201.0.0/16".parse().unwrap()
}

/// A shipped policy's rules.
pub fn policy(name: &str) -> Arc<Ruleset> {
    rules(Policies::shipped().unwrap().get(&name.parse().unwrap()).unwrap())
}

/// A policy's rules and none of a container's own.
pub fn rules(policy: &Policy) -> Arc<Ruleset> {
    Arc::new(Ruleset::new(policy, &OwnRules::default()).unwrap())
}

/// Rules as a policy's file has them.
pub fn rules_of(text: &str) -> Arc<Ruleset> {
    rules(&Policy::from_toml(&"test".parse().unwrap(), text).unwrap())
}

pub fn address(slot: u16) -> Ipv4Addr {
    subnet().address(Slot(slot)).unwrap()
}

impl Machine {
    pub fn start() -> Self {
        let lab = NetLab::enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let links = VethLinks::new(instance(), subnet()).unwrap();
        let firewall = {
            let _entered = runtime.enter();
            NftFirewall::new(instance(), subnet())
        };
        runtime.block_on(links.prepare_host()).unwrap();
        runtime.block_on(firewall.load(&[])).unwrap();
        Self { lab, links, firewall, runtime }
    }

    /// A tenant in the order in which a start makes one: link, rules, up.
    pub fn tenant(&self, slot: u16, rules: &Arc<Ruleset>) -> Netns {
        let netns = Netns::new();
        self.runtime.block_on(async {
            self.links.attach(Slot(slot), &netns.path(), Rates::default()).await.unwrap();
            self.firewall.apply(Slot(slot), rules).await.unwrap();
            self.links.up(Slot(slot)).await.unwrap();
        });
        netns
    }

    /// Lets time pass, in which the drivers work.
    pub fn wait(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Changes a tenant's rules.
    pub fn apply(&self, slot: u16, rules: &Arc<Ruleset>) {
        self.runtime.block_on(self.firewall.apply(Slot(slot), rules)).unwrap();
    }
}
