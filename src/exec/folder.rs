//! The scripts folder as it is now: every question looks at the disk, and what has not changed is not read again.
//!
//! The table of routes is kept together with a [`Stamp`] of each folder it was made from: a file that came or went changes its
//! folder's. A text is kept with its own. So a new file answers at once, a removed one is gone at once, and a request costs a few
//! `stat`s. No link is followed. A folder that is not there holds no scripts. All of it blocks for microseconds.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;

use super::comments::{self, CommentError, Settings};
use super::routes::{DEPTH_MAX, Routes};
use super::run::ScriptFile;
use super::stamp::Stamp;

/// Files of scripts, and folders of them, at most.
pub const FILES_MAX: usize = 4_096;
/// Bytes of one script, at most.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of texts that are kept in memory, at most.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// Packages that scripts require are no endpoints.
const PACKAGES: &str = "node_modules";
/// Of folders and files that the API makes: the engine's user reads them.
const FOLDER_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// Why the folder, or a script in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// More than [`FILES_MAX`].
    #[error("{} holds more than {FILES_MAX} files or folders of scripts", .0.display())]
    TooMany(PathBuf),
    /// More than [`FILE_BYTES_MAX`].
    #[error("{0} is longer than {FILE_BYTES_MAX} bytes")]
    TooLong(ScriptFile),
    /// Not UTF-8.
    #[error("{0} is not UTF-8")]
    NotText(ScriptFile),
    /// A link or a device on the way.
    #[error("{} is neither a plain file nor a folder", .0.display())]
    Odd(PathBuf),
}

/// A script as it is now.
#[derive(Debug)]
pub struct Script {
    /// Its file.
    pub file: ScriptFile,
    /// Its text.
    pub source: Arc<str>,
    /// What it says of itself.
    pub settings: Result<Settings, CommentError>,
    /// When it was last modified.
    pub modified_at: Timestamp,
}

#[derive(Debug)]
struct Scan {
    folders: Vec<(PathBuf, Stamp)>,
    read_at: SystemTime,
    routes: Arc<Routes>,
}

impl Scan {
    fn is_current(&self) -> bool {
        let is_same = |(path, stamp): &(PathBuf, Stamp)| {
            stamp.is_settled(self.read_at) && fs::metadata(path).is_ok_and(|found| Stamp::of(&found) == *stamp)
        };
        // Of a folder that was not there, nothing can show that it came.
        !self.folders.is_empty() && self.folders.iter().all(is_same)
    }
}

#[derive(Debug)]
struct Kept {
    stamp: Stamp,
    read_at: SystemTime,
    script: Arc<Script>,
}

#[derive(Debug, Default)]
struct Texts {
    kept: HashMap<ScriptFile, Kept>,
    bytes: usize,
}

/// The folder.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    scan: Mutex<Option<Scan>>,
    texts: Mutex<Texts>,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

