//! A pool of a test's own: a small loop-mounted BTRFS in a temp folder, gone when it is dropped, also when the test fails.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::loopback::{file_of, open_blocking, unmount};
use super::{BtrfsPool, OpenedPool, Pool, PoolOptions, SubvolumeId};
use crate::domain::Bytes;

/// How long a test waits for the cleaner, which runs when it likes.
const ERASED_WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct TestPool {
    pub opened: Option<OpenedPool>,
    pub options: PoolOptions,
    /// Removes the file when the pool is unmounted: fields are dropped after [`Drop::drop`].
    _folder: tempfile::TempDir,
}

impl TestPool {
    pub fn new(size: Bytes) -> Self {
        let folder = tempfile::Builder::new().prefix("tenantry-pool-").tempdir().unwrap();
        let options = PoolOptions { path: folder.path().join("pool"), size, label: "test".into() };
        // In place before anything is mounted, so that a failing open is cleaned up too.
        let mut pool = Self { opened: None, options, _folder: folder };
        pool.opened = Some(open_blocking(&pool.options).unwrap());
        pool
    }

    pub fn pool(&self) -> &BtrfsPool {
        &self.opened.as_ref().unwrap().pool
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.options.path.join(name)
    }

    pub fn file(&self) -> PathBuf {
        file_of(&self.options.path)
    }

    /// Waits until a deleted subvolume's data is gone; how long that took.
    pub async fn wait_erased(&self, id: SubvolumeId) -> Duration {
        let start = Instant::now();
        while !self.pool().is_erased(id).await.unwrap() {
            assert!(start.elapsed() < ERASED_WAIT_MAX, "subvolume {id:?} is still there");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        start.elapsed()
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        if let Some(opened) = self.opened.take() {
            let closed = opened.close_blocking();
            assert!(closed.is_ok() || std::thread::panicking(), "{closed:?}");
        } else if self.options.path.exists() {
            let _ = unmount(&self.options.path);
        }
    }
}
