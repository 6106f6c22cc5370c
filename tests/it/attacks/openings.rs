//! The profiles that open more: each opens what it names, to those who were given it by an admin, and nothing else.

use libc::*;
use serde_json::json;

use super::attack;
use crate::call;
use crate::support::attacker::Insider;
use crate::support::daemon::id_of;

#[test]
fn a_profile_opens_what_it_names_and_copies_take_it_along() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let path = format!("/projects/{}/containers", stage.project);
        let uring = call!(SYS_io_uring_setup, 4, vec![0u8; 120].as_slice());
        let nested = call!(SYS_unshare, CLONE_NEWUSER);
        let never = [
            call!(SYS_bpf, 5, 0, 0),
            call!(SYS_init_module, "", 0, ""),
            call!(SYS_keyctl, 0, -3, 0),
            call!(SYS_socket, AF_PACKET, SOCK_RAW, 0),
        ];
        for (profile, opened, closed) in [("io-uring", &uring, &nested), ("nested", &nested, &uring)] {
            let body = json!({ "name": format!("with-{profile}"), "confinement": profile, "template": true });
            let template = client.post(&path, body).await.data(201);
            assert_eq!(template["confinement"], profile);
            let copy = client.copy(&id_of(&template), json!({ "name": format!("copy-{profile}") })).await;
            assert_eq!(copy["confinement"], profile);
            let inside = Insider::enter(stage.daemon, &id_of(&copy));
            assert!(inside.try_to(opened.clone()).await.result >= 0, "{profile} opens nothing");
            assert_eq!(inside.try_to(closed.clone()).await.errno(), Some(EPERM), "{profile}");
            let answers = inside.obey(&never).await;
            assert!(answers.iter().all(|answer| answer.errno() == Some(EPERM)), "{profile}: {answers:?}");
            // Closed again, from the next start on.
            let closing = format!("/containers/{}?restart=true", inside.id);
            assert_eq!(
                client.patch(&closing, json!({ "confinement": "standard" })).await.data(200)["confinement"],
                "standard"
            );
            assert_eq!(inside.try_to(opened.clone()).await.errno(), Some(EPERM), "{profile}");
        }
        assert_eq!(client.container(&stage.villain.id).await["confinement"], "standard");
    });
}

#[test]
fn root_of_a_nested_namespace_is_still_nobody_outside() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let body = json!({ "name": "nested", "confinement": "nested" });
        let container = client.post(&format!("/projects/{}/containers", stage.project), body).await.data(201);
        let inside = Insider::enter(stage.daemon, &id_of(&container));
        let orders = [
            call!(SYS_unshare, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID),
            call!(SYS_mount, "none", "/tmp", "tmpfs", 0, 0),
            // What was locked stays so: neither unmasked nor writable, and the host's disks are no filesystems for it.
            call!(SYS_umount2, "/proc/keys", MNT_DETACH),
            call!(SYS_mount, "none", "/proc/sys", 0, MS_REMOUNT | MS_BIND, 0),
            call!(SYS_mount, "none", "/sys/fs/cgroup", 0, MS_REMOUNT | MS_BIND, 0),
            call!(SYS_mount, "/dev/loop0", "/tmp", "btrfs", 0, 0),
            call!(SYS_mount, "proc", "/root", "proc", 0, 0),
            call!(SYS_mknod, "/tmp/mem", S_IFCHR | 0o666, 0x101),
            call!(SYS_open, "/proc/sys/kernel/core_pattern", O_WRONLY),
        ];
        let answers = inside.obey(&orders).await;
        assert_eq!(answers[0].result, 0, "{answers:?}");
        assert!(answers[2..].iter().all(|answer| answer.errno().is_some()), "{answers:?}");
    });
}

#[test]
fn only_an_admin_opens_more() {
    attack(async |stage| {
        let client = &stage.daemon.client;
        let bound = json!({ "alias": "bound", "project_id": stage.project });
        let bound = client.post("/auth/tokens", bound).await.data(201);
        let bound = client.with_token(bound["token"].as_str().unwrap());
        let containers = format!("/projects/{}/containers", stage.project);
        let villain = format!("/containers/{}", stage.villain.id);
        let nested = json!({ "confinement": "nested" });
        let before = client.containers_total().await;
        bound.post(&containers, nested.clone()).await.refused(403, "INSUFFICIENT_PERMISSIONS");
        bound.post(&format!("{villain}/copy"), nested.clone()).await.refused(403, "INSUFFICIENT_PERMISSIONS");
        bound.patch(&villain, nested.clone()).await.refused(403, "INSUFFICIENT_PERMISSIONS");
        bound.put(&villain, nested).await.refused(403, "INSUFFICIENT_PERMISSIONS");
        bound.patch(&villain, json!({ "confinement": "standard" })).await.data(200);
        for bad in [json!("open"), json!(""), json!(7), json!(null)] {
            let refused = client.patch(&villain, json!({ "confinement": bad })).await;
            assert_eq!((refused.status, refused.field()), (400, Some("confinement")), "{}", refused.text);
        }
        assert_eq!(client.containers_total().await, before);
        assert_eq!(client.container(&stage.villain.id).await["confinement"], "standard");
    });
}
