//! The host's files: by links, by what an image brings, by what was left open, by the program that starts containers itself.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use libc::*;
use reqwest::Method;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Stage, attack};
use crate::call;
use crate::support::attacker::{Arg, Insider, Order, PROGRAM, program};
use crate::support::daemon::{answer, id_of, patience};

/// A folder of the host's that nothing of a container's may end up in.
fn forbidden(stage: &Stage<'_>) -> std::path::PathBuf {
    let folder = stage.daemon.scratch().join("forbidden");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("hostname"), "the host's").unwrap();
    // Whoever gets there may write: only the way must be closed.
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    fs::set_permissions(folder.join("hostname"), PermissionsExt::from_mode(0o666)).unwrap();
    folder
}

fn assert_untouched(folder: &Path) {
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["hostname"]);
    assert_eq!(fs::read_to_string(folder.join("hostname")).unwrap(), "the host's");
}

#[test]
fn links_in_a_rootfs_lead_nowhere_outside_when_the_host_writes_there() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let forbidden = forbidden(stage);
        let target = forbidden.display();
        let up = format!("../../../../../../../../../..{target}");
        for (case, script) in [
            (
                "absolute",
                format!(
                    "rm -rf /root/.ssh /etc/hostname; ln -s {target} /root/.ssh; ln -s {target}/hostname /etc/hostname"
                ),
            ),
            (
                "upwards",
                format!("rm -rf /root/.ssh /etc/hostname; ln -s {up} /root/.ssh; ln -s {up}/hostname /etc/hostname"),
            ),
            (
                "by a process",
                format!("rm -rf /root/.ssh; ln -s /proc/1/root{target} /root/.ssh; ln -sf /proc/self/fd /etc/ssh"),
            ),
            (
                "the folder itself",
                format!("mv /etc /etc.old; ln -s {target} /etc; mv /var /var.old; ln -s {target} /var"),
            ),
        ] {
            stage.villain.sh(&script).await;
            // A copy gets a name, a machine id and a key, all written into the rootfs by the host.
            let path = format!("/containers/{}/copy?wait=none", stage.villain.id);
            let body = json!({ "name": format!("copy-{}", case.split(' ').next().unwrap()), "ssh_public_key": "ssh-ed25519 AAAA villain" });
            let copied = client.post(&path, body).await;
            assert!(copied.status < 300 || copied.json["error"].is_string(), "{case}: {}", copied.text);
            assert!(!copied.text.contains(&*target.to_string()), "{case}: {}", copied.text);
            assert_untouched(&forbidden);
            stage
                .villain
                .sh("[ -e /etc.old ] && rm /etc /var && mv /etc.old /etc && mv /var.old /var; rm -f /root/.ssh")
                .await;
        }
    });
}

#[test]
fn mount_points_made_into_links_mount_nothing_outside() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let forbidden = forbidden(stage);
        for place in ["proc", "sys", "dev", "ramdisk", "dev/shm", "sys/fs"] {
            for target in [
                forbidden.display().to_string(),
                format!("../../../../../..{}", forbidden.display()),
                "/proc/self/cwd".to_owned(),
            ] {
                assert_eq!(client.verb(&stage.villain.id, "stop").await.status, 200);
                let (at, kept) = (
                    stage.daemon.rootfs(&stage.villain.id).join(place),
                    stage.daemon.rootfs(&stage.villain.id).join("kept"),
                );
                let was_there = fs::rename(&at, &kept).is_ok();
                fs::create_dir_all(at.parent().unwrap()).unwrap();
                symlink(&target, &at).unwrap();
                // It may start, confined, or be refused; nothing else.
                let started = client.verb(&stage.villain.id, "start").await;
                let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", stage.daemon.pid())).unwrap();
                assert!(!mounts.contains("forbidden"), "{place} -> {target}: {mounts}");
                assert_untouched(&forbidden);
                assert!(
                    started.status == 200 || started.json["error"].is_string(),
                    "{place} -> {target}: {}",
                    started.text
                );
                if started.status == 200 {
                    let inside = stage.villain.sh("cat /proc/self/status /proc/1/status 2>&1").await;
                    assert!(!inside.contains("NoNewPrivs:\t0") && !inside.contains("Seccomp:\t0"), "{inside}");
                }
                assert_eq!(
                    client.verb(&stage.villain.id, "stop").await.status / 100,
                    if started.status == 200 { 2 } else { 4 }
                );
                fs::remove_file(&at).unwrap();
                if was_there {
                    fs::rename(&kept, &at).unwrap();
                }
                assert_eq!(client.verb(&stage.villain.id, "start").await.status, 200, "{place} -> {target}");
            }
        }
    });
}

