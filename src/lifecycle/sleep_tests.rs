//! Sleeping and waking over a machine in memory: frozen or stopped, by silence or for others, across daemons.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::drowse::Drowse;
use super::requests::*;
use super::tests::{Lab, eventually, started, until};
use super::worker::Command;
use super::{NotAwake, Service, Use, Wanted};
use crate::config::{Awake, MemoryShare, Starts};
use crate::domain::container::SettingsPatch;
use crate::domain::event::EventKind;
use crate::domain::{
    ActivityPatch, Bytes, Container, ContainerId, CpuMillis, Desired, Exit, IdleAction, PauseReason, Phase, ProjectId,
    Status, StopReason, Verb,
};
use crate::sys::fake::Left;

const PATIENCE: Duration = Duration::from_secs(5);

/// Sleeps as soon as nobody uses it.
fn sleeper(action: IdleAction) -> NewContainer {
    let settings = SettingsPatch { idle_timeout_s: Some(Some(0)), idle_action: Some(action), ..Default::default() };
    NewContainer { settings, ..started(true) }
}

async fn made(service: &Service, project: ProjectId, new: NewContainer) -> Arc<Container> {
    service.create(project, new, until(Until::Started)).await.unwrap().container
}

/// Asks a container to sleep; whether it does.
async fn sleeps(service: &Service, id: ContainerId, why: Drowse) -> bool {
    let (reply, done) = oneshot::channel();
    service.shared().send(id, Command::Sleep { why, reply: Some(reply) }).unwrap();
    done.await.unwrap()
}

async fn frozen(lab: &Lab, service: &Service, project: ProjectId) -> Arc<Container> {
    let container = made(service, project, sleeper(IdleAction::Pause)).await;
    assert!(sleeps(service, container.id, Drowse::Unused).await && !lab.host.goes(container.id));
    service.container(container.id).unwrap()
}

async fn wake(service: &Service, id: ContainerId) -> Result<super::Woken, NotAwake> {
    service.wake(id, Wanted::Started, PATIENCE).await
}

fn phase(service: &Service, id: ContainerId) -> Phase {
    service.container(id).unwrap().phase.clone()
}

fn kinds(service: &Service, id: ContainerId) -> Vec<EventKind> {
    let events = service.events().all(|event| event.what.container == Some(id));
    events.iter().map(|event| event.what.kind).collect()
}

