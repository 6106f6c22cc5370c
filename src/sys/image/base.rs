//! The built-in image: busybox, a web server on port 8080 and a page, so that a first container needs no registry.
//!
//! Its files are in `bundles/base-image/` and part of this binary; busybox is the host's (package busybox-static), and has to be
//! static, because there is no loader and no library in the image.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Unpacked;
use super::error::{ImageError, io_error};
use super::inside::Inside;
use super::source::digest_of;
use crate::domain::{Bytes, ImageConfig, UserIds};

/// Name of the built-in image.
pub const BASE_IMAGE: &str = "base";
/// Where distributions put it, the static one first.
const BUSYBOX_PLACES: [&str; 5] =
    ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/bin/busybox-static", "/usr/local/bin/busybox"];
/// Bytes of busybox; real ones have one to three million.
const BUSYBOX_BYTES_MAX: u64 = 64 << 20;
/// Applets linked; real ones have about four hundred.
const APPLETS_MAX: usize = 2000;
/// Goes up when the image is put together differently from the same files.
const REVISION: &str = "1";

macro_rules! skeleton {
    ($($path:literal $mode:literal),* $(,)?) => {
        [$(($path, include_str!(concat!("../../../bundles/base-image/", $path)), $mode)),*]
    };
}
/// Files, their texts and modes.
const FILES: [(&str, &str, u32); 9] = skeleton![
    "etc/group" 0o644,
    "etc/hosts" 0o644,
    "etc/nsswitch.conf" 0o644,
    "etc/os-release" 0o644,
    "etc/passwd" 0o644,
    "sbin/start" 0o755,
    "var/www/cgi-bin/notes" 0o755,
    "var/www/cgi-bin/whoami" 0o755,
    "var/www/index.html" 0o644,
];
/// Folders and their modes.
const FOLDERS: [(&str, u32); 20] = [
    ("", 0o755),
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("ramdisk", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/tmp", 0o1777),
    ("var/www", 0o755),
    ("var/www/cgi-bin", 0o755),
];

/// Finds a static busybox on the host.
///
/// # Errors
/// There is none; the message says which package has it.
pub fn find_busybox() -> Result<PathBuf, ImageError> {
    let places = || BUSYBOX_PLACES.iter().map(PathBuf::from);
    let found = places().find(|place| read_busybox(place).is_ok());
    let wanted = "no static busybox was found on this host: install the package busybox-static";
    found.ok_or_else(|| ImageError::Unsupported(wanted.to_owned()))
}

/// The digest that the base image with this busybox has; another one than the stored image's means that it is to be made anew.
///
/// # Errors
/// Busybox cannot be read or is not static.
pub fn base_digest(busybox: &Path) -> Result<String, ImageError> {
    Ok(digest(&read_busybox(busybox)?))
}

fn digest(busybox: &[u8]) -> String {
    let mut text = format!("{REVISION}\n{}\n", digest_of(busybox));
    for (path, content, mode) in FILES {
        text.push_str(&format!("{path} {mode:o} {}\n", digest_of(content.as_bytes())));
    }
    digest_of(text.as_bytes())
}

/// Builds the base image in `rootfs`, an empty subvolume. Blocking.
///
/// # Errors
/// Busybox cannot be read, is not static or does not run, or the rootfs cannot be written. The caller deletes the subvolume.
pub fn build_base(busybox: &Path, rootfs: &Path) -> Result<Unpacked, ImageError> {
    let program = read_busybox(busybox)?;
    let applets = applets(busybox)?;
    let inside = Inside::open(rootfs).map_err(|e| io_error("open", rootfs, e))?;
    for (path, mode) in FOLDERS {
        let made = inside.make_folders(Path::new(path)).map(drop);
        // The rootfs is empty and only ours, so its paths lead where they say.
        let made = made.and_then(|()| std::fs::set_permissions(rootfs.join(path), mode_of(mode)));
        made.map_err(|e| io_error("make the folder", Path::new(path), e))?;
    }
    let texts = FILES.iter().map(|(path, text, mode)| (*path, text.as_bytes(), *mode));
    let mut size = 0;
    for (path, bytes, mode) in texts.chain([("bin/busybox", program.as_slice(), 0o755)]) {
        inside.write(Path::new(path), bytes, mode).map_err(|e| io_error("write", Path::new(path), e))?;
        size += bytes.len() as u64;
    }
    for applet in &applets {
        let link = rootfs.join("bin").join(applet);
        symlink("busybox", &link).map_err(|e| io_error("make the link", &link, e))?;
    }
    let entries = (FOLDERS.len() + FILES.len() + 1 + applets.len()) as u64;
    let config = config();
    Ok(Unpacked { config, digest: digest(&program), size: Bytes(size), entries, layers: 1, warnings: Vec::new() })
}

fn mode_of(mode: u32) -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

fn config() -> ImageConfig {
    ImageConfig {
        cmd: vec!["/sbin/start".into()],
        env: vec!["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(), "HOME=/root".into()],
        exposed_ports: vec!["8080/tcp".into()],
        ids: UserIds::default(),
        working_dir: "/".into(),
        ..ImageConfig::default()
    }
}

/// Reads busybox and holds that it is a static program.
fn read_busybox(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| io_error("open", path, e))?;
    file.take(BUSYBOX_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| io_error("read", path, e))?;
    match is_static(&bytes) {
        Some(true) if bytes.len() as u64 <= BUSYBOX_BYTES_MAX => Ok(bytes),
        Some(true) => Err(ImageError::Unsupported(format!("{} is too large for busybox", path.display()))),
        Some(false) => {
            let text = format!("{} needs a dynamic loader: install the package busybox-static", path.display());
            Err(ImageError::Unsupported(text))
        }
        None => Err(ImageError::Unsupported(format!("{} is no 64-bit ELF program", path.display()))),
    }
}

/// Whether a 64-bit ELF program has no program header of the type `PT_INTERP` (elf(5)); `None` where it is none.
fn is_static(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let le = |at: usize, bytes: usize| -> Option<u64> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    };
    // Magic, 64 bits, little endian.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let offset = usize::try_from(le(32, 8)?).ok()?;
    let (size, count) = (le(54, 2)? as usize, le(56, 2)? as usize);
    for number in 0..count {
        if le(offset.checked_add(number * size)?, 4)? == u64::from(PT_INTERP) {
            return Some(false);
        }
    }
    Some(count > 0)
}

