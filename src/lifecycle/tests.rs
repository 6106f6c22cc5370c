//! The lifecycle over a machine in memory: every step fails once, every crash is recovered from.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::execute::Drivers;
use super::requests::*;
use super::{Error, Service};
use crate::config::Config;
use crate::domain::container::{LimitsPatch, SettingsPatch};
use crate::domain::firewall::{OwnRules, Ruleset};
use crate::domain::policy::Policies;
use crate::domain::receipt::Erasure;
use crate::domain::{
    Bytes, BytesPerSecond, Container, Exit, Image, ImageConfig, ImageId, Phase, ProjectId, Status, StopReason, Verb,
};
use crate::store::journal::{Entry, RunJournal};
use crate::store::sled::SledStore;
use crate::store::{Batch, Durability, Records, Store};
use crate::sys::btrfs::PoolLayout;
use crate::sys::fake::{FakeHost, Faults, Faulty, Left};
use crate::sys::folders::Layout;
use crate::sys::netlink::{Links, Rates};
use crate::sys::nft::Firewall;

pub use super::directory::tests::container as record;

/// The most calls a build and start makes; the loops below end at the first count that no call reaches.
const CALLS_MAX: u32 = 40;

/// A machine in memory, and a disk for the records.
pub struct Lab {
    pub(crate) host: Arc<FakeHost>,
    pub(crate) faults: Arc<Faults>,
    store: Arc<dyn Store>,
    pub(crate) config: Config,
    _folder: tempfile::TempDir,
}

pub(super) fn started(start: bool) -> NewContainer {
    NewContainer { start, ..Default::default() }
}

pub(super) const fn until(until: Until) -> Await {
    Await { until, timeout: Duration::from_secs(5) }
}

impl Lab {
    /// One with a daemon, an image and a project.
    pub async fn new() -> (Self, Service, ProjectId) {
        Self::with(|_| ()).await
    }

    /// The same with another configuration.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> (Self, Service, ProjectId) {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config {
            run_dir: folder.path().to_owned(),
            data_dir: "/data".into(),
            pool: crate::config::Pool { path: Some("/pool".into()), ..Default::default() },
            // Readiness is probed for real: loopback alone, where nobody listens.
            net: crate::config::Net { subnet: "127.201.0.0/16".parse().unwrap() },
            ..Config::default()
        };
        change(&mut config);
        let store: Arc<dyn Store> = Arc::new(Arc::new(SledStore::open(&folder.path().join("db")).unwrap()));
        let lab = Self { host: FakeHost::new(), faults: Arc::default(), store, config, _folder: folder };
        let image = Image {
            id: ImageId::generate(),
            name: "base".into(),
            digest: "sha256:0".into(),
            config: ImageConfig::default(),
            size: Bytes(0),
            created_at: Timestamp::now(),
        };
        lab.host.seed(&std::path::PathBuf::from(format!("/pool/images/{}/rootfs", image.id)));
        let records = Records::open(lab.store.clone()).await.unwrap();
        records.commit(Batch::default().put(&image).unwrap(), Durability::Lazy).await.unwrap();
        let service = lab.daemon().await;
        let new = NewProject { alias: "acme".into(), ..Default::default() };
        let project = service.create_project(new).await.unwrap().id;
        (lab, service, project)
    }

    /// A daemon on this machine, as after a crash of the one before: only the disk, the run folder and the kernel are the
    /// same.
    pub(crate) async fn daemon(&self) -> Service {
        let drivers = Drivers {
            pool: Faulty::wrap(self.host.clone() as Arc<dyn crate::sys::btrfs::Pool>, &self.faults),
            folders: Faulty::wrap(self.host.clone() as Arc<dyn crate::sys::folders::Folders>, &self.faults),
            cgroups: Faulty::wrap(self.host.clone() as Arc<dyn crate::sys::cgroup::Cgroups>, &self.faults),
            links: Faulty::wrap(self.host.clone() as Arc<dyn crate::sys::netlink::Links>, &self.faults),
            firewall: Faulty::wrap(self.host.clone() as Arc<dyn crate::sys::nft::Firewall>, &self.faults),
            runtime: Faulty::wrap(self.host.clone() as Arc<dyn crate::sys::runtime::Runtime>, &self.faults),
        };
        let records = Records::open(self.store.clone()).await.unwrap();
        let layout = Layout { pool: PoolLayout::new("/pool"), data: "/data".into() };
        let policies = Policies::shipped().unwrap();
        let service = Service::open(&self.config, layout, drivers, records, policies).await.unwrap();
        service.recover().await.unwrap();
        service
    }
}

