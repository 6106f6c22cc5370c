//! What was handed in, told by content: an OCI image layout (a folder, or a tar of one), a `docker save` archive, or a plain rootfs.
//!
//! An archive is scanned once for its members' places; blobs are then read from there. One that is compressed as a whole is
//! unpacked into a file without a name beside it first, for the same reason.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::{ImageError, io_error, shown};
use super::inside::Inside;
use super::oci::{Digest, parse};
use super::stream::{Hashed, MAGIC_BYTES, Packing, Told};
use super::tarball::{MemberKind, TarReader};
use super::{ARCHIVE_MEMBERS_MAX, DOCUMENT_BYTES_MAX, ImageLimits};

/// An archive or folder that was looked at.
#[derive(Debug)]
pub enum Source {
    /// Blobs by their digests.
    Layout(Store),
    /// Blobs by names in `manifest.json`.
    Docker(Store),
    /// A tar of the files themselves.
    Rootfs { file: File, packing: Packing, length: u64 },
}

/// Files by name.
#[derive(Debug)]
pub enum Store {
    Folder(Inside),
    Archive { file: File, members: HashMap<String, Place> },
}

/// Where a member of an archive lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Data {
        offset: u64,
        size: u64,
    },
    /// Old `docker save` links a layer it has twice.
    Link(String),
}

/// A stretch of a file, read without moving the file's own position.
#[derive(Debug)]
pub struct Stretch<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl<'a> Stretch<'a> {
    /// A file from its first byte to its last.
    pub fn whole(file: &'a File) -> Self {
        Self { file, at: 0, left: u64::MAX }
    }
}

impl Read for Stretch<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// What was handed in, in errors: where the daemon put an upload is nothing for its sender.
const ARCHIVE: &str = "the archive";

/// Looks at what was handed in. `tell` gets the bytes read so far and of how many.
pub fn open(path: &Path, limits: &ImageLimits, tell: &mut dyn FnMut(u64, u64)) -> Result<Source, ImageError> {
    let opening = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = opening.map_err(|e| io_error("open", path, e))?;
    let meta = file.metadata().map_err(|e| io_error("look at", path, e))?;
    if meta.is_dir() {
        let store = Store::Folder(Inside::open(path).map_err(|e| io_error("open", path, e))?);
        return match store.document("oci-layout") {
            Ok(_) => Ok(Source::Layout(store)),
            Err(_) => Err(ImageError::Unsupported(format!("{} holds no OCI image layout", path.display()))),
        };
    }
    if !meta.is_file() {
        return Err(ImageError::Unsupported(format!("{} is neither a file nor a folder", path.display())));
    }
    let mut first = [0; MAGIC_BYTES];
    let read = file.read_at(&mut first, 0).map_err(|e| io_error("read", path, e))?;
    let packing = Packing::of(&first[..read]);
    if let Packing::Other(name) = packing {
        return Err(ImageError::Unsupported(format!("{ARCHIVE} is packed with {name}: gzip and zstd are read")));
    }
    let length = meta.len();
    let members = scan(&file, packing, limits, &mut |read| tell(read, length))?;
    let has = |name: &str| matches!(members.get(name), Some(Place::Data { .. }));
    let (is_layout, is_docker) = (has("oci-layout") && has("index.json"), has("manifest.json"));
    if !is_layout && !is_docker {
        return Ok(Source::Rootfs { file, packing, length });
    }
    let file = if packing == Packing::None { file } else { unpacked(&file, packing, path, limits)? };
    let store = Store::Archive { file, members };
    Ok(if is_layout { Source::Layout(store) } else { Source::Docker(store) })
}

impl Store {
    /// Opens a blob: its stream and its length.
    pub fn open(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), ImageError> {
        let missing = || ImageError::Missing(shown(name.as_bytes()));
        match self {
            Self::Folder(folder) => {
                let file = folder.open_file(Path::new(name)).map_err(|e| io_error("open", Path::new(name), e))?;
                let file = file.ok_or_else(missing)?;
                let length = file.metadata().map_err(|e| io_error("look at", Path::new(name), e))?.len();
                Ok((Box::new(file), length))
            }
            Self::Archive { file, members } => {
                let mut place = members.get(name).ok_or_else(missing)?;
                if let Place::Link(target) = place {
                    // One hop: a link to a link is nothing that a tool writes.
                    place = members.get(target).ok_or_else(missing)?;
                }
                let Place::Data { offset, size } = place else { return Err(missing()) };
                Ok((Box::new(Stretch { file, at: *offset, left: *size }), *size))
            }
        }
    }

    /// Reads a document whole.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (stream, size) = self.open(name)?;
        if size > DOCUMENT_BYTES_MAX {
            let member = shown(name.as_bytes());
            return Err(ImageError::TooLarge { what: "a document's size", member, max: DOCUMENT_BYTES_MAX });
        }
        let mut bytes = Vec::new();
        let read = stream.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|e| io_error("read", Path::new(name), e))?;
        Ok(bytes)
    }

    /// Reads a document whose digest and size are known.
    pub fn blob<T: serde::de::DeserializeOwned>(&self, digest: &Digest, size: u64) -> Result<T, ImageError> {
        let bytes = self.document(&digest.path())?;
        if bytes.len() as u64 != size {
            return Err(ImageError::Size { blob: digest.to_string(), expected: size, found: bytes.len() as u64 });
        }
        let found = digest_of(&bytes);
        if found != digest.as_str() {
            return Err(ImageError::Digest { expected: digest.to_string(), found });
        }
        parse(digest.as_str(), &bytes)
    }
}

