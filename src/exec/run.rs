//! One run of a script: what goes in, what comes out, and what stands between.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::domain::{Bytes, Secret};

/// A script's file, relative to the scripts folder, with `/` between its parts: `shop/stripe-signup.js`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ScriptFile(pub String);

impl fmt::Display for ScriptFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is asked of a script: a request, or the clock (`method` is then `SCHEDULE`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// As it came, in capitals.
    pub method: String,
    /// Path below the scripts' root, with the query as it came.
    pub url: String,
    /// What `[id]` and `[...rest]` of the file's path stood for; a rest is joined by `/`.
    pub params: BTreeMap<String, String>,
    /// In the order they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The exact bytes.
    pub body: Vec<u8>,
    /// Who asked.
    pub client: Option<IpAddr>,
}

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// From the first line to the end of the answer.
    pub wall: Duration,
    /// Processor time of the script's own work.
    pub cpu: Duration,
    /// What its values may take.
    pub memory: Bytes,
    /// Of its answer's body.
    pub response: Bytes,
    /// Outgoing connections at once, over and above the one to the API.
    pub connections: u32,
}

/// A run to be done.
#[derive(Debug)]
pub struct Run {
    /// Its file.
    pub file: ScriptFile,
    /// The file's text, read when the request came.
    pub source: Arc<str>,
    /// What is asked.
    pub asked: Asked,
    /// What `metadata` says: the script's name, the run's id, its settings.
    pub metadata: serde_json::Value,
    /// What `secrets` holds.
    pub secrets: BTreeMap<String, Secret>,
    /// What `tenantry` presents to the API; `None`: it may not call it.
    pub key: Option<Secret>,
    /// What it may use.
    pub bounds: Bounds,
    /// Where it prints.
    pub console: Arc<dyn Console>,
}

/// Where a run prints.
pub trait Console: fmt::Debug + Send + Sync {
    /// Takes a line, or drops it where there is no room: nobody waits.
    fn print(&self, line: ConsoleLine);
}

/// A full channel drops lines.
impl Console for mpsc::Sender<ConsoleLine> {
    fn print(&self, line: ConsoleLine) {
        let _ = self.try_send(line);
    }
}

/// A line that a script printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLine {
    /// `log`, `info`, `warn`, `error` or `debug`.
    pub level: String,
    /// Its text, cut at a bound.
    pub text: String,
}

/// An answer whose head is there; the body follows as it is written.
#[derive(Debug)]
pub struct Answer {
    /// 200–599.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Ends with `None`, or with an error where the run failed after its head was sent.
    pub body: mpsc::Receiver<Result<Vec<u8>, RunError>>,
}

/// A place in a script's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file.
    pub file: ScriptFile,
    /// From 1; 0 where the engine does not tell.
    pub line: u32,
    /// From 1; 0 where the engine does not tell.
    pub column: u32,
}

/// Why a run has no answer, or not a whole one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunError {
    /// It does not parse.
    #[error("{}:{}:{}: {message}", place.file, place.line, place.column)]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// It threw, or rejected.
    #[error("uncaught {message}")]
    Thrown {
        /// The error's own text.
        message: String,
        /// Its stack, where it has one.
        stack: Option<String>,
    },
    /// It took longer than it may.
    #[error("took longer than {wall:?}")]
    Time {
        /// What it had.
        wall: Duration,
    },
    /// It computed longer than it may.
    #[error("used more than {cpu:?} of processor time")]
    Cpu {
        /// What it had.
        cpu: Duration,
    },
    /// It held more than it may.
    #[error("used more than {memory} of memory")]
    Memory {
        /// What it had.
        memory: Bytes,
    },
    /// Its answer is larger than it may be.
    #[error("answered more than {response}")]
    Response {
        /// What it had.
        response: Bytes,
    },
    /// Its worker ended under it.
    #[error("the worker ended: {how}")]
    Worker {
        /// How, as far as it is known.
        how: String,
    },
    /// No worker was free in time.
    #[error("no worker was free within {waited:?}")]
    Busy {
        /// How long it was waited for.
        waited: Duration,
    },
}

/// What evaluates scripts.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Runs one and answers when its head is there.
    ///
    /// Dropping the answer ends the run.
    ///
    /// # Errors
    /// Why there is no answer.
    async fn run(&self, run: Run) -> Result<Answer, RunError>;

    /// Parses a script (types stripped where it ends in `.ts`) without running it.
    ///
    /// # Errors
    /// [`RunError::Syntax`]; or that no worker could look.
    async fn check(&self, file: &ScriptFile, source: &str) -> Result<(), RunError>;
}
