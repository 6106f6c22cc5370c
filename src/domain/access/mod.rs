//! Who may open a container's URL. Pure: a request's credentials in, a verdict out.
//!
//! ```text
//!  groups that know the visitor ─► one that may open nothing ──────────► refused
//!                                  one that may open this port ────────► admitted
//!                                  others ─────────────────────────────► refused
//!  none knows it ────────────────► default: allow or deny
//! ```
//!
//! Only one question costs more than it may on a thread that serves others: whether a password is right. So a verdict can be
//! [`Verdict::Ask`]; whoever asks comes back with the answer. Nothing here leaves early over a secret: every group is looked at, and a
//! user that nobody is costs as much as one with a wrong password.

mod jwt;
mod password;
mod place;
#[cfg(test)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::container::SettingsError;
use super::firewall::Ports;
use super::secret::Secret;
use super::token::TokenHash;

pub use jwt::{Algorithm, JwtGroup, LEEWAY_S};
pub use password::{PasswordGroup, PlainPassword};
pub use place::Place;

/// Groups of one container, at most.
pub const GROUPS_MAX: usize = 32;
/// Networks of one group, at most.
pub const RANGES_MAX: usize = 64;
/// Characters of a group's name, at most.
const GROUP_NAME_CHARS_MAX: usize = 50;
/// Bytes of a token. A shorter one could be guessed from what it hashes to.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=1_024;
const fn wrong(field: &'static str, wanted: &'static str) -> SettingsError {
    SettingsError { field, wanted }
}

/// A group's name: 1–50 of A–Z, a–z, 0–9, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(Box<str>);

impl GroupName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = SettingsError;
    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let may_stand = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=GROUP_NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(may_stand) {
            Ok(Self(text.into()))
        } else {
            Err(wrong("groups", "a name has 1 to 50 of A-Z, a-z, 0-9, `_` and `-`"))
        }
    }
}

impl TryFrom<String> for GroupName {
    type Error = SettingsError;
    fn try_from(text: String) -> Result<Self, SettingsError> {
        text.parse()
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> String {
        name.0.into_string()
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whoever has a token. Only what it hashes to is known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenGroup {
    /// Where it stands.
    pub place: Place,
    hash: TokenHash,
}

impl TokenGroup {
    /// A group of whoever has this token.
    ///
    /// # Errors
    /// A token that is too short, too long, or cannot stand in a header.
    pub fn new(place: Place, value: &Secret) -> Result<Self, SettingsError> {
        let text = value.reveal();
        if TOKEN_BYTES.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self { place, hash: TokenHash::of(text) })
        } else {
            Err(wrong("value", "16 to 1024 printable ASCII characters without spaces are wanted"))
        }
    }

    fn is(&self, presented: &str) -> bool {
        TokenHash::of(presented).0.as_bytes().ct_eq(self.hash.0.as_bytes()).into()
    }
}

/// Whoever comes from one of some networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpGroup {
    ranges: Vec<IpNetwork>,
}

impl IpGroup {
    /// A group of whoever comes from these networks.
    ///
    /// # Errors
    /// None, or too many.
    pub fn new(ranges: Vec<IpNetwork>) -> Result<Self, SettingsError> {
        if (1..=RANGES_MAX).contains(&ranges.len()) {
            Ok(Self { ranges })
        } else {
            Err(wrong("range", "1 to 64 networks are wanted"))
        }
    }

    /// The networks.
    pub fn ranges(&self) -> &[IpNetwork] {
        &self.ranges
    }

    fn has(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.ranges.iter().any(|range| range.contains(client))
    }
}

/// Whom a group knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[allow(missing_docs, reason = "each is the struct of the same name")]
pub enum Group {
    Password(PasswordGroup),
    Token(TokenGroup),
    Jwt(JwtGroup),
    Ip(IpGroup),
}

/// What whoever a group knows may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Nothing, whatever other groups say.
    Nothing,
    /// These ports of the container; none: all.
    Ports(Ports),
}

impl Default for Reach {
    fn default() -> Self {
        Self::Ports(Ports::default())
    }
}

/// What becomes of whom no group knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words say it")]
pub enum Policy {
    Allow,
    #[default]
    Deny,
}

/// A group, and what it may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whom it knows.
    pub group: Group,
    /// What they may open.
    #[serde(default)]
    pub reach: Reach,
}

/// Who may open a container's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// What becomes of whom no group knows.
    pub default: Policy,
    groups: BTreeMap<GroupName, Entry>,
}

