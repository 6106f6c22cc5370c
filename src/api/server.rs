//! The API's listener. `axum::serve` neither bounds its connections nor the time a client may take to send its
//! headers; this one does both, and ends on request.
//!
//! When all places are taken, whoever has said nothing for longest makes room: clients that only hold connections open, or send
//! their heads a byte at a time, keep nobody from being served. A request that is under way is never cut for that.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::audit::Peer;

/// Connections at once, at most; with a request under way on each, whoever comes then waits in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 4_096;
/// How long a client may take to send a request's head, and how long a connection may idle, in milliseconds.
pub const HEAD_WAIT_MS_MAX: u64 = 30_000;
/// Bytes of a request's head, at most; hyper answers 431 to a longer one.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Fields of a request's head, at most.
pub const HEAD_FIELDS_MAX: usize = 100;
/// How long requests that are under way may go on after a shutdown was asked for, in milliseconds.
pub const DRAIN_MS_MAX: u64 = 10_000;
/// Before the next try after `accept(2)` failed (out of descriptors), in milliseconds.
const ACCEPT_PAUSE_MS: u64 = 100;

/// One connection's place.
#[derive(Debug, Default)]
struct Seat {
    /// Requests whose answer is not sent.
    busy: AtomicUsize,
    /// Its connection is to be closed.
    evicted: CancellationToken,
}

/// A request that is under way, to the last byte of its answer.
struct Busy(Arc<Seat>);

impl Busy {
    fn begin(seat: &Arc<Seat>) -> Self {
        seat.busy.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(seat))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The places that are taken, the longest taken first. Those that were left are dropped from it now and then.
#[derive(Debug, Default)]
struct Seats(Mutex<VecDeque<Weak<Seat>>>);

impl Seats {
    fn take(&self) -> Arc<Seat> {
        let seat = Arc::new(Seat::default());
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.len() == seats.capacity() {
            seats.retain(|seat| seat.strong_count() > 0);
        }
        seats.push_back(Arc::downgrade(&seat));
        seat
    }

    /// Tells the connection that has been there longest and has no request under way to close.
    fn make_room(&self) {
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seats.retain(|seat| seat.strong_count() > 0);
        let idle = |seat: &Arc<Seat>| seat.busy.load(Ordering::Acquire) == 0 && !seat.evicted.is_cancelled();
        if let Some(seat) = seats.iter().filter_map(Weak::upgrade).find(idle) {
            seat.evicted.cancel();
        }
    }
}

/// What clients connect to.
pub trait Listen: Send {
    /// A client's connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one, and its client's address where it has one. Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<Peer>)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<(TcpStream, Option<Peer>)> {
        let (stream, peer) = Self::accept(self).await?;
        // An answer is one small write: waiting for more only costs time.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        Ok((stream, Some(Peer(peer.ip()))))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<(UnixStream, Option<Peer>)> {
        Ok((Self::accept(self).await?.0, None))
    }
}

/// Serves until `shutdown`, then lets requests that are under way end, up to [`DRAIN_MS_MAX`].
pub async fn serve(listener: impl Listen, router: Router, shutdown: CancellationToken) {
    serve_at_most(CONNECTIONS_MAX, listener, router, shutdown).await;
}

async fn serve_at_most(connections_max: usize, listener: impl Listen, router: Router, shutdown: CancellationToken) {
    let (slots, seats) = (Arc::new(Semaphore::new(connections_max)), Seats::default());
    let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let next = async {
            let accepted = listener.accept().await;
            if slots.available_permits() == 0 {
                seats.make_room();
            }
            (Arc::clone(&slots).acquire_owned().await, accepted)
        };
        // Cancel-safe: an accepted connection is only lost with the listener itself.
        let (slot, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let service = Service { router: router.clone(), peer, seat: seats.take() };
                let connection = connection(stream, service, shutdown.clone(), cut.clone());
                tasks.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(Duration::from_millis(DRAIN_MS_MAX), tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), DRAIN_MS_MAX, "requests still under way are cut off");
        cut.cancel();
        tasks.wait().await;
    }
}

/// What answers on one connection.
#[derive(Debug, Clone)]
struct Service {
    router: Router,
    peer: Option<Peer>,
    seat: Arc<Seat>,
}

/// Holds a seat's request until its answer's body is dropped: sent, or given up.
async fn answer(service: Service, mut request: Request) -> Response {
    let busy = Busy::begin(&service.seat);
    if let Some(peer) = service.peer {
        request.extensions_mut().insert(peer);
    }
    let Ok(response) = service.router.oneshot(request).await;
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _held = &busy;
            error
        }))
    })
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    service: Service,
    shutdown: CancellationToken,
    cut: CancellationToken,
) {
    let evicted = service.seat.evicted.clone();
    let service = tower::service_fn(move |request: axum::http::Request<hyper::body::Incoming>| {
        let answer = answer(service.clone(), request.map(Body::new));
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_WAIT_MS_MAX))
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = evicted.cancelled() => return,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = served.as_mut() => outcome,
                () = cut.cancelled() => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the API broke off");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn whoever_only_holds_a_connection_makes_room_and_a_request_under_way_does_not() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, release) = (CancellationToken::new(), CancellationToken::new());
        let released = release.clone();
        let slow = get(|| async move {
            released.cancelled().await;
            "done"
        });
        let router = Router::new().route("/slow", slow).route("/", get(|| async { "here" }));
        let server = tokio::spawn(serve_at_most(3, listener, router, stop.clone()));
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        // The oldest of all, and at work.
        let request = tokio::spawn(client.get(format!("http://{address}/slow")).send());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut dripping = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
            dripping.push(stream);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        for _ in 0..5 {
            let asked = client.get(format!("http://{address}/")).send();
            let asked = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("nobody made room");
            assert_eq!(asked.unwrap().text().await.unwrap(), "here");
        }
        assert_eq!(dripping[0].read(&mut [0; 1]).await.unwrap(), 0, "the older one was closed");
        release.cancel();
        assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(15), server).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_shutdown_lets_a_request_end_and_takes_no_new_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, began) = (CancellationToken::new(), CancellationToken::new());
        let inside = began.clone();
        let slow = get(|| async move {
            inside.cancel();
            tokio::time::sleep(Duration::from_millis(100)).await;
            "done"
        });
        let server = tokio::spawn(serve(listener, Router::new().route("/slow", slow), stop.clone()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = tokio::spawn(client.get(format!("http://{address}/slow")).send());
        began.cancelled().await;
        stop.cancel();
        assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
        tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
