//! Further names of a container: where in it they lead, and for how long.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::firewall;
use super::host::{Alias, CustomDomain, HostNames};
use super::id::{AliasId, ContainerId};

/// Aliases of one container, at most; its own one is not counted.
pub const ALIASES_MAX: usize = 64;
/// Length of a target path, at most, in bytes.
pub const TARGET_PATH_BYTES_MAX: usize = 1_024;

/// A text that is no path to lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a path from `/` on is wanted, without a query: at most 1024 characters of a URL's path (RFC 3986 §3.3)")]
pub struct TargetPathError;

/// The path an alias leads to: absolute, as it stands in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetPath(Box<str>);

impl TargetPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TargetPath {
    type Err = TargetPathError;
    fn from_str(text: &str) -> Result<Self, TargetPathError> {
        let may_stand = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b);
        let fits = text.starts_with('/') && text.len() <= TARGET_PATH_BYTES_MAX && text.bytes().all(may_stand);
        // Two slashes in front would be read as another host by whoever resolves it.
        if fits && !text.starts_with("//") { Ok(Self(text.into())) } else { Err(TargetPathError) }
    }
}

impl TryFrom<String> for TargetPath {
    type Error = TargetPathError;
    fn try_from(text: String) -> Result<Self, TargetPathError> {
        text.parse()
    }
}

impl From<TargetPath> for String {
    fn from(path: TargetPath) -> String {
        path.0.into_string()
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the owner of a domain puts into the DNS to say that it may lead here: 32 hex digits that nobody can guess.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proof(Box<str>);

impl Proof {
    /// A new one.
    pub fn generate() -> Self {
        Self(hex::encode(rand::random::<[u8; 16]>()).into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A customer's own host name for an alias.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Custom {
    /// The name: unique on this host.
    pub domain: CustomDomain,
    /// What its owner shows.
    pub proof: Proof,
    /// Since when it was known that the owner wants this; `None`: it leads nowhere yet.
    pub verified_at: Option<Timestamp>,
}

impl Custom {
    /// Not yet verified.
    pub fn new(domain: CustomDomain) -> Self {
        Self { domain, proof: Proof::generate(), verified_at: None }
    }

    /// Whether what the DNS says of it proves that its owner wants it to lead here: the proof as a text, or the domain as another
    /// name of the alias's own host.
    pub fn is_proven_by(&self, texts: &[String], canonical: Option<&str>, own_host: &str) -> bool {
        let leads_here = canonical.is_some_and(|name| name.trim_end_matches('.').eq_ignore_ascii_case(own_host));
        leads_here || texts.iter().any(|text| text.trim() == self.proof.as_str())
    }
}

/// What is spoken at an alias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// HTTP, at the port of all names.
    #[default]
    Http,
    /// Anything over TCP, at a port of its own.
    Tcp {
        /// The port of this host that leads to the container: unique on this host, and stays.
        listen_port: NonZeroU16,
        /// Whether a connection wakes the container.
        wakes: bool,
    },
}

/// A text that is no range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no range of ports: two of 1–65535 are wanted, as in 20000-20099")]
pub struct TcpPortsError(String);

/// Ports of this host that are for aliases of raw TCP: from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TcpPorts(firewall::PortRange);

impl TcpPorts {
    /// Whether a port is one of them.
    pub fn has(self, port: u16) -> bool {
        self.0.contains(port)
    }

    /// All of them.
    pub fn ports(self) -> impl Iterator<Item = NonZeroU16> {
        (self.0.first()..=self.0.last()).filter_map(NonZeroU16::new)
    }
}

impl FromStr for TcpPorts {
    type Err = TcpPortsError;
    fn from_str(text: &str) -> Result<Self, TcpPortsError> {
        // Both ends are named, also where they are one.
        let range = if text.contains('-') { text.parse().ok() } else { None };
        range.map(Self).ok_or_else(|| TcpPortsError(text.chars().take(32).collect()))
    }
}

impl TryFrom<String> for TcpPorts {
    type Error = TcpPortsError;
    fn try_from(text: String) -> Result<Self, TcpPortsError> {
        text.parse()
    }
}

impl From<TcpPorts> for String {
    fn from(range: TcpPorts) -> String {
        range.to_string()
    }
}

impl fmt::Display for TcpPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.first(), self.0.last())
    }
}

/// A further name of a container. It goes with the container, and is not copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyAlias {
    /// Its id.
    pub id: AliasId,
    /// The container it leads to.
    pub container: ContainerId,
    /// The name: unique on this host.
    pub alias: Alias,
    /// A domain of the customer's that leads to the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
    /// What is spoken there.
    #[serde(default)]
    pub program: Program,
    /// The port it leads to; `None`: the container's own, whatever that becomes.
    pub port: Option<NonZeroU16>,
    /// The path it leads to; `None`: what was asked for.
    pub target_path: Option<TargetPath>,
    /// Whether a path that was asked for, other than `/`, goes before the target path.
    pub allow_path_override: bool,
    /// Whether it leads anywhere.
    pub enabled: bool,
    /// From when on it does not.
    pub expires_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Whether an alias leads somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Good,
    /// It was switched off.
    Disabled,
    /// Its time is over.
    Expired,
}

