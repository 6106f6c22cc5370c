//! An engine that evaluates nothing, and scripts in front of it: what a script "does" stands in its text as `fake: <word>`.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::keys::{KeyError, Keys, RunKey};
use super::run::{Answer, Asked, Bounds, ConsoleLine, Engine, Place, Run, RunError, ScriptFile};
use super::runs::ToldOf;
use super::scripts::{Scripts, ScriptsConfig};
use crate::domain::{Bytes, ProjectId, Secret};
use crate::store::Records;
use crate::store::sled::SledStore;

/// The store in a folder, as a daemon opens it.
pub async fn records(folder: &Path) -> Records {
    let store = SledStore::open_after_another(folder).await.unwrap();
    Records::open(Arc::new(Arc::new(store))).await.unwrap()
}

/// A request.
pub fn asked(method: &str, url: &str, body: &[u8]) -> Asked {
    Asked {
        method: method.to_owned(),
        url: url.to_owned(),
        params: BTreeMap::new(),
        headers: Vec::new(),
        body: body.to_vec(),
        client: None,
    }
}

/// Answers by what stands in the text.
#[derive(Debug, Default)]
pub struct FakeEngine {
    runs: AtomicUsize,
    alive: Arc<AtomicUsize>,
    /// The keys that runs were given.
    pub keys: Mutex<Vec<Option<String>>>,
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FakeEngine {
    /// Runs that were begun.
    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    /// Runs that have not ended.
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    /// Until so many were begun.
    pub async fn wait_for_runs(&self, count: usize) {
        self.until(|| self.runs() >= count).await;
    }

    /// Until something holds.
    pub async fn until(&self, holds: impl Fn() -> bool) {
        for _ in 0..1_000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came to be");
    }
}

fn text_answer(status: u16, body: Vec<u8>, alive: Alive) -> Answer {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _ = sender.send(Ok(body)).await;
        drop(alive);
    });
    Answer { status, headers: vec![("content-type".into(), "text/plain".into())], body: receiver }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn run(&self, run: Run) -> Result<Answer, RunError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        self.alive.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(Arc::clone(&self.alive));
        self.keys.lock().unwrap().push(run.key.as_ref().map(|key| key.reveal().to_owned()));
        let line = ConsoleLine { level: "info".into(), text: format!("hello from {}", run.file) };
        run.console.print(line);
        let word = run.source.split_once("fake: ").map_or("", |(_, rest)| rest.lines().next().unwrap_or_default());
        let wall = run.bounds.wall;
        match word {
            "hang" => std::future::pending().await,
            "slow" => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(text_answer(200, b"slow".to_vec(), alive))
            }
            "throw" => Err(RunError::Thrown { message: "Error: oops".into(), stack: Some("at a.js:1".into()) }),
            "busy" => Err(RunError::Busy { waited: wall }),
            "time" => Err(RunError::Time { wall }),
            "worker" => Err(RunError::Worker { how: "killed by SIGKILL".into() }),
            "syntax" => self.check(&run.file, "syntax").await.map(|()| text_answer(200, vec![], alive)),
            "drip" => {
                let (sender, body) = mpsc::channel(1);
                tokio::spawn(async move {
                    let _alive = alive;
                    while sender.send(Ok(b"drip".to_vec())).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
                Ok(Answer { status: 200, headers: vec![], body })
            }
            "half" => {
                let (sender, body) = mpsc::channel(2);
                sender.try_send(Ok(b"half".to_vec())).unwrap();
                sender.try_send(Err(RunError::Response { response: Bytes(4) })).unwrap();
                Ok(Answer { status: 200, headers: vec![], body })
            }
            status if status.parse::<u16>().is_ok() => Ok(text_answer(status.parse().unwrap(), b"x".to_vec(), alive)),
            _ => {
                let params: Vec<_> = run.asked.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let (method, url) = (&run.asked.method, &run.asked.url);
                let from = run.asked.client.map(|client| format!("from {client}")).unwrap_or_default();
                let text = String::from_utf8_lossy(&run.asked.body);
                let body = format!("{method} {url} {} {text}{from}", params.join(","));
                Ok(text_answer(200, body.into_bytes(), alive))
            }
        }
    }

    async fn check(&self, file: &ScriptFile, source: &str) -> Result<(), RunError> {
        if source.contains("syntax") {
            let place = Place { file: file.clone(), line: 3, column: 7 };
            return Err(RunError::Syntax { place, message: "unexpected token".into() });
        }
        Ok(())
    }
}

/// Keys that say whose they are, for the project `shop` alone.
#[derive(Debug)]
pub struct FakeKeys {
    /// What `@scope project=shop` means.
    pub shop: ProjectId,
}

#[derive(Debug)]
struct FakeKey(String);

impl RunKey for FakeKey {
    fn secret(&self) -> Secret {
        Secret::new(self.0.clone())
    }

    fn told_of(&self) -> ToldOf {
        ToldOf::default()
    }
}

impl Keys for FakeKeys {
    fn project(&self, name: &str) -> Result<ProjectId, KeyError> {
        if name == "shop" { Ok(self.shop) } else { Err(KeyError::NoProject(name.to_owned())) }
    }

    fn open(
        &self,
        script: &ScriptFile,
        _: &str,
        scope: Option<ProjectId>,
    ) -> Result<Option<Box<dyn RunKey>>, KeyError> {
        let scope = if scope == Some(self.shop) { "shop" } else { "all" };
        Ok(Some(Box::new(FakeKey(format!("{script} {scope}")))))
    }
}

/// Looks at a folder that somebody may still write into, until it is gone.
const REMOVALS_MAX: usize = 100;

/// A folder that goes with the test, whoever still writes a line of a log into it: a run's is written behind its answer.
#[derive(Debug)]
pub struct Root(tempfile::TempDir);

impl Default for Root {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Root {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for _ in 0..REMOVALS_MAX {
            match std::fs::remove_dir_all(self.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}

/// Scripts in a folder of their own, in front of a fake engine.
#[derive(Debug)]
pub struct Stage {
    /// Everything is in it.
    pub root: Root,
    /// What is tested.
    pub scripts: Scripts,
    /// What it stands in front of.
    pub engine: Arc<FakeEngine>,
}

impl Stage {
    /// With a store of its own.
    pub async fn new() -> Self {
        let root = Root::default();
        let records = records(&root.path().join("db")).await;
        Self::over(root, records, ProjectId::generate()).await
    }

    /// Over a store that is there.
    pub async fn over(root: Root, records: Records, shop: ProjectId) -> Self {
        let engine = Arc::<FakeEngine>::default();
        std::fs::create_dir_all(root.path().join("logs")).unwrap();
        let config = ScriptsConfig {
            folder: root.path().join("scripts"),
            secrets_file: root.path().join("secrets.toml"),
            logs: root.path().join("logs"),
            concurrent: NonZeroU32::MIN.saturating_add(99),
            bounds: Bounds {
                wall: Duration::from_secs(5),
                cpu: Duration::from_secs(1),
                memory: Bytes::mib(64),
                response: Bytes::mib(8),
                connections: 32,
            },
        };
        let scripts = Scripts::open(config, engine.clone(), Arc::new(FakeKeys { shop }), records).await.unwrap();
        Self { root, scripts, engine }
    }

    /// Puts a file into the scripts' folder.
    pub fn file(&self, name: &str, text: &str) {
        let path = self.root.path().join("scripts").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}
