//! What this host can do for containers, for `tenantry doctor`: read, judged, and with the way to mend each.
//!
//! [`Facts::read`] only reads (the one command it runs, `nft --check`, commits nothing); [`judge`] is pure. What may
//! have leaked is not looked for here: that needs the store.

mod facts;
mod judge;

use std::path::PathBuf;

pub use facts::{Facts, PoolPlace, SYSCTLS, memory_total};
pub use judge::judge;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Containers run, but something that is promised does not hold, or not for as many of them.
    Warn,
    /// No container can run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at: "kernel", "fs.file-max", …
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; a command where one will do.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, found: found.into(), mend: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, status: Status::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

/// What the host is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Containers awake at once.
    pub containers: u32,
    /// Where the daemon keeps its data; need not exist yet.
    pub data_dir: PathBuf,
    /// Where the pool is or will be.
    pub pool: PathBuf,
}

/// Reads the host and judges it; blocks for as long as `nft` takes, at most some seconds.
pub fn findings(wanted: &Wanted) -> Vec<Finding> {
    judge(&Facts::read(wanted), wanted)
}
