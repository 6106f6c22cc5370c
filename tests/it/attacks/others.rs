//! The neighbour and the host's processes: what is theirs is neither seen nor reached.

use futures_util::future::join;
use libc::*;

use super::attack;
use crate::call;
use crate::support::attacker::{Answer, Arg, Order};

/// Kept by the neighbour while the villain looks.
const HELD_MS: i64 = 3_000;
const SECRET: &str = "what only the neighbour knows";

/// `sockaddr_un` of an abstract name, and its length.
fn abstract_name(name: &str) -> (Vec<u8>, usize) {
    let bytes = [&(AF_UNIX as u16).to_ne_bytes()[..], &[0], name.as_bytes()].concat();
    let length = bytes.len();
    (bytes, length)
}

#[test]
fn a_neighbours_sockets_shared_memory_and_queues_are_not_there() {
    attack(async |stage| {
        let (name, length) = abstract_name("bus");
        let (key, size, semaphores) = (0x7e57, 4096, 1);
        let neighbour = [
            call!(SYS_socket, AF_UNIX, SOCK_STREAM, 0),
            Order::call(SYS_bind, &[Arg::Result(0), Arg::Bytes(name.clone()), (length as i64).into()]),
            Order::call(SYS_listen, &[Arg::Result(0), 5.into()]),
            call!(SYS_shmget, key, size, IPC_CREAT | 0o777),
            call!(SYS_semget, key, semaphores, IPC_CREAT | 0o777),
            call!(SYS_msgget, key, IPC_CREAT | 0o777),
            call!(SYS_mq_open, "queue", O_RDWR | O_CREAT, 0o777, 0),
            call!(SYS_open, "/dev/shm/segment", O_RDWR | O_CREAT, 0o777),
            call!(SYS_open, "/tmp/file", O_RDWR | O_CREAT, 0o777),
            call!(SYS_creat, "/root/held", 0o600),
            Order::hold(HELD_MS),
        ];
        let villain = [
            call!(SYS_socket, AF_UNIX, SOCK_STREAM, 0),
            Order::call(SYS_connect, &[Arg::Result(0), Arg::Bytes(name.clone()), (length as i64).into()]),
            call!(SYS_shmget, key, 0, 0),
            call!(SYS_semget, key, 0, 0),
            call!(SYS_msgget, key, 0),
            call!(SYS_mq_open, "queue", O_RDWR, 0, 0),
            call!(SYS_open, "/dev/shm/segment", O_RDWR),
            call!(SYS_open, "/tmp/file", O_RDWR),
        ];
        let marker = stage.daemon.rootfs(&stage.neighbour.id).join("root/held");
        let looks = async {
            while !marker.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            // From itself it would get all of them: the orders are right.
            let own = stage.neighbour.obey(&villain).await;
            assert!(own.iter().all(|answer| answer.result >= 0), "{own:?}");
            stage.villain.obey(&villain).await
        };
        let (held, found) = join(stage.neighbour.obey(&neighbour), looks).await;
        assert!(held.iter().all(|answer| answer.result >= 0), "{held:?}");
        let reached: Vec<_> = found[1..].iter().enumerate().filter(|(_, answer)| answer.result >= 0).collect();
        assert!(reached.is_empty(), "{reached:?}");
        assert_eq!(found[1].errno(), Some(ECONNREFUSED));
    });
}

