//! The short way through the proxy, for what nearly every request is: HTTP/1.1, GET or HEAD, a head that comes in one piece and has
//! nothing unusual in it.
//!
//! hyper serves whatever HTTP allows, on both sides, and for that builds each head into a map, hands it from one state machine
//! to the next and takes it apart again: twice what the kernel needs to move the bytes of a small exchange is spent on
//! that. Here a head is read where it lies (by httparse, hyper's own parser) and written for the other side in the same pass, in
//! memory that is kept. All else is the long way's: a connection whose next head is not plain is handed to hyper, once and for good.
//!
//! ```text
//! conn ─► next head ─► plain? ─ no ───────────────────────────────────► hyper, from this head on
//!            ▲           └ yes ─► resolve ─► ask ─► head ─► body ─┐
//!            └────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants
//! - What is not fully understood is not plain: a head that httparse refuses or that is not whole, a field that frames, upgrades,
//!   expects or is of one hop, a Host or a target that is not simply good, a URL with a door. hyper judges it from its first byte.
//! - Until a request is known to be plain, nobody was asked anything for it: it is served once.
//! - A head is never passed on as it came, nor is a body's framing: both are parsed and written anew.
//! - A connection to a container is kept only at the exact end of a response with nothing behind it.

mod body;
mod buffer;
mod chunks;
mod request;
mod response;
mod side;

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::account::Account;
use super::challenges::Challenges;
use super::conn::Client;
use super::forward::{self, Visit};
use super::io::{ClientIo, ConnState};
use super::pool::{Entered, Kept, Wants};
use super::refusal::Refusal;
use super::server::Tasks;
use super::stats::Open;
use super::{BUFFER_BYTES_MIN, Found, Proxy, Upstream, Visitor};
use crate::domain::host::Route;
use body::Body;
use buffer::Buffer;
use request::{Asked, Origin, Verb};
use response::{Final, Head, Ours};
use side::{Cut, Side};

/// Bytes of a plain head, and all that is read of one at once: what hyper reads first as well, so that it takes over in one read.
const HEAD_BYTES_MAX: usize = BUFFER_BYTES_MIN;
/// Bytes of a response read at once, at first.
const RESPONSE_BYTES: usize = 8 * 1024;
/// Interim responses before the one that was asked for.
const INTERIMS_MAX: usize = 16;
/// Sets of buffers that a thread keeps for its next exchanges.
const SPARES_MAX: usize = 128;
/// Bytes of a buffer that is kept.
const SPARE_BYTES_MAX: usize = 32 * 1024;

/// What became of a request.
enum Ended {
    /// The connection is for the next one.
    Kept,
    /// All was said, and the connection ends.
    Closes,
    /// The connection broke, or has to: what was said is not whole.
    Broken,
}

/// Why a container's connection brought no head.
enum Lost {
    /// It ended before one came. One that was kept may have been closed while the request was on its way.
    Closed,
    /// What came is none.
    Malformed,
}

/// Why a request was not served.
enum Failed {
    /// Nothing was answered yet.
    Refused(Refusal),
    /// There is nobody to answer, or an answer was begun that cannot be ended.
    Broken,
}

impl From<Cut> for Failed {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Gone => Self::Broken,
            Cut::Late => Self::Refused(Refusal::TimedOut),
        }
    }
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A plain request that may go where it asks to.
struct Admitted<'a> {
    asked: Asked<'a>,
    route: Route,
    /// Where one look told where it goes.
    found: Option<Found>,
    request_id: RequestId,
    account: Box<Account>,
}

/// 128 random bits in hex.
struct RequestId([u8; 32]);

impl RequestId {
    fn of(key: [u8; 16]) -> Self {
        let mut text = [0; 32];
        // The text is twice the bytes: it cannot fail.
        let _ = hex::encode_to_slice(key, &mut text);
        Self(text)
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Serves plain requests until one is not, and returns the stream then; `None` where the connection has ended.
pub(super) async fn serve<S>(
    proxy: &Arc<Proxy>,
    io: ClientIo<TokioIo<S>>,
    state: &ConnState,
    client: Client,
    tasks: &Tasks,
) -> Option<ClientIo<TokioIo<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut side, mut heads) = (Side::new(io), Buffer::default());
    let mut leave = pin!(tasks.drain.cancelled());
    while side.next(&mut heads, leave.as_mut()).await && !tasks.drain.is_cancelled() {
        let mut work = Loan::take();
        let Some(admitted) = proxy.admit_plain(heads.unread(), client, &mut work.request) else {
            return Some(side.into_io(heads.unread()));
        };
        let length = admitted.asked.length;
        let mut exchange = Exchange { proxy, client, tasks, side: &mut side, work: &mut work };
        let ended = exchange.run(admitted, InExchange::begin(proxy, state)).await;
        heads.take(length);
        match ended {
            Ended::Kept => {}
            Ended::Closes => break,
            Ended::Broken => return None,
        }
    }
    side.close().await;
    None
}

