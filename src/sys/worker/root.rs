//! What a caged worker sees of the file system: the scripts folder, the API's socket, and what looking a name up wants.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::{Api, SCRIPTS_INSIDE, SOCKET_INSIDE, Setup};

/// A folder that every host has and nobody keeps scripts or sockets in: the new root lies over it, in a namespace of its own.
const OVER: &str = "/sys";
/// Size of the new root, which holds a few lines.
const ROOT_OPTIONS: &str = "size=256k,nr_inodes=32,mode=0555";
/// What is copied from the host's `/etc`, where it is there.
const COPIED: [&str; 2] = ["resolv.conf", "hosts"];
/// A file of those that is larger is cut, in bytes.
const COPIED_BYTES_MAX: usize = 64 * 1024;
/// Names are looked up in the hosts file first, as everywhere; without this glibc asks the name server first.
const NSSWITCH: &str = "hosts: files dns\n";

/// Makes the root and goes into it. The process must have a mount namespace of its own already.
pub(super) fn enter(setup: &Setup) -> io::Result<()> {
    let scripts = handle(&setup.scripts_dir)?;
    let socket = match &setup.api {
        // A daemon whose API did not come up yet has none; its scripts are told so when they call it.
        Api::Socket(path) => handle(path).ok(),
        Api::Nowhere | Api::Url(_) => None,
    };
    let etc = COPIED.map(|name| (name, read_some(&Path::new("/etc").join(name))));
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    // The handles are named by way of /proc, which the new root must therefore not cover.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), OVER, Some("tmpfs"), flags, Some(ROOT_OPTIONS))?;
    let inside = |path: &str| PathBuf::from(format!("{OVER}{path}"));
    fs::create_dir(inside("/etc"))?;
    fs::write(inside("/etc/nsswitch.conf"), NSSWITCH)?;
    for (name, text) in etc {
        fs::write(inside("/etc").join(name), text)?;
    }
    fs::create_dir(inside(SCRIPTS_INSIDE))?;
    bind(&scripts, &inside(SCRIPTS_INSIDE), flags | MsFlags::MS_RDONLY)?;
    if let Some(socket) = socket {
        File::create(inside(SOCKET_INSIDE))?;
        bind(&socket, &inside(SOCKET_INSIDE), flags)?;
    }
    mount(nothing, OVER, nothing, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, Some(ROOT_OPTIONS))?;
    chdir(OVER)?;
    // pivot_root(2): the old root comes to lie over the new one, and goes.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}

fn handle(path: &Path) -> io::Result<OwnedFd> {
    let opened = File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
    opened.map(OwnedFd::from).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

fn bind(what: &OwnedFd, to: &Path, flags: MsFlags) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", what.as_raw_fd());
    mount(Some(from.as_str()), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(mount(None::<&str>, to, None::<&str>, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, None::<&str>)?)
}

fn read_some(path: &Path) -> Vec<u8> {
    let mut text = fs::read(path).unwrap_or_default();
    text.truncate(COPIED_BYTES_MAX);
    text
}
