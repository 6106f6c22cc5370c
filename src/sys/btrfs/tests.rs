//! The pool on a real filesystem. Each test has a loop file of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::testing::TestPool;
use super::*;
use crate::domain::Bytes;

/// Writes incompressible bytes until `size` or the first error; how many went in.
fn fill(path: &Path, size: Bytes) -> (u64, io::Result<()>) {
    let chunk: Vec<u8> = (0..1 << 20).map(|_| rand::random()).collect();
    let mut written = 0;
    let mut write = || {
        let mut file = File::create(path)?;
        while written < size.0 {
            file.write_all(&chunk)?;
            // Without it the error of delayed allocation would come when nobody looks.
            file.sync_data()?;
            written += chunk.len() as u64;
        }
        Ok(())
    };
    let answer = write();
    (written, answer)
}

fn settle(pool: &TestPool) {
    ioctl::sync(File::open(pool.pool().root()).unwrap().as_fd()).unwrap();
}

#[tokio::test]
async fn a_limit_stops_writes_and_the_full_tenant_can_still_delete() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, path) = (test.pool(), test.path("containers/a"));
    pool.create(&path).await.unwrap();
    pool.set_limit(&path, Some(Bytes::mib(20))).await.unwrap();
    let (written, answer) = fill(&path.join("file"), Bytes::mib(40));
    assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    assert!((15 << 20..=20 << 20).contains(&written), "{written} bytes went in");
    settle(&test);
    let usage = pool.usage(&path).await.unwrap();
    assert_eq!(usage.limit, Some(Bytes::mib(20)));
    assert!(usage.used <= Bytes::mib(20) && usage.used.0 >= written - (1 << 20), "{usage:?}");
    fs::remove_file(path.join("file")).unwrap();
    settle(&test);
    fill(&path.join("file"), Bytes::mib(5)).1.unwrap();
    pool.set_limit(&path, None).await.unwrap();
    assert_eq!(pool.usage(&path).await.unwrap().limit, None);
    fill(&path.join("more"), Bytes::mib(30)).1.unwrap();
}

#[tokio::test]
async fn a_snapshot_counts_its_own_writes_only() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, template, copy) = (test.pool(), test.path("images/t"), test.path("containers/c"));
    pool.create(&template).await.unwrap();
    fill(&template.join("big"), Bytes::mib(60)).1.unwrap();
    let id = pool.snapshot(&template, &copy, Access::ReadWrite).await.unwrap();
    assert_eq!(pool.id(&copy).await.unwrap(), Some(id));
    pool.set_limit(&copy, Some(Bytes::mib(10))).await.unwrap();
    fill(&copy.join("own"), Bytes::mib(5)).1.unwrap();
    settle(&test);
    let used = pool.usage(&copy).await.unwrap().used;
    assert!((Bytes::mib(5)..Bytes::mib(6)).contains(&used), "{used}");
    assert_eq!(fs::metadata(copy.join("big")).unwrap().len(), 60 << 20);
    assert!(fill(&copy.join("too much"), Bytes::mib(10)).1.is_err());
}

#[tokio::test]
async fn a_nested_subvolume_is_under_its_parents_limit() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, path) = (test.pool(), test.path("containers/a"));
    pool.create(&path).await.unwrap();
    pool.set_limit(&path, Some(Bytes::mib(10))).await.unwrap();
    // As the tenant would do it: by the plain ioctl, not by the driver.
    ioctl::subvolume_create(File::open(&path).unwrap().as_fd(), b"nested").unwrap();
    let (written, answer) = fill(&path.join("nested/file"), Bytes::mib(40));
    assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    assert!(written <= 10 << 20, "{written} bytes went in");
}

#[tokio::test]
async fn a_deleted_subvolume_is_erased_after_the_cleaner_ran() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, path) = (test.pool(), test.path("containers/a"));
    let id = pool.create(&path).await.unwrap();
    fill(&path.join("file"), Bytes::mib(40)).1.unwrap();
    assert!(!pool.is_erased(id).await.unwrap());
    assert_eq!(pool.delete(&path).await.unwrap(), Some(id));
    assert!(!path.exists());
    test.wait_erased(id).await;
    assert!(pool.is_erased(id).await.unwrap(), "it stays erased");
    assert_eq!(pool.delete(&path).await.unwrap(), None, "delete is idempotent");
    assert_eq!(pool.id(&path).await.unwrap(), None);
    assert_eq!(pool.sweep_quota_groups().unwrap(), 0, "its quota groups went with it");
}

