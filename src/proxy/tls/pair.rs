//! A certificate and its key, read from two files and checked against each other.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Of a file of certificates or a key, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Why a pair cannot be used. Every text names the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each is what its text says")]
pub enum PairError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has no key beside it: {} is wanted", path.display(), key.display())]
    NoKey { path: PathBuf, key: PathBuf },
    #[error("{} is not PEM", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("{} has no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("the first certificate of {} does not read", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: x509_parser::nom::Err<x509_parser::error::X509Error>,
    },
    #[error("the first certificate of {} names no host: its own comes first, those that signed it after it", path.display())]
    NoNames { path: PathBuf },
    #[error("{} and {} do not belong together", path.display(), key.display())]
    Mismatch {
        path: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// What tells one state of a file from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of a file, where there is one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Self { inode: meta.ino(), bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// How long a certificate is good, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: i64,
    /// To.
    pub not_after: i64,
}

/// A pair that can be shown.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// The names of the first certificate, lower case; `*.` in front of some.
    pub names: Vec<Box<str>>,
    pub validity: Validity,
    pub key: Arc<CertifiedKey>,
}

impl Pair {
    /// Reads and checks one.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub(super) fn read(path: &Path, key_path: &Path) -> Result<Self, PairError> {
        if !key_path.exists() {
            return Err(PairError::NoKey { path: path.to_owned(), key: key_path.to_owned() });
        }
        let pem = |path: &Path| {
            let path = path.to_owned();
            move |source| PairError::Pem { path, source }
        };
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<_, _>>().map_err(pem(path))?;
        let key = PrivateKeyDer::from_pem_slice(&read(key_path)?).map_err(pem(key_path))?;
        let first = chain.first().ok_or_else(|| PairError::Empty { path: path.to_owned() })?;
        let (names, validity) = facts(first, path)?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|source| PairError::Mismatch { path: path.to_owned(), key: key_path.to_owned(), source })?;
        Ok(Self { names, validity, key: Arc::new(key) })
    }
}

/// The names of a certificate, and how long it is good.
fn facts(certificate: &CertificateDer<'_>, path: &Path) -> Result<(Vec<Box<str>>, Validity), PairError> {
    let (_, read) = X509Certificate::from_der(certificate)
        .map_err(|source| PairError::Certificate { path: path.to_owned(), source })?;
    let alternatives = read.subject_alternative_name().ok().flatten();
    let names: Vec<Box<str>> = alternatives
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
            _ => None,
        })
        .collect();
    if names.is_empty() {
        return Err(PairError::NoNames { path: path.to_owned() });
    }
    let validity = read.validity();
    Ok((names, Validity { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() }))
}

fn read(path: &Path) -> Result<Vec<u8>, PairError> {
    let failed = |source| PairError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes"))));
    }
    Ok(bytes)
}
