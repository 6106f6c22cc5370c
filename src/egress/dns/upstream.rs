//! Asking name servers: by UDP, by TCP where the answer is too long for that or the way is a proxy, one after the other where one
//! does not answer.
//!
//! Each question has a socket of its own, whose port the kernel chooses at random, and an id of its own: who forges an answer
//! has to guess both, within the time of one question (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{Question, UDP_BYTES_MAX};
use crate::domain::dns::{NameServer, name_servers};
use crate::domain::network::Proxy;
use crate::egress::dial::{DialError, Dialer};
use crate::sys::gateway::is_public;

/// For an answer altogether: below the 5 s after which resolvers in tenants ask again (resolv.conf(5)), in milliseconds.
const ANSWER_MS_MAX: u64 = 4_500;
/// For one name server to answer before another one is asked, in milliseconds.
const ATTEMPT_MS_MAX: u64 = 1_500;
/// Attempts; a lone name server is asked again, since UDP loses packets.
const ATTEMPTS_MIN: usize = 2;

/// Where the host says whom it asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long what was read there is gone by, in seconds.
const RESOLV_CONF_S_MAX: u64 = 5;
/// Bytes of it that are read.
const RESOLV_CONF_BYTES_MAX: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// Nobody to ask.
    #[error("there is no name server that may be asked")]
    NoServer,
    /// No name server answered in time.
    #[error("no name server answered within {ANSWER_MS_MAX} ms")]
    Silence,
    /// The last one that was asked did not answer.
    #[error("cannot ask {server}")]
    Server {
        /// Which.
        server: NameServer,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The proxy did not lead to it.
    #[error("cannot ask {server} through the tenant's proxy")]
    Proxy {
        /// Which.
        server: NameServer,
        /// Why.
        #[source]
        source: DialError,
    },
    /// What it answered is no answer.
    #[error("{server} answered with something else")]
    Malformed {
        /// Which.
        server: NameServer,
    },
}

/// Who is asked.
#[derive(Debug)]
pub(super) struct Servers {
    configured: Vec<NameServer>,
    /// The host's own, and when they were read.
    of_host: Mutex<Option<(Instant, Vec<NameServer>)>>,
}

impl Servers {
    /// These, or the host's own where they are none.
    pub(super) fn new(configured: Vec<NameServer>) -> Self {
        Self { configured, of_host: Mutex::new(None) }
    }

    /// Asks one after the other until one answers: the tenant's `own`, else those that all have.
    ///
    /// # Errors
    /// None did.
    pub(super) async fn ask(
        &self,
        dialer: &Dialer,
        own: &[NameServer],
        question: &Question,
    ) -> Result<Message, Unanswered> {
        let servers = match own {
            [] => self.now().await,
            // Whoever set them need not be the operator.
            own => own.iter().copied().filter(|server| dialer.connects_to(server.address().ip())).collect(),
        };
        bounded(in_turn(&servers, |server| ask_one(server, question))).await
    }

    /// Asks through a proxy, by TCP. Of the name servers that all have, those that a proxy can reach.
    ///
    /// # Errors
    /// None answered, or there is none.
    pub(super) async fn ask_through(
        &self,
        dialer: &Dialer,
        proxy: &Proxy,
        own: &[NameServer],
        question: &Question,
    ) -> Result<Message, Unanswered> {
        let servers = match own {
            [] => self.now().await.into_iter().filter(|server| is_public(server.address().ip())).collect(),
            own => own.to_vec(),
        };
        let ask = async |server: NameServer| {
            let dialled = dialer.connect(proxy, server.address()).await;
            let mut stream = dialled.map_err(|source| Unanswered::Proxy { server, source })?;
            let answer = by_stream(&mut stream, question).await;
            answer.map_err(|source| Unanswered::Server { server, source })?.ok_or(Unanswered::Malformed { server })
        };
        bounded(in_turn(&servers, ask)).await
    }

