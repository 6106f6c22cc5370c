//! The history of events: on the disk below a prefix, the newest of it in memory.
//!
//! ```text
//!  change of a record ─► the event in the same batch ─► committed ─► shown, watchers woken
//! ```
//!
//! An event goes into the batch of what it tells of, so that neither is without the other; it is shown when the batch is in
//! the store, and never before. What is read, by page or by stream, is read from memory, which holds all that is kept: a
//! reader holds no place in any queue, and one that is slow goes on where it was, as far as that is kept.
//!
//! Who [stages](EventLog::stage) must publish, or give up, before the next one stages: the ledger does
//! both under the lock that orders all changes.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::{Batch, Records, StoreError};
use crate::domain::event::{Event, EventId, Happening};
use crate::metrics::Counter;

/// Events that one history keeps, at most; some 300 bytes each, on the disk and in memory.
pub const EVENTS_MAX: usize = 20_000;
/// How long an event is kept, at most, in days.
pub const EVENT_AGE_DAYS_MAX: u64 = 30;
/// Old events that one new one takes along out, at most: a batch stays short.
const PRUNED_AT_ONCE_MAX: usize = 64;

/// Where a history lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shelf(&'static str);

impl Shelf {
    /// What happened.
    pub const HAPPENINGS: Self = Self("event/");
    /// Who wrote what through the API.
    pub const AUDIT: Self = Self("audit/");

    fn key(self, id: EventId) -> String {
        format!("{}{id}", self.0)
    }
}

/// The events that are kept.
#[derive(Debug)]
pub struct EventLog {
    shelf: Shelf,
    kept: RwLock<Kept>,
    newest: watch::Sender<EventId>,
    lost: Counter,
}

#[derive(Debug, Default)]
struct Kept {
    /// By id.
    events: VecDeque<Arc<Event>>,
    /// The last that was dropped, as far as is known; nothing up to it can be replayed.
    dropped: EventId,
}

/// Events that are in a batch and not in the store yet.
#[derive(Debug)]
#[must_use = "a staged event is shown only when it is published"]
pub struct Staged {
    events: Vec<Arc<Event>>,
    pruned: usize,
}