#[test]
fn processes_of_others_are_neither_seen_nor_touched() {
    attack(async |stage| {
        let others = [
            stage.init_of(&stage.neighbour),
            i32::try_from(stage.daemon.pid()).unwrap(),
            2,
            stage.init_of(&stage.villain),
        ];
        let own = stage.villain.sh("ls /proc | grep -c '^[0-9]'; cat /proc/[0-9]*/comm").await;
        let count: u32 = own.lines().next().unwrap().parse().unwrap();
        assert!(count < 12 && !own.contains("tenantry\n") && !own.contains("kthreadd"), "{own}");
        for pid in others {
            // A number that is a process of the container's by chance would be another process.
            if stage.villain.sh(&format!("ls -d /proc/{pid}")).await.starts_with("/proc/") {
                continue;
            }
            let path = |file: &str| format!("/proc/{pid}/{file}");
            let iovec = [0x1000u64.to_ne_bytes(), 8u64.to_ne_bytes()].concat();
            let orders = [
                call!(SYS_kill, pid, SIGKILL),
                call!(SYS_tgkill, pid, pid, SIGKILL),
                call!(SYS_pidfd_open, pid, 0),
                call!(SYS_ptrace, PTRACE_ATTACH, pid, 0, 0),
                call!(SYS_ptrace, PTRACE_SEIZE, pid, 0, 0),
                call!(SYS_process_vm_readv, pid, iovec.as_slice(), 1, iovec.as_slice(), 1, 0),
                call!(SYS_process_vm_writev, pid, iovec.as_slice(), 1, iovec.as_slice(), 1, 0),
                call!(SYS_kcmp, pid, 1, 0, 0, 0),
                call!(SYS_prlimit64, pid, RLIMIT_NOFILE, 0, 0),
                call!(SYS_setpriority, PRIO_PROCESS, pid, 19),
                call!(SYS_sched_setaffinity, pid, 8, [1u8; 8].as_slice()),
                call!(SYS_open, path("environ").as_str(), O_RDONLY),
                call!(SYS_open, path("mem").as_str(), O_RDWR),
                call!(SYS_open, path("root/etc/shadow").as_str(), O_RDONLY),
                call!(SYS_open, path("fd/0").as_str(), O_RDONLY),
            ];
            let answers = stage.villain.obey(&orders).await;
            let gone = |answer: &&Answer| !matches!(answer.errno(), Some(ESRCH | ENOENT));
            let touched: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| gone(answer)).collect();
            assert!(touched.is_empty(), "process {pid}: {touched:?}");
        }
        // Everything it may signal at once: itself.
        stage.villain.sh("kill -9 -1").await;
    });
}

#[test]
fn a_commands_helper_cannot_be_looked_into() {
    attack(async |stage| {
        // Someone inside watches for whatever appears, while commands come by way of the host.
        let watch = "i=0; while [ $i -lt 4000 ]; do for p in /proc/[0-9]*; do ls -l $p/exe $p/cwd $p/root $p/fd; done; i=$((i+1)); \
                     [ -e /root/enough ] && break; done 2>/dev/null | sort -u";
        let commands = async {
            for _ in 0..20 {
                stage.villain.obey(&[call!(SYS_getpid)]).await;
            }
            stage.villain.sh(": >/root/enough").await;
        };
        let (seen, ()) = join(stage.villain.sh(watch), commands).await;
        let host = [env!("CARGO_BIN_EXE_tenantry"), "/var/tmp", "/sys/fs/cgroup", "tenantry"];
        let found: Vec<_> = seen.lines().filter(|line| host.iter().any(|word| line.contains(word))).collect();
        assert!(seen.contains("/bin/busybox") && found.is_empty(), "{found:?} in {seen}");
    });
}

#[test]
fn what_a_container_was_told_is_in_no_other_and_not_on_the_host() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let env = serde_json::json!({ "environment_vars": { "KEY": SECRET } });
        client.patch(&format!("/containers/{}?restart=true", stage.neighbour.id), env).await.data(200);
        assert_eq!(stage.neighbour.sh("echo $KEY").await.trim(), SECRET);
        let search = "cat /proc/*/environ /proc/*/cmdline /proc/keys /dev/shm/* /tmp/* 2>/dev/null | tr '\\0' '\\n'; env; dmesg 2>&1";
        let seen = stage.villain.sh(search).await;
        assert!(!seen.contains(SECRET), "{seen}");
    });
}
