//! The OCI bundle of a container: one small input in, the runtime spec out.
//!
//! Rendering is pure. What all containers share lies in `bundles/base/config.json` and `bundles/seccomp.json`, so
//! that an operator can read what a tenant may do without reading Rust. The result is complete: `runc`, `crun` and
//! the spec's validators take it as it is. Our own runtime derives a second, private bundle from it (see
//! [`crate::sys::runtime`]) and never runs what is not in here.
//!
//! `bundles/README.md` says for each thing that is given or refused why it is.
//!
//! Invariants: `no_new_privs` is set; swap never extends the memory limit; no device is allowed but the usual
//! harmless ones that every runtime adds; `HOME` is always set, because a runtime that has to look it up reads the
//! tenant's `/etc/passwd`.

pub mod seccomp;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Linux, LinuxCpu, LinuxIdMapping, LinuxIdMappingBuilder, LinuxMemory, LinuxPids, Mount, MountBuilder, Process, Spec,
    User,
};

use crate::domain::slot::IDS_PER_SLOT;
use crate::domain::{Bytes, Confinement, ContainerId, Limits, Secret};

/// What every container has in common.
const BASE: &str = include_str!("../../../bundles/base/config.json");
/// The file a bundle is known by.
pub const CONFIG: &str = "config.json";
/// The period that processor quotas are counted in: the kernel's own default, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below a millisecond.
const CPU_QUOTA_US_MIN: i64 = 1_000;
/// Files that a ramdisk may hold: one for so many bytes, as if each filled a page, and a few in any case.
const RAMDISK_BYTES_PER_INODE: u64 = 4096;
const RAMDISK_INODES_MIN: u64 = 1024;
/// The oldest annotation key of all: which id the bundle belongs to.
const ANNOTATION_ID: &str = "tenantry.container-id";

/// What sets one container's bundle apart from another's.
#[derive(Debug, Clone)]
pub struct BundleSpec<'a> {
    /// Whose bundle.
    pub id: ContainerId,
    /// Host name inside.
    pub hostname: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// The whole environment, image's and tenant's merged; later entries win.
    pub env: Vec<(String, Secret)>,
    /// Working folder inside, absolute.
    pub cwd: PathBuf,
    /// User inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Further groups inside.
    pub additional_gids: Vec<u32>,
    /// The rootfs on disk, absolute.
    pub rootfs: PathBuf,
    /// Absolute path of its cgroup, unique on the host.
    pub cgroups_path: String,
    /// Processor, memory and pids; the others are not the runtime's.
    pub limits: &'a Limits,
    /// First id on the host of the 65536 of its user namespace.
    pub first_id: u32,
    /// Size of the tmpfs at `/ramdisk`; none where `None`. [`RAMDISK_UNBOUND`]: what its memory limit lets it have.
    pub ramdisk: Option<Bytes>,
    /// How closely it is confined.
    pub confinement: Confinement,
}

/// A bundle that cannot be rendered or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// The base or the seccomp profile we ship does not parse.
    #[error("the shipped {0} is not valid")]
    Shipped(&'static str, #[source] serde_json::Error),
    /// An input that no runtime could run.
    #[error("container {id}: {what}")]
    Input {
        /// Whose bundle.
        id: ContainerId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The spec could not be turned into JSON.
    #[error("cannot serialise the bundle {}", path.display())]
    Encode {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A file of the bundle could not be handled.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The seccomp profile cannot be compiled.
    #[error("cannot compile the seccomp profile: {0}")]
    Seccomp(String),
}

/// Renders the runtime spec of a container.
///
/// # Errors
/// An input that no runtime could run.
pub fn render(input: &BundleSpec<'_>) -> Result<Spec, OciError> {
    check(input)?;
    let mut spec: Spec = serde_json::from_str(BASE).map_err(|e| OciError::Shipped("bundles/base/config.json", e))?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    let built = |_| OciError::Input { id: input.id, what: "a part of its spec cannot be built" };
    let ids = LinuxIdMappingBuilder::default().container_id(0u32).host_id(input.first_id).size(IDS_PER_SLOT);
    render_linux(&mut linux, ids.build().map_err(built)?, input);
    linux.set_seccomp(Some(seccomp::profile(input.confinement)?));
    let mut process = spec.process().clone().unwrap_or_default();
    render_process(&mut process, input);
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(input.rootfs.clone());
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.extend(input.ramdisk.map(ramdisk).transpose().map_err(built)?);

    spec.set_linux(Some(linux))
        .set_process(Some(process))
        .set_root(Some(root))
        .set_mounts(Some(mounts))
        .set_hostname(Some(input.hostname.clone()))
        .set_annotations(Some([(ANNOTATION_ID.to_owned(), input.id.to_string())].into()));
    Ok(spec)
}

/// Renders and writes `<bundle>/config.json`, whole or not at all. It holds the environment: only root may read it.
///
/// # Errors
/// An input that no runtime could run, or a file that cannot be written.
pub fn write_bundle(bundle: &Path, input: &BundleSpec<'_>) -> Result<Spec, OciError> {
    let spec = render(input)?;
    write_spec(bundle, &spec)?;
    Ok(spec)
}

/// Writes a spec as `<bundle>/config.json`: a new file, renamed over the old one.
///
/// # Errors
/// A file that cannot be written.
pub fn write_spec(bundle: &Path, spec: &Spec) -> Result<(), OciError> {
    let (path, draft) = (bundle.join(CONFIG), bundle.join(".config.json.new"));
    let text = serde_json::to_vec_pretty(spec).map_err(|source| OciError::Encode { path: path.clone(), source })?;
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OciError::Io { action, path, source }
    };
    fs::create_dir_all(bundle).map_err(io("create", bundle))?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io("create", &draft))?;
    file.write_all(&text).map_err(io("write", &draft))?;
    fs::rename(&draft, &path).map_err(io("replace", &path))
}

