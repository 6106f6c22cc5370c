//! Accepting clients, by a door each, and letting them go.
//!
//! Shutdown: no more accepts, idle connections close, open exchanges and tunnels get `drain_ms_max`, then all of them
//! are cut. `serve` returns when nothing of it is left.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::conn::{self, Client, Speaks};
use super::stats::Open;
use super::threads::Seat;
use super::tls::Tls;
use super::{Door, Proxy, Scheme, raw};

/// Pause after an accept that failed for want of something (descriptors, memory), so that the loop does not spin.
const ACCEPT_PAUSE_MS: Duration = Duration::from_millis(50);
/// How often idle connections to containers are looked through.
const SWEEP_MS: Duration = Duration::from_millis(1_000);

/// What clients of a listener speak.
#[derive(Debug, Clone)]
enum Speech {
    Http,
    Tls(Arc<Tls>),
    /// Whatever is spoken where this port leads.
    Raw(NonZeroU16),
}

/// What the tasks of one `serve` share.
#[derive(Debug, Clone)]
pub(super) struct Tasks {
    pub tracker: TaskTracker,
    /// Finish what is open, begin nothing new.
    pub drain: CancellationToken,
    /// Stop now.
    pub abort: CancellationToken,
}

impl Proxy {
    /// Serves clients of this listener until `shutdown`, then drains. Returns when all its tasks have ended.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: CancellationToken) {
        let door = Door { scheme: self.names.scheme(), https_port: None };
        self.serve_at(listener, door, shutdown).await;
    }

    /// The same, by a door of its own.
    pub async fn serve_at(self: Arc<Self>, listener: TcpListener, door: Door, shutdown: CancellationToken) {
        self.serve_by(listener, door, Speech::Http, shutdown).await;
    }

    /// The same for clients that speak TLS.
    pub async fn serve_tls(self: Arc<Self>, listener: TcpListener, tls: Arc<Tls>, shutdown: CancellationToken) {
        let door = Door { scheme: Scheme::Https, https_port: None };
        self.serve_by(listener, door, Speech::Tls(tls), shutdown).await;
    }

    /// Leads whoever comes to a port of this host's own to where that port leads, whatever they speak.
    pub async fn serve_raw(self: Arc<Self>, listener: TcpListener, port: NonZeroU16, shutdown: CancellationToken) {
        let door = Door { scheme: self.names.scheme(), https_port: None };
        self.serve_by(listener, door, Speech::Raw(port), shutdown).await;
    }

    async fn serve_by(self: Arc<Self>, listener: TcpListener, door: Door, speech: Speech, shutdown: CancellationToken) {
        let tasks = Tasks { tracker: TaskTracker::new(), drain: shutdown, abort: CancellationToken::new() };
        // Dropping the future of `serve` cuts its connections as well.
        let cut = tasks.abort.clone().drop_guard();
        let is_raw = matches!(speech, Speech::Raw(_));
        if !is_raw {
            tasks.tracker.spawn(sweep(Arc::clone(&self), tasks.drain.clone(), tasks.abort.clone()));
        }
        while let Some((stream, peer, slot)) = self.next_client(&listener, !is_raw, &tasks.drain).await {
            let Some(seat) = self.threads.seat() else { break };
            let open = Open::count(&self.counters.connections);
            let client = Client { peer, door, home: seat.home };
            let served = serve_client(Arc::clone(&self), stream, client, speech.clone(), tasks.clone());
            let runtime = seat.runtime.clone();
            let served = async move {
                let _held: (OwnedSemaphorePermit, Open, Seat) = (slot, open, seat);
                served.await;
            };
            tasks.tracker.spawn_on(served, &runtime);
        }
        drop(listener);
        tasks.tracker.close();
        if tokio::time::timeout(self.config.drain_ms_max, tasks.tracker.wait()).await.is_err() {
            tracing::warn!(left = tasks.tracker.len(), "proxy connections did not drain in time and are cut");
        }
        drop(cut);
        tasks.tracker.wait().await;
        if !is_raw {
            self.pool.clear();
        }
    }

    /// The next client, once there is a slot for one; `None` when draining. Cancel-safe: a slot is taken before the
    /// accept, and an accept that was not polled to its end took no client.
    ///
    /// Of many listeners each would hold a slot for nobody: those do not wait (`waits`), and a client without a slot is let go.
    async fn next_client(
        &self,
        listener: &TcpListener,
        waits: bool,
        drain: &CancellationToken,
    ) -> Option<(std::net::TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let next = async {
            // The semaphore is never closed.
            let mut slot = if waits { Some(Arc::clone(&self.connections).acquire_owned().await.ok()?) } else { None };
            loop {
                match listener.accept().await {
                    // Without the runtime that accepted it: another will wait for it.
                    Ok((stream, peer)) => {
                        let slot = slot.take().or_else(|| Arc::clone(&self.connections).try_acquire_owned().ok());
                        match slot.map(|slot| stream.into_std().map(|stream| (stream, slot))) {
                            Some(Ok((stream, slot))) => return Some((stream, peer, slot)),
                            Some(Err(error)) => tracing::debug!(%peer, %error, "a client is lost"),
                            None => tracing::debug!(%peer, "there is no room for a client"),
                        }
                    }
                    Err(error) if is_about_one_client(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the proxy cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE_MS).await;
                    }
                }
            }
        };
        let (stream, peer, slot) = tokio::select! {
            biased;
            () = drain.cancelled() => return None,
            client = next => client?,
        };
        Some((stream, peer, slot))
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn sweep(proxy: Arc<Proxy>, drain: CancellationToken, abort: CancellationToken) {
    let every = async {
        loop {
            tokio::time::sleep(SWEEP_MS).await;
            proxy.pool.sweep();
        }
    };
    tokio::select! {
        () = drain.cancelled() => {}
        () = abort.cancelled() => {}
        () = every => {}
    }
}

/// One client, from its handshake where it speaks TLS.
async fn serve_client(proxy: Arc<Proxy>, stream: std::net::TcpStream, client: Client, speech: Speech, tasks: Tasks) {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(peer = %client.peer, %error, "a client cannot be waited for"),
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    let tls = match speech {
        Speech::Http => return conn::serve(proxy, stream, Speaks::Either, client, tasks).await,
        Speech::Raw(port) => return raw::serve(proxy, stream, port, client, tasks).await,
        Speech::Tls(tls) => tls,
    };
    let shaken = tokio::select! {
        // Nothing of a client's is lost: it has not asked for anything yet.
        () = tasks.drain.cancelled() => return,
        () = tasks.abort.cancelled() => return,
        shaken = tls.accept(stream) => shaken,
    };
    match shaken {
        Ok((stream, speaks)) => conn::serve(proxy, stream, speaks, client, tasks).await,
        Err(error) => tracing::debug!(peer = %client.peer, %error, "no TLS with a client"),
    }
}
