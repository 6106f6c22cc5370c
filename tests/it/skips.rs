//! Tests that a machine cannot run are reported, never silently passed.

use std::io::Write;

/// File that takes a line for each skipped test; `./dev test` sets it, prints it, and in CI fails on it.
const SKIPS: &str = "TENANTRY_SKIPS";

/// Reports that `test` did not run here, and why.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    let Some(path) = std::env::var_os(SKIPS) else {
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

/// Whether a test that needs root may run; reports it where not.
pub fn root_or_skipped(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped(test, "it needs root");
    }
    root
}