/// A change to who may open a container's URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessChange {
    /// As it is.
    #[default]
    Keep,
    /// Everybody may.
    Clear,
    /// Exactly so.
    Replace(Access),
    /// This group in the place of one of the same name, whose reach it keeps.
    Put(GroupName, Box<Group>),
    /// Without this group, there or not.
    Remove(GroupName),
    /// Another default.
    Default(Policy),
}

impl AccessChange {
    /// Makes the change.
    ///
    /// # Errors
    /// A group that does not go with the others.
    pub fn apply(self, to: &mut Option<Box<Access>>) -> Result<(), SettingsError> {
        match self {
            Self::Keep => {}
            Self::Clear => *to = None,
            Self::Replace(access) => *to = Some(Box::new(access)),
            Self::Put(name, group) => {
                let access = to.get_or_insert_default();
                let reach = access.groups.get(&name).map(|entry| entry.reach.clone()).unwrap_or_default();
                access.put(name, Entry { group: *group, reach })?;
            }
            Self::Remove(name) => {
                if let Some(access) = to {
                    access.groups.remove(&name);
                }
            }
            Self::Default(policy) => to.get_or_insert_default().default = policy,
        }
        Ok(())
    }
}

/// What a visitor came with.
#[derive(Clone, Copy)]
pub struct Visit<'a> {
    /// The container's port it asks for.
    pub port: u16,
    /// Where it comes from.
    pub client: IpAddr,
    /// When.
    pub now: Timestamp,
    /// User and password, where it named some.
    pub basic: Option<(&'a str, &'a str)>,
    /// What stands at a place of the request.
    pub find: &'a dyn Fn(&Place) -> Option<Cow<'a, str>>,
}

impl fmt::Debug for Visit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Visit").field("port", &self.port).field("client", &self.client).finish_non_exhaustive()
    }
}

/// What becomes of a visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may.
    Admitted {
        /// Where what it was known by stands. It is a secret between the visitor and this door, and none of the container's business.
        spent: Vec<Place>,
    },
    /// It depends on whether the password that it named is this one's.
    Ask {
        /// Whose.
        group: &'a PasswordGroup,
        /// Whether it is the user's. If not, the password is wrong, and only the time that takes is to be the same.
        known: bool,
    },
    /// It may not.
    Refused {
        /// Whether other credentials could help.
        unknown: bool,
        /// Whether it named credentials of the kind that is wanted, and wrong ones: then it may have guessed.
        tried: bool,
    },
}

/// What a credential is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    /// It is one of the group's.
    Right,
    /// It was made by who may, for another time or purpose: not guessed.
    Stale,
    /// It is none.
    Wrong,
}

/// What is found out about a visitor, group by group.
#[derive(Debug, Default)]
struct Findings {
    admitted: bool,
    denied: bool,
    /// Known to a group that may not open this port.
    beyond: bool,
    tried: bool,
    spent: Vec<Place>,
}

impl Findings {
    fn known_to(&mut self, entry: &Entry, port: u16, at: Option<Place>) {
        match &entry.reach {
            Reach::Nothing => self.denied = true,
            Reach::Ports(ports) if ports.contains(port) => self.admitted = true,
            Reach::Ports(_) => self.beyond = true,
        }
        self.spent.extend(at);
    }
}

impl Access {
    /// Without any group.
    pub fn new(default: Policy) -> Self {
        Self { default, groups: BTreeMap::new() }
    }

    /// The groups by their names.
    pub fn groups(&self) -> impl Iterator<Item = (&GroupName, &Entry)> {
        self.groups.iter()
    }

    /// Sets a group in the place of one of the same name.
    ///
    /// # Errors
    /// There are as many as may be, or another group has the same user.
    pub fn put(&mut self, name: GroupName, entry: Entry) -> Result<(), SettingsError> {
        if let Group::Password(new) = &entry.group {
            let others = self.groups.iter().filter(|(other, _)| **other != name);
            if others.filter_map(|(_, entry)| entry.group.password()).any(|other| other.username() == new.username()) {
                return Err(wrong("username", "another group has it already"));
            }
        }
        if !self.groups.contains_key(&name) && self.groups.len() >= GROUPS_MAX {
            return Err(wrong("groups", "at most 32 are wanted"));
        }
        self.groups.insert(name, entry);
        Ok(())
    }

    /// Sets what a group may open; whether there is such a group.
    pub fn set_reach(&mut self, name: &GroupName, reach: Reach) -> bool {
        let Some(entry) = self.groups.get_mut(name) else { return false };
        entry.reach = reach;
        true
    }

