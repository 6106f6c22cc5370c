//! A container's own rules: kept in its record, evaluated before its policy's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::host::HostPattern;
use super::peer::Peers;
use super::port::Ports;
use super::rule::{Action, Description, Protocol, Rule};
use super::ruleset::Side;
use crate::domain::policy::{HOSTS_MAX, PAIRS_MAX};

/// Own rules of one container, in both directions together, at most.
pub const OWN_RULES_MAX: usize = 500;

/// Whether a rule is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is.
    Enabled,
    /// It is kept, and not looked at.
    Disabled,
}

impl State {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }

    /// The other one.
    pub const fn flipped(self) -> Self {
        match self {
            Self::Enabled => Self::Disabled,
            Self::Disabled => Self::Enabled,
        }
    }
}

/// One of a container's own rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRule {
    /// What it says.
    pub rule: Rule,
    /// Whether it is in force.
    pub state: State,
}

/// A container's own rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRules {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ingress: Vec<OwnRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    egress: Vec<OwnRule>,
}

/// Rules beyond a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnRulesError {
    /// One rule too many.
    #[error("the container has {OWN_RULES_MAX} firewall rules, as many as it may have")]
    TooMany,
    /// Too many combinations of networks and ports.
    #[error("the {side} rules would have {count} pairs of a network and a port between them, more than {PAIRS_MAX}")]
    TooManyPairs {
        /// Which way's.
        side: Side,
        /// How many.
        count: usize,
    },
    /// Too many names of hosts.
    #[error("the container's egress rules would name {count} hosts, more than {HOSTS_MAX}")]
    TooManyHosts {
        /// How many.
        count: usize,
    },
    /// A name on the side where it says nothing.
    #[error("ingress rules name no hosts: where `{0}` leads to says nothing about who comes")]
    HostOfIngress(HostPattern),
}

/// What became of a rule that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is the last one now.
    New,
    /// This rule does the same already; nothing was changed.
    Duplicate(OwnRule),
}

/// Which of the rules that a selector fits are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The first one.
    First,
    /// Every one.
    All,
}

/// Picks rules by some of their parts; what is `None` fits every rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the part of the same name of a rule")]
pub struct Selector {
    pub action: Option<Action>,
    pub protocol: Option<Protocol>,
    pub peers: Option<Peers>,
    pub ports: Option<Ports>,
    pub source_ports: Option<Ports>,
    pub icmp_type: Option<u8>,
    pub icmp_code: Option<u8>,
    pub description: Option<Description>,
    pub state: Option<State>,
}

impl Selector {
    /// Whether it fits every rule, because it names nothing.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    fn fits(&self, own: &OwnRule) -> bool {
        let rule = &own.rule;
        let icmp = match rule.traffic {
            super::rule::Traffic::Icmp4(icmp) => icmp,
            _ => None,
        };
        let any = Ports::default();
        let ends = rule.traffic.ends();
        self.action.is_none_or(|wanted| wanted == rule.action)
            && self.protocol.is_none_or(|wanted| Some(wanted) == rule.traffic.protocol())
            && self.peers.as_ref().is_none_or(|wanted| *wanted == rule.peers)
            && self.ports.as_ref().is_none_or(|wanted| wanted == ends.map_or(&any, |ends| &ends.destination))
            && self.source_ports.as_ref().is_none_or(|wanted| wanted == ends.map_or(&any, |ends| &ends.source))
            && self.icmp_type.is_none_or(|wanted| icmp.is_some_and(|icmp| icmp.kind == wanted))
            && self.icmp_code.is_none_or(|wanted| icmp.is_some_and(|icmp| icmp.code == Some(wanted)))
            && self.description.as_ref().is_none_or(|wanted| Some(wanted) == rule.description.as_ref())
            && self.state.is_none_or(|wanted| wanted == own.state)
    }
}

impl OwnRules {
    /// One way's rules, in order.
    pub fn side(&self, side: Side) -> &[OwnRule] {
        match side {
            Side::Ingress => &self.ingress,
            Side::Egress => &self.egress,
        }
    }

    const fn side_mut(&mut self, side: Side) -> &mut Vec<OwnRule> {
        match side {
            Side::Ingress => &mut self.ingress,
            Side::Egress => &mut self.egress,
        }
    }

