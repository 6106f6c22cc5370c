//! Which ports are open, and when, over a machine in memory and real sockets of the loopback.

use std::net::Ipv4Addr;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::*;
use crate::config;
use crate::daemon::routes;
use crate::domain::alias::ProxyAlias;
use crate::domain::host::{HostNames, Scheme};
use crate::domain::{AliasId, ContainerId};
use crate::lifecycle::tests::Lab;
use crate::lifecycle::{AliasPatch, AliasSettings, Await, Error, NewAlias, NewContainer, NewProgram, Until};
use crate::proxy::ProxyConfig;

/// Of no other test, and below what the kernel gives out by itself.
const FIRST: u16 = 21_700;
const PATIENCE: Duration = Duration::from_secs(10);

struct Bed {
    _lab: Lab,
    service: Service,
    ports: Arc<Ports>,
    proxy: Arc<Proxy>,
    container: ContainerId,
    stop: CancellationToken,
    served: Vec<JoinHandle<()>>,
}

fn range(text: &str) -> Option<TcpPorts> {
    Some(text.parse().unwrap())
}

impl Bed {
    async fn start(ports: Option<TcpPorts>) -> Self {
        let (lab, service, project) = Lab::new().await;
        let new = NewContainer { start: false, ..Default::default() };
        let wait = Await { until: Until::Started, timeout: PATIENCE };
        let container = service.create(project, new, wait).await.unwrap().container.id;
        let table = routes::Table::new(service.clone(), Handle::current(), &config::Proxy::default());
        let names = HostNames::new("node1", "localhost", Scheme::Http, 80).unwrap();
        let proxy = Proxy::new(names, Arc::new(table), ProxyConfig::default()).unwrap();
        let stop = CancellationToken::new();
        let mut bed = Self {
            _lab: lab,
            service,
            ports: Arc::new(Ports::new(Ipv4Addr::LOCALHOST.into(), ports)),
            proxy,
            container,
            stop,
            served: Vec::new(),
        };
        bed.serve();
        bed
    }

    fn serve(&mut self) {
        let (ports, proxy) = (Arc::clone(&self.ports), Arc::clone(&self.proxy));
        self.served.push(tokio::spawn(ports.serve(self.service.clone(), proxy, self.stop.child_token())));
    }

    async fn make(&self, name: &str, listen_port: Option<u16>) -> Result<Arc<ProxyAlias>, Error> {
        let program = NewProgram::Tcp { listen_port: listen_port.map(|port| port.try_into().unwrap()) };
        let alias = Some(name.parse().unwrap());
        let new = NewAlias { container: self.container, alias, program, settings: AliasSettings::default() };
        self.service.create_alias(new, &*self.ports).await
    }

    async fn enable(&self, id: AliasId, enabled: bool) {
        let settings = AliasSettings { enabled: Some(enabled), ..AliasSettings::default() };
        self.service.update_alias(id, AliasPatch { alias: None, settings }).await.unwrap();
        self.ports.look();
    }

    async fn end(self) {
        self.stop.cancel();
        for served in self.served {
            tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
        }
    }
}

async fn is_open(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_first_client_of_a_new_alias_does_not_wait_for_the_next_look() {
    let bed = Bed::start(range("21700-21709")).await;
    for n in 0..6 {
        let alias = bed.make(&format!("new-{n}"), None).await.unwrap();
        // Its container cannot be started here: whoever comes is let go, once somebody has looked.
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, alias.listen_port().unwrap().get())).await.unwrap();
        bed.service.delete_alias(alias.id).await.unwrap();
        let began = Instant::now();
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
        assert!(began.elapsed() < LOOK_MS / 2, "{:?}", began.elapsed());
    }
    bed.end().await;
}

#[tokio::test]
async fn an_alias_that_is_not_made_keeps_no_port() {
    let bed = Bed::start(range("21710-21711")).await;
    let taken = bed.make("taken", Some(FIRST + 10)).await.unwrap();
    for _ in 0..5 {
        assert!(matches!(bed.make("taken", None).await, Err(Error::AliasInUse { .. })));
        assert!(matches!(bed.make("taken", Some(FIRST + 11)).await, Err(Error::AliasInUse { .. })));
    }
    let other = bed.make("other", Some(FIRST + 11)).await.unwrap();
    assert_eq!(other.listen_port().unwrap().get(), FIRST + 11);
    assert!(matches!(bed.make("third", None).await, Err(Error::ListenPortsUsedUp(_))));
    bed.service.delete_alias(taken.id).await.unwrap();
    bed.end().await;
}

#[tokio::test]
async fn one_alias_takes_the_place_of_another_at_once_and_switching_is_seen() {
    let bed = Bed::start(range("21720-21720")).await;
    let port = FIRST + 20;
    let mut last = None;
    for n in 0..20 {
        if let Some(id) = last {
            bed.service.delete_alias(id).await.unwrap();
        }
        last = Some(bed.make(&format!("one-{n}"), Some(port)).await.unwrap().id);
        assert!(is_open(port).await);
    }
    let id = last.unwrap();
    for _ in 0..10 {
        bed.enable(id, false).await;
        until("it stays open", async || !is_open(port).await).await;
        bed.enable(id, true).await;
        let began = Instant::now();
        until("it stays closed", async || is_open(port).await).await;
        assert!(began.elapsed() < LOOK_MS / 2, "{:?}", began.elapsed());
    }
    bed.service.delete_alias(id).await.unwrap();
    until("it outlives its alias", async || !is_open(port).await).await;
    bed.end().await;
}

#[tokio::test]
async fn a_port_outside_of_what_is_set_aside_is_not_opened_by_the_next_daemon() {
    let mut bed = Bed::start(range("21730-21731")).await;
    bed.make("narrow", Some(FIRST + 30)).await.unwrap();
    bed.make("wide", Some(FIRST + 31)).await.unwrap();
    assert!(is_open(FIRST + 30).await && is_open(FIRST + 31).await);
    bed.stop.cancel();
    for served in bed.served.drain(..) {
        served.await.unwrap();
    }
    bed.stop = CancellationToken::new();
    bed.ports = Arc::new(Ports::new(Ipv4Addr::LOCALHOST.into(), range("21730-21730")));
    bed.serve();
    until("it is not opened", async || is_open(FIRST + 30).await).await;
    assert!(!is_open(FIRST + 31).await);
    let told = [30, 31].map(|n| bed.ports.is_open(NonZeroU16::new(FIRST + n).unwrap()));
    assert_eq!(told, [true, false]);
    bed.end().await;
}