#[tokio::test]
async fn subvolumes_nested_in_a_deleted_one_go_too() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, path) = (test.pool(), test.path("containers/a"));
    let id = pool.create(&path).await.unwrap();
    let mut at = path.clone();
    for level in 0..20 {
        let dir = File::open(&at).unwrap();
        ioctl::subvolume_create(dir.as_fd(), b"n").unwrap();
        ioctl::subvolume_create(dir.as_fd(), b"m").unwrap();
        // A tenant may make its own subvolumes read-only, which would keep those below from being removed.
        if level == 5 || level == 0 {
            ioctl::set_read_only(dir.as_fd(), true).unwrap();
        }
        at.push("n");
    }
    let deepest = pool.id(&at).await.unwrap().unwrap();
    let other = test.path("containers/b");
    pool.create(&other).await.unwrap();
    assert_eq!(pool.delete(&path).await.unwrap(), Some(id));
    test.wait_erased(id).await;
    assert!(pool.is_erased(deepest).await.unwrap(), "erased means: with everything that was in it");
    assert!(other.exists());
}

#[tokio::test]
async fn a_read_only_snapshot_refuses_writes_until_it_is_made_writable() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, from, to) = (test.pool(), test.path("images/i"), test.path("images/s"));
    pool.create(&from).await.unwrap();
    fs::write(from.join("a"), "1").unwrap();
    pool.snapshot(&from, &to, Access::ReadOnly).await.unwrap();
    let refused = fs::write(to.join("a"), "2").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    pool.set_access(&to, Access::ReadWrite).await.unwrap();
    fs::write(to.join("a"), "2").unwrap();
    assert_eq!(fs::read_to_string(from.join("a")).unwrap(), "1");
    pool.set_access(&to, Access::ReadOnly).await.unwrap();
    assert!(pool.delete(&to).await.unwrap().is_some(), "a read-only one can be deleted");
}

#[tokio::test]
async fn a_full_pool_is_told_as_full_and_has_no_headroom() {
    let test = TestPool::new(Bytes::mib(256));
    let (pool, path) = (test.pool(), test.path("containers/a"));
    assert!(pool.space().await.unwrap().has_headroom());
    pool.create(&path).await.unwrap();
    let (_, answer) = fill(&path.join("file"), Bytes::gib(1));
    assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert!(!pool.space().await.unwrap().has_headroom());
    // Metadata goes last: small files are kept in it.
    let mut made = Ok(SubvolumeId(0));
    for n in 0..20_000 {
        if fs::write(path.join(format!("small{n}")), [7; 2000]).is_err() {
            made = pool.create(&test.path(&format!("containers/b{n}"))).await;
            if made.is_err() {
                break;
            }
        }
    }
    assert!(matches!(made, Err(PoolError::Full { .. })), "{made:?}");
    let id = pool.delete(&path).await.unwrap().expect("a full pool can still delete");
    test.wait_erased(id).await;
    settle(&test);
    pool.create(&path).await.unwrap();
}

#[tokio::test]
async fn errors_name_the_path() {
    let test = TestPool::new(Bytes::mib(256));
    let (pool, missing) = (test.pool(), test.path("containers/none"));
    let text = |e: PoolError| e.to_string();
    let show = missing.display();
    assert_eq!(text(pool.usage(&missing).await.unwrap_err()), format!("cannot find the subvolume {show}"));
    assert_eq!(
        text(pool.snapshot(&missing, &test.path("x"), Access::ReadWrite).await.unwrap_err()),
        format!("cannot open the snapshot's source {show}")
    );
    let path = test.path("containers/a");
    pool.create(&path).await.unwrap();
    assert!(matches!(pool.create(&path).await, Err(PoolError::Path { .. })), "the name is taken");
    let folder = test.path("containers/folder");
    fs::create_dir(&folder).unwrap();
    assert_eq!(pool.delete(&folder).await.unwrap(), None, "a plain folder is no subvolume");
    std::os::unix::fs::symlink(&path, test.path("containers/link")).unwrap();
    assert_eq!(pool.id(&test.path("containers/link")).await.unwrap(), None, "no link is followed");
}

#[tokio::test]
async fn a_pool_mounted_by_a_daemon_that_died_is_adopted() {
    let mut test = TestPool::new(Bytes::mib(256));
    assert!(test.opened.as_ref().unwrap().created);
    let path = test.path("containers/a");
    let id = test.pool().create(&path).await.unwrap();
    // The daemon dies: nothing is closed.
    drop(test.opened.take());
    let again = open_pool(test.options.clone()).await.unwrap();
    assert!(again.adopted && !again.created);
    assert_eq!(again.backing, Backing::Loop { file: test.file() });
    assert_eq!(again.pool.id(&path).await.unwrap(), Some(id));
    // After a clean stop the file is mounted again.
    again.close().await.unwrap();
    assert!(!path.exists());
    let third = open_pool(test.options.clone()).await.unwrap();
    assert!(!third.adopted && !third.created);
    assert_eq!(third.pool.id(&path).await.unwrap(), Some(id));
    test.opened = Some(third);
}

