//! One client's connection: what it speaks, and how that is served and let go.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::io::{ClientIo, ConnState, IoBounds};
use super::server::Tasks;
use super::threads::Home;
use super::{Door, Proxy, forward, plain};

/// For a client of HTTP/2 to take leave once all that it asked for is answered.
const FAREWELL_MS_MAX: Duration = Duration::from_millis(2_000);

/// Who asks, and by which door.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub peer: SocketAddr,
    pub door: Door,
    /// The thread that serves it.
    pub home: Home,
}

/// What is known of a client before its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// By the handshake.
    Http1,
    /// By the handshake.
    Http2,
    /// Its first bytes say which (RFC 9113 §3.3).
    Either,
}

/// Runs a connection's streams where `serve` waits for them.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Serves one client over any byte stream, until it ends, is drained or cut.
pub(super) async fn serve<S>(proxy: Arc<Proxy>, stream: S, speaks: Speaks, client: Client, tasks: Tasks)
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
    let mut io = ClientIo::new(TokioIo::new(stream), Arc::clone(&state), bounds);
    let is_http2 = match speaks {
        Speaks::Http1 => Ok(false),
        Speaks::Http2 => Ok(true),
        Speaks::Either => tokio::select! {
            () = tasks.drain.cancelled() => return,
            () = tasks.abort.cancelled() => return,
            is_http2 = io.begins_http2() => is_http2,
        },
    };
    match is_http2 {
        Ok(false) => {
            let plain = plain::serve(&proxy, io, &state, client, &tasks);
            let left = tokio::select! {
                biased;
                left = plain => left,
                () = tasks.abort.cancelled() => return,
            };
            if let Some(io) = left {
                serve_http1(&proxy, io, &state, client, &tasks).await;
            }
        }
        Ok(true) => serve_http2(&proxy, io, &state, client, &tasks).await,
        Err(error) => tracing::trace!(peer = %client.peer, %error, "a client said nothing"),
    }
}

async fn serve_http1<S>(
    proxy: &Arc<Proxy>,
    io: ClientIo<TokioIo<S>>,
    state: &Arc<ConnState>,
    client: Client,
    tasks: &Tasks,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    // Heads a little above our bound get our answer; hyper cuts the rest at the buffer's size.
    builder.header_read_timeout(None).max_buf_size(proxy.config.buffer_bytes());
    let service = service_fn(|request| forward::answer::<S>(proxy, state, client, tasks, request));
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
    ended_early(client, ended);
}

async fn serve_http2<S>(
    proxy: &Arc<Proxy>,
    io: ClientIo<TokioIo<S>>,
    state: &Arc<ConnState>,
    client: Client,
    tasks: &Tasks,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    state.share();
    let config = &proxy.config;
    let service = service_fn(|request| {
        // Its streams run beside each other, in tasks of their own.
        let (proxy, state, tasks) = (Arc::clone(proxy), Arc::clone(state), tasks.clone());
        async move { forward::answer::<S>(&proxy, &state, client, &tasks, request).await }
    });
    let connection = http2_builder(proxy, tasks).serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut stalled = std::pin::pin!(state.stall(config.write_stall_ms_max));
    tokio::select! {
        ended = connection.as_mut() => return ended_early(client, ended),
        () = tasks.abort.cancelled() => return,
        () = stalled.as_mut() => return,
        // It is told up to which request it was answered, and makes the next one elsewhere (RFC 9113 §6.8).
        () = tasks.drain.cancelled() => {}
        () = state.silence(config.keep_alive_idle_ms_max) => {}
    }
    connection.as_mut().graceful_shutdown();
    loop {
        let farewell = timeout(FAREWELL_MS_MAX, connection.as_mut());
        tokio::select! {
            farewell = farewell => match farewell {
                Ok(ended) => return ended_early(client, ended),
                Err(_) if state.is_busy() => {}
                Err(_) => return,
            },
            () = tasks.abort.cancelled() => return,
            () = stalled.as_mut() => return,
        }
    }
}

fn http2_builder(proxy: &Proxy, tasks: &Tasks) -> http2::Builder<Tracked> {
    let config = &proxy.config;
    let mut builder = http2::Builder::new(Tracked(tasks.tracker.clone()));
    builder
        .max_concurrent_streams(config.streams_max)
        // As for HTTP/1.1: what is a little above our bound gets our answer.
        .max_header_list_size(u32::try_from(config.buffer_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(config.resets_max)
        .max_local_error_reset_streams(config.stream_errors_max)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_send_buf_size(config.buffer_bytes_max);
    builder
}

fn ended_early(client: Client, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::trace!(peer = %client.peer, %error, "client connection ended early");
    }
}
