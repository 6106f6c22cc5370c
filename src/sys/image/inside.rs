//! Files inside a rootfs, reached safely by root.
//!
//! A rootfs belongs to somebody else: an image's author, or a tenant who may have put a symlink to `/etc/shadow` anywhere. So no
//! path into one is ever joined and opened; the kernel resolves it as if the rootfs were `/` (openat2(2),
//! `RESOLVE_IN_ROOT`), and what follows works on the descriptor of the folder and a single name, without following it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// openat2 answers EAGAIN when something was renamed meanwhile; so often it is asked again.
const RESOLVE_ATTEMPTS_MAX: usize = 32;
/// Mode of folders that are made on the way to a file.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o755);
/// Names that a file has while it is written begin so; nobody but us makes such ones.
const TEMPORARY_PREFIX: &str = ".tenantry-";

/// What a name stands for, itself and not what it links to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// A device, a socket, a fifo.
    Other,
}

/// An opened rootfs.
#[derive(Debug)]
pub struct Inside {
    root: OwnedFd,
}

impl Inside {
    /// Opens a rootfs; the path to it is trusted, what lies in it is not.
    ///
    /// # Errors
    /// It is not there, or no folder.
    pub fn open(rootfs: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self { root: nix::fcntl::open(rootfs, flags, Mode::empty())? })
    }

    /// The rootfs itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what a path leads to, following links inside the rootfs.
    fn resolve(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
        for _ in 0..RESOLVE_ATTEMPTS_MAX {
            match openat2(&self.root, path, how) {
                Err(Errno::EAGAIN) => {}
                opened => return Ok(opened?),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// It is not there, or something else is.
    pub fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    /// Opens a folder, making it and those above it where they are missing.
    ///
    /// # Errors
    /// Something on the way is no folder, or a link to nowhere.
    pub fn make_folders(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let mut folder = self.folder(Path::new(""))?;
        let mut so_far = PathBuf::new();
        for name in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            so_far.push(name);
            folder = match self.folder(&so_far) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    mkdirat(&folder, Path::new(name.as_os_str()), FOLDER_MODE)?;
                    self.folder(&so_far)?
                }
                opened => opened?,
            };
        }
        Ok(folder)
    }

    /// Opens the folder that a path's last name lies in, and gives that name.
    fn parent(&self, path: &Path, make: bool) -> io::Result<(OwnedFd, OsString)> {
        let name = path.file_name().ok_or(Errno::EINVAL)?.to_owned();
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((if make { self.make_folders(parent)? } else { self.folder(parent)? }, name))
    }

    /// What a path's last name stands for; `None` where nothing is.
    ///
    /// # Errors
    /// Something on the way is no folder.
    pub fn kind(&self, path: &Path) -> io::Result<Option<Kind>> {
        match self.parent(path, false) {
            Ok((parent, name)) => Ok(stat(&parent, &name)?.map(|stat| kind_of(&stat))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens a regular file to read, following links inside the rootfs; `None` where nothing is.
    ///
    /// # Errors
    /// It is no regular file, or cannot be opened.
    pub fn open_file(&self, path: &Path) -> io::Result<Option<File>> {
        // A fifo would let an opener without O_NONBLOCK wait for ever.
        let file = match self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => File::from(opened?),
        };
        if file.metadata()?.is_file() { Ok(Some(file)) } else { Err(io::Error::other("not a regular file")) }
    }

    /// Reads a file of at most `bytes_max`; `None` where nothing is.
    ///
    /// # Errors
    /// It is longer, no regular file, or cannot be read.
    pub fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("longer than {bytes_max} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Writes a file of root's whole, in one step: who reads sees the old one or the new one. Whatever was there under that name
    /// is replaced, a link too, which is not followed.
    ///
    /// # Errors
    /// The kernel's answer; the old file is then still there.
    pub fn write(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let (parent, name) = self.parent(path, true)?;
        let temporary = temporary_name();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&parent, temporary.as_os_str(), flags, Mode::from_bits_truncate(0o600))?);
        let mut replace = || {
            file.write_all(bytes)?;
            fchmod(&file, Mode::from_bits_truncate(mode & 0o7777))?;
            if stat(&parent, &name)?.is_some_and(|stat| kind_of(&stat) == Kind::Folder) {
                remove_tree(parent.as_fd(), &name)?;
            }
            Ok(renameat(&parent, temporary.as_os_str(), &parent, name.as_os_str())?)
        };
        replace().inspect_err(|_: &io::Error| {
            // The error that is already on its way says more than this one would.
            let _ = unlinkat(&parent, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
        })
    }

    /// Removes what a path's last name stands for, with everything in it; whether something was there.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn remove(&self, path: &Path) -> io::Result<bool> {
        match self.parent(path, false) {
            Ok((parent, name)) => remove_tree(parent.as_fd(), &name),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The names in a folder; empty where there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        match self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(folder) => names_in(folder.as_fd()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Writes one file into a rootfs, safely: `/etc/hosts`, `/etc/resolv.conf`, … See [`Inside::write`].
///
/// # Errors
/// The rootfs cannot be opened or the file cannot be written.
pub fn write_inside(rootfs: &Path, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    Inside::open(rootfs)?.write(path, bytes, mode)
}

fn temporary_name() -> OsString {
    format!("{TEMPORARY_PREFIX}{:016x}", rand::random::<u64>()).into()
}

/// What a name in an opened folder stands for.
pub(super) fn stat(folder: impl AsFd, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn kind_of(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Kind::Folder,
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

/// The names in an opened folder, read through the descriptor's own entry in /proc.
fn names_in(folder: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

/// Removes a name with everything below it; whether it was there.
///
/// Folders that are not empty are first moved up beside `name`, so that neither depth nor length of a path sets a bound,
/// nor a descriptor is held for each level.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => return Ok(true),
        Err(Errno::ENOENT) => return Ok(false),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    let mut folders = vec![name.to_owned()];
    while let Some(folder) = folders.pop() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(parent, folder.as_os_str(), flags, Mode::empty())?;
        for child in names_in(opened.as_fd())? {
            let is_folder = stat(&opened, &child)?.is_some_and(|stat| kind_of(&stat) == Kind::Folder);
            let how = if is_folder { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            match unlinkat(&opened, child.as_os_str(), how) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::ENOTEMPTY) => {
                    let moved = temporary_name();
                    renameat(&opened, child.as_os_str(), parent, moved.as_os_str())?;
                    folders.push(moved);
                }
                Err(error) => return Err(error.into()),
            }
        }
        unlinkat(parent, folder.as_os_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(true)
}

/// Whether a name may be handed to the kernel as a single name.
pub(super) fn is_plain_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A rootfs beside a folder that must not be touched.
    fn rootfs() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (rootfs, outside) = (folder.path().join("rootfs"), folder.path().join("outside"));
        fs::create_dir(&rootfs).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("victim"), "untouched").unwrap();
        (folder, rootfs, outside)
    }

    #[test]
    fn a_write_replaces_a_link_and_does_not_follow_it() {
        let (_guard, rootfs, outside) = rootfs();
        fs::create_dir(rootfs.join("etc")).unwrap();
        symlink(outside.join("victim"), rootfs.join("etc/hosts")).unwrap();
        write_inside(&rootfs, Path::new("/etc/hosts"), b"127.0.0.1 localhost\n", 0o644).unwrap();
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
        let meta = fs::symlink_metadata(rootfs.join("etc/hosts")).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(rootfs.join("etc")).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_link_in_the_middle_is_resolved_as_if_the_rootfs_were_the_root() {
        let (_guard, rootfs, outside) = rootfs();
        // `etc` leads to a host folder by an absolute link, and by `..`; inside, neither exists.
        for target in [outside.clone(), PathBuf::from("../outside"), PathBuf::from("../../../../../outside")] {
            let _ = fs::remove_file(rootfs.join("etc"));
            symlink(&target, rootfs.join("etc")).unwrap();
            let inside = Inside::open(&rootfs).unwrap();
            assert!(inside.write(Path::new("etc/victim"), b"owned", 0o600).is_err(), "{}", target.display());
            assert_eq!(inside.read(Path::new("etc/victim"), 100).unwrap(), None);
            assert!(!inside.remove(Path::new("etc/victim")).unwrap());
        }
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
        // A link that means something inside works.
        fs::remove_file(rootfs.join("etc")).unwrap();
        fs::create_dir_all(rootfs.join("usr/etc")).unwrap();
        symlink("/usr/etc", rootfs.join("etc")).unwrap();
        write_inside(&rootfs, Path::new("/etc/sub/file"), b"x", 0o600).unwrap();
        assert_eq!(fs::read_to_string(rootfs.join("usr/etc/sub/file")).unwrap(), "x");
    }

    #[test]
    fn reading_takes_no_fifo_and_no_long_file() {
        let (_guard, rootfs, _) = rootfs();
        nix::unistd::mkfifo(&rootfs.join("fifo"), Mode::S_IRUSR).unwrap();
        fs::write(rootfs.join("long"), [0; 101]).unwrap();
        let inside = Inside::open(&rootfs).unwrap();
        assert!(inside.read(Path::new("fifo"), 100).is_err());
        assert!(inside.read(Path::new("long"), 100).is_err());
        assert_eq!(inside.read(Path::new("long"), 101).unwrap().unwrap().len(), 101);
    }

    #[test]
    fn a_tree_too_deep_for_any_path_is_removed_and_links_in_it_are_not_followed() {
        let (_guard, rootfs, outside) = rootfs();
        let inside = Inside::open(&rootfs).unwrap();
        let name = "d".repeat(200);
        let mut at = inside.folder(Path::new("")).unwrap();
        for _ in 0..60 {
            mkdirat(&at, name.as_str(), FOLDER_MODE).unwrap();
            at = openat(&at, name.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        nix::unistd::symlinkat(&outside, &at, "link").unwrap();
        assert!(inside.remove(Path::new(&name)).unwrap());
        assert!(inside.names(Path::new("")).unwrap().is_empty());
        assert!(outside.join("victim").exists());
    }

    #[test]
    fn a_folder_in_the_place_of_a_file_gives_way() {
        let (_guard, rootfs, _) = rootfs();
        fs::create_dir_all(rootfs.join("etc/hostname/deep")).unwrap();
        write_inside(&rootfs, Path::new("etc/hostname"), b"acme\n", 0o644).unwrap();
        assert_eq!(fs::read_to_string(rootfs.join("etc/hostname")).unwrap(), "acme\n");
    }
}
