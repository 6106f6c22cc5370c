//! A container's firewall on the wire.

use std::fmt;

use jiff::Timestamp;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::domain::Container;
use crate::domain::firewall::{
    Action, Description, DescriptionError, OWN_RULES_MAX, OwnRule, Peer, Peers, PortRange, Ports, Protocol, RawRule,
    Rule, RuleError, Ruleset, Selector, Side, State,
};
use crate::sys::nft::{Inspection, Lines};

/// Items of one list in a body, at most: more pairs than a direction may have anyway.
const LIST_ITEMS_MAX: usize = 1_000;

/// A rule, or the parts of one that pick rules.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleBody {
    /// allow, reject (an error at once), drop (silence).
    #[schema(value_type = Option<String>)]
    action: Option<Action>,
    /// tcp, udp, icmp4; left out: any.
    #[schema(value_type = Option<String>)]
    protocol: Option<Protocol>,
    /// For people, up to 256 bytes.
    description: Option<String>,
    /// Of an ingress rule: IPv4 addresses and networks, with commas or as an array; left out: any.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    source: Option<Vec<String>>,
    /// Of an egress rule: IPv4 addresses and networks, with commas or as an array; left out: any. Where the rule allows, also hosts by
    /// their names (`api.example.com`, `*.example.com`): the public addresses that the container's resolver gave for them, while they hold.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    destination: Option<Vec<String>>,
    /// `443`, `80-90` or `80,443`, only with tcp or udp; left out: any.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    destination_port: Option<Vec<String>>,
    /// As `destination_port`.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    source_port: Option<Vec<String>>,
    /// 0–255, only with icmp4; left out: any.
    icmp_type: Option<u8>,
    /// 0–255, only beside `icmp_type`; left out: any.
    icmp_code: Option<u8>,
    /// enabled (where left out), disabled.
    #[schema(value_type = Option<String>)]
    state: Option<State>,
}

/// The parts that pick the rules to be removed.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveRules {
    /// Every rule that fits, not the first one alone; with nothing else: every rule of this direction.
    all: Option<bool>,
    /// allow, reject, drop.
    #[schema(value_type = Option<String>)]
    action: Option<Action>,
    /// tcp, udp, icmp4.
    #[schema(value_type = Option<String>)]
    protocol: Option<Protocol>,
    /// The rule's whole description.
    description: Option<String>,
    /// The whole list of sources.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    source: Option<Vec<String>>,
    /// The whole list of destinations.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    destination: Option<Vec<String>>,
    /// The whole list of ports.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    destination_port: Option<Vec<String>>,
    /// The whole list of ports.
    #[serde(default, deserialize_with = "list")]
    #[schema(value_type = Option<String>)]
    source_port: Option<Vec<String>>,
    /// 0–255.
    icmp_type: Option<u8>,
    /// 0–255.
    icmp_code: Option<u8>,
    /// enabled, disabled.
    #[schema(value_type = Option<String>)]
    state: Option<State>,
}

/// Texts with commas, an array of texts, or one number.
fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Option<Vec<String>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text such as \"80,443\", or an array of texts")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
            Ok(Some(vec![number.to_string()]))
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let items: Vec<_> = text.split(',').take(LIST_ITEMS_MAX + 1).map(|item| item.trim().to_owned()).collect();
            bounded(items)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element::<String>()? {
                all.push(item);
                if all.len() > LIST_ITEMS_MAX {
                    break;
                }
            }
            bounded(all)
        }
    }
    fn bounded<E: serde::de::Error>(items: Vec<String>) -> Result<Option<Vec<String>>, E> {
        match items.len() {
            0..=LIST_ITEMS_MAX => Ok(Some(items)),
            _ => Err(E::custom(format_args!("more than {LIST_ITEMS_MAX} items"))),
        }
    }
    from.deserialize_any(List)
}

