//! The daemon as its users meet it: the binary under test, spoken to over HTTP.
//!
//! ```text
//!  the test's thread: a network namespace of its own, a runtime of one thread
//!    └─ tenantry serve ── API 127.0.0.1:7070, proxy 127.0.0.1:8080
//!         instance t1234567 │ /var/tmp/…/data (pool: a loop file) │ /run/t1234567 │ ids of its own
//! ```
//!
//! [`play`] makes all that, runs a test in it and takes it down, also when the test fails: the daemon first, then what containers
//! it left, then mounts and folders. What a daemon has on the machine is told by [`Daemon::objects`].

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, header};
use serde_json::{Value, json};
use tenantry::domain::slot::GATEWAY;

use super::container::{Folder, IDS, SUBNET, first_of_ids, hierarchies, remove_group};
use super::net::{NetLab, Netns, ip, nft};

/// Where the API listens: every daemon has a network of its own.
pub const API: &str = "http://127.0.0.1:7070";
/// Where the proxy listens.
pub const PROXY: &str = "127.0.0.1:8080";
/// How much slower an emulated machine is.
const VM_FACTOR: u32 = 20;
const IDS_PER_SLOT: u32 = 1 << 16;
/// What of the daemon's log is shown when a test failed.
const LOG_TAIL_BYTES: usize = 24 * 1024;

/// How long something that takes a moment may take on this machine.
pub fn patience(seconds: u32) -> Duration {
    Duration::from_secs(1) * seconds * if in_vm() { VM_FACTOR } else { 1 }
}

/// Whether this is the emulated machine.
pub fn in_vm() -> bool {
    std::env::var_os("TENANTRY_VM").is_some()
}

/// Runs a test against a daemon of its own.
pub fn play(test: impl AsyncFnOnce(&mut Daemon)) {
    play_with("", test);
}

/// As [`play`], with more in the configuration: TOML that begins with keys of the top level.
pub fn play_with(config: &str, test: impl AsyncFnOnce(&mut Daemon)) {
    play_in_lab(config, async |daemon, _lab| test(daemon).await);
}

/// As [`play_with`], for a test that also plays the internet.
pub fn play_in_lab(config: &str, test: impl AsyncFnOnce(&mut Daemon, &NetLab)) {
    let lab = NetLab::enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut daemon = Daemon::start(config).await;
        test(&mut daemon, &lab).await;
        daemon.end();
    });
}

/// An answer of the API or of a tenant.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: header::HeaderMap,
    pub text: String,
    /// The body where it is JSON, else null.
    pub json: Value,
}

impl Reply {
    /// What was asked for, which must have been answered with this status.
    #[track_caller]
    pub fn data(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json["data"].clone()
    }

    /// Holds that it is this refusal, in the form that all have.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        let found = (self.status, self.json["error"].as_str().unwrap_or_default());
        assert_eq!(found, (status, code), "{}", self.text);
        assert_eq!(self.json["statusCode"], status, "{}", self.text);
        let request_id = self.headers["x-request-id"].to_str().unwrap();
        assert_eq!(self.json["request_id"], request_id, "{}", self.text);
        assert!(self.json["message"].as_str().is_some_and(|text| !text.is_empty()), "{}", self.text);
        assert!(self.json["retryable"].is_boolean(), "{}", self.text);
    }

    /// The field that a refusal names.
    pub fn field(&self) -> Option<&str> {
        self.json["data"]["field"].as_str()
    }
}

/// Speaks to the API with one token. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    token: String,
}

impl Client {
    pub fn with_token(&self, token: &str) -> Self {
        Self { http: self.http.clone(), token: token.to_owned() }
    }

