//! From a request to a script's answer: everything in front of the engine.
//!
//! ```text
//!  find: path ─► route ─► text and comments, as they are now
//!  answer: delivery? ─► place? ─► secrets, key ─► engine ─► head ─► body as it is written, or kept whole for a delivery
//! ```
//!
//! A run ends when whoever asked goes away; one of a delivery goes on, because its sender comes again and must then find its answer.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::Instrument;

use super::comments::Settings;
use super::deliveries::{Claim, Deliveries, Kept, Mark, key_of};
use super::fault::Fault;
use super::folder::{Folder, FolderError, Script};
use super::gates::{Gates, WAIT_MS_MAX};
use super::headers;
use super::keys::{Keys, RunKey};
use super::log::RunLog;
use super::routes::Routes;
use super::run::{Answer, Asked, Bounds, Console, ConsoleLine, Engine, Run, RunError, ScriptFile};
use super::runs::ToldOf;
use super::secrets::{Secrets, SecretsError};
use crate::domain::{ProjectId, chain};
use crate::store::{Records, StoreError};

/// Pieces of an answer that wait for its client, at most.
const BODY_QUEUE_MAX: usize = 4;
/// What an engine may take beyond a run's own time before it is given up, in milliseconds: it ends runs itself.
const GRACE_MS: u64 = 5_000;
/// Methods that change nothing: they are no deliveries.
const SAFE_METHODS: [&str; 3] = ["GET", "HEAD", "OPTIONS"];
/// The method of a run by the clock.
pub const SCHEDULE: &str = "SCHEDULE";

/// Where things lie, and what a run may use where its script says nothing.
#[derive(Debug, Clone)]
pub struct ScriptsConfig {
    /// The scripts' folder.
    pub folder: PathBuf,
    /// The secrets' file.
    pub secrets_file: PathBuf,
    /// The folder of the logs, which is there.
    pub logs: PathBuf,
    /// Of one run.
    pub bounds: Bounds,
    /// Runs of one script at once where it says nothing: fewer than workers, so that none keeps all others waiting.
    pub concurrent: NonZeroU32,
}

/// A script that answers a path, and what its brackets stand for.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// As it is now.
    pub script: Arc<Script>,
    /// What it says of itself.
    pub settings: Settings,
    /// Of its path.
    pub params: std::collections::BTreeMap<String, String>,
}

/// An answer on its way.
#[derive(Debug)]
pub struct Reply {
    /// 200–599.
    pub status: u16,
    /// Fit to be sent.
    pub headers: Vec<(String, String)>,
    /// What follows.
    pub body: ReplyBody,
    /// Whether it is the answer of an earlier delivery.
    pub replayed: bool,
    /// The containers that it may tell of.
    told_of: ToldOf,
}

/// An answer's body.
#[derive(Debug)]
pub enum ReplyBody {
    /// All of it.
    Whole(Vec<u8>),
    /// As it is written; dropping it ends the run.
    Stream(mpsc::Receiver<Result<Vec<u8>, RunError>>),
}

#[derive(Debug)]
struct Inner {
    folder: Arc<Folder>,
    engine: Arc<dyn Engine>,
    keys: Arc<dyn Keys>,
    secrets: Secrets,
    deliveries: Arc<Deliveries>,
    log: RunLog,
    gates: Gates,
    bounds: Bounds,
    concurrent: NonZeroU32,
}

/// The scripts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Scripts(Arc<Inner>);

