//! The API's listener. `axum::serve` neither bounds its connections nor the time a client may take to send its
//! headers; this one does both, and ends on request.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at once, at most: whoever comes then waits in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 4_096;
/// How long a client may take to send a request's head, and how long a connection may idle, in milliseconds.
pub const HEAD_WAIT_MS_MAX: u64 = 30_000;
/// How long requests that are under way may go on after a shutdown was asked for, in milliseconds.
pub const DRAIN_MS_MAX: u64 = 10_000;
/// Before the next try after `accept(2)` failed (out of descriptors), in milliseconds.
const ACCEPT_PAUSE_MS: u64 = 100;

/// Serves until `shutdown`, then lets requests that are under way end, up to [`DRAIN_MS_MAX`].
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        // Cancel-safe: an accepted connection is only lost with the listener itself.
        let (slot, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), shutdown.clone(), cut.clone());
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

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken, cut: CancellationToken) {
    // An answer is one small write: waiting for more only costs time.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(HEAD_WAIT_MS_MAX))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
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
