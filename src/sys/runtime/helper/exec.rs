//! `tenantry runtime exec`: one command inside a running container, confined as its init is.
//!
//! libcontainer's own way (`as_tenant`) is not used: it does not join the user namespace and drops seccomp and the
//! limits, so its command is root on the host. Here the order is
//!
//! ```text
//!  helper   open init's pidfd and cgroups ─► take init's limits ─► setns, all namespaces at once ─► fork
//!           ─► put the child into the cgroups ─► let it go ─► carry its input and output
//!  child    wait ─► ids, capabilities, no_new_privs ─► find the program ─► seccomp ─► execve
//! ```
//!
//! Invariants: before it is in the cgroups the child runs nothing; from setns to execve both are undumpable, so the
//! container can look into neither; the command dies with the helper.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use caps::{CapSet, CapsHashSet};
use libcontainer::capabilities::CapabilityExt;
use libcontainer::oci_spec::runtime::{Capabilities, Process, Spec};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, getcwd, setgroups, setresgid, setresuid, setsid};

use super::cgroup::Membership;
use super::kernel::{self, Fork};
use super::program::{c_strings, execute, resolve, variable};
use super::{Daemon, NAME, Step, pipe, pump};
use crate::sys::oci;
use crate::sys::runtime::process;
use crate::sys::runtime::wire::{ExecCommand, ExecReport, Failure};

/// How long the child may take from being let go to execve.
const EXECVE_WAIT_MS_MAX: u16 = 10_000;
/// `RLIMIT_CPU` (0) to `RLIMIT_RTTIME` (15), as getrlimit(2) numbers them.
const RLIMITS: u32 = 16;

/// Serves one command.
pub fn run() -> io::Result<()> {
    let mut daemon = Daemon::take()?;
    let Some(command) = daemon.next::<ExecCommand>()? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a command must come first"));
    };
    prctl::set_name(NAME)?;
    let mut stdin = vec![];
    daemon.input.by_ref().take(command.stdin_bytes).read_to_end(&mut stdin)?;
    match serve(&mut daemon, &command, &stdin) {
        Ok(ended) => {
            let report = ExecReport::Ended {
                exit: ended.exit,
                timed_out: ended.timed_out,
                stdout_bytes: ended.stdout.kept.len() as u64,
                stderr_bytes: ended.stderr.kept.len() as u64,
                truncated: ended.stdout.truncated || ended.stderr.truncated,
            };
            daemon.say(&report)?;
            daemon.output.write_all(&ended.stdout.kept)?;
            daemon.output.write_all(&ended.stderr.kept)
        }
        Err(failure) => daemon.say(&ExecReport::Failed(failure)),
    }
}

fn serve(daemon: &mut Daemon, command: &ExecCommand, stdin: &[u8]) -> Result<pump::Ended, Failure> {
    let place = Place::of(command)?;
    let handle = process::open(command.init).step("find init")?.ok_or(Failure::NotRunning)?;
    let mut cgroups = Membership::of(command.init.pid).step("find init's cgroups")?;
    take_limits(command.init.pid)?;
    // Ours, by which the child is known to the host; it must never reach the command (it could leave by it).
    let host_proc = OwnedFd::from(File::open("/proc").step("open /proc")?);
    enter(handle)?;

    let (input, input_child) = pipe().map(|(r, w)| (w, r)).step("make a pipe")?;
    let (stdout, stdout_child) = pipe().step("make a pipe")?;
    let (stderr, stderr_child) = pipe().step("make a pipe")?;
    let (go_child, go) = pipe().step("make a pipe")?;
    let (outcome, outcome_child) = pipe().step("make a pipe")?;
    let child = match kernel::fork().step("fork")? {
        Fork::Child => {
            drop((host_proc, go, cgroups));
            let failure = become_command(&place, File::from(go_child), [input_child, stdout_child, stderr_child]);
            let line = serde_json::to_vec(&failure).unwrap_or_default();
            // The helper may be gone; then there is nobody to tell.
            let _ = File::from(outcome_child).write_all(&line);
            kernel::exit_child(127)
        }
        Fork::Parent(child) => child,
    };
    drop((input_child, stdout_child, stderr_child, go_child, outcome_child));
    let command_process = pump::Command::new(child, &host_proc)?;
    drop(host_proc);
    cgroups.admit(child).step("enter init's cgroups")?;
    daemon.say(&ExecReport::Running(command_process.id())).step("report")?;
    File::from(go).write_all(&[0]).step("let the command go")?;
    executed(File::from(outcome))?;
    let streams = pump::Streams { input, stdout, stderr, control: daemon.input.get_ref().as_fd() };
    pump::run(command_process, streams, stdin, command.timeout_ms, command.output_bytes_max).step("run the command")
}