/// What is not there is no error.
fn if_there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Folder {
    /// The folder at this place, there or not.
    pub fn new(root: PathBuf) -> Self {
        Self { root, scan: Mutex::default(), texts: Mutex::default() }
    }

    /// Which file answers what, now.
    ///
    /// # Errors
    /// The folder cannot be read, or holds too much.
    pub fn routes(&self) -> Result<Arc<Routes>, FolderError> {
        let mut held = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scan) = held.as_ref().filter(|scan| scan.is_current()) {
            return Ok(Arc::clone(&scan.routes));
        }
        let scan = scan(&self.root)?;
        let routes = Arc::clone(&scan.routes);
        *held = Some(scan);
        Ok(routes)
    }

    /// A script as it is now; `None` where it is gone.
    ///
    /// # Errors
    /// It cannot be read, or is no text of a bearable length.
    pub fn read(&self, file: &ScriptFile) -> Result<Option<Arc<Script>>, FolderError> {
        let path = self.root.join(&file.0);
        let read_at = SystemTime::now();
        // A pipe must not be waited for; whether it is one is looked at next.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
        if opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ELOOP)) {
            return Err(FolderError::Odd(path));
        }
        let Some(mut opened) = if_there(opened).map_err(io_error("open", &path))? else { return Ok(None) };
        let found = opened.metadata().map_err(io_error("look at", &path))?;
        if !found.is_file() {
            return Err(FolderError::Odd(path));
        }
        let stamp = Stamp::of(&found);
        if let Some(script) = self.kept(file, stamp) {
            return Ok(Some(script));
        }
        let source = text(&mut opened, file, &path)?;
        let modified = found.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
        let script = Arc::new(Script {
            file: file.clone(),
            settings: comments::read(&source),
            source: source.into(),
            modified_at: modified.unwrap_or(Timestamp::UNIX_EPOCH),
        });
        self.keep(Kept { stamp, read_at, script: Arc::clone(&script) });
        Ok(Some(script))
    }

    fn kept(&self, file: &ScriptFile, stamp: Stamp) -> Option<Arc<Script>> {
        let texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = texts.kept.get(file)?;
        (kept.stamp == stamp && stamp.is_settled(kept.read_at)).then(|| Arc::clone(&kept.script))
    }

    fn keep(&self, kept: Kept) {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let length = kept.script.source.len();
        if texts.bytes + length > KEPT_BYTES_MAX {
            *texts = Texts::default();
        }
        texts.bytes += length;
        if let Some(before) = texts.kept.insert(kept.script.file.clone(), kept) {
            texts.bytes -= before.script.source.len();
        }
    }

    /// Writes a script whole or not at all; folders on its way are made.
    ///
    /// # Errors
    /// It is too long, there are too many, or the system says no.
    pub fn write(&self, file: &ScriptFile, source: &str) -> Result<(), FolderError> {
        if source.len() as u64 > FILE_BYTES_MAX {
            return Err(FolderError::TooLong(file.clone()));
        }
        let routes = self.routes()?;
        let is_new = !routes.listed().iter().any(|one| one.file == *file);
        if is_new && routes.listed().len() >= FILES_MAX {
            return Err(FolderError::TooMany(self.root.clone()));
        }
        let path = self.root.join(&file.0);
        let parent = self.make_parents(file)?;
        let beside = parent.join(format!(".{}.new", hex::encode(rand::random::<[u8; 8]>())));
        let written = write_new(&beside, source).and_then(|()| fs::rename(&beside, &path));
        if let Err(source) = written {
            // It may never have been made.
            let _ = fs::remove_file(&beside);
            return Err(io_error("write", &path)(source));
        }
        File::open(&parent).and_then(|folder| folder.sync_all()).map_err(io_error("flush", &parent))
    }

    /// Makes the folders that a file lies in; none of them is a link.
    fn make_parents(&self, file: &ScriptFile) -> Result<PathBuf, FolderError> {
        let mut parent = self.root.clone();
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&parent).map_err(io_error("make", &parent))?;
        let Some((folders, _)) = file.0.rsplit_once('/') else { return Ok(parent) };
        for part in folders.split('/') {
            parent.push(part);
            match if_there(fs::symlink_metadata(&parent)).map_err(io_error("look at", &parent))? {
                Some(found) if found.is_dir() => {}
                Some(_) => return Err(FolderError::Odd(parent)),
                None => DirBuilder::new().mode(FOLDER_MODE).create(&parent).map_err(io_error("make", &parent))?,
            }
        }
        Ok(parent)
    }

    /// Removes a script, and the folders that are empty without it; says whether it was there.
    ///
    /// # Errors
    /// The system says no.
    pub fn remove(&self, file: &ScriptFile) -> Result<bool, FolderError> {
        let path = self.root.join(&file.0);
        // Only what a read would give: nothing behind a link.
        if self.read(file)?.is_none() {
            return Ok(false);
        }
        let was_there = if_there(fs::remove_file(&path)).map_err(io_error("remove", &path))?.is_some();
        let empty = path.ancestors().skip(1).take_while(|above| *above != self.root).map(fs::remove_dir);
        // The first that is not empty ends it.
        let _ = empty.take_while(Result::is_ok).count();
        Ok(was_there)
    }
}

fn write_new(path: &Path, source: &str) -> io::Result<()> {
    let mut new = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    new.write_all(source.as_bytes())?;
    // Whatever the umask is.
    new.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
    new.sync_all()
}

fn text(opened: &mut File, file: &ScriptFile, path: &Path) -> Result<String, FolderError> {
    let mut bytes = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FolderError::TooLong(file.clone()));
    }
    String::from_utf8(bytes).map_err(|_| FolderError::NotText(file.clone()))
}

