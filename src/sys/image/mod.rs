//! Images: from an archive that nobody vouches for to a rootfs in a fresh subvolume.
//!
//! ```text
//!   file or folder ─► source: what is it, where are its blobs ─► oci: manifest, config ─► layer: each in order ─► rootfs
//! ```
//!
//! The daemon unpacks as root, so the archive is taken for an attack: every path is resolved by the kernel inside the rootfs
//! ([`Inside`]), every digest and size is checked, everything is bounded by [`ImageLimits`] and the constants here.
//!
//! What is kept: files, folders, hard and symbolic links, fifos, sparse files; numeric owners 0–65535; modes with setuid, setgid and
//! sticky bits; times of files; the xattrs `user.*` and `security.capability`. Left out with a warning: device nodes (a container
//! gets its own `/dev`) and other xattrs. Refused: `..` in a path, other owners, other kinds of members. An absolute path or link target
//! means one inside the rootfs, as every container tool has it. After an error the caller deletes the subvolume.

mod base;
mod error;
mod identity;
mod inside;
mod layer;
mod names;
mod oci;
mod source;
mod stream;
mod tarball;
#[cfg(test)]
mod tests;
mod unpack;

use crate::domain::{Bytes, ImageConfig};

pub use base::{BASE_IMAGE, base_digest, build_base, find_busybox};
pub use error::{ImageError, Refusal};
pub use identity::reset_identity;
pub use inside::{Inside, Kind, write_inside};
pub use names::write_names;
pub use unpack::unpack;

/// Bytes of a manifest, an index or a config.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Indexes within indexes.
pub const INDEX_DEPTH_MAX: usize = 4;
/// Members of an archive that holds blobs; a rootfs has as many as [`ImageLimits::entries`].
pub const ARCHIVE_MEMBERS_MAX: usize = 10_000;
/// Bytes of a path inside the rootfs (`PATH_MAX` less its NUL byte), and of one name in it (`NAME_MAX`).
pub const PATH_BYTES_MAX: usize = 4095;
/// See [`PATH_BYTES_MAX`].
pub const NAME_BYTES_MAX: usize = 255;
/// Warnings kept; what comes after is only counted.
pub const WARNINGS_MAX: usize = 100;

/// Bounds of one import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Bytes of all files of all layers together, as unpacked.
    pub unpacked: Bytes,
    /// Members of all layers together.
    pub entries: u64,
    /// Layers.
    pub layers: usize,
}

impl ImageLimits {
    /// Bytes of a stream once unpacked, headers and padding counted in: what a bomb of empty headers runs into.
    fn stream(&self) -> u64 {
        /// A header, its padding, and a long name or PAX header of usual length.
        const HEADER_BYTES: u64 = 4096;
        self.unpacked.0.saturating_add(self.entries.saturating_mul(HEADER_BYTES)).saturating_add(DOCUMENT_BYTES_MAX)
    }
}

impl Default for ImageLimits {
    /// 32 GiB, a million members, 128 layers (the usual union filesystems take no more than 127).
    fn default() -> Self {
        Self { unpacked: Bytes::gib(32), entries: 1_000_000, layers: 128 }
    }
}

/// Where an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Finding out what the archive is.
    Inspect,
    /// Unpacking a layer, counted from 1. A plain rootfs is one layer.
    Layer {
        /// This one.
        number: usize,
        /// Of so many.
        of: usize,
    },
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// The step.
    #[serde(flatten)]
    pub step: Step,
    /// Bytes read, as stored. Starts again from 0 after [`Step::Inspect`].
    pub read: u64,
    /// Of so many.
    pub total: u64,
}

/// An image that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// How to run it.
    pub config: ImageConfig,
    /// `sha256:` of the manifest; of the config for a docker archive; of the file for a plain rootfs.
    pub digest: String,
    /// Bytes of its files.
    pub size: Bytes,
    /// Its members, those that later layers replaced counted too.
    pub entries: u64,
    /// Its layers.
    pub layers: usize,
    /// What was left out.
    pub warnings: Vec<String>,
}
