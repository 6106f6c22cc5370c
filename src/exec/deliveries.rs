//! Deliveries: a webhook that comes twice is handled once.
//!
//! ```text
//!  key ─► in flight? ─► wait for it, look again
//!         kept? ─► the first answer again, nothing runs
//!         else ─► run ─► 2xx: kept for 7 days, on the disk before it is sent │ else forgotten: the next delivery runs
//! ```
//!
//! What is in flight is known in memory alone: a killed daemon leaves no mark behind, and the sender's next try runs again. A script
//! that was cut off in between is run a second time; what it does must bear that (`tenantry.containers.ensure` does).
//!
//! An answer that tells of a container goes when that goes: an index by container lets DELETE take it along. Its key and its status stay, so that a
//! late delivery makes no new tenant.
//!
//! A key is what the script says it is, before the script has checked anything: whoever knows a handled key gets its answer. Keys that
//! nobody can guess, as payment providers make them, are the ones to use.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;

use super::comments::KeySource;
use super::run::{Asked, ScriptFile};
use crate::domain::ContainerId;
use crate::store::{Batch, ByContainer, Durability, Records, StoreError};

/// How long an answer is kept, in seconds.
const KEPT_S: i64 = 7 * 24 * 3_600;
/// Deliveries kept at once, at most.
const KEPT_MAX: usize = 1_000_000;
/// Bytes of an answer's body that are kept, at most; of a longer one its status and headers are.
pub const BODY_BYTES_MAX: usize = 256 << 10;
/// Bytes of a key, at most.
const KEY_BYTES_MAX: usize = 1_024;
/// Entries that a sweep looks at at once.
const PAGE: usize = 500;

const ANSWERS: &str = "deliveries/";
/// The same by when they end, so that a sweep reads what has ended and no more: `<seconds>/<digest>` to the key.
const UNTIL: &str = "deliveries-until/";
/// The same by the containers that they tell of.
const BY_CONTAINER: ByContainer = ByContainer("deliveries-of/");

/// An answer that was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// In base64; `None`: it was longer than [`BODY_BYTES_MAX`], or erased with a container that it told of.
    body: Option<String>,
    /// What it may tell of.
    #[serde(default)]
    containers: Vec<ContainerId>,
    until: Timestamp,
}

impl Kept {
    /// An answer from now on, which tells of these containers; of more than are known by name its status alone is kept.
    pub fn new(status: u16, headers: Vec<(String, String)>, body: &[u8], about: Option<Vec<ContainerId>>) -> Self {
        let until = Timestamp::now() + SignedDuration::from_secs(KEPT_S);
        let body = (body.len() <= BODY_BYTES_MAX).then(|| STANDARD.encode(body));
        match about {
            Some(containers) => Self { status, headers, body, containers, until },
            None => Self { status, headers, body, containers: Vec::new(), until }.erased(),
        }
    }

    /// What is left of it when what it told of is gone.
    fn erased(self) -> Self {
        Self { headers: Vec::new(), body: None, ..self }
    }

    /// Its body; empty where it was too long to be kept.
    pub fn body(&self) -> Vec<u8> {
        self.body.as_ref().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default()
    }
}

/// The key of a delivery; `None` where the request has none.
pub fn key_of(source: &KeySource, asked: &Asked) -> Option<String> {
    let key = match source {
        KeySource::Header(wanted) => {
            let mut values = asked.headers.iter().filter(|(name, _)| name == wanted);
            // Two of them are none: which one counts would be the script's guess.
            values.next().filter(|_| values.next().is_none())?.1.clone()
        }
        KeySource::Body(names) => {
            let body: Value = serde_json::from_slice(&asked.body).ok()?;
            match names.iter().try_fold(&body, |value, name| value.get(name))? {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return None,
            }
        }
    };
    (1..=KEY_BYTES_MAX).contains(&key.len()).then_some(key)
}

/// Holds a key while its delivery runs; dropping it lets whoever waits look again.
#[derive(Debug)]
pub struct Mark {
    deliveries: Arc<Deliveries>,
    key: String,
    _over: watch::Sender<()>,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.deliveries.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// What to do with a delivery.
#[derive(Debug)]
pub enum Claim {
    /// Run it; then [`Deliveries::keep`], or drop.
    First(Mark),
    /// Give this answer.
    Again(Kept),
}

/// Why a delivery is not handled now.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The same one is being handled for too long.
    #[error("the same delivery is being handled")]
    InFlight,
    /// As many as may be are kept.
    #[error("{KEPT_MAX} deliveries are kept, as many as may be")]
    TooMany,
    /// The store's.
    #[error("the deliveries cannot be read")]
    Store(#[from] StoreError),
}

/// The deliveries of all scripts.
#[derive(Debug)]
pub struct Deliveries {
    records: Records,
    in_flight: Mutex<HashMap<String, watch::Receiver<()>>>,
    /// As of the opening or the last sweep, and counted on from there.
    count: AtomicUsize,
}

impl Deliveries {
    /// What was kept before.
    ///
    /// # Errors
    /// The store's.
    pub async fn open(records: Records) -> Result<Arc<Self>, StoreError> {
        let deliveries = Self { records, in_flight: Mutex::default(), count: AtomicUsize::new(0) };
        deliveries.sweep(Timestamp::now()).await?;
        Ok(Arc::new(deliveries))
    }

