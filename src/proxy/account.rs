//! What is noted of one request: it is opened when the head was read, filled in on the way, and closed when the last byte of the
//! response was handed over, however that came about. The same of a connection of raw TCP, from its beginning to its end.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use jiff::Timestamp;

use super::Proxy;
use super::access::{Line, kept_of};
use super::stats::{Carried, Handled};
use crate::domain::ContainerId;

/// What an account is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A request, by this method.
    Request(Method),
    /// A connection of raw TCP.
    Connection,
}

/// One request's or connection's account; closed by being dropped.
#[derive(Debug)]
pub(super) struct Account {
    proxy: Arc<Proxy>,
    began: Instant,
    kind: Kind,
    path: Box<str>,
    request_id: [u8; 16],
    /// Who asked, as far as those before us are believed.
    pub peer: SocketAddr,
    /// Whose URL was asked for, where that is known.
    pub container: Option<ContainerId>,
    /// Whether the container had to be woken.
    pub woken: bool,
    /// How long the container took to the head of its response.
    pub upstream: Option<Duration>,
    /// What was answered.
    pub status: Option<StatusCode>,
    /// Bytes of the response's body that were handed over, or all that came for the client by a connection.
    pub bytes: u64,
}

impl Account {
    pub(super) fn open(
        proxy: &Arc<Proxy>,
        peer: SocketAddr,
        method: Method,
        path: &str,
        request_id: [u8; 16],
    ) -> Box<Self> {
        Self::of(proxy, peer, Kind::Request(method), path, request_id)
    }

    /// Of a connection of raw TCP, which came to this port of the host; the port stands where a request's path does.
    pub(super) fn open_raw(proxy: &Arc<Proxy>, peer: SocketAddr, port: NonZeroU16) -> Box<Self> {
        Self::of(proxy, peer, Kind::Connection, &format!(":{port}"), rand::random())
    }

    fn of(proxy: &Arc<Proxy>, peer: SocketAddr, kind: Kind, path: &str, request_id: [u8; 16]) -> Box<Self> {
        let path = if proxy.config.access_log { kept_of(path) } else { "" };
        Box::new(Self {
            proxy: Arc::clone(proxy),
            began: Instant::now(),
            peer,
            kind,
            path: path.into(),
            request_id,
            container: None,
            woken: false,
            upstream: None,
            status: None,
            bytes: 0,
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let status = self.status.map(|status| status.as_u16());
        let (container, bytes) = (self.container, self.bytes);
        match self.kind {
            Kind::Request(_) => self.proxy.counters.handled(Handled { container, status, bytes, took }),
            Kind::Connection => self.proxy.counters.carried(Carried { container, bytes }),
        }
        let Some(container) = container.filter(|_| self.proxy.config.access_log) else { return };
        let line = Line {
            container,
            ended: Timestamp::now(),
            client: self.peer.ip(),
            kind: self.kind.clone(),
            status,
            bytes,
            took,
            upstream: self.upstream,
            woken: self.woken,
            request_id: self.request_id,
        };
        self.proxy.access.push(line, &self.path);
    }
}
