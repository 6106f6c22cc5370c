//! The user namespace of a container and the network namespace it owns.
//!
//! Both are made by a short-lived child and handed on as open descriptors; nothing is pinned by a mount, so nothing is
//! left when the helper is killed. The daemon finds them as `/proc/<helper>/fd/<n>`, libcontainer as
//! `/proc/self/fd/<n>` (its children inherit the descriptors), and when init runs they are init's.
//!
//! The network namespace must belong to the new user namespace: init could not mount /sys nor own its sockets
//! otherwise, and libcontainer would fail to enter a foreign one.
//!
//! The user namespace must belong to a user of its own. The kernel counts what users hold without a cgroup (inotify instances,
//! message queues, pending signals, namespaces) against the user inside and again against the owner of the namespace. Were all
//! owned by root, one container could use up what root may have, and no other, nor the host's own services, would get any.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use caps::CapSet;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_keepcaps, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setresgid, setresuid};

use super::kernel::{Fork, exit_child, fork};
use super::{Step, pipe};
use crate::domain::slot::IDS_PER_SLOT;
use crate::sys::runtime::wire::Failure;

/// The two namespaces, alive as long as this is.
#[derive(Debug)]
pub struct Namespaces {
    pub user: OwnedFd,
    pub net: OwnedFd,
}

impl Namespaces {
    /// Makes both; the ids inside are `first_id` and up on the host.
    pub fn make(first_id: u32) -> Result<Self, Failure> {
        let (mut ready, ready_child) = pipe().map(|(r, w)| (File::from(r), File::from(w))).step("make a pipe")?;
        let (hold_child, hold) = pipe().map(|(r, w)| (File::from(r), w)).step("make a pipe")?;
        let child = match fork().step("fork")? {
            Fork::Child => {
                drop((ready, hold));
                exit_child(hold_new_namespaces(first_id, ready_child, hold_child))
            }
            Fork::Parent(child) => child,
        };
        drop((ready_child, hold_child));
        let made = adopt(child, &mut ready, first_id);
        drop(hold);
        waitpid(child, None).step("end the child that made the namespaces")?;
        made
    }
}

/// The child's whole life: make the namespaces, say so, wait until they are held.
fn hold_new_namespaces(owner: u32, mut ready: File, mut hold: File) -> i32 {
    let errno = new_namespaces(owner).err().map_or(0, |errno| errno as i32);
    let said = ready.write_all(&errno.to_ne_bytes());
    let waited = hold.read(&mut [0]);
    i32::from(said.is_err() || waited.is_err())
}

/// Makes the namespaces as the container's own root is known outside, and so owned by it. That gives it nothing: only a process
/// that is outside of the namespace has power over it by owning it.
fn new_namespaces(owner: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    set_keepcaps(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // A host may forbid user namespaces to all but CAP_SYS_ADMIN.
    let regained = caps::read(None, CapSet::Permitted).and_then(|kept| caps::set(None, CapSet::Effective, &kept));
    regained.map_err(|_| Errno::EPERM)?;
    // Changing the user has cleared it.
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
}

fn adopt(child: Pid, ready: &mut File, first_id: u32) -> Result<Namespaces, Failure> {
    let mut errno = [0; 4];
    ready.read_exact(&mut errno).step("make the namespaces")?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => Err(io::Error::from_raw_os_error(errno)).step("make the namespaces")?,
    }
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{child}/{map}"), format!("0 {first_id} {IDS_PER_SLOT}\n")).step("map the ids")?;
    }
    let open = |name| File::open(format!("/proc/{child}/ns/{name}")).map(OwnedFd::from);
    Ok(Namespaces {
        user: open("user").step("open the user namespace")?,
        net: open("net").step("open the network namespace")?,
    })
}

/// Where another process finds a descriptor of ours.
pub fn path_for_others(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
}

/// Where we and our children find it.
pub fn path_for_ourselves(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