fn check(input: &BundleSpec<'_>) -> Result<(), OciError> {
    let rules = [
        (input.args.first().is_none_or(|program| program.is_empty()), "there is no program to run"),
        (input.args.iter().any(|arg| arg.contains('\0')), "an argument holds a NUL byte"),
        (
            input.env.iter().any(|(key, _)| key.is_empty() || key.contains(['=', '\0'])),
            "an environment key is malformed",
        ),
        (input.env.iter().any(|(_, value)| value.reveal().contains('\0')), "an environment value holds a NUL byte"),
        (!input.cwd.is_absolute(), "the working folder is not an absolute path"),
        (!input.rootfs.is_absolute(), "the rootfs is not an absolute path"),
        (!input.cgroups_path.starts_with('/') || input.cgroups_path.len() < 2, "the cgroup path is not absolute"),
        (input.uid >= IDS_PER_SLOT || input.gid >= IDS_PER_SLOT, "the user or group is outside the 65536 ids"),
        (input.additional_gids.iter().any(|gid| *gid >= IDS_PER_SLOT), "a further group is outside the 65536 ids"),
        (input.first_id == 0, "its ids would be the host's own"),
    ];
    match rules.into_iter().find(|(broken, _)| *broken) {
        Some((_, what)) => Err(OciError::Input { id: input.id, what }),
        None => Ok(()),
    }
}

fn render_process(process: &mut Process, input: &BundleSpec<'_>) {
    let mut user = User::default();
    user.set_uid(input.uid)
        .set_gid(input.gid)
        .set_umask(process.user().umask())
        .set_additional_gids((!input.additional_gids.is_empty()).then(|| input.additional_gids.clone()));
    process
        .set_user(user)
        .set_args(Some(input.args.clone()))
        .set_env(Some(environment(&input.env, input.uid)))
        .set_cwd(input.cwd.clone());
}

