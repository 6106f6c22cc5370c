//! One layer's members, written into the rootfs.
//!
//! Whiteouts (OCI image spec, "Layer Filesystem Changeset"): `.wh.<name>` hides `<name>` of the layers below, `.wh..wh..opq`
//! everything in its folder; neither touches what its own layer brings, in whatever order the members come. What a layer brought
//! is remembered as hashes of its paths, 8 bytes each.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use xattr::FileExt as _;

use super::error::{ImageError, Refusal, member_error, shown};
use super::inside::{Inside, Kind, is_plain_name, kind_of, remove_tree, stat};
use super::tarball::{Member, MemberKind, TarError, TarReader};
use super::{ImageLimits, NAME_BYTES_MAX, PATH_BYTES_MAX, WARNINGS_MAX};
use crate::domain::image::ID_MAX;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that begin so are bookkeeping of an old union filesystem, and no files.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 16;

/// Unpacks layers into one rootfs, counting across all of them.
#[derive(Debug)]
pub struct Unpacker<'a> {
    inside: &'a Inside,
    limits: &'a ImageLimits,
    /// Bytes of data written.
    pub bytes: u64,
    /// Members seen.
    pub entries: u64,
    /// What was left out.
    pub warnings: Vec<String>,
    warnings_more: u64,
    brought: HashSet<u64>,
    hasher: RandomState,
    buffer: Vec<u8>,
}

/// Owner and mode of a member, checked.
#[derive(Debug, Clone, Copy)]
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: TimeSpec,
}

impl<'a> Unpacker<'a> {
    pub fn new(inside: &'a Inside, limits: &'a ImageLimits) -> Self {
        Self {
            inside,
            limits,
            bytes: 0,
            entries: 0,
            warnings: Vec::new(),
            warnings_more: 0,
            brought: HashSet::new(),
            hasher: RandomState::new(),
            buffer: vec![0; COPY_BYTES],
        }
    }

    /// Unpacks one layer; `blob` names it in errors. A plain rootfs has no whiteouts.
    pub fn apply<R: Read>(&mut self, tar: &mut TarReader<R>, blob: &str, whiteouts: bool) -> Result<(), ImageError> {
        self.brought.clear();
        let mut last = Vec::new();
        loop {
            let next = tar.next().map_err(|source| damaged(blob, &last, source))?;
            let Some(member) = next else { return Ok(()) };
            self.count(&member)?;
            self.count_stream(tar.position(), &member)?;
            self.take(tar, blob, &member, whiteouts)?;
            last = member.path;
        }
    }

    /// The warnings, and how many more there were.
    pub fn into_warnings(mut self) -> Vec<String> {
        if self.warnings_more > 0 {
            self.warnings.push(format!("and {} more warnings", self.warnings_more));
        }
        self.warnings
    }

