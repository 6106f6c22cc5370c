//! Certificates by ACME, from Pebble: a server made for tests, which proves names as the real ones do.

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::skips::skipped;
use crate::support::daemon::{Daemon, answer, id_of, patience, play_with};

const TLS_PORT: u16 = 9443;
const DIRECTORY: &str = "127.0.0.1:14000";
const NAMES: &str = "127.0.0.1:8053";

/// Pebble, and a name server that says of every name that it is here. Both in the network of the test.
struct Pebble {
    folder: tempfile::TempDir,
    children: Vec<Child>,
}

impl Pebble {
    /// Writes what it is set up with; it is not started yet.
    fn prepare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        fs::write(folder.path().join("own.crt"), cert.pem()).unwrap();
        fs::write(folder.path().join("own.key"), signing_key.serialize_pem()).unwrap();
        let config = json!({ "pebble": {
            "listenAddress": DIRECTORY, "managementListenAddress": "127.0.0.1:15000",
            "certificate": folder.path().join("own.crt"), "privateKey": folder.path().join("own.key"),
            "httpPort": 8080, "tlsPort": TLS_PORT, "ocspResponderURL": "", "externalAccountBindingRequired": false,
        }});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self { folder, children: Vec::new() }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("own.crt")
    }

    fn start(&mut self) {
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", NAMES, "-management", "127.0.0.1:8055"]);
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let mut pebble = Command::new("pebble");
        pebble.arg("-config").arg(self.folder.path().join("config.json")).args(["-dnsserver", NAMES]);
        // Without a pause before it looks; nonces are refused at times, as it does by itself.
        pebble.env("PEBBLE_VA_NOSLEEP", "1");
        for command in [&mut names, &mut pebble] {
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            self.children.push(child);
        }
        let deadline = Instant::now() + patience(10);
        while TcpStream::connect(DIRECTORY).is_err() || UdpSocket::bind(NAMES).is_ok() {
            assert!(Instant::now() < deadline, "Pebble does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn is_there(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).exists())
}

/// What is asked over TLS, by a client that trusts who signed the certificate in this file.
async fn visit(chain: &Path, host: &str, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let signer = CertificateDer::pem_slice_iter(&fs::read(chain)?).nth(1).unwrap().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(signer).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", TLS_PORT)).await?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn until_there(path: &Path) {
    // The server refuses one nonce in twenty, on purpose; of an order whose third in a row is refused the next is two minutes later.
    let deadline = Instant::now() + patience(200);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} never comes", path.display());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A stopped container with a verified domain.
async fn tenant(daemon: &Daemon, domain: &str) -> Value {
    let client = &daemon.client;
    let project = client.create_project("acme").await;
    let tenant = client.create_template(&project, "crm").await;
    let id = id_of(&tenant);
    client.exec(&id, &["sh", "-c", "echo hello >/var/www/hello"]).await;
    client.verb(&id, "stop").await.data(200);
    let alias = json!({ "container_id": id, "alias": "crm", "domain": domain, "verified": true });
    client.post("/proxy/aliases", alias).await.data(201);
    tenant
}

fn ordered_by(challenge: &str) {
    if !is_there("pebble") || !is_there("pebble-challtestsrv") {
        return skipped("acme", "there is no pebble");
    }
    let mut pebble = Pebble::prepare();
    let config = format!(
        "[proxy]\ntls_listen = '127.0.0.1:{TLS_PORT}'\nredirect_to_https = true\n[acme]\nenabled = true\n\
         directory = 'https://localhost:14000/dir'\nca_file = '{}'\nchallenge = '{challenge}'\n\
         contact = ['mailto:ops@provider.example']\ndomains = ['fixed.provider.example']",
        pebble.ca().display()
    );
    play_with(&config, async |daemon| {
        pebble.start();
        // The first daemon may have found nobody there, and asks again after a while.
        daemon.stop();
        daemon.restart().await;
        let folder = daemon.data_dir().join("certificates");
        let tenant = tenant(daemon, "shop.customer.example").await;
        let chain = folder.join("shop.customer.example.acme.crt");
        until_there(&chain).await;
        let client = &daemon.client;
        assert_eq!(client.container(&id_of(&tenant)).await["status"], "stopped", "no challenge woke it");
        for file in [chain.with_extension("key"), daemon.data_dir().join("acme.json")] {
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
        }
        let deadline = Instant::now() + patience(10);
        let page = loop {
            match visit(&chain, "shop.customer.example", "/hello").await {
                Ok(page) => break page,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert!(page.starts_with("HTTP/1.1 200 ") && page.ends_with("hello\n"), "{page}");
        until_there(&folder.join("fixed.provider.example.acme.crt")).await;
        let unknown = "http://shop.customer.example/.well-known/acme-challenge/unknown";
        answer(client.open(reqwest::Method::GET, unknown)).await.refused(404, "NO_CHALLENGE");

        // What is good for long is not ordered again, and the account is the same after a restart.
        let (account, before) = (fs::read(daemon.data_dir().join("acme.json")).unwrap(), fs::read(&chain).unwrap());
        daemon.stop();
        fs::remove_file(folder.join("fixed.provider.example.acme.crt")).unwrap();
        daemon.restart().await;
        until_there(&folder.join("fixed.provider.example.acme.crt")).await;
        assert_eq!(fs::read(&chain).unwrap(), before);
        assert_eq!(fs::read(daemon.data_dir().join("acme.json")).unwrap(), account);
    });
}

#[test]
fn a_verified_domain_gets_a_certificate_by_http_01() {
    ordered_by("http-01");
}

#[test]
fn a_verified_domain_gets_a_certificate_by_tls_alpn_01() {
    ordered_by("tls-alpn-01");
}
