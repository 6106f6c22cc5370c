//! Who may open a container's URL, on the wire. What is secret goes in and never comes out.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::domain::access::{
    Access, Algorithm, Entry, GROUPS_MAX, Group, GroupName, IpGroup, JwtGroup, Place, PlainPassword, Policy, Reach,
    TokenGroup,
};
use crate::domain::container::SettingsError;
use crate::domain::firewall::{PortRange, Ports};
use crate::domain::{ContainerId, Secret};

/// The one program that has a URL here.
const PROGRAM: &str = "http";

/// Who may open a container's URL.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PermissionsBody {
    /// Groups by name (1–50 of A–Z, a–z, 0–9, `_`, `-`), at most 32.
    #[serde(default)]
    groups: BTreeMap<String, GroupBody>,
    /// What a group may open, by its name: `{"http": …}` with true (also where it is left out), false (nothing, whatever other groups say), a
    /// port, a list of ports, or a range as `8000-8100`.
    #[serde(default)]
    #[schema(value_type = Object)]
    permissions: BTreeMap<String, BTreeMap<String, Rule>>,
    /// What becomes of whom no group knows: allow, or deny (also where it is left out).
    #[serde(default)]
    default: Option<String>,
    #[serde(default)]
    #[schema(ignore)]
    container: Option<String>,
    #[serde(default)]
    #[schema(ignore)]
    enable_proxy: Option<bool>,
}

/// A group: the fields of its type, and no others.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupBody {
    /// password, token, jwt, ip.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// password: the user of HTTP Basic.
    #[serde(default)]
    username: Option<String>,
    /// password: 8 to 256 bytes; with `salt` also SHA-256(salt + password) in lower-case hex. Kept as Argon2id makes of it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    password: Option<Secret>,
    /// password: what a password that is hashed already was hashed with.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    salt: Option<Secret>,
    /// jwt: HS256, RS256, ES256; no token of another is taken. password: sha256, with `salt`.
    #[serde(default)]
    algorithm: Option<String>,
    /// token: the header it stands in; in `Authorization` alone or behind `Bearer`.
    #[serde(default)]
    header: Option<String>,
    /// token: or the cookie.
    #[serde(default)]
    cookie: Option<String>,
    /// token: or the parameter of the query, which the container does not see.
    #[serde(default)]
    param: Option<String>,
    /// token: 16 to 1024 printable ASCII characters. Kept as SHA-256 makes of it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    value: Option<Secret>,
    /// jwt: the shared key (32 bytes at least), or the public key as PEM or JWK.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    secret: Option<Secret>,
    /// jwt: where tokens stand: `header:NAME`, `cookie:NAME`, `param:NAME`, at most 4. None: `header:Authorization`.
    #[serde(default)]
    sources: Option<Vec<String>>,
    /// jwt: what tokens have to claim, at most 16: texts, numbers, flags. `exp` has to be there always.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    claims: Option<BTreeMap<String, Value>>,
    /// ip: networks as `192.0.2.0/24`, one or a list of at most 64.
    #[serde(default)]
    #[schema(value_type = Option<Vec<String>>)]
    range: Option<Ranges>,
}

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ranges {
    One(String),
    Many(Vec<String>),
}

/// What may be opened.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Rule {
    Flag(bool),
    Port(u16),
    Ports(Vec<u16>),
    Text(String),
}

/// The default alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefaultBody {
    /// What becomes of whom no group knows: allow, deny.
    default: String,
}

/// A group of which a password may still have to be hashed.
#[derive(Debug)]
pub enum Draft {
    /// As it will be kept.
    Ready(Group),
    /// Not yet.
    Password(PlainPassword),
}

/// All groups, of which passwords may still have to be hashed.
#[derive(Debug)]
pub struct Drafts {
    /// What becomes of whom no group knows.
    pub default: Policy,
    /// The groups, and what they may open.
    pub groups: Vec<(GroupName, Draft, Reach)>,
}

const fn wrong(field: &'static str, wanted: &'static str) -> SettingsError {
    SettingsError { field, wanted }
}

/// The error of a field below another.
fn below(path: &str, error: &SettingsError) -> ApiError {
    ApiError::invalid(format!("{path}.{}", error.field), error.wanted)
}

/// A group's name from a path or a document.
///
/// # Errors
/// Not a name.
pub fn group_name(text: &str) -> Result<GroupName, ApiError> {
    Ok(text.parse::<GroupName>()?)
}

fn policy(text: &str) -> Result<Policy, ApiError> {
    match text {
        "allow" => Ok(Policy::Allow),
        "deny" => Ok(Policy::Deny),
        _ => Err(ApiError::invalid("default", "allow or deny is wanted")),
    }
}

const fn word(policy: Policy) -> &'static str {
    match policy {
        Policy::Allow => "allow",
        Policy::Deny => "deny",
    }
}

