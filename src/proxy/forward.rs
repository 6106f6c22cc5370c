//! One request: from its Host to a container and back.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::account::Account;
use super::body::{Answer, BodyWatch, Exchange, RequestBody, ResponseBody};
use super::conn::Client;
use super::headers::{self, Origin, REQUEST_ID, RequestId};
use super::io::ConnState;
use super::pool::{Connection, Kept, Lease, Wants};
use super::refusal::{Refusal, wants_html};
use super::server::Tasks;
use super::stats::Open;
use super::threads::Home;
use super::tunnel::Tunnel;
use super::{Found, Occupancy, Proxy, Resolution, Upstream, Visitor};
use crate::domain::host::{HostError, Route};

/// The port that a URL of https leaves out.
const HTTPS_PORT: u16 = 443;

/// A request as it goes to the container.
struct Outgoing {
    request: Request<RequestBody>,
    watch: Option<Arc<BodyWatch>>,
    /// What the client asked to switch to, and its side of the switch.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

/// Where a request goes, and what goes with it.
pub(super) struct Visit {
    pub upstream: Upstream,
    /// Another path than the one that was asked for.
    pub path: Option<String>,
    /// The steps of waking the container, and how long each took.
    pub woken: Vec<(String, Duration)>,
    pub in_use: Option<Box<dyn Occupancy>>,
}

/// Why a connection brought no response.
enum Lost {
    /// Nothing was sent: the request is whole.
    Unsent(Box<Request<RequestBody>>),
    /// The connection ended before an answer. A pooled one may have been closed while the request was on its way.
    Closed,
    /// No other connection would change it.
    Final(Refusal),
}

/// The hyper service of a connection: forwards, and turns what goes wrong into a response.
pub(super) async fn answer<S>(
    proxy: &Arc<Proxy>,
    conn: &Arc<ConnState>,
    client: Client,
    tasks: &Tasks,
    request: Request<Incoming>,
) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchange = Exchange::begin(Arc::clone(conn), Open::count(&proxy.counters.exchanges));
    let key = rand::random();
    let id = RequestId::of(key).to_value();
    let mut account = Account::open(proxy, client.peer, request.method().clone(), request.uri().path(), key);
    let html = wants_html(request.headers());
    let has_body = !request.body().is_end_stream();
    match forward::<S>(proxy, client, tasks, &id, &mut account, request).await {
        Ok(mut response) => {
            account.status = Some(response.status());
            response.headers_mut().entry(REQUEST_ID.clone()).or_insert(id);
            Ok(response.map(|body| body.hold(exchange, account)))
        }
        Err(refusal) => {
            account.status = Some(refusal.status());
            tracing::debug!(request_id = ?id, status = refusal.status().as_u16(), %refusal, "refused");
            if has_body {
                exchange.leave_body_unread();
            }
            Ok(refusal.response(html, id).map(|body| ResponseBody::full(body).hold(exchange, account)))
        }
    }
}

