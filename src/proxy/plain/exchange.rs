//! One plain request and its response.

use std::sync::Arc;
use std::time::Instant;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::super::account::Account;
use super::super::conn::Client;
use super::super::forward::{self, Visit};
use super::super::io::ConnState;
use super::super::pool::{Kept, Wants};
use super::super::refusal::Refusal;
use super::super::server::Tasks;
use super::super::stats::Open;
use super::super::{Proxy, Upstream};
use super::body::Body;
use super::request::{self, Asked, Verb};
use super::response::{self, Final, Ours};
use super::side::{Cut, Side};
use super::work::{Lost, Work};
use super::{Admitted, Request, visitor};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The connection is for the next one.
    Kept,
    /// All was said, and the connection ends.
    Closes,
    /// The connection broke, or has to: what was said is not whole.
    Broken,
}

/// Why a response was not begun.
enum Failed {
    Refused(Refusal),
    /// There is nobody to be told.
    Gone,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Cut> for Failed {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Gone => Self::Gone,
            Cut::Late => Self::Refused(Refusal::TimedOut),
        }
    }
}

/// A response that was begun cannot be ended: the client must see that it is not whole.
struct Broken;

impl From<Cut> for Broken {
    fn from(_: Cut) -> Self {
        Self
    }
}

/// An exchange is open on its connection for as long as this is.
struct InExchange<'a> {
    state: &'a ConnState,
    _open: Open,
}

impl Drop for InExchange<'_> {
    fn drop(&mut self) {
        self.state.end_exchange_here();
    }
}

/// What an exchange works with.
pub(super) struct Exchange<'a, S> {
    pub proxy: &'a Arc<Proxy>,
    pub state: &'a ConnState,
    pub client: Client,
    pub tasks: &'a Tasks,
    pub side: &'a mut Side<TokioIo<S>>,
    pub work: &'a mut Work,
}

impl<S> Exchange<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Serves it to its end, whatever that is.
    pub async fn run(mut self, mut request: Request<'_>) -> Ended {
        self.state.begin_exchange();
        let _open = InExchange { state: self.state, _open: Open::count(&self.proxy.counters.exchanges) };
        match self.forward(&mut request).await {
            Ok(ended) => ended,
            Err(Failed::Gone) => Ended::Broken,
            Err(Failed::Refused(refusal)) => self.refuse(&refusal, &mut request).await,
        }
    }

    fn closes(&self, asked: &Asked<'_>) -> bool {
        asked.closes || self.tasks.drain.is_cancelled()
    }

    async fn forward(&mut self, request: &mut Request<'_>) -> Result<Ended, Failed> {
        let Request { admitted: Admitted { asked, route, found }, id, account } = request;
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
        let (_slot, kept) = self.side.meanwhile(None, proxy.place(self.client.home, &upstream, Wants::Bare)).await??;
        let timing = forward::timing(&woken);
        let ours = Ours { request_id: id.as_str(), timing: timing.as_deref(), closes: self.closes(asked) };
        let sent = Instant::now();
        let (stream, head) = self.send(&upstream, kept, asked.verb, ours).await?;
        account.upstream = Some(sent.elapsed());
        account.status = Some(head.status);
        Ok(match self.pass(stream, head, &upstream, account).await {
            Ok(()) if !ours.closes => Ended::Kept,
            Ok(()) => Ended::Closes,
            Err(Broken) => Ended::Broken,
        })
    }

    /// Sends on the connection that was kept, if there is one, and once more on a fresh one if that turned out dead.
    async fn send(
        &mut self,
        upstream: &Upstream,
        kept: Option<Kept>,
        verb: Verb,
        ours: Ours<'_>,
    ) -> Result<(TcpStream, Final), Failed> {
        if let Some(Kept::Bare(mut stream)) = kept {
            match self.send_on(&mut stream, verb, ours).await? {
                Ok(head) => return Ok((stream, head)),
                Err(Lost::Malformed) => return Err(Refusal::Broken.into()),
                Err(Lost::Closed) => {}
            }
        }
        let mut stream = self.side.meanwhile(None, self.proxy.dial(upstream)).await??;
        match self.send_on(&mut stream, verb, ours).await? {
            Ok(head) => Ok((stream, head)),
            Err(Lost::Malformed | Lost::Closed) => Err(Refusal::Broken.into()),
        }
    }

    async fn send_on(
        &mut self,
        stream: &mut TcpStream,
        verb: Verb,
        ours: Ours<'_>,
    ) -> Result<Result<Final, Lost>, Cut> {
        let wait_max = self.proxy.config.response_header_ms_max;
        let most = self.proxy.config.buffer_bytes();
        self.side.meanwhile(Some(wait_max), self.work.ask(stream, verb, ours, most)).await
    }

    /// Passes a response on, of which the head is in `out` and perhaps more is read, and keeps its connection where that is good.
    async fn pass(
        &mut self,
        mut stream: TcpStream,
        head: Final,
        upstream: &Upstream,
        account: &mut Account,
    ) -> Result<(), Broken> {
        let config = &self.proxy.config;
        let (most, wait_max) = (config.buffer_bytes(), config.response_body_idle_ms_max);
        let container = upstream.container;
        let mut body = Body::of(head.framing);
        loop {
            let Work { response, out, .. } = &mut *self.work;
            let Ok((taken, data)) = body.pass(response.unread(), out) else {
                tracing::info!(%container, "a response's body is not framed as it says");
                // The head, where nothing was said yet.
                self.side.write(out).await?;
                return Err(Broken);
            };
            response.take(taken);
            if body.is_done() {
                if head.keeps && response.unread().is_empty() {
                    self.proxy.pool.put(self.client.home, upstream, Kept::Bare(stream));
                }
                self.side.write(out).await?;
                account.bytes += data;
                return Ok(());
            }
            self.side.write(out).await?;
            account.bytes += data;
            out.clear();
            if taken > 0 {
                continue;
            }
            match self.side.meanwhile(Some(wait_max), self.work.read(&mut stream, most)).await? {
                Ok(0) if body.end(&mut self.work.out) => return Ok(self.side.write(&self.work.out).await?),
                Ok(0) | Err(_) => {
                    tracing::debug!(%container, "a response broke off");
                    return Err(Broken);
                }
                Ok(_) => {}
            }
        }
    }

    async fn refuse(&mut self, refusal: &Refusal, request: &mut Request<'_>) -> Ended {
        let Request { admitted: Admitted { asked, .. }, id, account } = request;
        account.status = Some(refusal.status());
        tracing::debug!(request_id = id.as_str(), status = refusal.status().as_u16(), %refusal, "refused");
        let closes = self.closes(asked);
        let ours = Ours { request_id: id.as_str(), timing: None, closes };
        let bytes = response::put_refusal(&mut self.work.out, refusal, asked, ours);
        if self.side.write(&self.work.out).await.is_err() {
            return Ended::Broken;
        }
        account.bytes += bytes;
        if closes { Ended::Closes } else { Ended::Kept }
    }
}
