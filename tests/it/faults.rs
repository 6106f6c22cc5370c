//! Every step of a create and of a start fails once, on the real kernel: the verb answers an error, and nothing is left.
//!
//! The service runs in the test's own process, over the drivers that the daemon has; each is wrapped, so that the n-th call
//! that makes something fails, before its work or after. What is left is looked for in the kernel and on the disk, not asked of
//! the drivers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tenantry::config::Config;
use tenantry::daemon;
use tenantry::domain::policy::Policies;
use tenantry::domain::{Bytes, Container, ContainerId, Exit, Init, Phase, ProjectId, StopReason, Verb};
use tenantry::lifecycle::{Await, Drivers, Error, NewContainer, NewProject, Service, Until};
use tenantry::store::journal::RunJournal;
use tenantry::store::sled::SledStore;
use tenantry::store::{Records, Store};
use tenantry::sys::btrfs::{OpenedPool, Pool, PoolOptions, open_pool};
use tenantry::sys::cgroup::Cgroups;
use tenantry::sys::fake::{Faults, Faulty};
use tenantry::sys::folders::{Folders, Layout};
use tenantry::sys::gateway::Doors;
use tenantry::sys::netlink::Links;
use tenantry::sys::nft::Firewall;
use tenantry::sys::runtime::process::Stat;
use tenantry::sys::runtime::{
    Delivery, ExecOutcome, ExecRequest, HelperRuntime, Launch, Pins, Resized, Runtime, RuntimeError, become_subreaper,
};

use crate::support::container::{Folder, IDS, SUBNET, first_of_ids, hierarchies, remove_group};
use crate::support::net::{NetLab, ip, nft};

/// More calls than a create makes; the loops end at the first count that no call reaches.
const CALLS_MAX: u32 = 40;

const STARTED: Await = Await { until: Until::Started, timeout: Duration::from_secs(10) };

/// A moment of a start at which its helper waits for the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Prepared,
    Created,
}

/// A runtime whose helper is killed, by somebody else, before it is told to go on.
#[derive(Debug)]
struct Assassin {
    inner: HelperRuntime,
    at: Mutex<Option<Moment>>,
}

impl Assassin {
    fn strike(&self, now: Moment) {
        let at = *self.at.lock().unwrap();
        if at == Some(now) {
            let helpers = helpers();
            assert_eq!(helpers.len(), 1, "{helpers:?}");
            helpers.into_iter().for_each(kill_process);
        }
    }
}

#[async_trait]
impl Runtime for Assassin {
    async fn prepare(&self, launch: &Launch) -> Result<Pins, RuntimeError> {
        self.inner.prepare(launch).await
    }
    async fn create(&self, id: ContainerId) -> Result<Init, RuntimeError> {
        self.strike(Moment::Prepared);
        self.inner.create(id).await
    }
    async fn start(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.strike(Moment::Created);
        self.inner.start(id).await
    }
    async fn wait(&self, init: Init) -> Exit {
        self.inner.wait(init).await
    }
    async fn unread(&self, inits: Vec<Init>) -> Vec<(Init, Bytes)> {
        self.inner.unread(inits).await
    }
    fn is_alive(&self, init: Init) -> bool {
        self.inner.is_alive(init)
    }
    fn signal(&self, init: Init, signal: i32) -> Result<Delivery, RuntimeError> {
        self.inner.signal(init, signal)
    }
    async fn resize_ramdisk(&self, init: Init, size: Option<Bytes>) -> Result<Resized, RuntimeError> {
        self.inner.resize_ramdisk(init, size).await
    }
    async fn exec(&self, id: ContainerId, init: Init, request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        self.inner.exec(id, init, request).await
    }
    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.inner.remove(id).await
    }
    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        self.inner.list().await
    }
}