#[test]
fn nothing_of_the_hosts_is_open_inside() {
    attack(async |stage| {
        // Init, and a command; each only has its three, and they lead to nothing but pipes, the null device and its own log.
        let init = stage.init_of(&stage.villain);
        let fds = fs::read_dir(format!("/proc/{init}/fd"))
            .unwrap()
            .map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
        let own_log = format!("/containers/{}/logs/", stage.villain.id);
        for target in fds.map(|path| path.display().to_string()) {
            let inside = target.starts_with("/sbin/") || target.starts_with("socket:") || target.starts_with("/bin/");
            assert!(target == "/dev/null" || target.contains(&own_log) || inside, "{target}");
        }
        let of_command = stage.villain.sh("for f in 0 1 2 3 4 5 6 7 8 9; do readlink /proc/$$/fd/$f; done").await;
        assert_eq!(of_command.lines().count(), 3, "{of_command}");
        assert!(of_command.lines().all(|line| line.starts_with("pipe:")), "{of_command}");
        let above = format!("/proc/self/cwd/../../../..{}", stage.daemon.data_dir().display());
        // Descriptors that are folders, and the folder one works in, would be ways out.
        let orders = [
            call!(SYS_openat, 3, "..", O_RDONLY),
            call!(SYS_openat, 10, "..", O_RDONLY),
            call!(SYS_fchdir, 0),
            call!(SYS_open, above.as_str(), O_RDONLY | O_DIRECTORY),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert!(answers.iter().all(|answer| matches!(answer.errno(), Some(EBADF | ENOTDIR | ENOENT))), "{answers:?}");
    });
}

#[test]
fn a_root_within_the_root_does_not_lead_above_it() {
    attack(async |stage| {
        stage.villain.sh("mkdir -p /root/jail").await;
        let mut orders = vec![call!(SYS_open, "/", O_RDONLY | O_DIRECTORY), call!(SYS_chroot, "/root/jail")];
        orders.push(Order::call(SYS_fchdir, &[Arg::Result(0)]));
        orders.extend((0..40).map(|_| call!(SYS_chdir, "..")));
        orders.push(call!(SYS_chroot, "."));
        orders.push(call!(SYS_open, PROGRAM, O_RDONLY));
        orders.push(call!(SYS_open, stage.daemon.data_dir().to_str().unwrap(), O_RDONLY));
        orders.push(call!(SYS_open, env!("CARGO_BIN_EXE_tenantry"), O_RDONLY));
        let answers = stage.villain.obey(&orders).await;
        let [own, above @ ..] = &answers[answers.len() - 3..] else { panic!() };
        assert!(own.result >= 0, "it comes out at its own root: {answers:?}");
        assert!(above.iter().all(|answer| answer.errno() == Some(ENOENT)), "{above:?}");
    });
}

#[test]
fn the_program_that_starts_containers_cannot_be_overwritten() {
    let binary = Path::new(env!("CARGO_BIN_EXE_tenantry"));
    let digest = || Sha256::digest(fs::read(binary).unwrap());
    let before = digest();
    attack(async |stage| {
        let client = &stage.daemon.client;
        // As the program to run, and as the interpreter of one: the helper's own file, while it still is what runs.
        stage
            .villain
            .sh("printf '#!/proc/self/exe runtime\\n' >/bin/trap; chmod 755 /bin/trap; ln -sf /proc/self/exe /bin/link")
            .await;
        for program in ["/proc/self/exe", "/proc/1/exe", "/bin/trap", "/bin/link"] {
            let body = json!({ "command": [program, "config", "default"], "timeout": 10 });
            client.post(&format!("/containers/{}/exec", stage.villain.id), body).await;
            client
                .patch(&format!("/containers/{}", stage.villain.id), json!({ "command": [program, "config"] }))
                .await
                .data(200);
            client.verb(&stage.villain.id, "restart").await;
        }
        client
            .patch(&format!("/containers/{}", stage.villain.id), json!({ "command": ["/bin/busybox", "sleep", "600"] }))
            .await
            .data(200);
        let path = format!("/containers/{}/start?wait=started", stage.villain.id);
        let started = answer(client.request(Method::POST, &path)).await;
        assert!(started.status == 200 || started.status == 400, "{}", started.text);
        // And again and again while commands come in by way of the host: whoever wins the race must not be able to write.
        let race = "i=0; while [ $i -lt 3000 ]; do for p in /proc/[0-9]*; do ( : >>$p/exe ) && readlink $p/exe; done; i=$((i+1)); \
                    [ -e /root/enough ] && break; done 2>/dev/null | sort -u";
        let commands = async {
            for _ in 0..10 {
                stage.villain.obey(&[call!(SYS_getpid)]).await;
            }
            stage.villain.sh(": >/root/enough").await;
        };
        let (written, ()) = futures_util::future::join(stage.villain.sh(race), commands).await;
        assert!(!written.contains("tenantry"), "{written}");
    });
    assert_eq!(digest(), before);
}

#[test]
fn mounts_do_not_pass_from_one_to_another() {
    attack(async |stage| {
        for insider in [&stage.villain, &stage.neighbour] {
            let mounts = insider.sh("cat /proc/self/mountinfo").await;
            assert!(!mounts.contains(" shared:") && !mounts.contains(" master:"), "{mounts}");
            let other = if insider.id == stage.villain.id { &stage.neighbour.id } else { &stage.villain.id };
            assert!(!mounts.contains(other.as_str()), "{mounts}");
            let (device, root) = (mounts.lines().next().unwrap(), "/rootfs / ");
            assert!(device.contains(root) && device.contains("nosuid,nodev"), "{device}");
        }
        // The folder of all containers is not under the root of one: its files are a mount of their own.
        let orders = [
            call!(SYS_open, "/..", O_RDONLY | O_DIRECTORY),
            Order::call(SYS_openat, &[Arg::Result(0), "../../containers".into(), O_RDONLY.into()]),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert_eq!(answers[1].errno(), Some(ENOENT));
    });
}

#[test]
fn devices_cannot_be_made_and_those_that_are_there_are_dead() {
    attack(async |stage| {
        let (character, block) = (S_IFCHR | 0o666, S_IFBLK | 0o666);
        let number = |major: u32, minor: u32| i64::try_from(makedev(major, minor)).unwrap();
        let orders = [
            call!(SYS_mknod, "/root/mem", character, number(1, 1)),
            call!(SYS_mknod, "/root/disk", block, number(8, 0)),
            call!(SYS_mknod, "/dev/loop", block, number(7, 0)),
            call!(SYS_mknod, "/ramdisk/kmsg", character, number(1, 11)),
            call!(SYS_mknod, "/dev/shm/null", character, number(1, 3)),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert!(answers.iter().all(|answer| answer.errno() == Some(EPERM)), "{answers:?}");
        // One that came into the rootfs by another way, such as an operator's hand.
        let rootfs = stage.daemon.rootfs(&stage.villain.id);
        for (name, kind, major, minor) in [("zero", "c", "1", "5"), ("null", "c", "1", "3"), ("loop", "b", "7", "0")] {
            let path = rootfs.join("root").join(name);
            let made =
                Command::new("mknod").arg("-m").arg("666").arg(&path).args([kind, major, minor]).status().unwrap();
            assert!(made.success());
        }
        for name in ["zero", "null", "loop"] {
            let opened = stage.villain.try_to(call!(SYS_open, format!("/root/{name}").as_str(), O_RDWR)).await;
            assert_eq!(opened.errno(), Some(EACCES), "{name}");
        }
        let listed = stage.villain.sh("find /dev -type c -o -type b | sort | tr '\\n' ' '").await;
        assert_eq!(listed.trim(), "/dev/full /dev/null /dev/pts/ptmx /dev/random /dev/tty /dev/urandom /dev/zero");
    });
}

/// An image with a busybox, device nodes, and root's setuid program.
fn hostile_image() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, data: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        if kind == tar::EntryType::Char || kind == tar::EntryType::Block {
            header.set_device_major(1).unwrap();
            header.set_device_minor(1).unwrap();
        }
        if let Some(link) = link {
            header.set_link_name(link).unwrap();
        }
        header.set_path(path).unwrap();
        header.set_cksum();
        archive.append(&header, data).unwrap();
    };
    let folder = tar::EntryType::Directory;
    for path in ["bin", "dev", "etc", "proc", "sys", "root", "tmp"] {
        add(path, folder, 0o755, b"", None);
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &fs::read("/bin/busybox").unwrap(), None);
    for applet in ["sh", "id", "ls", "sleep", "cat"] {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"", Some("busybox"));
    }
    add("bin/attacker", tar::EntryType::Regular, 0o6755, &fs::read(program()).unwrap(), None);
    add("etc/passwd", tar::EntryType::Regular, 0o644, b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", None);
    add("root/mem", tar::EntryType::Char, 0o666, b"", None);
    add("root/disk", tar::EntryType::Block, 0o666, b"", None);
    archive.into_inner().unwrap()
}

#[test]
fn what_an_image_brings_has_no_power() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let imported = answer(client.request(Method::POST, "/images?name=hostile").body(hostile_image())).await;
        assert!(imported.status < 300, "{}", imported.text);
        let body = json!({ "name": "imported", "container_image": "hostile", "command": ["/bin/sleep", "600"] });
        let path = format!("/projects/{}/containers?wait=started", stage.project);
        let container = client.post(&path, body).await.data(201);
        let rootfs = stage.daemon.rootfs(&id_of(&container));
        assert!(!rootfs.join("root/mem").exists() && !rootfs.join("root/disk").exists());
        // Root's setuid program, run by a user: it stays that user's, and has nothing.
        let setuid = fs::metadata(rootfs.join("bin/attacker")).unwrap().permissions().mode();
        assert_eq!(setuid & 0o7777, 0o6755, "it is there, as the image has it");
        let inside = Insider::of(stage.daemon, &id_of(&container));
        let drop_user = [
            call!(SYS_setresgid, 1000, 1000, 1000),
            call!(SYS_setresuid, 1000, 1000, 1000),
            call!(SYS_geteuid),
            Order::spawn(PROGRAM, &[call!(SYS_geteuid), call!(SYS_getegid), call!(SYS_setresuid, 0, 0, 0)]),
        ];
        let answers = inside.obey(&drop_user).await;
        assert_eq!(answers[2].result, 1000, "{answers:?}");
        let said = String::from_utf8(answers[3].rooms[0].clone()).unwrap();
        assert_eq!(said.lines().map(str::trim).collect::<Vec<_>>(), ["1000", "1000", "-1"], "setuid had an effect");
        // On the host it would be root's in earnest: nobody but root may come to where it lies.
        for folder in rootfs.ancestors().skip(1).take(4) {
            let mode = fs::metadata(folder).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", folder.display());
        }
    });
}

