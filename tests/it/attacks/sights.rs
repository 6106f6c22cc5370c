//! What programs that look for a way out of a container look at: capabilities, seccomp, namespaces, what is mounted, what can be
//! written, sockets of daemons, what the environment and the files tell of the host.

use std::collections::BTreeMap;
use std::fs;

use libc::*;

use super::attack;
use crate::call;

/// `/proc/self/status`, by key.
fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect()
}

#[test]
fn privileges_are_what_the_table_says() {
    attack(async |stage| {
        // CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT
        let kept = "00000000000405fb";
        let none = "0000000000000000";
        for text in ["cat /proc/self/status", "cat /proc/1/status"] {
            let text = stage.villain.sh(text).await;
            let status = status(&text);
            for (key, wanted) in [
                ("CapBnd", kept),
                ("CapEff", kept),
                ("CapPrm", kept),
                ("CapInh", none),
                ("CapAmb", none),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
                ("Groups", ""),
            ] {
                assert_eq!(status[key], wanted, "{key}");
            }
        }
        // What is refused cannot be had back.
        let mut raised = [0u8; 24];
        raised[..12].fill(0xff);
        let header = [0x2008_0522u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        let orders = [
            call!(SYS_capset, header.as_slice(), raised.as_slice()),
            call!(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 12, 0, 0),
            call!(SYS_prctl, PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0),
            call!(SYS_prctl, PR_SET_SECCOMP, 0, 0),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert!(answers.iter().all(|answer| matches!(answer.errno(), Some(EPERM | EINVAL))), "{answers:?}");
    });
}

#[test]
fn namespaces_are_the_containers_own() {
    attack(async |stage| {
        for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            let [villain, neighbour] = [&stage.villain, &stage.neighbour]
                .map(|insider| fs::read_link(format!("/proc/{}/ns/{name}", stage.init_of(insider))).unwrap());
            let host = fs::read_link(format!("/proc/{}/ns/{name}", stage.daemon.pid())).unwrap();
            assert!(
                villain != neighbour && villain != host && neighbour != host,
                "{name}: {villain:?} {neighbour:?} {host:?}"
            );
        }
        let map = |text: String| -> Vec<u64> { text.split_whitespace().map(|word| word.parse().unwrap()).collect() };
        let (a, b) = (
            map(stage.villain.sh("cat /proc/self/uid_map").await),
            map(stage.neighbour.sh("cat /proc/self/uid_map").await),
        );
        assert!(a[0] == 0 && a[2] == 65_536 && b[2] == 65_536, "{a:?} {b:?}");
        assert!(a[1].abs_diff(b[1]) >= 65_536 && a[1] >= 65_536, "their ids overlap: {a:?} {b:?}");
    });
}

#[test]
fn nothing_mounted_tells_of_the_host_or_reaches_it() {
    let kinds = ["btrfs", "proc", "tmpfs", "devpts", "mqueue", "sysfs", "cgroup", "cgroup2", "devtmpfs"];
    attack(async |stage| {
        let mounts = stage.villain.sh("cat /proc/self/mounts").await;
        for line in mounts.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let (place, kind, options) = (fields[1], fields[2], fields[3]);
            assert!(kinds.contains(&kind), "{line}");
            let read_only = options.split(',').any(|option| option == "ro");
            match kind {
                "sysfs" => assert!(read_only, "{line}"),
                // Device files one by one, over which nothing else is.
                "devtmpfs" => assert!(place.starts_with("/dev/") || place.starts_with("/proc/"), "{line}"),
                "btrfs" => assert!(place == "/" && options.contains("nosuid,nodev"), "{line}"),
                _ => assert!(options.contains("nosuid") || read_only, "{line}"),
            }
        }
        // The uppermost mount of each place is what is seen.
        for place in ["/proc/sys", "/proc/bus", "/proc/irq", "/sys", "/sys/fs/cgroup"] {
            let seen = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some(place)).unwrap_or_default();
            assert!(seen.split([' ', ',']).any(|word| word == "ro"), "{place}: {seen}");
        }
        let hidden = "cat /proc/kcore /proc/keys /proc/key-users /proc/timer_list /proc/interrupts /proc/diskstats 2>/dev/null | wc -c; \
                      ls -A /sys/firmware /sys/fs/btrfs /sys/devices/virtual/block /proc/acpi /proc/pressure 2>/dev/null | grep -v : | grep -c .";
        assert_eq!(stage.villain.sh(hidden).await, "0\n0\n");
        let host_paths =
            "grep -rls -e tenantry -e /var/tmp /proc/self/mountinfo /proc/cmdline /proc/1/cgroup 2>/dev/null";
        assert_eq!(stage.villain.sh(host_paths).await, "", "they name the host's folders");
    });
}

#[test]
fn what_can_be_written_outside_the_rootfs_is_only_its_own() {
    // Of the kernel's own files: what a process says about itself.
    let known = |path: &str| path.starts_with("/proc/self/") || path.starts_with("/proc/thread-self/");
    attack(async |stage| {
        let list = stage.villain.sh("find /proc /sys -type f 2>/dev/null | grep -v '^/proc/[0-9]'").await;
        let paths: Vec<&str> = list.lines().filter(|path| path.starts_with('/') && !known(path)).collect();
        assert!(paths.len() > 500, "{} files were found", paths.len());
        let mut open = Vec::new();
        for some in paths.chunks(2_000) {
            let orders: Vec<_> = some.iter().map(|path| call!(SYS_open, *path, O_WRONLY | O_NONBLOCK)).collect();
            let answers = stage.villain.obey(&orders).await;
            open.extend(some.iter().zip(answers).filter(|(_, answer)| answer.result >= 0).map(|(path, _)| *path));
        }
        assert!(open.is_empty(), "{open:?}");
    });
}

#[test]
fn no_daemon_no_cloud_and_no_secret_of_the_hosts_is_in_sight() {
    attack(async |stage| {
        let sockets = "find / -xdev -type s 2>/dev/null; ls -d /var/run/docker.sock /run/containerd /run/crio /run/podman /run/systemd \
                       /run/dbus /var/run/secrets /host /rootfs 2>/dev/null; cat /proc/net/unix | grep -v Num";
        assert_eq!(stage.villain.sh(sockets).await, "");
        let token = fs::read_to_string(stage.daemon.data_dir().join("admin.token")).unwrap();
        let env = stage.villain.sh("env; cat /proc/1/environ | tr '\\0' '\\n'").await;
        let known =
            ["PATH=", "HOME=", "PORT=", "TENANTRY_CONTAINER_ID=", "TENANTRY_PROJECT_ID=", "PWD=", "SHLVL=", "OLDPWD="];
        let other: Vec<_> = env.lines().filter(|line| !known.iter().any(|key| line.starts_with(key))).collect();
        assert!(other.is_empty() && !env.contains(token.trim()), "{other:?}");
        let metadata = "for a in 169.254.169.254 169.254.170.2 100.100.100.200 fd00:ec2::254; do wget -q -T 1 -O - http://$a/ 2>/dev/null && echo $a; done";
        assert_eq!(stage.villain.sh(metadata).await, "");
    });
}
