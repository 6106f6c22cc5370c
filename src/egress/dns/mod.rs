//! The resolver that tenants ask on their gateway's address.
//!
//! ```text
//! tenant ─► server (whose? allowed now?) ─► message (read) ─► upstream ─► name server
//!                                             └ answered here: the tenant's own names
//! ```
//!
//! It forwards, and keeps nothing: a cache that tenants shared would tell one by the speed of an answer what another has asked, and one
//! for each would be the name server's again, at a tenant's expense. So every question costs a round trip to the name server, whose own
//! cache is the host's business. A resolver also works where the tenant may send nothing at all: asking is the daemon's doing.
//!
//! Which name servers: the container's own, else those of the configuration, else the host's. Where the container has a proxy, they
//! are asked by TCP through it, so that a question leaves no other trace than a connection would; a name server that only this
//! host reaches is not asked then, and where none is left there is no answer. There are no names of containers.
//!
//! Where a tenant's rules name a host, the firewall opens its addresses before the tenant has the answer ([`Gate`]).
//!
//! Bounds: a tenant that asks too often or too much at once is told REFUSED, and the firewall drops what comes faster than anybody
//! could answer, so that its questions push nobody else's out of the socket.

mod lookup;
mod message;
mod server;
mod upstream;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use tokio::time::timeout;

use super::places::Places;
use super::rates::Rates;
use super::{Dialer, Gate, Tenant, Tenants};
use crate::domain::Subnet;
use crate::domain::dns::NameServer;
use crate::domain::network::{Network, Way};
use message::{Packet, Question};

pub use lookup::Lookup;

/// Questions at once after a pause, for each that a second grants.
const BURST_S: u32 = 3;
/// Questions of one tenant that wait for a name server.
const WAITING_OF_ONE_MAX: usize = 64;
/// Questions of all tenants that wait for a name server; each has a socket.
const WAITING_OF_ALL_MAX: usize = 4_096;
/// For the firewall to open what was asked for, in milliseconds: it may have the rules of many tenants to load first.
const OPENING_MS_MAX: u64 = 2_000;
/// TCP connections of one tenant.
const CONNECTIONS_OF_ONE_MAX: usize = 8;
/// TCP connections of all tenants.
const CONNECTIONS_OF_ALL_MAX: usize = 512;

/// What a resolver goes by.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Who is asked, in this order; empty: the host's own name servers.
    pub upstreams: Vec<NameServer>,
    /// Questions that one tenant may ask a second.
    pub queries_per_second: u32,
    /// Where tenants' addresses come from.
    pub subnet: Subnet,
}

/// The resolver; [`Resolver::serve`] runs it.
#[derive(Debug)]
pub struct Resolver {
    tenants: Arc<dyn Tenants>,
    gate: Arc<dyn Gate>,
    subnet: Subnet,
    dialer: Dialer,
    servers: upstream::Servers,
    rates: Rates,
    waiting: Places,
    connections: Places,
}

/// How a question came, and so how long its answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Resolver {
    /// A resolver for these tenants.
    pub fn new(config: ResolverConfig, dialer: Dialer, tenants: Arc<dyn Tenants>, gate: Arc<dyn Gate>) -> Arc<Self> {
        let burst = config.queries_per_second.saturating_mul(BURST_S);
        Arc::new(Self {
            tenants,
            gate,
            subnet: config.subnet,
            dialer,
            servers: upstream::Servers::new(config.upstreams),
            rates: Rates::new(config.queries_per_second, burst, Instant::now()),
            waiting: Places::new(WAITING_OF_ONE_MAX, WAITING_OF_ALL_MAX),
            connections: Places::new(CONNECTIONS_OF_ONE_MAX, CONNECTIONS_OF_ALL_MAX),
        })
    }

    fn tenant(&self, address: Ipv4Addr) -> Option<Tenant> {
        self.tenants.at(address)
    }

    /// The answer to a packet, where it is not to be waited for: `Err` is a question that is.
    fn answer_at_once(&self, tenant: &Tenant, packet: &[u8]) -> Result<Option<Message>, Box<Question>> {
        match message::read(packet) {
            Packet::Noise => Ok(None),
            Packet::Refused(refusal) => Ok(self.rates.admits(tenant.container, Instant::now()).then_some(*refusal)),
            Packet::Question(question) if !self.rates.admits(tenant.container, Instant::now()) => {
                Ok(Some(question.reply(ResponseCode::Refused)))
            }
            Packet::Question(question) => question.answer_here(self.subnet).map(Some).ok_or(question),
        }
    }

    /// Asks a name server.
    async fn forward(&self, tenant: &Tenant, question: &Question) -> Message {
        let own = tenant.network.as_ref().map_or(&[][..], |network| &network.name_servers);
        let asked = match tenant.network.as_ref().and_then(Network::in_force) {
            // Its packets are dropped before they get here; this is for those that came just before.
            Some(Way::Block) => return question.reply(ResponseCode::Refused),
            Some(Way::Proxy(proxy)) => self.servers.ask_through(&self.dialer, proxy, own, question).await,
            None => self.servers.ask(&self.dialer, own, question).await,
        };
        match asked {
            Ok(answer) => self.pass_on(tenant, question, answer).await,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(container = %tenant.container, error, "a tenant's question has no answer");
                question.reply(ResponseCode::ServFail)
            }
        }
    }
}

impl Resolver {
    /// An answer as the tenant gets it: when it has it, what its rules open by this name is open.
    async fn pass_on(&self, tenant: &Tenant, question: &Question, answer: Message) -> Message {
        let reply = question.pass_on(answer, self.subnet);
        let Some(told) = question.told(&reply) else { return reply };
        let opened = timeout(Duration::from_millis(OPENING_MS_MAX), self.gate.open(tenant.address, told)).await;
        let error: &dyn std::error::Error = match &opened {
            Ok(Ok(())) => return reply,
            Ok(Err(error)) => error,
            Err(error) => error,
        };
        tracing::warn!(container = %tenant.container, error, "what a tenant asked for cannot be opened to it");
        // An address that it does not reach is worse than none.
        question.reply(ResponseCode::ServFail)
    }
}

/// The bytes of an answer to whoever asked over this transport.
fn encode(question: Option<&Question>, answer: &Message, transport: Transport) -> Option<Vec<u8>> {
    let bytes_max = match transport {
        Transport::Tcp => message::TCP_BYTES_MAX,
        // Without a question there are no records, so that the bound does not matter.
        Transport::Udp => question.map_or(message::UDP_BYTES_MAX.into(), Question::udp_bytes_max),
    };
    message::encode(answer, bytes_max)
}