impl ProxyAlias {
    /// The port of this host that it is reached at, where it has one of its own.
    pub fn listen_port(&self) -> Option<NonZeroU16> {
        match self.program {
            Program::Http => None,
            Program::Tcp { listen_port, .. } => Some(listen_port),
        }
    }

    /// Where it is reached.
    pub fn url(&self, names: &HostNames) -> String {
        match self.listen_port() {
            None => names.url_for_alias(&self.alias),
            Some(port) => format!("tcp://{}:{port}", names.host_of_alias(&self.alias)),
        }
    }

    /// Whether it leads somewhere now. What has expired stays so, switched off or not.
    pub fn standing(&self, now: Timestamp) -> Standing {
        match self.expires_at {
            Some(at) if at <= now => Standing::Expired,
            _ if self.enabled => Standing::Good,
            _ => Standing::Disabled,
        }
    }

    /// The path a request for `asked` goes to, where that is another one.
    pub fn path_for(&self, asked: &str) -> Option<&TargetPath> {
        let stays = self.allow_path_override && !matches!(asked, "/" | "");
        self.target_path.as_ref().filter(|_| !stays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias() -> ProxyAlias {
        ProxyAlias {
            id: AliasId::NIL,
            container: ContainerId::NIL,
            alias: "shop".parse().unwrap(),
            custom: None,
            program: Program::Http,
            port: None,
            target_path: Some("/app".parse().unwrap()),
            allow_path_override: false,
            enabled: true,
            expires_at: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_domain_is_proven_by_its_own_text_or_by_leading_to_its_alias() {
        let custom = Custom::new("shop.example.com".parse().unwrap());
        let proven = |texts: &[&str], canonical| {
            let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
            custom.is_proven_by(&texts, canonical, "shop.node1.example.org")
        };
        let proof = custom.proof.as_str();
        assert!(proven(&["v=spf1", proof], None));
        assert!(proven(&[], Some("SHOP.node1.example.org.")));
        let other = Custom::new("shop.example.com".parse().unwrap());
        for (texts, canonical) in [
            (vec![], None),
            (vec![other.proof.as_str()], None),
            (vec![&proof[1..]], None),
            (vec![""], Some("other.node1.example.org.")),
            (vec![], Some("x.shop.node1.example.org")),
        ] {
            assert!(!proven(&texts, canonical), "{texts:?} {canonical:?}");
        }
    }

    #[test]
    fn a_range_of_ports_is_two_ports_in_order() {
        let range: TcpPorts = "20000-20002".parse().unwrap();
        assert_eq!(range.ports().map(NonZeroU16::get).collect::<Vec<_>>(), [20_000, 20_001, 20_002]);
        assert_eq!((range.has(19_999), range.has(20_002), range.to_string().as_str()), (false, true, "20000-20002"));
        for bad in ["", "80", "0-80", "90-80", "80-65536", "a-b", "80-90-100"] {
            assert!(bad.parse::<TcpPorts>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_record_of_before_there_were_programs_is_of_http() {
        let mut record = serde_json::to_value(alias()).unwrap();
        record.as_object_mut().unwrap().remove("program");
        assert_eq!(serde_json::from_value::<ProxyAlias>(record).unwrap(), alias());
        let tcp = ProxyAlias { program: Program::Tcp { listen_port: NonZeroU16::MAX, wakes: true }, ..alias() };
        assert_eq!(serde_json::from_value::<ProxyAlias>(serde_json::to_value(&tcp).unwrap()).unwrap(), tcp);
    }

    #[test]
    fn a_target_path_is_a_path_and_nothing_else() {
        for good in ["/", "/app", "/a/b%20c;x=1", "/~me/(1)"] {
            assert_eq!(good.parse::<TargetPath>().unwrap().as_str(), good);
        }
        let long = format!("/{}", "a".repeat(TARGET_PATH_BYTES_MAX));
        for bad in ["", "app", "//host/x", "/a?b", "/a#b", "/a b", "/ä", "/a\r\nX: y", "/a\\b", &long] {
            assert!(bad.parse::<TargetPath>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn what_has_expired_leads_nowhere_and_what_is_switched_off_neither() {
        let now = Timestamp::from_second(100).unwrap();
        let expires_at = |second| Some(Timestamp::from_second(second).unwrap());
        assert_eq!(alias().standing(now), Standing::Good);
        assert_eq!(ProxyAlias { expires_at: expires_at(101), ..alias() }.standing(now), Standing::Good);
        assert_eq!(ProxyAlias { expires_at: expires_at(100), ..alias() }.standing(now), Standing::Expired);
        assert_eq!(ProxyAlias { enabled: false, ..alias() }.standing(now), Standing::Disabled);
    }

    #[test]
    fn the_target_path_is_where_every_request_goes_unless_others_may_be_asked_for() {
        let path = |alias: &ProxyAlias, asked| alias.path_for(asked).map(ToString::to_string);
        let (fixed, free) = (alias(), ProxyAlias { allow_path_override: true, ..alias() });
        assert_eq!(path(&fixed, "/").as_deref(), Some("/app"));
        assert_eq!(path(&fixed, "/other").as_deref(), Some("/app"));
        assert_eq!(path(&free, "/").as_deref(), Some("/app"));
        assert_eq!(path(&free, "/other"), None);
        assert_eq!(path(&ProxyAlias { target_path: None, ..alias() }, "/other"), None);
    }
}
