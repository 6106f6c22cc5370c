//! What `secrets` holds in a script: the operator's file, and over it what was set by the API.
//!
//! Every script sees all of them: whoever may write a script may read them, and the API never gives a value back. The file is looked
//! at for every run, so that an edit is live at once; one that others may read is refused.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::stamp::Stamp;
use crate::domain::Secret;
use crate::store::{Batch, Durability, Records, StoreError};

/// Secrets set by the API, at most; as many may be in the file.
pub const SECRETS_MAX: usize = 256;
/// Bytes of a secret's value, at most.
pub const VALUE_BYTES_MAX: usize = 8 << 10;
/// Bytes of a secret's name, at most.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of the file, at most.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Rights of others than the file's owner.
const OTHERS: u32 = 0o077;

const PREFIX: &str = "script-secret/";

/// Whether a text can be a secret's name: `[A-Z][A-Z0-9_]{0,63}`.
pub fn is_name(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_uppercase());
    first
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// Why secrets cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The system said no.
    #[error("cannot read the secrets' file {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} may be read by others than its owner (mode {mode:o}): chmod 600", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not what it should be. What stands in it is not repeated.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// As many as may be are set.
    #[error("{SECRETS_MAX} secrets are set, as many as may be")]
    TooMany,
    /// The store's.
    #[error("the secrets cannot be kept")]
    Store(#[from] StoreError),
}

/// One that was set by the API.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Set {
    value: Secret,
    updated_at: Timestamp,
}

/// Where a secret comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The operator's file.
    File,
    /// The API.
    Api,
}

/// What may be told of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// When it was set by the API.
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Kept {
    stamp: Stamp,
    read_at: SystemTime,
    values: BTreeMap<String, Secret>,
}

/// All of them.
#[derive(Debug)]
pub struct Secrets {
    file: PathBuf,
    kept: Mutex<Option<Kept>>,
    records: Records,
    set: RwLock<BTreeMap<String, Set>>,
    /// One change at a time, so that the store and the memory agree.
    changing: tokio::sync::Mutex<()>,
}

impl Secrets {
    /// Those of a file, there or not, and those of the store.
    ///
    /// # Errors
    /// The store's.
    pub async fn open(file: PathBuf, records: Records) -> Result<Self, SecretsError> {
        let all = records.all_at::<Set>(PREFIX).await?;
        let named = all.into_iter().filter_map(|(key, set)| Some((key.strip_prefix(PREFIX)?.to_owned(), set)));
        let set = RwLock::new(named.collect());
        Ok(Self { file, kept: Mutex::default(), records, set, changing: tokio::sync::Mutex::default() })
    }

    /// Names and values, now.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn all(&self) -> Result<BTreeMap<String, Secret>, SecretsError> {
        let mut all = self.of_file()?;
        let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
        all.extend(set.iter().map(|(name, set)| (name.clone(), set.value.clone())));
        Ok(all)
    }

    /// What may be told of them.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn list(&self) -> Result<Vec<Known>, SecretsError> {
        let known =
            |name: &String, origin, updated_at| (name.clone(), Known { name: name.clone(), origin, updated_at });
        let mut all: BTreeMap<_, _> = self.of_file()?.keys().map(|name| known(name, Origin::File, None)).collect();
        let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
        all.extend(set.iter().map(|(name, set)| known(name, Origin::Api, Some(set.updated_at))));
        Ok(all.into_values().collect())
    }

    /// Sets one; it is on the disk when this returns.
    ///
    /// # Errors
    /// There are too many, or the store's.
    pub async fn put(&self, name: &str, value: Secret) -> Result<Known, SecretsError> {
        let _one = self.changing.lock().await;
        let is_full = {
            let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
            !set.contains_key(name) && set.len() >= SECRETS_MAX
        };
        if is_full {
            return Err(SecretsError::TooMany);
        }
        let one = Set { value, updated_at: Timestamp::now() };
        let batch = Batch::default().put_at(format!("{PREFIX}{name}"), &one)?;
        self.records.commit(batch, Durability::Flushed).await?;
        let known = Known { name: name.to_owned(), origin: Origin::Api, updated_at: Some(one.updated_at) };
        self.set.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), one);
        Ok(known)
    }

    /// Removes one that the API set; says whether it was there.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove(&self, name: &str) -> Result<bool, SecretsError> {
        let _one = self.changing.lock().await;
        let batch = Batch::default().remove_at(format!("{PREFIX}{name}"));
        self.records.commit(batch, Durability::Flushed).await?;
        Ok(self.set.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some())
    }

    fn of_file(&self) -> Result<BTreeMap<String, Secret>, SecretsError> {
        let path = &self.file;
        let read_at = SystemTime::now();
        let found = match fs::metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(SecretsError::File { path: path.clone(), source }),
        };
        let stamp = Stamp::of(&found);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.stamp == stamp && stamp.is_settled(kept.read_at)) {
            return Ok(kept.values.clone());
        }
        let values = read_file(path, &found)?;
        *kept = Some(Kept { stamp, read_at, values: values.clone() });
        Ok(values)
    }
}

