//! What can be wrong with an image.

use std::io;
use std::path::PathBuf;

use super::tarball::TarError;
use crate::domain::image::UserError;

/// Why a member is not unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A path or hard link target with `..`.
    #[error("its path leads out of the rootfs by `..`")]
    DotDot,
    /// See the constants of [`super`].
    #[error("its path is longer than 4095 bytes, or one name in it than 255")]
    PathTooLong,
    /// A NUL byte in a path.
    #[error("its path holds a NUL byte")]
    NulByte,
    /// The rootfs itself is a folder.
    #[error("it would replace the rootfs itself")]
    Root,
    /// Above 65535, or on the host's side of a user namespace.
    #[error("its owner is above 65535, which a container's user namespace does not map")]
    Owner,
    /// The target of a hard link is missing or a folder.
    #[error("it is a hard link to something that is not there, or not a file")]
    HardLinkTarget,
    /// `.wh.`, `.wh..`, `.wh...`.
    #[error("it is a whiteout of no name")]
    Whiteout,
    /// A link's target that is empty or too long.
    #[error("its link target is empty, too long, or holds a NUL byte")]
    LinkTarget,
}

/// An image that cannot be imported. Every variant names the member, blob or document it speaks of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file of the host could not be handled.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The stream itself: truncated, corrupt, wrong checksum.
    #[error("the archive is damaged or cut off near `{member}` in {blob}")]
    Damaged {
        /// The layer's digest or the file's name.
        blob: String,
        /// The last member that was read.
        member: String,
        /// What the reader said.
        #[source]
        source: TarError,
    },
    /// A member that may not be unpacked.
    #[error("`{member}` is refused: {refusal}")]
    Refused {
        /// The member's path.
        member: String,
        /// Why.
        refusal: Refusal,
    },
    /// The kernel refused a member.
    #[error("cannot {action} `{member}`")]
    Member {
        /// What was tried.
        action: &'static str,
        /// The member's path.
        member: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A bound was passed.
    #[error("`{member}`: {what} of more than {max} is not taken")]
    TooLarge {
        /// "a total size", "a number of members", …
        what: &'static str,
        /// Where it happened.
        member: String,
        /// The bound.
        max: u64,
    },
    /// The pool has no room for it.
    #[error("the pool is full: no room for `{member}`")]
    Full {
        /// The member's path.
        member: String,
    },
    /// A blob is not what its digest says.
    #[error("blob {expected} is corrupt: its bytes have the digest {found}")]
    Digest {
        /// As the manifest has it.
        expected: String,
        /// As computed.
        found: String,
    },
    /// A blob is not as long as its descriptor says.
    #[error("blob {blob} has {found} bytes where its descriptor says {expected}")]
    Size {
        /// The blob's digest.
        blob: String,
        /// As the manifest has it.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// A document is no JSON of its kind.
    #[error("{document} cannot be understood")]
    Json {
        /// `index.json`, a digest, …
        document: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A document says something that cannot be.
    #[error("{document}: {problem}")]
    Document {
        /// `index.json`, a digest, …
        document: String,
        /// What.
        problem: String,
    },
    /// Named by a document and not in the archive.
    #[error("the archive does not hold `{0}`")]
    Missing(String),
    /// A format that is not read.
    #[error("{0}")]
    Unsupported(String),
    /// There is no image for this machine.
    #[error("the image is for {found}, and this machine is {wanted}")]
    Platform {
        /// This machine's.
        wanted: String,
        /// The image's.
        found: String,
    },
    /// The image's user.
    #[error("the image's config names a user that cannot be used")]
    User(#[source] UserError),
}

/// A member's name for people: escaped and of bounded length.
pub(super) fn shown(path: &[u8]) -> String {
    /// Characters of a name in a message.
    const SHOWN_CHARS_MAX: usize = 256;
    String::from_utf8_lossy(path).escape_debug().take(SHOWN_CHARS_MAX).collect()
}

/// The error of a file of the host.
pub(super) fn io_error(action: &'static str, path: &std::path::Path, source: io::Error) -> ImageError {
    ImageError::Io { action, path: path.to_owned(), source }
}

/// The error of a member that the kernel refused; a full pool is told apart.
pub(super) fn member_error(action: &'static str, member: &[u8], source: io::Error) -> ImageError {
    let member = shown(member);
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ImageError::Full { member },
        _ => ImageError::Member { action, member, source },
    }
}
