//! Whether a container is awake: used, put to sleep, woken.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::activity::{InUse, Usage};
use super::super::wake::{self, NotAwake, Wanted, Woken};
use super::super::{ready, sleep};
use super::Service;
use crate::domain::{Container, ContainerId, Phase};

impl Service {
    /// Begins a use of a container that there is: it is not put to sleep while this lasts. To be called before its phase is looked at.
    pub fn enter(&self, id: ContainerId) -> InUse {
        self.inner.shared.activities.enter(id)
    }

    /// How a container was used lately.
    pub fn usage(&self, id: ContainerId) -> Usage {
        self.inner.shared.activities.usage(id)
    }

    /// Starts a container that is stopped, once for all who ask, and waits for what is wanted.
    ///
    /// # Errors
    /// It must not be woken, does not stay awake, or not within `patience`.
    pub async fn wake(&self, id: ContainerId, wanted: Wanted, patience: Duration) -> Result<Woken, NotAwake> {
        wake::wake(&self.inner.shared, id, wanted, Instant::now() + patience).await
    }

    /// Waits until a port accepts, at most so long; whether it does.
    pub async fn accepts(&self, address: SocketAddr, patience: Duration) -> bool {
        ready::accepts(address, patience, || true).await
    }

    /// Puts idle containers to sleep until `shutdown`.
    pub async fn watch_idle(&self, shutdown: CancellationToken) {
        sleep::run(self.inner.shared.clone(), shutdown).await;
    }

    /// Why a container is awake, for people; `None`: it is not.
    pub fn why_awake(&self, container: &Container) -> Option<String> {
        if !matches!(container.phase, Phase::Running { .. }) {
            return None;
        }
        let Some(timeout) = container.settings.idle_timeout() else {
            return Some("it has no idle_timeout".to_owned());
        };
        let usage = self.usage(container.id);
        Some(match usage.open {
            0 => {
                let left = timeout.saturating_sub(usage.since).as_secs();
                format!("last used {} s ago; sleeps in {left} s", usage.since.as_secs())
            }
            1 => "1 request, connection or command is open".to_owned(),
            open => format!("{open} requests, connections or commands are open"),
        })
    }
}