/// `KEY=value` lines, the last of each key, in the order of first mention; `PATH` and `HOME` are added if missing.
fn environment(env: &[(String, Secret)], uid: u32) -> Vec<String> {
    let home = if uid == 0 { "/root" } else { "/" };
    let defaults = [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", home)];
    let mut lines: Vec<(&str, &str)> = defaults.to_vec();
    for (key, value) in env {
        match lines.iter_mut().find(|(known, _)| known == key) {
            Some(line) => line.1 = value.reveal(),
            None => lines.push((key, value.reveal())),
        }
    }
    lines.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn render_linux(linux: &mut Linux, ids: LinuxIdMapping, input: &BundleSpec<'_>) {
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources
        .set_cpu(input.limits.cpu.map(|cpu| {
            let mut limit = LinuxCpu::default();
            let quota = i64::from(cpu.0) * (CPU_PERIOD_US as i64) / 1000;
            limit.set_period(Some(CPU_PERIOD_US)).set_quota(Some(quota.max(CPU_QUOTA_US_MIN)));
            limit
        }))
        .set_memory(input.limits.memory.map(|memory| {
            let bytes = i64::try_from(memory.0).unwrap_or(i64::MAX);
            let mut limit = LinuxMemory::default();
            // Equal numbers mean: no swap at all, in both cgroup versions.
            limit.set_limit(Some(bytes)).set_swap(Some(bytes));
            limit
        }))
        .set_pids(input.limits.pids.map(|pids| {
            let mut limit = LinuxPids::default();
            limit.set_limit(i64::from(pids.0));
            limit
        }));
    linux
        .set_uid_mappings(Some(vec![ids]))
        .set_gid_mappings(Some(vec![ids]))
        .set_cgroups_path(Some(PathBuf::from(&input.cgroups_path)))
        .set_resources(Some(resources));
}

/// The size of a ramdisk without one of its own: more than any machine has, so that the memory limit is what counts. (A tmpfs that was
/// made without a size, `size=0`, can be given none later.)
pub const RAMDISK_UNBOUND: Bytes = Bytes(1 << 50);

/// How many files a ramdisk of a size may hold: an empty file takes no page, and memory all the same.
pub fn ramdisk_inodes(size: Bytes) -> u64 {
    (size.0 / RAMDISK_BYTES_PER_INODE).max(RAMDISK_INODES_MIN)
}

fn ramdisk(size: Bytes) -> Result<Mount, OciSpecError> {
    let sizes = [format!("size={}", size.0), format!("nr_inodes={}", ramdisk_inodes(size))];
    let options = ["nosuid", "nodev", "mode=1777"].map(str::to_owned).into_iter().chain(sizes);
    MountBuilder::default()
        .destination("/ramdisk")
        .typ("tmpfs")
        .source("ramdisk")
        .options(options.collect::<Vec<_>>())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CpuMillis, Pids};

    fn input(limits: &Limits) -> BundleSpec<'_> {
        BundleSpec {
            id: "68a0c1d2aabbccddeeff0011".parse().unwrap(),
            hostname: "acme".into(),
            args: vec!["/bin/app".into(), "--serve".into()],
            env: vec![("PLAN".into(), Secret::new("pro")), ("HOME".into(), Secret::new("/home/app"))],
            cwd: "/srv".into(),
            uid: 1000,
            gid: 1000,
            additional_gids: vec![27],
            rootfs: "/pool/containers/68a0c1d2aabbccddeeff0011/rootfs".into(),
            cgroups_path: "/tenantry/68a0c1d2aabbccddeeff0011".into(),
            limits,
            first_id: 1_000_065_536,
            ramdisk: Some(Bytes::mib(64)),
            confinement: Confinement::Standard,
        }
    }

    fn limits() -> Limits {
        Limits { cpu: Some(CpuMillis(1500)), memory: Some(Bytes::mib(256)), pids: Some(Pids(100)), ..Limits::default() }
    }

    #[test]
    fn the_rendered_bundle_is_what_was_reviewed() {
        let mut spec = render(&input(&limits())).unwrap();
        let mut linux = spec.linux().clone().unwrap();
        // The profile is reviewed where it lies.
        assert!(linux.seccomp().is_some());
        linux.set_seccomp(None);
        spec.set_linux(Some(linux));
        // Through sorted maps and lists, so that the snapshot's order does not hang on a hash.
        let mut json = serde_json::to_value(&spec).unwrap();
        for set in json["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
            set.as_array_mut().unwrap().sort_by_key(|capability| capability.to_string());
        }
        insta::assert_json_snapshot!(json);
    }

    #[test]
    fn an_unlimited_container_has_no_limits_in_its_bundle() {
        let spec = render(&input(&Limits::default())).unwrap();
        let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
        assert!(resources.cpu().is_none() && resources.memory().is_none() && resources.pids().is_none());
        assert!(!resources.devices().as_ref().unwrap()[0].allow(), "devices are still denied");
    }

    #[test]
    fn the_last_mention_of_a_variable_wins_and_home_is_never_missing() {
        let env = [("A".to_owned(), Secret::new("1")), ("A".to_owned(), Secret::new("2"))];
        let lines = environment(&env, 0);
        assert!(lines.contains(&"A=2".to_owned()) && !lines.contains(&"A=1".to_owned()));
        assert!(lines.contains(&"HOME=/root".to_owned()));
        assert!(lines[0].starts_with("PATH="));
    }

    #[test]
    fn an_input_that_no_runtime_could_run_is_refused() {
        let limits = Limits::default();
        let refused = |change: fn(&mut BundleSpec<'_>)| {
            let mut input = input(&limits);
            change(&mut input);
            matches!(render(&input), Err(OciError::Input { .. }))
        };
        assert!(refused(|i| i.args.clear()));
        assert!(refused(|i| i.args = vec!["a\0b".into()]));
        assert!(refused(|i| i.cwd = "srv".into()));
        assert!(refused(|i| i.uid = 65_536));
        assert!(refused(|i| i.first_id = 0));
        assert!(refused(|i| i.cgroups_path = "/".into()));
        assert!(refused(|i| i.env = vec![("A=B".into(), Secret::new(""))]));
    }

    #[test]
    fn a_bundle_is_replaced_whole_and_only_root_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let limits = limits();
        write_bundle(dir.path(), &input(&limits)).unwrap();
        let spec = write_bundle(dir.path(), &input(&limits)).unwrap();
        assert_eq!(Spec::load(dir.path().join(CONFIG)).unwrap(), spec);
        assert_eq!(fs::metadata(dir.path().join(CONFIG)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a draft was left");
    }
}
