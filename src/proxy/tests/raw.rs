//! Raw TCP: bytes both ways, whoever is behind, and the bounds that hold for it.

use tokio::net::TcpSocket;

use super::*;

const PORT: NonZeroU16 = NonZeroU16::MAX;

/// A bed with a door of raw TCP beside its own.
pub(super) struct Raw {
    pub(super) bed: Bed,
    pub(super) addr: SocketAddr,
    served: JoinHandle<()>,
}

impl Raw {
    pub(super) async fn with<F, Fut>(config: ProxyConfig, container: F) -> (Self, Container)
    where
        F: Fn(Peer) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (bed, container) = Bed::with(config, container).await;
        *bed.table.port_owner.lock().unwrap() = Some(bed.acme);
        bed.table.lead_port(Resolution::Upstream(Upstream { container: bed.acme, epoch: 1, addr: container.addr }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(Arc::clone(&bed.proxy).serve_raw(listener, PORT, bed.stop.clone()));
        (Self { bed, addr, served }, container)
    }

    pub(super) async fn end(self) {
        self.bed.stop.cancel();
        within(self.served).await.unwrap();
        self.bed.end().await;
    }
}

/// Says everything again.
pub(super) async fn echo(peer: Peer) {
    let mut stream = peer.into_stream();
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

#[tokio::test]
async fn bytes_go_both_ways_as_they_are_and_an_end_is_passed_on() {
    let (raw, container) = Raw::with(fast(), echo).await;
    let mut client = Peer::connect(raw.addr).await;
    for text in ["\0\u{7f}binary", "GET / HTTP/1.1\r\n\r\n"] {
        client.send(text).await;
        assert_eq!(client.exactly(text.len()).await, text);
    }
    assert_eq!((raw.bed.proxy.stats().tunnels, container.accepted()), (1, 1));
    client.stream.get_mut().shutdown().await.unwrap();
    assert_eq!(client.rest().await, "");
    until(|| raw.bed.proxy.stats().tunnels == 0).await;
    assert_eq!(raw.bed.proxy.stats().idle_upstreams, 0, "such a connection is never used again");
    raw.end().await;
}

#[tokio::test]
async fn a_door_that_leads_nowhere_says_nothing() {
    let (raw, container) = Raw::with(fast(), echo).await;
    for resolution in [Resolution::Unknown, Resolution::Asleep, Resolution::Disabled] {
        raw.bed.table.lead_port(resolution);
        assert_eq!(Peer::connect(raw.addr).await.rest().await, "");
    }
    assert_eq!(container.accepted(), 0);
    raw.end().await;
}

#[tokio::test]
async fn what_is_silent_ends_and_what_is_beyond_the_bound_does_not_begin() {
    let config = ProxyConfig { raw_max: 1, tunnel_idle_ms_max: Duration::from_millis(300), ..fast() };
    let (raw, _container) = Raw::with(config, echo).await;
    let mut first = Peer::connect(raw.addr).await;
    first.send("x").await;
    assert_eq!(first.exactly(1).await, "x");
    assert_eq!(Peer::connect(raw.addr).await.rest().await, "", "there is no room for a second");
    assert_eq!(first.rest().await, "", "it was silent");
    raw.end().await;
}

#[tokio::test]
async fn what_does_not_end_by_itself_is_cut_at_the_end_of_the_drain() {
    let config = ProxyConfig { drain_ms_max: Duration::from_millis(200), ..fast() };
    let (raw, _container) = Raw::with(config, echo).await;
    let mut client = Peer::connect(raw.addr).await;
    client.send("x").await;
    client.exactly(1).await;
    let addr = raw.addr;
    raw.end().await;
    assert_eq!(client.rest().await, "");
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_door_that_nobody_comes_to_takes_no_place_of_a_clients() {
    let config = ProxyConfig { connections_max: 1, ..fast() };
    let (raw, _container) = Raw::with(config, mirror).await;
    // The one place is for whoever comes first.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut client = raw.bed.client().await;
    client.send(&get("/")).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(Peer::connect(raw.addr).await.rest().await, "", "there is no place");
    drop(client);
    raw.end().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_makes_room_at_once() {
    let config = ProxyConfig { per_upstream_max: 1, raw_max: 2, ..fast() };
    let (raw, _container) = Raw::with(config, echo).await;
    let mut first = Peer::connect(raw.addr).await;
    first.send("x").await;
    first.exactly(1).await;
    // It waits for the one place, and goes.
    let waiting = Peer::connect(raw.addr).await;
    until(|| raw.bed.proxy.stats().connections == 2).await;
    drop(waiting);
    until(|| raw.bed.proxy.stats().connections == 1).await;
    // One that has said all it has to say is not gone: it is answered when its turn comes.
    let mut patient = Peer::connect(raw.addr).await;
    patient.send("later").await;
    patient.stream.get_mut().shutdown().await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(first);
    assert_eq!(patient.rest().await, "later");
    raw.end().await;
}

#[tokio::test]
async fn a_port_that_opens_soon_is_waited_for() {
    let (raw, container) = Raw::with(fast(), echo).await;
    // A port that somebody has, and does not listen at yet.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    let upstream = Upstream { container: raw.bed.acme, epoch: 2, addr };
    raw.bed.table.set("late", Resolution::Upstream(upstream));
    raw.bed.table.lead_port(Resolution::Upstream(upstream));
    let mut client = Peer::connect(raw.addr).await;
    client.send("x").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let listener = socket.listen(1).unwrap();
    let (stream, _) = within(listener.accept()).await.unwrap();
    tokio::spawn(echo(Peer::new(stream)));
    assert_eq!(client.exactly(1).await, "x");
    assert_eq!(container.accepted(), 0);
    drop(client);
    raw.end().await;
}
