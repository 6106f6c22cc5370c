//! The kernel itself: calls that work on the machine and not on the container.

use libc::*;

use super::attack;
use crate::call;
use crate::support::attacker::{Arg, Order};

/// Where paths of the mount API begin.
const ROOT: i32 = AT_FDCWD;
/// Shares a file's extents (`ioctl_ficlone(2)`).
const FICLONE: i64 = 0x4004_9409;

#[test]
fn calls_that_work_on_the_machine_are_refused() {
    let namespaces =
        [CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP];
    let refused: Vec<(&str, Order)> = vec![
        ("load a module", call!(SYS_init_module, "ELF", 3, "")),
        ("load a module from a file", call!(SYS_finit_module, 0, "", 0)),
        ("unload a module", call!(SYS_delete_module, "loop", 0)),
        ("another kernel", call!(SYS_kexec_load, 0, 0, 0, 0)),
        ("another kernel from a file", call!(SYS_kexec_file_load, 0, 0, 0, 0, 0)),
        ("reboot", call!(SYS_reboot, 0xfee1_dead_u32, 672_274_793, 0x89ab_cdef_u32, 0)),
        ("a BPF program", call!(SYS_bpf, 5, 0, 0)),
        ("performance counters", call!(SYS_perf_event_open, 0, 0, -1, -1, 0)),
        ("io_uring", call!(SYS_io_uring_setup, 8, 0)),
        ("faults handled by a program", call!(SYS_userfaultfd, 0)),
        ("faults handled by a program, of its own", call!(SYS_userfaultfd, 1)),
        ("mount", call!(SYS_mount, "none", "/tmp", "tmpfs", 0, 0)),
        ("mount the host's disk", call!(SYS_mount, "/dev/vda", "/tmp", "ext4", 0, 0)),
        ("make /proc/sys writable again", call!(SYS_mount, "none", "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0)),
        ("unmount what masks", call!(SYS_umount2, "/proc/keys", MNT_DETACH)),
        ("change the root", call!(SYS_pivot_root, "/", "/tmp")),
        ("the mount API: open a tree", call!(SYS_open_tree, ROOT, "/", 1)),
        ("the mount API: move", call!(SYS_move_mount, ROOT, "/", ROOT, "/tmp", 0)),
        ("the mount API: a filesystem", call!(SYS_fsopen, "proc", 0)),
        ("the mount API: attributes", call!(SYS_mount_setattr, ROOT, "/", 0, 0, 0)),
        ("a file by its handle", call!(SYS_open_by_handle_at, ROOT, 0, 0)),
        ("quotas", call!(SYS_quotactl, 0, 0, 0, 0)),
        ("swap", call!(SYS_swapon, "/tmp/swap", 0)),
        ("accounting", call!(SYS_acct, "/tmp/acct")),
        ("the clock", call!(SYS_clock_settime, 0, 0)),
        ("the clock's speed", call!(SYS_clock_adjtime, 0, 0)),
        ("the time of day", call!(SYS_settimeofday, 0, 0)),
        ("the kernel's log", call!(SYS_syslog, 3, 0, 0)),
        ("the host's name", call!(SYS_sethostname, "evil", 4)),
        ("I/O ports", call!(SYS_iopl, 3)),
        ("I/O ports one by one", call!(SYS_ioperm, 0, 1024, 1)),
        ("watch all files", call!(SYS_fanotify_init, 0, 0)),
        ("keys: add", call!(SYS_add_key, "user", "x", "y", 1, -3)),
        ("keys: ask the host for one", call!(SYS_request_key, "user", "x", "", -3)),
        ("keys: the session's", call!(SYS_keyctl, 0, -3, 0)),
        ("a namespace of somebody", call!(SYS_setns, 0, 0)),
        ("segments", call!(SYS_modify_ldt, 0, 0, 0)),
        ("memory policy of others", call!(SYS_move_pages, 1, 0, 0, 0, 0, 0)),
        ("an address space that runs what it reads", call!(SYS_personality, 0x0040_0000)),
    ];
    let namespaces = namespaces.into_iter().flat_map(|kind| {
        let signal = SIGCHLD;
        [("unshare", call!(SYS_unshare, kind)), ("clone", call!(SYS_clone, kind | signal, 0, 0, 0, 0))]
    });
    let refused: Vec<_> = refused.into_iter().chain(namespaces).collect();
    attack(async |stage| {
        let orders: Vec<Order> = refused.iter().map(|(_, order)| order.clone()).collect();
        let answers = stage.villain.obey(&orders).await;
        let open: Vec<_> = refused.iter().zip(&answers).filter(|(_, answer)| answer.errno() != Some(EPERM)).collect();
        assert!(open.is_empty(), "{open:#?}");
        // What hides its flags from a filter, or has one bound for the whole host, seems not to exist.
        let absent = [call!(SYS_clone3, 0, 0), call!(SYS_io_setup, 65_536, 0), call!(470), call!(9_999)];
        let answers = stage.villain.obey(&absent).await;
        assert!(answers.iter().all(|answer| answer.errno() == Some(ENOSYS)), "{answers:?}");
    });
}

#[test]
fn other_ways_into_the_kernel_are_closed() {
    attack(async |stage| {
        let x32 = stage.villain.try_to(call!(0x4000_0000_i64 | SYS_getpid)).await;
        assert_eq!(x32.errno(), Some(EPERM));
        let end = stage.villain.dare(&[Order::call_i386(20)]).await;
        assert!(end.answers.is_empty() && end.exit_code == i64::from(128 + SIGSYS), "{end:?}");
    });
}

#[test]
fn sockets_that_reach_below_or_load_modules_are_refused() {
    let refused = [
        ("raw IPv4", AF_INET, SOCK_RAW, IPPROTO_ICMP),
        ("raw IPv6", AF_INET6, SOCK_RAW, IPPROTO_ICMPV6),
        ("any protocol", AF_INET, SOCK_RAW, IPPROTO_RAW),
        ("packets", AF_PACKET, SOCK_RAW, 0x0300),
        ("packets without their headers", AF_PACKET, SOCK_DGRAM, 0x0608),
        ("the host's virtual machine monitor", AF_VSOCK, SOCK_STREAM, 0),
        ("the kernel's ciphers", AF_ALG, SOCK_SEQPACKET, 0),
        ("SCTP", AF_INET, SOCK_STREAM, IPPROTO_SCTP),
        ("DCCP", AF_INET, SOCK_DCCP, IPPROTO_DCCP),
        ("TIPC", AF_TIPC, SOCK_SEQPACKET, 0),
        ("Bluetooth", AF_BLUETOOTH, SOCK_RAW, 0),
        ("CAN", AF_CAN, SOCK_RAW, 1),
        ("RDS", AF_RDS, SOCK_SEQPACKET, 0),
        ("XDP", AF_XDP, SOCK_RAW, 0),
        ("the firewall", AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER),
        ("IPsec", AF_NETLINK, SOCK_RAW, NETLINK_XFRM),
    ];
    attack(async |stage| {
        let orders: Vec<_> =
            refused.iter().map(|(_, f, kind, protocol)| call!(SYS_socket, *f, *kind, *protocol)).collect();
        let answers = stage.villain.obey(&orders).await;
        let open: Vec<_> = refused.iter().zip(&answers).filter(|(_, answer)| answer.errno() != Some(EPERM)).collect();
        assert!(open.is_empty(), "{open:?}");
        // Everyday ones are there, but carry no program.
        let filter = [1u8, 0, 0, 0, 0, 0, 0, 0].as_slice();
        let orders = [
            call!(SYS_socket, AF_INET, SOCK_STREAM, 0),
            call!(SYS_socket, AF_INET, SOCK_DGRAM, IPPROTO_ICMP),
            call!(SYS_socket, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE),
            Order::call(SYS_setsockopt, &[0, SOL_SOCKET, SO_ATTACH_FILTER].map(Into::into)),
            call!(SYS_setsockopt, 0, SOL_SOCKET, SO_ATTACH_BPF, filter, 8),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert!(answers[..3].iter().all(|answer| answer.result >= 0), "{answers:?}");
        assert!(answers[3..].iter().all(|answer| answer.errno() == Some(EPERM)), "{answers:?}");
    });
}

#[test]
fn the_filesystems_own_calls_are_refused_and_shared_extents_are_not() {
    attack(async |stage| {
        let before = stage.daemon.objects();
        // `struct btrfs_ioctl_vol_args`: a descriptor and a name.
        let volume = [&[0u8; 8][..], b"nested", &[0; 4088 - 6]].concat();
        let folder = Arg::Result(0);
        let requests: [i64; 9] = [
            0x5000_940e, // SUBVOL_CREATE
            0x5000_9418, // SUBVOL_CREATE_V2
            0x5000_9401, // SNAP_CREATE
            0x5000_940f, // SNAP_DESTROY
            0x4008_941a, // SUBVOL_SETFLAGS: read-only
            0xc0c8_9425, // SET_RECEIVED_SUBVOL
            0xc010_9428, // QUOTA_CTL
            0xd000_9411, // TREE_SEARCH
            0xc010_9414, // SPACE_INFO: the whole pool's
        ];
        let mut orders = vec![call!(SYS_open, "/root", O_RDONLY | O_DIRECTORY)];
        // With a bit that the kernel does not look at, too.
        for request in requests.into_iter().flat_map(|request| [request, request | 1 << 32]) {
            let argument = Arg::Bytes(volume.clone());
            orders.push(Order::call(SYS_ioctl, &[folder.clone(), request.into(), argument]));
        }
        let answers = stage.villain.obey(&orders).await;
        assert!(answers[0].result >= 0, "{answers:?}");
        assert!(answers[1..].iter().all(|answer| answer.errno() == Some(EPERM)), "{answers:?}");
        stage.villain.sh("echo twice >/root/a").await;
        let clone = [
            call!(SYS_open, "/root/a", O_RDONLY),
            call!(SYS_open, "/root/b", O_WRONLY | O_CREAT, 0o600),
            Order::call(SYS_ioctl, &[Arg::Result(1), FICLONE.into(), Arg::Result(0)]),
        ];
        assert_eq!(stage.villain.obey(&clone).await[2].result, 0);
        assert_eq!(stage.villain.sh("cat /root/b").await, "twice\n");
        assert_eq!(stage.daemon.objects(), before);
    });
}

#[test]
fn the_kernels_own_switches_cannot_be_written() {
    let switches = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/kernel/sysrq",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/fs/suid_dumpable",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv4/conf/all/rp_filter",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sysrq-trigger",
        "/proc/kcore",
        "/proc/kmsg",
        "/proc/mtrr",
        "/proc/bus/pci/devices",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/profiling",
        "/sys/power/state",
        "/sys/module/kernel/parameters/panic",
        "/sys/firmware/efi/efivars/x",
        "/sys/fs/bpf/x",
        "/dev/kmsg",
        "/dev/mem",
        "/dev/kvm",
        "/dev/fuse",
        "/dev/loop-control",
        "/dev/net/tun",
    ];
    attack(async |stage| {
        let orders: Vec<_> = switches.iter().map(|path| call!(SYS_open, *path, O_WRONLY)).collect();
        let answers = stage.villain.obey(&orders).await;
        for (path, _) in switches.iter().zip(&answers).filter(|(_, answer)| answer.errno().is_none()) {
            // What is masked is the null device: it takes whatever is written, and does nothing with it.
            let device = stage.villain.sh(&format!("stat -c %F:%t:%T {path}")).await;
            assert_eq!(device.trim(), "character special file:1:3", "{path} can be opened for writing");
        }
    });
}

#[test]
fn control_groups_can_neither_be_left_nor_changed() {
    attack(async |stage| {
        let inside = stage.villain.sh("cat /proc/self/cgroup; find /sys/fs/cgroup -maxdepth 2 -type f").await;
        assert!(inside.lines().any(|line| line.contains("/cgroup.procs")), "it sees its own: {inside}");
        let own_groups = inside.lines().filter(|line| !line.starts_with("/sys"));
        assert!(own_groups.clone().count() > 0 && own_groups.clone().all(|line| line.ends_with(":/")), "{inside}");
        let files: Vec<&str> = inside.lines().filter(|line| line.starts_with("/sys")).collect();
        let orders: Vec<_> = files.iter().map(|path| call!(SYS_open, *path, O_WRONLY)).collect();
        let answers = stage.villain.obey(&orders).await;
        let open: Vec<_> =
            files.iter().zip(&answers).filter(|(_, answer)| !matches!(answer.errno(), Some(EROFS | EACCES))).collect();
        assert!(open.is_empty(), "{open:?}");
        // The old way out: a group of one's own whose last process's end runs a program of the host's.
        let made = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/x && echo made $d; done 2>/dev/null";
        assert_eq!(stage.villain.sh(made).await, "");
    });
}

/// What cores do is the whole machine's: this runs only where the machine is the test's own.
#[test]
fn a_crash_starts_no_program_of_the_hosts() {
    if !crate::support::daemon::in_vm() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (handler, marker) = (scratch.path().join("handler"), scratch.path().join("started"));
    std::fs::write(&handler, format!("#!/bin/sh\ncat >/dev/null\n: >{}\n", marker.display())).unwrap();
    std::fs::set_permissions(&handler, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let pattern = std::path::Path::new("/proc/sys/kernel/core_pattern");
    let before = std::fs::read(pattern).unwrap();
    std::fs::write(pattern, format!("|{}", handler.display())).unwrap();
    attack(async |stage| {
        // Zero is what would start it: the call seems to go well, and changes nothing.
        let orders = [
            call!(SYS_setrlimit, RLIMIT_CORE, [0u8; 16].as_slice()),
            call!(SYS_prlimit64, 0, RLIMIT_CORE, [0u8; 16].as_slice(), 0),
            Order::crash(),
        ];
        let end = stage.villain.dare(&orders).await;
        assert_eq!((end.answers.len(), end.exit_code), (2, i64::from(128 + SIGSEGV)), "{end:?}");
        std::thread::sleep(std::time::Duration::from_secs(2));
    });
    std::fs::write(pattern, before).unwrap();
    assert!(!marker.exists(), "the host's handler was started");
}

#[test]
fn core_dumps_stay_off_whatever_is_asked_for() {
    attack(async |stage| {
        let core = RLIMIT_CORE;
        let orders = [
            call!(SYS_setrlimit, core, [0u8; 16].as_slice()),
            call!(SYS_prlimit64, 0, i64::from(core) | 1 << 32, [0u8; 16].as_slice(), 0),
            Order::call(SYS_prlimit64, &[0.into(), core.into(), 0.into(), Arg::Room(16)]),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert_eq!((answers[0].result, answers[1].result), (0, 0), "{answers:?}");
        // core(5): at 1 neither a file is written nor a program started.
        let one = [1u64.to_ne_bytes(), 1u64.to_ne_bytes()].concat();
        assert_eq!(answers[2].rooms, [one]);
    });
}
