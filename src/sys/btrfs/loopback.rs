//! Opening the pool: the configured folder where it is on BTRFS, else a filesystem of its own in a sparse file beside it.
//!
//! ```text
//!   folder on BTRFS ──────────────► bound onto itself nosuid,nodev ─► Backing::Host
//!   folder elsewhere, no file ────► file, mkfs ─┐
//!   folder elsewhere, <pool>.img ───────────────┴► loop, mount ─────► Backing::Loop
//!   mounted by a daemon that died ──────────────────────────────────► adopted, whichever it is
//! ```
//!
//! The mount is nosuid and nodev in both cases, because a tenant's root owns files that on disk belong to uid 0: a setuid program it
//! leaves in its rootfs would otherwise make any user of the host root. Inside a container setuid bits mean nothing anyway
//! (no_new_privs). The loop device frees itself when the mount goes (autoclear), so a crash leaves at most the mount,
//! which the next daemon adopts; the file is made under another name and renamed, so a half-made one is never mounted.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::layout::{PRIVATE_MODE, PoolLayout, make_dir};
use super::mounts::{Mount, mount_at};
use super::pool::{BtrfsPool, fail, is_btrfs, open_dir, space_of};
use super::{PoolError, PoolSpace, ioctl};
use crate::domain::Bytes;

/// A smaller BTRFS does not work well (progs refuse below about 110 MB).
pub const LOOP_FILE_MIN: Bytes = Bytes::mib(256);
/// Other programs take loop devices too: how often the next free one is tried.
const LOOP_ATTEMPTS_MAX: usize = 16;
/// Loop devices looked at for one that has the file already.
const LOOP_DEVICES_MAX: usize = 4096;
/// An unmount is tried so often while somebody still has a file open, with this pause between.
const UNMOUNT_ATTEMPTS_MAX: usize = 50;
const UNMOUNT_PAUSE_MS: u64 = 20;
/// Options of the loop mount: no time of last reading, and freed blocks handed back to the file in the background.
const MOUNT_OPTIONS: &str = "discard=async";

/// What [`open_pool`] needs to know.
#[derive(Debug, Clone)]
pub struct PoolOptions {
    /// The pool's folder; absolute.
    pub path: PathBuf,
    /// Size of the loop file where one has to be made.
    pub size: Bytes,
    /// Label of a new filesystem: the instance's name.
    pub label: String,
}

/// What the pool lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A BTRFS filesystem of the host.
    Host,
    /// A file of our own.
    Loop {
        /// `<pool>.img`.
        file: PathBuf,
    },
}

/// A pool that is ready.
#[derive(Debug)]
pub struct OpenedPool {
    /// Its subvolumes.
    pub pool: BtrfsPool,
    /// Its paths.
    pub layout: PoolLayout,
    /// What it lies on.
    pub backing: Backing,
    /// Whether its filesystem was made just now.
    pub created: bool,
    /// Whether it was still mounted from an earlier daemon.
    pub adopted: bool,
    /// Whether the mount on its folder is ours to undo, and not the operator's.
    is_our_mount: bool,
}

/// Opens the pool, making and mounting what it needs.
///
/// # Errors
/// The step that failed, and on what. What this call mounted is unmounted again.
pub async fn open_pool(options: PoolOptions) -> Result<OpenedPool, PoolError> {
    let path = options.path.clone();
    let opened = tokio::task::spawn_blocking(move || open_blocking(&options)).await;
    opened.unwrap_or_else(|join| Err(fail("open the pool", &path, io::Error::other(join))))
}

impl OpenedPool {
    /// The block device under the pool, as `st_rdev` has it: BTRFS's own `st_dev` is no device that a disk rate can be set
    /// for. `None` where the mount's source is no device.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn device(&self) -> Result<Option<u64>, PoolError> {
        let root = self.layout.root();
        let mount = mount_at(root).map_err(|e| fail("look for the mount of", root, e))?;
        let source = mount.map(|mount| std::fs::metadata(&mount.source));
        Ok(source.and_then(Result::ok).map(|source| source.rdev()).filter(|device| *device != 0))
    }

    /// Unmounts the pool; its loop device frees itself. Not while a container runs.
    ///
    /// # Errors
    /// Somebody still uses it, or the kernel refused; it is then mounted as before.
    pub async fn close(self) -> Result<(), PoolError> {
        let path = self.layout.root().to_owned();
        let closed = tokio::task::spawn_blocking(move || self.close_blocking()).await;
        closed.unwrap_or_else(|join| Err(fail("unmount", &path, io::Error::other(join))))
    }

    /// As [`OpenedPool::close`], for a thread that may block.
    ///
    /// # Errors
    /// As [`OpenedPool::close`].
    pub fn close_blocking(self) -> Result<(), PoolError> {
        if self.is_our_mount { unmount(self.layout.root()) } else { Ok(()) }
    }
}

