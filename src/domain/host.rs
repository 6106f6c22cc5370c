//! Which container a Host names, and which URL names a container. Pure.
//!
//! A host elsewhere may be a customer's own domain, which the store resolves as well. Two forms exist under `{server_name}.{domain}`: `{project_id}-{container_id}-http-{port}`, which says where it
//! goes, and an alias, which the store resolves. Invariants: what the renderer writes the parser reads back; a label
//! of the canonical form is never an alias, so that nobody can take an alias that shadows another container.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::{ContainerId, ProjectId};

/// Longest host name in text form (RFC 1035 §2.3.4 allows 255 bytes on the wire, which is 253 characters).
const HOST_BYTES_MAX: usize = 253;
/// Longest label of a host name (RFC 1035 §2.3.4).
const LABEL_BYTES_MAX: usize = 63;
/// Longest canonical label: two ids of 24 digits, `-`, `-http-` and a port of five digits.
const CANONICAL_BYTES_MAX: usize = 24 + 1 + 24 + 6 + 5;
/// Length of an alias.
const ALIAS_BYTES: std::ops::RangeInclusive<usize> = 3..=61;
/// Length of an id's text.
const ID_TEXT_BYTES: usize = 24;

/// How a URL is reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP; port 80 unless said.
    Http,
    /// HTTP over TLS; port 443 unless said.
    Https,
}

impl Scheme {
    /// The scheme as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A label that is not an alias.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an alias: 3 to 61 of a-z, 0-9 and - are wanted, not in the form of a container's own label")]
pub struct AliasError(String);

/// A container's other name: 3–61 of `a-z 0-9 -`, and never of the canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Alias(Box<str>);

impl TryFrom<String> for Alias {
    type Error = AliasError;
    fn try_from(text: String) -> Result<Self, AliasError> {
        text.parse()
    }
}

impl From<Alias> for String {
    fn from(alias: Alias) -> String {
        alias.0.into_string()
    }
}

impl Alias {
    /// A new alias nobody can guess: 48 hex digits of 24 random bytes.
    pub fn generate() -> Self {
        Self(hex::encode(rand::random::<[u8; 24]>()).into())
    }