    async fn now(&self) -> Vec<NameServer> {
        if !self.configured.is_empty() {
            return self.configured.clone();
        }
        let fresh = |(read, _): &&(Instant, Vec<NameServer>)| read.elapsed().as_secs() < RESOLV_CONF_S_MAX;
        let known = self.of_host.lock().unwrap_or_else(PoisonError::into_inner).as_ref().filter(fresh).cloned();
        if let Some((_, servers)) = known {
            return servers;
        }
        let servers = read_resolv_conf().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "{RESOLV_CONF} does not read");
            Vec::new()
        });
        *self.of_host.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), servers.clone()));
        servers
    }
}

async fn read_resolv_conf() -> io::Result<Vec<NameServer>> {
    let mut text = Vec::new();
    tokio::fs::File::open(RESOLV_CONF).await?.take(RESOLV_CONF_BYTES_MAX).read_to_end(&mut text).await?;
    Ok(name_servers(&String::from_utf8_lossy(&text)))
}

async fn bounded(asked: impl Future<Output = Result<Message, Unanswered>>) -> Result<Message, Unanswered> {
    timeout(Duration::from_millis(ANSWER_MS_MAX), asked).await.unwrap_or(Err(Unanswered::Silence))
}

async fn in_turn<F>(servers: &[NameServer], mut ask: impl FnMut(NameServer) -> F) -> Result<Message, Unanswered>
where
    F: Future<Output = Result<Message, Unanswered>>,
{
    let mut last = Err(Unanswered::NoServer);
    for server in servers.iter().cycle().take(servers.len().max(ATTEMPTS_MIN)) {
        let attempt = timeout(Duration::from_millis(ATTEMPT_MS_MAX), ask(*server)).await;
        match attempt.unwrap_or(Err(Unanswered::Silence)) {
            // Another one may be able to.
            Ok(answer) if is_failure(&answer) => last = Ok(answer),
            Ok(answer) => return Ok(answer),
            // What a name server said about the question is worth more than that the next one was not there.
            Err(error) => last = last.or(Err(error)),
        }
    }
    last
}

fn is_failure(answer: &Message) -> bool {
    use ResponseCode::{NotImp, Refused, ServFail};
    matches!(answer.metadata.response_code, ServFail | Refused | NotImp)
}

async fn ask_one(server: NameServer, question: &Question) -> Result<Message, Unanswered> {
    let failed = |source| Unanswered::Server { server, source };
    let answer = by_udp(server, question).await.map_err(failed)?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server.address()).await.map_err(failed)?;
    let answer = by_stream(&mut stream, question).await.map_err(failed)?;
    answer.ok_or(Unanswered::Malformed { server })
}

/// Waits for the answer; what else comes is forged or late, and passed over.
async fn by_udp(server: NameServer, question: &Question) -> io::Result<Message> {
    let any: IpAddr = match server.address() {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From here on the kernel takes packets of this name server alone.
    socket.connect(server.address()).await?;
    let id = rand::random();
    socket.send(&written(question, id)?).await?;
    let mut buffer = [0; UDP_BYTES_MAX as usize];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let read = Message::from_vec(&buffer[..length]).ok();
        if let Some(answer) = read.filter(|answer| question.is_answered_by(answer, id)) {
            return Ok(answer);
        }
    }
}

/// Asks over a stream, with lengths in front (RFC 1035, 4.2.2). `None`: what came is no answer to this.
async fn by_stream<S>(stream: &mut S, question: &Question) -> io::Result<Option<Message>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let id = rand::random();
    stream.write_all(&framed(&written(question, id)?)).await?;
    stream.flush().await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(Message::from_vec(&bytes).ok().filter(|answer| question.is_answered_by(answer, id)))
}

fn written(question: &Question, id: u16) -> io::Result<Vec<u8>> {
    question.for_name_server(id).to_vec().map_err(io::Error::other)
}

/// A message with its length in front, in one piece.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&length, message].concat()
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