/// Bytes that have to be available before anything new is made in a pool: BTRFS needs room to delete, too, and the cleaner
/// stops in a filesystem that is full to the brim. Below it a create or a copy is answered with 507.
pub const POOL_HEADROOM: Bytes = Bytes::mib(256);

impl PoolSpace {
    /// Whether there is room to make something: [`POOL_HEADROOM`], or an eighth of a small pool.
    pub fn has_headroom(&self) -> bool {
        self.available >= POOL_HEADROOM.min(Bytes(self.total.0 / 8))
    }
}

pub(super) fn open_blocking(options: &PoolOptions) -> Result<OpenedPool, PoolError> {
    let path = options.path.as_path();
    make_parents(path).map_err(|e| fail("make the folder", path, e))?;
    let path = &path.canonicalize().map_err(|e| fail("find the folder", path, e))?;
    let mounted = mount_at(path).map_err(|e| fail("look for the mount of", path, e))?;
    let is_safe = mounted.is_some_and(|mount| mount.fs_type == "btrfs" && mount.no_suid && mount.no_dev);
    let on_btrfs = open_dir(path).and_then(|dir| is_btrfs(&dir)).map_err(|e| fail("look at", path, e))?;
    let mut created = false;
    if !is_safe && on_btrfs {
        bind_onto_itself(path)?;
    } else if !is_safe {
        created = mount_file(path, options)?;
    }
    finish(path, created, is_safe).inspect_err(|_| {
        if !is_safe {
            // The error that is already on its way says more than this one would.
            let _ = umount2(path, MntFlags::empty());
        }
    })
}

/// What follows once the filesystem is in place.
fn finish(path: &Path, created: bool, was_mounted: bool) -> Result<OpenedPool, PoolError> {
    make_dir(path, PRIVATE_MODE).map_err(|e| fail("change the mode of", path, e))?;
    let pool = BtrfsPool::open(path)?;
    let layout = PoolLayout::new(path);
    layout.make_pool_folders().map_err(|e| fail("make the folders of", path, e))?;
    let swept = pool.sweep_quota_groups()?;
    let mounted = mount_at(path).map_err(|e| fail("look for the mount of", path, e))?;
    let (backing, is_our_mount) = match mounted {
        Some(mount) if is_backed_by(&mount, &file_of(path))? => (Backing::Loop { file: file_of(path) }, true),
        Some(mount) => (Backing::Host, mount.is_self_bind),
        None => (Backing::Host, false),
    };
    let adopted = was_mounted && is_our_mount;
    tracing::info!(path = %path.display(), ?backing, created, adopted, swept, quota = ?pool.quota(), "pool opened");
    Ok(OpenedPool { pool, layout, backing, created, adopted, is_our_mount })
}

/// Missing parents are made for root alone; those that are there are not touched.
fn make_parents(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(PRIVATE_MODE).create(path)
}

/// `<pool>.img`, beside the folder.
pub(super) fn file_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".img");
    PathBuf::from(name)
}

/// A host's BTRFS becomes nosuid and nodev from here down, by a mount of our own: the operator's stays as it is.
fn bind_onto_itself(path: &Path) -> Result<(), PoolError> {
    let none = None::<&str>;
    mount(Some(path), path, none, MsFlags::MS_BIND, none).map_err(|e| fail("bind", path, e.into()))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(none, path, none, flags, none).map_err(|error| {
        let _ = umount2(path, MntFlags::empty());
        fail("remount nosuid,nodev", path, error.into())
    })
}

/// Mounts the file, made first where it is missing; whether it was.
fn mount_file(path: &Path, options: &PoolOptions) -> Result<bool, PoolError> {
    let file = file_of(path);
    let created = !file.exists();
    if created {
        make_filesystem(&file, options)?;
    }
    let backing = open_file(&file).map_err(|e| fail("open", &file, e))?;
    let held = backing.metadata().map_err(|e| fail("look at", &file, e))?.len();
    if held != options.size.0 {
        tracing::warn!(file = %file.display(), held = %Bytes(held), wanted = %options.size, "the pool keeps its size");
    }
    // The descriptor keeps the device from freeing itself until it is mounted.
    let (device, descriptor) = attach(&backing, &file)?;
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(&device), path, Some("btrfs"), flags, Some(MOUNT_OPTIONS))
        .map_err(|e| fail("mount the pool's file at", path, e.into()))?;
    drop(descriptor);
    Ok(created)
}

fn open_file(file: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(file)
}