/// `sha256:` of bytes in memory.
pub fn digest_of(bytes: &[u8]) -> String {
    // Reading from memory does not fail.
    Hashed::new(bytes).finish().map(|(digest, _)| digest).unwrap_or_default()
}

/// Whether a file with something in it does not look like a tar: the magic of its first header (POSIX ustar) is not there.
fn is_nothing_known(file: &File) -> bool {
    const MAGIC: &[u8] = b"ustar";
    const MAGIC_AT: u64 = 257;
    let mut found = [0; MAGIC.len()];
    let has_magic = file.read_exact_at(&mut found, MAGIC_AT).is_ok() && found == MAGIC;
    !has_magic && file.metadata().is_ok_and(|meta| meta.len() > 0)
}

/// Places of the members at hand. A rootfs of any size is scanned too, but no more than [`ARCHIVE_MEMBERS_MAX`] are kept.
fn scan(
    file: &File,
    packing: Packing,
    limits: &ImageLimits,
    tell: &mut dyn FnMut(u64),
) -> Result<HashMap<String, Place>, ImageError> {
    let mut members = HashMap::new();
    let told = Told { inner: Stretch::whole(file), tell, read: 0 };
    let stream = packing.unpack(told).map_err(|e| io_error("unpack", Path::new(ARCHIVE), e))?;
    let mut tar = TarReader::new(stream);
    let (mut bytes, mut entries) = (0u64, 0u64);
    let mut last = Vec::new();
    loop {
        let next = match tar.next() {
            Err(_) if entries == 0 && matches!(packing, Packing::None) && is_nothing_known(file) => {
                let text = format!("{ARCHIVE} is no tar, nor one packed with gzip or zstd");
                return Err(ImageError::Unsupported(text));
            }
            next => {
                next.map_err(|source| ImageError::Damaged { blob: ARCHIVE.to_owned(), member: shown(&last), source })?
            }
        };
        let Some(member) = next else { return Ok(members) };
        (bytes, entries) = (bytes.saturating_add(member.stored), entries + 1);
        let over = |what, max| ImageError::TooLarge { what, member: shown(&member.path), max };
        // Blobs are smaller than what they unpack to, all but a few bytes.
        if bytes > limits.unpacked.0.saturating_add(DOCUMENT_BYTES_MAX) {
            return Err(over("a total size", limits.unpacked.0));
        }
        if entries > limits.entries {
            return Err(over("a number of members", limits.entries));
        }
        if tar.position() > limits.stream() {
            return Err(over("a size with its headers", limits.stream()));
        }
        let place = match member.kind {
            MemberKind::File if member.chunks.is_none() => {
                Some(Place::Data { offset: tar.position(), size: member.size })
            }
            MemberKind::Symlink | MemberKind::HardLink => link_place(&member.path, &member.link, member.kind),
            _ => None,
        };
        if let Some((name, place)) = plain_name(&member.path).zip(place)
            && members.len() < ARCHIVE_MEMBERS_MAX
        {
            members.insert(name, place);
        }
        last = member.path;
    }
}

/// A member's name without `./` in front.
fn plain_name(path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?;
    Some(text.strip_prefix("./").unwrap_or(text).to_owned())
}

/// Where a link of an archive leads, by its words alone: within the archive there is nothing else to follow.
fn link_place(path: &[u8], link: &[u8], kind: MemberKind) -> Option<Place> {
    let (path, link) = (plain_name(path)?, plain_name(link)?);
    let mut target = match kind {
        MemberKind::Symlink => PathBuf::from(&path).parent()?.to_owned(),
        _ => PathBuf::new(),
    };
    for part in Path::new(&link).components() {
        match part {
            std::path::Component::Normal(name) => target.push(name),
            std::path::Component::ParentDir => drop(target.pop()),
            _ => {}
        }
    }
    target.to_str().map(|target| Place::Link(target.to_owned()))
}

/// The whole archive without its compression, in a file that has no name and goes with its descriptor.
fn unpacked(file: &File, packing: Packing, path: &Path, limits: &ImageLimits) -> Result<File, ImageError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let making = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder);
    let mut whole = making.map_err(|e| io_error("make a temporary file in", folder, e))?;
    let copy_error = |e| io_error("unpack", Path::new(ARCHIVE), e);
    let stream = packing.unpack(Stretch::whole(file)).map_err(copy_error)?;
    // Scanned before, so this bound cuts nothing off but what lies behind the archive's end.
    io::copy(&mut stream.take(limits.stream().saturating_mul(2)), &mut whole).map_err(copy_error)?;
    whole.seek(SeekFrom::Start(0)).map_err(copy_error)?;
    Ok(whole)
}
