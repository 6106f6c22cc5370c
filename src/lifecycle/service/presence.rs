//! Whether a container is awake: used, put to sleep, woken.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::super::activity::{InUse, Sign, Usage, Use};
#[cfg(test)]
use super::super::drowse::Drowse;
use super::super::wake::{self, NotAwake, Wanted, Woken};
#[cfg(test)]
use super::super::worker::Command;
use super::super::{ready, sleep};
use super::Service;
use crate::domain::{Container, ContainerId, Phase};

impl Service {
    /// Begins a use of a container that there is: it is not put to sleep while this lasts. To be called before its phase is looked at.
    pub fn enter(&self, id: ContainerId, usage: Use) -> InUse {
        self.inner.shared.activities.enter(id, usage)
    }

    /// How a container was used lately.
    pub fn usage(&self, container: &Container) -> Usage {
        self.inner.shared.activities.usage(container.id, &container.settings.activity)
    }

    /// A container asks from inside to be kept awake for so long; `false`: it is being put to sleep at this moment.
    pub fn keep_awake(&self, id: ContainerId, time: Duration) -> bool {
        self.inner.shared.activities.keep(id, time)
    }

    /// Starts a container that is stopped, once for all who ask, and waits for what is wanted.
    ///
    /// # Errors
    /// It must not be woken, does not stay awake, or not within `patience`.
    pub async fn wake(&self, id: ContainerId, wanted: Wanted, patience: Duration) -> Result<Woken, NotAwake> {
        wake::wake(&self.inner.shared, id, wanted, Instant::now() + patience).await
    }

    /// Lets a container go on that was frozen for silence; one that is stopped stays so.
    ///
    /// # Errors
    /// It does not run, or cannot be thawed.
    pub async fn thaw(&self, id: ContainerId) -> Result<(), NotAwake> {
        wake::thaw(&self.inner.shared, id).await
    }

    /// Waits until a port accepts, at most so long; whether it does.
    pub async fn accepts(&self, address: SocketAddr, patience: Duration) -> bool {
        ready::accepts(address, patience, || true).await
    }

    /// Has a container put to sleep now if nobody uses it, for silence or for room: what else only time or want of memory does.
    #[cfg(test)]
    pub(crate) fn drowse(&self, id: ContainerId, for_room: bool) {
        let why = if for_room { Drowse::ForRoom } else { Drowse::Unused };
        let _ = self.inner.shared.send(id, Command::Sleep { why, reply: None });
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
        Some(why_awake(&self.usage(container), timeout))
    }
}

fn why_awake(usage: &Usage, timeout: Duration) -> String {
    let count = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        count => Some(format!("{count} {what}s")),
    };
    let open = usage.open;
    let open =
        [count(open.requests, "request"), count(open.connections, "connection"), count(open.commands, "command")];
    let open: Vec<_> = open.into_iter().flatten().collect();
    if !open.is_empty() {
        return format!("open: {}", open.join(", "));
    }
    let left_s = (timeout + usage.kept).saturating_sub(usage.since).as_secs();
    if !usage.kept.is_zero() {
        return format!("it asked for another {} s; sleeps in {left_s} s", usage.kept.as_secs());
    }
    let what = match usage.by {
        Sign::Request => "a request",
        Sign::Connection => "a connection",
        Sign::Exec => "a command",
        Sign::Start => "its start",
        Sign::Keepalive => "its own call",
        Sign::Cpu => "its use of the processor",
    };
    format!("last kept awake by {what}, {} s ago; sleeps in {left_s} s", usage.since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::super::activity::Open;
    use super::*;

    #[test]
    fn it_is_said_in_words_why_a_container_is_awake() {
        let silent = Usage {
            open: Open::default(),
            last_at: None,
            since: Duration::from_secs(7),
            by: Sign::Request,
            kept: Duration::ZERO,
        };
        let why = |usage: Usage| why_awake(&usage, Duration::from_secs(60));
        assert_eq!(why(silent), "last kept awake by a request, 7 s ago; sleeps in 53 s");
        let kept = Usage { by: Sign::Keepalive, since: Duration::ZERO, kept: Duration::from_secs(30), ..silent };
        assert_eq!(why(kept), "it asked for another 30 s; sleeps in 90 s");
        let open = Open { requests: 1, connections: 0, commands: 2 };
        assert_eq!(why(Usage { open, ..silent }), "open: 1 request, 2 commands");
    }
}
