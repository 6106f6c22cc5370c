//! How a container's outbound traffic leaves: directly, through a proxy of the user's, or not at all.
//!
//! ```text
//!  nothing set, or switched off ─► directly: what the firewall allows
//!  type block                   ─► nothing leaves, names are not resolved
//!  type socks5, http, https     ─► TCP that the firewall allows goes through the proxy, and so do questions for names; all else is dropped
//! ```

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::container::{COMMENT_CHARS_MAX, SettingsError};
use super::dns::{NAME_SERVERS_MAX, NameServer};
use super::secret::Secret;

/// Bytes of a proxy's URL, at most: the longest name, user and password fit, each byte escaped.
const URL_BYTES_MAX: usize = 2_048;
/// Bytes of a user and of a password, at most (RFC 1929, 2).
const CREDENTIAL_BYTES_MAX: usize = 255;
/// Bytes of a host's name, at most (RFC 1035, 2.3.4, without the final dot).
const HOST_BYTES_MAX: usize = 253;

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// SOCKS version 5 (RFC 1928).
    Socks5,
    /// HTTP CONNECT (RFC 9110, 9.3.6).
    Http,
    /// The same over TLS.
    Https,
}

impl Protocol {
    /// As in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who may use a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The user.
    pub user: Secret,
    /// The password.
    pub password: Secret,
}

/// A proxy of the user's, between a container and the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Its name or address.
    pub host: ProxyHost,
    /// Its port.
    pub port: NonZeroU16,
    /// What it asks for.
    pub credentials: Option<Credentials>,
}

/// Where a proxy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyHost {
    /// An address.
    Address(IpAddr),
    /// A name that is looked up by this host.
    Name(String),
}

/// A text that is no proxy's URL. It does not repeat the text: there may be a password in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a URL such as socks5://user:password@proxy.example:1080 is wanted: {0}")]
pub struct ProxyError(&'static str);

impl FromStr for Proxy {
    type Err = ProxyError;
    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let wrong = |what| Err(ProxyError(what));
        if text.len() > URL_BYTES_MAX {
            return wrong("it is longer than 2048 bytes");
        }
        let Ok(url) = text.parse::<Url>() else { return wrong("it does not read as a URL") };
        let protocol = match url.scheme() {
            "socks5" => Protocol::Socks5,
            "http" => Protocol::Http,
            "https" => Protocol::Https,
            _ => return wrong("its scheme is none of socks5, http and https"),
        };
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return wrong("nothing may follow the port");
        }
        let host = proxy_host(&url).ok_or(ProxyError("it has no host, or one that cannot be"))?;
        // The default ports of the schemes are left out by the parser; a proxy on 80 or 443 is written with it too.
        let port = url.port_or_known_default().and_then(NonZeroU16::new).ok_or(ProxyError("it has no port"))?;
        let credentials = credentials(&url, protocol)?;
        Ok(Self { protocol, host, port, credentials })
    }
}

fn proxy_host(url: &Url) -> Option<ProxyHost> {
    let name = match url.host()? {
        Host::Ipv4(address) => return Some(ProxyHost::Address(address.into())),
        Host::Ipv6(address) => return Some(ProxyHost::Address(address.into())),
        Host::Domain(name) => name,
    };
    // Of schemes that browsers do not know, the parser leaves addresses as they are.
    if let Ok(address) = name.parse() {
        return Some(ProxyHost::Address(address));
    }
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    // A name of digits alone is an address that was meant otherwise.
    let digits = name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let fits = name.len() <= HOST_BYTES_MAX && name.split('.').all(label) && !digits;
    fits.then(|| ProxyHost::Name(name.to_ascii_lowercase()))
}

fn credentials(url: &Url, protocol: Protocol) -> Result<Option<Credentials>, ProxyError> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let decoded = |text: &str| match percent_decode_str(text).decode_utf8() {
        Ok(text) if text.len() <= CREDENTIAL_BYTES_MAX && !text.chars().any(char::is_control) => Ok(text.into_owned()),
        _ => Err(ProxyError("user and password have 1 to 255 bytes each, without control characters")),
    };
    let (user, password) = (decoded(url.username())?, decoded(url.password().unwrap_or_default())?);
    if user.is_empty() || password.is_empty() {
        return Err(ProxyError("user and password go together"));
    }
    if protocol != Protocol::Socks5 && user.contains(':') {
        return Err(ProxyError("HTTP has no way to say a user with a colon"));
    }
    Ok(Some(Credentials { user: Secret::new(user), password: Secret::new(password) }))
}

impl Proxy {
    /// Its address, where it is not named.
    pub const fn address(&self) -> Option<IpAddr> {
        match self.host {
            ProxyHost::Address(address) => Some(address),
            ProxyHost::Name(_) => None,
        }
    }
}

/// Without its credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = (self.protocol.as_str(), self.port);
        match &self.host {
            ProxyHost::Address(IpAddr::V6(address)) => write!(f, "{protocol}://[{address}]:{port}"),
            ProxyHost::Address(address) => write!(f, "{protocol}://{address}:{port}"),
            ProxyHost::Name(name) => write!(f, "{protocol}://{name}:{port}"),
        }
    }
}

/// How traffic leaves where it does not leave directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Not at all.
    Block,
    /// Through a proxy.
    Proxy(Proxy),
}

/// A container's network settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// `None`: directly.
    pub way: Option<Way>,
    /// Who is asked for names in its stead, at most 4; none: those of the configuration.
    pub name_servers: Vec<NameServer>,
    /// For people, at most 16 000 characters.
    pub comment: Option<String>,
    /// Whether any of this is in force.
    pub enabled: bool,
}

