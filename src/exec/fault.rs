//! Why a request for a script has no answer of the script's.

use std::time::Duration;

use super::comments::CommentError;
use super::deliveries::ClaimError;
use super::folder::FolderError;
use super::keys::KeyError;
use super::run::{RunError, ScriptFile};
use super::secrets::SecretsError;
use crate::store::StoreError;

/// Why there is none. What a visitor is told of it is chosen by the API; whoever manages scripts finds the rest in the script's log.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No file answers this path, or it says `@enabled false`.
    #[error("no script answers `{0}`")]
    NotFound(String),
    /// Its comments cannot be.
    #[error("{file}: {source}")]
    Comment {
        /// Whose.
        file: ScriptFile,
        /// What.
        source: CommentError,
    },
    /// The folder, or the file.
    #[error("the scripts cannot be read")]
    Folder(#[from] FolderError),
    /// `@idempotency` says where the key stands, and none stands there.
    #[error("{0} wants a key of the delivery, and the request has none where its @idempotency says")]
    KeyMissing(ScriptFile),
    /// `@concurrent`.
    #[error("{file} runs as often as it may, and none of its runs ended within {waited:?}")]
    Full {
        /// Whose.
        file: ScriptFile,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Its delivery.
    #[error("the delivery cannot be handled now")]
    Claim(#[from] ClaimError),
    /// Its secrets.
    #[error("the secrets cannot be used")]
    Secrets(#[from] SecretsError),
    /// Its key.
    #[error("it cannot be given a key to the API")]
    Key(#[from] KeyError),
    /// Its answer could not be kept: the sender comes again.
    #[error("the answer cannot be kept")]
    Keep(#[source] StoreError),
    /// It answered with a status that is none.
    #[error("it answered with the status {0}, which is none of 200 to 599")]
    Status(u16),
    /// The run itself.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A task of ours.
    #[error("the task of the run failed")]
    Task,
}
