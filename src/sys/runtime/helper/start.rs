//! `tenantry runtime start`: one container from nothing to a running init, in the steps the daemon asks for.
//!
//! ```text
//!  Prepare ─► namespaces ─► "prepared"          (while the daemon makes the rootfs, rules)
//!  Create  ─► rootfs mapped, private bundle, filter, libcontainer creates init ─► "created"   (and the link)
//!  Start   ─► execve ─► "started", and the helper ends; init is then the daemon's child
//! ```
//!
//! The end of the daemon's input before "started" undoes everything, cgroup included, since nobody else may be left to
//! do it. A failed step does the same before it is reported. Until execve init dies with the helper.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::time::{Duration, Instant};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Linux, LinuxNamespaceType, PosixRlimitBuilder, Spec};
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setgroups};

use super::namespaces::{Namespaces, path_for_others, path_for_ourselves};
use super::program::Workload;
use super::visit::{PIDS_MIN, Visit};
use super::{Daemon, NAME, Step, kernel, pipe, rootfs, sight};
use crate::sys::oci::{self, seccomp};
use crate::sys::runtime::files::Claim;
use crate::sys::runtime::wire::{Failure, Places, StartReport, StartRequest};
use crate::sys::runtime::{Init, Launch, files, process};

/// How long a dying init may take to say why.
const OUTCOME_WAIT_MS_MAX: u16 = 1_000;
/// How long killed children may take to die before they are left to the subreaper.
const REAP_WAIT_MS_MAX: u64 = 1_000;
const REAP_POLL_MS: u64 = 1;
/// How long a helper of an earlier daemon may go on undoing its start of the same container; less than the daemon waits for ours.
const CLAIM_WAIT_MS_MAX: u64 = 10_000;
const CLAIM_POLL_MS: u64 = 5;
/// What libcontainer calls its processes until they execute something.
pub const LIBCONTAINER_NAMES: &str = "youki:[";

/// Serves one start.
pub fn run() -> io::Result<()> {
    let mut daemon = Daemon::take()?;
    let (launch, places) = match daemon.next()? {
        Some(StartRequest::Prepare { launch, places }) => (launch, places),
        Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "the first request must be `prepare`")),
        // A spare that was not needed.
        None => return Ok(()),
    };
    // Only now: the daemon has noted our pid before it wrote, so it takes nothing of ours for an orphan.
    nix::sys::prctl::set_name(NAME)?;
    let mut container = None;
    let done = claim(&places).and_then(|claim| {
        let done = serve(&mut daemon, &launch, &places, &mut container);
        if !matches!(done, Ok(true)) {
            undo(container, &places);
        }
        drop(claim);
        done
    });
    match done {
        Ok(_) => Ok(()),
        Err(failure) => daemon.say(&StartReport::Failed(failure)),
    }
}

/// Whether init runs at the end.
fn serve(
    daemon: &mut Daemon,
    launch: &Launch,
    places: &Places,
    container: &mut Option<Container>,
) -> Result<bool, Failure> {
    let namespaces = Namespaces::make(launch.first_id)?;
    let (user, net) = (path_for_others(&namespaces.user), path_for_others(&namespaces.net));
    daemon.say(&StartReport::Prepared { user, net }).step("report")?;

    // Rootfs and bundle need not be there before this: the daemon may make them while it prepares.
    let Some(StartRequest::Create) = daemon.next().step("read the daemon's request")? else { return Ok(false) };
    rootfs::map(&launch.rootfs, &places.rootfs(), &namespaces.user)?;
    let (spec, filter) = private_bundle(launch, places, &namespaces)?;
    let log = open_log(launch, &spec)?;
    let (outcome, outcome_init) = pipe().map(|(r, w)| (File::from(r), File::from(w))).step("make a pipe")?;
    let mut visit = Visit::enter(&spec);
    let made = build(launch, places, log, Workload::new(filter, outcome_init));
    let init = created(made, container, &outcome).inspect_err(|_| visit.abandon())?;
    visit.leave();
    write_private(&places.init(), &serde_json::to_vec(&init).step("note init")?).step("note init")?;
    daemon.say(&StartReport::Created(init)).step("report")?;

    let Some(StartRequest::Start) = daemon.next().step("read the daemon's request")? else { return Ok(false) };
    if let Some(container) = container {
        container.start().step("start init")?;
    }
    executed(init, outcome)?;
    daemon.say(&StartReport::Started).step("report")?;
    Ok(true)
}