/// Everything the child needs, made before there is a child.
struct Place {
    process: Process,
    command: Vec<String>,
    env: Vec<String>,
    cwd: PathBuf,
    filter: Vec<u8>,
}

impl Place {
    fn of(command: &ExecCommand) -> Result<Self, Failure> {
        // The bundle that init was started from: the container's own may have been changed since.
        let spec = Spec::load(command.places.bundle().join(oci::CONFIG)).map_err(|_| Failure::NotRunning)?;
        let process = spec.process().clone().unwrap_or_default();
        let added: BTreeMap<&str, &str> =
            command.env.iter().map(|(key, value)| (key.as_str(), value.reveal())).collect();
        let own = process.env().iter().flatten();
        let kept = own.filter(|line| !added.contains_key(line.split('=').next().unwrap_or_default())).cloned();
        Ok(Self {
            env: kept.chain(added.iter().map(|(key, value)| format!("{key}={value}"))).collect(),
            command: command.command.clone(),
            cwd: command.cwd.clone().unwrap_or_else(|| process.cwd().clone()),
            filter: fs::read(command.places.filter()).step("read the seccomp filter")?,
            process,
        })
    }
}

/// Init's resource limits and oom score, while we may still raise our own.
fn take_limits(init: i32) -> Result<(), Failure> {
    // As a file, because prlimit(2) tells them of another user's process to nobody without CAP_SYS_RESOURCE.
    let text = fs::read_to_string(format!("/proc/{init}/limits")).step("read init's limits")?;
    for (resource, (soft, hard)) in (0..RLIMITS).zip(limits(&text)?) {
        kernel::set_rlimit(resource, soft, hard).step("take init's limits")?;
    }
    let score = fs::read(format!("/proc/{init}/oom_score_adj")).step("take init's oom score")?;
    fs::write("/proc/self/oom_score_adj", score).step("take init's oom score")
}

/// Soft and hard limits from a process's `limits` file: a line for each kind, in the order of the kernel's numbers, in columns of
/// fixed width.
fn limits(text: &str) -> Result<Vec<(u64, u64)>, Failure> {
    let value = |line: &str, column: Range<usize>| match line.get(column).map(str::trim) {
        Some("unlimited") => Some(libc::RLIM_INFINITY),
        other => other.and_then(|digits| digits.parse().ok()),
    };
    let limits = text.lines().skip(1).map(|line| Some((value(line, 26..46)?, value(line, 47..67)?)));
    let limits: Option<Vec<_>> = limits.collect();
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel lists them in an unknown form");
    limits.filter(|limits| limits.len() == RLIMITS as usize).ok_or_else(malformed).step("read init's limits")
}

/// Joins every namespace of init's; the pid namespace is the next child's.
fn enter(init: OwnedFd) -> Result<(), Failure> {
    prctl::set_dumpable(false).step("become undumpable")?;
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(init, all).step("enter the namespaces")
}

/// Returns only what went wrong.
fn become_command(place: &Place, mut go: File, stdio: [OwnedFd; 3]) -> Failure {
    let mut may_go = [0];
    match go.read(&mut may_go) {
        Ok(1) => {}
        _ => return Failure::NotRunning,
    }
    let prepared = confine(place, &stdio).and_then(|()| {
        let name = place.command.first().map_or("", String::as_str);
        let program = resolve(name, variable(&place.env, "PATH"))?;
        Ok((program, c_strings(&place.command)?, c_strings(&place.env)?))
    });
    match prepared {
        Ok((program, args, env)) => execute(&program, &args, &env, &place.filter),
        Err(failure) => failure,
    }
}