fn read_file(path: &Path, found: &Metadata) -> Result<BTreeMap<String, Secret>, SecretsError> {
    let wrong = |problem: String| SecretsError::Content { path: path.to_owned(), problem };
    let mode = found.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(SecretsError::Open { path: path.to_owned(), mode });
    }
    if !found.is_file() || found.len() > FILE_BYTES_MAX {
        return Err(wrong(format!("a file of at most {FILE_BYTES_MAX} bytes is wanted")));
    }
    let text = fs::read_to_string(path).map_err(|source| SecretsError::File { path: path.to_owned(), source })?;
    // The parser's own message repeats the line, and with it a secret.
    let values: BTreeMap<String, Secret> = toml::from_str(&text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        wrong(format!("line {line} is not NAME = \"value\""))
    })?;
    if values.len() > SECRETS_MAX {
        return Err(wrong(format!("more than {SECRETS_MAX} secrets")));
    }
    for (name, value) in &values {
        if !is_name(name) {
            return Err(wrong(format!("`{name}` is no name: A-Z, 0-9 and _, at most {NAME_BYTES_MAX}")));
        }
        if value.reveal().len() > VALUE_BYTES_MAX {
            return Err(wrong(format!("the value of `{name}` is longer than {VALUE_BYTES_MAX} bytes")));
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::testing::records;

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn names_are_as_variables_are() {
        assert!(is_name("A") && is_name("STRIPE_KEY_2"));
        for bad in ["", "a", "_A", "2A", "A-B", "A B", &"A".repeat(NAME_BYTES_MAX + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_the_api_set_goes_over_the_file_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secrets.toml");
        let value = |all: &BTreeMap<String, Secret>, name: &str| all.get(name).map(|value| value.reveal().to_owned());
        {
            let secrets = Secrets::open(file.clone(), records(&folder.path().join("db")).await).await.unwrap();
            assert!(secrets.all().unwrap().is_empty());
            write(&file, "A = \"1\"\nB = \"2\"", 0o600);
            secrets.put("B", Secret::new("3")).await.unwrap();
            let all = secrets.all().unwrap();
            assert_eq!((value(&all, "A"), value(&all, "B")), (Some("1".into()), Some("3".into())));
            let list = secrets.list().unwrap();
            assert_eq!((list[0].origin, list[1].origin), (Origin::File, Origin::Api));
            write(&file, "A = \"4\"", 0o600);
            assert_eq!(value(&secrets.all().unwrap(), "A"), Some("4".into()));
        }
        let secrets = Secrets::open(file, records(&folder.path().join("db")).await).await.unwrap();
        assert_eq!(value(&secrets.all().unwrap(), "B"), Some("3".into()));
        assert!(secrets.remove("B").await.unwrap() && !secrets.remove("B").await.unwrap());
        assert_eq!(secrets.list().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_is_refused_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secrets.toml");
        let secrets = Secrets::open(file.clone(), records(&folder.path().join("db")).await).await.unwrap();
        write(&file, "A = \"1\"", 0o640);
        assert!(matches!(secrets.all(), Err(SecretsError::Open { mode: 0o640, .. })));
        for bad in ["A = \"1\"\nHUNTER2", "A = 1", "a = \"x\"", "[A]\nB = \"HUNTER2\""] {
            write(&file, bad, 0o600);
            let error = secrets.all().unwrap_err();
            assert!(matches!(error, SecretsError::Content { .. }) && !error.to_string().contains("HUNTER"), "{error}");
        }
    }
}
