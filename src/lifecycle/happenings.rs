//! Which events a record's change means. Pure.

use super::wake::BY_REQUEST;
use crate::domain::event::{EventKind, Happening};
use crate::domain::{Container, PauseReason, Phase, Settings, StopReason};

/// What happened between two states of one record, in order.
pub fn happenings(old: &Container, new: &Container) -> Vec<Happening> {
    let event = |kind| Happening::to_container(kind, new.project, new.id);
    let mut found = Vec::new();
    if old.phase == Phase::Creating && matches!(new.phase, Phase::Stopped { .. } | Phase::Running { .. }) {
        found.push(event(EventKind::Created));
    }
    match (&old.phase, &new.phase) {
        (Phase::Running { init: before }, Phase::Running { init }) if before == init => {}
        (Phase::Paused { init: before, reason }, Phase::Running { init }) if before == init => {
            found.push(event(EventKind::Resumed));
            if *reason == PauseReason::Idle && is_woken(new) {
                found.push(event(EventKind::Woken).because("a request; it goes on"));
            }
        }
        (before, Phase::Running { .. }) => {
            found.push(event(EventKind::Started));
            if *before == Phase::Starting && is_woken(new) {
                found.push(event(EventKind::Woken).because("a request; it was started"));
            }
        }
        (before, Phase::Paused { reason, .. }) if before != &new.phase => {
            found.push(event(EventKind::Paused));
            if *reason == PauseReason::Idle {
                found.push(event(EventKind::Slept).because("nobody used it; it is frozen"));
            }
        }
        (Phase::Stopped { .. } | Phase::Creating, Phase::Stopped { reason: StopReason::Created }) => {}
        (before, Phase::Stopped { reason }) if *before != new.phase => {
            found.push(event(EventKind::Stopped).because(words(reason)));
            if reason.is_sleep() {
                found.push(event(EventKind::Slept).because(words(reason)));
            }
        }
        (before, Phase::Failed { .. }) if *before != new.phase => found.push(event(EventKind::Failed)),
        _ => {}
    }
    let named = (&old.name, &old.external_id) != (&new.name, &new.external_id);
    if named || others_differ(&old.settings, &new.settings) {
        found.push(event(EventKind::Updated));
    }
    if old.settings.access != new.settings.access {
        found.push(event(EventKind::PermissionsChanged));
    }
    found
}

/// Whether a request gave it its process, or let that go on.
fn is_woken(container: &Container) -> bool {
    container.started_by.as_deref() == Some(BY_REQUEST)
}

/// Whether settings differ in more than what has events of its own.
fn others_differ(old: &Settings, new: &Settings) -> bool {
    let shared = Settings { firewall_rules: new.firewall_rules.clone(), access: new.access.clone(), ..old.clone() };
    shared != *new
}

/// A reason without any text that is not ours.
fn words(reason: &StopReason) -> String {
    match reason {
        StopReason::StartFailed { .. } => "the start failed".to_owned(),
        reason => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::container;
    use super::*;
    use crate::domain::{Exit, Init, ProjectId, Slot};

    const INIT: Init = Init { pid: 7, start_ticks: 9 };

    fn between(old: Phase, new: Phase) -> Vec<(EventKind, Option<String>)> {
        let one = container(ProjectId::NIL, "one", Slot(1));
        let (old, new) = (Container { phase: old, ..one.clone() }, Container { phase: new, ..one });
        happenings(&old, &new).into_iter().map(|what| (what.kind, what.reason)).collect()
    }

    fn stopped(reason: StopReason) -> Phase {
        Phase::Stopped { reason }
    }

    #[test]
    fn each_change_of_phase_is_told_once() {
        let running = Phase::Running { init: INIT };
        let other = Phase::Running { init: Init { pid: 8, ..INIT } };
        let paused = Phase::Paused { init: INIT, reason: PauseReason::Requested };
        let asleep = Phase::Paused { init: INIT, reason: PauseReason::Idle };
        use EventKind::*;
        let plain = |kinds: &[EventKind]| kinds.iter().map(|kind| (*kind, None)).collect::<Vec<_>>();
        assert_eq!(between(Phase::Creating, running.clone()), plain(&[Created, Started]));
        assert_eq!(between(Phase::Creating, stopped(StopReason::Created)), plain(&[Created]));
        assert_eq!(between(Phase::Starting, running.clone()), plain(&[Started]));
        assert_eq!(between(running.clone(), running.clone()), []);
        assert_eq!(between(running.clone(), other), plain(&[Started]));
        assert_eq!(between(running.clone(), paused.clone()), plain(&[Paused]));
        assert_eq!(between(paused, running.clone()), plain(&[Resumed]));
        assert_eq!(between(running.clone(), Phase::Stopping { init: INIT }), []);
        assert_eq!(between(stopped(StopReason::Requested), Phase::Starting), []);
        assert_eq!(between(Phase::Creating, Phase::Failed { reason: "secret".into() }), plain(&[Failed]));
        let kinds = |old: &Phase, new: &Phase| {
            between(old.clone(), new.clone()).into_iter().map(|(kind, _)| kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&running, &asleep), [Paused, Slept]);
        assert_eq!(kinds(&asleep, &running), [Resumed], "by hand");
        for reason in [StopReason::Idle, StopReason::MadeRoom] {
            assert_eq!(kinds(&Phase::Stopping { init: INIT }, &stopped(reason)), [Stopped, Slept]);
        }
        let exited = StopReason::Exited { exit: Exit::Code(1), oom: true };
        let told = between(running.clone(), stopped(exited));
        assert_eq!(told, [(Stopped, Some("out of memory: init exited with status 1".to_owned()))]);
        let told = between(Phase::Starting, stopped(StopReason::StartFailed { message: "`/secret`".into() }));
        assert_eq!(told, [(Stopped, Some("the start failed".to_owned()))]);
    }

    #[test]
    fn a_wake_by_a_request_is_told_beside_what_it_did() {
        let one = container(ProjectId::NIL, "one", Slot(1));
        let running =
            Container { phase: Phase::Running { init: INIT }, started_by: Some(BY_REQUEST.to_owned()), ..one.clone() };
        let woken = |phase| happenings(&Container { phase, ..one.clone() }, &running).into_iter().map(|what| what.kind);
        let asleep = Phase::Paused { init: INIT, reason: PauseReason::Idle };
        assert_eq!(woken(Phase::Starting).collect::<Vec<_>>(), [EventKind::Started, EventKind::Woken]);
        assert_eq!(woken(asleep).collect::<Vec<_>>(), [EventKind::Resumed, EventKind::Woken]);
    }

    #[test]
    fn a_change_of_settings_is_told_without_what_it_was() {
        let old = container(ProjectId::NIL, "one", Slot(1));
        let mut new = old.clone();
        new.settings.comment = Some("secret".into());
        let told = happenings(&old, &new);
        assert_eq!(told, [Happening::to_container(EventKind::Updated, old.project, old.id)]);
        new.generation += 1;
        assert_eq!(happenings(&new.clone(), &new), []);
        let old = new.clone();
        new.settings.access = Some(Default::default());
        let changed = Happening::to_container(EventKind::PermissionsChanged, old.project, old.id);
        assert_eq!(happenings(&old, &new), [changed]);
    }
}
