//! The folder of certificates, and what is shown of it: looked at every second, since certificates are renewed by programs that tell
//! nobody.
//!
//! A pair is two files, which nobody can replace in one step. So a change is read when it has been the same for two looks, and what
//! cannot be used leaves what was read before in its place.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use super::ALPN_ACME;
use super::pair::{Pair, PairError, Stamp, Validity};
use super::table::Table;
use crate::proxy::challenges::Challenges;

/// Between two looks.
const LOOK_MS: Duration = Duration::from_millis(1_000);
/// Pairs that are read; more are left out, and said.
const PAIRS_MAX: usize = 10_000;
/// The pair that clients are shown who name no host that has one.
const DEFAULT_STEM: &str = "default";
/// What certificates' files end with; the first is taken where both are there.
const CERTIFICATE_ENDS: [&str; 2] = ["crt", "pem"];

/// The folder cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot look into {}, where certificates are", path.display())]
pub struct FolderError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The two files of a pair at one moment; the key's where it is there.
type Stamps = (Stamp, Option<Stamp>);

/// What is known of a pair.
#[derive(Debug)]
struct Known {
    path: PathBuf,
    /// At the last look.
    seen: Stamps,
    /// When it was last read, well or not.
    read: Option<Stamps>,
    pair: Option<Pair>,
}

/// Certificates of a folder: `<name>.crt` or `<name>.pem`, its own certificate first, with `<name>.key`.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
    known: Mutex<BTreeMap<String, Known>>,
    table: RwLock<Arc<Table>>,
    challenges: Arc<Challenges>,
}

impl Certificates {
    /// Reads what is there. A pair that cannot be used is said in the log and left out.
    ///
    /// # Errors
    /// The folder cannot be looked at.
    pub fn open(folder: &Path, challenges: Arc<Challenges>) -> Result<Arc<Self>, FolderError> {
        let this = Self { folder: folder.to_owned(), known: Mutex::default(), table: RwLock::default(), challenges };
        this.look(true)?;
        if this.known().is_empty() {
            tracing::warn!(folder = %folder.display(), "there is no certificate yet: no client is served by TLS");
        }
        Ok(Arc::new(this))
    }

    /// Looks every second until `shutdown`.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let mut was_well = true;
        loop {
            tokio::select! {
                // Both only wait.
                () = tokio::time::sleep(LOOK_MS) => {}
                () = shutdown.cancelled() => return,
            }
            let this = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || this.look(false)).await {
                Ok(Err(error)) if was_well => {
                    was_well = false;
                    tracing::warn!(error = &error as &dyn std::error::Error, "the last certificates stay");
                }
                Ok(looked) => was_well = looked.is_ok(),
                Err(error) => tracing::error!(%error, "a look for certificates ended early"),
            }
        }
    }

    /// Looks, and reads what is new without waiting whether it changes again. Blocks.
    ///
    /// # Errors
    /// The folder cannot be looked at.
    pub fn look_at_once(&self) -> Result<(), FolderError> {
        self.look(true)
    }

    /// How long the certificate for a name is good; the default is for no name.
    pub fn validity(&self, name: &str) -> Option<Validity> {
        self.table().validity(name)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        // What is in it is good after a panic, too.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is new; at once where `first`, else when it has not changed since the last look.
    fn look(&self, first: bool) -> Result<(), FolderError> {
        let found = self.list().map_err(|source| FolderError { path: self.folder.clone(), source })?;
        let mut known = self.known();
        let before = known.len();
        known.retain(|stem, _| found.contains_key(stem));
        let mut changed = known.len() != before;
        for (stem, (path, now)) in found {
            let entry =
                known.entry(stem).or_insert_with(|| Known { path: path.clone(), seen: now, read: None, pair: None });
            let is_still = first || (entry.seen == now && entry.path == path);
            (entry.path, entry.seen) = (path, now);
            if is_still && entry.read != Some(now) {
                changed |= entry.read_again();
            }
        }
        if changed {
            let pairs = known.values().filter_map(|known| known.pair.as_ref());
            let default = known.get(DEFAULT_STEM).and_then(|known| known.pair.as_ref());
            let table = Arc::new(Table::new(pairs, default));
            *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        }
        Ok(())
    }

    /// The certificates' files and how they and their keys stand, by their names without an end.
    fn list(&self) -> io::Result<BTreeMap<String, (PathBuf, Stamps)>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let (Some(stem), Some(end)) = (path.file_stem().and_then(|s| s.to_str()), path.extension()) else {
                continue;
            };
            if !CERTIFICATE_ENDS.iter().any(|known| *known == end) {
                continue;
            }
            let Some(stamp) = Stamp::of(&path) else { continue };
            let stamps = (stamp, Stamp::of(&path.with_extension("key")));
            let is_second = end == CERTIFICATE_ENDS[1];
            if is_second && found.contains_key(stem) {
                continue;
            }
            if found.len() >= PAIRS_MAX {
                tracing::warn!(folder = %self.folder.display(), "there are more certificates than {PAIRS_MAX}: some are left out");
                break;
            }
            found.insert(stem.to_owned(), (path, stamps));
        }
        Ok(found)
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Known {
    /// Whether there is another pair now.
    fn read_again(&mut self) -> bool {
        self.read = Some(self.seen);
        match Pair::read(&self.path, &self.path.with_extension("key")) {
            Ok(pair) => {
                tracing::info!(file = %self.path.display(), names = ?pair.names, "a certificate is shown");
                self.pair = Some(pair);
                true
            }
            Err(error) => {
                self.complain(&error);
                false
            }
        }
    }

    fn complain(&self, error: &PairError) {
        let error = error as &dyn std::error::Error;
        match &self.pair {
            Some(_) => tracing::warn!(error, "a certificate cannot be used: the last good one stays"),
            None => tracing::warn!(error, "a certificate cannot be used"),
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        if hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ALPN_ACME)) {
            return self.challenges.certificate_of(&name?);
        }
        self.table().pick(name.as_deref())
    }
}