    /// A request below `/api/v1`, with the token, to be completed by the caller.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{API}/api/v1{path}");
        let request = self.http.request(method, url);
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// GET of a path outside `/api/v1`, with the token.
    pub fn outside(&self, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.get(format!("{API}{path}"));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    pub async fn get(&self, path: &str) -> Reply {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        answer(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        answer(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Reply {
        answer(self.request(Method::PUT, path).json(&body)).await
    }

    /// A verb without a body: `start`, `stop`, `pause`, …
    pub async fn verb(&self, id: &str, verb: &str) -> Reply {
        answer(self.request(Method::POST, &format!("/containers/{id}/{verb}"))).await
    }

    /// A project of this alias; its id.
    pub async fn create_project(&self, alias: &str) -> String {
        id_of(&self.post("/projects/", json!({ "alias": alias })).await.data(201))
    }

    /// A template in a project, of the base image; the container.
    pub async fn create_template(&self, project: &str, name: &str) -> Value {
        let body = json!({ "name": name, "template": true });
        self.post(&format!("/projects/{project}/containers"), body).await.data(201)
    }

    /// A copy; the container.
    pub async fn copy(&self, source: &str, body: Value) -> Value {
        self.post(&format!("/containers/{source}/copy"), body).await.data(201)
    }

    pub async fn container(&self, id: &str) -> Value {
        self.get(&format!("/containers/{id}")).await.data(200)
    }

    /// Runs a command that must end well; its standard output.
    pub async fn exec(&self, id: &str, command: &[&str]) -> String {
        let done = self.post(&format!("/containers/{id}/exec"), json!({ "command": command })).await.data(200);
        assert_eq!(done["exit_code"], 0, "{command:?}: {done}");
        done["stdout"].as_str().unwrap().to_owned()
    }

    /// How many containers there are, those that go away too.
    pub async fn containers_total(&self) -> u64 {
        let list = self.get("/containers/?include_deleting=true&limit=1").await.data(200);
        list["pagination"]["total"].as_u64().unwrap()
    }

    /// A request to a tenant's URL, through the proxy, as a browser would make it. Names below `.localhost` are looked up by
    /// nobody here: the connection goes to the proxy, and the name into `Host`.
    pub fn open(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let rest = url.strip_prefix("http://").unwrap();
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        self.http.request(method, format!("http://{PROXY}/{path}")).header(header::HOST, host)
    }

    /// GET of a page of a tenant.
    pub async fn page(&self, container: &Value, path: &str) -> Reply {
        let url = container["url"].as_str().unwrap();
        answer(self.open(Method::GET, &format!("{url}{path}"))).await
    }

    /// POST of a text to a page of a tenant.
    pub async fn send_page(&self, container: &Value, path: &str, body: &str) -> Reply {
        let url = container["url"].as_str().unwrap();
        answer(self.open(Method::POST, &format!("{url}{path}")).body(body.to_owned())).await
    }
}

/// Sends a request and reads its whole answer.
pub async fn answer(request: reqwest::RequestBuilder) -> Reply {
    try_answer(request).await.unwrap()
}

/// As [`answer`], of a daemon that may be killed meanwhile.
pub async fn try_answer(request: reqwest::RequestBuilder) -> reqwest::Result<Reply> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = String::from_utf8_lossy(&response.bytes().await?).into_owned();
    let json = serde_json::from_str(&text).unwrap_or_default();
    Ok(Reply { status, headers, text, json })
}

/// A rule without the ports behind which the daemon answers on the gateway: the kernel chooses them, and each daemon has others.
fn without_doors(rule: &str) -> String {
    const DNS: &str = "53";
    let gateway = GATEWAY.to_string();
    if !rule.contains(&gateway) {
        return rule.to_owned();
    }
    let mut before = "";
    let words = rule.split(' ').map(|word| {
        let is_port = std::mem::replace(&mut before, word) == "dport" && word != DNS;
        match word.strip_prefix(&gateway) {
            _ if is_port => "PORT".to_owned(),
            Some(port) if port.starts_with(':') => format!("{gateway}:PORT"),
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The id in an answer.
pub fn id_of(object: &Value) -> String {
    object["id"].as_str().unwrap_or_else(|| panic!("no id in {object}")).to_owned()
}

/// A daemon, its folders and its log.
#[derive(Debug)]
pub struct Daemon {
    pub instance: String,
    pub uid_base: u32,
    /// Speaks with the admin's token.
    pub client: Client,
    folder: Folder,
    run_dir: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    async fn start(config: &str) -> Self {
        let number: u32 = rand::random();
        let instance = format!("t{:07x}", number & 0x0fff_ffff);
        let uid_base = first_of_ids();
        let folder = Folder::new_in("/var/tmp");
        let run_dir = Path::new("/run").join(&instance);
        let tables_at = if config.starts_with('[') { 0 } else { config.find("\n[").unwrap_or(config.len()) };
        let (top, tables) = config.split_at(tables_at);
        let net = if tables.contains("[net]") { String::new() } else { format!("[net]\nsubnet = '{SUBNET}'\n") };
        let pool = if tables.contains("[pool]") { "" } else { "[pool]\nsize = '2GiB'\n" };
        // Workers of scripts are processes and groups of the instance's: they run where a test is about them.
        let exec = if tables.contains("[exec]") { "" } else { "[exec]\nenabled = false\n" };
        let text = format!(
            "instance = '{instance}'\ndata_dir = '{}'\nrun_dir = '{}'\npolicies_dir = '{}'\nscripts_dir = '{}'\n{top}\n[users]\nuid_base = {uid_base}\n{pool}{net}{exec}{tables}\n",
            folder.path().join("data").display(),
            run_dir.display(),
            folder.path().join("policies").display(),
            folder.path().join("scripts").display(),
        );
        fs::write(folder.path().join("config.toml"), text).unwrap();
        // A connection of a daemon that was killed must not be taken for one to the next.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(patience(90)).build().unwrap();
        let client = Client { http, token: String::new() };
        let mut daemon = Self { instance, uid_base, client, folder, run_dir, child: None };
        daemon.restart().await;
        daemon
    }

    /// The daemon's own folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// A folder for what else a test needs; goes with the daemon.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a file into the scripts' folder, as an editor does.
    pub fn write_script(&self, name: &str, text: &str) {
        let path = self.scratch().join("scripts").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// A container's files, as they lie in the pool.
    pub fn rootfs(&self, id: &str) -> PathBuf {
        self.data_dir().join("pool/containers").join(id).join("rootfs")
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon does not run").id()
    }

    /// Starts a daemon where none runs, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.spawn();
        self.wait_ready().await;
        let token = fs::read_to_string(self.data_dir().join("admin.token")).unwrap();
        self.client.token = token.trim().to_owned();
    }

    /// Starts a daemon where none runs, and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenantry"));
        command.arg("serve").arg("--config").arg(self.folder.path().join("config.toml"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENANTRY_")) {
            command.env_remove(name);
        }
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).current_dir("/");
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until a spawned daemon is ready.
    pub async fn wait_ready(&mut self) {
        let deadline = Instant::now() + patience(30);
        loop {
            let child = self.child.as_mut().expect("the daemon was not spawned");
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                panic!("the daemon ended with {status}");
            }
            let asked = self.client.http.get(format!("{API}/readyz")).send().await;
            if asked.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(Instant::now() < deadline, "the daemon is not ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the daemon as a crash would; its containers run on.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the daemon does not run");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends the daemon by SIGTERM, as systemd would; its containers run on.
    pub fn stop(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon does not run");
        let status = terminate(child, patience(40)).expect("the daemon did not end");
        self.child = None;
        status
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the daemons of this test have said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Everything of this instance that is on the machine because of containers, one line each: cgroups, links, rules, mounts,
    /// folders, subvolumes (also those that the filesystem still drops), bundles, processes.
    pub fn objects(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for parent in self.cgroup_parents() {
            found.extend(folders(&parent).map(|dir| format!("cgroup {}", dir.display())));
        }
        let links = ip("-o link show");
        found.extend(links.lines().map(|line| format!("link {}", line.split([':', '@']).nth(1).unwrap_or_default())));
        found.extend(nft("-s list ruleset").lines().map(|line| format!("rule {}", without_doors(line.trim()))));
        for dir in ["pool/containers", "pool/images", "bundles", "uploads"].map(|dir| self.data_dir().join(dir)) {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        found.extend(container_files(&self.run_dir).into_iter().map(|path| format!("file {}", path.display())));
        found.extend(self.mounts().into_iter().map(|path| format!("mount {}", path.display())));
        found.extend(self.subvolumes());
        // How many an app has is its own affair: a server forks as it likes.
        found.extend(self.processes().into_iter().map(|(_, slot)| format!("processes of slot {slot}")));
        found
    }

    /// Waits until the objects are these: what is removed behind an answer's back has its time.
    #[track_caller]
    pub fn settles_to(&self, wanted: &BTreeSet<String>) {
        // BTRFS's cleaner may sleep through what it was told, for half a minute.
        let deadline = Instant::now() + patience(45);
        loop {
            let found = self.objects();
            if found == *wanted {
                return;
            }
            if Instant::now() > deadline {
                let more: Vec<_> = found.difference(wanted).collect();
                let less: Vec<_> = wanted.difference(&found).collect();
                panic!("left behind: {more:#?}\nmissing: {less:#?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The groups that all of this instance's groups lie in, one a hierarchy.
    pub fn cgroup_parents(&self) -> Vec<PathBuf> {
        hierarchies().into_iter().map(|root| root.join(&self.instance)).filter(|dir| dir.exists()).collect()
    }

    /// A file of a container's cgroup, such as `memory.max`, in whichever hierarchy it is.
    pub fn cgroup_file(&self, id: &str, name: &str) -> Option<String> {
        let read = |parent: PathBuf| fs::read_to_string(parent.join(id).join(name)).ok();
        self.cgroup_parents().into_iter().find_map(read).map(|text| text.trim().to_owned())
    }

    /// Living processes under ids of this instance's containers, each with its slot.
    pub fn processes(&self) -> Vec<(u32, u32)> {
        let ids = self.uid_base..self.uid_base + IDS;
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let slot = |pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            // A dead one waits for its reaper, which after a daemon's death is not ours.
            if status.lines().any(|line| line.starts_with("State:\tZ")) {
                return None;
            }
            let uid =
                status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
            uid.filter(|uid: &u32| ids.contains(uid)).map(|uid| (pid, (uid - self.uid_base) / IDS_PER_SLOT))
        };
        pids.filter_map(slot).collect()
    }

    /// The network namespace of a running container.
    pub fn netns(&self, container: &Value) -> Netns {
        let address: Ipv4Addr = container["ip"].as_str().unwrap().parse().unwrap();
        let slot = address.to_bits() & 0x1ff;
        // Ids alone do not tell: another run of these tests on the machine may use the same ones.
        let ours = |pid: &u32| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.contains(&self.instance)
        };
        let processes = self.processes();
        let found = processes.iter().find(|(pid, of)| *of == slot && ours(pid));
        Netns::of_process(found.expect("it has no process").0).unwrap()
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|path| path.starts_with(self.folder.path()) || path.starts_with(&self.run_dir)).collect()
    }

    fn subvolumes(&self) -> Vec<String> {
        let pool = self.data_dir().join("pool");
        let list = |flags: &[&str]| {
            let output = Command::new("btrfs").args(["subvolume", "list"]).args(flags).arg(&pool).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let path = |line: &str| line.rsplit(" path ").next().unwrap_or_default().to_owned();
        let mut found: Vec<_> = list(&[]).lines().map(|line| format!("subvolume {}", path(line))).collect();
        found.extend(list(&["-d"]).lines().map(|line| format!("deleted subvolume {line}")));
        found
    }

    /// Takes everything down and holds that a daemon that was asked to end did so.
    fn end(&mut self) {
        if self.child.is_some() {
            let status = self.stop();
            assert!(status.success(), "the daemon ended with {status}");
        }
    }

    fn clear(&mut self) {
        if let Some(mut child) = self.child.take()
            && terminate(&mut child, patience(10)).is_none()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
        // On v1 what is frozen in one hierarchy dies in none.
        for group in self.cgroup_parents().iter().flat_map(|parent| folders(parent)) {
            if group.join("freezer.state").exists() {
                let _ = fs::write(group.join("freezer.state"), "THAWED");
            }
        }
        for parent in self.cgroup_parents() {
            remove_tree(&parent);
        }
        let deadline = Instant::now() + patience(10);
        while !self.mounts().is_empty() && Instant::now() < deadline {
            for path in self.mounts().iter().rev() {
                let _ = umount2(path, MntFlags::MNT_DETACH);
            }
        }
        // Its loop device frees itself once the last process in the pool is gone.
        while is_loop_backed(self.folder.path()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(&self.run_dir);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let mut from = log.len().saturating_sub(LOG_TAIL_BYTES);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            let _ = writeln!(std::io::stderr(), "--- the log of {}:\n{}---", self.instance, &log[from..]);
        }
        self.clear();
    }
}

/// Asks a process to end and waits; `None` where it did not in that time.
fn terminate(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

fn folders(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir() && !path.is_symlink())
}

fn remove_tree(dir: &Path) {
    folders(dir).for_each(|child| remove_tree(&child));
    remove_group(dir);
}

/// Files and folders that bear a container's id, at most two folders deep.
fn container_files(dir: &Path) -> Vec<PathBuf> {
    let is_id = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.len() >= 24 && name.bytes().take(24).all(|b| b.is_ascii_hexdigit())
    };
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let top: Vec<PathBuf> = list(dir);
    let below: Vec<PathBuf> = top.iter().flat_map(|path| -> Vec<PathBuf> { list(path) }).collect();
    top.into_iter().chain(below).filter(is_id).collect()
}

fn is_loop_backed(folder: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let mut files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.any(|file| Path::new(file.trim()).starts_with(folder))
}
