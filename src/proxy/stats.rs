//! How many of each thing are open, and what was done: for metrics and for tests.

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Proxy;
use crate::domain::ContainerId;
use crate::metrics::{Busiest, Counter, Histogram, Source, Text, Weighs};

/// Counters of a proxy.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub connections: Arc<AtomicUsize>,
    pub exchanges: Arc<AtomicUsize>,
    pub tunnels: Arc<AtomicUsize>,
    requests: [Counter; CLASSES.len()],
    durations: Histogram,
    bytes: Counter,
    raw_connections: Counter,
    raw_bytes: Counter,
    pub tenants: Busiest<ContainerId, Handling>,
}

/// Classes of a status; the first is for clients who had gone before there was one.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

fn class_of(status: Option<u16>) -> usize {
    status.map_or(0, |status| usize::from(status / 100)).min(CLASSES.len() - 1)
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handled {
    pub container: Option<ContainerId>,
    pub status: Option<u16>,
    pub bytes: u64,
    pub took: Duration,
}

/// A connection of raw TCP that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried {
    pub container: Option<ContainerId>,
    pub bytes: u64,
}

/// What one tenant was asked, by class of the answer, and what it sent; and the same of its connections of raw TCP.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Handling {
    requests: [u64; CLASSES.len()],
    bytes: u64,
    raw_connections: u64,
    raw_bytes: u64,
}

impl AddAssign for Handling {
    fn add_assign(&mut self, other: Self) {
        self.requests.iter_mut().zip(other.requests).for_each(|(all, more)| *all += more);
        self.bytes += other.bytes;
        self.raw_connections += other.raw_connections;
        self.raw_bytes += other.raw_bytes;
    }
}

impl Weighs for Handling {
    fn weight(&self) -> f64 {
        (self.requests.iter().sum::<u64>() + self.raw_connections) as f64
    }
}

impl Counters {
    pub(super) fn handled(&self, request: Handled) {
        let class = class_of(request.status);
        if let Some(counter) = self.requests.get(class) {
            counter.count();
        }
        self.durations.observe(request.took);
        self.bytes.add(request.bytes);
        let Some(container) = request.container else { return };
        let mut handling = Handling { bytes: request.bytes, ..Handling::default() };
        if let Some(count) = handling.requests.get_mut(class) {
            *count = 1;
        }
        self.tenants.count(container, handling);
    }

    pub(super) fn carried(&self, connection: Carried) {
        self.raw_connections.count();
        self.raw_bytes.add(connection.bytes);
        let Some(container) = connection.container else { return };
        let handling = Handling { raw_connections: 1, raw_bytes: connection.bytes, ..Handling::default() };
        self.tenants.count(container, handling);
    }
}

/// What a proxy has open at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Connections of clients, tunnels included.
    pub connections: usize,
    /// Requests whose response is not finished.
    pub exchanges: usize,
    /// Upgraded connections, and those of raw TCP.
    pub tunnels: usize,
    /// Connections to containers that wait for a request.
    pub idle_upstreams: usize,
}

/// One open thing; counted until dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<AtomicUsize>);

impl Open {
    pub(super) fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Source for Proxy {
    fn write(&self, text: &mut Text) {
        let Stats { connections, exchanges, tunnels, idle_upstreams } = self.stats();
        text.gauge("tenantry_proxy_connections", "Open connections of clients.").sample(&[], connections);
        text.gauge("tenantry_proxy_requests_open", "Requests whose response is not finished.").sample(&[], exchanges);
        text.gauge("tenantry_proxy_tunnels", "Open upgraded connections, and those of raw TCP.").sample(&[], tunnels);
        text.gauge("tenantry_proxy_upstreams_idle", "Connections to containers that wait for a request.")
            .sample(&[], idle_upstreams);
        let counters = &self.counters;
        let help = "Requests by class of the status; none: the client had gone.";
        let mut family = text.counter("tenantry_proxy_requests", help);
        for (class, count) in CLASSES.iter().zip(&counters.requests) {
            family.sample(&[("class", class)], count.get());
        }
        text.counter("tenantry_proxy_response_bytes", "Bytes of responses' bodies.").sample(&[], counters.bytes.get());
        text.counter("tenantry_proxy_tcp_connections", "Connections of raw TCP that have ended.")
            .sample(&[], counters.raw_connections.get());
        text.counter("tenantry_proxy_tcp_sent_bytes", "Bytes that came by them for clients.")
            .sample(&[], counters.raw_bytes.get());
        let help = "From a request's head to the last byte of its response.";
        text.histogram("tenantry_proxy_request_duration_seconds", help).histogram(&[], &counters.durations);
        let queue = &self.access;
        text.gauge("tenantry_access_log_queue", "Lines that wait to be written.").sample(&[], queue.waiting());
        text.counter("tenantry_access_log_lost", "Lines that there was no room for.").sample(&[], queue.lost());
        write_tenants(text, &counters.tenants);
    }
}

/// The label of all who have no series of their own.
const OTHERS: &str = "other";

fn write_tenants(text: &mut Text, tenants: &Busiest<ContainerId, Handling>) {
    let (labelled, others) = tenants.series();
    let named = labelled.iter().map(|(id, handling)| (id.to_string(), *handling));
    let all: Vec<_> = named.chain([(OTHERS.to_owned(), others)]).collect();
    let help = "Requests to the busiest containers, and to all others, by class of the status.";
    let mut family = text.counter("tenantry_container_requests", help);
    for (id, handling) in &all {
        for (class, count) in CLASSES.iter().zip(handling.requests).filter(|(_, count)| *count > 0) {
            family.sample(&[("container", id), ("class", class)], count);
        }
    }
    let help = "Bytes of response bodies of the busiest containers, and of all others.";
    let mut family = text.counter("tenantry_container_response_bytes", help);
    for (id, handling) in &all {
        family.sample(&[("container", id)], handling.bytes);
    }
    // Most tenants have none.
    let raw: Vec<_> = all.iter().filter(|(_, handling)| handling.raw_connections > 0).collect();
    let help = "Connections of raw TCP to the busiest containers, and to all others.";
    let mut family = text.counter("tenantry_container_tcp_connections", help);
    for (id, handling) in &raw {
        family.sample(&[("container", id)], handling.raw_connections);
    }
    let help = "Bytes that came by them for clients.";
    let mut family = text.counter("tenantry_container_tcp_sent_bytes", help);
    for (id, handling) in &raw {
        family.sample(&[("container", id)], handling.raw_bytes);
    }
}