fn kill_process(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn own_network() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The runtime helpers at work that were started from this thread: they alone are in its network, until they have ended. A helper has
/// its name from when it is told what to do: spare ones are nobody's, and stay.
fn helpers_in(network: &Path) -> Vec<i32> {
    let me = std::process::id() as i32;
    let is_helper = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Stat::of(*pid).is_some_and(|stat| stat.parent == me && !stat.is_dead() && stat.comm == "tenantry-start")
            && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs == network)
            && command.split(|byte| *byte == 0).nth(1) == Some(b"runtime")
    };
    processes().filter(is_helper).collect()
}

/// A process and those it stems from.
fn family(pid: i32) -> String {
    let mut line = format!("process {pid}");
    let mut next = Stat::of(pid);
    while let Some(stat) = next {
        line = format!("{line} `{}` {} < {}", stat.comm, stat.state, stat.parent);
        next = Stat::of(stat.parent);
    }
    line
}

fn helpers() -> Vec<i32> {
    helpers_in(&own_network())
}

/// A service over the kernel.
struct Bed {
    service: Option<Service>,
    faults: Arc<Faults>,
    assassin: Arc<Assassin>,
    config: Config,
    layout: Layout,
    records: Records,
    pool: Option<OpenedPool>,
    project: ProjectId,
    _lab: NetLab,
    folder: Folder,
}

/// Runs a test over a service of its own.
fn play(test: impl AsyncFnOnce(&Bed)) {
    let lab = NetLab::enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bed = Bed::new(lab).await;
        test(&bed).await;
        bed.close().await;
    });
}

impl Bed {
    async fn new(lab: NetLab) -> Self {
        become_subreaper().unwrap();
        let folder = Folder::new_in("/var/tmp");
        let number: u32 = rand::random();
        let mut config = Config {
            instance: format!("f{:07x}", number & 0x0fff_ffff).parse().unwrap(),
            data_dir: folder.path().join("data"),
            run_dir: folder.path().join("run"),
            ..Config::default()
        };
        config.users.uid_base = first_of_ids();
        config.net.subnet = SUBNET.parse().unwrap();
        for dir in [&config.data_dir, &config.run_dir] {
            use std::os::unix::fs::DirBuilderExt;
            fs::DirBuilder::new().mode(0o711).create(dir).unwrap();
        }
        let options = PoolOptions { path: config.pool_path(), size: Bytes::gib(1), label: config.instance.to_string() };
        let pool = open_pool(options).await.unwrap();
        let layout = Layout { pool: pool.layout.clone(), data: config.data_dir.clone() };
        let helper = Path::new(env!("CARGO_BIN_EXE_tenantry"));
        let inner = HelperRuntime::with_helper(&config.run_dir, helper).unwrap();
        let assassin = Arc::new(Assassin { inner, at: Mutex::default() });
        let doors = Doors { dns: 5300, relay: 5301, keepalive: 5302 };
        let real = daemon::drivers(&config, &layout, &pool, doors, assassin.clone()).await.unwrap();
        let faults = Arc::<Faults>::default();
        let drivers = Drivers {
            pool: Faulty::<dyn Pool>::wrap(real.pool, &faults),
            folders: Faulty::<dyn Folders>::wrap(real.folders, &faults),
            cgroups: Faulty::<dyn Cgroups>::wrap(real.cgroups, &faults),
            links: Faulty::<dyn Links>::wrap(real.links, &faults),
            firewall: Faulty::<dyn Firewall>::wrap(real.firewall, &faults),
            runtime: Faulty::<dyn Runtime>::wrap(real.runtime, &faults),
        };
        drivers.links.prepare_host().await.unwrap();
        let store: Arc<dyn Store> = Arc::new(Arc::new(SledStore::open(&config.data_dir.join("db")).unwrap()));
        let records = Records::open(store).await.unwrap();
        let policies = Policies::shipped().unwrap();
        let service = Service::open(&config, layout.clone(), drivers, records.clone(), policies).await.unwrap();
        service.recover().await.unwrap();
        service.ensure_base_image(config.busybox.clone()).await.unwrap();
        let new = NewProject {
            alias: "acme".into(),
            color: None,
            containers_max: None,
            firewall_policy: None,
            limits: Default::default(),
            idle_timeout_s: None,
            idle_action: Default::default(),
        };
        let project = service.create_project(new).await.unwrap().id;
        let (service, pool) = (Some(service), Some(pool));
        Self { service, faults, assassin, config, layout, records, pool, project, _lab: lab, folder }
    }