    /// The alias as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Alias {
    type Err = AliasError;
    fn from_str(text: &str) -> Result<Self, AliasError> {
        let alphabet = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = ALIAS_BYTES.contains(&text.len()) && text.bytes().all(alphabet);
        if fits && parse_canonical(text).is_none() {
            Ok(Self(text.into()))
        } else {
            Err(AliasError(text.chars().take(LABEL_BYTES_MAX).collect()))
        }
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest domain of a customer's: its name with [`PROOF_LABEL`] in front is one too.
const DOMAIN_BYTES_MAX: usize = HOST_BYTES_MAX - PROOF_LABEL.len() - 1;
/// The label below a customer's domain at which its owner says that it may lead here. An underscore keeps it out of host names
/// (RFC 8552).
pub const PROOF_LABEL: &str = "_tenantry";

/// A text that is no domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a domain such as shop.example.com is wanted: two labels or more of a-z, 0-9 and -, at most 243 characters")]
pub struct DomainError;

/// A customer's own host name, lower case, without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CustomDomain(Box<str>);

impl CustomDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name at which its owner proves it.
    pub fn proof_name(&self) -> String {
        format!("{PROOF_LABEL}.{}", self.0)
    }
}

impl FromStr for CustomDomain {
    type Err = DomainError;
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let fits = text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(is_label);
        // The last label of a name is no number, or it would be read as an address (RFC 1123 §2.1).
        let last_is_a_name =
            text.rsplit_once('.').is_some_and(|(_, last)| last.bytes().any(|b| b.is_ascii_alphabetic()));
        if fits && last_is_a_name { Ok(Self(text.to_ascii_lowercase().into())) } else { Err(DomainError) }
    }
}

impl TryFrom<String> for CustomDomain {
    type Error = DomainError;
    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl From<CustomDomain> for String {
    fn from(domain: CustomDomain) -> String {
        domain.0.into_string()
    }
}

impl fmt::Display for CustomDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(text: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Where a Host points, before anybody asked whether it exists.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Route {
    /// Some container's alias.
    Alias(Alias),
    /// Some customer's domain, or nobody's.
    Domain(CustomDomain),
    /// A port of this host's, which some alias has: no name says it.
    Port(NonZeroU16),
    /// A container named in full.
    Canonical {
        /// Its project.
        project: ProjectId,
        /// The container.
        container: ContainerId,
        /// The port inside it.
        port: NonZeroU16,
    },
}

/// Why an authority is no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Not a host with an optional port.
    #[error("the Host is not a host name with an optional port")]
    Malformed,
    /// A good host, but not one of ours.
    #[error("the Host names nothing here")]
    Foreign,
}

/// A server name, domain or pair that cannot make URLs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host name under which URLs can be made: dot-separated labels of a-z, 0-9 and - are wanted")]
pub struct HostNamesError(String);

/// The names this node answers under, and how they are reached.
#[derive(Debug, Clone)]
pub struct HostNames {
    /// `{server_name}.{domain}`, lower case.
    zone: Box<str>,
    scheme: Scheme,
    /// As it stands in URLs; the port listened on may be another, behind a port forward.
    port: u16,
}

impl HostNames {
    /// The names under `{server_name}.{domain}`, reached by `scheme` on `port`.
    pub fn new(server_name: &str, domain: &str, scheme: Scheme, port: u16) -> Result<Self, HostNamesError> {
        let zone = format!("{server_name}.{domain}").to_ascii_lowercase();
        let fits = zone.len() + 1 + ALIAS_BYTES.end().max(&CANONICAL_BYTES_MAX) <= HOST_BYTES_MAX;
        if fits && zone.split('.').all(is_label) {
            Ok(Self { zone: zone.into(), scheme, port })
        } else {
            Err(HostNamesError(zone.chars().take(HOST_BYTES_MAX).collect()))
        }
    }

    /// How the URLs are reached.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Reads an authority (`host[:port]`) in any case, with or without the trailing dot. The port is not compared:
    /// behind a port forward it is not ours.
    pub fn parse(&self, authority: &str) -> Result<Route, HostError> {
        let host = host_of(authority)?;
        let mut lower = [0; HOST_BYTES_MAX];
        let lower = lower.get_mut(..host.len()).ok_or(HostError::Malformed)?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        let lower = std::str::from_utf8(lower).map_err(|_| HostError::Malformed)?;
        let Some(label) = lower.strip_suffix(&*self.zone) else {
            return lower.parse().map(Route::Domain).map_err(|_| HostError::Foreign);
        };
        let label = match label.strip_suffix('.') {
            Some(label) => label,
            None if label.is_empty() => return Err(HostError::Foreign),
            // Only the end of its last label is the zone's first.
            None => return lower.parse().map(Route::Domain).map_err(|_| HostError::Foreign),
        };
        match parse_canonical(label) {
            Some(route) => Ok(route),
            None => label.parse().map(Route::Alias).map_err(|_| HostError::Foreign),
        }
    }

    /// The host name of an alias.
    pub fn host_of_alias(&self, alias: &Alias) -> String {
        format!("{alias}.{}", self.zone)
    }

    /// The URL of an alias, without a path.
    pub fn url_for_alias(&self, alias: &Alias) -> String {
        self.url(alias)
    }

    /// The URL of one port of a container, without a path.
    pub fn url_for_container(&self, project: ProjectId, container: ContainerId, port: NonZeroU16) -> String {
        self.url(&format_args!("{project}-{container}-http-{port}"))
    }