async fn forward<S>(
    proxy: &Arc<Proxy>,
    client: Client,
    tasks: &Tasks,
    id: &HeaderValue,
    account: &mut Account,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Refusal>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Some(answer) = proxy.challenges.get().and_then(|challenges| challenges.answer(request.uri().path())) {
        return answer;
    }
    let (route, host) = proxy.admit(&request)?;
    if let Some(port) = client.door.https_port {
        return Err(proxy.lead_to_https(&route, &host, port, request.uri()));
    }
    let said = request.headers().get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or_default());
    let peer = proxy.config.trusted_proxies.client(client.peer, said);
    account.peer = peer;
    let request = proxy.guarded(&route, request, account).await?;
    let Visit { upstream, path, woken, in_use } = proxy.resolve(&route, visitor(&request), account).await?;
    let request = lead_to(request, path)?;
    let origin = Origin { peer, scheme: client.door.scheme, host: &host, request_id: id };
    let Outgoing { request, watch, upgrade } = proxy.outgoing(request, origin);
    let sent = Instant::now();
    let (mut response, mut lease) = proxy.send(client.home, &upstream, request, watch.as_ref()).await?;
    account.upstream = Some(sent.elapsed());
    lease.in_use = in_use;
    // Steps have plain names; a header that cannot be is left out. It stands beside what the container says itself.
    if let Some(timing) = timing(&woken).and_then(|text| HeaderValue::from_str(&text).ok()) {
        response.headers_mut().append("server-timing", timing);
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(incoming(response, lease, watch, proxy.config.response_body_idle_ms_max));
    }
    let Some((wanted, client)) = upgrade else {
        tracing::warn!(container = %upstream.container, "a container switched protocols unasked");
        return Err(Refusal::Broken);
    };
    let slot = Arc::clone(&proxy.tunnels).try_acquire_owned().map_err(|_| Refusal::TunnelsFull)?;
    lease.connection.drive_apart();
    let (head, upstream_side) = switching(response, wanted);
    if let Some(in_use) = &mut lease.in_use {
        in_use.upgraded();
    }
    let tunnel = Tunnel {
        client,
        upstream: upstream_side,
        idle_max: proxy.config.tunnel_idle_ms_max,
        stop: tasks.abort.clone(),
        lease,
        _slot: slot,
        _open: Open::count(&proxy.counters.tunnels),
    };
    tasks.tracker.spawn(tunnel.run::<S>());
    Ok(head)
}

impl Proxy {
    /// What can be refused from the head alone, and what it asks for.
    fn admit<B: Body>(&self, request: &Request<B>) -> Result<(Route, HeaderValue), Refusal> {
        let (uri, fields) = (request.uri(), request.headers());
        if request.method() == Method::CONNECT {
            return Err(Refusal::Connect);
        }
        let too_many = fields.len() > self.config.header_count_max;
        if too_many || headers::head_bytes(uri, fields) > self.config.header_bytes_max {
            return Err(Refusal::HeadTooLarge);
        }
        let has_body = !request.body().is_end_stream();
        if request.version() == Version::HTTP_2 && !headers::length_is_good(fields, has_body) {
            return Err(Refusal::BadBody);
        }
        let host = host_of(request)?;
        let text = host.to_str().map_err(|_| Refusal::BadHost)?;
        let route = self.names.parse(text).map_err(|error| match error {
            HostError::Malformed => Refusal::BadHost,
            HostError::Foreign => Refusal::UnknownHost,
        })?;
        if !target_is_good(request.method(), uri, text) {
            return Err(Refusal::BadTarget);
        }
        Ok((route, host))
    }

    /// 308 keeps the method and the body, and every client since RFC 7538 knows it.
    fn lead_to_https(&self, route: &Route, host: &HeaderValue, port: u16, uri: &Uri) -> Refusal {
        if !self.routes.is_known(route) {
            return Refusal::UnknownHost;
        }
        // The Host was parsed: a name, and perhaps a port.
        let name = host.to_str().unwrap_or_default().split(':').next().unwrap_or_default();
        let path = uri.path_and_query().map(|path| path.as_str()).filter(|path| path.starts_with('/')).unwrap_or("/");
        let port = if port == HTTPS_PORT { String::new() } else { format!(":{port}") };
        // What could be read from a head can be written into one.
        HeaderValue::from_str(&format!("https://{name}{port}{path}")).map_or(Refusal::BadTarget, Refusal::OnlyHttps)
    }

    /// The request, if it may go where it asks to.
    async fn guarded<B>(
        &self,
        route: &Route,
        request: Request<B>,
        account: &mut Account,
    ) -> Result<Request<B>, Refusal> {
        let Some(gate) = self.routes.gate(route) else { return Ok(request) };
        // Whoever is refused is in the log of the container that was asked for.
        account.container = Some(gate.container.id);
        let (mut parts, body) = request.into_parts();
        self.guard.pass(&gate, account.peer.ip(), &mut parts).await?;
        Ok(Request::from_parts(parts, body))
    }

