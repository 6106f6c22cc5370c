//! stub until the runtime branch is merged
use crate::domain::{Bytes, ContainerId, Limits};
use std::path::PathBuf;

/// What a container's `config.json` is made from.
#[derive(Debug, Clone)]
pub struct BundleSpec<'a> {
    pub id: ContainerId,
    pub hostname: String,
    pub args: Vec<String>,
    pub env: Vec<(String, crate::domain::Secret)>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub rootfs: PathBuf,
    pub cgroups_path: String,
    pub limits: &'a Limits,
    pub first_id: u32,
    pub ramdisk: Option<Bytes>,
}