impl EventLog {
    /// Reads what is kept.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(records: &Records, shelf: Shelf) -> Result<Self, StoreError> {
        let events = records.all_at::<Event>(shelf.0).await?;
        let events: VecDeque<_> = events.into_iter().map(|(_, event)| Arc::new(event)).collect();
        let newest = events.back().map(|event| event.id).unwrap_or_default();
        // What came before the oldest is not known: whoever asks from further back is told.
        let dropped = events.front().map(|event| EventId(event.id.0.saturating_sub(1))).unwrap_or_default();
        Ok(Self {
            shelf,
            kept: RwLock::new(Kept { events, dropped }),
            newest: watch::channel(newest).0,
            lost: Counter::default(),
        })
    }

    /// Puts what happened into a batch, and takes out what is too old or too much by then.
    ///
    /// # Errors
    /// An event does not serialise.
    pub fn stage(
        &self,
        mut batch: Batch,
        happenings: impl IntoIterator<Item = Happening>,
        now: Timestamp,
    ) -> Result<(Batch, Staged), StoreError> {
        let mut staged = Staged { events: Vec::new(), pruned: 0 };
        let mut last = *self.newest.borrow();
        for what in happenings {
            let event = Event { id: EventId::after(last, now), at: now, what };
            last = event.id;
            batch = batch.put_at(self.shelf.key(event.id), &event)?;
            staged.events.push(Arc::new(event));
        }
        if staged.events.is_empty() {
            return Ok((batch, staged));
        }
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let age = Duration::from_secs(EVENT_AGE_DAYS_MAX * 24 * 60 * 60);
        let oldest = now.checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH);
        let too_many = (kept.events.len() + staged.events.len()).saturating_sub(EVENTS_MAX);
        let goes = |(n, old): &(usize, &Arc<Event>)| *n < too_many || old.at < oldest;
        for (_, old) in kept.events.iter().enumerate().take(PRUNED_AT_ONCE_MAX).take_while(goes) {
            batch = batch.remove_at(self.shelf.key(old.id));
            staged.pruned += 1;
        }
        Ok((batch, staged))
    }

    /// Shows events whose batch is in the store.
    pub fn publish(&self, staged: Staged) {
        let Some(newest) = staged.events.last().map(|event| event.id) else { return };
        {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            let dropped = kept.events.drain(..staged.pruned).next_back();
            kept.dropped = dropped.map_or(kept.dropped, |last| last.id);
            kept.events.extend(staged.events);
        }
        self.lost.add(staged.pruned as u64);
        self.newest.send_replace(newest);
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).events.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many were dropped since this was loaded, because they were too old or too many.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// All that are kept and that `wanted` takes, oldest first.
    pub fn all(&self, wanted: impl Fn(&Event) -> bool) -> Vec<Arc<Event>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.events.iter().filter(|event| wanted(event)).cloned().collect()
    }

    /// The first event after `last` that `wanted` takes; where there is none, the last one that was looked at. After 0: the first
    /// of all that are kept.
    ///
    /// # Errors
    /// Events after `last` are not kept any more: the id of the last that is lost.
    pub fn next(&self, last: EventId, wanted: impl Fn(&Event) -> bool) -> Result<Result<Arc<Event>, EventId>, EventId> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        if last != EventId::default() && last < kept.dropped {
            return Err(kept.dropped);
        }
        let start = kept.events.partition_point(|event| event.id <= last);
        let found = kept.events.iter().skip(start).find(|event| wanted(event)).cloned();
        let newest = kept.events.back().map_or(last, |event| event.id.max(last));
        Ok(found.ok_or(newest))
    }

    /// The newest event that `wanted` takes.
    pub fn latest(&self, wanted: impl Fn(&Event) -> bool) -> Option<Arc<Event>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.events.iter().rev().find(|event| wanted(event)).cloned()
    }

    /// Changes whenever there is a new event, and says which.
    pub fn watch(&self) -> watch::Receiver<EventId> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventKind;
    use crate::domain::{ContainerId, ProjectId};
    use crate::store::sled::SledStore;
    use crate::store::{Durability, Store};

    struct History {
        records: Records,
        log: EventLog,
        _folder: tempfile::TempDir,
    }

    impl History {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> = Arc::new(Arc::new(SledStore::open(&folder.path().join("db")).unwrap()));
            let records = Records::open(store).await.unwrap();
            let log = EventLog::load(&records, Shelf::HAPPENINGS).await.unwrap();
            Self { records, log, _folder: folder }
        }

        async fn emit(&self, kind: EventKind, now: Timestamp) {
            let what = Happening::to_container(kind, ProjectId::NIL, ContainerId::NIL);
            let (batch, staged) = self.log.stage(Batch::default(), [what], now).unwrap();
            self.records.commit(batch, Durability::Lazy).await.unwrap();
            self.log.publish(staged);
        }

        fn ids(&self) -> Vec<EventId> {
            self.log.all(|_| true).iter().map(|event| event.id).collect()
        }
    }

    #[tokio::test]
    async fn what_happened_outlives_the_daemon_and_ids_go_on() {
        let history = History::new().await;
        let now = Timestamp::now();
        for kind in [EventKind::Created, EventKind::Started] {
            history.emit(kind, now).await;
        }
        let again = EventLog::load(&history.records, Shelf::HAPPENINGS).await.unwrap();
        assert_eq!(again.all(|_| true), history.log.all(|_| true));
        let what = Happening::to_container(EventKind::Oom, ProjectId::NIL, ContainerId::NIL);
        let (_, staged) = again.stage(Batch::default(), [what.clone(), what], now).unwrap();
        let new: Vec<_> = staged.events.iter().map(|event| event.id).collect();
        assert!(new[0] > *history.ids().last().unwrap() && new[1] > new[0], "the same moment, and later ids");
    }

    #[tokio::test]
    async fn a_reader_goes_on_where_it_was_and_is_told_what_it_missed() {
        let history = History::new().await;
        assert_eq!(history.log.next(EventId(0), |_| true), Ok(Err(EventId(0))));
        let now = Timestamp::now();
        for kind in [EventKind::Created, EventKind::Oom, EventKind::Started] {
            history.emit(kind, now).await;
        }
        let ids = history.ids();
        let next = |last, kind| history.log.next(last, |event| event.what.kind == kind);
        assert_eq!(next(EventId(0), EventKind::Started).unwrap().unwrap().id, ids[2]);
        assert_eq!(next(ids[1], EventKind::Oom).unwrap(), Err(ids[2]), "nothing of that kind up to the newest");
        let again = EventLog::load(&history.records, Shelf::HAPPENINGS).await.unwrap();
        let before = EventId(ids[0].0 - 1);
        assert_eq!(again.next(before, |_| true).unwrap().unwrap().id, ids[0]);
        assert_eq!(again.next(EventId(5), |_| true), Err(before), "what was before is not known");
    }

    #[tokio::test]
    async fn what_is_too_old_goes_with_the_next_event() {
        let history = History::new().await;
        let now = Timestamp::now();
        let old = now - Duration::from_secs((EVENT_AGE_DAYS_MAX * 24 + 1) * 60 * 60);
        for _ in 0..PRUNED_AT_ONCE_MAX + 1 {
            history.emit(EventKind::Started, old).await;
        }
        history.emit(EventKind::Stopped, now).await;
        assert_eq!(history.ids().len(), 2, "a batch takes so many along and no more");
        history.emit(EventKind::Stopped, now).await;
        assert_eq!(history.ids().len(), 2);
        assert_eq!(
            EventLog::load(&history.records, Shelf::HAPPENINGS).await.unwrap().all(|_| true),
            history.log.all(|_| true)
        );
    }

    #[tokio::test]
    async fn histories_on_two_shelves_know_nothing_of_each_other() {
        let history = History::new().await;
        history.emit(EventKind::Started, Timestamp::now()).await;
        let audit = EventLog::load(&history.records, Shelf::AUDIT).await.unwrap();
        assert!(audit.is_empty());
    }

    #[tokio::test]
    async fn there_are_never_more_than_may_be() {
        let history = History::new().await;
        let now = Timestamp::now();
        {
            let mut kept = history.log.kept.write().unwrap();
            for n in 0..EVENTS_MAX as u64 {
                let what = Happening::to_container(EventKind::Started, ProjectId::NIL, ContainerId::NIL);
                kept.events.push_back(Arc::new(Event { id: EventId(n), at: now, what }));
            }
        }
        history.emit(EventKind::Stopped, now).await;
        assert_eq!(history.ids().len(), EVENTS_MAX);
        assert_eq!(history.log.next(EventId(0), |_| true).unwrap().unwrap().id, EventId(1));
        history.emit(EventKind::Stopped, now).await;
        history.emit(EventKind::Stopped, now).await;
        assert_eq!(history.log.next(EventId(1), |_| true), Err(EventId(2)));
    }
}
