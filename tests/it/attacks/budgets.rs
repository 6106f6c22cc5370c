//! What the kernel counts by user, or for the whole host, and not by control group: one container takes all it can get and holds it,
//! and its neighbour still gets its own.

use futures_util::future::join;
use libc::*;

use super::{Stage, attack};
use crate::call;
use crate::support::attacker::{Answer, Arg, Order};
use crate::support::daemon::patience;

/// How long the villain holds what it took: longer than the neighbour takes to try.
const HELD_MS: i64 = 3_000;

/// The villain takes until it gets no more, and holds it while the neighbour tries; both one's answers.
async fn take_and_try(stage: &Stage<'_>, taking: Vec<Order>, trying: Vec<Order>) -> (Vec<Answer>, Vec<Answer>) {
    let taking =
        [taking, vec![Order::call(SYS_creat, &["/root/held".into(), 0o600.into()]), Order::hold(HELD_MS)]].concat();
    let marker = stage.daemon.rootfs(&stage.villain.id).join("root/held");
    let neighbour = async {
        let deadline = std::time::Instant::now() + patience(20);
        while !marker.exists() {
            assert!(std::time::Instant::now() < deadline, "the villain took too long");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let answers = stage.neighbour.obey(&trying).await;
        (answers, std::time::Instant::now())
    };
    let held = async { (stage.villain.obey(&taking).await, std::time::Instant::now()) };
    let ((taken, let_go), (tried, tried_at)) = join(held, neighbour).await;
    assert!(tried_at < let_go, "the neighbour tried when nothing was held any more");
    std::fs::remove_file(marker).unwrap();
    (taken, tried)
}

/// Holds that the villain ran into its own bound, and its neighbour got all it asked for.
async fn is_kept_apart(stage: &Stage<'_>, what: &str, order: impl Fn(i64) -> Vec<Order>, wanted: i64) {
    let (taken, tried) = take_and_try(stage, order(1_000_000), order(wanted)).await;
    let (taken, tried) = (&taken[taken.len() - 3], tried.last().unwrap());
    assert!(taken.result < 1_000_000 && taken.ended_by() != 0, "{what}: there is no bound: {taken:?}");
    assert_eq!(tried.result, wanted, "{what}: the villain has {}, and its neighbour: {tried:?}", taken.result);
}

#[test]
fn watches_of_files_are_each_containers_own() {
    attack(async |stage| {
        let instances = |count| vec![Order::repeat(count, SYS_inotify_init1, &[0.into()])];
        is_kept_apart(stage, "inotify instances", instances, 64).await;
    });
}

#[test]
fn pending_signals_are_each_containers_own() {
    attack(async |stage| {
        // Blocked first, so that they stay; SI_QUEUE, since what kill(2) sends is not counted.
        let info = [&[0u8; 8][..], &(-1i32).to_ne_bytes(), &[0; 116]].concat();
        let signals = |count| {
            vec![
                call!(SYS_getpid),
                call!(SYS_rt_sigprocmask, SIG_BLOCK, (1u64 << 33).to_ne_bytes().as_slice(), 0, 8),
                Order::repeat(count, SYS_rt_sigqueueinfo, &[Arg::Result(0), 34.into(), Arg::Bytes(info.clone())]),
            ]
        };
        is_kept_apart(stage, "pending signals", signals, 100).await;
    });
}

#[test]
fn message_queues_are_each_containers_own() {
    attack(async |stage| {
        // `struct mq_attr`: 10 messages of 8 KiB, as by default.
        let opened = |count: usize| -> Vec<Order> {
            let name = |n: usize| format!("queue{n}");
            (0..count).map(|n| call!(SYS_mq_open, name(n).as_str(), O_RDWR | O_CREAT, 0o600, 0)).collect()
        };
        let (taken, tried) = take_and_try(stage, opened(40), opened(5)).await;
        assert!(taken[..40].iter().any(|answer| answer.errno() == Some(EMFILE)), "there is no bound: {taken:?}");
        assert!(tried.iter().all(|answer| answer.result >= 0), "{tried:?}");
    });
}

#[test]
fn terminals_are_each_containers_own() {
    attack(async |stage| {
        let terminals = |count| vec![Order::repeat(count, SYS_open, &["/dev/ptmx".into(), O_RDWR.into()])];
        is_kept_apart(stage, "terminals", terminals, 64).await;
    });
}

#[test]
fn files_in_memory_are_counted_where_they_take_no_page() {
    attack(async |stage| {
        for folder in ["/dev/shm", "/ramdisk", "/dev"] {
            let script = format!(
                "mkdir {folder}/many && cd {folder}/many && i=0; while [ $i -lt 20000 ] && true >$i; do i=$((i+1)); done 2>/dev/null; \
                 echo $i; cd / && rm -r {folder}/many"
            );
            let made: u32 = stage.villain.sh(&script).await.lines().next().unwrap().parse().unwrap();
            assert!((500..20_000).contains(&made), "{folder} takes {made} empty files");
        }
    });
}

#[test]
fn no_container_gets_above_the_limits_it_was_started_with() {
    attack(async |stage| {
        let much = [u64::MAX.to_ne_bytes(), u64::MAX.to_ne_bytes()].concat();
        let limits = [RLIMIT_NOFILE, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_SIGPENDING, RLIMIT_NICE, RLIMIT_RTPRIO];
        let mut orders: Vec<_> = limits.iter().map(|kind| call!(SYS_setrlimit, *kind, much.as_slice())).collect();
        // A priority before all others of the host's: real time, a nice value below zero, and the same for its disk.
        orders.push(call!(SYS_sched_setscheduler, 0, SCHED_FIFO, 99i32.to_ne_bytes().as_slice()));
        orders.push(call!(SYS_setpriority, PRIO_PROCESS, 0, -20));
        orders.push(call!(SYS_ioprio_set, 1, 0, 1 << 13));
        let answers = stage.villain.obey(&orders).await;
        let refused = |answer: &Answer| matches!(answer.errno(), Some(EPERM | EACCES));
        assert!(answers.iter().all(refused), "{answers:?}");
    });
}

#[test]
fn no_container_hides_from_the_killer_when_memory_runs_out() {
    attack(async |stage| {
        let daemon = std::fs::read_to_string(format!("/proc/{}/status", stage.daemon.pid())).unwrap();
        let held = daemon.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        let may_bind = u64::from_str_radix(held, 16).unwrap() & 1 << 24 != 0;
        let script = "for n in -1000 -900 -1 0 499; do echo $n >/proc/self/oom_score_adj; done 2>/dev/null; cat /proc/self/oom_score_adj";
        let score: i32 = stage.villain.sh(script).await.trim().parse().unwrap();
        // Without CAP_SYS_RESOURCE the daemon cannot bind what it starts to more than what it was started with itself.
        assert!(score >= if may_bind { 500 } else { 0 }, "{score}");
        let other = stage.villain.sh("echo -1000 2>/dev/null >/proc/1/oom_score_adj; cat /proc/1/oom_score_adj").await;
        assert!(other.lines().next().unwrap().parse::<i32>().unwrap() >= 0, "{other}");
    });
}
