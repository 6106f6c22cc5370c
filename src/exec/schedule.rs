//! `@schedule`: once a minute, whatever is due is run, with the method [`SCHEDULE`].
//!
//! No script runs twice at once by the clock: one that is still at it is passed over, and says so in its log. A minute in which the
//! daemon was not there, or was too busy, is not made up for.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::run::{Asked, ScriptFile};
use super::scripts::{Endpoint, ReplyBody, SCHEDULE, Scripts};
use crate::domain::chain;

/// Runs by the clock at once, at most; the others wait for their turn.
const AT_ONCE_MAX: usize = 8;
/// Between two looks for deliveries that have ended, in minutes.
const SWEEP_EVERY_MIN: i64 = 10;
const MINUTE_S: i64 = 60;

/// Scripts that the clock has set off and that have not ended.
type Running = Arc<Mutex<HashSet<ScriptFile>>>;

/// A place in the set of those that run.
struct Turn {
    running: Running,
    file: ScriptFile,
}

impl Turn {
    /// `None`: it still runs.
    fn take(running: &Running, file: &ScriptFile) -> Option<Self> {
        let fresh = running.lock().unwrap_or_else(PoisonError::into_inner).insert(file.clone());
        fresh.then(|| Self { running: Arc::clone(running), file: file.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.file);
    }
}

/// The minute of a time, counted from 1970.
fn minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(MINUTE_S)
}

/// How long until the next minute begins.
fn until_next(now: Timestamp) -> Duration {
    let ms = MINUTE_S * 1_000 - now.as_millisecond().rem_euclid(MINUTE_S * 1_000);
    Duration::from_millis(u64::try_from(ms).unwrap_or(1_000))
}

/// Runs what is due until `shutdown`; runs that are under way are then ended.
pub async fn serve(scripts: Scripts, shutdown: CancellationToken) {
    let (running, places, runs) = (Running::default(), Arc::new(Semaphore::new(AT_ONCE_MAX)), TaskTracker::new());
    let mut last = minute(Timestamp::now());
    loop {
        // Cancel-safe: a sleep holds nothing.
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(until_next(Timestamp::now())) => {}
        }
        let now = Timestamp::now();
        // A clock that was set back, or a sleep that ended early: that minute was served.
        if minute(now) <= last {
            last = last.min(minute(now) + 1);
            continue;
        }
        last = minute(now);
        if last % SWEEP_EVERY_MIN == 0
            && let Err(error) = scripts.deliveries().sweep(now).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "deliveries that have ended cannot be swept");
        }
        for endpoint in due(&scripts, now).await {
            set_off(&scripts, endpoint, &running, &places, &runs, &shutdown);
        }
    }
    runs.close();
    runs.wait().await;
}

/// What is due in this minute. A script that cannot be read, or whose comments cannot be, is none of it: the list tells of it.
async fn due(scripts: &Scripts, now: Timestamp) -> Vec<Endpoint> {
    let all = match scripts.list().await {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(error = chain(&error), "scripts are not run by the clock");
            return Vec::new();
        }
    };
    let due = all.into_iter().filter_map(|one| {
        let script = one.script.ok()?;
        let settings = script.settings.clone().ok()?;
        let is_due = settings.enabled && settings.schedule.as_ref().is_some_and(|cron| cron.is_due(now));
        // What would not answer a path is not run either: two files of one path would both do the work.
        let is_there = is_due && one.route.is_some();
        is_there.then(|| Endpoint { script, settings, params: BTreeMap::new() })
    });
    due.collect()
}

fn set_off(
    scripts: &Scripts,
    endpoint: Endpoint,
    running: &Running,
    places: &Arc<Semaphore>,
    runs: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let file = endpoint.script.file.clone();
    let Some(turn) = Turn::take(running, &file) else {
        scripts.log().add(&file, "-", "warn", "due, but its last run by the clock has not ended: passed over");
        return;
    };
    let (scripts, places, shutdown) = (scripts.clone(), Arc::clone(places), shutdown.clone());
    runs.spawn(async move {
        let work = async {
            let _place = places.acquire().await;
            run(&scripts, endpoint).await;
        };
        // Dropping the work ends the run.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
        drop(turn);
    });
}

/// One run to its end. How it went is in its log; its answer is nobody's.
async fn run(scripts: &Scripts, endpoint: Endpoint) {
    let asked = Asked {
        method: SCHEDULE.to_owned(),
        url: format!("/{}", endpoint.script.file),
        params: BTreeMap::new(),
        headers: Vec::new(),
        body: Vec::new(),
        client: None,
    };
    if let Ok(reply) = scripts.answer(endpoint, asked, ()).await
        && let ReplyBody::Stream(mut body) = reply.body
    {
        while let Some(Ok(_)) = body.recv().await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::testing::Stage;

    #[tokio::test]
    async fn what_is_due_is_run_by_the_clock_and_nothing_else() {
        let stage = Stage::new().await;
        stage.file("due.js", "// @schedule 30 4 * * *");
        stage.file("other.js", "// @schedule 31 4 * * *");
        stage.file("off.js", "// @schedule * * * * *\n// @enabled false");
        stage.file("bad.js", "// @schedule nonsense");
        stage.file("plain.js", "return 1");
        let due = due(&stage.scripts, "2026-11-28T04:30:59Z".parse().unwrap()).await;
        let names: Vec<_> = due.iter().map(|one| one.script.file.0.as_str()).collect();
        assert_eq!(names, ["due.js"]);
    }

    #[tokio::test]
    async fn no_script_is_run_twice_at_once_by_the_clock() {
        let stage = Stage::new().await;
        stage.file("a.js", "// @schedule * * * * *\n// fake: hang");
        let (running, places, runs) = (Running::default(), Arc::new(Semaphore::new(8)), TaskTracker::new());
        let shutdown = CancellationToken::new();
        for _ in 0..2 {
            for endpoint in due(&stage.scripts, Timestamp::now()).await {
                set_off(&stage.scripts, endpoint, &running, &places, &runs, &shutdown);
            }
        }
        runs.close();
        stage.engine.wait_for_runs(1).await;
        shutdown.cancel();
        runs.wait().await;
        assert_eq!(stage.engine.runs(), 1);
        assert!(running.lock().unwrap().is_empty());
        let log = stage.scripts.log().tail(&ScriptFile("a.js".into()), 10, None).await.unwrap();
        assert!(log.iter().any(|line| line.text.contains("passed over")), "{log:?}");
    }

    #[test]
    fn the_next_minute_is_waited_for() {
        let of = |text: &str| until_next(text.parse().unwrap()).as_millis();
        assert_eq!((of("2026-01-01T00:00:00Z"), of("2026-01-01T00:00:59.750Z")), (60_000, 250));
    }
}