impl DefaultBody {
    /// The policy.
    ///
    /// # Errors
    /// Another word.
    pub fn policy(&self) -> Result<Policy, ApiError> {
        policy(&self.default)
    }
}

impl PermissionsBody {
    /// The groups.
    ///
    /// # Errors
    /// A field that cannot be, by its name.
    pub fn into_drafts(self, id: ContainerId) -> Result<Drafts, ApiError> {
        if self.container.is_some_and(|named| named != id.to_string()) {
            return Err(ApiError::invalid("container", "another container's id stands in the path"));
        }
        if self.enable_proxy == Some(false) {
            return Err(ApiError::invalid(
                "enable_proxy",
                "to close the URL, set `default` to deny and name no groups",
            ));
        }
        if self.groups.len() > GROUPS_MAX {
            return Err(ApiError::invalid("groups", format!("{} are more than {GROUPS_MAX}", self.groups.len())));
        }
        let mut permissions = self.permissions;
        let mut groups = Vec::new();
        for (name, body) in self.groups {
            let reach = match permissions.remove(&name) {
                None => Reach::default(),
                Some(rules) => reach(&name, rules)?,
            };
            let parsed = group_name(&name)?;
            let draft = body.into_draft(None).map_err(|error| below(&format!("groups.{name}"), &error))?;
            groups.push((parsed, draft, reach));
        }
        if let Some(name) = permissions.keys().next() {
            return Err(ApiError::invalid(format!("permissions.{}", short(name)), "there is no such group"));
        }
        Ok(Drafts { default: policy(self.default.as_deref().unwrap_or("deny"))?, groups })
    }
}

fn short(name: &str) -> String {
    name.chars().take(64).collect()
}

fn reach(group: &str, mut rules: BTreeMap<String, Rule>) -> Result<Reach, ApiError> {
    let field = format!("permissions.{}", short(group));
    let only = || ApiError::invalid(&field, "`http` is wanted, the one program that has a URL here");
    let rule = rules.remove(PROGRAM).filter(|_| rules.is_empty()).ok_or_else(only)?;
    let text = match rule {
        Rule::Flag(true) => return Ok(Reach::default()),
        Rule::Text(text) if text == "*" => return Ok(Reach::default()),
        Rule::Flag(false) => return Ok(Reach::Nothing),
        Rule::Port(port) => port.to_string(),
        Rule::Ports(ports) => ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        Rule::Text(text) => text,
    };
    let ports = text.split(',').map(|range| range.trim().parse::<PortRange>()).collect::<Result<Vec<_>, _>>();
    match ports {
        Ok(ports) => Ok(Reach::Ports(Ports::from(ports))),
        Err(error) => Err(ApiError::invalid(format!("{field}.{PROGRAM}"), error)),
    }
}

impl GroupBody {
    /// The group; `named`: the type that the path has.
    ///
    /// # Errors
    /// A field that cannot be, by its name. No error repeats a secret.
    pub fn into_draft(self, named: Option<&str>) -> Result<Draft, SettingsError> {
        let known = "password, token, jwt or ip is wanted";
        let kind = match (self.kind.as_deref(), named) {
            (Some(own), Some(named)) if own != named => return Err(wrong("type", "the path says another one")),
            (own, named) => own.or(named).ok_or(wrong("type", known))?,
        };
        let allowed: &[&str] = match kind {
            "password" => &["username", "password", "salt", "algorithm"],
            "token" => &["header", "cookie", "param", "value"],
            "jwt" => &["algorithm", "secret", "sources", "claims"],
            "ip" => &["range"],
            _ => return Err(wrong("type", known)),
        };
        if let Some(field) = self.given().into_iter().find(|field| !allowed.contains(field)) {
            return Err(wrong(field, "it does not go with this `type`"));
        }
        match kind {
            "password" => self.password(),
            "token" => self.token(),
            "jwt" => self.jwt(),
            _ => self.ip(),
        }
    }

    fn given(&self) -> Vec<&'static str> {
        let fields = [
            ("username", self.username.is_some()),
            ("password", self.password.is_some()),
            ("salt", self.salt.is_some()),
            ("algorithm", self.algorithm.is_some()),
            ("header", self.header.is_some()),
            ("cookie", self.cookie.is_some()),
            ("param", self.param.is_some()),
            ("value", self.value.is_some()),
            ("secret", self.secret.is_some()),
            ("sources", self.sources.is_some()),
            ("claims", self.claims.is_some()),
            ("range", self.range.is_some()),
        ];
        fields.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    fn password(self) -> Result<Draft, SettingsError> {
        if self.algorithm.is_some_and(|algorithm| algorithm != "sha256") {
            return Err(wrong("algorithm", "sha256 is wanted, or nothing"));
        }
        let username = self.username.ok_or(wrong("username", "it is missing"))?;
        let password = self.password.ok_or(wrong("password", "it is missing"))?;
        PlainPassword::new(username, password, self.salt).map(Draft::Password)
    }