impl RemoveRules {
    /// Which rules, and whether all that fit.
    ///
    /// # Errors
    /// A field that cannot be, by its name; or nothing that picks any.
    pub fn into_selector(self, side: Side) -> Result<(Selector, bool), ApiError> {
        let all = self.all.unwrap_or(false);
        let body = RuleBody {
            action: self.action,
            protocol: self.protocol,
            description: self.description,
            source: self.source,
            destination: self.destination,
            destination_port: self.destination_port,
            source_port: self.source_port,
            icmp_type: self.icmp_type,
            icmp_code: self.icmp_code,
            state: self.state,
        };
        let selector = body.into_selector(side)?;
        if selector.is_any() && !all {
            return Err(ApiError::bad("VALIDATION_ERROR", "the body: a part of a rule is wanted, or `all`"));
        }
        Ok((selector, all))
    }
}

impl RuleBody {
    /// A rule.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_rule(self, side: Side) -> Result<OwnRule, ApiError> {
        let state = self.state.unwrap_or(State::Enabled);
        let action = self.action.ok_or_else(|| ApiError::invalid("action", "allow, reject or drop is wanted"))?;
        let parts = self.into_selector(side)?;
        let raw = RawRule {
            action,
            protocol: parts.protocol,
            peers: parts.peers.unwrap_or_default(),
            ports: parts.ports.unwrap_or_default(),
            source_ports: parts.source_ports.unwrap_or_default(),
            icmp_type: parts.icmp_type,
            icmp_code: parts.icmp_code,
            description: parts.description,
        };
        let rule = Rule::try_from(raw).map_err(|error| {
            let (field, wanted) = match error {
                RuleError::Ports => ("destination_port", "needs `protocol` to be tcp or udp"),
                RuleError::SourcePorts => ("source_port", "needs `protocol` to be tcp or udp"),
                RuleError::IcmpType => ("icmp_type", "needs `protocol` to be icmp4"),
                RuleError::IcmpCode => ("icmp_code", "needs `icmp_type`"),
                RuleError::HostNotAllowed => {
                    ("action", "a host's name can only be allowed: whoever knows its address passes a refusal by")
                }
            };
            ApiError::invalid(field, wanted)
        })?;
        Ok(OwnRule { rule, state })
    }

    /// The rules that a change of state is for, and the state.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_switch(mut self, side: Side) -> Result<(Selector, Option<State>), ApiError> {
        let state = self.state.take();
        Ok((self.into_selector(side)?, state))
    }

    fn into_selector(self, side: Side) -> Result<Selector, ApiError> {
        let (peers, field, other, other_field) = match side {
            Side::Ingress => (self.source, "source", self.destination, "destination"),
            Side::Egress => (self.destination, "destination", self.source, "source"),
        };
        if other.is_some() {
            let problem = format!("{side} rules have no such field: `{field}` is the other side");
            return Err(ApiError::invalid(other_field, problem));
        }
        let peers = items::<Peer, Peers>(field, peers)?;
        if let (Side::Ingress, Some(host)) = (side, peers.iter().flat_map(Peers::hosts).next()) {
            let problem = format!("ingress rules name no hosts: where `{host}` leads to says nothing about who comes");
            return Err(ApiError::invalid(field, problem));
        }
        Ok(Selector {
            action: self.action,
            protocol: self.protocol,
            peers,
            ports: items::<PortRange, Ports>("destination_port", self.destination_port)?,
            source_ports: items::<PortRange, Ports>("source_port", self.source_port)?,
            icmp_type: self.icmp_type,
            icmp_code: self.icmp_code,
            description: self.description.filter(|text| !text.is_empty()).map(description).transpose()?,
            state: self.state,
        })
    }
}

fn description(text: String) -> Result<Description, ApiError> {
    text.try_into().map_err(|error: DescriptionError| ApiError::invalid("description", error))
}