#[tokio::test]
async fn a_container_that_is_frozen_for_silence_goes_on_for_a_request() {
    let (lab, service, project) = Lab::new().await;
    let container = frozen(&lab, &service, project).await;
    let asleep = service.container(container.id).unwrap();
    assert_eq!((asleep.status(), asleep.desired), (Status::Paused, Desired::Running));
    assert!(asleep.phase.reason().unwrap().starts_with("asleep"));
    for _ in 0..500 {
        if lab.host.is_reclaimed(container.id) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(lab.host.is_reclaimed(container.id), "its page cache is given back");
    wake(&service, container.id).await.unwrap();
    let awake = service.container(container.id).unwrap();
    assert_eq!(awake.phase.init(), container.phase.init(), "the same process goes on");
    assert_eq!((awake.started_at, awake.started_by.as_deref()), (container.started_at, Some("request")));
    assert!(lab.host.goes(container.id));
    use EventKind::*;
    assert_eq!(kinds(&service, container.id), [Created, Started, Paused, Slept, Resumed, Woken]);
}

#[tokio::test]
async fn a_sleep_ends_a_wake_that_still_waits_for_the_port() {
    let (lab, service, project) = Lab::new().await;
    // Nobody listens at its port, so that each wake goes on waiting for that.
    let id = frozen(&lab, &service, project).await.id;
    for _ in 0..3 {
        wake(&service, id).await.unwrap();
        assert!(lab.host.goes(id), "it joined the wake before the sleep");
        assert!(sleeps(&service, id, Drowse::Unused).await && !lab.host.goes(id));
    }
}

#[tokio::test]
async fn a_thaw_lets_go_on_what_is_frozen_and_starts_nothing() {
    let (lab, service, project) = Lab::new().await;
    let frozen = frozen(&lab, &service, project).await.id;
    service.thaw(frozen).await.unwrap();
    assert!(lab.host.goes(frozen));
    service.thaw(frozen).await.expect("it is awake");
    let stopped = made(&service, project, sleeper(IdleAction::Stop)).await.id;
    assert!(sleeps(&service, stopped, Drowse::Unused).await);
    assert_eq!(service.thaw(stopped).await, Err(NotAwake::Never));
    assert_eq!(phase(&service, stopped), Phase::Stopped { reason: StopReason::Idle });
}

#[tokio::test]
async fn a_container_that_was_paused_by_hand_is_not_woken_by_a_request() {
    let (lab, service, project) = Lab::new().await;
    let awake = made(&service, project, sleeper(IdleAction::Pause)).await;
    let asleep = frozen(&lab, &service, project).await;
    for id in [awake.id, asleep.id] {
        service.verb(id, Verb::Pause, until(Until::Started), None).await.unwrap();
        assert_eq!(wake(&service, id).await, Err(NotAwake::Never));
        assert!(matches!(phase(&service, id), Phase::Paused { reason: PauseReason::Requested, .. }));
        assert!(!sleeps(&service, id, Drowse::ForRoom).await, "it makes no room either");
        service.verb(id, Verb::Resume, until(Until::Started), None).await.unwrap();
        assert!(lab.host.goes(id));
    }
}

#[tokio::test]
async fn the_next_daemon_finds_a_frozen_sleeper_asleep_and_wakes_it() {
    let (lab, service, project) = Lab::new().await;
    let asleep = frozen(&lab, &service, project).await;
    let by_hand = made(&service, project, started(true)).await;
    service.verb(by_hand.id, Verb::Pause, until(Until::Started), None).await.unwrap();
    drop(service);
    let service = lab.daemon().await;
    assert_eq!(phase(&service, asleep.id), asleep.phase);
    assert!(!lab.host.goes(asleep.id) && !lab.host.goes(by_hand.id));
    wake(&service, asleep.id).await.unwrap();
    assert!(lab.host.goes(asleep.id));
    assert_eq!(wake(&service, by_hand.id).await, Err(NotAwake::Never));
}

#[tokio::test]
async fn every_verb_that_a_frozen_sleeper_can_be_asked_leaves_it_as_it_says() {
    let (lab, service, project) = Lab::new().await;
    for (verb, status) in [
        (Verb::Stop, Status::Stopped),
        (Verb::ForceStop, Status::Stopped),
        (Verb::Restart, Status::Running),
        (Verb::Resume, Status::Running),
        (Verb::Pause, Status::Paused),
    ] {
        let id = frozen(&lab, &service, project).await.id;
        let done = service.verb(id, verb, until(Until::Started), None).await.unwrap();
        assert_eq!(done.container.status(), status, "{verb}");
        assert_eq!(lab.host.goes(id), status == Status::Running, "{verb}");
        service.delete(id, false, None).await.unwrap();
    }
    let id = frozen(&lab, &service, project).await.id;
    service.delete(id, false, None).await.unwrap();
    assert_eq!(lab.host.left(), Left::default());
}

#[tokio::test]
async fn a_freeze_that_fails_leaves_it_awake_and_a_thaw_that_fails_says_so() {
    let (lab, service, project) = Lab::new().await;
    let container = made(&service, project, sleeper(IdleAction::Pause)).await;
    lab.faults.fail_at(1, false);
    assert!(!sleeps(&service, container.id, Drowse::Unused).await);
    assert_eq!(lab.faults.disarm(), Some("cgroups.freeze"));
    assert!(lab.host.goes(container.id) && matches!(phase(&service, container.id), Phase::Running { .. }));
    assert!(sleeps(&service, container.id, Drowse::Unused).await);
    lab.faults.fail_at(1, false);
    assert!(matches!(wake(&service, container.id).await, Err(NotAwake::Failing { .. })));
    assert_eq!(lab.faults.disarm(), Some("cgroups.freeze"));
}

#[tokio::test]
async fn a_project_says_when_the_containers_that_are_made_in_it_sleep() {
    let (_lab, service, project) = Lab::new().await;
    let patch =
        ProjectPatch { idle_timeout_s: Some(Some(60)), idle_action: Some(IdleAction::Pause), ..Default::default() };
    service.update_project(project, patch, None).await.unwrap();
    let of = |container: &Container| (container.settings.idle_timeout_s, container.settings.idle_action);
    let plain = made(&service, project, started(false)).await;
    assert_eq!(of(&plain), (Some(60), IdleAction::Pause));
    let never = SettingsPatch { idle_timeout_s: Some(None), ..Default::default() };
    let never = made(&service, project, NewContainer { settings: never, ..started(false) }).await;
    assert_eq!(of(&never), (None, IdleAction::Pause));
    let copy = service.copy(never.id, NewCopy::default(), until(Until::Started)).await.unwrap().container;
    assert_eq!(of(&copy), of(&never), "a copy sleeps as its source");
}

#[tokio::test]
async fn use_of_the_processor_keeps_awake_whom_that_counts_for() {
    let (lab, service, project) = Lab::new().await;
    let with = |cpu| {
        let activity = ActivityPatch { cpu: Some(cpu), ..Default::default() };
        let settings = SettingsPatch { idle_timeout_s: Some(Some(1)), activity, ..Default::default() };
        NewContainer { settings, ..started(true) }
    };
    let worker = made(&service, project, with(Some(CpuMillis(100)))).await;
    let lazy = made(&service, project, with(Some(CpuMillis(100)))).await;
    let plain = made(&service, project, with(None)).await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let watch = tokio::spawn({
        let (service, shutdown) = (service.clone(), shutdown.clone());
        async move { service.watch_idle(shutdown).await }
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let busy_us = began.elapsed().as_micros() as u64;
        [worker.id, plain.id].into_iter().for_each(|id| lab.host.use_cpu(id, busy_us));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(lab.host.goes(worker.id), "it works");
    assert!(!lab.host.goes(lazy.id) && !lab.host.goes(plain.id));
    shutdown.cancel();
    watch.await.unwrap();
}

/// A daemon whose awake containers may hold 100 MiB.
async fn small() -> (Lab, Service, ProjectId) {
    Lab::with(|config| config.awake = Awake { memory: MemoryShare::Size(Bytes::mib(100)) }).await
}

/// Stopped, and may be woken.
async fn stopped(service: &Service, project: ProjectId) -> ContainerId {
    made(service, project, NewContainer { start: false, ..sleeper(IdleAction::Stop) }).await.id
}

async fn measure(service: &Service) {
    let awake = service.containers().into_iter().filter(|one| one.phase.init().is_some()).collect::<Vec<_>>();
    service.shared().room.look(service.shared(), &awake).await;
}

#[tokio::test]
async fn the_longest_unused_sleeps_for_one_that_wakes_and_nobody_in_use_does() {
    let (lab, service, project) = small().await;
    let held = [
        made(&service, project, sleeper(IdleAction::Stop)).await.id,
        frozen(&lab, &service, project).await.id,
        made(&service, project, sleeper(IdleAction::Stop)).await.id,
    ];
    held.into_iter().for_each(|id| lab.host.hold_memory(id, Bytes::mib(30)));
    let in_use = service.enter(held[0], Use::Request);
    drop(service.enter(held[1], Use::Request));
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(service.enter(held[2], Use::Request));
    measure(&service).await;
    let (first, second, third) =
        (stopped(&service, project).await, stopped(&service, project).await, stopped(&service, project).await);
    wake(&service, first).await.unwrap();
    let made_room = Phase::Stopped { reason: StopReason::MadeRoom };
    assert_eq!(phase(&service, held[1]), made_room, "frozen it still held its memory");
    assert!(lab.host.goes(held[0]) && lab.host.goes(held[2]) && lab.host.goes(first));
    assert!(kinds(&service, held[1]).contains(&EventKind::Slept));
    lab.host.hold_memory(first, Bytes::mib(40));
    let first_in_use = service.enter(first, Use::Request);
    measure(&service).await;
    wake(&service, second).await.unwrap();
    assert_eq!(phase(&service, held[2]), made_room);
    lab.host.hold_memory(second, Bytes::mib(30));
    let second_in_use = service.enter(second, Use::Request);
    measure(&service).await;
    assert_eq!(wake(&service, third).await, Err(NotAwake::NoRoom), "all are in use");
    assert!(lab.host.goes(held[0]));
    drop((in_use, first_in_use, second_in_use));
}

#[tokio::test]
async fn whoever_has_no_idle_timeout_makes_no_room_and_what_grows_beyond_it_is_put_right() {
    let (lab, service, project) = small().await;
    let steady = made(&service, project, started(true)).await.id;
    let idle = made(&service, project, sleeper(IdleAction::Stop)).await.id;
    lab.host.hold_memory(steady, Bytes::mib(90));
    lab.host.hold_memory(idle, Bytes::mib(20));
    measure(&service).await;
    let asleep = eventually(&service, &service.container(idle).unwrap(), Status::Stopped).await;
    assert_eq!(asleep.phase, Phase::Stopped { reason: StopReason::MadeRoom });
    measure(&service).await;
    assert_eq!(wake(&service, idle).await, Err(NotAwake::NoRoom));
    assert!(lab.host.goes(steady));
    // By hand it starts: who calls the API decides.
    service.verb(idle, Verb::Start, until(Until::Started), None).await.unwrap();
}

#[tokio::test]
async fn after_a_reboot_only_those_start_that_never_sleep() {
    let (lab, service, project) = Lab::new().await;
    let with = |autostart, idle_timeout_s| {
        let settings = SettingsPatch { autostart: Some(autostart), idle_timeout_s, ..Default::default() };
        NewContainer { settings, ..started(true) }
    };
    let steady = made(&service, project, with(true, None)).await;
    let by_hand = made(&service, project, with(false, None)).await;
    let sleeper = made(&service, project, with(true, Some(Some(60)))).await;
    let asleep = frozen(&lab, &service, project).await;
    drop(service);
    for container in [&steady, &by_hand, &sleeper, &asleep] {
        lab.host.exit(container.id, Exit::Signal(libc::SIGKILL));
    }
    std::fs::remove_file(lab.config.run_dir.join("journal")).unwrap();
    let service = lab.daemon().await;
    eventually(&service, &steady, Status::Running).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    for id in [by_hand.id, sleeper.id, asleep.id] {
        assert_eq!(service.container(id).unwrap().status(), Status::Stopped);
    }
    for id in [sleeper.id, asleep.id] {
        wake(&service, id).await.unwrap();
        assert!(lab.host.goes(id));
    }
}

#[tokio::test]
async fn a_herd_is_woken_each_once_and_a_full_line_refuses() {
    let starts = Starts { at_once: 2, wakes_at_once: 1, wakes_per_second: 1_000, queue: 16 };
    let (lab, service, project) = Lab::with(|config| config.starts = starts).await;
    let mut herd = Vec::new();
    for _ in 0..12 {
        herd.push(stopped(&service, project).await);
    }
    let first = service.shared().starts.wake(project).await.unwrap().unwrap();
    let wakes = herd.iter().map(|id| {
        tokio::spawn({
            let (service, id) = (service.clone(), *id);
            async move { wake(&service, id).await }
        })
    });
    let wakes: Vec<_> = wakes.collect();
    while wakes.iter().filter(|wake| wake.is_finished()).count() < 4 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A verb finds a place beside the herd.
    made(&service, project, started(true)).await;
    drop(first);
    let all: Vec<_> = futures_util::future::join_all(wakes).await.into_iter().map(Result::unwrap).collect();
    // Half of the line may be one project's.
    let refused = all.iter().filter(|one| matches!(one, Err(NotAwake::QueueFull))).count();
    assert_eq!((all.iter().filter(|one| one.is_ok()).count(), refused), (8, 4), "{all:?}");
    for (id, outcome) in herd.iter().zip(&all) {
        assert_eq!(lab.host.goes(*id), outcome.is_ok());
    }
    let again = futures_util::future::join_all(herd.iter().map(|id| wake(&service, *id))).await;
    assert!(again.iter().all(Result::is_ok), "{again:?}");
}
