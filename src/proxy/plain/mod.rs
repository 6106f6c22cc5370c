//! The short way through the proxy, for what nearly every request is: HTTP/1.1, GET or HEAD, a head that comes in one piece and has
//! nothing unusual in it.
//!
//! hyper serves whatever HTTP allows, on both sides, and for that builds each head into a map, hands it from one state machine
//! to the next and takes it apart again: twice what the kernel needs to move the bytes of a small exchange is spent on
//! that. Here a head is read where it lies (by httparse, hyper's own parser) and written for the other side in the same pass, in
//! memory that is kept. All else is the long way's: a connection whose next head is not plain is handed to hyper, once and for good.
//!
//! ```text
//! conn ─► next head ─► plain? ─ no ───────────────────────────────────────────────► hyper, from this head on
//!            ▲           └ yes ─► exchange: resolve ─► send ─► head ─► body ─┐
//!            └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants
//! - What is not fully understood is not plain: a head that httparse refuses or that is not whole, a field that frames, upgrades,
//!   expects or is of one hop, a Host or a target that is not simply good, a URL with a door. hyper judges it from its first byte.
//! - Until a request is known to be plain, nothing was done for it: it is served once.
//! - No byte of a client's is lost or read twice: a little is read ahead only while nothing else is unread.
//! - A head is never passed on as it came, nor is a body's framing: both are parsed and written anew. What both
//!   ways take of a container's, they take in the same meaning (a test holds them beside each other); of what is oddly framed either
//!   may refuse what the other takes.
//! - A connection to a container is kept only at the exact end of a response with nothing behind it.

mod body;
mod buffer;
mod chunks;
mod exchange;
mod request;
mod response;
mod side;
mod work;

use std::pin::pin;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::account::Account;
use super::challenges::Challenges;
use super::conn::Client;
use super::headers::RequestId;
use super::io::{ClientIo, ConnState};
use super::server::Tasks;
use super::{BUFFER_BYTES_MIN, Found, Proxy, Visitor};
use crate::domain::host::Route;
use buffer::Buffer;
use exchange::{Ended, Exchange};
use request::{Asked, Origin};
use side::Side;
use work::Loan;

/// Bytes of a plain head, and all that is read of a client at once: what hyper reads first as well, so that it takes over in one read.
const HEAD_BYTES_MAX: usize = BUFFER_BYTES_MIN;

/// A plain request, and where it goes if one look told that.
struct Admitted<'a> {
    asked: Asked<'a>,
    route: Route,
    found: Option<Found>,
}

/// A request under way.
struct Request<'a> {
    admitted: Admitted<'a>,
    id: RequestId,
    account: Box<Account>,
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
    while side.next(&mut heads, leave.as_mut()).await {
        let mut work = Loan::take();
        let Some(admitted) = proxy.admit_plain(heads.unread(), client, &mut work.request) else {
            return Some(side.into_io(heads.unread()));
        };
        let length = admitted.asked.length;
        side.may_read_ahead(heads.unread().len() == length);
        let request = proxy.begin(admitted, client, &mut work.request);
        let ended = Exchange { proxy, state, client, tasks, side: &mut side, work: &mut work }.run(request).await;
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
    /// The request at the front of what was read, if it is whole and plain; `out` is begun with what of its head is for the container.
    fn admit_plain<'a>(&self, bytes: &'a [u8], client: Client, out: &mut Vec<u8>) -> Option<Admitted<'a>> {
        let asked = Asked::read(bytes, out)?;
        let is_small = asked.fields <= self.config.header_count_max && asked.length <= self.config.header_bytes_max;
        let is_led_elsewhere = client.door.https_port.is_some()
            || (self.challenges.get().is_some() && Challenges::is_asked_for(asked.target));
        if !is_small || is_led_elsewhere {
            return None;
        }
        let route = self.names.parse(asked.host).ok()?;
        let found = self.routes.glance(&route, visitor(&asked));
        let has_door = found.is_none() && self.routes.gate(&route).is_some();
        (!has_door).then_some(Admitted { asked, route, found })
    }

    /// Opens a request's account, and ends its head for the container.
    fn begin<'a>(self: &Arc<Self>, admitted: Admitted<'a>, client: Client, out: &mut Vec<u8>) -> Request<'a> {
        let asked = &admitted.asked;
        let key = rand::random();
        let id = RequestId::of(key);
        let peer = self.config.trusted_proxies.client(client.peer, asked.forwarded_for.into_iter());
        let ip = peer.ip().to_canonical();
        request::put_origin(out, Origin { ip, scheme: client.door.scheme, host: asked.host, request_id: id.as_str() });
        let account = Account::open(self, peer, asked.verb.into(), asked.path(), key);
        Request { admitted, id, account }
    }
}

fn visitor<'a>(asked: &Asked<'a>) -> Visitor<'a> {
    Visitor { path: asked.path(), agent: asked.agent }
}