pub(super) async fn eventually(service: &Service, container: &Container, status: Status) -> Arc<Container> {
    for _ in 0..500 {
        let now = service.container(container.id).unwrap();
        if now.status() == status {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it is {:?}, not {status}", service.container(container.id).unwrap().phase);
}

impl Lab {
    /// Waits until there is just this: link and rules of a stopped container go after the answer.
    async fn comes_to(&self, want: Left) {
        for _ in 0..500 {
            if self.host.left() == want {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(self.host.left(), want);
    }
}

/// What a container that was started once keeps while it is stopped: rootfs, its folders, its bundle.
const STOPPED: Left = Left { rootfs: 1, folders: 2, cgroups: 0, links: 0, chains: 0, helpers: 0, inits: 0 };

#[tokio::test]
async fn a_container_is_made_started_stopped_and_erased_without_a_trace() {
    let (lab, service, project) = Lab::new().await;
    let made = service.create(project, started(true), until(Until::Started)).await.unwrap();
    assert_eq!(made.container.status(), Status::Running);
    let id = made.container.id;
    let done = service.verb(id, Verb::Stop, until(Until::Started), None).await.unwrap();
    assert_eq!(done.container.phase, Phase::Stopped { reason: StopReason::Requested });
    lab.comes_to(STOPPED).await;
    let receipt = service.delete(id, true, None).await.unwrap();
    assert_eq!(receipt.state, Erasure::Complete);
    assert_eq!(lab.host.left(), Left::default());
    assert_eq!(service.delete(id, false, None).await.unwrap().id, receipt.id, "DELETE is idempotent");
    assert!(matches!(service.container(id), Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn whichever_step_of_a_create_fails_nothing_is_left() {
    for late in [false, true] {
        let (lab, service, project) = Lab::new().await;
        let mut failed = Vec::new();
        for n in 1..CALLS_MAX {
            lab.faults.fail_at(n, late);
            let result = service.create(project, started(true), until(Until::Started)).await;
            let Some(call) = lab.faults.disarm() else {
                result.unwrap();
                break;
            };
            assert!(result.is_err(), "{call} failed and nobody was told");
            assert_eq!(lab.host.left(), Left::default(), "left after {call} failed (late: {late})");
            assert!(service.containers().is_empty(), "the record is left after {call} failed");
            failed.push(call);
        }
        assert!(failed.len() >= 11, "only these were tried: {failed:?}");
    }
}

#[tokio::test]
async fn whichever_step_of_a_start_fails_the_container_is_stopped_and_says_why() {
    for late in [false, true] {
        let (lab, service, project) = Lab::new().await;
        let made = service.create(project, started(false), until(Until::Started)).await.unwrap();
        let id = made.container.id;
        let mut failed = 0;
        for n in 1..CALLS_MAX {
            lab.faults.fail_at(n, late);
            let result = service.verb(id, Verb::Start, until(Until::Started), None).await;
            let Some(call) = lab.faults.disarm() else {
                result.unwrap();
                break;
            };
            assert!(result.is_err(), "{call} failed and nobody was told");
            let phase = service.container(id).unwrap().phase.clone();
            assert!(matches!(phase, Phase::Stopped { reason: StopReason::StartFailed { .. } }), "{phase:?}");
            let kept = Left { rootfs: 1, folders: lab.host.left().folders, ..Left::default() };
            assert_eq!(lab.host.left(), kept, "left after {call} failed (late: {late})");
            failed += 1;
        }
        assert!(failed >= 8, "only {failed} steps were tried");
    }
}

#[tokio::test]
async fn whichever_step_of_a_stop_fails_the_next_verbs_put_it_right() {
    for late in [false, true] {
        let (lab, service, project) = Lab::new().await;
        let id = service.create(project, started(true), until(Until::Started)).await.unwrap().container.id;
        let mut failed = Vec::new();
        for n in 1..CALLS_MAX {
            lab.faults.fail_at(n, late);
            let result = service.verb(id, Verb::Stop, until(Until::Started), None).await;
            // What follows the answer is still to come: the next verb waits for it.
            if result.is_err() {
                service.verb(id, Verb::ForceStop, until(Until::Started), None).await.unwrap();
            }
            let started = service.verb(id, Verb::Start, until(Until::Started), None).await;
            let Some(call) = lab.faults.disarm() else { break };
            if started.is_err() {
                service.verb(id, Verb::Start, until(Until::Started), None).await.unwrap();
            }
            failed.push(call);
        }
        assert!(failed.len() >= 5, "only these were tried: {failed:?}");
        service.delete(id, false, None).await.unwrap();
        assert_eq!(lab.host.left(), Left::default());
    }
}

#[tokio::test]
async fn what_a_daemon_died_before_removing_behind_a_stop_is_removed_by_the_next() {
    let (lab, service, project) = Lab::new().await;
    let made = service.create(project, started(true), until(Until::Started)).await.unwrap().container;
    service.verb(made.id, Verb::Stop, until(Until::Started), None).await.unwrap();
    lab.comes_to(STOPPED).await;
    let policies = Policies::shipped().unwrap();
    let web = policies.get(&"web".parse().unwrap()).unwrap();
    let web = Arc::new(Ruleset::new(web, &OwnRules::default()).unwrap());
    Firewall::apply(&*lab.host, made.slot, &web).await.unwrap();
    Links::attach(&*lab.host, made.slot, Path::new("none"), Rates::default()).await.unwrap();
    assert_eq!(
        service.stats(made.id).await.unwrap().link,
        None,
        "what is stopped has no traffic, though its link is still there"
    );
    drop(service);
    let entry = Entry::Begin { id: made.id, slot: made.slot, verb: "stop".into() };
    RunJournal::open(lab.config.run_dir.join("journal")).unwrap().append(entry).unwrap();
    let service = lab.daemon().await;
    assert_eq!(service.container(made.id).unwrap().status(), Status::Stopped);
    assert_eq!(lab.host.left(), STOPPED);
}

#[tokio::test]
async fn the_next_daemon_adopts_what_runs_and_settles_what_does_not() {
    let (lab, service, project) = Lab::new().await;
    let runs = service.create(project, started(true), until(Until::Started)).await.unwrap().container;
    let dies = service.create(project, started(true), until(Until::Started)).await.unwrap().container;
    drop(service);
    lab.host.kill_daemon();
    lab.host.exit(dies.id, Exit::Code(1));
    let service = lab.daemon().await;
    assert_eq!(service.container(runs.id).unwrap().phase.init(), runs.phase.init());
    // It should run, so it is started again.
    let again = eventually(&service, &dies, Status::Running).await;
    assert_ne!(again.phase.init(), dies.phase.init());
    service.delete(runs.id, false, None).await.unwrap();
    service.delete(dies.id, false, None).await.unwrap();
    assert_eq!(lab.host.left(), Left::default());
}

#[tokio::test]
async fn a_container_whose_start_is_not_in_its_record_is_adopted_with_a_time_of_start() {
    let (lab, service, project) = Lab::new().await;
    let made = service.create(project, started(true), until(Until::Started)).await.unwrap().container;
    let behind = Container { phase: Phase::Creating, started_at: None, ..(*made).clone() };
    service.records().commit(Batch::default().put(&behind).unwrap(), Durability::Flushed).await.unwrap();
    drop(service);
    let adopted = lab.daemon().await.container(made.id).unwrap();
    assert_eq!(adopted.phase, made.phase);
    assert!(adopted.started_at.is_some(), "without it the proxy leads nobody there");
}

#[tokio::test]
async fn data_that_an_older_store_does_not_know_is_left_alone_whatever_the_journal_says() {
    let (lab, service, project) = Lab::new().await;
    let unknown = service.create(project, started(false), until(Until::Started)).await.unwrap().container;
    let batch = Batch::default().remove::<Container>(&unknown.id);
    service.records().commit(batch, Durability::Flushed).await.unwrap();
    let entry = Entry::Begin { id: unknown.id, slot: unknown.slot, verb: "start".into() };
    RunJournal::open(lab.config.run_dir.join("journal")).unwrap().append(entry).unwrap();
    drop(service);
    let service = lab.daemon().await;
    assert!(service.containers().is_empty());
    assert_eq!(lab.host.left(), Left { rootfs: 1, folders: 1, ..Left::default() });
}

#[tokio::test]
async fn a_project_that_was_being_deleted_is_deleted_by_the_next_daemon() {
    let (lab, service, project) = Lab::new().await;
    service.create(project, started(true), until(Until::Started)).await.unwrap();
    let mut half = (*service.project(project).unwrap()).clone();
    half.deleting = true;
    service.records().commit(Batch::default().put(&half).unwrap(), Durability::Flushed).await.unwrap();
    drop(service);
    let service = lab.daemon().await;
    for _ in 0..500 {
        if service.projects().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(service.projects().is_empty());
    assert_eq!(lab.host.left(), Left::default());
}

#[tokio::test]
async fn closing_waits_for_a_create_that_nobody_waits_for() {
    let (_lab, service, project) = Lab::new().await;
    let made = service.create(project, started(true), until(Until::Nothing)).await.unwrap().container;
    service.close(Duration::from_secs(5)).await;
    assert_eq!(service.container(made.id).unwrap().status(), Status::Running);
}

/// A change of every limit that is kept for a running container, to some multiple.
fn limits_times(factor: u64) -> ContainerPatch {
    let limits = LimitsPatch {
        memory: Some(Some(Bytes::mib(100 * factor))),
        disk: Some(Some(Bytes::mib(200 * factor))),
        ramdisk: Some(Some(Bytes::mib(10 * factor))),
        net_rx_bps: Some(Some(BytesPerSecond(1_000 * factor))),
        ..LimitsPatch::default()
    };
    ContainerPatch { settings: SettingsPatch { limits, ..Default::default() }, ..Default::default() }
}

#[tokio::test]
async fn whichever_limit_is_not_taken_all_the_old_ones_stay_in_force_and_in_the_record() {
    for late in [false, true] {
        let (lab, service, project) = Lab::new().await;
        let made = service.create(project, started(true), until(Until::Started)).await.unwrap().container;
        let old = service.update(made.id, limits_times(1), None).await.unwrap().container;
        let in_force = lab.host.limits_of(old.id, old.slot).unwrap();
        assert_eq!((in_force.0, in_force.2), (old.settings.limits, Some(Bytes::mib(10))));
        let mut failed = Vec::new();
        for n in 1..CALLS_MAX {
            lab.faults.fail_at(n, late);
            let result = service.update(old.id, limits_times(2), None).await;
            let Some(call) = lab.faults.disarm() else {
                let new = result.unwrap().container;
                assert_eq!(lab.host.limits_of(new.id, new.slot).unwrap().0, new.settings.limits);
                break;
            };
            // The copy of the record beside the data is only told of.
            if call == "folders.write_manifest" {
                service.update(old.id, limits_times(1), None).await.unwrap();
                continue;
            }
            assert!(result.is_err(), "{call} failed and nobody was told");
            assert_eq!(service.container(old.id).unwrap().settings, old.settings, "after {call} failed (late: {late})");
            let now = lab.host.limits_of(old.id, old.slot).unwrap();
            assert_eq!(now, in_force, "after {call} failed (late: {late})");
            failed.push(call);
        }
        for call in ["pool.set_limit", "cgroups.set_limits", "links.set_rates", "runtime.resize_ramdisk"] {
            assert!(failed.contains(&call), "{call} was not tried: {failed:?}");
        }
    }
}

#[tokio::test]
async fn an_exit_is_noticed_and_leaves_nothing_in_the_kernel() {
    let (lab, service, project) = Lab::new().await;
    let made = service.create(project, started(true), until(Until::Started)).await.unwrap().container;
    lab.host.exit(made.id, Exit::Code(3));
    let after = eventually(&service, &made, Status::Stopped).await;
    let reason = StopReason::Exited { exit: Exit::Code(3), oom: false };
    assert_eq!(after.phase, Phase::Stopped { reason });
    lab.comes_to(STOPPED).await;
}

#[tokio::test]
async fn names_slots_and_limits_are_free_again_after_a_delete() {
    let (lab, service, project) = Lab::new().await;
    let patch = ProjectPatch { containers_max: Some(Some(1)), ..Default::default() };
    service.update_project(project, patch, None).await.unwrap();
    let named = || NewContainer { name: Some("only-one".parse().unwrap()), ..started(false) };
    let first = service.create(project, named(), until(Until::Started)).await.unwrap().container;
    let second = service.create(project, named(), until(Until::Started)).await.unwrap_err();
    assert!(matches!(second, Error::ProjectLimit { max: 1 }), "{second}");
    service.delete(first.id, false, None).await.unwrap();
    service.create(project, named(), until(Until::Started)).await.unwrap();
    assert_eq!(lab.host.left().rootfs, 1);
}

#[tokio::test]
async fn a_verb_that_makes_no_sense_is_refused_by_the_state() {
    let (_lab, service, project) = Lab::new().await;
    let id = service.create(project, started(false), until(Until::Started)).await.unwrap().container.id;
    for verb in [Verb::Stop, Verb::ForceStop, Verb::Restart, Verb::Pause, Verb::Resume] {
        let error = service.verb(id, verb, until(Until::Started), None).await.unwrap_err();
        assert!(matches!(error, Error::WrongState { status: Status::Stopped, .. }), "{verb}: {error}");
    }
}

#[tokio::test]
async fn a_project_goes_with_all_its_containers() {
    let (lab, service, project) = Lab::new().await;
    for _ in 0..5 {
        service.create(project, started(true), until(Until::Started)).await.unwrap();
    }
    assert_eq!(service.delete_project(project).await.unwrap().len(), 5);
    assert_eq!(lab.host.left(), Left::default());
    assert!(service.projects().is_empty());
}
