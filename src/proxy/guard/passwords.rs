//! Whether passwords are right. To ask costs tens of milliseconds of a core and 19 MiB, so: few at once, off the threads that serve, and the
//! answer is kept for a moment under a keyed hash, as a page of fifty pictures asks fifty times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use tokio::sync::{OnceCell, Semaphore};

use super::Refusal;
use crate::domain::ContainerId;
use crate::domain::access::PasswordGroup;

/// Passwords looked at at once.
const AT_ONCE_MAX: usize = 2;
/// Passwords that wait for that, at one container's door and at all.
const WAITING_AT_ONE_MAX: usize = 32;
const WAITING_MAX: usize = 128;
/// How long an answer is kept.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// Answers that are kept, at most.
const KEPT_MAX: usize = 4_096;

/// An answer, or somebody who waits for it.
type Proof = Arc<OnceCell<bool>>;

/// Doors at which passwords wait.
type Waiting = Arc<Mutex<HashMap<ContainerId, usize>>>;

pub(super) struct Passwords {
    /// Of this process alone: what is kept tells nobody else anything.
    key: hmac::Key,
    proofs: Mutex<HashMap<[u8; 32], (Instant, Proof)>>,
    at_once: Arc<Semaphore>,
    waiting: Waiting,
}

/// A place among those that wait.
struct Place {
    waiting: Waiting,
    container: ContainerId,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    fn take(waiting: &Waiting, container: ContainerId) -> Option<Self> {
        let mut all = lock(waiting);
        if all.values().sum::<usize>() >= WAITING_MAX {
            return None;
        }
        let here = all.entry(container).or_default();
        if *here >= WAITING_AT_ONE_MAX {
            return None;
        }
        *here += 1;
        Some(Self { waiting: Arc::clone(waiting), container })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = lock(&self.waiting);
        if let Some(here) = all.get_mut(&self.container) {
            *here -= 1;
            if *here == 0 {
                all.remove(&self.container);
            }
        }
    }
}

impl Passwords {
    pub fn new() -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()),
            proofs: Mutex::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            waiting: Waiting::default(),
        }
    }

    /// The place for the answer to this question. A password that is set anew is another question.
    pub fn proof(&self, container: ContainerId, group: &PasswordGroup, user: &str, password: &str) -> Proof {
        let mut question = hmac::Context::with_key(&self.key);
        for part in [&container.to_string(), group.hash().reveal(), user, password] {
            question.update(&(part.len() as u64).to_be_bytes());
            question.update(part.as_bytes());
        }
        let mut id = [0; 32];
        id.copy_from_slice(question.sign().as_ref());
        self.kept(id, Instant::now())
    }

    fn kept(&self, id: [u8; 32], now: Instant) -> Proof {
        let mut proofs = lock(&self.proofs);
        let fresh = |at: &Instant| now.duration_since(*at) < KEPT_FOR;
        if let Some((_, proof)) = proofs.get(&id).filter(|(at, _)| fresh(at)) {
            return Arc::clone(proof);
        }
        if proofs.len() >= KEPT_MAX {
            proofs.retain(|_, (at, _)| fresh(at));
            if proofs.len() >= KEPT_MAX
                && let Some(any) = proofs.keys().next().copied()
            {
                proofs.remove(&any);
            }
        }
        let proof = Proof::default();
        proofs.insert(id, (now, Arc::clone(&proof)));
        proof
    }

    /// Looks whether a password is right.
    pub async fn verify(&self, container: ContainerId, group: &PasswordGroup, password: &str) -> Result<bool, Refusal> {
        let place = Place::take(&self.waiting, container).ok_or(Refusal::DoorBusy)?;
        let permit = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_closed| Refusal::DoorBusy)?;
        let (group, password) = (group.clone(), password.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            // Held by the work, and not by the visitor, who may hang up and come again.
            let _held = (place, permit);
            group.is(&password)
        });
        looked.await.map_err(|_panicked| Refusal::DoorBusy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_for_a_while_and_their_number_has_a_bound() {
        let (passwords, now) = (Passwords::new(), Instant::now());
        let first = passwords.kept([1; 32], now);
        assert!(Arc::ptr_eq(&first, &passwords.kept([1; 32], now + KEPT_FOR / 2)));
        assert!(!Arc::ptr_eq(&first, &passwords.kept([1; 32], now + KEPT_FOR)));
        for n in 0..KEPT_MAX as u64 + 10 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            passwords.kept(id, now + KEPT_FOR);
        }
        assert_eq!(lock(&passwords.proofs).len(), KEPT_MAX);
    }

    #[test]
    fn one_door_cannot_take_all_places() {
        let waiting = Waiting::default();
        let one = ContainerId::generate();
        let held: Vec<_> = (0..WAITING_AT_ONE_MAX).map(|_| Place::take(&waiting, one).unwrap()).collect();
        assert!(Place::take(&waiting, one).is_none());
        let others: Vec<_> = std::iter::repeat_with(|| Place::take(&waiting, ContainerId::generate()))
            .map_while(|place| place)
            .collect();
        assert_eq!(held.len() + others.len(), WAITING_MAX);
        drop((held, others));
        assert!(lock(&waiting).is_empty());
    }
}