/// The items of a list, as the type that orders them; an empty text names none.
fn items<T, L>(field: &'static str, texts: Option<Vec<String>>) -> Result<Option<L>, ApiError>
where
    T: std::str::FromStr<Err: fmt::Display>,
    L: From<Vec<T>>,
{
    let Some(texts) = texts.filter(|texts| texts.iter().any(|text| !text.is_empty())) else { return Ok(None) };
    let parsed = texts.iter().map(|text| text.trim().parse::<T>()).collect::<Result<Vec<T>, _>>();
    parsed.map(|items| Some(items.into())).map_err(|error| ApiError::invalid(field, error))
}

/// A rule as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RuleView {
    /// allow, reject, drop.
    pub action: &'static str,
    /// tcp, udp, icmp4; null: any.
    pub protocol: Option<&'static str>,
    /// For people.
    pub description: Option<String>,
    /// Of an ingress rule: networks, with commas; null: any.
    pub source: Option<String>,
    /// Of an egress rule: networks and hosts, with commas; null: any.
    pub destination: Option<String>,
    /// Ports, with commas; null: any.
    pub destination_port: Option<String>,
    /// Ports, with commas; null: any.
    pub source_port: Option<String>,
    /// Null: any.
    pub icmp_type: Option<u8>,
    /// Null: any.
    pub icmp_code: Option<u8>,
    /// enabled, disabled.
    pub state: &'static str,
}

impl RuleView {
    /// One of a container's own rules.
    pub fn new(side: Side, own: &OwnRule) -> Self {
        let raw = RawRule::from(own.rule.clone());
        let peers = Some(raw.peers.to_string()).filter(|text| !text.is_empty());
        let ports = |ports: &Ports| Some(ports.to_string()).filter(|text| !text.is_empty());
        let (source, destination) = match side {
            Side::Ingress => (peers, None),
            Side::Egress => (None, peers),
        };
        Self {
            action: raw.action.as_str(),
            protocol: raw.protocol.map(Protocol::as_str),
            description: raw.description.map(String::from),
            source,
            destination,
            destination_port: ports(&raw.ports),
            source_port: ports(&raw.source_ports),
            icmp_type: raw.icmp_type,
            icmp_code: raw.icmp_code,
            state: own.state.as_str(),
        }
    }

    /// All of them.
    pub fn all(side: Side, rules: &[OwnRule]) -> Vec<Self> {
        rules.iter().map(|own| Self::new(side, own)).collect()
    }
}

/// A container's own rules, in the order in which they are looked at, before its policy's.
#[derive(Debug, Serialize, ToSchema)]
pub struct RulesView {
    /// Whose.
    pub container_id: String,
    /// The policy whose rules come after them.
    pub firewall_policy: String,
    /// Towards the container.
    pub ingress: Vec<RuleView>,
    /// From the container.
    pub egress: Vec<RuleView>,
    /// How many there are.
    pub total: usize,
    /// How many there may be.
    pub limit: usize,
}

impl From<&Container> for RulesView {
    fn from(container: &Container) -> Self {
        let rules = &container.settings.firewall_rules;
        let side = |side| RuleView::all(side, rules.side(side));
        Self {
            container_id: container.id.to_string(),
            firewall_policy: container.settings.firewall_policy.to_string(),
            ingress: side(Side::Ingress),
            egress: side(Side::Egress),
            total: rules.len(),
            limit: OWN_RULES_MAX,
        }
    }
}

/// A rule that was to be added.
#[derive(Debug, Serialize, ToSchema)]
pub struct RuleAdded {
    /// Whose.
    pub container_id: String,
    /// ingress, egress.
    pub direction: &'static str,
    /// The rule that is there now.
    pub rule: RuleView,
    /// Whether it was there already, so that nothing was changed.
    pub duplicate: bool,
}

/// Rules that were removed, or whose state was set.
#[derive(Debug, Serialize, ToSchema)]
pub struct RulesChangedView {
    /// Whose.
    pub container_id: String,
    /// ingress, egress.
    pub direction: &'static str,
    /// How many.
    pub count: usize,
    /// Which, as they were when removed, or as they are now.
    pub rules: Vec<RuleView>,
}

/// That all own rules are gone.
#[derive(Debug, Serialize, ToSchema)]
pub struct RulesReset {
    /// Whose.
    pub container_id: String,
    /// How many were removed.
    pub removed: usize,
    /// What is in force from now on.
    pub firewall_policy: String,
}

/// A rule and where it comes from.
#[derive(Debug, Serialize, ToSchema)]
pub struct EffectiveRule {
    /// container: one of its own; policy.
    pub origin: &'static str,
    /// The rule.
    pub rule: RuleView,
}

