//! The operator's folder of policies: `<name>.toml`, beside those that are part of the binary.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::domain::policy::{Policies, PolicyError, PolicyName, PolicyNameError};

/// Files in the folder, at most.
const FILES_MAX: usize = 1000;

/// Length of one file, at most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A folder of policies that cannot be used, with the file at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyFolderError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file's name is no policy's name.
    #[error("{} is not named after a policy", path.display())]
    Name {
        /// Which.
        path: PathBuf,
        /// What is wrong with its stem.
        #[source]
        source: PolicyNameError,
    },
    /// A file says something that cannot be.
    #[error("{} cannot be used", path.display())]
    Policy {
        /// Which.
        path: PathBuf,
        /// What and where.
        #[source]
        source: PolicyError,
    },
    /// A file is too long.
    #[error("{} is longer than {FILE_BYTES_MAX} bytes", .0.display())]
    TooLong(PathBuf),
    /// There are too many files.
    #[error("{} has more than {FILES_MAX} files", .0.display())]
    TooMany(PathBuf),
    /// A shipped policy is at fault.
    #[error(transparent)]
    Shipped(#[from] PolicyError),
}

/// The shipped policies and the folder's `*.toml`, which win. A folder that is not there is an empty one. Reads files;
/// meant for the start of the daemon.
pub fn load_policies(folder: &Path) -> Result<Policies, PolicyFolderError> {
    let mut policies = Policies::shipped()?;
    let failed = |source| PolicyFolderError::Io { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(policies),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        if paths.len() == FILES_MAX {
            return Err(PolicyFolderError::TooMany(folder.to_owned()));
        }
        paths.push(entry.map_err(failed)?.path());
    }
    // In order, so that of several faults the same one is reported each time.
    paths.sort();
    for path in paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "toml")) {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = stem.parse::<PolicyName>();
        let name = name.map_err(|source| PolicyFolderError::Name { path: path.clone(), source })?;
        let text = read(&path)?;
        policies.add(name, &text).map_err(|source| PolicyFolderError::Policy { path, source })?;
    }
    Ok(policies)
}

fn read(path: &Path) -> Result<String, PolicyFolderError> {
    let failed = |source| PolicyFolderError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let length = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if length as u64 > FILE_BYTES_MAX { Err(PolicyFolderError::TooLong(path.to_owned())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: &str = "[ingress]\ndefault = \"drop\"\n[egress]\ndefault = \"drop\"\n";

    fn names(policies: &Policies) -> Vec<&str> {
        policies.names().map(PolicyName::as_str).collect()
    }

    #[test]
    fn the_folder_adds_and_replaces_and_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("web.toml"), CLOSED).unwrap();
        fs::write(folder.path().join("mine.toml"), CLOSED).unwrap();
        fs::write(folder.path().join("README.md"), "not a policy").unwrap();
        let policies = load_policies(folder.path()).unwrap();
        assert_eq!(names(&policies), ["locked-down", "mine", "no-egress", "open", "web"]);
        assert_eq!(policies.get(&"web".parse().unwrap()), policies.get(&"mine".parse().unwrap()));
        assert_eq!(names(&load_policies(&folder.path().join("none")).unwrap()).len(), 4);
    }

    #[test]
    fn a_faulty_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        fs::write(&path, "[ingress]\n").unwrap();
        let error = load_policies(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("{} cannot be used", path.display()));
        fs::write(&path, " ".repeat(FILE_BYTES_MAX as usize + 1)).unwrap();
        assert!(matches!(load_policies(folder.path()), Err(PolicyFolderError::TooLong(_))));
        fs::rename(&path, folder.path().join("My Own.toml")).unwrap();
        assert!(matches!(load_policies(folder.path()), Err(PolicyFolderError::Name { .. })));
    }
}