fn scan(root: &Path) -> Result<Scan, FolderError> {
    let read_at = SystemTime::now();
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let mut open = vec![(root.to_owned(), String::new(), 1)];
    while let Some((path, below, depth)) = open.pop() {
        // Its stamp first: what changes while it is read shows the next time.
        let Some(found) = if_there(fs::metadata(&path)).map_err(io_error("look at", &path))? else { continue };
        let Some(entries) = if_there(fs::read_dir(&path)).map_err(io_error("read", &path))? else { continue };
        folders.push((path.clone(), Stamp::of(&found)));
        for entry in entries {
            let entry = entry.map_err(io_error("read", &path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type().map_err(io_error("look at", &entry.path()))?;
            let place = format!("{below}{name}");
            if name.starts_with('.') || name.chars().any(char::is_control) {
                continue;
            }
            if kind.is_dir() && depth < DEPTH_MAX && name != PACKAGES {
                open.push((entry.path(), format!("{place}/"), depth + 1));
            } else if kind.is_file() && super::routes::script_file(&place).is_ok() {
                files.push(ScriptFile(place));
            }
            if files.len() > FILES_MAX || folders.len() + open.len() > FILES_MAX {
                return Err(FolderError::TooMany(root.to_owned()));
            }
        }
    }
    Ok(Scan { folders, read_at, routes: Arc::new(Routes::new(files)) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().to_owned());
        (root, folder)
    }

    fn file(name: &str) -> ScriptFile {
        ScriptFile(name.to_owned())
    }

    fn answers(folder: &Folder, path: &str) -> Option<String> {
        let found = folder.routes().unwrap().resolve(path)?;
        Some(folder.read(&found.file).unwrap()?.source.to_string())
    }

    #[test]
    fn an_edit_is_live_at_once_however_fast() {
        let (root, folder) = folder();
        assert_eq!(answers(&folder, "/a"), None);
        for round in 0..50 {
            fs::write(root.path().join("a.js"), format!("{:03}", round)).unwrap();
            assert_eq!(answers(&folder, "/a"), Some(format!("{:03}", round)));
            fs::create_dir(root.path().join("b")).unwrap();
            fs::write(root.path().join("b/c.js"), "1").unwrap();
            assert_eq!(answers(&folder, "/b/c"), Some("1".into()));
            fs::remove_dir_all(root.path().join("b")).unwrap();
            assert_eq!(answers(&folder, "/b/c"), None);
        }
    }

    #[test]
    fn what_has_settled_is_not_read_again_until_it_changes() {
        let (root, folder) = folder();
        fs::write(root.path().join("a.js"), "1").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(120));
        let routes = folder.routes().unwrap();
        let script = folder.read(&file("a.js")).unwrap().unwrap();
        assert!(Arc::ptr_eq(&routes, &folder.routes().unwrap()));
        assert!(Arc::ptr_eq(&script, &folder.read(&file("a.js")).unwrap().unwrap()));
        fs::write(root.path().join("a.js"), "2").unwrap();
        assert_eq!(answers(&folder, "/a").as_deref(), Some("2"));
        fs::rename(root.path().join("a.js"), root.path().join("b.js")).unwrap();
        assert_eq!((answers(&folder, "/a"), answers(&folder, "/b").as_deref()), (None, Some("2")));
    }

    #[test]
    fn no_link_is_followed() {
        let (root, folder) = folder();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("x.js"), "secret").unwrap();
        symlink(outside.path().join("x.js"), root.path().join("x.js")).unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();
        assert_eq!((answers(&folder, "/x"), answers(&folder, "/out/x")), (None, None));
        assert!(matches!(folder.read(&file("x.js")), Err(FolderError::Odd(_))));
        assert!(matches!(folder.write(&file("out/y.js"), "1"), Err(FolderError::Odd(_))));
        assert!(!outside.path().join("y.js").exists());
        folder.write(&file("x.js"), "mine").unwrap();
        assert_eq!(answers(&folder, "/x").as_deref(), Some("mine"));
        assert_eq!(fs::read_to_string(outside.path().join("x.js")).unwrap(), "secret");
    }

    #[test]
    fn a_script_is_written_whole_and_removed_with_its_empty_folders() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path().join("scripts"));
        folder.write(&file("a/b/c.js"), "1").unwrap();
        folder.write(&file("a/d.js"), "2").unwrap();
        let path = root.path().join("scripts/a/b/c.js");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        assert!(folder.remove(&file("a/b/c.js")).unwrap());
        assert!(!folder.remove(&file("a/b/c.js")).unwrap());
        assert!(!root.path().join("scripts/a/b").exists() && root.path().join("scripts/a/d.js").exists());
    }

    #[test]
    fn what_is_no_bearable_text_is_told() {
        let (root, folder) = folder();
        fs::write(root.path().join("long.js"), vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        fs::write(root.path().join("bytes.js"), [0xff]).unwrap();
        assert!(matches!(folder.read(&file("long.js")), Err(FolderError::TooLong(_))));
        assert!(matches!(folder.read(&file("bytes.js")), Err(FolderError::NotText(_))));
        fs::create_dir(root.path().join("dir.js")).unwrap();
        assert!(matches!(folder.read(&file("dir.js")), Err(FolderError::Odd(_))));
        let long = " ".repeat(FILE_BYTES_MAX as usize + 1);
        assert!(matches!(folder.write(&file("a.js"), &long), Err(FolderError::TooLong(_))));
    }
}