    pub(super) async fn resolve(
        &self,
        route: &Route,
        visitor: Visitor<'_>,
        account: &mut Account,
    ) -> Result<Visit, Refusal> {
        let found = timeout(self.config.resolve_ms_max, self.routes.resolve(route, visitor)).await;
        found.map_err(|_| Refusal::NotReady("starting".to_owned()))?.visit(account)
    }
}

impl Found {
    /// Where to go and what goes along, if that is to be had.
    pub(super) fn visit(self, account: &mut Account) -> Result<Visit, Refusal> {
        let Self { resolution, container, path, woken, in_use } = self;
        account.container = container.or(account.container);
        account.woken = !woken.is_empty();
        Ok(Visit { upstream: resolution.upstream()?, path, woken, in_use })
    }
}

impl Resolution {
    /// Where to go, if that is to be had.
    pub(super) fn upstream(self) -> Result<Upstream, Refusal> {
        Err(match self {
            Self::Upstream(upstream) => return Ok(upstream),
            Self::Unknown => Refusal::UnknownHost,
            Self::NotRunning { status } => Refusal::NotRunning(status),
            Self::NotReady { status } => Refusal::NotReady(status),
            Self::Failing { retry_after } => Refusal::Failing(retry_after),
            Self::Crowded => Refusal::Busy,
            Self::QueueFull => Refusal::QueueFull,
            Self::NoRoom => Refusal::NoRoom,
            Self::Disabled => Refusal::Disabled,
            Self::Expired => Refusal::Expired,
            Self::Asleep => Refusal::Asleep,
        })
    }
}

impl Proxy {
    /// The request as the container gets it. The header map is changed in place, not built anew.
    fn outgoing(&self, mut request: Request<Incoming>, origin: Origin<'_>) -> Outgoing {
        let has_body = !request.body().is_end_stream();
        let wanted = headers::wanted_upgrade(request.version(), has_body, request.headers());
        let upgrade = wanted.map(|value| (value, hyper::upgrade::on(&mut request)));
        let (mut parts, body) = request.into_parts();
        let expects = expects_continue(&parts) && has_body;
        rewrite_head(&mut parts, has_body, upgrade.as_ref().map(|(value, _)| value), origin);
        let (body, watch) = if has_body {
            let watch = Arc::new(BodyWatch::default());
            let stall_max = self.config.request_body_idle_ms_max;
            (RequestBody::stream(body, Arc::clone(&watch), stall_max, expects), Some(watch))
        } else {
            (RequestBody::empty(), None)
        };
        let mut request = Request::from_parts(parts, body);
        if let Some(watch) = watch.clone().filter(|_| expects) {
            hyper::ext::on_informational(&mut request, move |interim| {
                if interim.status() == StatusCode::CONTINUE {
                    watch.go();
                }
            });
        }
        Outgoing { request, watch, upgrade }
    }

    /// Sends on an idle connection if there is one, and once more on a fresh one if that turned out dead.
    async fn send(
        &self,
        home: Home,
        upstream: &Upstream,
        mut request: Request<RequestBody>,
        watch: Option<&Arc<BodyWatch>>,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let (slot, kept) = self.place(home, upstream, Wants::Any).await?;
        let kept = match kept {
            None => None,
            Some(Kept::Http(connection)) => Some(connection),
            Some(Kept::Bare(stream)) => Some(self.speak_http(stream).await?),
        };
        if let Some(mut connection) = kept {
            let spare = spare_of(&request);
            match self.exchange(&mut connection, request, watch).await {
                Ok(response) => return Ok((response, self.lease(home, connection, upstream, slot))),
                Err(Lost::Final(refusal)) => return Err(refusal),
                Err(Lost::Unsent(whole)) => request = *whole,
                Err(Lost::Closed) => request = spare.ok_or(Refusal::Broken)?,
            }
        }
        let mut connection = self.speak_http(self.dial(upstream).await?).await?;
        match self.exchange(&mut connection, request, watch).await {
            Ok(response) => Ok((response, self.lease(home, connection, upstream, slot))),
            Err(Lost::Final(refusal)) => Err(refusal),
            Err(Lost::Unsent(_) | Lost::Closed) => Err(Refusal::Broken),
        }
    }

