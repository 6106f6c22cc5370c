//! The mount on a folder, read from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What is mounted on a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub fs_type: String,
    pub source: OsString,
    pub no_suid: bool,
    pub no_dev: bool,
    /// Whether it lies on a mount of the same filesystem, as a folder bound onto itself does.
    pub is_self_bind: bool,
}

/// The topmost mount on exactly this folder.
pub(super) fn mount_at(path: &Path) -> io::Result<Option<Mount>> {
    find(BufReader::new(std::fs::File::open("/proc/self/mountinfo")?), path)
}

fn find(table: impl BufRead, path: &Path) -> io::Result<Option<Mount>> {
    let mut devices = std::collections::HashMap::new();
    let mut found = None;
    for line in table.split(b'\n') {
        let line = line?;
        let mut fields = line.split(|b| *b == b' ').map(<[u8]>::to_vec);
        let (Some(id), Some(parent), Some(device)) = (fields.next(), fields.next(), fields.next()) else { continue };
        devices.insert(id, device.clone());
        // Behind them the root inside the filesystem, the mount point and its options.
        if fields.nth(1).map(|field| unescape(&field)).as_deref() != Some(path.as_os_str().as_bytes()) {
            continue;
        }
        let options = fields.next().unwrap_or_default();
        let has = |wanted: &[u8]| options.split(|b| *b == b',').any(|option| option == wanted);
        let mut behind = fields.skip_while(|field| field != b"-").skip(1);
        let (Some(fs_type), Some(source)) = (behind.next(), behind.next()) else { continue };
        let mount = Mount {
            fs_type: String::from_utf8_lossy(&fs_type).into_owned(),
            source: OsString::from_vec(unescape(&source)),
            no_suid: has(b"nosuid"),
            no_dev: has(b"nodev"),
            is_self_bind: false,
        };
        found = Some((mount, parent, device));
    }
    Ok(found.map(|(mount, parent, device)| Mount { is_self_bind: devices.get(&parent) == Some(&device), ..mount }))
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|d| u8::from_str_radix(d, 8).ok());
        match behind.get(..3).and_then(octal) {
            Some(byte) if first == b'\\' => {
                text.push(byte);
                rest = &behind[3..];
            }
            _ => {
                text.push(first);
                rest = behind;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        51 22 0:44 / /var/lib/my\\040pool rw,nosuid,nodev,noatime shared:7 master:2 - btrfs /dev/loop3 rw,ssd\n\
        60 22 0:45 / /srv rw - btrfs /dev/sdb rw\n\
        61 60 0:46 / /srv rw,nosuid - tmpfs none rw\n\
        70 22 0:47 / /data rw - btrfs /dev/sdc rw\n\
        71 70 0:47 /pool /data/pool rw - btrfs /dev/sdc rw\n";

    #[test]
    fn a_mount_is_found_by_its_exact_folder() {
        let mount = find(TABLE, Path::new("/var/lib/my pool")).unwrap().unwrap();
        let expected = Mount {
            fs_type: "btrfs".into(),
            source: "/dev/loop3".into(),
            no_suid: true,
            no_dev: true,
            is_self_bind: false,
        };
        assert_eq!(mount, expected);
        assert_eq!(find(TABLE, Path::new("/var/lib")).unwrap(), None);
    }

    #[test]
    fn the_topmost_of_stacked_mounts_counts() {
        assert_eq!(find(TABLE, Path::new("/srv")).unwrap().unwrap().fs_type, "tmpfs");
    }

    #[test]
    fn a_folder_bound_onto_itself_is_told_from_a_mount_of_its_own() {
        assert!(find(TABLE, Path::new("/data/pool")).unwrap().unwrap().is_self_bind);
        assert!(!find(TABLE, Path::new("/data")).unwrap().unwrap().is_self_bind);
    }
}