/// One way's rules, in the order in which they are looked at.
#[derive(Debug, Serialize, ToSchema)]
pub struct EffectiveSide {
    /// The container's own rules that are enabled, then its policy's.
    pub rules: Vec<EffectiveRule>,
    /// What happens to what none of them matches.
    pub default: &'static str,
}

/// Both ways' rules.
#[derive(Debug, Serialize, ToSchema)]
pub struct EffectiveRules {
    /// Towards the container.
    pub ingress: EffectiveSide,
    /// From the container.
    pub egress: EffectiveSide,
}

/// Chains in nft's words.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChainsView {
    /// Towards the container.
    pub ingress: Vec<String>,
    /// From the container.
    pub egress: Vec<String>,
}

/// What should be in force, and what is.
#[derive(Debug, Serialize, ToSchema)]
pub struct EffectiveView {
    /// Whose.
    pub container_id: String,
    /// The container's status; one that does not run has no chains in the kernel.
    pub status: &'static str,
    /// The policy beneath its own rules.
    pub firewall_policy: String,
    /// The rules as the API has them.
    pub rules: EffectiveRules,
    /// The chains as they should be in the kernel.
    pub desired: ChainsView,
    /// The chains as they are in the kernel.
    pub kernel: ChainsView,
    /// Whether the base rules, which hold for every tenant, and all chains are there.
    pub table_intact: bool,
    /// Whether what is in the kernel is what should be.
    pub agrees: bool,
    /// How often another program's change had to be mended since the daemon started.
    pub repairs: u64,
    /// When the last time.
    pub last_repair_at: Option<Timestamp>,
}

