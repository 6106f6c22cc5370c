//! TLS in front: which certificate is shown, when a new one is, and what containers are told of it.

use std::path::Path;

use rcgen::{CertificateParams, CertifiedKey, KeyPair, generate_simple_self_signed};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ClientConfig, HandshakeKind, RootCertStore};

use super::http2::{ask, shake, text_of};
use super::*;
use crate::proxy::tls::{Certificates, Tls, TlsConfig};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A pair for these names, in the files `<stem>.crt` and `<stem>.key`.
fn put(folder: &Path, stem: &str, names: &[&str]) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    std::fs::write(folder.join(stem).with_extension("crt"), cert.pem()).unwrap();
    std::fs::write(folder.join(stem).with_extension("key"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

struct TlsBed {
    bed: Bed,
    addr: SocketAddr,
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    served: JoinHandle<()>,
}

impl TlsBed {
    async fn over(bed: Bed, folder: &Path, config: TlsConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let challenges = Arc::new(Challenges::default());
        let certificates = Certificates::open(folder, Arc::clone(&challenges)).unwrap();
        let tls = Tls::new(Arc::clone(&certificates), config).unwrap();
        let served = tokio::spawn(Arc::clone(&bed.proxy).serve_tls(listener, tls, bed.stop.clone()));
        Self { bed, addr, certificates, challenges, served }
    }

    async fn shake(&self, client: Arc<ClientConfig>, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        within(TlsConnector::from(client).connect(ServerName::try_from(name.to_owned()).unwrap(), stream)).await
    }

    async fn end(self) {
        self.bed.end().await;
        within(self.served).await.unwrap();
    }
}

/// A client that trusts these alone.
fn trusting(certificates: &[&CertificateDer<'static>], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    trusting_by(certificates, alpn, &[&TLS13, &TLS12])
}

fn trusting_by(
    certificates: &[&CertificateDer<'static>],
    alpn: &[&[u8]],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add((*certificate).clone()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// The certificate that is shown for a name; a session that is resumed would tell the one it began with.
async fn shown(bed: &TlsBed, client: &Arc<ClientConfig>, name: &str) -> Option<CertificateDer<'static>> {
    let mut client = ClientConfig::clone(client);
    client.resumption = Resumption::disabled();
    let stream = bed.shake(Arc::new(client), name).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?[0].clone())
}

const HOST: &str = "acme.node1.localhost";

#[tokio::test]
async fn a_container_is_reached_by_tls_in_both_versions_of_http_and_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = put(folder.path(), "node1", &["*.node1.localhost"]);
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;

    let stream = bed.shake(trusting(&[&certificate], &[b"h2", b"http/1.1"]), HOST).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, _connection) = shake(stream).await;
    let response = within(sender.send_request(ask(&format!("https://{HOST}/two")))).await.unwrap();
    let seen = text_of(response).await;
    assert!(seen.starts_with("GET /two HTTP/1.1\r\n"), "{seen}");
    assert_eq!(field(&seen, "x-forwarded-proto"), Some("https"));
    assert!(field(&seen, "forwarded").unwrap().ends_with(";proto=https"), "{seen}");

    for (versions, alpn) in [(&TLS13, &[&b"http/1.1"[..]][..]), (&TLS12, &[])] {
        let client = trusting_by(&[&certificate], alpn, &[versions]);
        let mut stream = bed.shake(client, HOST).await.unwrap();
        stream.write_all(get_once("/one").as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nx-forwarded-proto: https\r\n"), "{answer}");
    }
    // The other listener goes on as it is.
    let plain = bed.bed.say(&get_once("/")).await;
    assert!(plain.contains("\r\nx-forwarded-proto: http\r\n"), "{plain}");
    bed.end().await;
}

#[tokio::test]
async fn an_exact_name_goes_before_a_wildcard_and_that_before_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let wild = put(folder.path(), "wild", &["*.node1.localhost"]);
    let exact = put(folder.path(), "exact", &["acme.node1.localhost", "SHOP.example.com"]);
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;
    let client = trusting(&[&wild, &exact], &[]);
    assert_eq!(shown(&bed, &client, "acme.node1.localhost").await, Some(exact.clone()));
    assert_eq!(shown(&bed, &client, "shop.example.com").await, Some(exact.clone()));
    assert_eq!(shown(&bed, &client, "other.node1.localhost").await, Some(wild.clone()));
    // A star is one label, and nobody's name is shown to whoever asks for another.
    for name in ["a.b.node1.localhost", "node1.localhost", "elsewhere.example.com", "127.0.0.1"] {
        assert_eq!(shown(&bed, &client, name).await, None, "{name}");
    }
    bed.end().await;

    let default = put(folder.path(), "default", &["elsewhere.example.com", "127.0.0.1"]);
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;
    let client = trusting(&[&default], &[]);
    assert_eq!(shown(&bed, &client, "127.0.0.1").await, Some(default.clone()), "whoever names no host");
    bed.end().await;
}

#[tokio::test]
async fn of_two_for_one_name_the_one_that_is_good_for_longer_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Vec::new();
    for (stem, year) in [("a", 2040), ("b", 2050), ("c", 2045)] {
        let mut params = CertificateParams::new([HOST.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join(stem).with_extension("pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join(stem).with_extension("key"), key.serialize_pem()).unwrap();
        made.push(certificate.der().clone());
    }
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;
    let client = trusting(&made.iter().collect::<Vec<_>>(), &[]);
    assert_eq!(shown(&bed, &client, HOST).await.as_ref(), Some(&made[1]));
    bed.end().await;
}

#[tokio::test]
async fn what_is_renewed_in_the_folder_is_shown_and_what_is_broken_there_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = put(folder.path(), "acme", &[HOST]);
    let config = ProxyConfig { header_read_ms_max: ms(60_000), ..fast() };
    let (bed, _container) = Bed::with(config, mirror).await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;
    tokio::spawn(Arc::clone(&bed.certificates).watch(bed.bed.stop.clone()));
    let client = trusting(&[&first], &[]);
    let mut open = bed.shake(Arc::clone(&client), HOST).await.unwrap();

    for broken in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(folder.path().join("acme.crt"), broken).unwrap();
        tokio::time::sleep(ms(2_300)).await;
        assert_eq!(shown(&bed, &client, HOST).await.as_ref(), Some(&first), "{broken}");
    }
    // The key of another.
    let second = put(folder.path(), "acme", &[HOST, "shop.example.com"]);
    let key = std::fs::read(folder.path().join("acme.key")).unwrap();
    std::fs::write(folder.path().join("acme.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    tokio::time::sleep(ms(2_300)).await;
    assert_eq!(shown(&bed, &client, HOST).await.as_ref(), Some(&first));
    std::fs::remove_file(folder.path().join("acme.key")).unwrap();
    tokio::time::sleep(ms(2_300)).await;
    assert_eq!(shown(&bed, &client, HOST).await.as_ref(), Some(&first));

    std::fs::write(folder.path().join("acme.key"), key).unwrap();
    let client = trusting(&[&first, &second], &[]);
    within(async {
        while shown(&bed, &client, HOST).await.as_ref() != Some(&second) {
            tokio::time::sleep(ms(50)).await;
        }
    })
    .await;
    assert_eq!(shown(&bed, &client, "shop.example.com").await.as_ref(), Some(&second));
    // What was open goes on.
    open.write_all(get_once("/").as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(open.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    std::fs::remove_file(folder.path().join("acme.crt")).unwrap();
    within(async {
        while shown(&bed, &client, HOST).await.is_some() {
            tokio::time::sleep(ms(50)).await;
        }
    })
    .await;
    bed.end().await;
}

#[tokio::test]
async fn a_second_handshake_is_a_resumption() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = put(folder.path(), "node1", &["*.node1.localhost"]);
    let (bed, _container) = Bed::with(fast(), mirror).await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;
    for version in [&TLS13, &TLS12] {
        let client = trusting_by(&[&certificate], &[], &[version]);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = bed.shake(Arc::clone(&client), HOST).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{version:?}");
            // Tickets of TLS 1.3 come with the first bytes.
            stream.write_all(get_once("/").as_bytes()).await.unwrap();
            let mut answer = String::new();
            within(stream.read_to_string(&mut answer)).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    bed.end().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_and_further_ones_wait_for_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = put(folder.path(), "node1", &["*.node1.localhost"]);
    let (bed, container) = Bed::with(fast(), mirror).await;
    let config = TlsConfig { handshake_ms_max: ms(2_000), handshakes_max: 1, ..TlsConfig::default() };
    let bed = TlsBed::over(bed, folder.path(), config).await;
    let mut silent = TcpStream::connect(bed.addr).await.unwrap();
    tokio::time::sleep(ms(300)).await;
    let began = std::time::Instant::now();
    let next = bed.shake(trusting(&[&certificate], &[]), HOST).await;
    assert!(next.is_ok() && began.elapsed() > ms(100), "{next:?} {:?}", began.elapsed());
    let mut nothing = Vec::new();
    within(silent.read_to_end(&mut nothing)).await.unwrap();
    // Who speaks no TLS is not served here.
    let mut plain = Peer::connect(bed.addr).await;
    plain.send(&get("/")).await;
    assert!(!plain.rest().await.contains("HTTP/1.1"));
    assert_eq!(container.accepted(), 0);
    drop(next);
    until(|| bed.bed.proxy.stats().connections == 0).await;
    bed.end().await;
}

#[tokio::test]
async fn a_challenge_is_shown_its_own_certificate_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = put(folder.path(), "node1", &["*.node1.localhost"]);
    let (bed, container) = Bed::with(fast(), mirror).await;
    let config = TlsConfig { takes_challenges: true, ..TlsConfig::default() };
    let bed = TlsBed::over(bed, folder.path(), config).await;
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let challenge = cert.der().clone();
    let challenged = trusting(&[&challenge, &certificate], &[b"acme-tls/1"]);
    assert_eq!(shown(&bed, &challenged, HOST).await, None, "nobody asked for one");
    let key = rustls::pki_types::PrivateKeyDer::from(signing_key);
    let showing = bed.challenges.show_certificate(HOST, challenge.clone(), key).unwrap();
    assert_eq!(shown(&bed, &challenged, HOST).await.as_ref(), Some(&challenge));
    assert_eq!(shown(&bed, &challenged, "other.node1.localhost").await, None);
    let ordinary = trusting(&[&challenge, &certificate], &[b"h2", b"http/1.1"]);
    assert_eq!(shown(&bed, &ordinary, HOST).await.as_ref(), Some(&certificate));
    // Nothing is served after such a handshake.
    let mut stream = bed.shake(Arc::clone(&challenged), HOST).await.unwrap();
    let _ = stream.write_all(get("/").as_bytes()).await;
    let mut answer = String::new();
    let _ = within(stream.read_to_string(&mut answer)).await;
    assert_eq!(answer, "");
    drop(showing);
    assert_eq!(shown(&bed, &challenged, HOST).await, None);
    assert_eq!(container.accepted(), 0);
    bed.end().await;
}

#[tokio::test]
async fn the_text_of_a_challenge_is_told_under_any_host_and_before_any_redirect() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    let challenge = |token: &str| get_once(&format!("/.well-known/acme-challenge/{token}"));
    // Where no certificates are ordered it is a path like any other.
    assert!(bed.say(&challenge("token")).await.contains("GET /.well-known/acme-challenge/token"));
    let challenges = Arc::new(Challenges::default());
    bed.proxy.answer_challenges(Arc::clone(&challenges));
    let showing = challenges.show_text("token", "token.thumb");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let door = Door { scheme: Scheme::Http, https_port: Some(443) };
    let served = tokio::spawn(Arc::clone(&bed.proxy).serve_at(listener, door, bed.stop.clone()));
    for request in [challenge("token"), challenge("token").replace("acme.node1.localhost", "shop.example.com")] {
        let mut client = Peer::connect(addr).await;
        client.send(&request).await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\ntoken.thumb"), "{answer}");
    }
    assert!(bed.say(&challenge("other")).await.contains("NO_CHALLENGE"));
    drop(showing);
    assert!(bed.say(&challenge("token")).await.starts_with("HTTP/1.1 404 "));
    assert_eq!(container.accepted(), 1);
    bed.end().await;
    within(served).await.unwrap();
}

#[tokio::test]
async fn large_bodies_pass_through_tls_whole() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = put(folder.path(), "node1", &["*.node1.localhost"]);
    const BYTES: usize = 8 << 20;
    let (bed, _container) = Bed::with(fast(), |mut peer: Peer| async move {
        peer.head().await;
        let body = peer.exactly(BYTES).await;
        peer.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n")).await;
        peer.send(&body).await;
        peer.head().await;
    })
    .await;
    let bed = TlsBed::over(bed, folder.path(), TlsConfig::default()).await;
    let stream = bed.shake(trusting(&[&certificate], &[]), HOST).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let body: Vec<u8> = (0..BYTES).map(|n| b'a' + (n % 23) as u8).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n");
    let sent = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&body).await.unwrap();
        write.flush().await.unwrap();
    };
    let mut answer = Vec::new();
    within(async { tokio::join!(sent, read.read_to_end(&mut answer)).1.unwrap() }).await;
    assert!(answer.ends_with(&body), "{} bytes came", answer.len());
    bed.end().await;
}

#[tokio::test]
async fn the_plain_listener_sends_to_https_whom_it_knows_and_asks_no_container() {
    let (bed, container) = Bed::with(fast(), mirror).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let door = |https_port| Door { scheme: Scheme::Http, https_port };
    let served = tokio::spawn(Arc::clone(&bed.proxy).serve_at(listener, door(Some(443)), bed.stop.clone()));
    let say = async |request: &str| {
        let mut client = Peer::connect(addr).await;
        client.send(request).await;
        client.head().await
    };
    let head = say("GET /a%20b?q=1&r HTTP/1.1\r\nHost: ACME.node1.localhost:8080\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 308 "), "{head}");
    assert_eq!(field(&head, "location"), Some("https://acme.node1.localhost/a%20b?q=1&r"));
    let head = say("POST / HTTP/1.1\r\nHost: acme.node1.localhost\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(field(&head, "location"), Some("https://acme.node1.localhost/"));
    let head = say("OPTIONS * HTTP/1.1\r\nHost: acme.node1.localhost\r\n\r\n").await;
    assert_eq!(field(&head, "location"), Some("https://acme.node1.localhost/"));
    for stranger in ["nobody.node1.localhost", "example.com", "127.0.0.1"] {
        let head = say(&format!("GET / HTTP/1.1\r\nHost: {stranger}\r\n\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert_eq!(field(&head, "location"), None);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = listener.local_addr().unwrap();
    let more = tokio::spawn(Arc::clone(&bed.proxy).serve_at(listener, door(Some(8443)), bed.stop.clone()));
    let (mut sender, _connection) = shake(TcpStream::connect(other).await.unwrap()).await;
    let response = within(sender.send_request(ask("http://acme.node1.localhost/two"))).await.unwrap();
    assert_eq!(response.status(), 308);
    assert_eq!(response.headers()["location"], "https://acme.node1.localhost:8443/two");
    drop(response);
    assert_eq!(container.accepted(), 0);
    bed.end().await;
    within(served).await.unwrap();
    within(more).await.unwrap();
}