/// Makes the container's folder ours, once nobody else works in it, and leaves what init should not inherit from the daemon.
fn claim(places: &Places) -> Result<Claim, Failure> {
    setgroups(&[]).step("drop the daemon's groups")?;
    umask(Mode::from_bits_truncate(0o022));
    let deadline = Instant::now() + Duration::from_millis(CLAIM_WAIT_MS_MAX);
    loop {
        folder(&places.dir, 0o711)?;
        match files::claim(&places.dir) {
            Ok(Some(claim)) => return make_folders(places).map(|()| claim),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).step("lock the runtime folder"),
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(CLAIM_POLL_MS)),
            _ => {
                let message = format!("an earlier helper works on it for more than {CLAIM_WAIT_MS_MAX} ms");
                return Err(Failure::Step { step: "lock the runtime folder".to_owned(), message });
            }
        }
    }
}

fn folder(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).step("make the runtime folder")
}

/// The folder above may be passed by whoever passes to the rootfs.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

fn make_folders(places: &Places) -> Result<(), Failure> {
    folder(&places.rootfs(), 0o711)?;
    folder(&places.state(), 0o700)?;
    folder(&places.bundle(), 0o700)
}

/// Derives what libcontainer is given from the container's bundle: the same but for the place of the rootfs, the
/// namespaces that are there already, seccomp, which we load ourselves, and what it would make of v1's control groups.
fn private_bundle(launch: &Launch, places: &Places, namespaces: &Namespaces) -> Result<(Spec, Vec<u8>), Failure> {
    let mut spec = Spec::load(launch.bundle.join(oci::CONFIG)).step("read the bundle")?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    let filter = match linux.seccomp() {
        Some(profile) => seccomp::cached(&places.seccomp_cache, profile).step("compile the seccomp profile")?,
        None => Vec::new(),
    };
    write_private(&places.filter(), &filter).step("keep the seccomp filter")?;
    let mut list = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut list {
        match namespace.typ() {
            LinuxNamespaceType::User => namespace.set_path(Some(path_for_ourselves(&namespaces.user))),
            LinuxNamespaceType::Network => namespace.set_path(Some(path_for_ourselves(&namespaces.net))),
            _ => namespace,
        };
    }
    linux.set_seccomp(None).set_namespaces(Some(list));
    let_init_be_made(&mut linux);
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(places.rootfs());
    spec.set_linux(Some(linux)).set_root(Some(root));
    raise_limits(&mut spec)?;
    sight::show_groups(&mut spec, &places.groups())?;
    oci::write_spec(&places.bundle(), &spec).step("write the runtime's bundle")?;
    Ok((spec, filter))
}

/// A limit of processes below what it takes to make init is set when it is made, by the daemon.
fn let_init_be_made(linux: &mut Linux) {
    let mut resources = linux.resources().clone().unwrap_or_default();
    // Zero and less mean none.
    let Some(mut pids) = resources.pids().filter(|pids| (1..PIDS_MIN).contains(&pids.limit())) else { return };
    pids.set_limit(PIDS_MIN);
    resources.set_pids(Some(pids));
    linux.set_resources(Some(resources));
}

/// libcontainer sets the limits inside the user namespace, where none can be raised: here most roots may. One without
/// CAP_SYS_RESOURCE (itself in a container, say) gives what it has.
fn raise_limits(spec: &mut Spec) -> Result<(), Failure> {
    let mut process = spec.process().clone().unwrap_or_default();
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for limit in &mut limits {
        // The kinds are listed in the order of the kernel's numbers.
        let kind = limit.typ() as u32;
        if kernel::set_rlimit(kind, limit.soft(), limit.hard()).is_err() {
            let hard = kernel::hard_rlimit(kind).step("read the resource limits")?.min(limit.hard());
            let lower = PosixRlimitBuilder::default().typ(limit.typ()).soft(limit.soft().min(hard)).hard(hard);
            *limit = lower.build().step("lower the resource limits")?;
        }
    }
    process.set_rlimits(Some(limits));
    spec.set_process(Some(process));
    Ok(())
}