    /// One way's rules that are in force, in order.
    pub fn enabled(&self, side: Side) -> impl Iterator<Item = &Rule> {
        self.side(side).iter().filter(|own| own.state == State::Enabled).map(|own| &own.rule)
    }

    /// How many there are, in both directions.
    pub fn len(&self) -> usize {
        self.ingress.len() + self.egress.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a rule behind the others, unless one does the same already.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn add(&mut self, side: Side, new: OwnRule) -> Result<Added, OwnRulesError> {
        if let Some(there) = self.side(side).iter().find(|own| own.rule.does_as(&new.rule)) {
            return Ok(Added::Duplicate(there.clone()));
        }
        if self.len() >= OWN_RULES_MAX {
            return Err(OwnRulesError::TooMany);
        }
        // Disabled ones count: enabling a rule must not fail.
        let all = self.side(side).iter().chain([&new]).map(|own| own.rule.combinations());
        let count = all.fold(0, usize::saturating_add);
        if count > PAIRS_MAX {
            return Err(OwnRulesError::TooManyPairs { side, count });
        }
        let hosts: BTreeSet<_> = self.side(side).iter().chain([&new]).flat_map(|own| own.rule.peers.hosts()).collect();
        match hosts.first() {
            Some(host) if side == Side::Ingress => return Err(OwnRulesError::HostOfIngress((*host).clone())),
            _ if hosts.len() > HOSTS_MAX => return Err(OwnRulesError::TooManyHosts { count: hosts.len() }),
            _ => {}
        }
        self.side_mut(side).push(new);
        Ok(Added::New)
    }

    /// Removes rules; gives those that were.
    pub fn remove(&mut self, side: Side, selector: &Selector, which: Removal) -> Vec<OwnRule> {
        let mut removed = Vec::new();
        self.side_mut(side).retain(|own| {
            let goes = selector.fits(own) && (which == Removal::All || removed.is_empty());
            if goes {
                removed.push(own.clone());
            }
            !goes
        });
        removed
    }

    /// Puts every rule that a selector fits into a state, or (`None`) into the other one; gives those it fits, as they are now.
    pub fn switch(&mut self, side: Side, selector: &Selector, state: Option<State>) -> Vec<OwnRule> {
        let fitting = self.side_mut(side).iter_mut().filter(|own| selector.fits(own));
        fitting
            .map(|own| {
                own.state = state.unwrap_or_else(|| own.state.flipped());
                own.clone()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(text: &str) -> OwnRule {
        OwnRule { rule: toml::from_str(text).unwrap(), state: State::Enabled }
    }

    fn port(n: usize) -> OwnRule {
        own(&format!("action = 'allow'\nprotocol = 'tcp'\nports = ['{n}']"))
    }

    fn with(rules: &[OwnRule]) -> OwnRules {
        let mut all = OwnRules::default();
        for rule in rules {
            assert_eq!(all.add(Side::Egress, rule.clone()).unwrap(), Added::New);
        }
        all
    }

    #[test]
    fn a_rule_that_does_the_same_is_there_already_whatever_it_is_called() {
        let mut rules = with(&[port(1), port(2)]);
        let again = own("action = 'allow'\nprotocol = 'tcp'\nports = ['2']\ndescription = 'again'");
        assert_eq!(rules.add(Side::Egress, again.clone()), Ok(Added::Duplicate(port(2))));
        assert_eq!(rules.add(Side::Ingress, again), Ok(Added::New));
        assert_eq!(rules.len(), 3);
    }

    #[test]
    fn the_bounds_hold_over_both_directions_and_for_disabled_rules() {
        let all: Vec<_> = (1..=OWN_RULES_MAX).map(port).collect();
        let mut rules = with(&all);
        assert_eq!(rules.add(Side::Egress, port(9999)), Err(OwnRulesError::TooMany));
        assert_eq!(rules.add(Side::Ingress, port(9999)), Err(OwnRulesError::TooMany));
        assert_eq!(rules.add(Side::Egress, port(7)), Ok(Added::Duplicate(port(7))), "which needs no room");
        let wide = |n: usize| {
            let peers: Vec<_> = (0..400).map(|k| format!("'10.{n}.{}.{}/32'", k / 100, k % 100)).collect();
            let rule = own(&format!("action = 'drop'\npeers = [{}]", peers.join(",")));
            OwnRule { state: State::Disabled, ..rule }
        };
        let mut rules = with(&[wide(1), wide(2)]);
        assert_eq!(
            rules.add(Side::Egress, wide(3)),
            Err(OwnRulesError::TooManyPairs { side: Side::Egress, count: 1200 })
        );
    }

    #[test]
    fn names_of_hosts_are_few_and_of_egress_rules() {
        let host = |n: usize| own(&format!("action = 'allow'\npeers = ['h{n}.example']"));
        let mut rules = with(&(0..HOSTS_MAX).map(host).collect::<Vec<_>>());
        let wanted = OwnRulesError::TooManyHosts { count: HOSTS_MAX + 1 };
        assert_eq!(rules.add(Side::Egress, host(HOSTS_MAX)), Err(wanted));
        let again = own("action = 'allow'\nprotocol = 'tcp'\npeers = ['h1.example']");
        assert_eq!(rules.add(Side::Egress, again), Ok(Added::New), "one name, twice");
        let ingress = rules.add(Side::Ingress, host(1)).unwrap_err();
        assert_eq!(ingress, OwnRulesError::HostOfIngress("h1.example".parse().unwrap()));
    }

    #[test]
    fn the_first_match_is_removed_or_all_are() {
        let mut rules = with(&[port(1), own("action = 'drop'"), port(2)]);
        let allow = Selector { action: Some(Action::Allow), ..Selector::default() };
        assert_eq!(rules.remove(Side::Ingress, &allow, Removal::All), []);
        assert_eq!(rules.clone().remove(Side::Egress, &allow, Removal::All), [port(1), port(2)]);
        assert_eq!(rules.remove(Side::Egress, &allow, Removal::First), [port(1)]);
        assert_eq!(rules.side(Side::Egress), [own("action = 'drop'"), port(2)]);
    }

    #[test]
    fn a_selector_fits_by_each_part_it_names() {
        let rule = own(
            "action = 'allow'\nprotocol = 'tcp'\npeers = ['192.0.2.1']\nports = ['80','443']\nsource_ports = ['9']\ndescription = 'web'",
        );
        let ports = |text: &str| Some(text.parse::<Ports>().unwrap());
        let fits = |selector: Selector| selector.fits(&rule);
        assert!(fits(Selector::default()) && Selector::default().is_any());
        assert!(fits(Selector { ports: ports("443,80"), source_ports: ports("9"), ..Selector::default() }));
        assert!(fits(Selector { peers: Some("192.0.2.1/32".parse().unwrap()), ..Selector::default() }));
        let not = [
            Selector { action: Some(Action::Drop), ..Selector::default() },
            Selector { protocol: Some(Protocol::Udp), ..Selector::default() },
            Selector { ports: ports("80"), ..Selector::default() },
            Selector { source_ports: ports("8"), ..Selector::default() },
            Selector { peers: Some("192.0.2.0/24".parse().unwrap()), ..Selector::default() },
            Selector { icmp_type: Some(8), ..Selector::default() },
            Selector { icmp_code: Some(0), ..Selector::default() },
            Selector { description: Some("other".to_owned().try_into().unwrap()), ..Selector::default() },
            Selector { state: Some(State::Disabled), ..Selector::default() },
        ];
        for selector in not {
            assert!(!selector.fits(&rule), "{selector:?}");
        }
    }

    #[test]
    fn states_are_set_or_flipped() {
        let mut rules = with(&[port(1), port(2)]);
        let all = Selector::default();
        assert!(rules.switch(Side::Egress, &all, Some(State::Disabled)).iter().all(|own| own.state == State::Disabled));
        assert_eq!(rules.enabled(Side::Egress).count(), 0);
        let one = Selector { ports: Some("2".parse().unwrap()), ..Selector::default() };
        assert_eq!(rules.switch(Side::Egress, &one, None), [port(2)]);
        assert_eq!(rules.switch(Side::Ingress, &all, None), []);
    }

    #[test]
    fn a_record_without_rules_reads_as_none() {
        assert_eq!(serde_json::from_str::<OwnRules>("{}").unwrap(), OwnRules::default());
        let rules = with(&[port(1)]);
        let json = serde_json::to_string(&rules).unwrap();
        assert_eq!(serde_json::from_str::<OwnRules>(&json).unwrap(), rules);
    }
}