    fn url(&self, label: &dyn fmt::Display) -> String {
        let (scheme, zone) = (self.scheme.as_str(), &self.zone);
        if self.port == self.scheme.default_port() {
            format!("{scheme}://{label}.{zone}")
        } else {
            format!("{scheme}://{label}.{zone}:{}", self.port)
        }
    }
}

/// The host of `host[:port]`, without its trailing dot. User information, an empty host and anything that is not a
/// name or an address literal are refused.
fn host_of(authority: &str) -> Result<&str, HostError> {
    let port_is_good =
        |port: &str| port.is_empty() || (port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(HostError::Malformed)?;
        let port_is_good = port.is_empty() || port.strip_prefix(':').is_some_and(port_is_good);
        let good = address.parse::<std::net::Ipv6Addr>().is_ok() && port_is_good;
        return if good { Err(HostError::Foreign) } else { Err(HostError::Malformed) };
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let host = host.strip_suffix('.').unwrap_or(host);
    let alphabet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if host.is_empty() || !host.bytes().all(alphabet) || !port_is_good(port) {
        return Err(HostError::Malformed);
    }
    Ok(host)
}

/// Reads `{project_id}-{container_id}-http-{port}`; the port without leading zeros, so that one container and port
/// has one label.
fn parse_canonical(label: &str) -> Option<Route> {
    let project = label.get(..ID_TEXT_BYTES)?.parse().ok()?;
    let rest = label.get(ID_TEXT_BYTES..)?.strip_prefix('-')?;
    let container = rest.get(..ID_TEXT_BYTES)?.parse().ok()?;
    let digits = rest.get(ID_TEXT_BYTES..)?.strip_prefix("-http-")?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    let port = digits.parse().ok().filter(|_| plain)?;
    Some(Route::Canonical { project, container, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn names(port: u16) -> HostNames {
        HostNames::new("Node1", "Localhost", Scheme::Http, port).unwrap()
    }

    fn alias(text: &str) -> Alias {
        text.parse().unwrap()
    }

    #[test]
    fn an_alias_is_read_in_any_case_with_port_and_trailing_dot() {
        for host in [
            "acme.node1.localhost",
            "ACME.Node1.LOCALHOST",
            "acme.node1.localhost.",
            "acme.node1.localhost:8080",
            "acme.node1.localhost.:8080",
            "acme.node1.localhost:",
        ] {
            assert_eq!(names(8080).parse(host), Ok(Route::Alias(alias("acme"))), "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_told_from_what_is_foreign() {
        for host in [
            "",
            ":80",
            ".",
            "a b",
            "user@acme.node1.localhost",
            "acme.node1.localhost:99999",
            "acme.node1.localhost:+8",
            "acme.node1.localhost:80:80",
            "acmé.node1.localhost",
            "[::1",
            "[zz]",
            "[::1]x",
            "a/b",
            "a,b",
        ] {
            assert_eq!(names(80).parse(host), Err(HostError::Malformed), "{host}");
        }
        let too_long = format!("{}.node1.localhost", "a".repeat(300));
        assert_eq!(names(80).parse(&too_long), Err(HostError::Malformed));
        for host in [
            "node1.localhost",
            ".node1.localhost",
            "localhost",
            "a.b.node1.localhost",
            "ab.node1.localhost",
            "a_b.node1.localhost",
            "127.0.0.1:8080",
            "[::1]:80",
        ] {
            assert_eq!(names(80).parse(host), Err(HostError::Foreign), "{host}");
        }
    }

    #[test]
    fn a_good_name_elsewhere_may_be_a_customers() {
        for (host, domain) in [
            ("Shop.Example.com:8080", "shop.example.com"),
            ("acme.node2.localhost", "acme.node2.localhost"),
            ("xnode1.localhost", "xnode1.localhost"),
            ("example.com.", "example.com"),
        ] {
            assert_eq!(names(80).parse(host), Ok(Route::Domain(domain.parse().unwrap())), "{host}");
        }
        let long = format!("{}.com", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(60)].join("."));
        for bad in [
            "", "com", "10.0.0.1", "a..b", "-a.com", "a-.com", "a_b.com", "*.com", "ä.com", "a.com/x", "a.com:1", &long,
        ] {
            assert!(bad.parse::<CustomDomain>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_canonical_label_has_one_spelling() {
        let id = "0123456789abcdef01234567";
        let zone = "node1.localhost";
        let parse = |label: &str| names(80).parse(&format!("{label}.{zone}"));
        assert!(matches!(parse(&format!("{id}-{id}-http-8080")), Ok(Route::Canonical { .. })));
        // An alias of at most 61 characters may look nearly like one; it is then just an alias.
        for label in [format!("{id}-{id}-http-08"), format!("{id}-{id}-http-0"), format!("{id}-{id}-http-65536")] {
            assert!(matches!(parse(&label), Ok(Route::Alias(_))), "{label}");
        }
    }

    #[test]
    fn an_alias_cannot_shadow_a_container() {
        let id = "0123456789abcdef01234567";
        assert!(format!("{id}-{id}-http-80").parse::<Alias>().is_err());
        for text in ["ab", "Acme", "a.b", "a_b", "", &"a".repeat(62)] {
            assert!(text.parse::<Alias>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_port_is_left_out_of_urls() {
        assert_eq!(names(80).url_for_alias(&alias("acme")), "http://acme.node1.localhost");
        assert_eq!(names(8080).url_for_alias(&alias("acme")), "http://acme.node1.localhost:8080");
        let tls = HostNames::new("n", "example.com", Scheme::Https, 443).unwrap();
        assert_eq!(tls.url_for_alias(&alias("acme")), "https://acme.n.example.com");
        let tls_on_80 = HostNames::new("n", "example.com", Scheme::Https, 80).unwrap();
        assert_eq!(tls_on_80.url_for_alias(&alias("acme")), "https://acme.n.example.com:80");
    }

    #[test]
    fn names_that_leave_no_room_for_a_label_are_refused() {
        for (server, domain) in
            [("", "localhost"), ("n", ""), ("n", "a..b"), ("-n", "x"), ("n", "x y"), ("n", &"a.".repeat(100))]
        {
            assert!(HostNames::new(server, domain, Scheme::Http, 80).is_err(), "{server}.{domain}");
        }
    }

    fn id_time() -> std::ops::Range<i64> {
        0..4_000_000_000
    }

    proptest! {
        #[test]
        fn the_parser_reads_what_the_renderer_wrote(
            seconds in id_time(), a: [u8; 8], b: [u8; 8], port in 1u16.., public in 1u16.., https: bool,
        ) {
            let scheme = if https { Scheme::Https } else { Scheme::Http };
            let names = HostNames::new("node1", "example.com", scheme, public).unwrap();
            let at = Timestamp::from_second(seconds).unwrap();
            let (project, container) = (ProjectId::new(at, a), ContainerId::new(at, b));
            let port = NonZeroU16::new(port).unwrap();
            let url = names.url_for_container(project, container, port);
            let host = url.split("://").nth(1).unwrap();
            prop_assert!(host.split('.').next().unwrap().len() <= LABEL_BYTES_MAX);
            prop_assert_eq!(names.parse(host), Ok(Route::Canonical { project, container, port }));
            prop_assert_eq!(names.parse(&host.to_ascii_uppercase()), Ok(Route::Canonical { project, container, port }));
        }

        #[test]
        fn aliases_round_trip(label in "[a-z0-9-]{3,61}", public in 1u16..) {
            let names = HostNames::new("node1", "example.com", Scheme::Http, public).unwrap();
            let alias = alias(&label);
            let url = names.url_for_alias(&alias);
            prop_assert_eq!(names.parse(url.strip_prefix("http://").unwrap()), Ok(Route::Alias(alias)));
        }

        #[test]
        fn no_authority_makes_the_parser_panic(text in ".{0,300}") {
            let _ = names(80).parse(&text);
        }
    }
}
