//! Which of the flows that are open go on when rules change. Pure.
//!
//! The kernel looks at the rules when a flow opens, and lets the rest of it pass; so what new rules forbid has to be cut by
//! taking the flow out of the kernel's table. Its next packet then is the first of a flow, and meets the rules.

use std::net::Ipv4Addr;

use crate::domain::firewall::{Action, Base, HostPattern, Packet, Payload, Ruleset, Side, WasGiven};
use crate::domain::network::WayOut;
use crate::domain::slot::GATEWAY;
use crate::domain::{Slot, Subnet};

/// One end's view of a flow: where its packets come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) payload: Payload,
}

/// A flow as the kernel tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    /// The packet that opened it, as it was sent.
    pub(super) opened: Way,
    /// Its answers, as they are sent: from where it really went.
    pub(super) answered: Way,
    /// Whether its source was translated: it left by the masquerading chain.
    pub(super) masqueraded: bool,
    /// Whether its destination was translated.
    pub(super) redirected: bool,
}

impl Flow {
    /// What the chains saw of it: they come after destinations are translated and before sources are.
    fn payload(&self) -> Payload {
        match (self.opened.payload, self.answered.payload) {
            (Payload::Tcp { source, .. }, Payload::Tcp { source: destination, .. }) => {
                Payload::Tcp { source, destination }
            }
            (Payload::Udp { source, .. }, Payload::Udp { source: destination, .. }) => {
                Payload::Udp { source, destination }
            }
            (other, _) => other,
        }
    }

