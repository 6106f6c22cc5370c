//! The proxy over real loopback sockets: raw bytes in, raw bytes out, and containers played by closures.

mod access;
mod account;
mod bounds;
mod http2;
mod messages;
mod plain;
mod raw;
mod smuggling;
mod tenants;
mod tls;
mod ways;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;

/// Nothing here takes that long.
const TEST_WAIT_MAX: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_WAIT_MAX, future).await.expect("this took too long")
}

/// Polls until it holds.
async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Routes by alias; the newest entry of a container is its current start.
#[derive(Debug, Default)]
struct Table {
    by_alias: Mutex<HashMap<String, Resolution>>,
    /// Where every port leads.
    at_port: Mutex<Option<Resolution>>,
    /// Whose all ports are.
    port_owner: Mutex<Option<ContainerId>>,
    gate: Mutex<Option<Gate>>,
    /// How often somebody was let through to ask where to go.
    resolved: AtomicUsize,
    /// Called between the connect and the check: what a stop in that moment would do.
    outdated: std::sync::atomic::AtomicBool,
}

impl Table {
    fn set(&self, alias: &str, resolution: Resolution) {
        self.by_alias.lock().unwrap().insert(alias.to_owned(), resolution);
    }

    fn lead_port(&self, resolution: Resolution) {
        *self.at_port.lock().unwrap() = Some(resolution);
    }

    fn run(&self, alias: &str, container: ContainerId, epoch: u64, addr: SocketAddr) {
        self.set(alias, Resolution::Upstream(Upstream { container, epoch, addr }));
    }
}

#[async_trait]
impl Routes for Table {
    fn gate(&self, _route: &Route) -> Option<Gate> {
        self.gate.lock().unwrap().clone()
    }

    async fn resolve(&self, route: &Route, _visitor: Visitor<'_>) -> Found {
        self.resolved.fetch_add(1, Ordering::SeqCst);
        let resolution = match route {
            Route::Alias(alias) => self.by_alias.lock().unwrap().get(alias.as_str()).cloned(),
            _ => self.at_port.lock().unwrap().clone(),
        }
        .unwrap_or(Resolution::Unknown);
        let container = match &resolution {
            Resolution::Upstream(upstream) => Some(upstream.container),
            _ => None,
        };
        Found { container, ..resolution.into() }
    }

    fn container(&self, _route: &Route) -> Option<ContainerId> {
        *self.port_owner.lock().unwrap()
    }

    fn is_known(&self, route: &Route) -> bool {
        matches!(route, Route::Alias(alias) if self.by_alias.lock().unwrap().contains_key(alias.as_str()))
    }

    fn is_current(&self, upstream: &Upstream) -> bool {
        let table = self.by_alias.lock().unwrap();
        !self.outdated.load(Ordering::SeqCst) && table.values().any(|r| *r == Resolution::Upstream(*upstream))
    }
}

/// A proxy being served, with one container `acme`.
struct Bed {
    addr: SocketAddr,
    proxy: Arc<Proxy>,
    table: Arc<Table>,
    stop: CancellationToken,
    served: JoinHandle<()>,
    acme: ContainerId,
}

impl Bed {
    async fn start(config: ProxyConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let table = Arc::new(Table::default());
        let names = HostNames::new("node1", "localhost", Scheme::Http, 80).unwrap();
        let proxy = Proxy::new(names, Arc::clone(&table) as Arc<dyn Routes>, config).unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(Arc::clone(&proxy).serve(listener, stop.clone()));
        Self { addr, proxy, table, stop, served, acme: ContainerId::generate() }
    }

    /// A proxy in front of this container.
    async fn with<F, Fut>(config: ProxyConfig, container: F) -> (Self, Container)
    where
        F: Fn(Peer) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let bed = Self::start(config).await;
        let container = Container::start(container).await;
        bed.table.run("acme", bed.acme, 1, container.addr);
        (bed, container)
    }

    async fn client(&self) -> Peer {
        Peer::connect(self.addr).await
    }

    /// One whole request on a connection of its own; all that comes back until the proxy closes.
    async fn say(&self, request: &str) -> String {
        let mut client = self.client().await;
        client.send(request).await;
        within(client.rest()).await
    }

    async fn end(self) {
        self.stop.cancel();
        within(self.served).await.unwrap();
    }
}

/// A container's server: one closure call for each connection.
struct Container {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Container {
    async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(Peer) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(Peer::new(stream)));
            }
        });
        Self { addr, accepted, task }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One end of a connection, spoken by hand.
struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    async fn connect(addr: SocketAddr) -> Self {
        Self::new(within(TcpStream::connect(addr)).await.unwrap())
    }

    async fn send(&mut self, text: &str) {
        within(self.stream.get_mut().write_all(text.as_bytes())).await.unwrap();
    }

    /// Sends what the other end may refuse by closing.
    async fn send_or_lose(&mut self, text: &str) {
        let _ = within(self.stream.get_mut().write_all(text.as_bytes())).await;
    }

    /// A head up to its empty line, lower case but for the first line; empty at the end of the stream.
    async fn head(&mut self) -> String {
        within(async {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let mut line = String::new();
                // A reset is an end like any other here.
                if self.stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                    break;
                }
                head += &if head.is_empty() { line } else { line.to_lowercase() };
            }
            head
        })
        .await
    }

    async fn exactly(&mut self, bytes: usize) -> String {
        let mut buf = vec![0; bytes];
        within(self.stream.read_exact(&mut buf)).await.unwrap();
        String::from_utf8(buf).unwrap()
    }

    /// One chunk's data; empty for the last, whose trailers follow.
    async fn chunk(&mut self) -> String {
        let mut line = String::new();
        within(self.stream.read_line(&mut line)).await.unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        if size == 0 {
            return String::new();
        }
        let data = self.exactly(size).await;
        assert_eq!(self.exactly(2).await, "\r\n");
        data
    }

    /// All chunks' data up to the empty line after the last.
    async fn chunks(&mut self) -> String {
        let mut all = String::new();
        loop {
            let chunk = self.chunk().await;
            if chunk.is_empty() {
                assert_eq!(self.exactly(2).await, "\r\n", "no trailers were expected");
                return all;
            }
            all += &chunk;
        }
    }

    /// What comes until the end; a reset ends it too.
    async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        let _ = within(self.stream.read_to_end(&mut all)).await;
        String::from_utf8_lossy(&all).into_owned()
    }

    fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

/// A container that answers every request of a connection with its head as the body.
async fn mirror(mut peer: Peer) {
    loop {
        let head = peer.head().await;
        if head.is_empty() {
            return;
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        peer.send_or_lose(&answer).await;
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n")
}

fn get_once(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: acme.node1.localhost\r\nConnection: close\r\n\r\n")
}

/// The number of a field, when it is there.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn fast() -> ProxyConfig {
    ProxyConfig::default()
}
