//! The files a runtime keeps of its containers: `<run_dir>/containers/<id>/…`.
//!
//! Whoever makes or removes them has the folder locked, and a helper holds the lock for its whole life. A helper that lost its daemon
//! undoes its start, control group and all; the next daemon's start of the same container, and its removal, wait for that.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A container's folder, locked. The kernel unlocks it when the last process that has it open is gone.
pub type Claim = Flock<File>;

/// Locks a container's folder; `None` while somebody else has it, or removed it just now.
///
/// # Errors
/// There is no such folder, or it cannot be opened.
pub fn claim(dir: &Path) -> io::Result<Option<Claim>> {
    let folder = File::open(dir)?;
    let claim = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(claim) => claim,
        Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, errno)) => return Err(errno.into()),
    };
    // Who had it before may have removed it, and another may have made it anew.
    let (mine, now) = (claim.metadata()?, fs::metadata(dir));
    let same = now.is_ok_and(|now| (now.dev(), now.ino()) == (mine.dev(), mine.ino()));
    Ok(same.then_some(claim))
}

/// Removes a container's folder. The place of its rootfs is removed as an empty folder first: should anything ever be
/// mounted there in our sight, it is refused and nothing of the tenant's is touched.
///
/// # Errors
/// Anything but "it is not there".
pub fn remove(dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_dir(dir.join("rootfs")))?;
    absent_is_fine(fs::remove_dir_all(dir))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_not_when_it_is_another_by_now() {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("c");
        assert_eq!(claim(&container).unwrap_err().kind(), ErrorKind::NotFound);
        fs::create_dir(&container).unwrap();
        let first = claim(&container).unwrap().unwrap();
        assert!(claim(&container).unwrap().is_none());
        fs::remove_dir(&container).unwrap();
        fs::create_dir(&container).unwrap();
        let second = claim(&container).unwrap().expect("it is another folder");
        drop((first, second));
        assert!(claim(&container).unwrap().is_some());
    }

    #[test]
    fn a_rootfs_with_files_in_it_stops_the_removal() {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("c");
        fs::create_dir_all(container.join("rootfs/etc")).unwrap();
        fs::create_dir_all(container.join("state/c")).unwrap();
        assert!(remove(&container).is_err());
        assert!(container.join("rootfs/etc").exists());
        fs::remove_dir(container.join("rootfs/etc")).unwrap();
        remove(&container).unwrap();
        assert!(!container.exists());
        remove(&container).unwrap();
    }
}