    /// Whether a user with a password could be let in.
    pub fn takes_passwords(&self) -> bool {
        self.groups.values().any(|entry| entry.group.password().is_some())
    }

    /// Whether a token could let somebody in.
    pub fn takes_tokens(&self) -> bool {
        self.groups.values().any(|entry| matches!(entry.group, Group::Token(_) | Group::Jwt(_)))
    }

    /// Where tokens may stand.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.groups.values().flat_map(|entry| entry.group.places())
    }

    /// Whether a visitor names credentials of a kind that is wanted, right or not.
    pub fn is_tried_by(&self, visit: &Visit<'_>) -> bool {
        let stands = |place: &Place| (visit.find)(place).is_some_and(|text| place.credential(&text).is_some());
        (visit.basic.is_some() && self.takes_passwords()) || self.places().any(stands)
    }

    /// What becomes of a visitor, as far as that is known without asking about its password.
    pub fn decide(&self, visit: &Visit<'_>) -> Verdict<'_> {
        let Some((user, _)) = visit.basic.filter(|_| self.takes_passwords()) else { return self.settle(visit, false) };
        let (with, without) = (self.settle(visit, true), self.settle(visit, false));
        let mut groups = self.groups.values().filter_map(|entry| entry.group.password());
        let owner = groups.clone().find(|group| group.username() == user);
        match (owner, groups.next()) {
            (Some(group), _) if with != without => Verdict::Ask { group, known: true },
            (None, Some(group)) if matches!(without, Verdict::Refused { .. }) => Verdict::Ask { group, known: false },
            _ => without,
        }
    }

    /// What becomes of a visitor whose password is right, or not.
    pub fn settle(&self, visit: &Visit<'_>, password_is_right: bool) -> Verdict<'_> {
        let mut found = Findings::default();
        for entry in self.groups.values() {
            Self::look(entry, visit, password_is_right, &mut found);
        }
        let tried = found.tried && found.spent.is_empty();
        let refused = |unknown| Verdict::Refused { unknown, tried };
        match found {
            Findings { denied: true, .. } => refused(false),
            Findings { admitted: true, spent, .. } => Verdict::Admitted { spent },
            Findings { beyond: true, .. } => refused(false),
            _ if self.default == Policy::Allow => Verdict::Admitted { spent: Vec::new() },
            _ => refused(self.takes_passwords() || self.takes_tokens()),
        }
    }

    fn look(entry: &Entry, visit: &Visit<'_>, password_is_right: bool, found: &mut Findings) {
        match &entry.group {
            Group::Ip(group) if group.has(visit.client) => found.known_to(entry, visit.port, None),
            Group::Ip(_) => {}
            Group::Password(group) => {
                found.tried |= visit.basic.is_some();
                if password_is_right && visit.basic.is_some_and(|(user, _)| user == group.username()) {
                    found.known_to(entry, visit.port, Some(Place::authorization()));
                }
            }
            Group::Token(group) => {
                Self::look_at(std::slice::from_ref(&group.place), visit, entry, found, |text| {
                    if group.is(text) { Worth::Right } else { Worth::Wrong }
                });
            }
            Group::Jwt(group) => {
                Self::look_at(&group.sources, visit, entry, found, |text| group.worth(text, visit.now))
            }
        }
    }

    fn look_at(
        places: &[Place],
        visit: &Visit<'_>,
        entry: &Entry,
        found: &mut Findings,
        worth: impl Fn(&str) -> Worth,
    ) {
        for place in places {
            let text = (visit.find)(place);
            let Some(credential) = text.as_deref().and_then(|text| place.credential(text)) else { continue };
            match worth(credential) {
                Worth::Right => found.known_to(entry, visit.port, Some(place.clone())),
                Worth::Stale => {}
                Worth::Wrong => found.tried = true,
            }
        }
    }
}

impl Group {
    /// Its word in the API.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Password(_) => "password",
            Self::Token(_) => "token",
            Self::Jwt(_) => "jwt",
            Self::Ip(_) => "ip",
        }
    }

    const fn password(&self) -> Option<&PasswordGroup> {
        match self {
            Self::Password(group) => Some(group),
            _ => None,
        }
    }

    fn places(&self) -> &[Place] {
        match self {
            Self::Token(group) => std::slice::from_ref(&group.place),
            Self::Jwt(group) => &group.sources,
            Self::Password(_) | Self::Ip(_) => &[],
        }
    }
}
