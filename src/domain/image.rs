//! Images: what a rootfs begins as.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::ImageId;
use super::quantity::Bytes;

/// Highest uid and gid a container has: its user namespace maps 65536 of each.
pub const ID_MAX: u32 = 65_535;
/// Additional groups of one user, at most (`NGROUPS_MAX` of `linux/limits.h`).
pub const ADDITIONAL_GIDS_MAX: usize = 65_536;

/// What an image says about running it (the OCI image spec's `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `KEY=value` texts.
    pub env: Vec<String>,
    /// `user`, `user:group`, `uid`, `uid:gid`; empty: root.
    pub user: String,
    /// What `user` means by the image's `/etc/passwd` and `/etc/group`.
    pub ids: UserIds,
    /// Where the command starts; empty: `/`.
    pub working_dir: String,
    /// Ports such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// `SIGTERM`, `15`, …; `None`: SIGTERM.
    pub stop_signal: Option<String>,
    /// For people and programs.
    pub labels: BTreeMap<String, String>,
}

/// The ids a command runs with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserIds {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub additional_gids: Vec<u32>,
}

/// An image's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// What containers name it by; unique.
    pub name: String,
    /// `sha256:` of what it was imported from.
    pub digest: String,
    /// How to run it.
    pub config: ImageConfig,
    /// Bytes of its files.
    pub size: Bytes,
    /// When it was imported.
    pub created_at: Timestamp,
}

/// A user that an image names and does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not in `/etc/passwd`, and no number.
    #[error("user `{0}` is not in the image's /etc/passwd")]
    User(String),
    /// Not in `/etc/group`, and no number.
    #[error("group `{0}` is not in the image's /etc/group")]
    Group(String),
    /// Past what the user namespace maps.
    #[error("id {0} is above 65535, which a container's user namespace does not map")]
    Range(u64),
}

impl UserIds {
    /// Reads `user[:group]` with the texts of `/etc/passwd` and `/etc/group` (passwd(5), group(5)). A name is looked up; a
    /// number need not be there. With no group named, the user's own group counts, and every group that lists it.
    ///
    /// # Errors
    /// A name that is not there, or an id above 65535.
    pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Self, UserError> {
        let (user, wanted_group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { "0" } else { user };
        // A name is looked up before it is read as a number: a user may be called `1000`.
        let by_name = || lines(passwd).find(|fields| fields[0] == user);
        let by_number = || lines(passwd).find(|fields| fields.get(2) == Some(&user));
        let entry = by_name().or_else(by_number);
        let uid_text = entry.as_ref().and_then(|fields| fields.get(2).copied()).unwrap_or(user);
        let uid = number(uid_text)?.ok_or_else(|| UserError::User(shortened(user)))?;
        if let Some(wanted) = wanted_group.filter(|group| !group.is_empty()) {
            let entry = lines(group).find(|fields| fields[0] == wanted);
            let text = entry.and_then(|fields| fields.get(2).copied()).unwrap_or(wanted);
            let gid = number(text)?.ok_or_else(|| UserError::Group(shortened(wanted)))?;
            return Ok(Self { uid, gid, additional_gids: Vec::new() });
        }
        let Some(entry) = entry else { return Ok(Self { uid, ..Self::default() }) };
        let gid = entry.get(3).map_or(Ok(None), |text| number(text))?.unwrap_or(0);
        let lists_user = |fields: &Vec<&str>| fields.get(3).is_some_and(|list| list.split(',').any(|u| u == entry[0]));
        let mut additional_gids = Vec::new();
        for fields in lines(group).filter(lists_user).take(ADDITIONAL_GIDS_MAX) {
            additional_gids.extend(fields.get(2).map_or(Ok(None), |text| number(text))?.filter(|other| *other != gid));
        }
        Ok(Self { uid, gid, additional_gids })
    }
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|l| l.split(':').collect())
}

/// A number of an id; `None` where the text is none.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    match text.parse::<u64>() {
        Ok(id) if id > u64::from(ID_MAX) => Err(UserError::Range(id)),
        Ok(id) => Ok(u32::try_from(id).ok()),
        Err(_) => Ok(None),
    }
}

/// Never echo an unbounded input back.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a comment\napp:x:101:102::/app:/bin/sh\n1000:x:7:8:::\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,app\nweb:x:33:app,other\napp:x:102:\n";

    fn ids(uid: u32, gid: u32, more: &[u32]) -> Result<UserIds, UserError> {
        Ok(UserIds { uid, gid, additional_gids: more.to_vec() })
    }

    #[test]
    fn a_name_brings_its_groups_along() {
        assert_eq!(UserIds::resolve("app", PASSWD, GROUP), ids(101, 102, &[10, 33]));
        assert_eq!(UserIds::resolve("101", PASSWD, GROUP), ids(101, 102, &[10, 33]));
        assert_eq!(UserIds::resolve("", PASSWD, GROUP), ids(0, 0, &[10]));
        assert_eq!(UserIds::resolve("1000", PASSWD, GROUP), ids(7, 8, &[]), "a name wins over a number");
    }

    #[test]
    fn a_named_group_is_the_only_one() {
        assert_eq!(UserIds::resolve("app:web", PASSWD, GROUP), ids(101, 33, &[]));
        assert_eq!(UserIds::resolve("5:6", "", ""), ids(5, 6, &[]));
        assert_eq!(UserIds::resolve(":33", PASSWD, GROUP), ids(0, 33, &[]));
    }

    #[test]
    fn an_unknown_number_runs_in_group_root_and_an_unknown_name_does_not_run() {
        assert_eq!(UserIds::resolve("4242", PASSWD, GROUP), ids(4242, 0, &[]));
        assert_eq!(UserIds::resolve("nobody", PASSWD, GROUP), Err(UserError::User("nobody".into())));
        assert_eq!(UserIds::resolve("app:none", PASSWD, GROUP), Err(UserError::Group("none".into())));
        assert_eq!(UserIds::resolve("65536", "", ""), Err(UserError::Range(65_536)));
        assert_eq!(UserIds::resolve("big", "big:x:70000:0:::", ""), Err(UserError::Range(70_000)));
    }
}
