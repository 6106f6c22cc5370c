//! The same bundle without the daemon: by runc, and by our helper alone.
//!
//! Both get the bundle that the daemon wrote for a copy, with a rootfs and a cgroup of their own. runc 1.1 knows no idmapped
//! mounts, so the files of its rootfs belong to the container's ids already: work that it is spared.

use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tenantry::domain::ContainerId;
use tenantry::sys::cgroup::{Cgroups, KernelCgroups, Layout};
use tenantry::sys::runtime::{HelperRuntime, Launch, Runtime, become_subreaper};

use crate::bed::{Bed, groups, remove_group};
use crate::report::{HELPER, RUNC, Report};

/// Of folders on the way to a rootfs: others pass, and see nothing.
const PASS_MODE: u32 = 0o711;

/// What both need.
#[derive(Debug)]
pub struct Rivals {
    folder: PathBuf,
    bundle: Value,
    first_id: u32,
    group: String,
    cgroups: Layout,
    runtime: HelperRuntime,
    moves: KernelCgroups,
}

impl Rivals {
    /// Takes a running container's bundle and a copy of its files.
    pub fn borrow(bed: &Bed, lender: &str) -> Result<Self> {
        become_subreaper().context("cannot become the reaper of containers")?;
        let path = bed.data().join("bundles").join(lender).join("config.json");
        let bundle: Value = serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)?;
        let first_id = bundle["linux"]["uidMappings"][0]["hostID"].as_u64().context("the bundle maps no ids")?;
        let first_id = u32::try_from(first_id)?;
        let folder = bed.rivals();
        let passable = |path: &Path| fs::DirBuilder::new().recursive(true).mode(PASS_MODE).create(path);
        // Unlike our helper, runc goes to its rootfs as the container's user, by way of folders that the daemon keeps to root.
        for way in [bed.data(), bed.data().join("pool")] {
            fs::set_permissions(&way, fs::Permissions::from_mode(PASS_MODE))
                .with_context(|| way.display().to_string())?;
        }
        passable(&folder)?;
        let rootfs = bed.data().join("pool/containers").join(lender).join("rootfs");
        for (name, owner) in [("runc", first_id), ("helper", 0)] {
            let home = folder.join(name);
            passable(&home.join("bundle"))?;
            tool("cp", &["-a", &rootfs.to_string_lossy(), &home.to_string_lossy()])?;
            tool("chown", &["-hR", &format!("{owner}:{owner}"), &home.join("rootfs").to_string_lossy()])?;
        }
        let runtime = HelperRuntime::with_helper(&bed.run_dir().join("bench"), bed.binary())?;
        let (group, cgroups) = (bed.rivals_group(), Layout::detect()?);
        let moves = KernelCgroups::with_layout(group.trim_start_matches('/').parse()?, cgroups.clone(), None);
        Ok(Self { folder, bundle, first_id, group, cgroups, runtime, moves })
    }

    pub async fn play(&self, report: &mut Report) -> Result<()> {
        self.runc(report)?;
        self.helper(report).await
    }

    /// The bundle, with what must be another one's.
    fn write_bundle(&self, home: &Path, group: &str) -> Result<PathBuf> {
        let mut bundle = self.bundle.clone();
        bundle["root"]["path"] = json!(home.join("rootfs"));
        bundle["linux"]["cgroupsPath"] = json!(group);
        let folder = home.join("bundle");
        fs::write(folder.join("config.json"), serde_json::to_vec(&bundle)?)?;
        Ok(folder)
    }

    fn runc(&self, report: &mut Report) -> Result<()> {
        let home = self.folder.join("runc");
        let id = ContainerId::generate().to_string();
        let bundle = self.write_bundle(&home, &format!("{}/{id}", self.group))?;
        let (root, bundle) = (home.join("state"), bundle);
        let (root, bundle) = (root.to_string_lossy(), bundle.to_string_lossy());
        let began = Instant::now();
        tool("runc", &["--root", &root, "create", "--bundle", &bundle, &id])?;
        tool("runc", &["--root", &root, "start", &id])?;
        report.took(RUNC, began.elapsed());
        let began = Instant::now();
        tool("runc", &["--root", &root, "delete", "--force", &id])?;
        report.took("runc: delete --force", began.elapsed());
        Ok(())
    }

    async fn helper(&self, report: &mut Report) -> Result<()> {
        let home = self.folder.join("helper");
        let id = ContainerId::generate();
        let group = format!("{}/{id}", self.group);
        let launch = Launch {
            id,
            bundle: self.write_bundle(&home, &group)?,
            rootfs: home.join("rootfs"),
            first_id: self.first_id,
            log: home.join("log"),
        };
        let began = Instant::now();
        // As a start of the daemon's does it.
        self.moves.expect_move();
        self.runtime.prepare(&launch).await?;
        self.runtime.create(id).await?;
        self.runtime.start(id).await?;
        report.took(HELPER, began.elapsed());
        let began = Instant::now();
        self.runtime.remove(id).await?;
        groups(&self.cgroups, &group).iter().for_each(|folder| remove_group(folder));
        report.took("helper alone: remove", began.elapsed());
        Ok(())
    }
}

fn tool(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    // Not a pipe: runc's container keeps what it gets.
    let mut said = tempfile::tempfile()?;
    let status = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said.try_clone()?).status();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        let mut text = String::new();
        said.rewind().and_then(|()| said.read_to_string(&mut text))?;
        bail!("{program} {}: {status}: {}", args.join(" "), text.trim());
    }
    Ok(())
}
