//! Listening to tenants, by UDP and by TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::message::QUESTION_BYTES_MAX;
use super::upstream::framed;
use super::{Resolver, Transport, encode};
use crate::egress::{Place, Tenant, address_of, pause_after};

/// How long a TCP connection may be silent between two questions, in milliseconds (RFC 7766 leaves it to the server).
const IDLE_MS_MAX: u64 = 10_000;
/// For the rest of a question once its length has come, and for an answer to be taken, in milliseconds.
const TRANSFER_MS_MAX: u64 = 5_000;

impl Resolver {
    /// Answers until `shutdown`; questions that wait for a name server then are dropped.
    pub async fn serve(self: Arc<Self>, udp: UdpSocket, tcp: TcpListener, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        let udp = Arc::new(udp);
        tokio::join!(
            self.clone().serve_packets(udp, &tasks, &shutdown),
            self.clone().serve_connections(tcp, &tasks, &shutdown)
        );
        tasks.close();
        tasks.wait().await;
    }

    async fn serve_packets(self: Arc<Self>, udp: Arc<UdpSocket>, tasks: &TaskTracker, shutdown: &CancellationToken) {
        // One byte more than is read: what fills it was cut off.
        let mut buffer = [0; QUESTION_BYTES_MAX + 1];
        loop {
            let received = tokio::select! {
                // Cancel-safe: a packet is taken only by the branch that runs.
                received = udp.recv_from(&mut buffer) => received,
                () = shutdown.cancelled() => return,
            };
            match received {
                Ok((length, from)) if length <= QUESTION_BYTES_MAX => {
                    self.packet(&udp, from, &buffer[..length], tasks, shutdown);
                }
                Ok(_too_long) => {}
                Err(error) => pause_after(&error).await,
            }
        }
    }

    /// Answers one packet: at once where that can be, else in a task.
    fn packet(
        self: &Arc<Self>,
        udp: &Arc<UdpSocket>,
        from: SocketAddr,
        packet: &[u8],
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let Some(tenant) = address_of(from).and_then(|address| self.tenant(address)) else { return };
        let question = match self.answer_at_once(&tenant, packet) {
            // A full socket loses the answer, as a network would.
            Ok(answer) => {
                let bytes = answer.and_then(|answer| encode(None, &answer, Transport::Udp));
                return bytes.map_or((), |bytes| drop(udp.try_send_to(&bytes, from)));
            }
            Err(question) => question,
        };
        let Some(place) = self.waiting.take(tenant.container) else {
            let refusal = question.reply(hickory_proto::op::ResponseCode::Refused);
            let bytes = encode(Some(&question), &refusal, Transport::Udp);
            return bytes.map_or((), |bytes| drop(udp.try_send_to(&bytes, from)));
        };
        let (resolver, udp, shutdown) = (Arc::clone(self), Arc::clone(udp), shutdown.clone());
        tasks.spawn(async move {
            let _held: Place = place;
            let forward = resolver.forward(&tenant, &question);
            let Some(answer) = shutdown.run_until_cancelled(forward).await else { return };
            if let Some(bytes) = encode(Some(&question), &answer, Transport::Udp) {
                // Its link may have gone meanwhile; nobody waits for the answer then.
                let _ = udp.send_to(&bytes, from).await;
            }
        });
    }

    async fn serve_connections(self: Arc<Self>, tcp: TcpListener, tasks: &TaskTracker, shutdown: &CancellationToken) {
        loop {
            let accepted = tokio::select! {
                // Cancel-safe: an accept that was not polled to its end took no connection.
                accepted = tcp.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            };
            let Some(tenant) = address_of(from).and_then(|address| self.tenant(address)) else { continue };
            let Some(place) = self.connections.take(tenant.container) else { continue };
            let (resolver, shutdown) = (Arc::clone(&self), shutdown.clone());
            tasks.spawn(async move {
                let _held: Place = place;
                // How a tenant's connection ended is the tenant's affair.
                let _ = shutdown.run_until_cancelled(resolver.connection(stream, tenant)).await;
            });
        }
    }

    /// One question after the other.
    async fn connection(&self, mut stream: TcpStream, tenant: Tenant) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let length = within(IDLE_MS_MAX, stream.read_u16()).await?;
            if usize::from(length) > QUESTION_BYTES_MAX {
                return Ok(());
            }
            let mut packet = vec![0; length.into()];
            within(TRANSFER_MS_MAX, stream.read_exact(&mut packet)).await?;
            let Some(answer) = self.answer(&tenant, &packet).await else { return Ok(()) };
            within(TRANSFER_MS_MAX, stream.write_all(&framed(&answer))).await?;
        }
    }

    async fn answer(&self, tenant: &Tenant, packet: &[u8]) -> Option<Vec<u8>> {
        let question = match self.answer_at_once(tenant, packet) {
            Ok(answer) => return answer.and_then(|answer| encode(None, &answer, Transport::Tcp)),
            Err(question) => question,
        };
        let answer = match self.waiting.take(tenant.container) {
            Some(_held) => self.forward(tenant, &question).await,
            None => question.reply(hickory_proto::op::ResponseCode::Refused),
        };
        encode(Some(&question), &answer, Transport::Tcp)
    }
}

async fn within<T>(ms_max: u64, run: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let elapsed = |_| io::Error::from(io::ErrorKind::TimedOut);
    timeout(Duration::from_millis(ms_max), run).await.map_err(elapsed)?
}
