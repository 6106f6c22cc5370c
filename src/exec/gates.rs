//! `@concurrent`: how many runs of one script there are at once.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::run::ScriptFile;

/// How long a run waits for one before it to end, in milliseconds.
pub const WAIT_MS_MAX: u64 = 10_000;
/// Gates that are remembered, at most: beyond it those that nobody is in are forgotten.
const GATES_MAX: usize = 4_096;

/// The gates of all scripts that have one.
#[derive(Debug, Default)]
pub struct Gates(Mutex<HashMap<ScriptFile, (NonZeroU32, Arc<Semaphore>)>>);

impl Gates {
    /// A place for one run; `None` where none was free in time.
    pub async fn enter(&self, file: &ScriptFile, places: NonZeroU32, wait: Duration) -> Option<OwnedSemaphorePermit> {
        let gate = self.gate(file, places);
        tokio::time::timeout(wait, gate.acquire_owned()).await.ok()?.ok()
    }

    fn gate(&self, file: &ScriptFile, places: NonZeroU32) -> Arc<Semaphore> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, gate)) = gates.get(file)
            && *known == places
        {
            return Arc::clone(gate);
        }
        if gates.len() >= GATES_MAX {
            gates.retain(|_, (places, gate)| gate.available_permits() < places.get() as usize);
        }
        // Runs that entered by the old number end by it.
        let gate = Arc::new(Semaphore::new(places.get() as usize));
        gates.insert(file.clone(), (places, Arc::clone(&gate)));
        gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn no_more_enter_than_may_and_none_waits_for_ever() {
        let gates = Gates::default();
        let (file, two) = (ScriptFile("a.js".into()), NonZeroU32::new(2).unwrap());
        let first = gates.enter(&file, two, WAIT).await.unwrap();
        let _second = gates.enter(&file, two, WAIT).await.unwrap();
        assert!(gates.enter(&file, two, WAIT).await.is_none());
        assert!(gates.enter(&ScriptFile("b.js".into()), two, WAIT).await.is_some());
        drop(first);
        assert!(gates.enter(&file, two, WAIT).await.is_some());
    }
}
