//! Files that a script requires: inside the scripts folder, or not at all.
//!
//! In a full cage there is nothing else to be found; where there is none, links that lead out are refused here.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::exec::protocol::SOURCE_BYTES_MAX;

/// What is tried in turn where a name has no file of its own.
const ENDINGS: [&str; 8] = ["", ".js", ".ts", ".mjs", ".cjs", ".json", "/index.js", "/index.ts"];
/// Parts of a name; a longer one names nothing.
const PARTS_MAX: usize = 32;

/// A file that cannot be required.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A package, which there are none of.
    #[error("cannot find module `{0}`: there are built-in modules and files (`./lib`), and no packages")]
    Package(String),
    /// It would be outside.
    #[error("cannot require `{0}`: it is outside the scripts folder")]
    Outside(String),
    /// It is not there.
    #[error("cannot find module `{name}`, required by {from}")]
    Absent {
        /// What was asked for.
        name: String,
        /// By whom.
        from: String,
    },
    /// It is there and cannot be read.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why; a file must be readable by everyone, since a worker is nobody.
        #[source]
        source: io::Error,
    },
}

/// The path, from the scripts folder on, that `name` stands for in the file `from`; nothing on a disk is looked at.
///
/// # Errors
/// It is a package's, or leads outside.
pub fn resolve(from: &str, name: &str) -> Result<String, FileError> {
    if !(name.starts_with("./") || name.starts_with("../") || name == "." || name == "..") {
        let outside = name.starts_with('/') || name.starts_with("file:");
        return Err(if outside { FileError::Outside(name.to_owned()) } else { FileError::Package(name.to_owned()) });
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(|| FileError::Outside(name.to_owned()))?),
            part if part.contains('\0') => return Err(FileError::Outside(name.to_owned())),
            part => parts.push(part),
        }
    }
    if parts.len() > PARTS_MAX { Err(FileError::Outside(name.to_owned())) } else { Ok(parts.join("/")) }
}

/// The scripts folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// This one.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The file that `name` stands for in the file `from`, with its ending.
    ///
    /// # Errors
    /// There is none, or it is outside.
    pub fn find(&self, from: &str, name: &str) -> Result<String, FileError> {
        let path = resolve(from, name)?;
        let mut tried = ENDINGS.iter().map(|ending| format!("{path}{ending}"));
        let found = tried.find(|path| self.0.join(path).is_file());
        let found = found.ok_or_else(|| FileError::Absent { name: name.to_owned(), from: from.to_owned() })?;
        let real = |path: &Path| fs::canonicalize(path);
        match (real(&self.0), real(&self.0.join(&found))) {
            (Ok(folder), Ok(file)) if file.starts_with(&folder) => Ok(found),
            _ => Err(FileError::Outside(name.to_owned())),
        }
    }

    /// A file's text.
    ///
    /// # Errors
    /// It cannot be read, is too large, or is no text.
    pub fn read(&self, file: &str) -> Result<String, FileError> {
        let unreadable = |source| FileError::Unreadable { file: file.to_owned(), source };
        let opened = fs::File::open(self.0.join(file)).map_err(unreadable)?;
        let mut text = String::new();
        opened.take(SOURCE_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() > SOURCE_BYTES_MAX {
            return Err(unreadable(io::Error::other(format!("it is larger than {SOURCE_BYTES_MAX} bytes"))));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_resolved_beside_its_file_and_never_outside() {
        assert_eq!(resolve("shop/a.js", "./lib").unwrap(), "shop/lib");
        assert_eq!(resolve("shop/a.js", "../lib/b.js").unwrap(), "lib/b.js");
        assert_eq!(resolve("a.js", "./x/../y").unwrap(), "y");
        for outside in ["../etc/passwd", "/etc/passwd", "./x/../../y", "file:///etc/passwd", "./a\0b"] {
            assert!(matches!(resolve("a.js", outside), Err(FileError::Outside(_))), "{outside}");
        }
        assert!(matches!(resolve("a.js", "express"), Err(FileError::Package(_))));
    }

    #[test]
    fn endings_are_tried_and_links_that_lead_out_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let scripts = folder.path().join("scripts");
        fs::create_dir_all(scripts.join("lib")).unwrap();
        fs::write(scripts.join("lib/index.js"), "1").unwrap();
        fs::write(scripts.join("a.json"), "{}").unwrap();
        fs::write(folder.path().join("secret.js"), "2").unwrap();
        std::os::unix::fs::symlink("../secret.js", scripts.join("out.js")).unwrap();
        let folder = Folder::new(scripts);
        assert_eq!(folder.find("x.js", "./lib").unwrap(), "lib/index.js");
        assert_eq!(folder.find("lib/index.js", "../a").unwrap(), "a.json");
        assert!(matches!(folder.find("x.js", "./out"), Err(FileError::Outside(_))));
        assert!(matches!(folder.find("x.js", "./none"), Err(FileError::Absent { .. })));
        assert_eq!(folder.read("a.json").unwrap(), "{}");
    }
}
