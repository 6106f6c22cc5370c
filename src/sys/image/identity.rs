//! A copy is another machine: what its template was known by is made anew.

use std::io;
use std::path::{Path, PathBuf};

use super::inside::{Inside, Kind};

/// Left by systemd for the next boot; two machines must not start from the same one.
const RANDOM_SEED: &str = "var/lib/systemd/random-seed";
const MACHINE_ID: &str = "etc/machine-id";
const DBUS_MACHINE_ID: &str = "var/lib/dbus/machine-id";
const SSH_FOLDER: &str = "etc/ssh";
/// Names removed from [`SSH_FOLDER`] begin so; the server makes missing keys anew at its start.
const SSH_HOST_KEY: &str = "ssh_host_";

/// Makes a rootfs another machine's: a new machine id where there was one, no SSH host keys, no random seed, its own hostname.
/// Blocking. Everything is reached through [`Inside`]: the template may have put links anywhere.
///
/// # Errors
/// The path and the kernel's answer. What was done before stays done; doing it again does no harm.
pub fn reset_identity(rootfs: &Path, hostname: &str) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &str| {
        let path = PathBuf::from(path);
        move |error| (path, error)
    };
    let inside = Inside::open(rootfs).map_err(|error| (rootfs.to_owned(), error))?;
    inside.write(Path::new("etc/hostname"), format!("{hostname}\n").as_bytes(), 0o644).map_err(at("etc/hostname"))?;
    // 32 lower-case hex digits (machine-id(5)).
    let machine_id = format!("{:032x}\n", rand::random::<u128>());
    if kind(&inside, MACHINE_ID).map_err(at(MACHINE_ID))?.is_some() {
        inside.write(Path::new(MACHINE_ID), machine_id.as_bytes(), 0o444).map_err(at(MACHINE_ID))?;
    }
    // Mostly a link to the other one, which is then right already.
    if kind(&inside, DBUS_MACHINE_ID).map_err(at(DBUS_MACHINE_ID))? == Some(Kind::File) {
        inside.write(Path::new(DBUS_MACHINE_ID), machine_id.as_bytes(), 0o444).map_err(at(DBUS_MACHINE_ID))?;
    }
    inside.remove(Path::new(RANDOM_SEED)).map_err(at(RANDOM_SEED))?;
    for name in inside.names(Path::new(SSH_FOLDER)).map_err(at(SSH_FOLDER))? {
        if name.to_string_lossy().starts_with(SSH_HOST_KEY) {
            inside.remove(&Path::new(SSH_FOLDER).join(name)).map_err(at(SSH_FOLDER))?;
        }
    }
    Ok(())
}

/// As [`Inside::kind`]; a path that cannot be walked leads to nothing.
fn kind(inside: &Inside, path: &str) -> io::Result<Option<Kind>> {
    match inside.kind(Path::new(path)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => Ok(None),
        kind => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_copy_gets_an_identity_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let rootfs = folder.path();
        for path in ["etc/ssh", "var/lib/dbus", "var/lib/systemd"] {
            fs::create_dir_all(rootfs.join(path)).unwrap();
        }
        fs::write(rootfs.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        symlink("/etc/machine-id", rootfs.join("var/lib/dbus/machine-id")).unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"] {
            fs::write(rootfs.join("etc/ssh").join(name), "x").unwrap();
        }
        fs::write(rootfs.join("var/lib/systemd/random-seed"), "x").unwrap();
        reset_identity(rootfs, "acme").unwrap();
        let id = fs::read_to_string(rootfs.join("etc/machine-id")).unwrap();
        assert!(id.len() == 33 && id != "0123456789abcdef0123456789abcdef\n", "{id}");
        assert!(rootfs.join("var/lib/dbus/machine-id").is_symlink());
        assert_eq!(fs::read_to_string(rootfs.join("etc/hostname")).unwrap(), "acme\n");
        let left: Vec<_> = fs::read_dir(rootfs.join("etc/ssh")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["sshd_config"]);
        assert!(!rootfs.join("var/lib/systemd/random-seed").exists());
    }

    #[test]
    fn a_rootfs_without_any_identity_gets_a_hostname_only() {
        let folder = tempfile::tempdir().unwrap();
        reset_identity(folder.path(), "acme").unwrap();
        let left: Vec<_> = fs::read_dir(folder.path().join("etc")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["hostname"]);
    }

    #[test]
    fn links_that_a_tenant_left_lead_nowhere_outside() {
        let folder = tempfile::tempdir().unwrap();
        let (rootfs, host) = (folder.path().join("rootfs"), folder.path().join("host"));
        fs::create_dir_all(rootfs.join("var/lib")).unwrap();
        fs::create_dir_all(host.join("ssh")).unwrap();
        for name in ["machine-id", "hostname", "random-seed", "ssh/ssh_host_rsa_key"] {
            fs::write(host.join(name), "host's").unwrap();
        }
        fs::create_dir(rootfs.join("etc")).unwrap();
        symlink(host.join("ssh"), rootfs.join("etc/ssh")).unwrap();
        symlink(host.join("machine-id"), rootfs.join("etc/machine-id")).unwrap();
        symlink(host.join("hostname"), rootfs.join("etc/hostname")).unwrap();
        symlink(&host, rootfs.join("var/lib/systemd")).unwrap();
        symlink(&host, rootfs.join("var/lib/dbus")).unwrap();
        reset_identity(&rootfs, "acme").unwrap();
        for name in ["machine-id", "hostname", "random-seed", "ssh/ssh_host_rsa_key"] {
            assert_eq!(fs::read_to_string(host.join(name)).unwrap(), "host's", "{name}");
        }
        // A folder that leads out stops the reset with its path, and touches nothing there.
        fs::remove_dir_all(rootfs.join("etc")).unwrap();
        symlink(&host, rootfs.join("etc")).unwrap();
        assert_eq!(reset_identity(&rootfs, "acme").unwrap_err().0, Path::new("etc/hostname"));
        assert_eq!(fs::read_to_string(host.join("hostname")).unwrap(), "host's");
    }
}
