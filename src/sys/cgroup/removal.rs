//! The end of a group: what lives in it is killed, then its folders go, innermost first, in every hierarchy.
//!
//! On v1 a process may be in the group of one hierarchy and not of another (a start that was cut off), so all are
//! looked at, whichever version is in use. The first look is the usual case and costs next to nothing: init is dead,
//! its pid namespace took the rest along, and the folders are empty.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::domain::ContainerId;

use super::CgroupError;
use super::files::{busy, gone, poll, read, write};
use super::kernel::Groups;

/// How long a group may take to empty after the kill: a task that waits for a disk dies when the disk answers.
const EMPTY_MS_MAX: u64 = 10_000;

/// How long a folder that reads as empty may refuse to go, while its last task is taken apart.
const FOLDER_MS_MAX: u64 = 2_000;

/// How deep groups may be nested; a tenant sees its groups read-only, so that deeper ones are not a tenant's.
const DEPTH_MAX: usize = 32;

/// Kills, waits and removes. Goes on past an error, so that as much as can go goes, and reports the first.
pub(super) fn remove(groups: &Groups, id: ContainerId) -> Result<(), CgroupError> {
    let mut folders = Vec::new();
    for top in groups.folders(id) {
        collect(&top, 0, &mut folders)?;
    }
    if folders.is_empty() {
        return Ok(());
    }
    empty(groups, id, &folders)?;
    remove_folders(&folders)
}

/// Removes the instance's own folders. Containers' groups below them are an error, not a thing to kill.
pub(super) fn remove_parent(groups: &Groups) -> Result<(), CgroupError> {
    let parents: Vec<PathBuf> = groups.parents().filter(|parent| parent.exists()).collect();
    remove_folders(&parents)
}

/// Folders directly under a group; none where the group is not there.
pub(super) fn children(folder: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |source| CgroupError::Io { action: "list", path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(source) if gone(&source) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// A group and all groups below it, the innermost first.
fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
    if depth > DEPTH_MAX {
        let source = std::io::Error::other("groups are nested too deeply");
        return Err(CgroupError::Io { action: "remove", path: folder.to_owned(), source });
    }
    for child in children(folder)? {
        collect(&child, depth + 1, found)?;
    }
    if folder.exists() {
        found.push(folder.to_owned());
    }
    Ok(())
}

/// Kills round by round until nothing is left. From the second round on the group is frozen while its processes are
/// signalled, so that one that forks faster than we read cannot stay ahead.
fn empty(groups: &Groups, id: ContainerId, folders: &[PathBuf]) -> Result<(), CgroupError> {
    let freezer = groups.freezer(id).ok();
    let switch = |frozen| match freezer.as_ref().map(|freezer| freezer.write(frozen)) {
        Some(Err(CgroupError::Io { source, .. })) if gone(&source) => Ok(()),
        other => other.unwrap_or(Ok(())),
    };
    let mut round = 0_u32;
    let emptied = poll(Duration::from_millis(EMPTY_MS_MAX), || {
        let pids = processes(folders)?;
        if pids.is_empty() {
            return Ok(Some(()));
        }
        if round > 0 {
            switch(true)?;
        }
        let killed = kill_all(folders, &processes(folders)?);
        // A frozen v1 task dies only once it is thawed; and never is a container left frozen by a failed kill.
        switch(false)?;
        killed?;
        round = round.saturating_add(1);
        Ok(None)
    })?;
    emptied.ok_or(CgroupError::Timeout { id, what: "empty", waited_ms: EMPTY_MS_MAX })
}

/// What is in any of the groups. The kernel shows a process outside our pid namespace as 0, which kill(2) would take
/// for our own process group: those are left out, and so are we.
fn processes(folders: &[PathBuf]) -> Result<Vec<Pid>, CgroupError> {
    let mut pids = Vec::new();
    for folder in folders {
        match read(&folder.join("cgroup.procs")) {
            Err(CgroupError::Io { source, .. }) if gone(&source) => {}
            text => pids.extend(text?.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0)),
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids.into_iter().map(Pid::from_raw).filter(|pid| *pid != Pid::this()).collect())
}

/// One signal to each; and v2's own kill, which misses no fork.
fn kill_all(folders: &[PathBuf], pids: &[Pid]) -> Result<(), CgroupError> {
    for folder in folders {
        match write(&folder.join("cgroup.kill"), "1") {
            // v1, a kernel before 5.14, or a group that went.
            Err(CgroupError::Io { source, .. }) if gone(&source) => {}
            killed => killed?,
        }
    }
    for pid in pids {
        // Gone already is as good as killed; nothing else can refuse root.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    Ok(())
}

fn remove_folders(folders: &[PathBuf]) -> Result<(), CgroupError> {
    let mut first = Ok(());
    for folder in folders {
        let removed = remove_folder(folder);
        if first.is_ok() {
            first = removed;
        }
    }
    first
}

fn remove_folder(folder: &Path) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Io { action: "remove", path: folder.to_owned(), source };
    let removed = poll(Duration::from_millis(FOLDER_MS_MAX), || match std::fs::remove_dir(folder) {
        Ok(()) => Ok(Some(())),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(Some(())),
        // With groups inside, waiting does not help.
        Err(source) if busy(&source) && children(folder)?.is_empty() => Ok(None),
        Err(source) => Err(failed(source)),
    })?;
    removed.ok_or_else(|| failed(ErrorKind::ResourceBusy.into()))
}
