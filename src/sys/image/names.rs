//! What a container knows of names: the resolver it asks, and its own.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::inside::Inside;
use crate::domain::slot::GATEWAY;

const RESOLV_CONF: &str = "etc/resolv.conf";
const HOSTS: &str = "etc/hosts";
/// Bytes of a file of names that are read; a longer one is left as it is.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// What a machine without an address of its own goes by (as Debian has it): loopback, but not `localhost`.
const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
/// Both files are for everybody inside to read.
const MODE: u32 = 0o644;

/// Writes `/etc/resolv.conf` and `/etc/hosts` into a rootfs that no process uses yet. Blocking.
///
/// Every tenant's resolver has the same address, so what is written is right for a copy too, and stays right when name servers
/// change. It is a plain file: a read-only rootfs has it as well, an image's own (mostly a link to where nothing is) gives way, and
/// its owner may replace it. What the owner of a container chose, its copies keep.
///
/// # Errors
/// The path and the kernel's answer. Doing it again does no harm.
pub fn write_names(rootfs: &Path, hostname: &str, is_copy: bool) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &str| {
        let path = PathBuf::from(path);
        move |error| (path, error)
    };
    let inside = Inside::open(rootfs).map_err(|error| (rootfs.to_owned(), error))?;
    if !is_copy || read(&inside, RESOLV_CONF).is_ok_and(|text| text.is_none()) {
        inside.write(Path::new(RESOLV_CONF), resolv_conf().as_bytes(), MODE).map_err(at(RESOLV_CONF))?;
    }
    let Ok(old) = read(&inside, HOSTS) else { return Ok(()) };
    inside.write(Path::new(HOSTS), hosts(old.as_deref(), hostname).as_bytes(), MODE).map_err(at(HOSTS))
}

/// A file's text; `None` where there is none or an empty one.
///
/// # Errors
/// It is something else than a text of that length, and so not ours to change.
fn read(inside: &Inside, path: &str) -> io::Result<Option<String>> {
    let bytes = inside.read(Path::new(path), FILE_BYTES_MAX)?.unwrap_or_default();
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

fn resolv_conf() -> String {
    format!("nameserver {GATEWAY}\n")
}

/// A file of hosts in which this one has its own name, and no longer that of what it was copied from.
fn hosts(old: Option<&str>, hostname: &str) -> String {
    let own = format!("{OWN_ADDRESS}\t{hostname}");
    let Some(old) = old else { return format!("127.0.0.1\tlocalhost\n{own}\n") };
    let is_own = |line: &&str| line.split_whitespace().next() == Some("127.0.1.1");
    let names = |line: &&str| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().skip(1).any(|name| name == hostname)
    };
    let kept: Vec<&str> = old.lines().filter(|line| !is_own(line)).collect();
    let named = kept.iter().any(names);
    kept.into_iter().chain((!named).then_some(own.as_str())).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn written(rootfs: &Path, path: &str) -> String {
        assert!(!rootfs.join(path).is_symlink());
        fs::read_to_string(rootfs.join(path)).unwrap()
    }

    #[test]
    fn an_images_own_files_give_way_and_links_lead_nowhere_outside() {
        let folder = tempfile::tempdir().unwrap();
        let (rootfs, outside) = (folder.path().join("rootfs"), folder.path().join("outside"));
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        for target in [outside.clone(), "../run/systemd/resolve/stub-resolv.conf".into()] {
            let _ = fs::remove_file(rootfs.join(RESOLV_CONF));
            fs::write(&outside, "host's").unwrap();
            symlink(&target, rootfs.join(RESOLV_CONF)).unwrap();
            write_names(&rootfs, "acme", false).unwrap();
            assert_eq!(written(&rootfs, RESOLV_CONF), "nameserver 169.254.1.1\n");
            assert_eq!(fs::read_to_string(&outside).unwrap(), "host's");
        }
        assert_eq!(written(&rootfs, HOSTS), "127.0.0.1\tlocalhost\n127.0.1.1\tacme\n");
    }

    #[test]
    fn a_copy_keeps_the_name_servers_that_its_source_chose_and_gets_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let rootfs = folder.path();
        write_names(rootfs, "template", false).unwrap();
        fs::write(rootfs.join(RESOLV_CONF), "nameserver 192.0.2.53\nsearch example\n").unwrap();
        write_names(rootfs, "acme", true).unwrap();
        assert_eq!(written(rootfs, RESOLV_CONF), "nameserver 192.0.2.53\nsearch example\n");
        assert_eq!(written(rootfs, HOSTS), "127.0.0.1\tlocalhost\n127.0.1.1\tacme\n");
        fs::write(rootfs.join(RESOLV_CONF), "").unwrap();
        write_names(rootfs, "acme", true).unwrap();
        assert_eq!(written(rootfs, RESOLV_CONF), "nameserver 169.254.1.1\n");
    }

    #[test]
    fn hosts_that_are_not_ours_to_read_are_left_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("etc")).unwrap();
        let long = "192.0.2.1 blocked.example\n".repeat(4_000);
        for bytes in [long.as_bytes(), b"\xff\xfe"] {
            fs::write(folder.path().join(HOSTS), bytes).unwrap();
            write_names(folder.path(), "acme", true).unwrap();
            assert_eq!(fs::read(folder.path().join(HOSTS)).unwrap(), bytes);
        }
    }

    #[test]
    fn an_owners_hosts_stay() {
        let old = "127.0.0.1 localhost\n192.0.2.1 db # acme\n127.0.1.1 template\n";
        assert_eq!(hosts(Some(old), "acme"), "127.0.0.1 localhost\n192.0.2.1 db # acme\n127.0.1.1\tacme\n");
        let named = "192.0.2.1 db acme\n";
        assert_eq!(hosts(Some(named), "acme"), named);
    }
}
