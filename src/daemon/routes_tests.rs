//! Requests, sleeps, wakes, verbs, deletions and failures in any order, over a machine in memory: no request is lost, none is answered by a
//! container that does not run, and none is started twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::domain::{IdleAction, ProjectId, SettingsPatch, Verb};
use crate::lifecycle::tests::Lab;
use crate::lifecycle::{Await, NewContainer, Until};
use crate::sys::fake::{FakeHost, Faults, Left};

const CONTAINERS: usize = 3;
/// For everything of one run.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Act {
    Request {
        to: usize,
        hold_ms: u64,
    },
    Sleep {
        of: usize,
        for_room: bool,
    },
    Verb {
        on: usize,
        verb: Verb,
    },
    Delete(usize),
    /// A call of a driver's fails soon.
    Fail {
        at: u32,
        late: bool,
    },
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let of = || 0..CONTAINERS;
    let verb = prop::sample::select(vec![Verb::Start, Verb::Stop, Verb::Restart, Verb::Pause, Verb::Resume]);
    let act = prop_oneof![
        12 => (of(), 0u64..6).prop_map(|(to, hold_ms)| Act::Request { to, hold_ms }),
        8 => (of(), any::<bool>()).prop_map(|(of, for_room)| Act::Sleep { of, for_room }),
        2 => (of(), verb).prop_map(|(on, verb)| Act::Verb { on, verb }),
        1 => (1u32..12, any::<bool>()).prop_map(|(at, late)| Act::Fail { at, late }),
        6 => (0u64..5).prop_map(Act::Wait),
    ];
    // Of one at most, and late, so that the others go on.
    (prop::collection::vec(act, 1..80), prop::option::of(of())).prop_map(|(mut acts, deleted)| {
        acts.extend(deleted.map(Act::Delete));
        acts.extend((0..CONTAINERS).map(|to| Act::Request { to, hold_ms: 1 }));
        acts
    })
}

/// One container, and what was done to it by hand.
#[derive(Debug)]
struct Tenant {
    id: ContainerId,
    /// Verbs that have begun, and those that have ended.
    begun: AtomicUsize,
    ended: AtomicUsize,
    deleted: AtomicBool,
}

struct Run {
    service: Service,
    table: Table,
    host: Arc<FakeHost>,
    faults: Arc<Faults>,
    failed: AtomicBool,
    project: ProjectId,
    tenants: Vec<Tenant>,
}

impl Run {
    async fn tenant(service: &Service, project: ProjectId, n: usize, listeners: &mut Vec<TcpListener>) -> Tenant {
        let action = if n.is_multiple_of(2) { IdleAction::Pause } else { IdleAction::Stop };
        let settings = SettingsPatch { idle_timeout_s: Some(Some(0)), idle_action: Some(action), ..Default::default() };
        let new = NewContainer { settings, start: false, ..Default::default() };
        let wait = Await { until: Until::Started, timeout: PATIENCE };
        let container = service.create(project, new, wait).await.unwrap().container;
        // The kernel accepts for it, whether or not it runs: what must not happen is not hidden by a refused connection.
        let address = SocketAddr::from((service.address(&container).unwrap(), container.settings.port.get()));
        listeners.push(TcpListener::bind(address).await.unwrap());
        Tenant {
            id: container.id,
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            deleted: AtomicBool::new(false),
        }
    }

    async fn request(&self, to: usize, hold_ms: u64) {
        let tenant = &self.tenants[to];
        let port = crate::domain::container::PORT_DEFAULT;
        let route = Route::Canonical { project: self.project, container: tenant.id, port };
        let begun = || tenant.begun.load(Ordering::SeqCst);
        let quiet_first = tenant.ended.load(Ordering::SeqCst) == begun();
        let before = begun();
        let Found { resolution, in_use, .. } = self.table.resolve(&route, Visitor { path: "/", agent: "" }).await;
        let goes = |host: &FakeHost| host.goes(tenant.id);
        let at_first = goes(&self.host);
        tokio::time::sleep(Duration::from_millis(hold_ms)).await;
        let at_last = goes(&self.host);
        let undisturbed = quiet_first && before == begun();
        drop(in_use);
        let failed = self.failed.load(Ordering::SeqCst);
        match resolution {
            Resolution::Upstream(_) if undisturbed => assert!(at_first && at_last, "answered by one that does not run"),
            Resolution::Upstream(_) => {}
            Resolution::Unknown => assert!(tenant.deleted.load(Ordering::SeqCst)),
            Resolution::Failing { .. } => assert!(failed, "nothing failed: it was started twice?"),
            // Paused by hand, or at work on a verb.
            Resolution::NotRunning { .. } | Resolution::NotReady { .. } => {
                let phase = self.service.container(tenant.id).map(|container| container.phase.clone());
                let by_hand = matches!(phase, Ok(Phase::Paused { reason: PauseReason::Requested, .. }));
                assert!(by_hand || !undisturbed || failed, "lost: {resolution:?} while it is {phase:?}");
            }
            // More sleeps and verbs at once than its worker takes commands.
            Resolution::Crowded => {}
            other => panic!("lost: {other:?}"),
        }
    }

    async fn verb(&self, on: usize, verb: Verb) {
        let tenant = &self.tenants[on];
        tenant.begun.fetch_add(1, Ordering::SeqCst);
        let wait = Await { until: Until::Started, timeout: PATIENCE };
        let _ = self.service.verb(tenant.id, verb, wait, Some(Duration::ZERO)).await;
        tenant.ended.fetch_add(1, Ordering::SeqCst);
    }

    async fn delete(&self, which: usize) {
        let tenant = &self.tenants[which];
        tenant.deleted.store(true, Ordering::SeqCst);
        tenant.begun.fetch_add(1, Ordering::SeqCst);
        self.service.delete(tenant.id, false, None).await.unwrap();
    }

    async fn act(self: Arc<Self>, act: Act) {
        match act {
            Act::Request { to, hold_ms } => self.request(to, hold_ms).await,
            Act::Sleep { of, for_room } => self.service.drowse(self.tenants[of].id, for_room),
            Act::Verb { on, verb } => self.verb(on, verb).await,
            Act::Delete(which) => self.delete(which).await,
            Act::Fail { at, late } => {
                self.failed.store(true, Ordering::SeqCst);
                self.faults.fail_at(at, late);
            }
            Act::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }
}

async fn play(acts: Vec<Act>) {
    let (lab, service, project) = Lab::with(|config| {
        // Of no other test: here somebody listens.
        config.net.subnet = "127.202.0.0/16".parse().unwrap();
    })
    .await;
    let (mut tenants, mut listeners) = (Vec::new(), Vec::new());
    for n in 0..CONTAINERS {
        tenants.push(Run::tenant(&service, project, n, &mut listeners).await);
    }
    let (host, faults) = (lab.host.clone(), lab.faults.clone());
    let table = Table::new(service.clone(), Handle::current(), &config::Proxy::default());
    let run = Arc::new(Run { service, table, host, faults, failed: AtomicBool::new(false), project, tenants });
    let mut tasks = JoinSet::new();
    for act in acts {
        match act {
            Act::Wait(_) => run.clone().act(act).await,
            act => drop(tasks.spawn(run.clone().act(act))),
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    run.faults.disarm();
    for tenant in &run.tenants {
        run.service.delete(tenant.id, false, None).await.unwrap();
    }
    assert_eq!(run.host.left(), Left::default());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn no_request_is_lost_or_answered_by_a_container_that_sleeps(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, play(acts)).await }).expect("somebody waits for ever");
    }
}