    /// Waits for the same delivery if it is being handled, then says what to do.
    ///
    /// # Errors
    /// It is handled for longer than `wait`, there are too many, or the store's.
    pub async fn claim(self: &Arc<Self>, script: &ScriptFile, key: &str, wait: Duration) -> Result<Claim, ClaimError> {
        let key = format!("{ANSWERS}{script}/{}", hex::encode(Sha256::digest(key.as_bytes())));
        let deadline = Instant::now() + wait;
        loop {
            match self.mark(&key) {
                Ok(mark) => return self.first_or_again(mark).await,
                // It is never sent to: it ends when the mark is dropped.
                Err(mut over) => {
                    drop(tokio::time::timeout_at(deadline, over.changed()).await.map_err(|_| ClaimError::InFlight)?)
                }
            }
        }
    }

    fn mark(self: &Arc<Self>, key: &str) -> Result<Mark, watch::Receiver<()>> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(over) = in_flight.get(key) {
            return Err(over.clone());
        }
        let (sender, over) = watch::channel(());
        in_flight.insert(key.to_owned(), over);
        Ok(Mark { deliveries: Arc::clone(self), key: key.to_owned(), _over: sender })
    }

    async fn first_or_again(&self, mark: Mark) -> Result<Claim, ClaimError> {
        let kept = self.records.get_at::<Kept>(&mark.key).await?;
        if let Some(kept) = kept.filter(|kept| kept.until > Timestamp::now()) {
            return Ok(Claim::Again(kept));
        }
        if self.count.load(Ordering::Relaxed) >= KEPT_MAX {
            return Err(ClaimError::TooMany);
        }
        Ok(Claim::First(mark))
    }

