//! A daemon of the bench's own, and nothing left of it afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tenantry::sys::cgroup::{Layout, Version};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;

/// How long the daemon may take to be ready, and to end.
const READY_S_MAX: u64 = 20;
const END_S_MAX: u64 = 40;
const LOOK_MS: u64 = 10;
/// 65536 ids of each container's go up from here: not those of a daemon that this machine may have.
const UID_BASE: u32 = 1_600_000_000;

/// A network without anybody else, and mounts that go with the last process that sees them.
pub fn enter_namespaces() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "containers are made by root: sudo ./dev bench");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("cannot make namespaces")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot keep mounts private")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    ensure!(up.success(), "the loopback link does not come up");
    Ok(())
}

/// Waits until somebody wants the bench to end.
pub async fn interrupted() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        // Whichever comes first; both only wait.
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminated.recv() => Ok(()),
    }
}

/// What /run is on a machine in production, and not on every machine that this runs on.
fn mount_tmpfs(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tenantry-bench"), folder, Some("tmpfs"), flags, Some("mode=711"))
        .with_context(|| format!("cannot mount a tmpfs at {}", folder.display()))
}

/// A running daemon with its folders.
#[derive(Debug)]
pub struct Bed {
    instance: String,
    binary: PathBuf,
    daemon: Child,
    work: PathBuf,
    run_dir: PathBuf,
    token: String,
    cgroups: Layout,
}

impl Bed {
    /// With these scripts, each a name and a text; without any, none are run.
    pub async fn start(binary: &Path, log: Option<&Path>, scripts: &[(&str, &str)]) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("tenantry-bench.").tempdir()?.keep();
        fs::set_permissions(&work, PermissionsExt::from_mode(0o711))?;
        let instance = format!("b{}", hex::encode(rand::random::<[u8; 3]>()));
        let run_dir = Path::new("/run").join(&instance);
        mount_tmpfs(&run_dir)?;
        let config = work.join("tenantry.toml");
        let scripts_dir = work.join("scripts");
        fs::create_dir(&scripts_dir)?;
        for (name, text) in scripts {
            fs::write(scripts_dir.join(name), text)?;
        }
        let text = format!(
            "instance = {instance:?}\ndata_dir = {:?}\nrun_dir = {run_dir:?}\nscripts_dir = {scripts_dir:?}\n[exec]\nenabled = {}\n[pool]\nsize = \"4GiB\"\n[users]\nuid_base = {UID_BASE}\n",
            work.join("data"),
            !scripts.is_empty(),
        );
        fs::write(&config, text)?;
        let said = match log {
            Some(path) => Stdio::from(fs::File::create(path).with_context(|| path.display().to_string())?),
            None => Stdio::null(),
        };
        let mut command = Command::new(binary);
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        // Out of our process group: Ctrl-C is ours to pass on, when its containers are gone.
        let daemon = command.process_group(0).spawn().context("cannot start the daemon")?;
        let (binary, cgroups) = (binary.canonicalize()?, Layout::detect()?);
        let mut bed = Self { instance, binary, daemon, work, run_dir, token: String::new(), cgroups };
        bed.await_ready().await?;
        bed.token = fs::read_to_string(bed.data().join("admin.token"))?.trim().to_owned();
        Ok(bed)
    }

    async fn await_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        let http = reqwest::Client::builder().no_proxy().build()?;
        while began.elapsed() < Duration::from_secs(READY_S_MAX) {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("the daemon ended instead of serving: {status}; --log FILE keeps what it said");
            }
            if http.get("http://127.0.0.1:7070/readyz").send().await.is_ok_and(|answer| answer.status() == 200) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        bail!("the daemon is not ready after {READY_S_MAX} s")
    }

    pub fn client(&self) -> Result<Client> {
        Client::new(self.token.clone())
    }

    pub fn data(&self) -> PathBuf {
        self.work.join("data")
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    /// A running container's init.
    pub fn init_of(&self, container: &str) -> Result<u32> {
        let group = groups(&self.cgroups, &format!("/{}/{container}", self.instance)).into_iter().next();
        let group = group.with_context(|| format!("container {container} has no cgroup"))?;
        let processes = fs::read_to_string(group.join("cgroup.procs"))?;
        let first = processes.lines().filter_map(|line| line.parse().ok()).min();
        first.with_context(|| format!("container {container} has no process"))
    }

    /// A folder of the bench's own.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The daemon's program, which is the helper's, too.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Where the rivals' files go: in the pool, so that all rootfs lie on the same filesystem.
    pub fn rivals(&self) -> PathBuf {
        self.data().join("pool/bench")
    }

    pub fn cgroup_version(&self) -> &'static str {
        match self.cgroups.version() {
            Version::V1 => "v1",
            Version::V2 => "v2",
        }
    }

    /// The parent of the rivals' groups: beside the daemon's, which knows its own.
    pub fn rivals_group(&self) -> String {
        format!("/{}r", self.instance)
    }

    fn stop_daemon(&mut self) {
        let asked = i32::try_from(self.daemon.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        let began = Instant::now();
        while asked.is_ok() && began.elapsed() < Duration::from_secs(END_S_MAX) {
            match self.daemon.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(LOOK_MS)),
                _ => return,
            }
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Drop for Bed {
    /// Goes on past what it cannot do; what is left then is said.
    fn drop(&mut self) {
        self.stop_daemon();
        for parent in [format!("/{}", self.instance), self.rivals_group()] {
            groups(&self.cgroups, &parent).iter().for_each(|group| remove_group(group));
        }
        let pool = self.data().join("pool");
        let _ = fs::remove_dir_all(self.rivals());
        let _ = umount2(&pool, MntFlags::empty());
        let _ = umount2(&self.run_dir, MntFlags::MNT_DETACH);
        for folder in [&self.work, &self.run_dir] {
            if let Err(error) = fs::remove_dir_all(folder)
                && folder.exists()
            {
                eprintln!("bench: {} is left behind: {error}", folder.display());
            }
        }
    }
}

/// A group in each hierarchy where it is.
pub fn groups(layout: &Layout, path: &str) -> Vec<PathBuf> {
    let all = layout.hierarchies().iter().map(|one| one.mount.join(path.trim_start_matches('/')));
    all.filter(|folder| folder.exists()).collect()
}

/// Kills what is in a group and removes it, its children first.
pub fn remove_group(folder: &Path) {
    let children = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    children.filter(|path| path.is_dir()).for_each(|child| remove_group(&child));
    let began = Instant::now();
    while fs::remove_dir(folder).is_err() && folder.exists() && began.elapsed() < Duration::from_secs(END_S_MAX) {
        for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = pid.parse().map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