    fn service(&self) -> &Service {
        self.service.as_ref().unwrap()
    }

    async fn create(&self, start: bool) -> Result<ContainerId, Error> {
        let new = NewContainer { start, name: Some("the-one".parse().unwrap()), ..Default::default() };
        self.service().create(self.project, new, STARTED).await.map(|made| made.container.id)
    }

    /// Waits for what follows the answer of a stop: the journal says when it is done.
    async fn comes_to_rest(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.open_entries().is_empty() {
            assert!(Instant::now() < deadline, "still at work: {:?}", self.open_entries());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// All that is there because of containers, a line each.
    async fn objects(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for parent in self.cgroup_parents() {
            found.extend(entries(parent).filter(|path| path.is_dir()).map(|path| format!("cgroup {}", path.display())));
        }
        found.extend(ip("-o link show").lines().map(|line| format!("link {}", line.split(": ").nth(1).unwrap())));
        found.extend(nft("-s list ruleset").lines().map(|line| format!("rule {}", line.trim())));
        let dirs = [self.layout.pool.containers(), self.layout.bundles(), self.config.run_dir.join("containers")];
        found.extend(dirs.into_iter().flat_map(entries).map(|path| format!("file {}", path.display())));
        found.extend(self.mounts().into_iter().map(|path| format!("mount {}", path.display())));
        found.extend(self.processes().into_iter().map(family));
        let records = self.records.all::<Container>().await.unwrap();
        found.extend(records.into_iter().map(|container| format!("record {}", container.id)));
        found.extend(self.service().containers().iter().map(|container| format!("in memory {}", container.id)));
        found.extend(self.open_entries().into_iter().map(|entry| format!("journal {entry}")));
        found
    }

    fn cgroup_parents(&self) -> Vec<PathBuf> {
        let parents = hierarchies().into_iter().map(|root| root.join(self.config.instance.as_str()));
        parents.filter(|dir| dir.exists()).collect()
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|path| path.starts_with(self.folder.path())).collect()
    }

    /// Helpers, and whatever has an id of this bed's containers.
    fn processes(&self) -> Vec<i32> {
        let ids = self.config.users.uid_base..self.config.users.uid_base + IDS;
        let has_id = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
            uid.and_then(|uid| uid.parse().ok()).is_some_and(|uid: u32| ids.contains(&uid))
        };
        processes().filter(has_id).chain(helpers()).collect()
    }

    /// As the next daemon would read them.
    fn open_entries(&self) -> Vec<String> {
        let copy = self.folder.path().join("journal.copy");
        fs::copy(self.config.run_dir.join("journal"), &copy).unwrap();
        let entries = RunJournal::open(copy).unwrap().open_entries();
        entries.into_iter().map(|entry| format!("{entry:?}")).collect()
    }