    fn lease(&self, home: Home, connection: Connection, upstream: &Upstream, slot: OwnedSemaphorePermit) -> Lease {
        Lease { connection, home, upstream: *upstream, pool: Arc::clone(&self.pool), in_use: None, _slot: slot }
    }

    /// One request on one connection, up to the response's head.
    async fn exchange(
        &self,
        connection: &mut Connection,
        request: Request<RequestBody>,
        watch: Option<&Arc<BodyWatch>>,
    ) -> Result<Response<Incoming>, Lost> {
        if watch.is_some() {
            connection.drive_apart();
        }
        if !connection.ready(self.config.connect_ms_max).await {
            return Err(Lost::Unsent(Box::new(request)));
        }
        let mut response = std::pin::pin!(connection.send(request));
        let wait: Duration = self.config.response_header_ms_max;
        let mut frames_seen = 0;
        loop {
            match connection.within(wait, response.as_mut()).await {
                Some(Ok(response)) => return Ok(response),
                Some(Err(mut failed)) => {
                    return Err(match failed.take_message() {
                        Some(request) => Lost::Unsent(Box::new(request)),
                        None => lost(failed.error(), watch),
                    });
                }
                // An upload that moves, or waits for the client, is not the container's silence.
                None => match watch {
                    Some(watch) if watch.client_owes() || watch.frames() != frames_seen => {
                        frames_seen = watch.frames();
                    }
                    _ => return Err(Lost::Final(Refusal::TimedOut)),
                },
            }
        }
    }
}

/// Whose fault it was that no response came.
fn lost(error: &hyper::Error, watch: Option<&Arc<BodyWatch>>) -> Lost {
    let source_is_io = || std::error::Error::source(error).is_some_and(|source| source.is::<io::Error>());
    if watch.is_some_and(|watch| watch.client_stalled()) {
        Lost::Final(Refusal::BodyTimedOut)
    } else if watch.is_some_and(|watch| watch.client_broke()) {
        Lost::Final(Refusal::BadBody)
    } else if error.is_canceled() || error.is_closed() || error.is_incomplete_message() || source_is_io() {
        Lost::Closed
    } else {
        tracing::info!(%error, "a container's response is not HTTP");
        Lost::Final(Refusal::Broken)
    }
}

/// A second copy of a request that may be sent twice and has nothing to stream.
fn spare_of(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.body().is_end_stream() || !headers::is_idempotent(request.method()) {
        return None;
    }
    let mut spare = Request::new(RequestBody::empty());
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

/// A path, `*` for OPTIONS, or an absolute URI of the same host (RFC 9112 §3.2).
fn target_is_good(method: &Method, uri: &Uri, host: &str) -> bool {
    let path_is_good = || uri.path().starts_with('/') || (uri.path() == "*" && method == Method::OPTIONS);
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => path_is_good(),
        (Some("http" | "https"), Some(authority)) => authority.as_str().eq_ignore_ascii_case(host) && path_is_good(),
        _ => false,
    }
}

/// What a request names as its host: one Host, or in HTTP/2 its `:authority`, which a Host beside it must not contradict (RFC 9113
/// §8.3.1).
fn host_of<B>(request: &Request<B>) -> Result<HeaderValue, Refusal> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let authority = request.uri().authority().filter(|_| request.version() == Version::HTTP_2);
    match (authority, hosts.next(), hosts.next()) {
        (None, Some(host), None) => Ok(host.clone()),
        (Some(authority), host, None) => {
            let authority = authority.as_str().as_bytes();
            if host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority)) {
                return Err(Refusal::BadHost);
            }
            HeaderValue::from_bytes(authority).map_err(|_| Refusal::BadHost)
        }
        _ => Err(Refusal::BadHost),
    }
}

