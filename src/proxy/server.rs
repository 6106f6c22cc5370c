//! Accepting clients, and letting them go.
//!
//! Shutdown: no more accepts, idle connections close, open exchanges and tunnels get `drain_ms_max`, then all of them
//! are cut. `serve` returns when nothing of it is left.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward;
use super::io::{ClientIo, ConnState, IoBounds};
use super::stats::Open;
use super::{BUFFER_BYTES_MIN, Proxy};

/// Pause after an accept that failed for want of something (descriptors, memory), so that the loop does not spin.
const ACCEPT_PAUSE_MS: Duration = Duration::from_millis(50);
/// How often idle connections to containers are looked through.
const SWEEP_MS: Duration = Duration::from_millis(1_000);

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
        let tasks = Tasks { tracker: TaskTracker::new(), drain: shutdown, abort: CancellationToken::new() };
        // Dropping the future of `serve` cuts its connections as well.
        let cut = tasks.abort.clone().drop_guard();
        tasks.tracker.spawn(sweep(Arc::clone(&self), tasks.drain.clone(), tasks.abort.clone()));
        while let Some((stream, peer, slot)) = self.next_client(&listener, &tasks.drain).await {
            let open = Open::count(&self.counters.connections);
            let connection = serve_connection(Arc::clone(&self), stream, peer, tasks.clone());
            tasks.tracker.spawn(async move {
                let _held: (OwnedSemaphorePermit, Open) = (slot, open);
                connection.await;
            });
        }
        drop(listener);
        tasks.tracker.close();
        if tokio::time::timeout(self.config.drain_ms_max, tasks.tracker.wait()).await.is_err() {
            tracing::warn!(left = tasks.tracker.len(), "proxy connections did not drain in time and are cut");
        }
        drop(cut);
        tasks.tracker.wait().await;
        self.pool.clear();
    }

    /// The next client, once there is a slot for one; `None` when draining. Cancel-safe: a slot is taken before the
    /// accept, and an accept that was not polled to its end took no client.
    async fn next_client(
        &self,
        listener: &TcpListener,
        drain: &CancellationToken,
    ) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let next = async {
            // The semaphore is never closed.
            let slot = Arc::clone(&self.connections).acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => return Some((stream, peer, slot)),
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
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
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

/// Serves one client over any byte stream, until it ends, is drained or cut.
pub(super) async fn serve_connection<S>(proxy: Arc<Proxy>, stream: S, peer: SocketAddr, tasks: Tasks)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &proxy.config;
    let bounds = IoBounds {
        head: config.header_read_ms_max,
        idle: config.keep_alive_idle_ms_max,
        write_stall: config.write_stall_ms_max,
    };
    let state = Arc::new(ConnState::default());
    let io = ClientIo::new(TokioIo::new(stream), Arc::clone(&state), bounds);
    let mut builder = http1::Builder::new();
    // Heads a little above our bound get our answer; hyper cuts the rest at the buffer's size.
    builder.header_read_timeout(None).max_buf_size(config.buffer_bytes_max.max(BUFFER_BYTES_MIN));
    let service = service_fn(|request| forward::answer::<S>(&proxy, &state, peer, &tasks, request));
    let connection = builder.serve_connection(io, service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tasks.abort.cancelled() => return,
        () = tasks.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = tasks.abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%peer, %error, "client connection ended early");
    }
}