/// The same steps, in the same order, as init went through.
fn confine(place: &Place, [stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<(), Failure> {
    nix::unistd::dup2_stdin(stdin).step("take the input")?;
    nix::unistd::dup2_stdout(stdout).step("take the output")?;
    nix::unistd::dup2_stderr(stderr).step("take the output")?;
    setsid().step("make a session")?;
    let user = place.process.user();
    umask(Mode::from_bits_truncate(user.umask().unwrap_or(0o022)));
    kernel::close_on_exec_from_three().step("close the descriptors")?;

    // The user may be barred from where root can go, and the other way round on odd filesystems: try as both.
    let entered = chdir(&place.cwd);
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).step("set the groups")?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    prctl::set_keepcaps(true).step("keep the capabilities")?;
    setresgid(gid, gid, gid).step("set the group")?;
    setresuid(uid, uid, uid).step("set the user")?;
    prctl::set_keepcaps(false).step("keep the capabilities")?;
    if entered.is_err() {
        chdir(&place.cwd).step(&format!("enter the folder {}", place.cwd.display()))?;
    }
    // A folder outside the container has no path inside (it would be a leaked descriptor's).
    getcwd().step("check the working folder")?;
    drop_capabilities(&place.process)?;
    if place.process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().step("set no_new_privs")?;
    }
    // Changing the user has cleared it, if it was set before.
    prctl::set_pdeathsig(Signal::SIGKILL).step("tie the command to the helper")
}

fn drop_capabilities(process: &Process) -> Result<(), Failure> {
    let what = "set the capabilities";
    let set = |wanted: &Option<Capabilities>| -> CapsHashSet {
        wanted.iter().flatten().map(|capability| to_cap(*capability)).collect()
    };
    let Some(wanted) = process.capabilities() else { return Ok(()) };
    // Keeping the capabilities over setresuid has kept the permitted ones only.
    let permitted = caps::read(None, CapSet::Permitted).step(what)?;
    caps::set(None, CapSet::Effective, &permitted).step(what)?;
    let bounding = set(wanted.bounding());
    for capability in caps::read(None, CapSet::Bounding).step(what)?.difference(&bounding) {
        caps::drop(None, CapSet::Bounding, *capability).step(what)?;
    }
    caps::set(None, CapSet::Effective, &set(wanted.effective())).step(what)?;
    caps::set(None, CapSet::Permitted, &set(wanted.permitted())).step(what)?;
    caps::set(None, CapSet::Inheritable, &set(wanted.inheritable())).step(what)?;
    caps::clear(None, CapSet::Ambient).step(what)?;
    for capability in set(wanted.ambient()) {
        caps::raise(None, CapSet::Ambient, capability).step(what)?;
    }
    Ok(())
}

fn to_cap(capability: libcontainer::oci_spec::runtime::Capability) -> caps::Capability {
    CapabilityExt::to_cap(&capability)
}

/// Waits until execve has closed the pipe, or for what went wrong before.
fn executed(mut outcome: File) -> Result<(), Failure> {
    if !kernel::readable_within(&outcome, EXECVE_WAIT_MS_MAX).step("wait for execve")? {
        return Err(Failure::Step { step: "wait for execve".to_owned(), message: "it took too long".to_owned() });
    }
    let mut line = Vec::new();
    Read::by_ref(&mut outcome).take(64 << 10).read_to_end(&mut line).step("read the command's report")?;
    if line.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice(&line).step("read the command's report")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{Resource, getrlimit};

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let own = limits(&fs::read_to_string("/proc/self/limits").unwrap()).unwrap();
        let found = [Resource::RLIMIT_CPU, Resource::RLIMIT_STACK, Resource::RLIMIT_NOFILE, Resource::RLIMIT_RTTIME];
        for resource in found {
            assert_eq!(own[resource as usize], getrlimit(resource).unwrap(), "{resource:?}");
        }
        assert!(limits("Limit  Soft Limit  Hard Limit  Units\n").is_err());
    }
}