fn expects_continue(parts: &Parts) -> bool {
    let value = parts.headers.get(header::EXPECT);
    parts.version == Version::HTTP_11 && value.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn rewrite_head(parts: &mut Parts, has_body: bool, upgrade: Option<&HeaderValue>, origin: Origin<'_>) {
    if parts.uri.scheme().is_some() {
        parts.uri = parts.uri.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    let fields = &mut parts.headers;
    if parts.version == Version::HTTP_2 {
        fields.insert(header::HOST, origin.host.clone());
        headers::join_cookies(fields);
    }
    let takes_trailers = headers::remove_hop_by_hop(fields);
    if !has_body || parts.version != Version::HTTP_11 {
        fields.remove(header::EXPECT);
    }
    parts.version = Version::HTTP_11;
    // Without a length hyper would take a GET's body for none.
    if has_body && !fields.contains_key(header::CONTENT_LENGTH) {
        fields.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    headers::set_forwarded(fields, origin);
    if takes_trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(value) = upgrade {
        fields.insert(header::UPGRADE, value.clone());
    }
    let connection = match (upgrade.is_some(), takes_trailers) {
        (true, true) => "upgrade, te",
        (true, false) => "upgrade",
        (false, true) => "te",
        (false, false) => return,
    };
    fields.insert(header::CONNECTION, HeaderValue::from_static(connection));
}

/// The response as the client gets it.
fn incoming(
    response: Response<Incoming>,
    lease: Lease,
    watch: Option<Arc<BodyWatch>>,
    idle_max: Duration,
) -> Response<ResponseBody> {
    let mut response = response.map(|body| ResponseBody::stream(body, lease, watch, idle_max));
    *response.version_mut() = Version::HTTP_11;
    let status = response.status();
    let fields = response.headers_mut();
    // A 426 names what to upgrade to (RFC 9110 §15.5.22).
    let needed = fields.get(header::UPGRADE).filter(|_| status == StatusCode::UPGRADE_REQUIRED).cloned();
    let is_chunked = fields.contains_key(header::TRANSFER_ENCODING);
    headers::remove_hop_by_hop(fields);
    headers::settle_length(fields, is_chunked, headers::has_no_body(status));
    if let Some(value) = needed {
        add_upgrade(fields, value);
    }
    response
}

/// The 101 as the client gets it, and the container's side of the switch.
fn switching(mut response: Response<Incoming>, wanted: HeaderValue) -> (Response<ResponseBody>, OnUpgrade) {
    let upstream = hyper::upgrade::on(&mut response);
    let fields = response.headers_mut();
    let value = fields.get(header::UPGRADE).cloned().unwrap_or(wanted);
    headers::remove_hop_by_hop(fields);
    fields.remove(header::CONTENT_LENGTH);
    add_upgrade(fields, value);
    (response.map(|_| ResponseBody::full(hyper::body::Bytes::new())), upstream)
}

/// The request with another path, its query kept.
fn lead_to<B>(mut request: Request<B>, path: Option<String>) -> Result<Request<B>, Refusal> {
    let Some(path) = path else { return Ok(request) };
    let target = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    *request.uri_mut() = target.parse().map_err(|_| Refusal::BadTarget)?;
    Ok(request)
}

fn visitor<B>(request: &Request<B>) -> Visitor<'_> {
    let agent = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    Visitor { path: request.uri().path(), agent: agent.unwrap_or_default() }
}

/// How the container was woken (Server-Timing, W3C).
pub(super) fn timing(woken: &[(String, Duration)]) -> Option<String> {
    let step = |(name, took): &(String, Duration)| format!("{name};dur={:.1}", took.as_secs_f64() * 1e3);
    (!woken.is_empty()).then(|| woken.iter().map(step).collect::<Vec<_>>().join(", "))
}

fn add_upgrade(fields: &mut HeaderMap, value: HeaderValue) {
    fields.insert(header::UPGRADE, value);
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}
