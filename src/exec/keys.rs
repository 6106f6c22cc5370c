//! What a run presents to the API: a key of its own, which dies with it.

use std::fmt;

use super::run::ScriptFile;
use super::runs::ToldOf;
use crate::domain::{ProjectId, Secret};

/// A run's key; dropping it revokes it.
pub trait RunKey: Send + Sync + fmt::Debug {
    /// What the run presents.
    fn secret(&self) -> Secret;

    /// What the run is told of.
    fn told_of(&self) -> ToldOf;
}

/// Why a run gets no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// `@scope` names what is not there.
    #[error("@scope: there is no project `{0}`")]
    NoProject(String),
    /// As many as may be are out.
    #[error("{0} runs have a key, as many as may")]
    TooMany(usize),
}

/// What gives runs their keys.
pub trait Keys: Send + Sync + fmt::Debug {
    /// The project that a script's `@scope` means, by id or alias.
    ///
    /// # Errors
    /// There is none.
    fn project(&self, name: &str) -> Result<ProjectId, KeyError>;

    /// A key for one run; `None`: this daemon gives none, and the run cannot call the API.
    ///
    /// # Errors
    /// Too many are out.
    fn open(
        &self,
        script: &ScriptFile,
        run: &str,
        scope: Option<ProjectId>,
    ) -> Result<Option<Box<dyn RunKey>>, KeyError>;
}