/// Names of busybox's applets, as it lists them itself.
fn applets(busybox: &Path) -> Result<Vec<String>, ImageError> {
    let run = Command::new(busybox).arg("--list").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = run.map_err(|e| io_error("run", busybox, e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let is_name =
        |name: &&str| !name.is_empty() && *name != "busybox" && !name.contains('/') && *name != "." && *name != "..";
    let names: Vec<String> = text.lines().filter(is_name).take(APPLETS_MAX).map(str::to_owned).collect();
    for needed in ["sh", "httpd", "cat", "head", "hostname"] {
        if !names.iter().any(|name| name == needed) {
            let text = format!("{} has no applet `{needed}`, which the base image needs", busybox.display());
            return Err(ImageError::Unsupported(text));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    fn built() -> (tempfile::TempDir, Unpacked) {
        let rootfs = tempfile::tempdir().unwrap();
        let image = build_base(&find_busybox().unwrap(), rootfs.path()).unwrap();
        (rootfs, image)
    }

    #[test]
    fn the_base_image_has_what_it_says() {
        let (rootfs, image) = built();
        assert_eq!(image.digest, base_digest(&find_busybox().unwrap()).unwrap());
        let mode = |path: &str| std::fs::metadata(rootfs.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("tmp"), mode("root"), mode("sbin/start"), mode("bin/busybox")), (0o1777, 0o700, 0o755, 0o755));
        assert_eq!(mode("."), 0o755, "every container user has to pass");
        assert_eq!(std::fs::read_link(rootfs.path().join("bin/httpd")).unwrap(), Path::new("busybox"));
        assert_eq!(image.config.cmd, ["/sbin/start"]);
        assert!(build_base(Path::new("/usr/bin/env"), rootfs.path()).is_err(), "that one is not static");
    }

    #[test]
    fn elf_headers_that_make_no_sense_are_no_static_program() {
        assert_eq!(is_static(b""), None);
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
        let mut header = [0u8; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(is_static(&header), Some(false), "no program headers at all");
        header[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        header[56] = 1;
        assert_eq!(is_static(&header), None);
    }

    /// Ends the server also when the test fails; its namespace goes with it (`--kill-child`).
    struct Killed(std::process::Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Says what a request to the container's server gives; the network is the host's loopback.
    fn request(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn its_command_serves_keeps_notes_and_ends_at_once_on_sigterm_as_pid_1() {
        let (rootfs, _image) = built();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The start script becomes pid 1 of a namespace of its own, as in a container.
        std::fs::write(rootfs.path().join("dev/null"), "").unwrap();
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "chroot"])
            .arg(rootfs.path())
            .arg("/sbin/start")
            .env("PORT", port.to_string())
            .env("PATH", "/bin:/usr/bin:/sbin:/usr/sbin")
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(10), "nobody listens");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(request(port, "GET / HTTP/1.0\r\n\r\n").contains("This sandbox runs."));
        let post = "POST /cgi-bin/notes HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello";
        assert!(request(port, post).ends_with("hello\n"));
        assert!(request(port, "GET /cgi-bin/notes HTTP/1.0\r\n\r\n").ends_with("hello\n"));
        // `unshare` forked: its child is the namespace's pid 1.
        let children = format!("/proc/{0}/task/{0}/children", child.0.id());
        let pid1: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
        let start = Instant::now();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid1), nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = child.0.wait().unwrap();
        assert!(start.elapsed() < Duration::from_millis(1000), "it took {:?}", start.elapsed());
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}
