//! The files a runtime keeps of its containers: `<run_dir>/containers/<id>/…`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

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
