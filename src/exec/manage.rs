//! Scripts as things that are listed, read, written and deleted.

use super::comments::{self, CommentError};
use super::fault::Fault;
use super::folder::Script;
use super::routes::{Problem, is_code};
use super::run::{RunError, ScriptFile};
use super::scripts::Scripts;
use crate::domain::chain;

/// A file of the folder.
#[derive(Debug)]
pub struct Overview {
    /// Its name.
    pub file: ScriptFile,
    /// The paths it answers, as `/shop/[id]`.
    pub route: Option<String>,
    /// Why it answers none, where it looks as if it should.
    pub problem: Option<Problem>,
    /// What it is now; `None`: it cannot be read, and why.
    pub script: Result<std::sync::Arc<Script>, String>,
}

/// Why a script is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Its comments cannot be.
    #[error(transparent)]
    Comment(#[from] CommentError),
    /// It does not parse, or no worker could look.
    #[error(transparent)]
    Check(#[from] RunError),
    /// Anything else.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Scripts {
    /// Every file, by name.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn list(&self) -> Result<Vec<Overview>, Fault> {
        self.on_folder(|folder| {
            let routes = folder.routes()?;
            let look = |one: &super::routes::Listed| {
                let script = match folder.read(&one.file) {
                    Ok(Some(script)) => Ok(script),
                    // It went while it was listed.
                    Ok(None) => return None,
                    Err(error) => Err(chain(&error)),
                };
                let (file, route, problem) = (one.file.clone(), one.route.clone(), one.problem.clone());
                Some(Overview { file, route, problem, script })
            };
            Ok(routes.listed().iter().filter_map(look).collect())
        })
        .await
    }

    /// One file; `None` where it is not there.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn show(&self, file: &ScriptFile) -> Result<Option<Overview>, Fault> {
        let file = file.clone();
        self.on_folder(move |folder| {
            let Some(script) = folder.read(&file)? else { return Ok(None) };
            let routes = folder.routes()?;
            let listed = routes.listed().iter().find(|one| one.file == file);
            let (route, problem) = listed.map_or((None, None), |one| (one.route.clone(), one.problem.clone()));
            Ok(Some(Overview { file, route, problem, script: Ok(script) }))
        })
        .await
    }

    /// Writes a file, unless it cannot be; says whether it is new. It answers from now on.
    ///
    /// # Errors
    /// Its place, or why it cannot be written.
    pub async fn write(&self, file: &ScriptFile, source: String) -> Result<bool, WriteError> {
        if is_code(file) {
            comments::read(&source)?;
            self.engine().check(file, &source).await?;
        }
        let file = file.clone();
        let written = self.on_folder(move |folder| {
            let is_new = folder.read(&file).ok().flatten().is_none();
            folder.write(&file, &source)?;
            Ok(is_new)
        });
        Ok(written.await?)
    }

    /// Removes a file and its log; says whether it was there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove(&self, file: &ScriptFile) -> Result<bool, Fault> {
        let name = file.clone();
        let was_there = self.on_folder(move |folder| folder.remove(&name)).await?;
        if was_there {
            self.log().erase(file).await;
        }
        Ok(was_there)
    }
}