#[tokio::test]
async fn a_closed_pool_leaves_neither_mount_nor_loop_device() {
    let mut test = TestPool::new(Bytes::mib(256));
    let device = mounts::mount_at(&test.options.path).unwrap().unwrap().source;
    let backing = Path::new("/sys/block").join(Path::new(&device).file_name().unwrap()).join("loop/backing_file");
    assert_eq!(fs::read_to_string(&backing).unwrap().trim(), test.file().to_str().unwrap());
    test.opened.take().unwrap().close().await.unwrap();
    assert_eq!(mounts::mount_at(&test.options.path).unwrap(), None);
    let start = Instant::now();
    // The number may be another test's by now.
    while fs::read_to_string(&backing).is_ok_and(|file| file.trim() == test.file().to_str().unwrap()) {
        assert!(start.elapsed() < Duration::from_secs(5), "{} is still backed", backing.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_folder_on_btrfs_is_used_as_it_is_but_nosuid() {
    let test = TestPool::new(Bytes::mib(256));
    let options = PoolOptions { path: test.path("inner/pool"), size: Bytes::mib(256), label: "x".into() };
    let inner = open_pool(options.clone()).await.unwrap();
    assert_eq!((inner.backing.clone(), inner.adopted), (Backing::Host, false));
    let mount = mounts::mount_at(&options.path).unwrap().unwrap();
    assert!(mount.no_suid && mount.no_dev && mount.is_self_bind);
    let rootfs = inner.layout.containers().join("a");
    inner.pool.create(&rootfs).await.unwrap();
    assert!(open_pool(options.clone()).await.unwrap().adopted);
    inner.close().await.unwrap();
    assert_eq!(mounts::mount_at(&options.path).unwrap(), None);
    assert!(rootfs.exists(), "it lies in the host's filesystem");
}

#[tokio::test]
async fn programs_run_from_the_pool_though_it_is_nosuid() {
    let test = TestPool::new(Bytes::mib(256));
    let path = test.path("containers/a");
    test.pool().create(&path).await.unwrap();
    fs::copy("/bin/true", path.join("true")).unwrap();
    assert!(std::process::Command::new(path.join("true")).status().unwrap().success());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&test.options.path), 0o700);
}

#[tokio::test]
async fn limits_are_refused_under_classic_quotas() {
    let mut test = TestPool::new(Bytes::mib(256));
    let path = test.path("containers/a");
    test.pool().create(&path).await.unwrap();
    let dir = File::open(&test.options.path).unwrap();
    ioctl::quota_disable(dir.as_fd()).unwrap();
    ioctl::quota_enable_classic(dir.as_fd()).unwrap();
    drop((dir, test.opened.take()));
    test.opened = Some(open_pool(test.options.clone()).await.unwrap());
    assert_eq!(test.pool().quota(), QuotaMode::Classic);
    let refused = test.pool().set_limit(&path, Some(Bytes::mib(5))).await.unwrap_err();
    assert!(matches!(refused, PoolError::ClassicQuota(_)), "{refused:?}");
    test.pool().set_limit(&path, None).await.unwrap();
}

#[tokio::test]
async fn a_templates_quota_group_is_swept_once_its_last_copy_is_gone() {
    let test = TestPool::new(Bytes::mib(512));
    let (pool, template, copy) = (test.pool(), test.path("images/t"), test.path("containers/c"));
    let template_id = pool.create(&template).await.unwrap();
    fill(&template.join("big"), Bytes::mib(20)).1.unwrap();
    let copy_id = pool.snapshot(&template, &copy, Access::ReadWrite).await.unwrap();
    pool.delete(&template).await.unwrap();
    test.wait_erased(template_id).await;
    assert_eq!(pool.sweep_quota_groups().unwrap(), 0, "the copy still shares its data");
    pool.delete(&copy).await.unwrap();
    test.wait_erased(copy_id).await;
    settle(&test);
    assert_eq!(pool.sweep_quota_groups().unwrap(), 2);
}

#[tokio::test]
async fn a_failed_mkfs_leaves_no_file_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    // A label may not be longer than 255 bytes.
    let options = PoolOptions { path: folder.path().join("pool"), size: Bytes::mib(256), label: "x".repeat(300) };
    let error = open_pool(options).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("mkfs.btrfs") && cause.contains("label"), "{error}: {cause}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["pool"]);
}