impl EffectiveView {
    /// From what is in the record and what was seen.
    pub fn new(container: &Container, rules: &Ruleset, seen: Inspection) -> Self {
        let agrees = seen.agrees();
        let side = |side: Side| {
            let direction = rules.side(side);
            let own = container.settings.firewall_rules.enabled(side).count();
            let shown = |(place, rule): (usize, &Rule)| EffectiveRule {
                origin: if place < own { "container" } else { "policy" },
                rule: RuleView::new(side, &OwnRule { rule: rule.clone(), state: State::Enabled }),
            };
            let rules = direction.rules.iter().enumerate().map(shown).collect();
            EffectiveSide { rules, default: direction.default.as_str() }
        };
        let chains = |pick: fn(Lines) -> Vec<String>, seen: &Inspection| ChainsView {
            ingress: pick(seen.ingress.clone()),
            egress: pick(seen.egress.clone()),
        };
        Self {
            container_id: container.id.to_string(),
            status: container.status().as_str(),
            firewall_policy: container.settings.firewall_policy.to_string(),
            rules: EffectiveRules { ingress: side(Side::Ingress), egress: side(Side::Egress) },
            desired: chains(|lines| lines.desired, &seen),
            kernel: chains(|lines| lines.kernel, &seen),
            table_intact: seen.table,
            agrees,
            repairs: seen.repairs.count,
            last_repair_at: seen.repairs.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::from_json;

    fn rule(side: Side, json: &str) -> Result<OwnRule, ApiError> {
        from_json::<RuleBody>(json.as_bytes())?.into_rule(side)
    }

    fn view(side: Side, json: &str) -> serde_json::Value {
        serde_json::to_value(RuleView::new(side, &rule(side, json).unwrap())).unwrap()
    }

    #[test]
    fn a_rule_is_shown_as_it_was_given() {
        let json = r#"{"action":"allow","protocol":"tcp","destination":"10.0.0.0/8,192.0.2.1","destination_port":"80,443",
            "source_port":"1024-65535","description":"API","state":"disabled","icmp_type":null}"#;
        let shown = view(Side::Egress, json);
        for (field, value) in [
            ("destination", "10.0.0.0/8,192.0.2.1"),
            ("destination_port", "80,443"),
            ("source_port", "1024-65535"),
            ("description", "API"),
            ("state", "disabled"),
        ] {
            assert_eq!(shown[field], value);
        }
        assert!(shown["source"].is_null());
        let host = view(Side::Egress, r#"{"action":"allow","destination":["API.Example.com.","192.0.2.1"]}"#);
        assert_eq!(host["destination"], "192.0.2.1,api.example.com");
        let array = r#"{"action":"drop","protocol":"udp","source":["192.0.2.0/24"],"destination_port":53}"#;
        let shown = view(Side::Ingress, array);
        assert_eq!((&shown["source"], &shown["destination_port"]), (&"192.0.2.0/24".into(), &"53".into()));
        // What is shown can be given again.
        let again = view(Side::Ingress, &shown.to_string());
        assert_eq!(again, shown);
    }

    #[test]
    fn a_bad_field_is_named() {
        let long = format!(r#"{{"action":"drop","source":"{}"}}"#, "192.0.2.1,".repeat(1_001));
        for (json, field) in [
            ("{}", "action"),
            (r#"{"action":"deny"}"#, "action"),
            (r#"{"action":"drop","protocol":"icmp6"}"#, "protocol"),
            (r#"{"action":"drop","destination":"192.0.2.1"}"#, "destination"),
            (r#"{"action":"drop","source":"192.0.2.300"}"#, "source"),
            (r#"{"action":"drop","source":"10.1.2.3/8"}"#, "source"),
            (r#"{"action":"drop","source":"fd00::/8"}"#, "source"),
            (r#"{"action":"allow","source":"shop.example"}"#, "source"),
            (r#"{"action":"drop","source":["10.0.0.0/8",7]}"#, "source[1]"),
            (r#"{"action":"drop","destination_port":"443"}"#, "destination_port"),
            (r#"{"action":"drop","protocol":"tcp","destination_port":"0"}"#, "destination_port"),
            (r#"{"action":"drop","protocol":"tcp","destination_port":"90-80"}"#, "destination_port"),
            (r#"{"action":"drop","protocol":"tcp","source_port":"http"}"#, "source_port"),
            (r#"{"action":"drop","protocol":"tcp","icmp_type":8}"#, "icmp_type"),
            (r#"{"action":"drop","protocol":"icmp4","icmp_code":0}"#, "icmp_code"),
            (r#"{"action":"drop","protocol":"icmp4","icmp_type":256}"#, "icmp_type"),
            (r#"{"action":"drop","description":"a\u0007"}"#, "description"),
            (r#"{"action":"drop","state":"on"}"#, "state"),
            (r#"{"action":"drop","port":"80"}"#, "port"),
            (&long, "source"),
        ] {
            let error = rule(Side::Ingress, json).unwrap_err();
            assert_eq!((error.field(), error.status().as_u16()), (Some(field), 400), "{json}: {}", error.message());
        }
        for (json, field) in [
            (r#"{"action":"drop","source":"192.0.2.1"}"#, "source"),
            (r#"{"action":"drop","destination":"192.0.2.1,ads.example"}"#, "action"),
            (r#"{"action":"allow","destination":"*.com"}"#, "destination"),
            (r#"{"action":"allow","destination":"10.0.0.300"}"#, "destination"),
        ] {
            assert_eq!(rule(Side::Egress, json).unwrap_err().field(), Some(field), "{json}");
        }
    }

    #[test]
    fn a_removal_says_what_it_removes() {
        let remove = |json: &str| from_json::<RemoveRules>(json.as_bytes()).unwrap().into_selector(Side::Egress);
        assert_eq!(remove("{}").unwrap_err().status().as_u16(), 400);
        assert!(remove(r#"{"all":false}"#).is_err());
        let (selector, all) = remove(r#"{"all":true}"#).unwrap();
        assert!(selector.is_any() && all);
        let (selector, all) = remove(r#"{"destination_port":"443","state":"disabled"}"#).unwrap();
        assert!(!all && selector.state == Some(State::Disabled) && selector.ports == Some("443".parse().unwrap()));
    }

    #[test]
    fn a_state_to_be_set_picks_no_rule() {
        let body: RuleBody = from_json(br#"{"action":"drop","state":"disabled"}"#).unwrap();
        let (selector, state) = body.into_switch(Side::Ingress).unwrap();
        assert_eq!((selector.action, selector.state, state), (Some(Action::Drop), None, Some(State::Disabled)));
    }
}