    /// Holds the bounds by what a member claims, before anything of it is read.
    fn count(&mut self, member: &Member) -> Result<(), ImageError> {
        let over = |what, max| ImageError::TooLarge { what, member: shown(&member.path), max };
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(over("a number of members", self.limits.entries));
        }
        let max = self.limits.unpacked.0;
        // A sparse file takes less room than its size, but reading it back takes as long.
        self.bytes = self.bytes.saturating_add(member.size.max(member.stored));
        if self.bytes > max { Err(over("a total size", max)) } else { Ok(()) }
    }

    /// Headers are read before they can be counted; across them all this holds.
    fn count_stream(&self, position: u64, member: &Member) -> Result<(), ImageError> {
        let max = self.limits.stream();
        let over = || ImageError::TooLarge { what: "a size with its headers", member: shown(&member.path), max };
        if position > max { Err(over()) } else { Ok(()) }
    }

    fn warn(&mut self, text: String) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(text);
        } else {
            self.warnings_more += 1;
        }
    }

    fn take<R: Read>(
        &mut self,
        tar: &mut TarReader<R>,
        blob: &str,
        member: &Member,
        whiteouts: bool,
    ) -> Result<(), ImageError> {
        let refuse = |refusal| ImageError::Refused { member: shown(&member.path), refusal };
        let path = relative(&member.path).map_err(refuse)?;
        let attributes = attributes(member).map_err(refuse)?;
        let Some(name) = path.file_name() else { return self.take_root(member, attributes) };
        if whiteouts && name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&path, name).map_err(|problem| match problem {
                Ok(refusal) => refuse(refusal),
                Err(source) => member_error("apply the whiteout", &member.path, source),
            });
        }
        if member.kind == MemberKind::Device {
            self.warn(format!("`{}` was left out: it is a device node", shown(&member.path)));
            return Ok(());
        }
        self.remember(&path);
        let cannot = |action| move |source| member_error(action, &member.path, source);
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = self.inside.make_folders(parent).map_err(cannot("reach the folder of"))?;
        if member.kind == MemberKind::HardLink {
            return self.hard_link(member, &parent, name);
        }
        let stays = make_way(&parent, name, member.kind).map_err(cannot("replace"))?;
        match member.kind {
            MemberKind::Folder => {
                let folder = make_folder(&parent, name, stays, attributes).map_err(cannot("make the folder"))?;
                self.set_xattrs(&folder, member)
            }
            MemberKind::File => self.file(tar, blob, member, &parent, name, attributes),
            MemberKind::Symlink => {
                let target = link_target(&member.link).map_err(refuse)?;
                make_symlink(target, &parent, name, attributes).map_err(cannot("make the link"))
            }
            MemberKind::Fifo => make_fifo(&parent, name, attributes).map_err(cannot("make the fifo")),
            MemberKind::Device | MemberKind::HardLink => Ok(()),
        }
    }

    /// `./`: owner, mode and xattrs of the rootfs itself.
    fn take_root(&mut self, member: &Member, attributes: Attributes) -> Result<(), ImageError> {
        if member.kind != MemberKind::Folder {
            return Err(ImageError::Refused { member: shown(&member.path), refusal: Refusal::Root });
        }
        let own = || -> io::Result<File> {
            let root = self.inside.root().try_clone_to_owned()?;
            own(&root, attributes)?;
            Ok(File::from(root))
        };
        let root = own().map_err(|source| member_error("own", &member.path, source))?;
        self.set_xattrs(&root, member)
    }

    fn file<R: Read>(
        &mut self,
        tar: &mut TarReader<R>,
        blob: &str,
        member: &Member,
        parent: &OwnedFd,
        name: &OsStr,
        attributes: Attributes,
    ) -> Result<(), ImageError> {
        let cannot = |action| move |source| member_error(action, &member.path, source);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(parent, name, flags, Mode::from_bits_truncate(0o600));
        let mut file = File::from(opened.map_err(|e| cannot("make the file")(e.into()))?);
        let whole = [(0, member.stored)];
        for (offset, length) in member.chunks.as_deref().unwrap_or(&whole) {
            if member.chunks.is_some() {
                file.seek(SeekFrom::Start(*offset)).map_err(cannot("write"))?;
            }
            let mut left = *length;
            while left > 0 {
                let wanted = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
                let read = tar.read_data(&mut self.buffer[..wanted]);
                let read = read.map_err(|source| damaged(blob, &member.path, source))?;
                if read == 0 {
                    let early = TarError::Malformed("a member's data ends early");
                    return Err(damaged(blob, &member.path, early));
                }
                file.write_all(&self.buffer[..read]).map_err(cannot("write"))?;
                left -= read as u64;
            }
        }
        if member.chunks.is_some() {
            file.set_len(member.size).map_err(cannot("write"))?;
        }
        own(&file, attributes).map_err(cannot("own"))?;
        // Behind the change of owner, which would take `security.capability` away.
        self.set_xattrs(&file, member)?;
        futimens(&file, &attributes.mtime, &attributes.mtime).map_err(|e| cannot("set the time of")(e.into()))
    }

    fn hard_link(&mut self, member: &Member, parent: &OwnedFd, name: &OsStr) -> Result<(), ImageError> {
        let refuse = |refusal| ImageError::Refused { member: shown(&member.path), refusal };
        let cannot = |source| member_error("make the hard link", &member.path, source);
        let target = relative(&member.link).map_err(refuse)?;
        let target_name = target.file_name().ok_or_else(|| refuse(Refusal::HardLinkTarget))?;
        let folder = match self.inside.folder(target.parent().unwrap_or(Path::new(""))) {
            Ok(folder) => folder,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Err(refuse(Refusal::HardLinkTarget));
            }
            Err(error) => return Err(cannot(error)),
        };
        let found = stat(&folder, target_name).map_err(cannot)?;
        let found =
            found.filter(|found| kind_of(found) != Kind::Folder).ok_or_else(|| refuse(Refusal::HardLinkTarget))?;
        if let Some(present) = stat(parent, name).map_err(cannot)? {
            // A link of something to itself: removing the name first would lose both.
            if (present.st_dev, present.st_ino) == (found.st_dev, found.st_ino) {
                return Ok(());
            }
            remove_tree(parent.as_fd(), name).map_err(cannot)?;
        }
        linkat(&folder, target_name, parent, name, AtFlags::empty()).map_err(|e| match e {
            // What was removed to make way held the target.
            Errno::ENOENT => refuse(Refusal::HardLinkTarget),
            error => cannot(error.into()),
        })
    }

    fn set_xattrs(&mut self, file: &File, member: &Member) -> Result<(), ImageError> {
        for (name, value) in &member.xattrs {
            if !name.starts_with(b"user.") && name != b"security.capability" {
                let text = format!("xattr {} of `{}` was left out", shown(name), shown(&member.path));
                self.warn(text);
                continue;
            }
            file.set_xattr(OsStr::from_bytes(name), value)
                .map_err(|source| member_error("set an xattr of", &member.path, source))?;
        }
        Ok(())
    }

    /// Remembers that this layer brought a path, and by it the folders above.
    fn remember(&mut self, path: &Path) {
        for path in path.ancestors() {
            if !self.brought.insert(self.hasher.hash_one(path)) {
                break;
            }
        }
    }

    fn is_brought(&self, path: &Path) -> bool {
        self.brought.contains(&self.hasher.hash_one(path))
    }

    /// Hides what lower layers have.
    fn whiteout(&mut self, path: &Path, name: &OsStr) -> Result<(), Result<Refusal, io::Error>> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let bytes = name.as_bytes();
        if bytes == OPAQUE {
            return self.hide_folder(parent).map_err(Err);
        }
        if bytes.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(&bytes[WHITEOUT.len()..]);
        if !is_plain_name(hidden) {
            return Err(Ok(Refusal::Whiteout));
        }
        let hidden = parent.join(hidden);
        if !self.is_brought(&hidden) {
            return self.inside.remove(&hidden).map(drop).map_err(Err);
        }
        // The same layer brings it anew: only what lies below it from lower layers goes.
        self.hide_folder(&hidden).map_err(Err)
    }

    /// Removes everything in a folder that this layer did not bring.
    fn hide_folder(&mut self, folder: &Path) -> io::Result<()> {
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            if !folder.as_os_str().is_empty() && self.inside.kind(&folder)? != Some(Kind::Folder) {
                continue;
            }
            for name in self.inside.names(&folder)? {
                let path = folder.join(name);
                if self.is_brought(&path) {
                    folders.push(path);
                } else {
                    self.inside.remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

fn damaged(blob: &str, member: &[u8], source: TarError) -> ImageError {
    ImageError::Damaged { blob: blob.to_owned(), member: shown(member), source }
}

/// A member's path, relative to the rootfs; empty: the rootfs itself.
fn relative(path: &[u8]) -> Result<PathBuf, Refusal> {
    if path.contains(&0) {
        return Err(Refusal::NulByte);
    }
    let mut relative = PathBuf::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(Refusal::DotDot),
            _ if name.len() > NAME_BYTES_MAX => return Err(Refusal::PathTooLong),
            _ => relative.push(OsStr::from_bytes(name)),
        }
    }
    if relative.as_os_str().len() > PATH_BYTES_MAX { Err(Refusal::PathTooLong) } else { Ok(relative) }
}

/// A symlink's target is kept as it is: it is followed inside the container, or by [`Inside`], never by us otherwise.
fn link_target(target: &[u8]) -> Result<&OsStr, Refusal> {
    let fits = !target.is_empty() && target.len() <= PATH_BYTES_MAX && !target.contains(&0);
    if fits { Ok(OsStr::from_bytes(target)) } else { Err(Refusal::LinkTarget) }
}

fn attributes(member: &Member) -> Result<Attributes, Refusal> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id <= ID_MAX).ok_or(Refusal::Owner);
    Ok(Attributes {
        uid: Uid::from_raw(id(member.uid)?),
        gid: Gid::from_raw(id(member.gid)?),
        mode: Mode::from_bits_truncate(member.mode),
        mtime: TimeSpec::new(member.mtime.0, member.mtime.1),
    })
}

