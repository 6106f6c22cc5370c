//! What is noted of one request: it is opened when the head was read, filled in on the way, and closed when the last byte of the
//! response was handed over, however that came about.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use jiff::Timestamp;

use super::Proxy;
use super::access::{Line, kept_of};
use super::stats::Handled;
use crate::domain::ContainerId;

/// One request's account; closed by being dropped.
#[derive(Debug)]
pub(super) struct Account {
    proxy: Arc<Proxy>,
    began: Instant,
    method: Method,
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
    /// Bytes of the response's body handed over.
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
        let path = if proxy.config.access_log { kept_of(path) } else { "" };
        Box::new(Self {
            proxy: Arc::clone(proxy),
            began: Instant::now(),
            peer,
            method,
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
        self.proxy.counters.handled(Handled { container: self.container, status, bytes: self.bytes, took });
        let Some(container) = self.container.filter(|_| self.proxy.config.access_log) else { return };
        let line = Line {
            container,
            ended: Timestamp::now(),
            client: self.peer.ip(),
            method: self.method.clone(),
            status,
            bytes: self.bytes,
            took,
            upstream: self.upstream,
            woken: self.woken,
            request_id: self.request_id,
        };
        self.proxy.access.push(line, &self.path);
    }
}