impl Proxy {
    /// The request at the front of what was read, if it is plain and whole; it is begun to be written for the container.
    fn admit_plain<'a>(self: &Arc<Self>, bytes: &'a [u8], client: Client, out: &mut Vec<u8>) -> Option<Admitted<'a>> {
        let asked = Asked::read(bytes, out)?;
        let is_small = asked.fields <= self.config.header_count_max && asked.length <= self.config.header_bytes_max;
        let is_led_elsewhere = client.door.https_port.is_some()
            || (self.challenges.get().is_some() && Challenges::is_asked_for(asked.target));
        if !is_small || is_led_elsewhere {
            return None;
        }
        let route = self.names.parse(asked.host).ok()?;
        let found = self.routes.glance(&route, visitor(&asked));
        if found.is_none() && self.routes.gate(&route).is_some() {
            return None;
        }
        let key = rand::random();
        let request_id = RequestId::of(key);
        let peer = self.config.trusted_proxies.client(client.peer, asked.forwarded_for.into_iter());
        let origin = Origin {
            ip: peer.ip().to_canonical(),
            scheme: client.door.scheme,
            host: asked.host,
            request_id: request_id.as_str(),
        };
        request::put_origin(out, origin);
        let mut account = Account::open(self, client.peer, asked.verb.into(), asked.path(), key);
        account.peer = peer;
        Some(Admitted { asked, route, found, request_id, account })
    }
}

fn visitor<'a>(asked: &Asked<'a>) -> Visitor<'a> {
    Visitor { path: asked.path(), agent: asked.agent }
}

/// One request and its response, from here on open on its connection.
struct InExchange<'a> {
    state: &'a ConnState,
    _open: Open,
}

impl<'a> InExchange<'a> {
    fn begin(proxy: &Proxy, state: &'a ConnState) -> Self {
        state.begin_exchange();
        Self { state, _open: Open::count(&proxy.counters.exchanges) }
    }
}

impl Drop for InExchange<'_> {
    fn drop(&mut self) {
        self.state.end_exchange_here();
    }
}

/// What an exchange works with.
struct Exchange<'a, S> {
    proxy: &'a Arc<Proxy>,
    client: Client,
    tasks: &'a Tasks,
    side: &'a mut Side<TokioIo<S>>,
    work: &'a mut Work,
}

impl<S> Exchange<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn run(&mut self, mut admitted: Admitted<'_>, _open: InExchange<'_>) -> Ended {
        match self.forward(&mut admitted).await {
            Ok(ended) => ended,
            Err(Failed::Broken) => Ended::Broken,
            Err(Failed::Refused(refusal)) => self.refuse(&refusal, admitted).await,
        }
    }

    fn closes(&self, asked: &Asked<'_>) -> bool {
        asked.closes || self.tasks.drain.is_cancelled()
    }

    async fn forward(&mut self, admitted: &mut Admitted<'_>) -> Result<Ended, Failed> {
        let Admitted { asked, route, found, request_id, account } = admitted;
        let proxy = self.proxy;
        let visit = match found.take() {
            Some(found) => found.visit(account),
            None => self.side.meanwhile(None, proxy.resolve(route, visitor(asked), account)).await?,
        };
        // Held to the end: until then the container is in use.
        let Visit { upstream, path, woken, in_use: _in_use } = visit?;
        if let Some(path) = path {
            request::lead_to(&mut self.work.request, asked, &path).ok_or(Refusal::BadTarget)?;
        }
        let Entered { slots, kept } = proxy.pool.enter(self.client.home, &upstream, Wants::Bare);
        let _slot = self.side.meanwhile(None, proxy.slot(slots)).await??;
        let timing = forward::timing(&woken);
        let ours = Ours { request_id: request_id.as_str(), timing: timing.as_deref(), closes: self.closes(asked) };
        let sent = Instant::now();
        let (stream, head) = self.ask(&upstream, kept, asked.verb, ours).await?;
        account.upstream = Some(sent.elapsed());
        account.status = Some(head.status);
        self.pass(stream, head, &upstream, account).await?;
        Ok(if ours.closes { Ended::Closes } else { Ended::Kept })
    }

    /// Sends on the connection that was kept, if there is one, and once more on a fresh one if that turned out dead.
    async fn ask(
        &mut self,
        upstream: &Upstream,
        kept: Option<Kept>,
        verb: Verb,
        ours: Ours<'_>,
    ) -> Result<(TcpStream, Final), Failed> {
        if let Some(Kept::Bare(mut stream)) = kept {
            match self.ask_on(&mut stream, verb, ours).await? {
                Ok(head) => return Ok((stream, head)),
                Err(Lost::Malformed) => return Err(Refusal::Broken.into()),
                Err(Lost::Closed) => {}
            }
        }
        let mut stream = self.side.meanwhile(None, self.proxy.dial(upstream)).await??;
        match self.ask_on(&mut stream, verb, ours).await? {
            Ok(head) => Ok((stream, head)),
            Err(Lost::Malformed | Lost::Closed) => Err(Refusal::Broken.into()),
        }
    }

    async fn ask_on(&mut self, stream: &mut TcpStream, verb: Verb, ours: Ours<'_>) -> Result<Result<Final, Lost>, Cut> {
        let config = &self.proxy.config;
        let asking = self.work.ask(stream, verb, ours, config.buffer_bytes_max.max(BUFFER_BYTES_MIN));
        self.side.meanwhile(Some(config.response_header_ms_max), asking).await
    }

    /// Passes a response on, whose head and perhaps more is there, and keeps its connection where that is good.
    async fn pass(
        &mut self,
        mut stream: TcpStream,
        head: Final,
        upstream: &Upstream,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let Work { response, out, .. } = &mut *self.work;
        let mut body = Body::of(head.framing);
        loop {
            let taken = if out.is_empty() { body.take_whole(response.unread()) } else { 0 };
            if taken > 0 {
                self.side.write(response.unread().get(..taken).unwrap_or_default()).await?;
                response.take(taken);
                account.bytes += taken as u64;
            }
            let (taken, data) = body.pass(response.unread(), out).map_err(|_| Failed::Broken)?;
            response.take(taken);
            account.bytes += data;
            if body.is_done() {
                if head.keeps && response.unread().is_empty() {
                    self.proxy.pool.put(self.client.home, upstream, Kept::Bare(stream));
                }
                self.side.write(out).await?;
                return Ok(());
            }
            self.side.write(out).await?;
            out.clear();
            let most = self.proxy.config.buffer_bytes_max.max(BUFFER_BYTES_MIN);
            let read = self.side.meanwhile(None, read(&mut stream, response, most)).await?;
            if read.unwrap_or(0) == 0 {
                if !body.end(out) {
                    tracing::debug!(container = %upstream.container, "a response broke off");
                    return Err(Failed::Broken);
                }
                self.side.write(out).await?;
                return Ok(());
            }
        }
    }

    async fn refuse(&mut self, refusal: &Refusal, mut admitted: Admitted<'_>) -> Ended {
        let Admitted { asked, request_id, account, .. } = &mut admitted;
        account.status = Some(refusal.status());
        let id = request_id.as_str();
        tracing::debug!(request_id = id, status = refusal.status().as_u16(), %refusal, "refused");
        let closes = self.closes(asked);
        let out = &mut self.work.out;
        let ours = Ours { request_id: id, timing: None, closes };
        account.bytes += response::put_refusal(out, refusal, asked, ours);
        match self.side.write(out).await {
            Ok(()) if !closes => Ended::Kept,
            Ok(()) => Ended::Closes,
            Err(_) => Ended::Broken,
        }
    }
}