/// Owner first: changing it takes the setuid bit away.
fn own(file: &impl AsFd, attributes: Attributes) -> io::Result<()> {
    fchown(file.as_fd(), Some(attributes.uid), Some(attributes.gid))?;
    Ok(fchmod(file.as_fd(), attributes.mode)?)
}

/// Removes what is in a member's place, but a folder stays for a folder; whether one does.
fn make_way(parent: &OwnedFd, name: &OsStr, kind: MemberKind) -> io::Result<bool> {
    match stat(parent, name)? {
        None => Ok(false),
        Some(present) if kind == MemberKind::Folder && kind_of(&present) == Kind::Folder => Ok(true),
        Some(_) => remove_tree(parent.as_fd(), name).map(|_| false),
    }
}

fn make_folder(parent: &OwnedFd, name: &OsStr, stays: bool, attributes: Attributes) -> io::Result<File> {
    if !stays {
        mkdirat(parent, name, Mode::from_bits_truncate(0o700))?;
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    own(&folder, attributes)?;
    Ok(File::from(folder))
}

fn make_symlink(target: &OsStr, parent: &OwnedFd, name: &OsStr, attributes: Attributes) -> io::Result<()> {
    symlinkat(target, parent, name)?;
    fchownat(parent, name, Some(attributes.uid), Some(attributes.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(utimensat(parent, name, &attributes.mtime, &attributes.mtime, UtimensatFlags::NoFollowSymlink)?)
}

fn make_fifo(parent: &OwnedFd, name: &OsStr, attributes: Attributes) -> io::Result<()> {
    mknodat(parent, name, SFlag::S_IFIFO, Mode::from_bits_truncate(0o600), 0)?;
    fchownat(parent, name, Some(attributes.uid), Some(attributes.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    // Nobody else reaches this subvolume yet, so the name is still the fifo that was just made.
    Ok(fchmodat(parent, name, attributes.mode, FchmodatFlags::FollowSymlink)?)
}