/// Which way the firewall leads what a container sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WayOut {
    /// Straight out.
    #[default]
    Direct,
    /// To the daemon's relay.
    Relayed,
    /// Nowhere.
    Blocked,
}

/// The word of a way, as the API has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is the Way or the Protocol of the same name")]
pub enum Kind {
    Socks5,
    Http,
    Https,
    Block,
}

/// A change to network settings; `None` leaves a field as it is, `Some(None)` empties it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPatch {
    /// The way's word.
    pub kind: Option<Option<Kind>>,
    /// The proxy.
    pub proxy: Option<Option<Proxy>>,
    /// Who is asked for names.
    pub name_servers: Option<Vec<NameServer>>,
    /// For people.
    pub comment: Option<Option<String>>,
}

/// What shall become of a container's network settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetworkChange {
    /// As they are.
    #[default]
    Keep,
    /// Exactly these; a switch that is off stays off.
    Replace(NetworkPatch),
    /// These fields (JSON merge patch, RFC 7396).
    Merge(NetworkPatch),
    /// None.
    Clear,
    /// In force, or not.
    Switch(bool),
}

/// A change that cannot be made to network settings as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Settings that do not go together.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is nothing to switch.
    #[error("the container has no network settings to switch on or off")]
    NotSet,
}

const fn unfit(field: &'static str, wanted: &'static str) -> NetworkError {
    NetworkError::Settings(SettingsError { field, wanted })
}

impl Kind {
    /// As the API has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Socks5 => "socks5",
            Self::Http => "http",
            Self::Https => "https",
            Self::Block => "block",
        }
    }

    const fn protocol(self) -> Option<Protocol> {
        match self {
            Self::Socks5 => Some(Protocol::Socks5),
            Self::Http => Some(Protocol::Http),
            Self::Https => Some(Protocol::Https),
            Self::Block => None,
        }
    }
}

impl Way {
    /// Its word.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Block => Kind::Block,
            Self::Proxy(Proxy { protocol: Protocol::Socks5, .. }) => Kind::Socks5,
            Self::Proxy(Proxy { protocol: Protocol::Http, .. }) => Kind::Http,
            Self::Proxy(Proxy { protocol: Protocol::Https, .. }) => Kind::Https,
        }
    }

    fn new(kind: Option<Kind>, proxy: Option<Proxy>) -> Result<Option<Self>, NetworkError> {
        match (kind, proxy) {
            (None, None) => Ok(None),
            (Some(Kind::Block), None) => Ok(Some(Self::Block)),
            (Some(kind), Some(proxy)) if kind.protocol() == Some(proxy.protocol) => Ok(Some(Self::Proxy(proxy))),
            (Some(Kind::Block) | None, Some(_)) => {
                Err(unfit("proxy", "it goes with a `type` of socks5, http or https, and with no other"))
            }
            (Some(_), Some(_)) => Err(unfit("proxy", "its URL has to begin with the `type`")),
            (Some(_), None) => Err(unfit("proxy", "with this `type` the proxy's URL is wanted")),
        }
    }
}

impl Network {
    /// The way, where it is in force.
    pub fn in_force(&self) -> Option<&Way> {
        self.way.as_ref().filter(|_| self.enabled)
    }

    /// The proxy, in force or not.
    pub fn proxy(&self) -> Option<&Proxy> {
        match &self.way {
            Some(Way::Proxy(proxy)) => Some(proxy),
            _ => None,
        }
    }

    /// Settings with a patch made to them; those that are there where there are some.
    fn with(old: Option<&Self>, patch: NetworkPatch) -> Result<Self, NetworkError> {
        let old_kind = old.and_then(|old| old.way.as_ref()).map(Way::kind);
        let kind = patch.kind.unwrap_or(old_kind);
        // A proxy goes with its type: another type forgets it, unless a new one is named.
        let kept = old.and_then(Self::proxy).filter(|_| kind == old_kind);
        let proxy = patch.proxy.unwrap_or_else(|| kept.cloned());
        let name_servers = patch.name_servers.unwrap_or_else(|| old.map_or(Vec::new(), |old| old.name_servers.clone()));
        if name_servers.len() > NAME_SERVERS_MAX {
            return Err(unfit("dns_servers", "at most 4 are wanted"));
        }
        let comment = patch.comment.unwrap_or_else(|| old.and_then(|old| old.comment.clone()));
        if comment.as_ref().is_some_and(|text| text.chars().count() > COMMENT_CHARS_MAX) {
            return Err(unfit("comment", "at most 16000 characters are wanted"));
        }
        let enabled = old.is_none_or(|old| old.enabled);
        Ok(Self { way: Way::new(kind, proxy)?, name_servers, comment, enabled })
    }
}

impl NetworkChange {
    /// Makes the change.
    ///
    /// # Errors
    /// Settings that do not go together, or none to switch.
    pub fn apply(self, network: &mut Option<Network>) -> Result<(), NetworkError> {
        *network = match self {
            Self::Keep => return Ok(()),
            Self::Clear => None,
            Self::Merge(patch) => Some(Network::with(network.as_ref(), patch)?),
            Self::Replace(all) => {
                let new = Network::with(None, all)?;
                Some(Network { enabled: network.as_ref().is_none_or(|old| old.enabled), ..new })
            }
            Self::Switch(enabled) => Some(Network { enabled, ..network.clone().ok_or(NetworkError::NotSet)? }),
        };
        Ok(())
    }
}

/// Which way the firewall leads what a container with these settings sends.
pub fn way_out(network: Option<&Network>) -> WayOut {
    match network.and_then(Network::in_force) {
        None => WayOut::Direct,
        Some(Way::Block) => WayOut::Blocked,
        Some(Way::Proxy(_)) => WayOut::Relayed,
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
