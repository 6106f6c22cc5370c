//! The URL by TLS and HTTP/2, to a real container.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::Method;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::daemon::{Client, PROXY, answer, id_of, patience, play_with};

const TLS_PORT: u16 = 8443;

/// A certificate for every container of this host, in the folder that the daemon looks into.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["*.node1.localhost".to_owned()]).unwrap();
    fs::write(folder.join("node1.crt"), cert.pem()).unwrap();
    fs::write(folder.join("node1.key"), signing_key.serialize_pem()).unwrap();
    cert.der().clone()
}

type Sender = SendRequest<Empty<Bytes>>;

/// A connection of HTTP/2 of a client that trusts one certificate and finds this host under a container's name.
async fn visit(certificate: &CertificateDer<'static>, url: &str) -> std::io::Result<Sender> {
    let host = url.split("://").nth(1).unwrap().split(':').next().unwrap().to_owned();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", TLS_PORT)).await?;
    let stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(host).unwrap(), stream).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Ok(sender)
}

async fn get(sender: &Sender, url: &str) -> (Response<()>, String) {
    let request = Request::get(url).body(Empty::new()).unwrap();
    let (head, body) = sender.clone().send_request(request).await.unwrap().into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (Response::from_parts(head, ()), text)
}

async fn tenant(client: &Client) -> Value {
    let project = client.create_project("acme").await;
    let tenant = client.create_template(&project, "crm").await;
    client.exec(&id_of(&tenant), &["sh", "-c", "echo hello >/var/www/hello"]).await;
    tenant
}

#[test]
fn a_container_is_reached_by_tls_and_the_plain_listener_leads_there_without_waking_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = certify(folder.path());
    let config = format!(
        "[proxy]\ntls_listen = '127.0.0.1:{TLS_PORT}'\ncertificates_dir = '{}'\nredirect_to_https = true",
        folder.path().display()
    );
    play_with(&config, async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        let url = tenant["url"].as_str().unwrap();
        assert!(url.starts_with("https://") && url.ends_with(&format!(".node1.localhost:{TLS_PORT}")), "{url}");

        client.verb(&id_of(&tenant), "stop").await.data(200);
        let plain = url.replace("https://", "http://");
        let stays = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let host = plain.trim_start_matches("http://");
        let led = answer(stays.get(format!("http://{PROXY}/hello?a=1")).header("host", host)).await;
        led.refused(308, "HTTPS_ONLY");
        assert_eq!(led.headers["location"], format!("{url}/hello?a=1"));
        answer(client.open(Method::GET, "http://nobody.node1.localhost/")).await.refused(404, "UNKNOWN_HOST");
        assert_eq!(client.container(&id_of(&tenant)).await["status"], "stopped");

        let page = format!("{url}/hello");
        let sender = visit(&first, url).await.unwrap();
        let (head, text) = get(&sender, &page).await;
        assert_eq!((head.status().as_u16(), text.as_str()), (200, "hello\n"));
        assert!(head.headers().contains_key("server-timing"), "it was woken");
        let many = join_all((0..50).map(|_| get(&sender, &page))).await;
        assert!(many.iter().all(|(head, text)| head.status() == 200 && text == "hello\n"));

        // A new certificate is shown without a restart.
        let second = certify(folder.path());
        let deadline = Instant::now() + patience(10);
        while let Err(error) = visit(&second, url).await {
            assert!(Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(get(&sender, &page).await.1, "hello\n", "what was open goes on");
    });
}