/// Why scripts cannot be served at all.
#[derive(Debug, thiserror::Error)]
pub enum ScriptsError {
    /// The store's.
    #[error("the deliveries of scripts cannot be read")]
    Store(#[from] StoreError),
    /// The secrets.
    #[error("the secrets of scripts cannot be read")]
    Secrets(#[from] SecretsError),
}

/// What a run holds while it lasts; says in the script's log how it ended.
#[derive(Debug)]
struct Under {
    log: RunLog,
    file: ScriptFile,
    run: String,
    what: String,
    began: Instant,
    told: bool,
    _key: Option<Box<dyn RunKey>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Under {
    fn tell(&mut self, how: &str) {
        self.told = true;
        let ms = self.began.elapsed().as_millis();
        self.log.add(&self.file, &self.run, "run", &format!("{}: {how} ({ms} ms)", self.what));
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        if !self.told {
            self.tell("ended, whoever asked has gone");
        }
    }
}

impl Scripts {
    /// The scripts of a folder, there or not.
    ///
    /// # Errors
    /// What was kept of them cannot be read.
    pub async fn open(
        config: ScriptsConfig,
        engine: Arc<dyn Engine>,
        keys: Arc<dyn Keys>,
        records: Records,
    ) -> Result<Self, ScriptsError> {
        Ok(Self(Arc::new(Inner {
            folder: Arc::new(Folder::new(config.folder)),
            engine,
            keys,
            secrets: Secrets::open(config.secrets_file, records.clone()).await?,
            deliveries: Deliveries::open(records).await?,
            log: RunLog::open(config.logs),
            gates: Gates::default(),
            bounds: config.bounds,
            concurrent: config.concurrent,
        })))
    }

    /// The secrets.
    pub fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    /// The logs.
    pub fn log(&self) -> &RunLog {
        &self.0.log
    }

    /// The deliveries.
    pub fn deliveries(&self) -> &Deliveries {
        &self.0.deliveries
    }

    /// The engine.
    pub fn engine(&self) -> &dyn Engine {
        &*self.0.engine
    }

    /// Does something with the folder where it may block.
    pub(super) async fn on_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, Fault> {
        let folder = Arc::clone(&self.0.folder);
        let done = tokio::task::spawn_blocking(move || work(&folder)).await;
        Ok(done.map_err(|_| Fault::Task)??)
    }

    /// Which file answers what.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn routes(&self) -> Result<Arc<Routes>, Fault> {
        self.on_folder(Folder::routes).await
    }

    /// What answers a path, as it stands in a URL without its query.
    ///
    /// # Errors
    /// Nothing does, or its comments cannot be.
    pub async fn find(&self, path: &str) -> Result<Endpoint, Fault> {
        let asked = path.to_owned();
        let found = self.on_folder(move |folder| {
            let Some(found) = folder.routes()?.resolve(&asked) else { return Ok(None) };
            Ok(folder.read(&found.file)?.map(|script| (script, found.params)))
        });
        let Some((script, params)) = found.await? else { return Err(Fault::NotFound(path.to_owned())) };
        match script.settings.clone() {
            Ok(settings) if settings.enabled => Ok(Endpoint { script, settings, params }),
            Ok(_) => Err(Fault::NotFound(path.to_owned())),
            Err(source) => {
                let file = script.file.clone();
                self.0.log.add(&file, "-", "error", &source.to_string());
                Err(Fault::Comment { file, source })
            }
        }
    }

    /// The project that a script is held to.
    ///
    /// # Errors
    /// It names one that is not there.
    pub fn scope(&self, settings: &Settings) -> Result<Option<ProjectId>, Fault> {
        Ok(settings.scope.as_deref().map(|name| self.0.keys.project(name)).transpose()?)
    }

    /// Answers a request. `held` is let go of when there is an answer, and not before the run has ended where whoever asked goes
    /// away from a delivery: it is what the request takes of a bound.
    ///
    /// # Errors
    /// Why there is no answer, or no whole one where it is a delivery's.
    pub async fn answer(&self, endpoint: Endpoint, asked: Asked, held: impl Send + 'static) -> Result<Reply, Fault> {
        let by_clock = asked.method == SCHEDULE || SAFE_METHODS.contains(&asked.method.as_str());
        let Some(source) = endpoint.settings.idempotency.as_ref().filter(|_| !by_clock) else {
            return self.run(endpoint, asked).await;
        };
        let file = &endpoint.script.file;
        let key = key_of(source, &asked).ok_or_else(|| Fault::KeyMissing(file.clone()))?;
        let wait = self.wall(&endpoint.settings) + Duration::from_millis(WAIT_MS_MAX + GRACE_MS);
        match self.0.deliveries.claim(file, &key, wait).await? {
            Claim::Again(kept) => {
                self.0.log.add(file, "-", "run", &format!("{} {}: handled before", asked.method, path_of(&asked.url)));
                let body = ReplyBody::Whole(kept.body());
                Ok(Reply {
                    status: kept.status,
                    headers: kept.headers,
                    body,
                    replayed: true,
                    told_of: ToldOf::default(),
                })
            }
            Claim::First(mark) => {
                let this = self.clone();
                let work = async move {
                    let _held = held;
                    this.deliver(endpoint, asked, mark).await
                };
                tokio::spawn(work.in_current_span()).await.unwrap_or(Err(Fault::Task))
            }
        }
    }

    /// Runs a delivery to its end and keeps its answer, if it is one of success.
    async fn deliver(&self, endpoint: Endpoint, asked: Asked, mark: Mark) -> Result<Reply, Fault> {
        let reply = self.run(endpoint, asked).await?;
        let mut body = Vec::new();
        match reply.body {
            ReplyBody::Whole(whole) => body = whole,
            // Bounded by the engine, to what an answer may be.
            ReplyBody::Stream(mut pieces) => {
                while let Some(piece) = pieces.recv().await {
                    body.extend(piece?);
                }
            }
        }
        if (200..300).contains(&reply.status) {
            let kept = Kept::new(reply.status, reply.headers.clone(), &body, reply.told_of.ids());
            self.0.deliveries.keep(mark, &kept).await.map_err(Fault::Keep)?;
        }
        Ok(Reply { body: ReplyBody::Whole(body), ..reply })
    }

    fn wall(&self, settings: &Settings) -> Duration {
        settings.timeout.unwrap_or(self.0.bounds.wall)
    }

    /// Runs a script; its body follows.
    async fn run(&self, endpoint: Endpoint, asked: Asked) -> Result<Reply, Fault> {
        let Endpoint { script, settings, .. } = &endpoint;
        let id = hex::encode(rand::random::<[u8; 12]>());
        let what = format!("{} {}", asked.method, path_of(&asked.url));
        let mut under = Under {
            log: self.0.log.clone(),
            file: script.file.clone(),
            run: id,
            what,
            began: Instant::now(),
            told: false,
            _key: None,
            _place: None,
        };
        let wall = self.wall(settings);
        let head = async {
            let run = self.prepare(&endpoint, asked, &mut under).await?;
            let longest = wall + Duration::from_millis(GRACE_MS);
            let head = tokio::time::timeout(longest, self.0.engine.run(run)).await;
            let answer = head.unwrap_or(Err(RunError::Time { wall }))?;
            if (200..600).contains(&answer.status) { Ok(answer) } else { Err(Fault::Status(answer.status)) }
        };
        match head.await {
            Ok(Answer { status, headers, body }) => {
                let headers = headers::outgoing(headers);
                let told_of = under._key.as_ref().map(|key| key.told_of()).unwrap_or_default();
                let body = ReplyBody::Stream(pass_on(body, status, under));
                Ok(Reply { status, headers, body, replayed: false, told_of })
            }
            Err(fault) => {
                under.tell(&told(&fault));
                Err(fault)
            }
        }
    }

    /// What a run needs, taken in the order in which it may fail.
    async fn prepare(&self, endpoint: &Endpoint, asked: Asked, under: &mut Under) -> Result<Run, Fault> {
        let Endpoint { script, settings, .. } = endpoint;
        let (places, waited) = (settings.concurrent.unwrap_or(self.0.concurrent), Duration::from_millis(WAIT_MS_MAX));
        let place = self.0.gates.enter(&script.file, places, waited).await;
        under._place = Some(place.ok_or_else(|| Fault::Full { file: script.file.clone(), waited })?);
        let bounds = Bounds { wall: self.wall(settings), ..self.0.bounds };
        let secrets = self.0.secrets.all()?;
        under._key = self.0.keys.open(&script.file, &under.run, self.scope(settings)?)?;
        let metadata = json!({
            "script": script.file, "run": under.run, "description": settings.description,
            "timeout_ms": u64::try_from(bounds.wall.as_millis()).unwrap_or(u64::MAX),
            "schedule": settings.schedule.as_ref().map(ToString::to_string),
        });
        Ok(Run {
            file: script.file.clone(),
            source: Arc::clone(&script.source),
            asked,
            metadata,
            secrets,
            key: under._key.as_ref().map(|key| key.secret()),
            bounds,
            console: Arc::new(Printed { log: under.log.clone(), file: under.file.clone(), run: under.run.clone() }),
        })
    }
}

/// A URL without its query, which is the visitor's and may hold what is not for a log.
fn path_of(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// How a failure stands in the script's log.
fn told(fault: &Fault) -> String {
    match fault {
        Fault::Run(RunError::Thrown { message, stack: Some(stack) }) => format!("uncaught {message}\n{stack}"),
        other => chain(other),
    }
}

/// What a run prints goes into its script's log.
#[derive(Debug)]
struct Printed {
    log: RunLog,
    file: ScriptFile,
    run: String,
}

impl Console for Printed {
    fn print(&self, line: ConsoleLine) {
        let level = ["log", "info", "warn", "error", "debug"].into_iter().find(|level| *level == line.level);
        self.log.add(&self.file, &self.run, level.unwrap_or("log"), &line.text);
    }
}

/// Passes an answer's body on until it ends, fails, or nobody wants it any more.
fn pass_on(
    mut body: mpsc::Receiver<Result<Vec<u8>, RunError>>,
    status: u16,
    mut under: Under,
) -> mpsc::Receiver<Result<Vec<u8>, RunError>> {
    let (sender, receiver) = mpsc::channel(BODY_QUEUE_MAX);
    let passing = async move {
        loop {
            // Both are cancel-safe: nothing is taken that is not passed on.
            let piece = tokio::select! {
                () = sender.closed() => return,
                piece = body.recv() => piece,
            };
            match piece {
                None => return under.tell(&status.to_string()),
                Some(Err(error)) => {
                    under.tell(&format!("{status}, then {}", told(&Fault::Run(error.clone()))));
                    // Nobody there is no error.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
                Some(Ok(piece)) => {
                    if sender.send(Ok(piece)).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::spawn(passing.in_current_span());
    receiver
}

#[cfg(test)]
#[path = "scripts_tests.rs"]
mod tests;