    /// Whether the rules let it go on. `rules` gives what is in force for a slot; where that is nothing, nothing of the slot's
    /// goes on. `was_given` says whether a slot's tenant was given an address for a host's name, be it that it opens no new flow any
    /// more. What is no tenant's is nobody's business.
    pub(super) fn goes_on<'a>(
        &self,
        subnet: Subnet,
        rules: impl Fn(Slot) -> Option<&'a Ruleset>,
        was_given: impl Fn(Slot, &HostPattern, Ipv4Addr) -> bool,
    ) -> bool {
        let base = Base { subnet };
        let payload = self.payload();
        let way = |slot| rules(slot).map(Ruleset::way_out);
        let allows = |slot, packet: Packet| {
            let was_given: WasGiven<'_> = &|host, address| was_given(slot, host, address);
            rules(slot).is_some_and(|all| base.verdict(all, &packet, was_given) == Action::Allow)
        };
        match (subnet.slot(self.opened.from), subnet.slot(self.answered.from)) {
            (None, None) => true,
            (Some(_), Some(_)) => false,
            // To this host: only what was led to the daemon's own sockets.
            (Some(slot), None) if self.answered.from == GATEWAY => {
                let meant = Packet { side: Side::Egress, peer: self.opened.to, payload: self.opened.payload };
                let goes_on = match (way(slot), self.opened.to == GATEWAY) {
                    (None | Some(WayOut::Blocked), _) | (Some(WayOut::Direct), false) => false,
                    // To the resolver.
                    (Some(_), true) => true,
                    // To the relay; the rules saw where it was meant to go.
                    (Some(WayOut::Relayed), false) => allows(slot, meant),
                };
                self.redirected && goes_on
            }
            (Some(slot), None) if way(slot) != Some(WayOut::Direct) => false,
            // Every flow that our rules let out is masqueraded. One that is not went by while they were missing.
            (Some(slot), None) => {
                self.masqueraded && allows(slot, Packet { side: Side::Egress, peer: self.answered.from, payload })
            }
            // This host's own flows, the proxy's among them, are not filtered.
            (None, Some(slot)) if self.opened.from == GATEWAY => rules(slot).is_some(),
            (None, Some(slot)) => allows(slot, Packet { side: Side::Ingress, peer: self.opened.from, payload }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::firewall::OwnRules;
    use crate::domain::policy::Policies;

    const TENANT: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 7);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 8);
    const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

    fn subnet() -> Subnet {
        "10.201.0.0/16".parse().unwrap()
    }

    fn rules(name: &str) -> Ruleset {
        let policies = Policies::shipped().unwrap();
        Ruleset::new(policies.get(&name.parse().unwrap()).unwrap(), &OwnRules::default()).unwrap()
    }

    fn tcp(source: u16, destination: u16) -> Payload {
        Payload::Tcp { source, destination }
    }

    fn way(from: Ipv4Addr, to: Ipv4Addr, payload: Payload) -> Way {
        Way { from, to, payload }
    }

    /// From the tenant to a server's port, by the host's address.
    fn out(server: Ipv4Addr, port: u16) -> Flow {
        Flow {
            opened: way(TENANT, server, tcp(40_000, port)),
            answered: way(server, HOST, tcp(port, 40_000)),
            masqueraded: true,
            redirected: false,
        }
    }

    fn goes_on(flow: &Flow, policy: Option<&str>) -> bool {
        let rules = policy.map(rules);
        flow.goes_on(subnet(), |slot| rules.as_ref().filter(|_| slot == Slot(7)), |_, _, _| false)
    }

    #[test]
    fn a_flow_goes_on_while_the_rules_allow_it() {
        assert!(goes_on(&out(SERVER, 443), Some("web")) && goes_on(&out(SERVER, 25), Some("web")));
        assert!(goes_on(&out(SERVER, 443), Some("locked-down")) && !goes_on(&out(SERVER, 25), Some("locked-down")));
        assert!(!goes_on(&out(SERVER, 443), Some("no-egress")));
        assert!(!goes_on(&out(PRIVATE, 443), Some("web")) && goes_on(&out(PRIVATE, 443), Some("open")));
        assert!(!goes_on(&out(SERVER, 443), None), "a slot without rules has no flows");
    }

    #[test]
    fn what_left_without_being_masqueraded_went_by_while_the_rules_were_missing() {
        let answered = way(SERVER, TENANT, tcp(443, 40_000));
        assert!(!goes_on(&Flow { masqueraded: false, answered, ..out(SERVER, 443) }, Some("open")));
    }

    #[test]
    fn the_rules_go_by_where_a_flow_really_went() {
        let opened = way(TENANT, HOST, tcp(40_000, 8443));
        let translated = Flow { opened, redirected: true, ..out(PRIVATE, 443) };
        assert!(!goes_on(&translated, Some("web")) && goes_on(&translated, Some("open")));
        let hairpin = Flow { answered: way(OTHER, HOST, tcp(8080, 40_000)), ..translated };
        assert!(!goes_on(&hairpin, Some("open")), "to another tenant");
    }

    #[test]
    fn to_this_host_only_what_was_led_there_goes_on() {
        let answered = way(GATEWAY, TENANT, tcp(5300, 40_000));
        let opened = way(TENANT, GATEWAY, tcp(40_000, 53));
        let led = Flow { opened, answered, masqueraded: false, redirected: true };
        assert!(goes_on(&led, Some("no-egress")));
        assert!(!goes_on(&Flow { redirected: false, ..led }, Some("open")));
        assert!(!goes_on(&led, None));
    }

    #[test]
    fn no_flow_outlives_the_way_it_was_led() {
        let straight = out(SERVER, 443);
        let resolver = Flow {
            opened: way(TENANT, GATEWAY, tcp(40_000, 53)),
            answered: way(GATEWAY, TENANT, tcp(5300, 40_000)),
            masqueraded: false,
            redirected: true,
        };
        let relay = Flow { opened: way(TENANT, SERVER, tcp(40_000, 443)), ..resolver };
        let goes_on = |flow: Flow, policy: &str, way| {
            let rules = rules(policy).led(way);
            flow.goes_on(subnet(), |_| Some(&rules), |_, _, _| false)
        };
        for (led, straight_on, resolver_on, relay_on) in [
            (WayOut::Direct, true, true, false),
            (WayOut::Relayed, false, true, true),
            (WayOut::Blocked, false, false, false),
        ] {
            let found = [straight, resolver, relay].map(|flow| goes_on(flow, "web", led));
            assert_eq!(found, [straight_on, resolver_on, relay_on], "{led:?}");
        }
        assert!(!goes_on(relay, "no-egress", WayOut::Relayed), "its own rules hold there too");
    }

    #[test]
    fn the_proxys_flows_go_on_and_strangers_need_a_rule() {
        let into = |from| Flow {
            opened: way(from, TENANT, tcp(50_000, 8080)),
            answered: way(TENANT, from, tcp(8080, 50_000)),
            masqueraded: false,
            redirected: false,
        };
        assert!(goes_on(&into(GATEWAY), Some("no-egress")) && !goes_on(&into(GATEWAY), None));
        assert!(!goes_on(&into(SERVER), Some("web")) && goes_on(&into(SERVER), Some("open")));
        assert!(!goes_on(&into(OTHER), Some("open")));
    }

    #[test]
    fn a_flow_to_an_address_that_was_given_for_a_name_goes_on() {
        let text = "ingress.default = 'drop'\negress.default = 'drop'\n[[egress.rules]]\naction = 'allow'\nprotocol = 'tcp'\n\
                    ports = ['443']\npeers = ['shop.example']";
        let rules = Ruleset::new(&toml::from_str(text).unwrap(), &OwnRules::default()).unwrap();
        let goes_on = |flow: Flow, given: Ipv4Addr| {
            flow.goes_on(
                subnet(),
                |_| Some(&rules),
                |slot, host, address| slot == Slot(7) && host.as_str() == "shop.example" && address == given,
            )
        };
        assert!(goes_on(out(SERVER, 443), SERVER) && !goes_on(out(SERVER, 25), SERVER));
        assert!(!goes_on(out(SERVER, 443), PRIVATE));
    }

    #[test]
    fn flows_that_are_no_tenants_are_left_alone() {
        let elsewhere = Flow { opened: way(HOST, SERVER, tcp(1, 2)), ..out(SERVER, 2) };
        assert!(goes_on(&elsewhere, None));
    }
}