/// The log belongs to the container's user, because programs open `/dev/stdout` again (runc does the same to the
/// files it is given); its folder stays out of the container's sight.
fn open_log(launch: &Launch, spec: &Spec) -> Result<File, Failure> {
    let log = File::options().append(true).create(true).mode(0o600).open(&launch.log).step("open the log")?;
    let (uid, gid) = spec.process().as_ref().map_or((0, 0), |p| (p.user().uid(), p.user().gid()));
    fchown(&log, Some(launch.first_id + uid), Some(launch.first_id + gid)).step("hand the log over")?;
    Ok(log)
}

fn build(launch: &Launch, places: &Places, log: File, workload: Workload) -> Result<Container, Failure> {
    let null = File::open("/dev/null").step("open /dev/null")?;
    let second = log.try_clone().step("open the log")?;
    ContainerBuilder::new(launch.id.to_string(), SyscallType::default())
        .with_executor(workload)
        .with_stdin(OwnedFd::from(null))
        .with_stdout(OwnedFd::from(log))
        .with_stderr(OwnedFd::from(second))
        .with_root_path(places.state())
        .step("create init")?
        .as_init(places.bundle())
        .with_systemd(false)
        .with_detach(true)
        .build()
        .step("create init")
}

/// Init of a created container; what init itself said where there is none.
fn created(
    made: Result<Container, Failure>,
    container: &mut Option<Container>,
    outcome: &File,
) -> Result<Init, Failure> {
    let pid = match made {
        Ok(made) => container.insert(made).pid().map(|pid| pid.as_raw()),
        Err(failure) => return Err(reported(outcome)?.unwrap_or(failure)),
    };
    let init = pid.and_then(process::identify);
    init.ok_or_else(|| Failure::Step { step: "create init".to_owned(), message: "it is gone already".to_owned() })
}

/// Waits until execve has closed the pipe, or for what went wrong before.
fn executed(init: Init, outcome: File) -> Result<(), Failure> {
    // No bound of our own: the daemon has one, and ends us.
    if let Some(failure) = read_failure(&outcome)? {
        return Err(failure);
    }
    match process::Stat::of(init.pid) {
        Some(stat) if stat.comm.starts_with(LIBCONTAINER_NAMES) => {
            Err(Failure::Step { step: "start init".to_owned(), message: "it was killed before it ran".to_owned() })
        }
        _ => Ok(()),
    }
}

fn reported(outcome: &File) -> Result<Option<Failure>, Failure> {
    if !kernel::readable_within(outcome, OUTCOME_WAIT_MS_MAX).step("wait for init's report")? {
        return Ok(None);
    }
    read_failure(outcome)
}

/// One failure, or the end of the pipe. One read: writers send theirs whole, and a stray holder of the other end
/// must not keep us.
fn read_failure(mut outcome: &File) -> Result<Option<Failure>, Failure> {
    let mut line = vec![0; 64 << 10];
    let count = outcome.read(&mut line).step("read init's report")?;
    if count == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line[..count]).step("read init's report").map(Some)
}

/// Leaves nothing: processes, cgroup, files. The mounts go with us. It goes on past what it cannot do, since a later
/// `remove` finds that again.
fn undo(container: Option<Container>, places: &Places) {
    if let Some(mut container) = container {
        if let Some(pid) = container.pid() {
            let _ = kill(Pid::from_raw(pid.as_raw()), Signal::SIGKILL);
        }
        reap_children();
        let _ = container.delete(true);
    }
    reap_children();
    // In our own mount namespace, if it came to that; in the host's nothing is mounted there.
    let _ = umount2(&places.rootfs(), MntFlags::MNT_DETACH);
    let _ = umount2(&places.groups(), MntFlags::MNT_DETACH);
    let _ = files::remove(&places.dir);
}

/// Waits, bounded, until no child is left, so that none becomes the subreaper's.
fn reap_children() {
    let deadline = Instant::now() + Duration::from_millis(REAP_WAIT_MS_MAX);
    while Instant::now() < deadline {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(REAP_POLL_MS)),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
