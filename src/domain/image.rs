//! Images: what a rootfs begins as.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::ImageId;
use super::quantity::Bytes;

/// What an image says about running it (the OCI image spec's `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments, or the command where there is no entrypoint.
    pub cmd: Vec<String>,
    /// `KEY=value` texts.
    pub env: Vec<String>,
    /// Who runs the command, resolved against the image's own `/etc/passwd` and `/etc/group`.
    pub user: ImageUser,
    /// Where the command starts; empty: `/`.
    pub working_dir: String,
    /// Ports such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
}

/// A user inside an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageUser {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Further groups inside.
    pub additional_gids: Vec<u32>,
}

/// An image's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// What containers name it by; unique.
    pub name: String,
    /// `sha256:` of what it was imported from.
    pub digest: String,
    /// How to run it.
    pub config: ImageConfig,
    /// Bytes of its files.
    pub size: Bytes,
    /// When it was imported.
    pub created_at: Timestamp,
}