    /// Keeps an answer; it is on the disk when this returns.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep(&self, mark: Mark, kept: &Kept) -> Result<(), StoreError> {
        let until = until_key(kept, &mark.key);
        let mut batch = Batch::default().put_at(mark.key.clone(), kept)?.put_at(until, &mark.key)?;
        for container in &kept.containers {
            batch = batch.put_at(BY_CONTAINER.entry(*container, &mark.key), &mark.key)?;
        }
        self.records.commit(batch, Durability::Flushed).await?;
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes what has ended, and counts what has not.
    ///
    /// # Errors
    /// The store's.
    pub async fn sweep(&self, now: Timestamp) -> Result<(), StoreError> {
        let (mut after, mut left) = (None::<String>, 0);
        loop {
            let page = self.records.page_at::<String>(UNTIL, after.as_deref(), PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let mut batch = Batch::default();
            for (index, key) in page {
                if ends_at(&index).is_some_and(|ends| ends > now.as_second()) {
                    left += 1;
                    continue;
                }
                // The same key may have been handled anew since.
                let kept = self.records.get_at::<Kept>(&key).await?;
                if let Some(kept) = kept.filter(|kept| kept.until <= now) {
                    batch =
                        kept.containers.iter().fold(batch, |batch, id| batch.remove_at(BY_CONTAINER.entry(*id, &key)));
                    batch = batch.remove_at(key);
                }
                batch = batch.remove_at(index);
            }
            if !batch.writes.is_empty() {
                self.records.commit(batch, Durability::Lazy).await?;
            }
        }
        self.count.store(left, Ordering::Relaxed);
        Ok(())
    }
}

/// Erases the answers that tell of a container.
///
/// # Errors
/// The store's.
pub async fn forget(records: &Records, container: ContainerId) -> Result<(), StoreError> {
    BY_CONTAINER.erase(records, container, Kept::erased).await
}

/// Rounded up, so that no index ends before what it is of.
fn until_key(kept: &Kept, key: &str) -> String {
    format!("{UNTIL}{:012}/{}", kept.until.as_second().max(0) + 1, hex::encode(Sha256::digest(key.as_bytes())))
}

fn ends_at(index: &str) -> Option<i64> {
    index.strip_prefix(UNTIL)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::testing::{asked, records};

    fn script() -> ScriptFile {
        ScriptFile("shop/hook.js".into())
    }

    const WAIT: Duration = Duration::from_secs(5);

    async fn claim(deliveries: &Arc<Deliveries>, key: &str) -> Claim {
        deliveries.claim(&script(), key, WAIT).await.unwrap()
    }

    #[test]
    fn a_key_is_read_from_where_the_script_says() {
        let body = |text: &str| asked("POST", "/", text.as_bytes());
        let path = |names: &[&str]| KeySource::Body(names.iter().map(|name| (*name).to_owned()).collect());
        let of = |names: &[&str], text: &str| key_of(&path(names), &body(text));
        assert_eq!(of(&["id"], r#"{"id":"evt_1"}"#).as_deref(), Some("evt_1"));
        assert_eq!(of(&["data", "id"], r#"{"data":{"id":7}}"#).as_deref(), Some("7"));
        for bad in ["", "{", "[]", "{}", r#"{"id":null}"#, r#"{"id":{}}"#, r#"{"id":""}"#] {
            assert_eq!(of(&["id"], bad), None, "{bad}");
        }
        let mut asked = body("");
        asked.headers = vec![("x-id".into(), "1".into())];
        let header = KeySource::Header("x-id".into());
        assert_eq!(key_of(&header, &asked).as_deref(), Some("1"));
        asked.headers.push(("x-id".into(), "2".into()));
        assert_eq!(key_of(&header, &asked), None);
    }

    #[tokio::test]
    async fn a_delivery_that_was_handled_gets_the_first_answer_also_from_the_next_daemon() {
        let folder = tempfile::tempdir().unwrap();
        {
            let deliveries = Deliveries::open(records(folder.path()).await).await.unwrap();
            let Claim::First(mark) = claim(&deliveries, "evt_1").await else { panic!("it is the first") };
            deliveries
                .keep(mark, &Kept::new(201, vec![("a".into(), "b".into())], b"hello", Some(vec![])))
                .await
                .unwrap();
        }
        let deliveries = Deliveries::open(records(folder.path()).await).await.unwrap();
        let Claim::Again(kept) = claim(&deliveries, "evt_1").await else { panic!("it was handled") };
        assert_eq!((kept.status, kept.body().as_slice(), kept.headers.len()), (201, b"hello".as_slice(), 1));
        assert!(matches!(claim(&deliveries, "evt_2").await, Claim::First(_)));
        assert_eq!(deliveries.count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn one_in_flight_is_waited_for_and_a_failed_one_lets_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let deliveries = Deliveries::open(records(folder.path()).await).await.unwrap();
        let Claim::First(mark) = claim(&deliveries, "k").await else { panic!("it is the first") };
        let short = deliveries.claim(&script(), "k", Duration::from_millis(20)).await;
        assert!(matches!(short, Err(ClaimError::InFlight)));
        let waiting = tokio::spawn({
            let deliveries = Arc::clone(&deliveries);
            async move { claim(&deliveries, "k").await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(mark);
        let Claim::First(mark) = waiting.await.unwrap() else { panic!("the first one failed") };
        let waiting = tokio::spawn({
            let deliveries = Arc::clone(&deliveries);
            async move { claim(&deliveries, "k").await }
        });
        deliveries.keep(mark, &Kept::new(200, vec![], b"x", Some(vec![]))).await.unwrap();
        assert!(matches!(waiting.await.unwrap(), Claim::Again(_)));
        assert!(deliveries.in_flight.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_sweep_removes_what_has_ended_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let records = records(folder.path()).await;
        let deliveries = Deliveries::open(records.clone()).await.unwrap();
        for key in ["a", "b"] {
            let Claim::First(mark) = claim(&deliveries, key).await else { panic!("it is the first") };
            let mut kept = Kept::new(200, vec![], &vec![0; BODY_BYTES_MAX + 1], Some(vec![ContainerId::NIL]));
            assert!(kept.body().is_empty());
            if key == "a" {
                kept.until = Timestamp::now() - SignedDuration::from_secs(10);
            }
            deliveries.keep(mark, &kept).await.unwrap();
        }
        deliveries.sweep(Timestamp::now()).await.unwrap();
        assert_eq!(records.all_at::<Kept>(ANSWERS).await.unwrap().len(), 1);
        assert_eq!(records.all_at::<String>(UNTIL).await.unwrap().len(), 1);
        assert_eq!(records.all_at::<String>(BY_CONTAINER.0).await.unwrap().len(), 1);
        assert_eq!(deliveries.count.load(Ordering::Relaxed), 1);
        assert!(matches!(claim(&deliveries, "a").await, Claim::First(_)));
    }

    #[tokio::test]
    async fn an_answer_goes_with_the_container_that_it_tells_of_and_its_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let records = records(folder.path()).await;
        let deliveries = Deliveries::open(records.clone()).await.unwrap();
        let (one, other) = (ContainerId::generate(), ContainerId::generate());
        for (key, about) in [("a", Some(vec![one])), ("b", Some(vec![other])), ("c", None)] {
            let Claim::First(mark) = claim(&deliveries, key).await else { panic!("it is the first") };
            deliveries.keep(mark, &Kept::new(201, vec![("x".into(), "y".into())], b"url", about)).await.unwrap();
        }
        forget(&records, one).await.unwrap();
        for (key, left) in [("a", b"".as_slice()), ("b", b"url"), ("c", b"")] {
            let Claim::Again(kept) = claim(&deliveries, key).await else { panic!("it was handled") };
            assert_eq!((kept.status, kept.body().as_slice(), kept.headers.is_empty()), (201, left, left.is_empty()));
        }
        assert_eq!(records.all_at::<String>(BY_CONTAINER.0).await.unwrap().len(), 1);
    }
}