/// Makes the sparse file and a filesystem in it, under another name until both are whole.
fn make_filesystem(file: &Path, options: &PoolOptions) -> Result<(), PoolError> {
    let mut size = options.size;
    if size < LOOP_FILE_MIN {
        tracing::warn!(wanted = %size, made = %LOOP_FILE_MIN, "a pool of that size is too small for BTRFS");
        size = LOOP_FILE_MIN;
    }
    let mut name = file.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let action = "make the pool's file";
    let making = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let making = making.map_err(|e| fail(action, &new, e))?;
    making.set_len(size.0).map_err(|e| fail(action, &new, e))?;
    let made = run_mkfs(&new, &options.label)
        .and_then(|()| making.sync_all())
        .and_then(|()| std::fs::rename(&new, file))
        .and_then(|()| file.parent().map_or(Ok(()), |parent| open_dir(parent)?.sync_all()));
    made.map_err(|e| {
        let _ = std::fs::remove_file(&new);
        fail("make the pool's filesystem in", &new, e)
    })
}

/// The tool's last words are kept to this many bytes.
const TOOL_WORDS_MAX: usize = 2048;

fn run_mkfs(file: &Path, label: &str) -> io::Result<()> {
    let mut command = std::process::Command::new("mkfs.btrfs");
    command.args(["-q", "-L", label]).arg(file).env("LC_ALL", "C").stdin(std::process::Stdio::null());
    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::new(e.kind(), "mkfs.btrfs is not installed (package btrfs-progs)"),
        _ => e,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(TOOL_WORDS_MAX)]).into_owned();
    Err(io::Error::other(format!("mkfs.btrfs {}: {}", output.status, words.trim())))
}

/// Backs a loop device with the file, or finds the one that has it already: two devices over one file would write past each other.
fn attach(backing: &File, file: &Path) -> Result<(PathBuf, File), PoolError> {
    if let Some(found) = attached(backing).map_err(|e| fail("look for the loop device of", file, e))? {
        return Ok(found);
    }
    let control_path = Path::new("/dev/loop-control");
    let control = open_file(control_path).map_err(|e| fail("open", control_path, e))?;
    let mut direct_io = true;
    for _ in 0..LOOP_ATTEMPTS_MAX {
        let number = ioctl::loop_free_number(control.as_fd()).map_err(|e| fail("find a loop device for", file, e))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_file(&path).map_err(|e| fail("open", &path, e))?;
        match ioctl::loop_configure(device.as_fd(), backing, direct_io) {
            Ok(()) => return Ok((path, device)),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            // The filesystem below may not do direct I/O.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && direct_io => direct_io = false,
            Err(error) => return Err(fail("attach a loop device to", file, error)),
        }
    }
    Err(fail("find a loop device for", file, io::Error::from_raw_os_error(libc::EBUSY)))
}

fn attached(backing: &File) -> io::Result<Option<(PathBuf, File)>> {
    let meta = backing.metadata()?;
    for entry in std::fs::read_dir("/sys/block")?.take(LOOP_DEVICES_MAX) {
        let name = entry?.file_name();
        let path = Path::new("/dev").join(&name);
        // The folder `loop` is there only while the device is backed.
        if !name.to_string_lossy().starts_with("loop") || !Path::new("/sys/block").join(&name).join("loop").exists() {
            continue;
        }
        let Ok(device) = open_file(&path) else { continue };
        if ioctl::loop_backing(device.as_fd())? == Some((meta.dev(), meta.ino())) {
            return Ok(Some((path, device)));
        }
    }
    Ok(None)
}

/// Whether what is mounted lies in `file`.
fn is_backed_by(mount: &Mount, file: &Path) -> Result<bool, PoolError> {
    let Ok(backing) = open_file(file) else { return Ok(false) };
    let device = attached(&backing).map_err(|e| fail("look for the loop device of", file, e))?;
    Ok(device.is_some_and(|(device, _)| Path::new(&mount.source) == device))
}

pub(super) fn unmount(path: &Path) -> Result<(), PoolError> {
    for attempt in 1.. {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => break,
            // A file that was just closed, a scan of the host's: it passes.
            Err(nix::Error::EBUSY) if attempt < UNMOUNT_ATTEMPTS_MAX => {
                std::thread::sleep(Duration::from_millis(UNMOUNT_PAUSE_MS));
            }
            Err(error) => return Err(fail("unmount", path, error.into())),
        }
    }
    Ok(())
}

/// Room in the pool at `path`, without opening it.
///
/// # Errors
/// The folder cannot be looked at.
pub fn space_at(path: &Path) -> Result<PoolSpace, PoolError> {
    space_of(path)
}
