//! The size of a running container's ramdisk, changed from outside.
//!
//! The tmpfs is found through `/proc/<init>/root` and changed by the descriptor of its mount (fspick, fsconfig): no process
//! enters the container. A tenant can neither take the mount away nor put a link in its place, for a folder that is mounted on is
//! busy; where nothing is mounted there, the kernel says so and the change is for the next start.
#![allow(unsafe_code)] // fspick and fsconfig have no wrapper in our dependencies.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::{Init, process};
use crate::domain::Bytes;
use crate::sys::oci::{RAMDISK_UNBOUND, ramdisk_inodes};

/// Where the ramdisk is inside.
pub const RAMDISK: &str = "/ramdisk";

/// Of linux/mount.h: close on exec, and no link in the last place.
const FSPICK_FLAGS: libc::c_uint = 0x1 | 0x2;
/// `FSCONFIG_SET_STRING` and `FSCONFIG_CMD_RECONFIGURE` of linux/mount.h.
const SET_STRING: libc::c_uint = 1;
const RECONFIGURE: libc::c_uint = 7;

/// What became of a wish for another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resized {
    /// It is in force.
    Done,
    /// The container was started without a ramdisk: it has one from its next start on.
    NotThere,
    /// More than that is in use; the old size stays.
    InUse,
}

/// Gives the ramdisk of a running container another size; `None`: bounded by the container's memory alone.
///
/// # Errors
/// The kernel's; what it holds afterwards is not what was wanted.
pub(super) fn resize(init: Init, size: Option<Bytes>) -> io::Result<Resized> {
    let path = format!("/proc/{}/root{RAMDISK}", init.pid);
    let Some(picked) = pick(&path)? else { return Ok(Resized::NotThere) };
    // The descriptor is held: whose it is can be asked now.
    if !process::is_alive(init) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // The kernel rounds up to whole pages.
    let bytes = size.unwrap_or(RAMDISK_UNBOUND);
    let (size, inodes) = (CString::new(bytes.0.to_string())?, CString::new(ramdisk_inodes(bytes).to_string())?);
    configure(&picked, SET_STRING, Some((c"size", &size)))?;
    configure(&picked, SET_STRING, Some((c"nr_inodes", &inodes)))?;
    match configure(&picked, RECONFIGURE, None) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Resized::InUse),
        done => done?,
    }
    let found = held(&path)?;
    if found.checked_sub(bytes.0).is_some_and(|more| more < page_size()) {
        return Ok(Resized::Done);
    }
    Err(io::Error::other(format!("the kernel holds {found} bytes where {} were set", bytes.0)))
}

/// A handle on the mount at a path; `None` where none is mounted there.
fn pick(path: &str) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(path)?;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_fspick, libc::AT_FDCWD, path.as_ptr(), FSPICK_FLAGS) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

fn configure(picked: &OwnedFd, command: libc::c_uint, pair: Option<(&std::ffi::CStr, &CString)>) -> io::Result<()> {
    let key = pair.map_or(std::ptr::null(), |(key, _)| key.as_ptr());
    let value = pair.map_or(std::ptr::null(), |(_, value)| value.as_ptr());
    // SAFETY: both texts are NUL-terminated and outlive the call, or are absent, as RECONFIGURE wants them.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, picked.as_raw_fd(), command, key, value, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The size that the tmpfs at a path has; 0 where it has none.
fn held(path: &str) -> io::Result<u64> {
    let folder = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
    let stat = fstatfs(&folder)?;
    if stat.filesystem_type() != TMPFS_MAGIC {
        return Err(io::Error::other("it is no tmpfs"));
    }
    Ok(stat.blocks().saturating_mul(u64::try_from(stat.block_size()).unwrap_or(0)))
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4_096)
}
