//! The keys of runs: what a script presents to the API, for as long as its run lasts.
//!
//! ```text
//!  open ─► RunKey (its secret goes to the worker) ─► dropped: the key is refused from then on
//!            └─ the socket for scripts: who presents the secret is `scripts`, narrowed to the run's scope
//! ```
//!
//! A key is no token: it is in no record and no list, is known only to the socket that workers are given, and dies with its run
//! or with the daemon. What it may do is what any provisioner may; all scripts are one of them ([`TokenId::SCRIPTS`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::domain::token::{Permissions, TokenHash};
use crate::domain::{ContainerId, ProjectId, Secret, Token, TokenId};

/// Runs that hold a key at once, at most.
pub const RUNS_MAX: usize = 4_096;

/// Containers that one run was told of and that are remembered, at most.
const TOLD_OF_MAX: usize = 256;

/// As many runs hold a key as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{RUNS_MAX} runs of scripts hold a key, as many as may")]
pub struct TooManyRuns;

/// The containers that the API told a run of, and so those that its answer may tell of. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ToldOf(Arc<Mutex<Set>>);

#[derive(Debug, Default)]
struct Set {
    ids: BTreeSet<ContainerId>,
    overflowed: bool,
}

impl ToldOf {
    /// One more.
    pub fn add(&self, id: ContainerId) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if set.ids.len() < TOLD_OF_MAX {
            set.ids.insert(id);
        } else {
            set.overflowed |= !set.ids.contains(&id);
        }
    }

    /// All of them; `None` where there were more than are remembered.
    pub fn ids(&self) -> Option<Vec<ContainerId>> {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!set.overflowed).then(|| set.ids.iter().copied().collect())
    }
}

/// A run that holds a key, or did.
#[derive(Debug)]
pub struct Holder {
    /// The script's file.
    pub script: String,
    /// The run's id.
    pub run: String,
    /// The only project it may know of; `None`: all.
    pub scope: Option<ProjectId>,
    /// What it was told of.
    pub told_of: ToldOf,
    over: AtomicBool,
}

impl Holder {
    /// Whether its run has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// As whom it comes to the API.
    pub fn identity(&self) -> Token {
        Token {
            id: TokenId::SCRIPTS,
            alias: "scripts".to_owned(),
            // Of nothing: no secret of a token's hashes so.
            hash: TokenHash(String::new()),
            permissions: Permissions::Provisioner,
            project: self.scope,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
            templates: Vec::new(),
            scripts: false,
            previous: None,
        }
    }
}

/// All runs that hold a key. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Runs(Arc<Mutex<HashMap<TokenHash, Arc<Holder>>>>);

/// One run's key; dropped, it is refused.
#[derive(Debug)]
pub struct RunKey {
    secret: Secret,
    told_of: ToldOf,
    runs: Runs,
}

impl RunKey {
    /// What the run presents.
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What the run has been told of so far, and will be.
    pub const fn told_of(&self) -> &ToldOf {
        &self.told_of
    }
}

impl Drop for RunKey {
    fn drop(&mut self) {
        if let Some(holder) = self.runs.lock().remove(&TokenHash::of(self.secret.reveal())) {
            holder.over.store(true, Ordering::Release);
        }
    }
}

impl Runs {
    fn lock(&self) -> MutexGuard<'_, HashMap<TokenHash, Arc<Holder>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key for one run of a script.
    ///
    /// # Errors
    /// As many are open as may be.
    pub fn open(&self, script: &str, run: &str, scope: Option<ProjectId>) -> Result<RunKey, TooManyRuns> {
        let secret = Secret::new(format!("run_{}", hex::encode(rand::random::<[u8; 32]>())));
        let told_of = ToldOf::default();
        let over = AtomicBool::new(false);
        let holder = Holder { script: script.to_owned(), run: run.to_owned(), scope, told_of: told_of.clone(), over };
        let mut runs = self.lock();
        if runs.len() >= RUNS_MAX {
            return Err(TooManyRuns);
        }
        runs.insert(TokenHash::of(secret.reveal()), Arc::new(holder));
        drop(runs);
        Ok(RunKey { secret, told_of, runs: self.clone() })
    }

    /// Whose key hashes so.
    pub fn holder(&self, hash: &TokenHash) -> Option<Arc<Holder>> {
        self.lock().get(hash).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_works_until_it_is_dropped() {
        let runs = Runs::default();
        let key = runs.open("shop/signup.js", "r1", Some(ProjectId::NIL)).unwrap();
        let hash = TokenHash::of(key.secret().reveal());
        let holder = runs.holder(&hash).unwrap();
        assert_eq!((holder.script.as_str(), holder.identity().project), ("shop/signup.js", Some(ProjectId::NIL)));
        assert!(!holder.is_over() && runs.holder(&TokenHash(String::new())).is_none());
        drop(key);
        assert!(holder.is_over() && runs.holder(&hash).is_none());
    }

    #[test]
    fn what_a_run_was_told_of_is_known_after_it_or_said_to_be_too_much() {
        let key = Runs::default().open("a.js", "r", None).unwrap();
        let told_of = key.told_of().clone();
        drop(key);
        let ids: BTreeSet<_> = (0..TOLD_OF_MAX).map(|_| ContainerId::generate()).collect();
        ids.iter().chain(&ids).for_each(|id| told_of.add(*id));
        assert_eq!(told_of.ids(), Some(ids.into_iter().collect()));
        told_of.add(ContainerId::generate());
        assert_eq!(told_of.ids(), None);
    }

    #[test]
    fn there_are_never_more_than_may_be() {
        let runs = Runs::default();
        let mut keys: Vec<_> = (0..RUNS_MAX).map(|n| runs.open("a.js", &n.to_string(), None).unwrap()).collect();
        assert_eq!(runs.open("a.js", "one too many", None).unwrap_err(), TooManyRuns);
        keys.pop();
        runs.open("a.js", "there is room again", None).unwrap();
    }
}
