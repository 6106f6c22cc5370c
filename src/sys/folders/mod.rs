//! A container's files outside its rootfs, and the few inside that we write: folders, manifest, OCI bundle, log,
//! identity.
//!
//! The rootfs belongs to the tenant, who may have put a link anywhere in it: what we write there goes through
//! descriptors that never leave it.

mod access;
mod disk;
mod layout;
mod log;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::domain::{Bytes, ContainerId};

pub use access::ACCESS_LOG_BYTES_MAX;
pub use disk::{DiskFolders, LOG_DISK_MAX};
pub use layout::Layout;
pub use log::LOG_BYTES_MAX;

/// What makes a copy its own: written into a rootfs before its first start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The host name.
    pub hostname: String,
    /// Put into root's `authorized_keys`.
    pub ssh_public_key: Option<String>,
    /// Whether the rootfs is a copy of another container's, whose owner may have chosen its own name servers.
    pub is_copy: bool,
}

/// A part of a log. Places are counted from the first byte that was ever written to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogPart {
    /// Where the text begins.
    pub start: u64,
    /// The text.
    pub text: Vec<u8>,
    /// Where the log ends now.
    pub end: u64,
}

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// A file or folder could not be handled.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The OCI bundle cannot be rendered or written.
    #[error("the bundle cannot be made")]
    Bundle(#[source] Box<crate::sys::oci::OciError>),
    /// The subvolume of a container's log cannot be made.
    #[error("the log volume of container {0} cannot be made")]
    LogVolume(ContainerId, #[source] Box<crate::sys::btrfs::PoolError>),
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

/// The files of one instance's containers.
#[async_trait]
pub trait Folders: Send + Sync + std::fmt::Debug {
    /// Makes a container's folders in the pool; there may be some already.
    async fn make(&self, id: ContainerId) -> Result<(), FolderError>;
    /// Gives a fresh rootfs an identity of its own: host name, machine-id, no SSH host keys of its source.
    async fn personalise(&self, id: ContainerId, identity: &Identity) -> Result<(), FolderError>;
    /// Writes the record beside the data, atomically.
    async fn write_manifest(&self, id: ContainerId, json: &[u8]) -> Result<(), FolderError>;
    /// Whether the manifest is there: it is the last thing that is made of a rootfs.
    async fn has_manifest(&self, id: ContainerId) -> Result<bool, FolderError>;
    /// Writes the OCI bundle's `config.json`, atomically.
    async fn write_bundle(&self, id: ContainerId, spec: &crate::sys::oci::BundleSpec<'_>) -> Result<(), FolderError>;
    /// The end of the container's log, at most `max`.
    async fn log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError>;
    /// What was written to the log after a place, at most `max`: empty where that is all, and beginning later where what
    /// followed was cut off and is not kept.
    async fn log_after(&self, id: ContainerId, position: u64, max: Bytes) -> Result<LogPart, FolderError>;
    /// Cuts a log that has grown beyond its bound.
    async fn trim_log(&self, id: ContainerId) -> Result<(), FolderError>;
    /// Appends whole lines to containers' access logs, which are bounded; goes on past a container that has no folder.
    async fn append_access_logs(&self, logs: BTreeMap<ContainerId, Vec<u8>>) -> Result<(), FolderError>;
    /// The end of a container's access log, at most `max`.
    async fn access_log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError>;
    /// Removes manifest, logs, bundle and folders; the subvolumes must be gone. Idempotent.
    async fn remove(&self, id: ContainerId) -> Result<(), FolderError>;
    /// Containers that have a folder or a bundle.
    async fn list(&self) -> Result<Vec<ContainerId>, FolderError>;
}