#[test]
fn the_log_takes_no_more_of_the_disk_than_its_bound() {
    attack(async |stage| {
        let log =
            stage.daemon.data_dir().join("pool/containers").join(&stage.villain.id).join("logs/console/console.log");
        // Opened anew, it is not only appended to: space can be reserved in it, and its length set to anything.
        let gib = 1i64 << 30;
        let orders = [
            call!(SYS_open, "/proc/1/fd/1", O_RDWR),
            Order::call(SYS_fallocate, &[Arg::Result(0), 1.into(), 0.into(), gib.into()]),
            Order::call(SYS_ftruncate, &[Arg::Result(0), i64::MAX.into()]),
            Order::call(SYS_ftruncate, &[Arg::Result(0), (i64::MAX / 2).into()]),
        ];
        let answers = stage.villain.obey(&orders).await;
        let deadline = std::time::Instant::now() + patience(15);
        loop {
            use std::os::unix::fs::MetadataExt;
            let (length, blocks) = fs::metadata(&log).map(|found| (found.len(), found.blocks() * 512)).unwrap();
            if length < 64 << 20 && blocks < 64 << 20 {
                break;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{length} bytes long, {blocks} on the disk, after {answers:?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        // And it is read on as if nothing had been.
        assert_eq!(stage.daemon.client.get(&format!("/containers/{}/logs", stage.villain.id)).await.status, 200);
    });
}