/// The memory of one exchange.
#[derive(Debug, Default)]
struct Work {
    /// What the container is asked.
    request: Vec<u8>,
    /// What it answered and was not passed on.
    response: Buffer,
    /// What goes to the client next.
    out: Vec<u8>,
}

impl Work {
    /// Sends the request, and reads the response up to the end of its head, which is then `out`.
    async fn ask(&mut self, stream: &mut TcpStream, verb: Verb, ours: Ours<'_>, most: usize) -> Result<Final, Lost> {
        let Self { request, response, out } = self;
        response.clear();
        stream.write_all(request).await.map_err(|_| Lost::Closed)?;
        let mut interims = 0;
        loop {
            let seen = response.unread().len();
            match read(stream, response, most).await {
                Ok(0) if seen >= most => return Err(Lost::Malformed),
                Ok(0) | Err(_) => return Err(Lost::Closed),
                Ok(_) => {}
            }
            // Looked at once for each time that a head may have ended.
            if seen > 0 && !response::may_have_ended(response.unread(), seen) {
                continue;
            }
            while let Some(head) = response::read(response.unread(), verb, ours, out).map_err(|_| Lost::Malformed)? {
                match head {
                    Head::Final(head) => {
                        response.take(head.length);
                        return Ok(head);
                    }
                    Head::Interim { length } => {
                        response.take(length);
                        interims += 1;
                        if interims > INTERIMS_MAX {
                            return Err(Lost::Malformed);
                        }
                    }
                }
            }
        }
    }
}

/// Reads what is there, at least a byte; 0 at the end, or where there is no room.
async fn read(stream: &mut TcpStream, buffer: &mut Buffer, most: usize) -> io::Result<usize> {
    let bytes = stream.read(buffer.room(RESPONSE_BYTES, most)).await?;
    buffer.came(bytes);
    Ok(bytes)
}

thread_local! {
    /// Buffers between exchanges: connections that wait for their next request hold none.
    static SPARES: RefCell<Vec<Work>> = const { RefCell::new(Vec::new()) };
}

/// Buffers of this thread, which get back to it.
#[derive(Debug)]
struct Loan(Work);

impl Loan {
    fn take() -> Self {
        Self(SPARES.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl Deref for Loan {
    type Target = Work;
    fn deref(&self) -> &Work {
        &self.0
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Work {
        &mut self.0
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut work = std::mem::take(&mut self.0);
        work.response.shrink(RESPONSE_BYTES);
        let is_small = work.request.capacity().max(work.out.capacity()) <= SPARE_BYTES_MAX;
        // None where the thread ends.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if is_small && spares.len() < SPARES_MAX {
                spares.push(work);
            }
        });
    }
}
