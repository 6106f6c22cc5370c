//! From a record to what is written for it: bundle, manifest, identity. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::execute::Subject;
use crate::domain::{Container, Secret};
use crate::sys::folders::{Identity, Layout};
use crate::sys::oci::{BundleSpec, RAMDISK_UNBOUND};

/// The search path where neither image nor user gives one (Docker's).
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Linux's longest host name (`HOST_NAME_MAX`, gethostname(2)).
const HOST_NAME_BYTES_MAX: usize = 63;

/// The spec of a container's bundle.
pub fn spec<'a>(subject: &'a Subject, layout: &Layout, cgroups_path: String, uid_base: u32) -> BundleSpec<'a> {
    let container = &*subject.container;
    let config = &subject.image.config;
    let settings = &container.settings;
    BundleSpec {
        id: container.id,
        hostname: host_name(container),
        args: args(subject),
        env: environment(subject),
        cwd: PathBuf::from(if config.working_dir.is_empty() { "/" } else { &config.working_dir }),
        uid: config.ids.uid,
        gid: config.ids.gid,
        additional_gids: config.ids.additional_gids.clone(),
        rootfs: layout.pool.rootfs(container.id),
        cgroups_path,
        limits: &settings.limits,
        first_id: container.slot.first_id(uid_base),
        ramdisk: settings.ramdisk.then_some(settings.limits.ramdisk.unwrap_or(RAMDISK_UNBOUND)),
        confinement: settings.confinement,
    }
}

/// The container's own command, else the image's entrypoint and command.
pub fn args(subject: &Subject) -> Vec<String> {
    let own = &subject.container.settings.command;
    if own.is_empty() {
        let config = &subject.image.config;
        config.entrypoint.iter().chain(&config.cmd).cloned().collect()
    } else {
        own.clone()
    }
}

/// The image's environment, the user's over it, ours over both.
fn environment(subject: &Subject) -> Vec<(String, Secret)> {
    let container = &*subject.container;
    let mut env = BTreeMap::from([("PATH".to_owned(), Secret::new(PATH_DEFAULT))]);
    let image = subject.image.config.env.iter().filter_map(|pair| pair.split_once('='));
    env.extend(image.map(|(key, value)| (key.to_owned(), Secret::new(value))));
    env.insert("PORT".to_owned(), Secret::new(container.settings.port.to_string()));
    env.extend(container.settings.env.iter().map(|(key, value)| (key.to_string(), value.clone())));
    env.insert("TENANTRY_CONTAINER_ID".to_owned(), Secret::new(container.id.to_string()));
    env.insert("TENANTRY_PROJECT_ID".to_owned(), Secret::new(container.project.to_string()));
    env.into_iter().collect()
}

fn host_name(container: &Container) -> String {
    let name: String = container.name.as_str().chars().take(HOST_NAME_BYTES_MAX).collect();
    let name = name.replace('_', "-").to_ascii_lowercase();
    let name = name.trim_matches('-');
    if name.is_empty() { container.id.to_string() } else { name.to_owned() }
}

/// What makes a copy its own.
pub fn identity(container: &Container) -> Identity {
    Identity {
        hostname: host_name(container),
        ssh_public_key: container.settings.ssh_public_key.clone(),
        is_copy: container.source.is_some(),
    }
}

/// The record as it lies beside the data.
pub fn manifest(container: &Container) -> Vec<u8> {
    // A record always serialises: its maps have texts as keys.
    serde_json::to_vec_pretty(container).unwrap_or_default()
}