    fn token(self) -> Result<Draft, SettingsError> {
        let place = match (self.header, self.cookie, self.param) {
            (Some(name), None, None) => Place::header(&name)?,
            (None, Some(name), None) => Place::cookie(&name)?,
            (None, None, Some(name)) => Place::param(&name)?,
            _ => return Err(wrong("header", "one of header, cookie and param is wanted")),
        };
        let value = self.value.ok_or(wrong("value", "it is missing"))?;
        TokenGroup::new(place, &value).map(Group::Token).map(Draft::Ready)
    }

    fn jwt(self) -> Result<Draft, SettingsError> {
        let named = |text: String| Algorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == text);
        let algorithm = self.algorithm.and_then(named).ok_or(wrong("algorithm", "HS256, RS256 or ES256 is wanted"))?;
        let secret = self.secret.ok_or(wrong("secret", "it is missing"))?;
        let sources = self.sources.map(|all| all.iter().map(|text| source(text)).collect()).transpose()?;
        let sources = sources.unwrap_or_else(|| vec![Place::authorization()]);
        let group = JwtGroup::new(algorithm, secret, sources, self.claims.unwrap_or_default())?;
        Ok(Draft::Ready(Group::Jwt(group)))
    }

    fn ip(self) -> Result<Draft, SettingsError> {
        let texts = match self.range.ok_or(wrong("range", "it is missing"))? {
            Ranges::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
            Ranges::Many(texts) => texts,
        };
        let ranges = texts.iter().map(|text| text.parse::<IpNetwork>()).collect::<Result<Vec<_>, _>>();
        let ranges = ranges.map_err(|_| wrong("range", "networks such as 192.0.2.0/24 or 2001:db8::/32 are wanted"))?;
        IpGroup::new(ranges).map(Group::Ip).map(Draft::Ready)
    }
}

/// A place in a list of them.
fn source(text: &str) -> Result<Place, SettingsError> {
    text.parse().map_err(|error: SettingsError| SettingsError { field: "sources", ..error })
}

/// Who may open a container's URL, without what is secret about it.
#[derive(Debug, Serialize, ToSchema)]
pub struct PermissionsView {
    /// The container's id.
    pub container: String,
    /// What becomes of whom no group knows: allow, deny. Without groups and with allow, everybody may.
    pub default: &'static str,
    /// The groups by name.
    pub groups: BTreeMap<String, GroupView>,
    /// What each may open.
    #[schema(value_type = Object)]
    pub permissions: BTreeMap<String, Value>,
}

/// A group, without what is secret about it.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct GroupView {
    /// password, token, jwt, ip.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// password: the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// jwt: how tokens are signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<&'static str>,
    /// token: where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// token: where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// token: where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
    /// jwt: where tokens stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<String>>,
    /// jwt: what they have to claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub claims: Option<BTreeMap<String, Value>>,
    /// ip: the networks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Vec<String>>,
}

impl PermissionsView {
    /// Of a container.
    pub fn new(id: ContainerId, access: Option<&Access>) -> Self {
        let entries = || access.into_iter().flat_map(Access::groups);
        Self {
            container: id.to_string(),
            default: word(access.map_or(Policy::Allow, |access| access.default)),
            groups: entries().map(|(name, entry)| (name.to_string(), GroupView::from(&entry.group))).collect(),
            permissions: entries().map(|(name, entry)| (name.to_string(), json!({ PROGRAM: rule(entry) }))).collect(),
        }
    }
}

fn rule(entry: &Entry) -> Value {
    match &entry.reach {
        Reach::Nothing => json!(false),
        Reach::Ports(ports) if ports.is_any() => json!(true),
        Reach::Ports(ports) => json!(ports.ranges().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
    }
}

impl From<&Group> for GroupView {
    fn from(group: &Group) -> Self {
        let base = Self { kind: group.kind(), ..Self::default() };
        match group {
            Group::Password(group) => Self { username: Some(group.username().to_owned()), ..base },
            Group::Token(group) => match group.place.clone() {
                Place::Header(name) => Self { header: Some(name), ..base },
                Place::Cookie(name) => Self { cookie: Some(name), ..base },
                Place::Param(name) => Self { param: Some(name), ..base },
            },
            Group::Jwt(group) => Self {
                algorithm: Some(group.algorithm().as_str()),
                sources: Some(group.sources.iter().map(ToString::to_string).collect()),
                claims: Some(group.claims().clone()),
                ..base
            },
            Group::Ip(group) => Self { range: Some(group.ranges().iter().map(ToString::to_string).collect()), ..base },
        }
    }
}
