use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

const TARGET: &str = "198.51.100.1:443";

fn subnet() -> Subnet {
    "10.201.0.0/16".parse().unwrap()
}

/// A dialer that trusts one certificate alone, and that one.
fn trusting() -> (Dialer, TlsAcceptor) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(ring::default_provider());
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let dialer = Dialer::new(subnet(), true);
    assert!(dialer.tls.set(TlsConnector::from(Arc::new(config))).is_ok());
    (dialer, TlsAcceptor::from(Arc::new(server)))
}

/// An HTTPS proxy that takes one tunnel and says what it was asked, then `hello`.
async fn https_proxy(acceptor: TlsAcceptor) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(stream).await else { return String::new() };
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await.unwrap();
        stream.shutdown().await.unwrap();
        String::from_utf8(asked).unwrap()
    });
    (port, served)
}

#[tokio::test]
async fn a_proxy_over_tls_is_asked_only_where_its_certificate_is_trusted() {
    let (dialer, acceptor) = trusting();
    let (port, served) = https_proxy(acceptor.clone()).await;
    let proxy: Proxy = format!("https://user:hunter2@localhost:{port}").parse().unwrap();
    let mut tunnel = dialer.connect(&proxy, TARGET.parse().unwrap()).await.unwrap();
    let mut heard = String::new();
    tunnel.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");
    assert!(served.await.unwrap().starts_with("CONNECT 198.51.100.1:443 "));
    // The same certificate under another name, and one of a stranger.
    let (port, _served) = https_proxy(acceptor).await;
    let other_name: Proxy = format!("https://127.0.0.1:{port}").parse().unwrap();
    assert!(matches!(dialer.connect(&other_name, TARGET.parse().unwrap()).await, Err(DialError::Tls { .. })));
    let (_, stranger) = trusting();
    let (port, served) = https_proxy(stranger).await;
    let proxy: Proxy = format!("https://user:hunter2@localhost:{port}").parse().unwrap();
    assert!(matches!(dialer.connect(&proxy, TARGET.parse().unwrap()).await, Err(DialError::Tls { .. })));
    assert_eq!(served.await.unwrap(), "", "credentials are said to nobody else");
}

#[tokio::test]
async fn a_name_that_leads_to_this_host_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["localhost", "127.0.0.1"] {
        let proxy: Proxy = format!("http://{host}:{port}").parse().unwrap();
        let dialled = Dialer::new(subnet(), false).connect(&proxy, TARGET.parse().unwrap()).await;
        assert!(matches!(dialled, Err(DialError::Closed { .. })), "{host}");
    }
    let untouched = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(untouched.is_err());
}
