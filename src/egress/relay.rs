//! Carrying tenants' connections through their proxies.
//!
//! ```text
//! tenant ──TCP to anywhere──► firewall: its rules allow it? ──► relay ──► proxy ──► where it wanted to go
//! ```
//!
//! The firewall leads here what a tenant with a proxy sends by TCP, after it has asked the tenant's own rules about the address that the
//! packet had; the kernel still knows that address. A tenant whose settings name no proxy has no business here: its connection is reset, as is
//! every one whose proxy does not answer. There is no way from here to a target but through a proxy.
//!
//! A connection ends when the tenant stops, and when its settings change: what was let out through one proxy must not go on
//! after it was taken away.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::Dialer;
use super::places::{Place, Places};
use super::{Tenant, Tenants, address_of, pause_after};
use crate::domain::network::{Proxy, Way};
use crate::proxy::carry::{Early, carry};
use crate::sys::gateway::original_destination;

/// Connections of all tenants.
const CONNECTIONS_OF_ALL_MAX: usize = 8_192;
/// For the proxy to be reached and to reach the target, in milliseconds.
const HANDSHAKE_MS_MAX: u64 = 15_000;
/// How long a connection may be silent, in milliseconds: an hour, since databases keep theirs open.
const IDLE_MS_MAX: u64 = 3_600_000;

/// What a relay goes by.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Connections of one tenant.
    pub connections_of_one_max: usize,
}

/// The relay; [`Relay::serve`] runs it.
#[derive(Debug)]
pub struct Relay {
    tenants: Arc<dyn Tenants>,
    dialer: Dialer,
    places: Places,
}

impl Relay {
    /// A relay for these tenants.
    pub fn new(config: &RelayConfig, dialer: Dialer, tenants: Arc<dyn Tenants>) -> Arc<Self> {
        Arc::new(Self { tenants, dialer, places: Places::new(config.connections_of_one_max, CONNECTIONS_OF_ALL_MAX) })
    }

    /// Carries connections until `shutdown`, then cuts them. `changes` tells that a tenant's settings may be others, or that one has
    /// stopped.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        changes: watch::Receiver<u64>,
        shutdown: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                // Cancel-safe: an accept that was not polled to its end took no connection.
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            let Some(tenant) = self.tenant(from) else {
                reset(stream);
                continue;
            };
            let Some(place) = self.places.take(tenant.container) else {
                reset(stream);
                continue;
            };
            let (relay, changes, shutdown) = (Arc::clone(&self), changes.clone(), shutdown.clone());
            tasks.spawn(async move {
                let _held: Place = place;
                shutdown.run_until_cancelled(relay.connection(stream, from, tenant, changes)).await;
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    fn tenant(&self, from: SocketAddr) -> Option<Tenant> {
        address_of(from).and_then(|address| self.tenants.at(address))
    }

    async fn connection(&self, stream: TcpStream, from: SocketAddr, tenant: Tenant, changes: watch::Receiver<u64>) {
        let Some(proxy) = proxy_of(&tenant) else { return reset(stream) };
        let mut stream = Some(stream);
        let carried = async {
            // Taken once; where the dialling fails it is still there to be reset.
            let target = original_destination(stream.as_ref().ok_or(io::ErrorKind::NotConnected)?)?;
            let dialled = timeout(Duration::from_millis(HANDSHAKE_MS_MAX), self.dialer.connect(proxy, target)).await;
            let upstream = dialled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?;
            let stream = stream.take().ok_or(io::ErrorKind::NotConnected)?;
            let _ = stream.set_nodelay(true);
            carry(stream, upstream, Early::default(), Duration::from_millis(IDLE_MS_MAX)).await
        };
        let ended = tokio::select! {
            carried = carried => carried,
            () = self.until_changed(from, &tenant, changes) => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        let container = tenant.container;
        match ended {
            Ok((up, down)) => tracing::trace!(%container, up, down, "a relayed connection ended"),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(%container, %proxy, error, "a relayed connection failed or was cut");
            }
        }
        if let Some(stream) = stream {
            reset(stream);
        }
    }

    /// Returns when what holds for the tenant is no longer what held when the connection came.
    async fn until_changed(&self, from: SocketAddr, tenant: &Tenant, mut changes: watch::Receiver<u64>) {
        while self.tenant(from).as_ref() == Some(tenant) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

fn proxy_of(tenant: &Tenant) -> Option<&Proxy> {
    match tenant.network.as_ref()?.in_force()? {
        Way::Proxy(proxy) => Some(proxy),
        Way::Block => None,
    }
}

/// Ends a connection so that the tenant sees that it failed, and not that it was closed in good order.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}