    async fn close(mut self) {
        drop(self.service.take());
        self.pool.take().unwrap().close().await.unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let remains = self.cgroup_parents();
        for parent in &remains {
            let children = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
            children.filter(|path| path.is_dir()).for_each(|dir| remove_group(&dir));
            remove_group(parent);
        }
        for path in self.mounts().iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

#[track_caller]
fn assert_same(found: &BTreeSet<String>, wanted: &BTreeSet<String>, when: &str) {
    let more: Vec<_> = found.difference(wanted).collect();
    let less: Vec<_> = wanted.difference(found).collect();
    assert!(more.is_empty() && less.is_empty(), "{when}: left {more:#?}, missing {less:#?}");
}

#[test]
fn whichever_step_of_a_create_fails_nothing_is_left_on_the_kernel() {
    play(async |bed| {
        let clean = bed.objects().await;
        for late in [false, true] {
            let mut failed = BTreeSet::new();
            for n in 1..CALLS_MAX {
                bed.faults.fail_at(n, late);
                let result = bed.create(true).await;
                let Some(call) = bed.faults.disarm() else {
                    bed.service().delete(result.unwrap(), true, None).await.unwrap();
                    break;
                };
                let when = format!("after {call} failed (late: {late})");
                assert!(result.is_err(), "{when} nobody was told");
                assert_same(&bed.objects().await, &clean, &when);
                failed.insert(call);
            }
            assert!(failed.len() >= 13, "only these were tried: {failed:?}");
            assert_same(&bed.objects().await, &clean, "after the delete");
        }
    });
}

#[test]
fn whichever_step_of_a_start_fails_only_the_stopped_container_is_left_on_the_kernel() {
    play(async |bed| {
        let id = bed.create(false).await.unwrap();
        for late in [false, true] {
            // What a first start leaves behind for the later ones, such as its log, is no leak.
            bed.service().verb(id, Verb::Start, STARTED, None).await.unwrap();
            bed.service().verb(id, Verb::ForceStop, STARTED, None).await.unwrap();
            bed.comes_to_rest().await;
            let stopped = bed.objects().await;
            let mut failed = BTreeSet::new();
            for n in 1..CALLS_MAX {
                bed.faults.fail_at(n, late);
                let result = bed.service().verb(id, Verb::Start, STARTED, None).await;
                let Some(call) = bed.faults.disarm() else {
                    result.unwrap();
                    bed.service().verb(id, Verb::ForceStop, STARTED, None).await.unwrap();
                    break;
                };
                let when = format!("after {call} failed (late: {late})");
                assert!(result.is_err(), "{when} nobody was told");
                let phase = bed.service().container(id).unwrap().phase.clone();
                assert!(
                    matches!(phase, Phase::Stopped { reason: StopReason::StartFailed { .. } }),
                    "{when}: {phase:?}"
                );
                assert_same(&bed.objects().await, &stopped, &when);
                failed.insert(call);
            }
            assert!(failed.len() >= 8, "only these were tried: {failed:?}");
        }
        bed.service().delete(id, true, None).await.unwrap();
    });
}

#[test]
fn a_helper_that_is_killed_while_it_waits_leaves_nothing() {
    play(async |bed| {
        let clean = bed.objects().await;
        for moment in [Moment::Prepared, Moment::Created] {
            *bed.assassin.at.lock().unwrap() = Some(moment);
            let result = bed.create(true).await;
            *bed.assassin.at.lock().unwrap() = None;
            assert!(matches!(result, Err(Error::Step { .. })), "{moment:?}: {result:?}");
            assert_same(&bed.objects().await, &clean, &format!("after its helper was killed, {moment:?}"));
        }
        let id = bed.create(true).await.unwrap();
        bed.service().delete(id, true, None).await.unwrap();
    });
}

#[test]
fn a_helper_that_is_killed_at_work_leaves_nothing() {
    /// A start takes some 10 to 20 ms of its helper: the blows fall all over it.
    const BLOWS: u32 = 24;
    const STEP: Duration = Duration::from_micros(750);
    play(async |bed| {
        let clean = bed.objects().await;
        let mut died = 0;
        for n in 0..BLOWS {
            let network = own_network();
            let killer = thread::spawn(move || {
                let deadline = Instant::now() + Duration::from_secs(5);
                while Instant::now() < deadline {
                    if let [helper] = helpers_in(&network)[..] {
                        thread::sleep(STEP * n);
                        kill_process(helper);
                        return;
                    }
                }
            });
            let result = bed.create(true).await;
            killer.join().unwrap();
            match result {
                Ok(id) => drop(bed.service().delete(id, false, None).await.unwrap()),
                Err(_) => died += 1,
            }
            assert_same(&bed.objects().await, &clean, &format!("after blow {n}"));
        }
        assert!(died >= BLOWS / 4, "only {died} of {BLOWS} blows struck");
    });
}
